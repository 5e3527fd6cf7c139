"""SCSI hosts and the LUNs behind them, as sysfs has them.

Reading sysfs asks no device anything. A rescan does: it writes to sysfs, and the kernel asks the
host for LUNs that are new and each LUN for its size.
"""

from __future__ import annotations

import os
import pathlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from backends import errors
from backends.host import devices, mounts

DEVICES = pathlib.Path("/sys/bus/scsi/devices")
HOSTS = pathlib.Path("/sys/class/scsi_host")

RESCAN_SECONDS = 30.0
"""How long a host and its LUNs may take to be asked for what is new."""

PROBE_SECONDS = 2.0
"""How long a new LUN is waited for to become a disk; sd does that apart from the scan."""

_ADDRESS = re.compile(r"(\d+):(\d+):(\d+):(\d+)")
_DISK_TYPES = frozenset({"0", "5"})
"""Peripheral device types of disks and CD-ROMs (SPC), which alone are volumes as in libvirt."""

_ID_PREFIX = {"naa": "3", "eui": "2"}
"""What scsi_id puts before a name of these types in page 0x83, by the kernel's word for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lun:
    """A logical unit that the kernel knows.

    :param address: host, bus, target and LUN.
    :param sysfs: its directory, without links.
    :param node: the kernel's own name, such as ``/dev/sdb``.
    :param size: bytes; 0 for one that its target no longer gives, or that has no medium.
    :param state: the kernel's word: ``running``, ``offline``, ``transport-offline``, ``blocked``.
    """

    address: tuple[int, int, int, int]
    sysfs: pathlib.Path
    node: str
    size: int
    state: str


def host_directory(number: int) -> pathlib.Path:
    """The directory in sysfs that everything behind a host is in.

    :raises errors.NotFound: there is no host of that number.
    """
    try:
        return (HOSTS / f"host{number}" / "device").resolve(strict=True)
    except OSError as error:
        raise errors.NotFound(
            f"The SCSI host host{number} is not there.",
            hint="Hosts are numbered anew with each boot; see lsscsi -H.",
        ) from error


def host_state(number: int) -> str:
    """The kernel's word for how a host is: ``running``, ``recovery``, ``cancel``."""
    return attribute(HOSTS / f"host{number}" / "state") or "gone"


def host_behind(pci_address: str, unique_id: int) -> int:
    """The host of a PCI device, whatever number it has in this boot.

    :param pci_address: as sysfs has it: ``0000:00:1f.2``.
    :raises errors.NotFound: there is none.
    """
    for name in sorted(_listed(HOSTS)):
        way = os.path.realpath(HOSTS / name).split("/")
        if pci_address in way and attribute(HOSTS / name / "unique_id") == str(unique_id):
            return int(name.removeprefix("host"))
    raise errors.NotFound(
        f"No SCSI host of the PCI device {pci_address} has the unique_id {unique_id}.",
        hint="See /sys/class/scsi_host/*/unique_id, and lspci.",
    )


def luns(directory: pathlib.Path) -> tuple[Lun, ...]:
    """Disks and CD-ROMs beneath a host, or beneath a session, in the order of their addresses."""
    found = [lun for sysfs in _disks(directory) if (lun := _lun(sysfs)) is not None]
    return tuple(sorted(found, key=lambda lun: lun.address))


def _disks(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """The devices of these types beneath a directory, whether the kernel uses them yet or not."""
    for name in _listed(DEVICES):
        sysfs = pathlib.Path(os.path.realpath(DEVICES / name))
        if (
            _ADDRESS.fullmatch(name)
            and directory in sysfs.parents
            and attribute(sysfs / "type") in _DISK_TYPES
        ):
            yield sysfs


def _is_probing(directory: pathlib.Path) -> bool:
    """Whether a LUN beneath a directory is not yet the disk that it will be."""
    return any(
        attribute(sysfs / "state") == "running" and not any(_listed(sysfs / "block"))
        for sysfs in _disks(directory)
    )


def _lun(sysfs: pathlib.Path) -> Lun | None:
    block = next(iter(_listed(sysfs / "block")), None)
    if block is None:
        return None
    host, bus, target, lun = (int(part) for part in sysfs.name.split(":"))
    return Lun(
        address=(host, bus, target, lun),
        sysfs=sysfs,
        node=f"/dev/{block}",
        size=int(attribute(sysfs / "block" / block / "size") or 0) * 512,
        state=attribute(sysfs / "state"),
    )


def serial(lun: Lun) -> str:
    """The world-wide name of a LUN as scsi_id gives it, which multipath calls its maps by, too.

    Where it has none, what udev made of its other names; empty where there is nothing.
    """
    kind, _, name = attribute(lun.sysfs / "wwid").partition(".")
    if kind in _ID_PREFIX and name:
        return _ID_PREFIX[kind] + name
    try:
        return devices.udev_properties(devices.find(lun.node)).get("ID_SERIAL", "")
    except errors.StorageError:  # it has gone since it was listed
        return ""


def rescan(directory: pathlib.Path, host: int) -> None:
    """Have the kernel look for LUNs that are new behind a host, and for their sizes.

    A LUN that its target has taken away stays, with size 0.

    :raises errors.Inaccessible: the host did not answer in time.
    :raises errors.PermissionRefused: only root may.
    """

    def work() -> None:
        changed = [lun for lun in luns(directory) if _asked_again(lun)]
        _write(HOSTS / f"host{host}" / "scan", "- - -")
        deadline = time.monotonic() + PROBE_SECONDS
        while _is_probing(directory) and time.monotonic() < deadline:
            time.sleep(PROBE_SECONDS / 100)
        if changed:
            devices.settle()

    mounts.bounded(work, RESCAN_SECONDS, key=f"the SCSI host host{host} ({directory.name})")


def _asked_again(lun: Lun) -> bool:
    """Have the kernel ask a LUN for its size and name; whether it is another disk now.

    The kernel tells udev nothing of that, and the node would keep the links of the former disk.
    """
    known = attribute(lun.sysfs / "wwid")
    _write(lun.sysfs / "rescan", "1")
    if attribute(lun.sysfs / "wwid") == known:
        return False
    _write(lun.sysfs / "block" / lun.node.removeprefix("/dev/") / "uevent", "change")
    return True


def _write(path: pathlib.Path, text: str) -> None:
    try:
        path.write_text(text)
    except FileNotFoundError:
        return  # unplugged meanwhile, which the next listing shows
    except OSError as error:
        raise errors.from_os_error(error, doing=f"write to {path}") from error


def attribute(path: pathlib.Path) -> str:
    """A file of sysfs; empty where it can't be read, as that of a device that has just gone."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _listed(path: pathlib.Path) -> Iterator[str]:
    try:
        yield from os.listdir(path)
    except OSError:
        return
