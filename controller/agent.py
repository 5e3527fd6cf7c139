"""The agent of one host: sources on one side, a worker for each pool on the other.

Sources and the command line write to the store; the agent sees that its revision moved and wakes
the workers of the pools concerned.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence

from backends import errors
from controller.engine import Engine
from controller.nodes import NodeReporter, node_key
from controller.notifying import notify
from controller.resources import Declared, Key
from controller.retrying import backoff
from controller.serving.health import Health
from controller.serving.metrics import Metrics
from controller.sources.base import Snapshot, Source, follow
from controller.sources.pruning import Threshold, prunable
from controller.store import EventType, Store
from controller.workers import Workers
from controller.worlds import World

log = logging.getLogger(__name__)

POLL = 0.2
"""Seconds between two looks at the store's revision, which costs one read of a counter."""

STOP_WITHIN = 20.0
"""Seconds that workers have to end the step they are at; running commands are ended at once."""


class Agent:
    """Follows sources and keeps the pools of this node.

    :param reporter: tells what this node can serve; None where nobody is told.
    :param pruning: how much may be pruned at once; None for no pruning.
    :param health: is told what keeps it alive and ready.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        sources: Sequence[Source] = (),
        *,
        reporter: NodeReporter | None = None,
        pruning: Threshold | None = None,
        health: Health | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._sources = sources
        self._reporter = reporter
        self._pruning = pruning
        metrics = metrics or Metrics()
        self._workers = Workers(metrics.timed(engine.reconcile))
        engine.jobs.wake = self._workers.nudge
        metrics.watch(self._workers)
        metrics.watch_jobs(engine.jobs)
        self._health = health or Health()
        self._health.ready_while("store", lambda: self._problem)
        self._health.ready_while("sources", self._unread)
        self._problem = "was not read yet"
        self._refused: dict[str, list[Declared]] = {}
        self._revisions: dict[str, str] = {}
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[object, ...]] = {}
        self._pools_seen: frozenset[object] = frozenset()

    def run(self, stop: threading.Event) -> bool:
        """Work until ``stop`` is set; false where a worker did not end in time."""
        self._engine.recover()

        def take_over(snapshot: Snapshot) -> None:
            self._take_over(snapshot, stop)

        followers = [
            threading.Thread(
                target=follow, args=(source, take_over, stop), name=source.origin, daemon=True
            )
            for source in self._sources
        ]
        for follower in followers:
            follower.start()
        if self._reporter is not None:
            self._reporter.start()
        self._health.threads(*followers)
        pulse = self._health.pulse("agent")
        _tell_manager("READY=1")
        log.info("keeping the pools of node %s", self._engine.node)
        revision = -1
        while not stop.is_set():
            pulse.beat()
            revision = self._look(revision)
            stop.wait(POLL)
        return self._stop(followers)

    def _stop(self, followers: Sequence[threading.Thread]) -> bool:
        _tell_manager("STOPPING=1")
        self._engine.stop()
        for source in self._sources:
            source.stop()
        deadline = time.monotonic() + STOP_WITHIN
        busy = self._workers.stop(STOP_WITHIN)
        if not self._engine.jobs.idle(deadline - time.monotonic()):
            busy += [item.task.pool for item in self._engine.jobs.snapshot()]
        if self._reporter is not None:
            self._reporter.stop(1.0)
        for follower in followers:
            follower.join(1.0)
        for name in busy:
            log.error("pool %s did not end its step in time", name)
        return not busy

    def _look(self, revision: int) -> int:
        """Wake whom a change of the store concerns; the revision that was looked at."""
        try:
            current = self._store.revision()
            if current != revision:
                self._apply_refused()
                self._wake(self._engine.world())
        except errors.StorageError as error:
            log.error("the store can't be read: %s", error)
            self._problem = str(error)
            return revision
        self._problem = ""
        return current

    def _unread(self) -> str:
        """Which sources were not taken over yet."""
        left = [item.origin for item in self._sources if item.origin not in self._refused]
        return f"not read yet: {', '.join(left)}" if left else ""

    def _wake(self, world: World) -> None:
        names = world.pool_names()
        self._workers.keep(names)
        self._engine.keep_jobs(world)
        seen = {name: _signature(world, name) for name in names}
        pools = frozenset(item.signature for item in world.pools())
        if pools != self._pools_seen:  # another pool may have claimed, or let go, what one wants
            changed = names
        else:
            changed = {name for name in names if self._seen.get(name) != seen[name]}
        self._seen, self._pools_seen = seen, pools
        self._workers.wake(sorted(changed))

    def _take_over(self, snapshot: Snapshot, stop: threading.Event) -> None:
        """Deliver, again while the store can't be written: a source says nothing twice."""
        failures, delivered = 0, False
        while not (delivered or stop.is_set()):
            try:
                self.deliver(snapshot)
                delivered = True
            except errors.StorageError as error:
                failures += 1
                log.error("%s can't be taken over now: %s", snapshot.origin, error)
                stop.wait(backoff(failures))

    def deliver(self, snapshot: Snapshot) -> None:
        """Take over what a source declares now."""
        for problem in snapshot.problems:
            log.warning("%s", problem)
            self._tell(snapshot, "Warning", problem.reason, str(problem))
        if not snapshot.complete:
            log.warning("%s: nothing is pruned: %s", snapshot.origin, snapshot.reason)
        refused = []
        for declared in self._own(snapshot.declared):
            try:
                self._apply(declared, snapshot.origin)
            except errors.StorageError as error:
                if not error.terminal:
                    raise
                refused.append(declared)
                log.warning("%s:%d: %s: %s", declared.file, declared.line, declared.key, error)
                self._store.record_event(declared.key, "", "Warning", error.reason, str(error))
        with self._lock:
            self._refused[snapshot.origin] = refused
        self._note_revision(snapshot)
        if self._pruning is not None:
            self._prune(snapshot, self._pruning)

    def _apply(self, declared: Declared, origin: str) -> None:
        applied = self._store.apply(declared, source=origin)
        if applied.resource.deleting:
            raise errors.Conflict(
                f"{declared.key} is being deleted.", hint="It is applied anew once it is gone."
            )
        if applied.outcome != "unchanged":
            log.info("%s %s", declared.key, applied.outcome)

    def _apply_refused(self) -> None:
        """Try again what the store refused, such as a resource that was still being deleted."""
        with self._lock:
            for origin, refused in self._refused.items():
                for declared in list(refused):
                    with contextlib.suppress(errors.InvalidSpec, errors.Conflict):  # told already
                        self._apply(declared, origin)
                        refused.remove(declared)

    def _own(self, declared: Sequence[Declared]) -> list[Declared]:
        """Without what other nodes keep: their pools, and the volumes in those.

        What was this node's until now stays in: that it moved has to be known.
        """
        node = self._engine.node
        foreign = {
            item.metadata.name
            for item in declared
            if item.kind.name == "StoragePool"
            and getattr(item.spec, "node_name", None) not in (None, node)
        }
        return [
            item
            for item in declared
            if not _elsewhere(item, foreign, node) or self._store.source_of(item.key)
        ]

    def _prune(self, snapshot: Snapshot, threshold: Threshold) -> None:
        decision = prunable(self._store.from_source(snapshot.origin), snapshot, threshold)
        if decision.refused:
            log.warning("nothing is pruned: %s", decision.refused)
            self._tell(snapshot, "Warning", "PruneRefused", decision.refused)
        for key in decision.delete:
            log.info("%s is pruned: %s no longer declares it", key, snapshot.origin)
            self._store.record_event(
                key, "", "Normal", "Pruned", f"{snapshot.origin} no longer declares it."
            )
            self._store.request_deletion(key)

    def _note_revision(self, snapshot: Snapshot) -> None:
        """Tell which revision is in force now, once for each."""
        if self._revisions.get(snapshot.origin, "") == snapshot.revision:
            return
        self._revisions[snapshot.origin] = snapshot.revision
        message = f"Revision {snapshot.revision} declares {len(snapshot.declared)} resources."
        log.info("%s: %s", snapshot.origin, message)
        self._tell(snapshot, "Normal", "Revision", message)

    def _tell(self, snapshot: Snapshot, type: EventType, reason: str, message: str) -> None:
        key = Key("ManifestSource", "", snapshot.origin)
        self._store.record_event(key, "", type, reason, message)


def _tell_manager(state: str) -> None:
    """Tell the service manager; where it can't be reached, the work goes on all the same."""
    try:
        notify(state)
    except OSError as error:
        log.warning("the service manager can't be told %s: %s", state, error)


def _elsewhere(declared: Declared, pools: set[str], node: str) -> bool:
    """Whether another node keeps it, or one of these pools of other nodes holds it."""
    if declared.kind.name == "StorageNode":
        return declared.key != node_key(node)
    if declared.kind.name == "StoragePool":
        return declared.metadata.name in pools
    reference = getattr(declared.spec, "pool_ref", None)
    if reference is not None and reference.name in pools:
        return True
    return getattr(declared.spec, "node_name", None) not in (None, node)


def _signature(world: World, name: str) -> tuple[object, ...]:
    return tuple(sorted(item.signature for item in world.concerning(name)))
