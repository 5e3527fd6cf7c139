"""A keeper whose every write can be watched, and a clock that never stands still."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backends.host import mounts
from controller import engine
from controller.resources import Key
from tests.keeper import Keeper
from tests.kstatus import Status, kstatus

WRITES = (
    "apply", "write_status", "request_deletion", "add_finalizer", "remove_finalizer",
    "record_event", "begin_step", "end_step",
)  # fmt: skip


@dataclass
class Watch:
    """What a client that waits for resources sees, before and after every write.

    :param true: whether the host is as a resource's present spec declares.
    :ivar seen: moments in order; the same one only once.
    """

    keeper: Keeper
    true: Callable[[], dict[Key, bool]]
    seen: dict[Key, list[Status]] = field(default_factory=dict)
    early: list[str] = field(default_factory=list)
    documents: dict[Key, list[dict[str, Any]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self) -> None:
        with self._lock:
            for key, holds in self.true().items():
                resource = self.keeper.store.get(key)
                document = resource.dump() if resource else None
                status = kstatus(document)
                if status is Status.CURRENT and not holds:
                    self.early.append(f"{key} looks Current: {document}")
                moments = self.seen.setdefault(key, [])
                if moments[-1:] != [status]:
                    moments.append(status)
                if document is not None:
                    self.documents.setdefault(key, []).append(document)


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    fixed = mounts.Space(capacity=2**40, available=2**39, allocation=2**39)
    monkeypatch.setattr(mounts, "space", lambda fd: fixed)
    ticks = itertools.count()
    monkeypatch.setattr(engine, "now", lambda: f"tick {next(ticks):06}")
    made = Keeper(tmp_path / "state")
    yield made
    made.store.close()


@pytest.fixture
def watch(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watch]:
    def begin(true: Callable[[], dict[Key, bool]]) -> Watch:
        watching = Watch(keeper, true)
        for name in WRITES:
            monkeypatch.setattr(keeper.store, name, _watched(watching, name))
        return watching

    def _watched(watching: Watch, name: str) -> Callable[..., Any]:
        write = getattr(keeper.store, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            watching.look()
            result = write(*args, **kwargs)
            watching.look()
            return result

        return watched

    return begin
