"""What is mounted, how full a file system is, and which host and boot this is."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from backends import errors

Result = TypeVar("Result")

_MOUNTINFO = pathlib.Path("/proc/self/mountinfo")
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo, as proc_pid_mountinfo(5) describes it, unescaped.

    :param device: major and minor number, as in ``st_dev``.
    :param root: what of the file system is mounted; ``/`` for all of it.
    :param options: those of this mount, such as ``rw``, ``relatime``.
    :param filesystem: the type, such as ``ext4``, ``nfs4``, ``fuse.glusterfs``.
    :param source: the device, ``server:/export``, or any word; may be empty.
    :param filesystem_options: those of the file system.
    """

    id: int
    parent: int
    device: tuple[int, int]
    root: str
    mount_point: str
    options: tuple[str, ...]
    filesystem: str
    source: str
    filesystem_options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """How full a file system is, in bytes, as libvirt counts for a pool of files.

    :param available: what is free, with the part that is kept for root.
    :param allocation: ``capacity - available``.
    """

    capacity: int
    available: int
    allocation: int


def parse_mountinfo(text: bytes) -> list[Mount]:
    """Read mountinfo; in its order, in which a later mount lies over an earlier one.

    :raises errors.SystemFailure: for a line of another form.
    """
    return [_parse_line(line) for line in text.split(b"\n") if line]


def _parse_line(line: bytes) -> Mount:
    fields = line.split(b" ")
    try:
        # Six fields, then any number of optional ones up to a lone hyphen.
        end = fields.index(b"-", 6)
        major, minor = fields[2].split(b":")
        return Mount(
            id=int(fields[0]),
            parent=int(fields[1]),
            device=(int(major), int(minor)),
            root=_unescape(fields[3]),
            mount_point=_unescape(fields[4]),
            options=_options(fields[5]),
            filesystem=_unescape(fields[end + 1]),
            source=_unescape(fields[end + 2]),
            filesystem_options=_options(b" ".join(fields[end + 3 :])),
        )
    except (ValueError, IndexError) as error:
        raise errors.SystemFailure(f"The line {line!r} of mountinfo can't be read.") from error


def _unescape(field_: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field_))


def _options(field_: bytes) -> tuple[str, ...]:
    return tuple(_unescape(option) for option in field_.split(b",") if option)


def mounts() -> list[Mount]:
    """What is mounted where this process can see it; it asks no file system anything."""
    try:
        return parse_mountinfo(_MOUNTINFO.read_bytes())
    except OSError as error:
        raise errors.from_os_error(error, doing=f"read {_MOUNTINFO}") from error


def mount_at(path: str | os.PathLike[str]) -> Mount | None:
    """The mount whose mount point is exactly this path, the uppermost one; None for no such.

    Links in the path are resolved. What is mounted there is not asked anything, so a dead server
    does not hold this up; one that holds a directory above the path may (see ``bounded``).
    """
    text = os.path.abspath(path)
    table = mounts()
    found = _uppermost(table, true_place(text))
    # Only where nothing is mounted may the path itself be looked at: it may be a link.
    return found or _uppermost(table, os.path.realpath(text))


def true_place(path: str | os.PathLike[str]) -> str:
    """The path with links in its parents resolved; what stands at the path is not asked."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(parent), name)


def _uppermost(table: list[Mount], mount_point: str) -> Mount | None:
    at_point = [mount for mount in table if mount.mount_point == mount_point]
    return at_point[-1] if at_point else None


def mount_of_descriptor(fd: int) -> Mount:
    """The mount that an open file stands on; ``O_PATH`` is enough.

    :raises errors.Inaccessible: it has been unmounted since (lazily), or stands on no mount.
    """
    try:
        facts = pathlib.Path(f"/proc/self/fdinfo/{fd}").read_text()
    except OSError as error:
        raise errors.from_os_error(error, doing=f"examine descriptor {fd}") from error
    lines = dict(line.split(":", 1) for line in facts.splitlines() if ":" in line)
    mount_id = int(lines["mnt_id"])
    for mount in mounts():
        if mount.id == mount_id:
            return mount
    raise errors.Inaccessible(
        "The file system of an open file is no longer mounted.", hint="Mount it again."
    )


def filesystem_type(fd: int) -> str:
    """The type of the file system of an open file, such as ``ext4`` or ``nfs4``."""
    return mount_of_descriptor(fd).filesystem


def space(fd: int) -> Space:
    """How full the file system of an open file is, by statvfs(3).

    libvirt counts so: capacity ``f_frsize * f_blocks``, available ``f_frsize * f_bfree``.
    It may hang on a dead server (see ``bounded``).
    """
    try:
        facts = os.fstatvfs(fd)
    except OSError as error:
        raise errors.from_os_error(error, doing="ask the file system for its space") from error
    capacity, available = facts.f_frsize * facts.f_blocks, facts.f_frsize * facts.f_bfree
    return Space(capacity=capacity, available=available, allocation=capacity - available)


def boot_id() -> str:
    """What tells this boot of the kernel from all others; see random(4)."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError as error:
        raise errors.from_os_error(error, doing=f"read {_BOOT_ID}") from error


def host_name() -> str:
    """The host's name as the kernel knows it (uname(2)), with a domain only if that has one."""
    return os.uname().nodename


@dataclass(slots=True)
class _Call(Generic[Result]):
    """One call on its way: ``overdue`` and ``finished`` change under ``_calls_lock``."""

    finished: threading.Event = field(default_factory=threading.Event)
    overdue: bool = False
    result: list[Result] = field(default_factory=list)
    error: BaseException | None = None


_calls: dict[str, _Call[Any]] = {}
_calls_lock = threading.Lock()


def bounded(
    call: Callable[[], Result],
    seconds: float,
    *,
    key: str,
    discard: Callable[[Result], object] | None = None,
) -> Result:
    """Make a call that may hang in the kernel, such as stat(2) on a dead NFS server.

    A thread that hangs so can't be ended. There is one at most for a key: calls of the same key
    take turns, and once one has missed its deadline, the others fail at once until it comes back.

    :param seconds: the deadline, waiting for a turn included.
    :param key: what is asked, for messages too: the path of the pool.
    :param discard: given a result that comes too late, such as ``os.close`` for a descriptor.
    :return: what ``call`` returns; what it raises is raised here.
    :raises errors.Inaccessible: the deadline passed, or an earlier call still hangs.
    """
    own: _Call[Result] = _Call()
    deadline = time.monotonic() + seconds
    _take_turn(own, key, deadline, seconds)
    thread = threading.Thread(
        target=_carry_out, args=(own, call, key, discard), name=f"bounded {key}", daemon=True
    )
    try:
        thread.start()
    except BaseException:
        with _calls_lock:
            del _calls[key]
        own.finished.set()
        raise
    own.finished.wait(max(0.0, deadline - time.monotonic()))
    with _calls_lock:
        own.overdue = not own.finished.is_set()
    if own.overdue:
        raise _unanswered(key, f"did not answer within {seconds:g} s")
    if own.error is not None:
        raise own.error
    return own.result[0]


def _take_turn(own: _Call[Result], key: str, deadline: float, seconds: float) -> None:
    while True:
        with _calls_lock:
            other = _calls.setdefault(key, own)
            if other is own:
                return
            if other.overdue:
                raise _unanswered(key, "has not answered an earlier call yet")
        if not other.finished.wait(max(0.0, deadline - time.monotonic())):
            raise _unanswered(key, f"was busy with other calls for {seconds:g} s")


def _carry_out(
    own: _Call[Result],
    call: Callable[[], Result],
    key: str,
    discard: Callable[[Result], object] | None,
) -> None:
    try:
        own.result.append(call())
    except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
        own.error = error
    with _calls_lock:
        del _calls[key]
        own.finished.set()
        late = own.overdue
    if late and discard is not None and own.result:
        # What fails now concerns nobody: the caller has gone.
        with contextlib.suppress(OSError):
            discard(own.result[0])


def _unanswered(key: str, what: str) -> errors.Inaccessible:
    return errors.Inaccessible(f"{key} {what}.", hint="Check the device or the server behind it.")
