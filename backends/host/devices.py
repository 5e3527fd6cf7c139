"""Block devices: finding them by name, and telling one from another.

Names such as ``/dev/sdb`` are given out anew with each boot, and even a link under
``/dev/disk/by-id`` may lead elsewhere after an update of the kernel or of udev. So a pool keeps an
``Identity`` of each of its devices and compares it before it touches what the name leads to.

All that is asked here stands in sysfs and in udev's database, so that a device that no longer
answers holds nothing up. What stands *on* a device is for ``backends.host.signatures``.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import stat as modes
import time
from dataclasses import dataclass, fields
from typing import NoReturn

from backends import errors
from backends.host import commands
from backends.sizes import format_quantity

SETTLE_SECONDS = 30.0
"""How long udev may take to make the names of new devices."""

_TICK = 0.05
_SYSFS = pathlib.Path("/sys/dev/block")
_UDEV_DATABASE = pathlib.Path("/run/udev/data")
_UDEV_CONTROL = pathlib.Path("/run/udev/control")
_BY_ID = pathlib.Path("/dev/disk/by-id")
_SHAKY = re.compile(r"/dev/(?:sd|hd|vd|xvd|nvme|mmcblk|dm-|md\d|loop|sr)[a-z0-9]*")
_BEST_IDS = ("wwn-", "nvme-eui.", "nvme-uuid.", "dm-uuid-", "md-uuid-", "scsi-", "nvme-", "ata-")
"""Links under by-id, those first that are made of a world-wide name or a UUID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceExtent:
    """A stretch of a device that a volume takes, in bytes; ``end`` is the first byte past it.

    Of a physical volume it is counted from its first extent on, as in libvirt.
    """

    device: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """A block device as it is now.

    :param path: as it was asked for.
    :param node: the kernel's own name, such as ``/dev/sdb``.
    :param number: major and minor, as in ``st_rdev`` and mountinfo.
    :param sequence: given to no other disk in this boot (diskseq); 0 before Linux 5.15.
    :param size: bytes.
    """

    path: str
    node: str
    number: tuple[int, int]
    sequence: int
    size: int
    read_only: bool

    @property
    def sysfs(self) -> pathlib.Path:
        return _SYSFS / f"{self.number[0]}:{self.number[1]}"

    @property
    def partition(self) -> int | None:
        """The number of a partition; None for a whole disk."""
        text = _attribute(self.sysfs / "partition")
        return int(text) if text else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What tells a device from others, also after a reboot. A field is None where it is not known.

    :param path: as the pool declares it.
    :param id: best link under ``/dev/disk/by-id``, without the directory.
    :param serial: serial number; for a partition with its number; for device mapper its UUID.
    :param wwn: world-wide name, as the kernel has it.
    :param size: bytes.
    :param uuid: of what stands on it: file system, physical volume, partition table.
    """

    path: str
    id: str | None = None
    serial: str | None = None
    wwn: str | None = None
    size: int | None = None
    uuid: str | None = None

    def differences(self, known: Identity, *, contents: bool = True) -> tuple[str, ...]:
        """How this device differs from the one that was known, in words; empty for the same.

        What is not known of both of them says nothing. A device may have grown.

        :param contents: whether what stands on it counts too.
        """
        told = []
        for name in ("wwn", "serial", *(["uuid"] if contents else [])):
            before, now = getattr(known, name), getattr(self, name)
            if before is not None and now is not None and before != now:
                told.append(f"its {_FIELD_WORDS[name]} is {now} and was {before}")
        if known.size is not None and self.size is not None and self.size < known.size:
            told.append(
                f"its size is {format_quantity(self.size)} and was {format_quantity(known.size)}"
            )
        return tuple(told)

    def answers_to(self, name: str) -> bool:
        """Whether a name that a person gave is this device's."""
        return name in (self.serial, self.wwn, self.id, self.uuid)

    def __str__(self) -> str:
        told = [
            f"its {words} is {getattr(self, name)}"
            for name, words in _FIELD_WORDS.items()
            if getattr(self, name) is not None
        ]
        return ", ".join(told) or "it has none"

    def completed(self, known: Identity | None) -> Identity:
        """This identity, with what only an earlier look could tell."""
        if known is None:
            return self
        values = {
            item.name: (
                getattr(known, item.name)
                if getattr(self, item.name) is None
                else getattr(self, item.name)
            )
            for item in fields(self)
        }
        return Identity(**values)


_FIELD_WORDS = {"wwn": "world-wide name", "serial": "serial number", "uuid": "UUID"}


def find(path: str) -> BlockDevice:
    """The block device that a name leads to.

    :raises errors.NotFound: nothing of that name is there.
    :raises errors.InvalidSpec: what is there is no block device.
    :raises errors.Inaccessible: the kernel does not know the device any more, or it has no medium.
    """
    try:
        node = os.path.realpath(path, strict=True)
        facts = os.stat(node)
    except FileNotFoundError:
        _raise_missing(path)
    except OSError as error:
        raise errors.from_os_error(error, doing=f"look up the device {path}") from error
    if not modes.S_ISBLK(facts.st_mode):
        hint = "Give a device under /dev/disk/by-id."
        if modes.S_ISREG(facts.st_mode):
            hint = "Attach the file to a loop device with losetup, and give that."
        raise errors.InvalidSpec(f"{path} is no block device.", hint=hint)
    number = (os.major(facts.st_rdev), os.minor(facts.st_rdev))
    sysfs = _SYSFS / f"{number[0]}:{number[1]}"
    sectors = _attribute(sysfs / "size")
    if sectors is None:
        raise errors.Inaccessible(
            f"{path} leads to device {number[0]}:{number[1]}, which the kernel does not have.",
            hint="Check that the device is attached.",
        )
    return BlockDevice(
        path=path,
        node=node,
        number=number,
        sequence=int(_of_disk(sysfs, "diskseq") or 0),
        size=int(sectors) * 512,
        read_only=_attribute(sysfs / "ro") == "1",
    )


def _raise_missing(path: str) -> NoReturn:
    raise errors.NotFound(
        f"The device {path} is not there.",
        hint="Attach it, or correct its name; lsblk -o +ID-LINK shows those that are there.",
    )


def exists(number: tuple[int, int]) -> bool:
    """Whether the kernel has a block device of that number."""
    return (_SYSFS / f"{number[0]}:{number[1]}").exists()


def unstable_name(path: str) -> str:
    """Why a device should be named otherwise, as a sentence; empty where its name is good."""
    if _SHAKY.fullmatch(os.path.normpath(path)) is None:
        return ""
    advice = "name it by a link under /dev/disk/by-id."
    with contextlib.suppress(errors.StorageError):
        best = _best_id(find(path))
        if best is not None:
            advice = f"name it {_BY_ID / best}."
    return f"{path} may be another device after the next boot: {advice}"


def identify(device: BlockDevice, *, uuid: str | None = None) -> Identity:
    """What tells a device from others.

    :param uuid: of what stands on it, from a probe; udev's if left out.
    """
    serial = _serial(device.sysfs)
    partition = device.partition
    if serial is not None and partition is not None:
        serial += f" partition {partition}"
    return Identity(
        path=device.path,
        id=_best_id(device),
        serial=serial,
        wwn=_of_disk(device.sysfs, "wwid") or _of_disk(device.sysfs, "device/wwid"),
        size=device.size,
        uuid=uuid or udev_properties(device).get("ID_FS_UUID"),
    )


def _serial(sysfs: pathlib.Path) -> str | None:
    for name in ("serial", "device/serial", "dm/uuid"):
        found = _of_disk(sysfs, name)
        if found:
            return found
    for place in (sysfs, sysfs / ".."):
        with contextlib.suppress(OSError):
            page = (place / "device/vpd_pg80").read_bytes()  # four bytes of header; see SPC
            return _clean(page[4:])
    return None


def _best_id(device: BlockDevice) -> str | None:
    """The best of the links under by-id that lead to the device."""
    found = []
    with contextlib.suppress(OSError):
        for link in os.scandir(_BY_ID):
            with contextlib.suppress(OSError):
                facts = os.stat(link.path)
                if (os.major(facts.st_rdev), os.minor(facts.st_rdev)) == device.number:
                    found.append(link.name)
    return min(found, key=_rank, default=None)


def _rank(name: str) -> tuple[int, str]:
    for place, prefix in enumerate(_BEST_IDS):
        if name.startswith(prefix):
            return place, name
    return len(_BEST_IDS), name


def udev_properties(device: BlockDevice) -> dict[str, str]:
    """What udev keeps of a device, such as ``ID_FS_UUID``; empty where no udev runs."""
    lines = _udev_lines("E:", device.number)
    return dict(line.split("=", 1) for line in lines if "=" in line)


def udev_links(node: str) -> tuple[pathlib.Path, ...]:
    """The links that udev has made for a device; none where no udev runs.

    :param node: the kernel's own name, such as ``/dev/sdb``.
    """
    try:
        facts = os.stat(node)
    except OSError:
        return ()
    number = (os.major(facts.st_rdev), os.minor(facts.st_rdev))
    return tuple(pathlib.Path("/dev", name) for name in _udev_lines("S:", number))


def _udev_lines(kind: str, number: tuple[int, int]) -> list[str]:
    """Entries of one kind in udev's database (sd-device's db files), without their prefix."""
    try:
        text = (_UDEV_DATABASE / f"b{number[0]}:{number[1]}").read_text(errors="replace")
    except OSError:
        return []
    return [line[len(kind) :] for line in text.splitlines() if line.startswith(kind)]


def _of_disk(sysfs: pathlib.Path, name: str) -> str | None:
    """An attribute of the device, or for a partition of its disk."""
    found = _attribute(sysfs / name)
    return found if found else _attribute(sysfs / ".." / name) if _is_part(sysfs) else None


def _is_part(sysfs: pathlib.Path) -> bool:
    return (sysfs / "partition").exists()


def _attribute(path: pathlib.Path) -> str | None:
    """A file of sysfs; None where there is none, or it is empty."""
    try:
        return _clean(path.read_bytes())
    except OSError:
        return None


def _clean(value: bytes) -> str | None:
    text = value.decode("ascii", errors="replace").replace("\0", " ")
    return " ".join("".join(filter(str.isprintable, text)).split()) or None


def settle(seconds: float = SETTLE_SECONDS) -> None:
    """Wait until udev has handled what the kernel has told it of; where no udev runs, do nothing.

    :raises errors.Timeout: it did not come to rest in time.
    """
    if not _UDEV_CONTROL.exists() or commands.which("udevadm") is None:
        return
    try:
        commands.run(("udevadm", "settle", f"--timeout={seconds:.0f}"), timeout=seconds + 5)
    except errors.CommandFailed as error:
        raise errors.Timeout(
            f"udev did not come to rest within {seconds:g} s.",
            hint="See what it is busy with: udevadm monitor.",
        ) from error


def wait_for(path: str, seconds: float = SETTLE_SECONDS) -> BlockDevice:
    """The block device of that name, once it is there.

    :raises errors.NotFound: it did not appear in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(errors.NotFound, errors.Inaccessible):
            return find(path)
        if time.monotonic() >= deadline:
            _raise_missing(path)
        time.sleep(_TICK)
