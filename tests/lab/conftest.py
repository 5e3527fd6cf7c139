"""What tests on real storage stand on: a kernel that may be used up, and spare devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import spare
from tests.lab.traps import TRAPS, Trap


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if not spare.IN_GUEST and not spare.NAMED:
                item.add_marker(pytest.mark.skip(reason=spare.WHERE))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[spare.Spares]:
    """Makes a blank block device: ``device(size)``."""
    spares = spare.Spares(tmp_path)
    yield spares
    spares.close()


@pytest.fixture(params=sorted(TRAPS))
def trap(request: pytest.FixtureRequest, device: spare.Spares, tmp_path: Path) -> Trap:
    """A device of a stranger, one of each kind in turn."""
    return TRAPS[request.param](device, tmp_path)


@pytest.fixture
def trapped(device: spare.Spares, tmp_path: Path) -> Iterator[dict[str, Trap]]:
    """Strangers' devices of all kinds beside what the test does; at its end all are unchanged."""
    planted = {name: plant(device, tmp_path) for name, plant in TRAPS.items()}
    yield planted
    for trap in planted.values():
        trap.assert_untouched()
