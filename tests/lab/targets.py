"""iSCSI targets and virtual SCSI hosts of the kernel (LIO), made through configfs.

``targetcli`` does the same, needs dbus, and takes a second for each call.
"""

from __future__ import annotations

import contextlib
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
    """What a LUN stands on: a loop device of its own, with a serial number."""

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
        (self.directory / "wwn" / "vpd_unit_serial").write_text(f"{name}-serial")
        (self.directory / "enable").write_text("1")

    def grow(self, size: int) -> None:
        os.truncate(self.file, size)
        run("losetup", "--set-capacity", self.device)

    def remove(self) -> None:
        self.directory.rmdir()
        run("losetup", "--detach", self.device)
        self.file.unlink()


class _Group:
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

    def remove(self) -> None:
        for place in (self.group / "lun").iterdir():
            self.take(int(place.name.removeprefix("lun_")))
        for portal in (self.group / "np").glob("*"):
            portal.rmdir()
        self.group.rmdir()
        self.group.parent.rmdir()


class Target(_Group):
    """An iSCSI target that lets any initiator in, until CHAP is asked for."""

    def __init__(self, name: str, *portals: str) -> None:
        run("modprobe", "iscsi_target_mod")
        self.name = name
        super().__init__(CONFIG / "iscsi" / name)
        for portal in portals:
            (self.group / "np" / portal).mkdir(parents=True)
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


class LoopHost(_Group):
    """A virtual SCSI host of this machine."""

    def __init__(self, number: int = 1) -> None:
        run("modprobe", "tcm_loop")
        before = _hosts()
        super().__init__(CONFIG / "loopback" / f"naa.500140500000000{number}")
        (self.group / "nexus").write_text(f"naa.500140500000001{number}")
        wait_until(lambda: bool(_hosts() - before))
        (self.name,) = _hosts() - before

    @property
    def sysfs(self) -> Path:
        return Path("/sys/class/scsi_host", self.name)


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
    """Maps ``mpatha`` and so on, each over the LUNs of one disk behind two hosts."""

    def __init__(self, *disks: Disk) -> None:
        self._disks = disks
        self._hosts: list[LoopHost] = []

    def __enter__(self) -> None:
        run("modprobe", "-a", "dm-multipath", "dm-service-time")
        Path("/etc/multipath.conf").write_text(
            "defaults {\n find_multipaths no\n user_friendly_names yes\n}\n"
            'blacklist {\n devnode "^loop"\n}\n'
        )
        for number in (1, 2):
            host = LoopHost(number)
            self._hosts.append(host)
            for lun, disk in enumerate(self._disks):
                host.give(lun, disk)
        run("udevadm", "settle")
        run("multipath")
        run("udevadm", "settle")

    def __exit__(self, *_: object) -> None:
        run("multipath", "-F")
        for host in self._hosts:
            host.remove()
        Path("/etc/multipath.conf").unlink()
        shutil.rmtree("/etc/multipath", ignore_errors=True)  # which names were given
