"""A download of a sparse volume against a plain copy of it.

Run from the checkout: ``python -m tests.bench.downloading [DIRECTORY [MIB]]``. It makes a raw file
of MIB (10240) MiB, of which a hundredth is data, and reads it as a download does, holes as holes;
the plain copy reads every byte.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import tempfile

from backends.base import OpenVolume, Work
from backends.images import transferring
from backends.images.transferring import Hole
from tests.bench.timing import compare

MIB = 2**20


def make(path: pathlib.Path, size: int) -> None:
    data = os.urandom(MIB)
    with path.open("wb") as file:
        for offset in range(0, size, 100 * MIB):
            file.seek(offset)
            file.write(data)
        file.truncate(size)
        os.fsync(file)


def download(source: pathlib.Path, target: pathlib.Path) -> None:
    size = source.stat().st_size
    with source.open("rb") as one, target.open("wb", buffering=0) as other:
        fd = one.fileno()
        volume = OpenVolume(
            fd=fd, path=str(source), kind="file", format="raw", size=size, capacity=size
        )
        span = transferring.readable(volume)
        for piece in transferring.read(volume, span, Work(), sparse=True):
            if isinstance(piece, Hole):
                other.seek(piece.length, os.SEEK_CUR)
            else:
                other.write(piece)
        other.truncate(size)


def plain(source: pathlib.Path, target: pathlib.Path) -> None:
    with source.open("rb") as one, target.open("wb") as other:
        shutil.copyfileobj(one, other, MIB)


def main(beneath: str | None = None, mib: int = 10 * 1024, rounds: int = 2) -> None:
    with tempfile.TemporaryDirectory(dir=beneath) as directory:
        source, target = pathlib.Path(directory, "source"), pathlib.Path(directory, "target")
        make(source, mib * MIB)
        compare(
            f"A volume of {mib} MiB with a hundredth of data",
            {
                "poolkeeper, sparse": lambda: download(source, target),
                "a plain copy": lambda: plain(source, target),
            },
            unit="MiB",
            amount=mib,
            before=lambda: target.unlink(missing_ok=True),
            rounds=rounds,
        )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
