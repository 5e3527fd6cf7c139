"""The smallest ISO 9660 file system that the kernel mounts; there is no program that makes one."""

from __future__ import annotations

import struct
from pathlib import Path

SECTOR = 2048
_ROOT, _DATA = 18, 19
"""Sectors of the root directory and of the file."""

_DATE = b"2024010203040506" + b"\0"
"""Time of creation, which is what tells the file system from others."""


def write(device: Path, name: str, contents: bytes) -> None:
    """Put a file system with one file onto a device, in at least 64 KiB (ECMA-119).

    :param name: in capitals, of letters, digits and one dot.
    """
    sectors = _DATA + -(-len(contents) // SECTOR)
    root = _record(b"\0", _ROOT, SECTOR, directory=True)
    entries = root + _record(b"\1", _ROOT, SECTOR, directory=True)
    entries += _record(f"{name};1".encode(), _DATA, len(contents), directory=False)
    with device.open("r+b") as file:
        file.seek(16 * SECTOR)
        file.write(_descriptor(root, sectors))
        file.write((b"\xffCD001\1").ljust(SECTOR, b"\0"))
        file.write(entries.ljust(SECTOR, b"\0"))
        file.write(contents)


def _both(form: str, value: int) -> bytes:
    """A number in both orders of bytes."""
    return struct.pack(f"<{form}", value) + struct.pack(f">{form}", value)


def _record(name: bytes, sector: int, size: int, *, directory: bool) -> bytes:
    padding = b"" if len(name) % 2 else b"\0"
    date = bytes((124, 1, 2, 3, 4, 5, 0))
    flags = bytes((2 if directory else 0, 0, 0))
    body = b"\0" + _both("I", sector) + _both("I", size) + date + flags + _both("H", 1)
    body += bytes((len(name),)) + name + padding
    return bytes((len(body) + 1,)) + body


def _descriptor(root: bytes, sectors: int) -> bytes:
    made = b"\1CD001\1\0" + b"LINUX".ljust(32) + b"IMAGES".ljust(32) + bytes(8)
    made += _both("I", sectors) + bytes(32) + _both("H", 1) + _both("H", 1) + _both("H", SECTOR)
    made += _both("I", 0) + bytes(16) + root
    made = made.ljust(813, b" ") + _DATE + _DATE + bytes(17) + bytes(17) + b"\1"
    return made.ljust(SECTOR, b"\0")
