"""iSCSI targets and virtual SCSI hosts of the kernel (LIO), made through configfs.

``targetcli`` does the same, needs dbus, and takes a second for each call.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.lab.spare import run

CONFIG = Path("/sys/kernel/config/target")
INITIATOR = "iqn.2024-01.org.example:host"


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for the kernel or a daemon to come to something."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{holds} does not hold after {seconds} s"
        time.sleep(0.1)


class Disk:
    """What a LUN stands on: a loop device of its own, with a serial number.

    :param name: the kernel's name for it, which no other has at the time.
    """

    def __init__(self, scratch: Path, name: str, size: int) -> None:
        run("modprobe", "-a", "target_core_mod", "target_core_file")
        self.name = name
        self.file = scratch / f"{name}.img"
        with self.file.open("xb") as file:
            file.truncate(size)
        self.device = run("losetup", "--find", "--show", self.file).strip()
        self.directory = CONFIG / "core" / "fileio_0" / name
        self.directory.mkdir(parents=True)
        (self.directory / "control").write_text(f"fd_dev_name={self.device},fd_dev_size={size}")
        # Of a serial number its hexadecimal digits alone get into the world-wide name.
        serial = hashlib.sha256(name.encode()).hexdigest()[:32]
        (self.directory / "wwn" / "vpd_unit_serial").write_text(serial)
        (self.directory / "enable").write_text("1")

    def grow(self, size: int) -> None:
        os.truncate(self.file, size)
        run("losetup", "--set-capacity", self.device)

    def remove(self) -> None:
        self.directory.rmdir()
        run("losetup", "--detach", self.device)
        self.file.unlink()


class Group:
    """A target's portal group: LUNs, and what takes them away again."""

    def __init__(self, directory: Path) -> None:
        self.group = directory / "tpgt_1"
        self.group.mkdir(parents=True)

    def give(self, lun: int, disk: Disk) -> None:
        place = self.group / "lun" / f"lun_{lun}"
        place.mkdir(parents=True)
        (place / disk.name).symlink_to(disk.directory)

    def take(self, lun: int) -> None:
        place = self.group / "lun" / f"lun_{lun}"
        for link in place.iterdir():
            if link.is_symlink():
                link.unlink()
        place.rmdir()

    def luns(self) -> list[int]:
        names = (place.name for place in (self.group / "lun").iterdir())
        return sorted(int(name.removeprefix("lun_")) for name in names)

    def remove(self) -> None:
        for lun in self.luns():
            self.take(lun)
        for portal in (self.group / "np").glob("*"):
            portal.rmdir()
        self.group.rmdir()
        self.group.parent.rmdir()


class Target(Group):
    """An iSCSI target that lets any initiator in, until CHAP is asked for.

    :param portals: addresses with ports.
    :param far: the network that these are in; None for this host's own.
    """

    def __init__(self, name: str, *portals: str, far: FarNetwork | None = None) -> None:
        run("modprobe", "iscsi_target_mod")
        self.name = name
        super().__init__(CONFIG / "iscsi" / name)
        for portal in portals:
            # The kernel listens in the network of who asks it to.
            run(*(far.inside if far else ()), "mkdir", "-p", self.group / "np" / portal)
        self._set("attrib", authentication=0, demo_mode_write_protect=0, generate_node_acls=1,
                  cache_dynamic_acls=1)  # fmt: skip
        self.up()

    def _set(self, place: str, **values: object) -> None:
        for name, value in values.items():
            (self.group / place / name).write_text(str(value))

    def up(self) -> None:
        (self.group / "enable").write_text("1")

    def down(self) -> None:
        (self.group / "enable").write_text("0")

    def ask(self, user: str, password: str, *, mutual: tuple[str, str] | None = None) -> None:
        """Let nobody in who can't prove this by CHAP, and prove ``mutual`` to who asks for it."""
        self._set("attrib", authentication=1)
        self._set("auth", userid=user, password=password)
        if mutual:
            self._set("auth", userid_mutual=mutual[0], password_mutual=mutual[1])


class FarNetwork(contextlib.AbstractContextManager["FarNetwork"]):
    """Another network, in which a server can be silent: what is sent there is never answered.

    :ivar address: of the server in it.
    :ivar inside: begins a command that is to run there.
    """

    _NAME, _HERE, address = "far", "192.0.2.1", "192.0.2.2"
    inside = ("nsenter", f"--net=/run/netns/{_NAME}")

    def __enter__(self) -> FarNetwork:
        run("modprobe", "veth")
        run("ip", "netns", "add", self._NAME)
        ends = ("near0", "type", "veth", "peer", "name", "far0", "netns", self._NAME)
        run("ip", "link", "add", *ends)
        run("ip", "address", "add", f"{self._HERE}/24", "dev", "near0")
        run("ip", "link", "set", "near0", "up")
        self._ip("address", "add", f"{self.address}/24", "dev", "far0")
        self._ip("link", "set", "far0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        run("ip", "netns", "delete", self._NAME)

    def _ip(self, *words: str) -> None:
        run("ip", "-n", self._NAME, *words)

    def silence(self) -> None:
        self._ip("route", "replace", "blackhole", self._HERE)

    def speak(self) -> None:
        self._ip("route", "flush", "type", "blackhole")


class LoopHost(Group):
    """A virtual SCSI host of this machine."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        run("modprobe", "tcm_loop")
        before = _hosts()
        number = next(self._numbers)
        super().__init__(CONFIG / "loopback" / f"naa.5001405{number:09x}")
        (self.group / "nexus").write_text(f"naa.5001406{number:09x}")
        wait_until(lambda: bool(_hosts() - before))
        (self.name,) = _hosts() - before

    @property
    def sysfs(self) -> Path:
        return Path("/sys/class/scsi_host", self.name)

    def nodes(self) -> list[Path]:
        """The devices of its LUNs, once each is the disk that the kernel makes of it by and by."""
        wait_until(lambda: len(self._disks()) == len(self.luns()))
        run("udevadm", "settle")
        return sorted(Path("/dev", item.name) for item in self._disks())

    def _disks(self) -> list[Path]:
        return list((self.sysfs / "device").glob("target*/*/block/*"))


def _hosts() -> set[str]:
    return {entry.name for entry in Path("/sys/class/scsi_host").glob("host*")}


@contextlib.contextmanager
def initiator() -> Iterator[None]:
    """open-iscsi's daemon, with a name; at the end no session is left."""
    run("modprobe", "iscsi_tcp")
    Path("/etc/iscsi/initiatorname.iscsi").write_text(f"InitiatorName={INITIATOR}\n")
    run("iscsid")
    try:
        yield
    finally:
        log_out()
        run("iscsiadm", "-k", "0")
        wait_until(lambda: not _runs("iscsid"))


def log_out() -> None:
    """End all sessions, and forget everything of targets."""
    for entry in sessions():
        run("iscsiadm", "-m", "session", "-r", entry.removeprefix("session"), "--logout")
    for base in ("/etc/iscsi", "/var/lib/iscsi"):
        for kind in ("nodes", "ifaces", "send_targets", "static"):
            shutil.rmtree(Path(base, kind), ignore_errors=True)


def sessions() -> list[str]:
    place = Path("/sys/class/iscsi_session")
    return sorted(entry.name for entry in place.iterdir()) if place.exists() else []


def _runs(program: str) -> bool:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == program:
                return True
    return False


class MultipathMaps(contextlib.AbstractContextManager[None]):
    """Maps ``mpatha`` and so on, each over the LUNs of one disk behind two hosts; the disks of
    others have none."""

    def __init__(self, *disks: Disk) -> None:
        self._disks = disks
        self._hosts: list[LoopHost] = []

    def __enter__(self) -> None:
        run("modprobe", "-a", "dm-multipath", "dm-service-time")
        for _ in range(2):
            host = LoopHost()
            self._hosts.append(host)
            for lun, disk in enumerate(self._disks):
                host.give(lun, disk)
        wwids = {_wwid(node) for host in self._hosts for node in host.nodes()}
        assert len(wwids) == len(self._disks)
        exceptions = "".join(f' wwid "{wwid}"\n' for wwid in sorted(wwids))
        _MULTIPATH.write_text(
            "defaults {\n find_multipaths no\n user_friendly_names yes\n}\n"
            'blacklist {\n wwid ".*"\n}\n'
            f"blacklist_exceptions {{\n{exceptions}}}\n"
        )
        run("multipath")
        run("udevadm", "settle")

    def __exit__(self, *_: object) -> None:
        for name in run("dmsetup", "ls", "--target", "multipath").splitlines():
            if "(" in name:
                run("kpartx", "-d", f"/dev/mapper/{name.split()[0]}")
        run("multipath", "-F")
        for host in self._hosts:
            host.remove()
        _MULTIPATH.unlink()
        shutil.rmtree("/etc/multipath", ignore_errors=True)  # which names were given


_MULTIPATH = Path("/etc/multipath.conf")


def _wwid(node: Path) -> str:
    """The name of a disk by which multipath knows it."""
    return run("/lib/udev/scsi_id", "--whitelisted", f"--device={node}").strip()
