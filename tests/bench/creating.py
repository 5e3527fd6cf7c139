"""New images against a qemu-img for each.

Run from the checkout: ``python -m tests.bench.creating [DIRECTORY [COUNT]]``. It makes COUNT (1000)
images of each kind in a new directory beneath DIRECTORY (the temporary one), and removes them.
Ours are on the disk when they are made (fsync); qemu-img's are not.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from backends.host import commands
from backends.images import creating
from backends.images.creating import ImageRequest
from tests.bench.timing import compare

SIZE = 20 * 2**30


def run(argv: Sequence[str]) -> None:
    commands.run(argv)


def ours(directory: pathlib.Path, format: str, count: int) -> None:
    request = ImageRequest(format, SIZE, allocation=0)
    for number in range(count):
        creating.create(request, str(directory / str(number)), run)


def theirs(directory: pathlib.Path, format: str, count: int) -> None:
    for number in range(count):
        path = str(directory / str(number))
        argv = ["qemu-img", "create", "-q", "-f", format, path, str(SIZE)]
        subprocess.run(argv, check=True)


def main(beneath: str | None = None, count: int = 1000, rounds: int = 2) -> None:
    with tempfile.TemporaryDirectory(dir=beneath) as made:
        directory = pathlib.Path(made)

        def empty() -> None:
            for path in directory.iterdir():
                path.unlink()

        for format in ("raw", "qcow2"):
            before = commands.spawned()
            compare(
                f"{count} new {format} images of 20 GiB",
                {
                    "poolkeeper": lambda format=format: ours(directory, format, count),
                    "qemu-img create": lambda format=format: theirs(directory, format, count),
                },
                unit="images",
                amount=count,
                before=empty,
                rounds=rounds,
            )
            print(f"  processes that poolkeeper started: {commands.spawned() - before}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
