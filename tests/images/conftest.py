"""qemu-img, against which the image code is compared."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
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
