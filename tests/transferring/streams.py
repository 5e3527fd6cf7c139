"""Volumes as plain files, opened as a backend opens them, and patterns of data and holes."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from backends.base import OpenVolume, Work
from backends.images import transferring
from backends.images.transferring import Hole, Piece

KIB, MIB = 2**10, 2**20
BLOCK = 4 * KIB

Pattern = Sequence[tuple[bool, int]]
"""Runs of data (true) or hole, each of so many blocks."""


@contextlib.contextmanager
def opened(
    path: Path,
    *,
    format: str | None = "raw",
    capacity: int | None = None,
    encryption: str | None = None,
) -> Iterator[OpenVolume]:
    """A file or device as ``Backend.open_volume`` gives it."""
    fd = os.open(path, os.O_RDWR)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        yield OpenVolume(
            fd=fd,
            path=str(path),
            kind="block" if stat.S_ISBLK(os.fstat(fd).st_mode) else "file",
            format=format,
            size=size,
            capacity=size if capacity is None else capacity,
            encryption=encryption,
        )
    finally:
        os.close(fd)


def patterned(path: Path, pattern: Pattern) -> bytes:
    """A sparse file of that pattern; its contents."""
    with path.open("wb") as file:
        for number, (data, blocks) in enumerate(pattern):
            length = blocks * BLOCK
            if data:
                file.write(bytes([number % 255 + 1]) * length)
            else:
                file.seek(length, os.SEEK_CUR)
        file.truncate(file.tell())
    return path.read_bytes()


def allocated(path: Path) -> int:
    os.sync()
    return path.stat().st_blocks * 512


def kept(pieces: Iterator[Piece]) -> list[Piece]:
    """All pieces, copied, so that they stay good."""
    return [item if isinstance(item, Hole) else bytes(item) for item in pieces]


def plain(pieces: Sequence[Piece]) -> bytes:
    return b"".join(
        bytes(item.length) if isinstance(item, Hole) else bytes(item) for item in pieces
    )


def download(
    path: Path,
    *,
    offset: int = 0,
    length: int | None = None,
    sparse: bool = True,
    work: Work | None = None,
) -> list[Piece]:
    with opened(path) as volume:
        span = transferring.readable(volume, offset=offset, length=length)
        return kept(transferring.read(volume, span, work or Work(), sparse=sparse))


def upload(
    path: Path,
    pieces: Sequence[Piece],
    *,
    offset: int = 0,
    length: int | None = None,
    work: Work | None = None,
) -> None:
    with opened(path) as volume:
        span = transferring.writable(volume, offset=offset, length=length)
        writer = transferring.Writer(volume, span, work or Work())
        for piece in pieces:
            writer.put(piece)
        writer.finish()
