"""An agent that runs in this process, and pools whose backend hangs or fails on demand."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends import errors
from backends.base import BackendContext, Pool, PoolFacts, Volume, Work
from backends.dir import DirBackend
from backends.host import commands
from backends.host.marks import MarkStore
from controller.agent import Agent
from controller.sources.base import Source
from controller.sources.pruning import Threshold
from tests.keeper import NODE, Keeper

PATIENCE = 60.0
"""Seconds until a test gives up waiting; no test passes faster for it."""


def wait_until(holds: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


class TroubledBackend(DirBackend):
    """Directory pools of which some hang and some volumes can't be made.

    :ivar hanging: names of pools whose observation does not return.
    :ivar failing: names of volumes whose creation fails.
    :ivar endless: names of volumes whose creation runs a command that never ends.
    :ivar attempts: how often each pool was looked at, and each volume's creation begun.
    """

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self.hanging: set[str] = set()
        self.failing: set[str] = set()
        self.endless: set[str] = set()
        self.attempts: Counter[str] = Counter()
        self.release = threading.Event()

    def observe(self, pool: Pool) -> PoolFacts:
        self.attempts[pool.name] += 1
        if pool.name in self.hanging:
            self.release.wait(PATIENCE)
        return super().observe(pool)

    def create_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        self.attempts[volume.name] += 1
        if volume.name in self.failing:
            raise errors.SystemFailure(f"{volume.name} can't be made just now.")
        if volume.name in self.endless:
            commands.run(["sleep", "1000"], timeout=1000, cancel=work.cancel)
        super().create_volume(pool, volume, work)


class Site:
    """A keeper whose passes an agent makes.

    :ivar backend: serves all its pools.
    """

    def __init__(self, state: Path) -> None:
        self.keeper = Keeper(state)
        self.store = self.keeper.store
        self.backend = TroubledBackend(BackendContext(marks=MarkStore(state)))
        self.keeper.engine.examiner.backend = lambda type_name: self.backend  # type: ignore[method-assign]

    def agent(self, *sources: Source, pruning: Threshold | None = None) -> Agent:
        return Agent(self.store, self.keeper.engine, sources, pruning=pruning)

    @contextlib.contextmanager
    def running(
        self, *sources: Source, pruning: Threshold | None = None, cleanly: bool = True
    ) -> Iterator[None]:
        """Run an agent meanwhile; ``cleanly`` says what ``Agent.run`` has to return."""
        stop = threading.Event()
        returned: list[bool] = []
        agent = self.agent(*sources, pruning=pruning)
        thread = threading.Thread(target=lambda: returned.append(agent.run(stop)))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(PATIENCE)
        assert returned == [cleanly]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "state")
    assert made.keeper.engine.node == NODE
    yield made
    made.backend.release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("pool "):  # an agent that could not wait for it is over
            thread.join(PATIENCE)
    made.store.close()
