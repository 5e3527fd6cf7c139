"""A worker for each pool, so that one that hangs holds up no other."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal

from backends import errors
from controller.engine import Outcome
from controller.retrying import backoff

log = logging.getLogger(__name__)

WorkerState = Literal["busy", "retrying", "idle"]

JITTER = 0.1
"""Part of a delay by which it is drawn longer or shorter, so that pools spread out."""


class Worker:
    """A thread that passes over one pool whenever it is woken, due, or has to be tried again."""

    def __init__(
        self,
        name: str,
        reconcile: Callable[[str], Outcome],
        acted: Callable[[str], None],
        *,
        predecessor: Worker | None = None,
    ) -> None:
        self.name = name
        self.retrying = False
        self.busy = False
        self._predecessor = predecessor
        self._reconcile = reconcile
        self._acted = acted
        self._wake = threading.Event()
        self._anew = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pool {name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at the pool now, and begin counting failures anew."""
        self._anew = True
        self._wake.set()

    def nudge(self) -> None:
        """Look at the pool now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop after the pass that is under way."""
        self._stop.set()
        self._wake.set()

    @property
    def woken(self) -> bool:
        """Whether there is a reason for a pass that has not begun."""
        return self._wake.is_set()

    def join(self, seconds: float | None) -> bool:
        """Wait for the thread, without end where None; false where it did not end in time."""
        self._thread.join(seconds if seconds is None else max(0.0, seconds))
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._predecessor is not None:  # two at one pool would take each other's work for lost
            self._predecessor.join(None)
            self._predecessor = None
        failures = 0
        while not self._stop.is_set():
            self._wake.clear()
            if self._anew:
                failures, self._anew = 0, False
            outcome = self._pass()
            if outcome is None or outcome.retry:
                failures += 1
                delay = backoff(failures)
            else:
                failures, delay = 0, outcome.interval
            self.retrying = failures > 0
            if outcome is not None and outcome.acted:
                self._acted(self.name)
            self._wake.wait(delay * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311

    def _pass(self) -> Outcome | None:
        self.busy = True
        try:
            return self._reconcile(self.name)
        except errors.StorageError as error:
            log.error("pool %s: %s", self.name, error)
        except Exception:
            # A mistake in one pool's pass must not end the agent for the others.
            log.exception("pool %s: the pass broke off", self.name)
        finally:
            self.busy = False
        return None


class Workers:
    """All workers of an agent."""

    def __init__(self, reconcile: Callable[[str], Outcome]) -> None:
        self._reconcile = reconcile
        self._workers: dict[str, Worker] = {}
        self._ending: dict[str, Worker] = {}
        self._lock = threading.Lock()

    def wake(self, names: Iterable[str]) -> None:
        """Wake the workers of these pools, starting those that are not there yet."""
        with self._lock:
            for name in names:
                if name in self._workers:
                    self._workers[name].wake()
                else:
                    self._workers[name] = Worker(
                        name,
                        self._reconcile,
                        self._wake_waiting,
                        predecessor=self._ending.pop(name, None),
                    )

    def nudge(self, names: Iterable[str]) -> None:
        """Have these pools looked at soon, where they have a worker."""
        with self._lock:
            for name in names:
                if name in self._workers:
                    self._workers[name].nudge()

    def names(self) -> set[str]:
        """The pools that are worked on."""
        with self._lock:
            return set(self._workers)

    def states(self) -> list[WorkerState]:
        """What each worker does now."""
        with self._lock:
            workers = list(self._workers.values())
        return [
            "busy" if item.busy else "retrying" if item.retrying else "idle" for item in workers
        ]

    def queue_depth(self) -> int:
        """How many pools wait for a pass to begin."""
        with self._lock:
            return sum(item.woken for item in self._workers.values())

    def keep(self, names: Iterable[str]) -> None:
        """Stop the workers of all other pools."""
        wanted = set(names)
        with self._lock:
            self._ending = {
                name: worker for name, worker in self._ending.items() if not worker.join(0)
            }
            for name in [name for name in self._workers if name not in wanted]:
                worker = self._ending[name] = self._workers.pop(name)
                worker.stop()

    def stop(self, seconds: float) -> list[str]:
        """Stop all; the names of those that are still busy after that time."""
        with self._lock:
            workers = [*self._workers.values(), *self._ending.values()]
            self._workers.clear()
            self._ending.clear()
        for worker in workers:
            worker.stop()
        deadline = time.monotonic() + seconds
        return [item.name for item in workers if not item.join(deadline - time.monotonic())]

    def _wake_waiting(self, acted: str) -> None:
        """Something was done in one pool; others may have waited for just that."""
        with self._lock:
            for name, worker in self._workers.items():
                if name != acted and worker.retrying:
                    worker.wake()
