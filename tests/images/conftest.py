"""qemu-img, against which the image code is compared."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from backends.images import probing


@pytest.fixture
def run() -> Callable[[Sequence[str]], None]:
    """Runs a command as the caller of ``creating.create`` does."""
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")

    def call(argv: Sequence[str]) -> None:
        done = subprocess.run(list(argv), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"

    return call


@pytest.fixture
def qemu_info(run: object) -> Callable[..., dict[str, Any]]:
    """What ``qemu-img info`` says of an image."""

    def info(path: pathlib.Path | str, format: str | None = None) -> dict[str, Any]:
        argv = ["qemu-img", "info", "--output=json", *(["-f", format] if format else []), str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return info


@pytest.fixture
def probe() -> Callable[[pathlib.Path | str], probing.ImageHeader]:
    def look(path: pathlib.Path | str) -> probing.ImageHeader:
        fd = os.open(path, os.O_RDONLY)
        try:
            return probing.probe(fd)
        finally:
            os.close(fd)

    return look


@pytest.fixture
def btrfs(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory on a btrfs of its own."""
    with mounted(tmp_path, "btrfs", ["mkfs.btrfs", "-q", "-f"]) as point:
        yield point


@pytest.fixture
def ramfs(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory on a file system that can't set space aside."""
    with mounted(tmp_path, "ramfs", None) as point:
        yield point


@contextlib.contextmanager
def mounted(tmp_path: pathlib.Path, kind: str, maker: list[str] | None) -> Iterator[pathlib.Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    if kind not in pathlib.Path("/proc/filesystems").read_text().split():
        pytest.skip(f"this kernel has no {kind}")
    point = tmp_path / f"{kind}-mount"
    point.mkdir()
    source, options = "poolkeeper-test", []
    if maker is not None:
        if shutil.which(maker[0]) is None:
            pytest.skip(f"{maker[0]} is not installed")
        image = tmp_path / f"{kind}.img"
        with image.open("wb") as file:
            file.truncate(128 * 2**20)
        subprocess.run([*maker, str(image)], check=True, capture_output=True)
        source, options = str(image), ["-o", "loop"]
    subprocess.run(["mount", *options, "-t", kind, source, str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)
