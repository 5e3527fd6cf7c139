"""A keeper whose pools have volumes that take as long to be made as a test wants."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import errors
from backends.base import BackendContext, Pool, Progress, Verb, Volume, Work
from backends.dir import DirBackend
from backends.host import mounts
from backends.host.marks import MarkStore
from tests.keeper import Keeper

PATIENCE = 60.0
"""Seconds until a test gives up waiting; no test passes faster for it."""


def wait_until(holds, what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


class SlowBackend(DirBackend):
    """Directory pools in which volumes called ``slow...`` are made only once the test lets them.

    :ivar begun: how often the making of each was begun.
    :ivar failing: what the making of a volume ends with.
    :ivar progress: what is reported when it begins.
    """

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self.begun: Counter[str] = Counter()
        self.failing: dict[str, errors.StorageError] = {}
        self.progress = Progress(done=0, total=0)
        self.gate = threading.Event()

    def takes_long(self, verb: Verb, pool: Pool, volume: Volume) -> bool:
        slow = volume.name.startswith("slow") and verb is Verb.CREATE_VOLUME
        return slow or super().takes_long(verb, pool, volume)

    def create_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        if volume.name.startswith("slow"):
            self.begun[volume.name] += 1
            work.report(self.progress)
            while not self.gate.wait(0.01):
                work.check()
            if volume.name in self.failing:
                raise self.failing[volume.name]
        super().create_volume(pool, volume, work)


class SlowKeeper(Keeper):
    backend: SlowBackend

    def begin(self, *documents) -> None:
        """Apply, and pass over the pools without waiting for what is begun."""
        self.apply(*documents)
        self.reconcile()

    def let_go(self) -> None:
        self.backend.gate.set()
        assert self.engine.jobs.idle(PATIENCE)

    def running(self) -> list[str]:
        return [item.task.owner.name for item in self.engine.jobs.snapshot()]


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowKeeper]:
    fixed = mounts.Space(capacity=2**40, available=2**39, allocation=2**39)
    monkeypatch.setattr(mounts, "space", lambda fd: fixed)
    made = SlowKeeper(tmp_path / "state")
    made.backend = SlowBackend(BackendContext(marks=MarkStore(made.state)))
    made.engine.examiner.backend = lambda type_name: made.backend  # type: ignore[method-assign]
    yield made
    made.engine.stop()
    assert made.engine.jobs.idle(PATIENCE)
    made.store.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"
