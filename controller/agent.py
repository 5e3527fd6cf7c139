"""The agent of one host: sources on one side, a worker for each pool on the other.

Sources and the command line write to the store; the agent sees that its revision moved and wakes
the workers of the pools concerned.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from backends import errors
from controller.engine import Engine
from controller.notifying import notify
from controller.resources import REQUESTED_AT, AnyResource, Declared, Key
from controller.sources.base import Snapshot, Source, follow
from controller.sources.pruning import Threshold, prunable
from controller.store import Store
from controller.workers import Workers
from controller.worlds import World

log = logging.getLogger(__name__)

POLL = 0.2
"""Seconds between two looks at the store's revision, which costs one read of a counter."""

STOP_WITHIN = 20.0
"""Seconds that workers have to end the step they are at; running commands are ended at once."""


class Agent:
    """Follows sources and keeps the pools of this node.

    :param pruning: how much may be pruned at once; None for no pruning.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        sources: Sequence[Source] = (),
        *,
        pruning: Threshold | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._sources = sources
        self._pruning = pruning
        self._workers = Workers(engine.reconcile)
        self._seen: dict[str, tuple[object, ...]] = {}
        self._pools_seen: frozenset[object] = frozenset()

    def run(self, stop: threading.Event) -> bool:
        """Work until ``stop`` is set; false where a worker did not end in time."""
        self._engine.recover()
        followers = [
            threading.Thread(
                target=follow, args=(source, self.deliver, stop), name=source.origin, daemon=True
            )
            for source in self._sources
        ]
        for follower in followers:
            follower.start()
        notify("READY=1")
        log.info("keeping the pools of node %s", self._engine.node)
        revision = -1
        while not stop.is_set():
            revision = self._look(revision)
            stop.wait(POLL)
        return self._stop(followers)

    def _stop(self, followers: Sequence[threading.Thread]) -> bool:
        notify("STOPPING=1")
        self._engine.cancel.set()
        for source in self._sources:
            source.stop()
        busy = self._workers.stop(STOP_WITHIN)
        for follower in followers:
            follower.join(1.0)
        for name in busy:
            log.error("pool %s did not end its step in time", name)
        return not busy

    def _look(self, revision: int) -> int:
        """Wake whom a change of the store concerns; the revision that was looked at."""
        try:
            current = self._store.revision()
            if current == revision:
                return revision
            self._wake(self._engine.world())
        except errors.StorageError as error:
            log.error("the store can't be read: %s", error)
            return revision
        return current

    def _wake(self, world: World) -> None:
        names = world.pool_names()
        self._workers.keep(names)
        seen = {name: _signature(world, name) for name in names}
        pools = frozenset(_sign(item) for item in world.pools())
        if pools != self._pools_seen:  # another pool may have claimed, or let go, what one wants
            changed = names
        else:
            changed = {name for name in names if self._seen.get(name) != seen[name]}
        self._seen, self._pools_seen = seen, pools
        self._workers.wake(sorted(changed))

    def deliver(self, snapshot: Snapshot) -> None:
        """Take over what a source declares now."""
        for problem in snapshot.problems:
            log.warning("%s", problem)
            self._tell(snapshot, problem.reason, str(problem))
        if not snapshot.complete:
            log.warning("%s: nothing is pruned: %s", snapshot.origin, snapshot.reason)
        for declared in self._own(snapshot.declared):
            try:
                applied = self._store.apply(declared, source=snapshot.origin)
            except errors.StorageError as error:
                log.warning("%s:%d: %s: %s", declared.file, declared.line, declared.key, error)
                self._store.record_event(declared.key, "", "Warning", error.reason, str(error))
                continue
            if applied.outcome != "unchanged":
                log.info("%s %s", declared.key, applied.outcome)
        if self._pruning is not None:
            self._prune(snapshot, self._pruning)

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
            self._tell(snapshot, "PruneRefused", decision.refused)
        for key in decision.delete:
            log.info("%s is pruned: %s no longer declares it", key, snapshot.origin)
            self._store.record_event(
                key, "", "Normal", "Pruned", f"{snapshot.origin} no longer declares it."
            )
            self._store.request_deletion(key)

    def _tell(self, snapshot: Snapshot, reason: str, message: str) -> None:
        key = Key("ManifestSource", "", snapshot.origin)
        self._store.record_event(key, "", "Warning", reason, message)


def _elsewhere(declared: Declared, pools: set[str], node: str) -> bool:
    """Whether another node keeps it, or one of these pools of other nodes holds it."""
    if declared.kind.name == "StoragePool":
        return declared.metadata.name in pools
    reference = getattr(declared.spec, "pool_ref", None)
    if reference is not None and reference.name in pools:
        return True
    return getattr(declared.spec, "node_name", None) not in (None, node)


def _signature(world: World, name: str) -> tuple[object, ...]:
    pool = world.pool(name)
    found = [*world.volumes(name), *([pool] if pool else [])]
    return tuple(sorted(_sign(item) for item in found))


def _sign(resource: AnyResource) -> tuple[str, str, int, bool, str]:
    """What a worker has to act on when it changes; status and events are not part of it."""
    metadata = resource.metadata
    requested = metadata.annotations.get(REQUESTED_AT, "")
    return str(resource.key), metadata.uid, metadata.generation, resource.deleting, requested
