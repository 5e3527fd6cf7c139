"""How long headers take to read, against os.stat of the same files.

Run from the checkout: ``python -m tests.bench.probing [DIRECTORY [COUNT]]``. It makes COUNT (10000)
sparse qcow2 images of 200 KiB in a new directory beneath DIRECTORY (the temporary one), reads each
once to warm the cache, prints the best of five rounds, and removes them.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from backends.images import probing

ROUNDS = 5


def make(directory: pathlib.Path, count: int) -> list[str]:
    """One image by qemu-img, and the others with the same bytes and holes."""
    first = directory / "0.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", str(first), "20G"]
    subprocess.run(argv, check=True)
    header, size = first.read_bytes()[:4096], first.stat().st_size
    for number in range(1, count):
        with (directory / f"{number}.qcow2").open("wb") as file:
            file.write(header)
            file.truncate(size)
    return [str(directory / f"{number}.qcow2") for number in range(count)]


def opened(path: str, act: Callable[[int], object]) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        act(fd)
    finally:
        os.close(fd)


def seconds(act: Callable[[str], object], paths: list[str]) -> float:
    """The fastest of the rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for path in paths:
            act(path)
        best = min(best, time.perf_counter() - started)
    return best


def main(beneath: str | None = None, count: int = 10_000) -> None:
    with tempfile.TemporaryDirectory(dir=beneath) as directory:
        paths = make(pathlib.Path(directory), count)
        measured = {
            "os.stat": seconds(os.stat, paths),
            "open and fstat": seconds(lambda path: opened(path, os.fstat), paths),
            "open and probe": seconds(lambda path: opened(path, probing.probe), paths),
        }
    unit = measured["os.stat"]
    for what, taken in measured.items():
        print(f"{what:15} {count / taken:9.0f} per second, {taken / unit:5.1f} times os.stat")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
