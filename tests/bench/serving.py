"""Downloads and uploads through an agent, and by the command alone, against cp and cat.

Run from the checkout: ``python -m tests.bench.serving [DIRECTORY [MIB [GIB]]]``. It runs an agent
with a pool beneath DIRECTORY (the temporary one) and moves a raw volume of MIB (1024) MiB that is
all data, and one of GIB (10) GiB of which a hundredth is. ``poolkeeper volume`` asks that agent
over its socket, or does the work itself where none runs; curl asks it over TCP. Each way starts
its program anew, and ends when what it wrote is on the disk. Where there is little data most of our
time is the start of the program, which is told for itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from controller.serving.access import TokenFile
from tests import keeper
from tests.bench import downloading
from tests.bench.timing import compare
from tests.processes import Poolkeeper

MIB = 2**20

COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}
"""Environment of commands, which an installation would not compile anew each time."""


@dataclass(frozen=True)
class Site:
    """Two volumes of a size in pools of two states, of which one has an agent.

    :param curl: a command that asks the agent for what is in its volume; words follow.
    """

    served: Poolkeeper
    alone: Poolkeeper
    curl: Callable[..., None]
    file: pathlib.Path

    def volume(self, keeper: Poolkeeper) -> pathlib.Path:
        return keeper.directory / "images" / "disk"


def run(*words: object) -> None:
    subprocess.run([*map(str, words)], check=True, stdout=subprocess.DEVNULL)


def written(path: pathlib.Path, act: Callable[..., None], *words: object) -> None:
    """Have something write a file, all of it to the disk."""
    act(*words)
    with path.open("rb") as file:
        os.fsync(file)


def declare(root: pathlib.Path, name: str, size: int) -> Poolkeeper:
    """A state directory with a pool and a volume in it."""
    directory = root / name
    directory.mkdir()
    made = Poolkeeper(directory / "state", directory)
    documents = [
        keeper.dir_pool("images", directory / "images"),
        keeper.volume("disk", "images", capacity=size, allocation=0),
    ]
    manifest = directory / "all.json"
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))
    made.done("apply", "-f", manifest)
    return made


@contextlib.contextmanager
def site(
    root: pathlib.Path, make: Callable[[pathlib.Path, int], None], size: int
) -> Iterator[Site]:
    file = root / "file"
    make(file, size)
    served, alone = (declare(root, name, size) for name in ("served", "alone"))
    for one in (served, alone):
        run("cp", "--sparse=always", file, one.directory / "images" / "disk")
    with served.agent("--data-listen", "0") as agent:
        found = agent.wait_for(lambda: re.search(r"listening at (http://\S+)", agent.log))
        url = f"{found[1]}/v1/namespaces/default/volumes/disk/data"
        token = TokenFile(served.state).read()
        config = root / "curl"
        config.write_text(f'header = "Authorization: Bearer {token}"\n')

        def curl(*words: object) -> None:
            run("curl", "-fsS", "-K", config, *words, url)

        yield Site(served, alone, curl, file)


def start(made: Site) -> None:
    """Print how long a command takes that moves one byte."""
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        run_as(made.served, "volume", "download", "disk", "-", "--length", "1")
        best = min(best, time.perf_counter() - begun)
    print(f"volume download of one byte, by an agent: {best:.2f} s")


def downloads(made: Site, title: str, mib: int, rounds: int) -> None:
    target = made.file.with_name("target")
    volume = made.volume(made.served)

    def download(keeper: Poolkeeper) -> None:
        run_as(keeper, "volume", "download", "disk", target)

    compare(
        f"Download of {title}",
        {
            "volume download, by an agent": lambda: download(made.served),
            "volume download, without one": lambda: download(made.alone),
            "curl": lambda: written(target, made.curl, "-o", target),
            "cp --sparse=always": lambda: written(
                target, run, "cp", "--sparse=always", "--reflink=never", volume, target
            ),
            "cat": lambda: written(target, run, "sh", "-c", 'cat "$0" >"$1"', volume, target),
        },
        unit="MiB",
        amount=mib,
        before=lambda: target.unlink(missing_ok=True),
        rounds=rounds,
    )
    target.unlink()


def uploads(made: Site, title: str, mib: int, rounds: int) -> None:
    def upload(keeper: Poolkeeper) -> None:
        run_as(keeper, "volume", "upload", "disk", made.file)

    volume = made.volume(made.served)
    copy = ["dd", f"if={made.file}", f"of={volume}", "bs=1M", "conv=notrunc,fsync", "status=none"]
    compare(
        f"Upload of {title}",
        {
            "volume upload, to an agent": lambda: upload(made.served),
            "volume upload, without one": lambda: upload(made.alone),
            "curl -T": lambda: made.curl("-T", made.file),
            "dd conv=notrunc,fsync": lambda: run(*copy),
        },
        unit="MiB",
        amount=mib,
        rounds=rounds,
    )


def run_as(keeper: Poolkeeper, *words: object) -> None:
    subprocess.run(
        keeper.argv(*words), env=keeper.environment(**COMPILED), check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def full(path: pathlib.Path, size: int) -> None:
    data = os.urandom(MIB)
    with path.open("wb") as file:
        for _ in range(0, size, MIB):
            file.write(data)
        os.fsync(file)


def main(beneath: str | None = None, mib: int = 1024, gib: int = 10, rounds: int = 3) -> None:
    kinds = (
        (full, f"{mib} MiB of data", mib),
        (downloading.make, f"{gib} GiB, a hundredth of it data", gib * 1024),
    )
    for make, title, size in kinds:
        with (
            tempfile.TemporaryDirectory(dir=beneath) as directory,
            site(pathlib.Path(directory), make, size * MIB) as made,
        ):
            start(made)
            downloads(made, title, size, rounds)
            uploads(made, title, size, rounds)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:4]))
