"""A keeper, and a place for a pool of each type that has a backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.pools import POOLS, PoolUnderTest
from tests.keeper import Keeper


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path / "state")
    yield made
    made.store.close()


@pytest.fixture(params=sorted(POOLS))
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> PoolUnderTest:
    """A place for a pool; its figures stand still, though others use the disk meanwhile."""
    made = POOLS[request.param](tmp_path)
    made.hold_figures(monkeypatch)
    return made
