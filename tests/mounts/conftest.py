from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.keeper import Keeper


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path / "state")
    yield made
    made.store.close()
