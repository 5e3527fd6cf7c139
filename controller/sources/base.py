"""What a source of manifests is, and what it gives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from backends.errors import InvalidManifest
from controller.resources import Declared


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a source declares at one time.

    :param origin: the source, such as ``directory:/etc/poolkeeper``; it stands in the store beside
        each resource. It holds no credentials.
    :param problems: what could not be read, by file and line.
    :param complete: whether ``declared`` is known to be everything. Only then may a resource that
        is missing from it be pruned.
    :param reason: why the snapshot is not complete; empty where it is.
    :param revision: a commit id where there is one, else the digest.
    :param digest: of all that was read; equal for equal files.
    """

    origin: str
    declared: tuple[Declared, ...]
    problems: tuple[InvalidManifest, ...] = ()
    complete: bool = True
    reason: str = ""
    revision: str = ""
    digest: str = ""

    def says_the_same(self, other: Snapshot | None) -> bool:
        """Whether there is nothing in this one that the other has not."""
        return other is not None and self._summary() == other._summary()

    def _summary(self) -> tuple[object, ...]:
        # Errors compare by identity, and the digest stands for all that is declared.
        problems = tuple(str(problem) for problem in self.problems)
        return self.origin, self.revision, self.digest, self.complete, self.reason, problems


class Source(Protocol):
    """A place to poll for manifests. One thread polls it."""

    @property
    def origin(self) -> str:
        """What its snapshots have as ``origin``."""

    def start(self, changed: Callable[[], None]) -> None:
        """Begin to watch.

        :param changed: called from any thread when a poll may find something new.
        """

    def poll(self) -> Snapshot | None:
        """Look, if it is time to; None where there is nothing new.

        It may take as long as a network allows; errors are in the snapshot.
        """

    def delay(self) -> float:
        """Seconds until the next poll is due, if nothing is reported before."""

    def stop(self) -> None:
        """End watching."""


def follow(source: Source, deliver: Callable[[Snapshot], None], stop: threading.Event) -> None:
    """Poll a source until ``stop`` is set, and hand on what is new. It keeps its thread.

    To end a wait at once, set ``stop`` and then call ``source.stop()`` from another thread: it
    reports a change.
    """
    woken = threading.Event()
    source.start(woken.set)
    try:
        while not stop.is_set():
            snapshot = source.poll()
            if snapshot is not None:
                deliver(snapshot)
            woken.wait(source.delay())
            woken.clear()
    finally:
        source.stop()
