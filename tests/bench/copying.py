"""Clones against cp and qemu-img convert, each until the copy is on the disk.

Run from the checkout: ``python -m tests.bench.copying [DIRECTORY [MIB]]``. It makes a raw file of
MIB (1024) MiB, half data and half holes, beneath DIRECTORY (the temporary one), which decides what
file system is measured, and removes all it made.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

from backends.base import OpenVolume, Work
from backends.images import copying
from backends.images.copying import Filling, Reflink
from tests.bench.timing import compare

MIB = 2**20
PIECE = 4 * MIB


def make(path: pathlib.Path, size: int) -> None:
    data = os.urandom(PIECE)
    with path.open("wb") as file:
        for _ in range(0, size, 2 * PIECE):
            file.write(data)
            file.seek(PIECE, os.SEEK_CUR)
        file.truncate(size)
        os.fsync(file)


def opened(fd: int, size: int) -> OpenVolume:
    path = f"/proc/self/fd/{fd}"
    return OpenVolume(
        fd=fd, path=path, pass_fds=(fd,), kind="file", format="raw", size=size, capacity=size
    )


def clone(source: pathlib.Path, target: pathlib.Path, reflink: Reflink) -> None:
    size = source.stat().st_size
    with source.open("rb") as one, target.open("w+b") as other:
        other.truncate(size)
        filling = Filling(opened(one.fileno(), size), opened(other.fileno(), size), reflink)
        copying.fill(filling, Work())


def command(target: pathlib.Path, *words: object) -> None:
    subprocess.run([*map(str, words)], check=True)
    with target.open("rb") as file:
        os.fsync(file)


def main(beneath: str | None = None, mib: int = 1024, rounds: int = 3) -> None:
    with tempfile.TemporaryDirectory(dir=beneath) as directory:
        source, target = pathlib.Path(directory, "source"), pathlib.Path(directory, "target")
        make(source, mib * MIB)
        compare(
            f"A copy of a raw volume of {mib} MiB, half of it holes",
            {
                "poolkeeper, reflink Auto": lambda: clone(source, target, "Auto"),
                "poolkeeper, reflink Never": lambda: clone(source, target, "Never"),
                "cp --sparse=always --reflink=auto": lambda: command(
                    target, "cp", "--sparse=always", "--reflink=auto", source, target
                ),
                "cp": lambda: command(target, "cp", source, target),
                "qemu-img convert": lambda: command(
                    target, "qemu-img", "convert", "-f", "raw", "-O", "raw", source, target
                ),
            },
            unit="MiB",
            amount=mib,
            before=lambda: target.unlink(missing_ok=True),
            rounds=rounds,
        )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
