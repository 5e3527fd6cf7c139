"""A keeper, a place for a pool of each type that has a backend, and the table of what was seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import table
from tests.contract.candidate import PoolUnderTest, all_candidates
from tests.keeper import Keeper
from tests.lab import spare

CANDIDATES = all_candidates()
OUTCOMES = pytest.StashKey[table.Outcomes]()


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path / "state")
    yield made
    made.store.close()


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.lab] if candidate.lab else [])
        for name, candidate in sorted(CANDIDATES.items())
    ]
)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PoolUnderTest]:
    """A place for a pool; its figures stand still, though others use the disk meanwhile."""
    candidate = CANDIDATES[request.param]
    if candidate.lab and not spare.IN_GUEST and not spare.NAMED:
        pytest.skip(spare.WHERE)
    if candidate.guest and not spare.IN_GUEST:
        pytest.skip(f"pools of type {request.param} are tried in the lab's guest alone")
    spares = spare.Spares(tmp_path)
    made = candidate(tmp_path, spares)
    made.hold_figures(monkeypatch)
    yield made
    made.close()
    spares.close()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "operation(name): the row of the contract's table")
    config.stash[OUTCOMES] = {}


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    marker = item.get_closest_marker("operation")
    callspec = getattr(item, "callspec", None)
    if marker is None or call.when != "call" or callspec is None:
        return
    name = callspec.params["place"]
    outcome = "passed" if call.excinfo is None else "failed"
    if call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception):
        outcome = "skipped"
    elif outcome == "passed" and item.funcargs["place"].refusal_seen:
        outcome = "refused"
    table.merge(item.config.stash[OUTCOMES], name, marker.args[0], outcome)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    outcomes = config.stash[OUTCOMES]
    different = list(table.differences(outcomes, table.kept(table.PAGE.read_text())))
    if not different and not (spare.IN_GUEST and outcomes):
        return
    terminalreporter.section("contract")
    for line in [*table.render(outcomes), *different]:
        terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    outcomes = session.config.stash[OUTCOMES]
    if list(table.differences(outcomes, table.kept(table.PAGE.read_text()))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
