"""A pool whose volumes operations are carried out on, and wipes that wait for the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends import errors
from backends.base import OpenVolume, Work
from backends.images import wiping
from controller.operations import FINISHED
from tests.keeper import operation, operation_key
from tests.transferring.sites import Site

PATIENCE = 60.0


class Operated(Site):
    """A site on which operations are declared."""

    def operate(
        self, name: str, command: str = "Wipe", volume: str = "web", **spec: object
    ) -> None:
        self.apply(operation(name, volume, command, **spec))

    def phase(self, name: str) -> str | None:
        phase: str | None = self.get(operation_key(name)).status.phase
        return phase

    def said(self, name: str) -> str:
        return str(self.get(operation_key(name)).status.message)

    def ended(self, name: str) -> str:
        """The phase that an operation ends in, after as many passes as that takes."""
        for _ in range(8):
            self.reconcile()
            assert self.engine.jobs.idle(PATIENCE)
            if self.phase(name) in FINISHED:
                return str(self.phase(name))
        raise AssertionError(f"{name} did not end: {self.phase(name)}: {self.said(name)}")

    def ended_after(self, slow: Slow, name: str) -> str:
        slow.go_on.set()
        return self.ended(name)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Operated]:
    made = Operated(tmp_path)
    made.settle()
    yield made
    made.engine.stop()
    assert made.engine.jobs.idle(PATIENCE)
    made.store.close()


class Slow:
    """Wipes that begin, report, and go on when they are let."""

    def __init__(self, real: Callable[..., None]) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.count = 0
        self._real = real

    def wipe(self, opened: OpenVolume, algorithm: str, work: Work) -> None:
        self.count += 1
        work.checkpoint(opened.size)(opened.size // 2)
        self.begun.set()
        while not self.go_on.wait(0.01):
            work.check()
        self._real(opened, algorithm, work)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    made = Slow(wiping.wipe)
    monkeypatch.setattr(wiping, "wipe", made.wipe)
    yield made
    made.go_on.set()


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let each wipe fail."""

    def wipe(opened: OpenVolume, algorithm: str, work: Work) -> None:
        raise error

    monkeypatch.setattr(wiping, "wipe", wipe)


def no_space() -> errors.StorageError:
    return errors.NoSpace("Could not write /dev/full: No space left on device.")
