"""A keeper whose host has figures that stand still, and a directory for its pools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.host import mounts
from tests.keeper import Keeper


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    fixed = mounts.Space(capacity=2**40, available=2**39, allocation=2**39)
    monkeypatch.setattr(mounts, "space", lambda fd: fixed)
    made = Keeper(tmp_path / "state")
    yield made
    made.store.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Where a pool may stand; not there yet."""
    return tmp_path / "images"
