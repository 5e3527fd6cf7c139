"""Images for tests: real ones by qemu-img, and headers by hand of formats that nothing makes."""

from __future__ import annotations

import json
import os
import pathlib
import struct
import subprocess
from typing import Any

from backends.images import probing

SECTOR = 512
ATTEMPTS = 50
"""To make a LUKS image: qemu measures its own speed, and gives up on a busy machine at times."""


def qemu_img(*words: object) -> str:
    argv = ["qemu-img", *map(str, words)]
    for _ in range(ATTEMPTS):
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        if "accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def make(path: pathlib.Path, format: str, size: int, *words: object, options: str = "") -> None:
    """Make an image by qemu-img. ``words`` stand before the path."""
    shown = ["-o", options] if options else []
    qemu_img("create", "-q", "-f", format, *shown, *words, path, size)


def info(path: pathlib.Path, format: str | None = None) -> dict[str, Any]:
    """What qemu-img says of an image that no other process has open."""
    named = ["-f", format] if format else []
    facts: dict[str, Any] = json.loads(qemu_img("info", "--output=json", *named, path))
    return facts


def probe(path: str | pathlib.Path) -> probing.ImageHeader:
    fd = os.open(path, os.O_RDONLY)
    try:
        return probing.probe(fd)
    finally:
        os.close(fd)


def bochs(size: int, version: int = 0x20000) -> bytes:
    """Two layouts, by qemu's block/bochs.c: the size moved by four bytes in version 2."""
    head = bytearray(4096)
    for offset, text in ((0, b"Bochs Virtual HD Image"), (32, b"Redolog"), (48, b"Growing")):
        head[offset : offset + len(text)] = text
    struct.pack_into("<IIIII", head, 64, version, SECTOR, 1, 1, 2**20)
    struct.pack_into("<Q", head, 84 if version == 0x10000 else 88, size)
    return bytes(head)


def cloop(block_size: int, blocks: int) -> bytes:
    """By qemu's block/cloop.c: the sizes, then the offsets of blocks, here all empty."""
    script = (
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    )
    start = 128 + 8 + 8 * (blocks + 1)
    offsets = struct.pack(f">{blocks + 1}Q", *[start] * (blocks + 1))
    return script.ljust(128, b"\0") + struct.pack(">II", block_size, blocks) + offsets


def cow(size: int, backing: bytes = b"") -> bytes:
    """By libvirt's reader of the format that qemu dropped in version 2.2."""
    return b"OOOM" + struct.pack(">I1024sIQI", 2, backing, 0, size, SECTOR).ljust(1100, b"\0")


def ploop(sectors: int) -> bytes:
    """By libvirt's reader: the size in sectors at byte 36."""
    return b"WithouFreSpacExt".ljust(36, b"\0") + struct.pack("<Q", sectors).ljust(SECTOR, b"\0")


def iso(size: int) -> bytes:
    return bytes(32769) + b"CD001" + bytes(size - 32774)


def luks1(payload: int, size: int) -> bytes:
    """LUKS on-disk format specification 1.2: the payload's start in sectors at byte 104."""
    head = (b"LUKS\xba\xbe" + struct.pack(">H", 1)).ljust(104, b"\0")
    return (head + struct.pack(">I", payload // SECTOR)).ljust(size, b"\0")


def luks2(document: bytes, *, length: int = 16384, size: int = 20 * 2**20) -> bytes:
    """LUKS2 on-disk format specification 2.1: a binary header of 4096 bytes, then JSON text."""
    head = b"LUKS\xba\xbe" + struct.pack(">HQ", 2, length)
    area = head.ljust(4096, b"\0") + document.ljust(max(0, length - 4096), b"\0")
    return area.ljust(size, b"\0")


def luks2_segments(*offsets: object) -> bytes:
    segments = {
        str(number): {"type": "crypt", "offset": offset, "size": "dynamic"}
        for number, offset in enumerate(offsets)
    }
    return json.dumps({"segments": segments, "keyslots": {}}).encode()


def qcow2(
    size: int = 2**20,
    *,
    backing: bytes = b"",
    extensions: bytes = b"",
    cluster_bits: int = 16,
    backing_at: int = 0,
    version: int = 3,
) -> bytes:
    """The first cluster of an image (qemu's docs/interop/qcow2.txt), without tables."""
    length = 112 if version == 3 else 72
    at = backing_at or (length + len(extensions) if backing else 0)
    head = b"QFI\xfb" + struct.pack(
        ">IQIIQIIQQIIQ", version, at, len(backing), cluster_bits, size, 0, 0, 0, 0, 0, 0, 0
    )
    if version == 3:
        head += struct.pack(">QQQIIQ", 0, 0, 0, 4, length, 0)
    return (head + extensions + backing).ljust(65536, b"\0")


def qcow2_extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
