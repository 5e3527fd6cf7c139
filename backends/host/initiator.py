"""The kernel's iSCSI initiator: its sessions as sysfs has them, and logins through iscsiadm(8).

A session that we log in runs through an interface record of ours, whose name sysfs shows, so that
it can be told from other sessions also when all state is lost. A password never stands in an
argument, which every user of the host may read: iscsiadm makes the node record without it, and it
is written into the record's file (mode 0600) here. It stays there until the logout, because iscsid
needs it to log in again when a connection was lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from backends import errors
from backends.host import commands
from backends.host.scsi import attribute

PORT = 3260
OURS = "poolkeeper-"
"""How the names of our interface records begin."""

LOGGED_IN = "LOGGED_IN"
LOGIN_SECONDS = 10
"""How long iscsid tries to log in, and how long a portal may take to accept a connection."""

_COMMAND_SECONDS = 60.0
_SESSIONS = pathlib.Path("/sys/class/iscsi_session")
_NAME_FILE = pathlib.Path("/etc/iscsi/initiatorname.iscsi")
_DATABASES = (pathlib.Path("/etc/iscsi"), pathlib.Path("/var/lib/iscsi"))
"""Where open-iscsi keeps its records; which one is compiled into it."""

_SAFE_VALUE = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")
"""Values that a record can hold: a line of its own, with no space at either end (idbm.c)."""

_EXISTS, _NOT_FOUND = 15, 21
_REFUSED, _REJECTED, _NO_DAEMON = 24, 19, 20
"""Exit statuses of iscsiadm(8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session of the kernel.

    :param id: number, given to no other session in this boot.
    :param interface: name of the interface record that it was made through.
    :param state: the kernel's word: ``LOGGED_IN``, ``FAILED``, ``FREE``.
    :param sysfs: the directory that its devices are beneath, without links.
    """

    id: int
    target: str
    initiator: str
    interface: str
    state: str
    sysfs: pathlib.Path

    @property
    def ours(self) -> bool:
        return self.interface.startswith(OURS)

    @property
    def host(self) -> int:
        """The number of the SCSI host that it stands for."""
        for part in reversed(self.sysfs.parts):
            if match := re.fullmatch(r"host(\d+)", part):
                return int(match[1])
        raise errors.SystemFailure(f"{self.sysfs} is beneath no SCSI host.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What one side proves itself with; never shown."""

    username: str
    password: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A login to be made.

    :param portals: addresses with ports, tried in their order.
    :param initiator: name to log in by; None for the host's own.
    :param own: what we prove ourselves with; None for no CHAP.
    :param mutual: what the target has to prove itself with.
    """

    target: str
    portals: Sequence[tuple[str, int]]
    initiator: str | None = None
    own: Credentials | None = None
    mutual: Credentials | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A target that a portal offers."""

    target: str
    address: str
    port: int
    group: int


def sessions() -> tuple[Session, ...]:
    """All sessions of the kernel; reading them asks no target anything."""
    try:
        names = os.listdir(_SESSIONS)
    except OSError:
        return ()  # no initiator's module is loaded
    found = []
    for name in names:
        base = _SESSIONS / name
        session = Session(
            id=int(name.removeprefix("session")),
            target=attribute(base / "targetname"),
            initiator=attribute(base / "initiatorname"),
            interface=attribute(base / "ifacename"),
            state=attribute(base / "state"),
            sysfs=pathlib.Path(os.path.realpath(base / "device")),
        )
        if session.target:  # else it went while it was read
            found.append(session)
    return tuple(sorted(found, key=lambda item: item.id))


def own_name() -> str:
    """The host's initiator name.

    :raises errors.NotFound: it has none yet.
    :raises errors.PermissionRefused: its file is for root alone, as that of Debian is.
    """
    try:
        text = _NAME_FILE.read_text()
    except FileNotFoundError as error:
        raise errors.NotFound(
            f"The host has no iSCSI initiator name: {_NAME_FILE} is not there.",
            hint="Install open-iscsi, or give source.initiator.",
        ) from error
    except OSError as error:
        raise errors.from_os_error(error, doing=f"read {_NAME_FILE}") from error
    match = re.search(r"^InitiatorName=(\S+)", text, re.MULTILINE)
    if match is None:
        raise errors.NotFound(
            f"{_NAME_FILE} has no InitiatorName yet.",
            hint="Start open-iscsi once, or give the pool an initiator.",
        )
    return match[1]


def interface_name(target: str, initiator: str | None) -> str:
    """The interface record through which a pool on that target logs in."""
    text = f"{target} {initiator or ''}".encode()
    return OURS + hashlib.sha256(text).hexdigest()[:16]


def log_in(login: Login) -> None:
    """Log in to the target at the first portal that lets us in.

    :raises errors.Inaccessible: no portal answers, or none offers the target.
    :raises errors.PermissionRefused: the target refused us, or did not prove itself.
    """
    interface = interface_name(login.target, login.initiator)
    _make_interface(interface, login.initiator)
    problems: list[errors.StorageError] = []
    for address, port in login.portals:
        try:
            _log_in_at(login, interface, address, port)
        except (errors.Inaccessible, errors.PermissionRefused, errors.Timeout) as error:
            problems.append(error)
        except BaseException:
            _forget(login.target, interface)
            raise
        else:
            return
    _forget(login.target, interface)
    if len(problems) == 1:
        raise problems[0]
    kind = next((type(item) for item in problems if item.reason != "Timeout"), errors.Inaccessible)
    raise kind(" ".join(item.message for item in problems), hint=problems[0].hint)


def log_out(session: Session) -> None:
    """End a session, and remove our records of it. Done already is success."""
    _iscsiadm("session", "-r", str(session.id), "--logout", expected=(0, _NOT_FOUND))
    if session.ours:
        _forget(session.target, session.interface)


def discover(address: str, port: int = PORT, *, initiator: str | None = None) -> tuple[Found, ...]:
    """The targets that a portal offers, leaving no record of them.

    :raises errors.Inaccessible: the portal does not answer.
    """
    if initiator is None:
        return _discover(address, port, interface="default")
    interface = interface_name(f"discovery {address} {port}", initiator)
    _make_interface(interface, initiator)
    try:
        return _discover(address, port, interface=interface)
    finally:
        _iscsiadm("iface", "-I", interface, "-o", "delete", expected=(0, _NOT_FOUND))


def _discover(address: str, port: int, *, interface: str) -> tuple[Found, ...]:
    _knock(address, port)
    told = _iscsiadm(
        "discovery", "-t", "sendtargets", "-p", portal(address, port), "-I", interface,
        "-o", "nonpersistent", expected=(0, _NOT_FOUND, _REFUSED, _REJECTED),
    )  # fmt: skip
    if told.status in (_REFUSED, _REJECTED):
        raise errors.PermissionRefused(
            f"The portal {portal(address, port)} lets nobody ask for its targets without CHAP.",
            hint="Set discovery.sendtargets.auth in /etc/iscsi/iscsid.conf.",
        )
    return tuple(dict.fromkeys(parse_targets(told.stdout)))


def parse_targets(text: str) -> Iterator[Found]:
    """Read what a discovery prints: ``192.0.2.7:3260,1 iqn.…``, IPv6 in brackets."""
    for line in text.splitlines():
        match = re.fullmatch(r"\[?([^\]]+?)\]?:(\d+),(-?\d+) (\S+)", line.strip())
        if match:
            yield Found(target=match[4], address=match[1], port=int(match[2]), group=int(match[3]))


def portal(address: str, port: int) -> str:
    """A portal as iscsiadm wants it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _log_in_at(login: Login, interface: str, address: str, port: int) -> None:
    group = _portal_group(login, interface, address, port)
    record = (
        "-T", login.target, "-p", f"{portal(address, port)},{group}", "-I", interface,
    )  # fmt: skip
    _iscsiadm("node", *record, "-o", "new")
    _complete(_record_file(login.target, interface), _settings(login))
    told = _iscsiadm("node", *record, "--login", expected=range(256))
    if told.status not in (0, _EXISTS):
        raise _login_failure(login, portal(address, port), told)


def _portal_group(login: Login, interface: str, address: str, port: int) -> int:
    """The portal's group, which a login has to name rightly; 1, as most have, where it can't be
    asked."""
    try:
        found = _discover(address, port, interface=interface)
    except (errors.PermissionRefused, errors.CommandFailed):
        return 1
    groups = [item for item in found if item.target == login.target]
    if not groups:
        offered = ", ".join(sorted({item.target for item in found})[:5])
        raise errors.Inaccessible(
            f"The portal {portal(address, port)} does not offer target {login.target}"
            + (f"; it offers {offered}." if offered else "."),
            hint="Check the target's name, and whether it lets this initiator see it.",
        )
    same = [item.group for item in groups if (item.address, item.port) == (address, port)]
    return same[0] if same else groups[0].group


def _knock(address: str, port: int) -> None:
    """See that a portal accepts connections: iscsiadm takes minutes to find that it does not."""
    try:
        socket.create_connection((address, port), timeout=LOGIN_SECONDS).close()
    except OSError as error:
        why = "it did not answer" if isinstance(error, TimeoutError) else error.strerror or error
        raise errors.Inaccessible(
            f"The portal {portal(address, port)} can't be reached: {why}.",
            hint="Check the server and the network.",
        ) from error


def _login_failure(login: Login, where: str, told: commands.Completed) -> errors.StorageError:
    if told.status == _REFUSED:
        how = "its CHAP user or password" if login.own else "without CHAP"
        return errors.PermissionRefused(
            f"Target {login.target} at {where} does not let this initiator in with {how}."
            if login.own
            else f"Target {login.target} at {where} does not let this initiator in {how}.",
            hint="Check source.auth, its secret, and the initiator's name at the target.",
        )
    if told.status == _REJECTED and login.mutual:
        return errors.PermissionRefused(
            f"Target {login.target} at {where} did not prove itself by mutual CHAP.",
            hint="Check mutualAuth and its secret; it may not be the target that it claims to be.",
        )
    if told.status == _NO_DAEMON:
        return errors.Inaccessible(
            "iscsid, which logs in to iSCSI targets, does not run on this host.",
            hint="Start it: systemctl start iscsid.",
        )
    return errors.Inaccessible(
        f"Could not log in to target {login.target} at {where}: iscsiadm ended with status "
        f"{told.status} ({_last_line(told.stderr)}).",
        hint="See what iscsid and the target log.",
    )


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if "reported error" in line] or text.splitlines()
    return (lines[-1] if lines else "no reason told").removeprefix("iscsiadm: ")


def _settings(login: Login) -> dict[str, str]:
    """What the record is to say beside what iscsiadm made it of.

    The agent tries again itself, so one attempt of iscsid is enough.
    """
    settings = {
        "node.startup": "manual",
        "node.conn[0].startup": "manual",
        "node.session.initial_login_retry_max": "1",
        "node.conn[0].timeo.login_timeout": str(LOGIN_SECONDS),
    }
    if login.own is None:
        return {**settings, "node.session.auth.authmethod": "None"}
    settings["node.session.auth.authmethod"] = "CHAP"
    for credentials, suffix in ((login.own, ""), (login.mutual, "_in")):
        if credentials is not None:
            settings[f"node.session.auth.username{suffix}"] = _value(
                credentials.username.encode(), "user name"
            )
            settings[f"node.session.auth.password{suffix}"] = _value(
                credentials.password, "password"
            )
    return settings


def _value(value: bytes, what: str) -> str:
    text = value.decode("ascii", errors="replace")
    if _SAFE_VALUE.fullmatch(text) is None:
        raise errors.InvalidSpec(
            f"A CHAP {what} is not one that iscsid can keep.",
            hint="Use 1 to 256 printable ASCII characters without spaces at the ends.",
        )
    return text


_AUTHENTICATION = "node.session.auth."


def _complete(record: pathlib.Path, settings: Mapping[str, str]) -> None:
    """Put settings into a node record, in place of all that it says of authentication."""
    lines = [
        line
        for line in record.read_text().splitlines()
        if not line.startswith("#")
        and (key := line.partition(" = ")[0]) not in settings
        and (not key.startswith(_AUTHENTICATION) or key.endswith("chap_algs"))
    ]
    lines += [f"{key} = {value}" for key, value in settings.items()]
    # Beside the directories that open-iscsi takes each file in for a record.
    staged = record.parents[3] / f".{record.name}.{os.getpid()}"
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write("\n".join([*lines, ""]))
            file.flush()
            os.fsync(file.fileno())
        staged.replace(record)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def _record_file(target: str, interface: str) -> pathlib.Path:
    """The node record that iscsiadm has just made: the newest, if a portal was tried before."""
    found = _records(target, interface)
    if not found:
        raise errors.SystemFailure(
            f"iscsiadm left no record of {target} under {' or '.join(map(str, _DATABASES))}.",
            hint="This release of open-iscsi keeps its records elsewhere.",
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def _records(target: str, interface: str) -> list[pathlib.Path]:
    return [
        record
        for database in _DATABASES
        for record in (database / "nodes" / target).glob(f"*/{interface}")
    ]


def _make_interface(name: str, initiator: str | None) -> None:
    _iscsiadm("iface", "-I", name, "-o", "new", expected=(0, _EXISTS))
    settings = {"iface.transport_name": "tcp"}
    if initiator is not None:
        settings["iface.initiatorname"] = initiator
    for key, value in settings.items():
        _iscsiadm("iface", "-I", name, "-o", "update", "-n", key, "-v", value)


def _forget(target: str, interface: str) -> None:
    """Remove our records of a target, passwords with them."""
    _iscsiadm("node", "-T", target, "-I", interface, "-o", "delete", expected=(0, _NOT_FOUND))
    for record in _records(target, interface):  # a damaged one, which iscsiadm passes over
        with contextlib.suppress(FileNotFoundError):
            record.unlink()
    _iscsiadm("iface", "-I", interface, "-o", "delete", expected=(0, 7, _NOT_FOUND))


def _iscsiadm(
    mode: str, *arguments: str, expected: Sequence[int] | range = (0,)
) -> commands.Completed:
    if os.geteuid() != 0:  # iscsid serves root alone, and iscsiadm tells of a lock file
        raise errors.PermissionRefused(
            "Only root may ask open-iscsi for anything.", hint="Run the agent as root."
        )
    return commands.run(
        ("iscsiadm", "-m", mode, *arguments), timeout=_COMMAND_SECONDS, expected=expected
    )
