"""A keeper and pools whose volumes have contents."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.host import fetching, mounts
from controller import retrying
from tests.importing.servers import Site, serving
from tests.keeper import Keeper, volume

MIB = 2**20


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    fixed = mounts.Space(capacity=2**40, available=2**39, allocation=2**39)
    monkeypatch.setattr(mounts, "space", lambda fd: fixed)
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.0)
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.001)
    made = Keeper(tmp_path / "state")
    yield made
    made.engine.stop()
    assert made.engine.jobs.idle(60)
    made.store.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as made:
        yield made


def clone(
    name: str, of: str, pool: str = "images", *, reflink: str | None = None, **spec: Any
) -> dict[str, Any]:
    reference = dict(zip(("name", "namespace"), of.split("/")[::-1], strict=False))
    source: dict[str, Any] = {"volumeRef": reference}
    if reflink:
        source["reflink"] = reflink
    return volume(name, pool, source={"clone": source}, **spec)


def write_contents(path: Path, format: str = "raw", *, seed: int = 1) -> None:
    """Some data with holes between, in an image that is there."""
    pattern = random.Random(seed).randrange(1, 255)
    for offset in ("64k", "1M", "5M"):
        subprocess.run(
            ["qemu-io", "-f", format, "-c", f"write -P {pattern} {offset} 128k", str(path)],
            check=True, capture_output=True,
        )  # fmt: skip


def same_contents(one: Path, other: Path, format: str = "raw", other_format: str = "raw") -> bool:
    """What a guest would see: equal up to the end of the smaller one, zeros after that."""
    argv = ["qemu-img", "compare", "-f", format, "-F", other_format, str(one), str(other)]
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0
