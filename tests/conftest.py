"""File systems of their own for tests, each on a loop device or in memory."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

import hypothesis
import pytest

hypothesis.settings.register_profile("poolkeeper", deadline=None)  # a slow machine fails no test
hypothesis.settings.load_profile("poolkeeper")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets what it runs in the background ignore it, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SIZE = 128 * 2**20
_SIZES = {"xfs": 320 * 2**20}
"""Where a file system has a least size above that."""

_MAKERS = {
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "vfat": ["mkfs.vfat"],
}
_IN_MEMORY = ("tmpfs", "ramfs")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.geteuid() != 0 and item.get_closest_marker("root"):
        pytest.skip("needs root")


def _require(kind: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    known = pathlib.Path("/proc/filesystems").read_text().split()
    if kind not in known:
        pytest.skip(f"this kernel has no {kind}")
    if kind not in _IN_MEMORY and shutil.which(_MAKERS[kind][0]) is None:
        pytest.skip(f"{_MAKERS[kind][0]} is not installed")


@pytest.fixture
def mounted(tmp_path: pathlib.Path) -> Iterator[Callable[[str], pathlib.Path]]:
    """Mounts a new file system of the named type, and gives its directory."""
    with contextlib.ExitStack() as stack:

        def mount(kind: str) -> pathlib.Path:
            _require(kind)
            point = tmp_path / f"{kind}-mount"
            point.mkdir()
            if kind in _IN_MEMORY:
                argv = ["mount", "-t", kind, "poolkeeper-test", str(point)]
            else:
                image = tmp_path / f"{kind}.img"
                with image.open("wb") as file:
                    file.truncate(_SIZES.get(kind, _SIZE))
                subprocess.run([*_MAKERS[kind], str(image)], check=True, capture_output=True)
                argv = ["mount", "-o", "loop", "-t", kind, str(image), str(point)]
            subprocess.run(argv, check=True, capture_output=True)
            stack.callback(subprocess.run, ["umount", str(point)], check=True)
            return point

        yield mount
