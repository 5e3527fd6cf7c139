"""Files and devices to transfer to and from."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.transferring.streams import MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A sparse file of 4 MiB."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(4 * MIB)
    return path


@pytest.fixture
def device() -> Iterator[Callable[[Path], Path]]:
    """Makes a file a block device."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    made: list[str] = []

    def attach(path: Path) -> Path:
        argv = ["losetup", "--find", "--show", str(path)]
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        made.append(done.stdout.strip())
        return Path(made[-1])

    yield attach
    for name in made:
        subprocess.run(["losetup", "-d", name], check=True)
