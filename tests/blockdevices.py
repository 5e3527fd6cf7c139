"""Loop devices for tests, and what a stranger may have left on a device."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE = 128 * 2**20
SECTOR = 512


def command(*argv: str, input: bytes | None = None) -> str:
    done = subprocess.run(argv, check=True, capture_output=True, input=input)
    return done.stdout.decode()


@contextmanager
def loop_device(file: Path, *, size: int = SIZE) -> Iterator[str]:
    """A loop device over a file, which is made where it is missing."""
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices")
    if not file.exists():
        with file.open("wb") as made:
            made.truncate(size)
    node = command("losetup", "--find", "--show", str(file)).strip()
    try:
        yield node
    finally:
        command("losetup", "--detach", node)


def plant(path: str | Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def _lvm_checksum(data: bytes) -> int:
    return zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def plant_physical_volume(path: str | Path, group: str | None) -> None:
    """The header of an LVM physical volume as pvcreate and vgcreate write it, of metadata only
    what tells the group's name."""
    area, area_size = 4096, 2**20 - 4096
    uuid = b"0YpRPnXhba1KXWNUJiNySZfd8HNjL3hF"
    places = ((2**20, 0), (0, 0), (area, area_size), (0, 0))
    header = uuid + struct.pack("<Q", SIZE) + b"".join(struct.pack("<QQ", *it) for it in places)
    rest = struct.pack("<I8s", 32, b"LVM2 001") + header
    rest += bytes(SECTOR - 20 - len(rest))
    label = struct.pack("<8sQI", b"LABELONE", 1, _lvm_checksum(rest)) + rest
    plant(path, SECTOR, label)
    text = f'{group} {{\nid = "x"\n}}\n'.encode() if group else b""
    locations = struct.pack("<QQII", SECTOR, len(text), _lvm_checksum(text), 0) if group else b""
    block = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, area, area_size) + locations
    block += bytes(SECTOR - 4 - len(block))
    plant(path, area, struct.pack("<I", _lvm_checksum(block)) + block + text)


def plant_partition_table(path: str | Path, *partitions: tuple[int, int]) -> None:
    """A dos partition table; partitions by start and length in sectors."""
    entries = b"".join(
        struct.pack("<B3sB3sII", 0, b"\0\0\0", 0x83, b"\0\0\0", start, length)
        for start, length in partitions
    )
    plant(path, 440, struct.pack("<IH", 0x11223344, 0) + entries.ljust(64, b"\0") + b"\x55\xaa")


def _plant_raid(path: str | Path) -> None:
    block = struct.pack("<IIII16s32s", 0xA92B4EFC, 1, 0, 0, b"r" * 16, b"")
    block += struct.pack("<QIIQII", 0, 1, 0, 0, 0, 2)
    block = block.ljust(128, b"\0") + struct.pack("<QQQ", 2048, SIZE // SECTOR - 2048, 8)
    block = bytearray(block.ljust(256, b"\0"))
    words = struct.unpack(f"<{len(block) // 4}I", block)
    total = sum(words)
    struct.pack_into("<I", block, 216, (total + (total >> 32)) & 0xFFFFFFFF)
    plant(path, 4096, bytes(block))


def _plant_zfs(path: str | Path) -> None:
    for number in range(16):
        uberblock = struct.pack("<QQQQ", 0x00BAB10C, 5000, number + 1, 1)
        plant(path, 128 * 1024 + number * 1024, uberblock)


def _plant_luks(path: str | Path) -> None:
    cheap = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    command("cryptsetup", "luksFormat", "--batch-mode", *cheap, str(path), "-", input=b"secret")


def _plant_by(*argv: str) -> Callable[[str | Path], None]:
    def planting(path: str | Path) -> None:
        command(*argv, str(path))

    return planting


FOREIGN: dict[str, tuple[Callable[[str | Path], None], str]] = {
    "ext4": (_plant_by("mkfs.ext4", "-q", "-F"), "an ext4 file system"),
    "btrfs": (_plant_by("mkfs.btrfs", "-q", "-f"), "a btrfs file system"),
    "vfat": (_plant_by("mkfs.vfat", "-I"), "a vfat file system"),
    "swap": (_plant_by("mkswap"), "swap space"),
    "luks": (_plant_luks, "a LUKS encrypted volume"),
    "lvm": (
        lambda path: plant_physical_volume(path, "vg_foreign"),
        "an LVM physical volume of volume group 'vg_foreign'",
    ),
    "orphan": (lambda path: plant_physical_volume(path, None), "an LVM physical volume"),
    "raid": (_plant_raid, "a member of a Linux RAID array"),
    "zfs": (_plant_zfs, "a member of a ZFS pool"),
    "table": (
        lambda path: plant_partition_table(path, (2048, 8192), (20480, 2048)),
        "a dos partition table with partitions 1 of 4Mi, 2 of 1Mi",
    ),
    "empty table": (plant_partition_table, "a dos partition table without partitions"),
}
"""What a stranger may have left on a device of ``SIZE`` bytes: how it is made, and in words."""
