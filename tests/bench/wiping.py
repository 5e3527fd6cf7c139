"""Wipes with zeros and random bytes against dd and shred.

Run from the checkout: ``python -m tests.bench.wiping [PATH [MIB]]``. PATH is a directory in which a
file of MIB (1024) MiB is made and removed, or a block device, whose contents are lost. All of them
write past the page cache or end with a flush.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

from backends import blockvolumes
from backends.base import OpenVolume, Work
from backends.images import wiping
from backends.images.wiping import Algorithm
from tests.bench.timing import compare

MIB = 2**20


def wipe(path: pathlib.Path, algorithm: Algorithm) -> None:
    if path.is_block_device():
        with blockvolumes.opened(str(path), write=True) as device:
            wiping.wipe(device, algorithm, Work())
        return
    with path.open("r+b") as file:
        fd, size = file.fileno(), path.stat().st_size
        volume = OpenVolume(
            fd=fd, path=str(path), kind="file", format="raw", size=size, capacity=size
        )
        wiping.wipe(volume, algorithm, Work())


def command(*words: object) -> None:
    subprocess.run([*map(str, words)], check=True, stderr=subprocess.DEVNULL)


def measure(path: pathlib.Path, mib: int, rounds: int) -> None:
    to = f"of={path}"
    count = f"count={mib // 4}"
    dd = ["dd", "if=/dev/zero", to, "bs=4M", count, "conv=notrunc,fsync"]
    compare(
        f"Zeros over {mib} MiB of {path}",
        {
            "poolkeeper zero": lambda: wipe(path, "zero"),
            "dd of zeros": lambda: command(*dd),
            "dd of zeros, oflag=direct": lambda: command(*dd, "oflag=direct"),
        },
        unit="MiB",
        amount=mib,
        rounds=rounds,
    )
    compare(
        f"Random bytes over {mib} MiB of {path}",
        {
            "poolkeeper random": lambda: wipe(path, "random"),
            "shred -n1": lambda: command("shred", "-n1", path),
            "dd of /dev/urandom, oflag=direct": lambda: command(
                "dd", "if=/dev/urandom", to, "bs=4M", count, "conv=notrunc,fsync", "oflag=direct"
            ),
        },
        unit="MiB",
        amount=mib,
        rounds=rounds,
    )


def main(place: str | None = None, mib: int = 1024, rounds: int = 3) -> None:
    if place is not None and pathlib.Path(place).is_block_device():
        measure(pathlib.Path(place), mib, rounds)
        return
    with tempfile.TemporaryDirectory(dir=place) as directory:
        path = pathlib.Path(directory, "volume")
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(bytes(MIB))
            os.fsync(file)
        measure(path, mib, rounds)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
