"""Doing the work of an agent in the foreground, or waiting for the one who does it."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from backends import errors
from backends.spec import PoolState
from controller import summarising
from controller.cli.printing import say
from controller.cli.session import Session
from controller.locking import AgentLock, Holder, Role
from controller.planning import Action
from controller.resources import AnyResource, Declared, Key
from controller.retrying import backoff
from controller.steps import Observer
from controller.store import Store
from controller.worlds import UNBOUND, volume_of

POLL = 0.1
"""Seconds between two looks at what another process does."""

PASSES = 20
"""Passes over a pool that still acts; after so many it is fighting with somebody."""

POOLS_AT_ONCE = 16

STOP_WITHIN = 20.0
"""Seconds that jobs have to end in, once the command is interrupted."""

WORKED_ON = frozenset({"StoragePool", "StorageVolume", "VolumeOperation"})
"""Kinds that an engine acts on."""


class Verdict(enum.Enum):
    """What has become of a resource."""

    READY = "Ready"
    FAILED = "failed"
    PENDING = "not Ready"
    RESTING = "resting"
    """A volume whose pool is declared Inactive."""


class Deadline:
    """A point in time to wait for at most."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return self.left == 0.0


def verdict(resource: AnyResource | None, pool: AnyResource | None) -> Verdict:
    """What its conditions say; a resource that is not there has failed.

    :param pool: the pool of a volume.
    """
    if resource is None or summarising.stalled(resource):
        return Verdict.FAILED
    if summarising.ready(resource):
        return Verdict.READY
    return Verdict.RESTING if rests(resource, pool) else Verdict.PENDING


def rests(resource: AnyResource, pool: AnyResource | None) -> bool:
    """Whether a volume waits for nothing but its pool, which is to be down."""
    if resource.kind.name != "StorageVolume" or pool is None:
        return False
    return pool.spec.state is PoolState.INACTIVE


def pool_of(item: AnyResource | Declared) -> str:
    """The pool whose pass concerns the resource; empty for kinds that none does, and for volumes
    that wait for a pool (``worlds.UNBOUND``)."""
    if item.kind.name == "StoragePool":
        return item.metadata.name
    spec: object = item.spec
    reference = getattr(spec, "pool_ref", None)
    return str(reference.name) if reference is not None else ""


def pool_to_pass(store: Store, resource: AnyResource) -> str:
    """The pool whose pass sees to a resource that is stored."""
    if resource.kind.name != "VolumeOperation":
        return pool_of(resource)
    volume = store.get(volume_of(resource))
    return pool_of(volume) if volume is not None else UNBOUND


def foreign_pools(items: Iterable[AnyResource | Declared], node: str) -> set[str]:
    """Names of the pools that another node keeps."""
    return {
        item.metadata.name
        for item in items
        if item.kind.name == "StoragePool" and _node_of(item) not in (None, node)
    }


def _node_of(item: AnyResource | Declared) -> str | None:
    spec: object = item.spec
    return getattr(spec, "node_name", None)


def take_over(lock: AgentLock, deadline: Deadline, *, role: Role = "command") -> Holder | None:
    """Take the lock, once a command before us is done; the agent that holds it, if one does.

    :raises errors.InUse: a command held it past the deadline.
    """
    told = False
    while not lock.try_acquire(role):
        holder = lock.holder()
        if holder is not None and holder.role == "agent":
            return holder
        if deadline.over:
            who = f"process {holder.pid}" if holder else "another process"
            raise errors.InUse(
                f"The state directory was held by {who} for {deadline.seconds:g} s.",
                hint="Wait until it is done, or give a longer --timeout.",
            )
        if not told and holder is not None:
            say(f"Waiting for another command (process {holder.pid}).")
            told = True
        time.sleep(POLL)
    return None


class Foreground:
    """An engine whose passes are made here and now."""

    def __init__(self, session: Session, store: Store, observer: Observer) -> None:
        self._store = store
        self._observer = observer
        self._successes = 0
        self._lock = threading.Lock()
        self.engine = session.engine(store, replace(observer, ended=self._ended))

    def _ended(self, action: Action, problem: errors.StorageError | None) -> None:
        with self._lock:
            self._successes += problem is None
        self._observer.ended(action, problem)

    def recover(self) -> None:
        """Close the journal of whoever was killed; only for who has the lock."""
        for step in self._store.unfinished_steps():
            say(f"{step.verb} on {step.target} was interrupted; it is looked at anew.", "yellow")
        self.engine.recover()

    def carry_out(
        self,
        pools: Iterable[str],
        *,
        retry: bool,
        deadline: Deadline,
        settled: Callable[[], bool],
    ) -> None:
        """Pass over pools, side by side, until nothing more is to be done.

        :param retry: whether to try again what may go better later, until the deadline.
        :param settled: whether trying again is no use any more.
        """
        concerned = set(pools)
        waiting = concerned
        failures = passes = 0
        while waiting and passes < PASSES:
            ended = self.engine.jobs.ended(concerned)
            waiting = self._pass(waiting, concerned)
            passes += 1
            if not waiting and self._wait_for_job(concerned, ended):
                waiting, passes = concerned, 0
            if waiting or not retry or settled() or deadline.over:
                continue
            failures += 1
            if self.engine.cancel.wait(min(backoff(failures), deadline.left)):
                return
            waiting, passes = concerned, 0

    def _pass(self, pools: set[str], concerned: set[str]) -> set[str]:
        """One pass over each pool; those that a further one may bring on at once."""
        successes, revision = self._successes, self._store.revision()
        retryable = self._side_by_side(sorted(pools), concerned)
        if self._store.revision() != revision:  # such as volumes that were found and adopted
            return concerned
        # What was done in one pool may be what another waited for, such as a backing image.
        return retryable if self._successes > successes else set()

    def _side_by_side(self, pools: Sequence[str], concerned: set[str]) -> set[str]:
        """A pass over each; those to be tried again. Pools that were given volumes by it are among
        the concerned from now on."""
        with ThreadPoolExecutor(min(len(pools), POOLS_AT_ONCE), "pool") as workers:
            futures = {name: workers.submit(self.engine.reconcile, name) for name in pools}
            try:
                outcomes = {name: future.result() for name, future in futures.items()}
            except BaseException:
                # The threads are waited for on the way out: end the steps that they are at.
                self.engine.stop()
                raise
        for outcome in outcomes.values():
            concerned |= outcome.given
        return {name for name, outcome in outcomes.items() if outcome.retry}

    def _wait_for_job(self, pools: set[str], ended: int) -> bool:
        """Wait until one more job of these pools than ``ended`` has ended; false for none."""
        try:
            return self.engine.jobs.wait(pools, ended)
        except BaseException:
            self.engine.stop()
            self.engine.jobs.idle(STOP_WITHIN)
            raise


def wait_until(holds: Callable[[], bool], deadline: Deadline) -> bool:
    """Poll until something holds; false where it did not in time."""
    while not holds():
        if deadline.over:
            return False
        time.sleep(min(POLL, deadline.left))
    return True


def verdicts(store: Store, keys: Iterable[Key]) -> dict[Key, Verdict]:
    """What has become of each."""
    found = {}
    for key in keys:
        resource = store.get(key)
        name = pool_of(resource) if resource is not None else ""
        found[key] = verdict(resource, store.get(Key("StoragePool", "", name)))
    return found


def exit_code(found: Iterable[Verdict], *, waited: bool) -> int:
    """0 where all is well, 1 where something failed, 3 where time ran out.

    A volume that rests is well, unless its being Ready was waited for.
    """
    listed = set(found)
    if Verdict.FAILED in listed or (Verdict.RESTING if waited else Verdict.PENDING) in listed:
        return 1
    return 3 if Verdict.PENDING in listed else 0
