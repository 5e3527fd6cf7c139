"""Volumes and operations that name no node: claimed by the agent that keeps what they belong to.

Every agent watches them, by a selector of its own beside that of its node. There is no leader: a
claim is a write that holds only for the version that was read, and a node once named stays.

For a volume that asks for a pool by labels every agent that has such a pool lists those of all
nodes, chooses by the same rule, and claims the volume where the chosen one is its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from backends import errors
from backends.base import Backend
from controller.choosing import Chooser, in_turn, words
from controller.cluster.apiserver import ApiServer, Object
from controller.cluster.store import ClusterStore, parse
from controller.resources import AnyResource, Key, kinds
from controller.retrying import backoff
from controller.worlds import UNBOUND, pool_name

log = logging.getLogger(__name__)

WITHOUT_NODE = {"spec.nodeName": ""}
"""What the server selects objects without a node by."""


class Binder:
    """Follows objects of a kind that name no node, and claims those whose owner this node keeps.

    One thread follows and another claims, so that neither holds up the other.

    :param owner: what has to be this node's, such as the volume of an operation.
    :param stop: ends both threads; ``look`` has to be called after it was set.
    """

    def __init__(
        self,
        server: ApiServer,
        store: ClusterStore,
        *,
        stop: threading.Event,
        kind: str,
        owner: Callable[[AnyResource], Key],
    ) -> None:
        self._server = server
        self._store = store
        self._stop = stop
        self._kind = kinds()[kind]
        self._owner = owner
        self._unbound: dict[str, Object] = {}
        self._lock = threading.Lock()
        self._news = threading.Event()

    def start(self) -> None:
        """Begin; this node's own pools have to be known already."""
        for work in (self._follow, self._claim):
            name = f"{self._kind.plural}{work.__name__}"
            threading.Thread(target=work, name=name, daemon=True).start()

    def look(self) -> None:
        """Look again at what waits: an owner was declared, or let go."""
        self._news.set()

    def resync(self) -> str:
        """List anew; the version of the list.

        :raises errors.StorageError: where the server can't be reached.
        """
        listed = self._server.list(self._kind, WITHOUT_NODE)
        with self._lock:
            self._unbound = {found["metadata"]["uid"]: found for found in listed.objects}
        self._news.set()
        return listed.version

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                version = self.resync()
                for gone, found in self._server.watch(self._kind, WITHOUT_NODE, version):
                    failures = 0
                    self._observe(found, gone=gone)
            except errors.StorageError as error:
                failures += 1
                log.debug("%s", error)
                self._stop.wait(backoff(failures))

    def _observe(self, found: Object, *, gone: bool) -> None:
        with self._lock:
            if gone:
                self._unbound.pop(found["metadata"]["uid"], None)
            else:
                self._unbound[found["metadata"]["uid"]] = found
                self._news.set()

    def _claim(self) -> None:
        failures = tries = 0
        while not self._stop.is_set():
            if self._news.wait(backoff(tries) if tries else None):
                tries = 0
            self._news.clear()
            try:
                tries = tries + 1 if self._claim_all() else 0
                failures = 0
            except errors.StorageError as error:
                failures += 1
                log.debug("%s", error)
                self._stop.wait(backoff(failures))
                self._news.set()
            except Exception:
                log.exception("claiming %s broke off", self._kind.plural)
                tries = max(tries, 1)  # it is tried again, and not at once

    def _claim_all(self) -> bool:
        """Claim what can be claimed; what could not be for another's write comes with the watch.

        :returns: whether to look again without news, for something that this node may come to have.
        """
        waiting = self._waiting()
        for item in waiting:
            if self._store.keeps(self._owner(item)):
                self._bind(item)
        return self._claim_further(waiting)

    def _claim_further(self, waiting: Sequence[AnyResource]) -> bool:
        """Claim what names no owner."""
        return False

    def _waiting(self) -> list[AnyResource]:
        with self._lock:
            objects = list(self._unbound.values())
        found = []
        for item in objects:
            try:
                found.append(parse(self._kind, item))
            except errors.InvalidSpec as error:
                log.debug("%s", error)
        return [item for item in found if not item.deleting]

    def _bind(self, item: AnyResource, pool: str = "") -> bool:
        """Claim for the version that was read; whether it is this node's now.

        :param pool: the one that was chosen for a volume; empty where none had to be.
        """
        if self._stop.is_set():
            return False
        metadata = item.metadata
        try:
            claimed = self._store.bind(
                item.key,
                uid=metadata.uid,
                version=metadata.resource_version,
                node=self._store.node,
                pool=pool,
            )
        except errors.Inaccessible:
            raise
        except errors.StorageError as error:
            log.warning("%s can't be claimed: %s", item.key, error)
            return False
        if claimed:
            log.debug("%s is claimed", item.key)
            with self._lock:
                self._unbound.pop(metadata.uid, None)
        return claimed


class VolumeBinder(Binder):
    """Claims volumes of this node's pools, and chooses a pool for those that ask by labels.

    :param backend: the backend of a pool type, by its name.
    """

    def __init__(
        self,
        server: ApiServer,
        store: ClusterStore,
        *,
        backend: Callable[[str], Backend],
        stop: threading.Event,
    ) -> None:
        super().__init__(server, store, stop=stop, kind="StorageVolume", owner=_pool_of)
        self._backend = backend

    def _claim_further(self, waiting: Sequence[AnyResource]) -> bool:
        asking = self._concerning([item for item in waiting if pool_name(item) == UNBOUND])
        if not asking or self._stop.is_set():
            return False
        bound = 0
        for volume, pool in self._choose(asking):
            if self._bind(volume, pool):
                bound += 1
                message = f"Pool {pool!r} was chosen."
                uid = volume.metadata.uid
                self._store.record_event(volume.key, uid, "Normal", "PoolChosen", message)
        return len(asking) > bound

    def _concerning(self, asking: list[AnyResource]) -> list[AnyResource]:
        """Those of which a pool of this node has the labels: the others cost no request."""
        if not asking:
            return []
        labels = [pool.metadata.labels for pool in self._store.list("StoragePool")]
        return [
            item
            for item in asking
            if not item.spec.suspend and any(map(item.spec.pool_selector.holds, labels))
        ]

    def _choose(self, asking: list[AnyResource]) -> list[tuple[AnyResource, str]]:
        """The pools of this node that are chosen, among all that have the labels, and for whom."""
        kind = kinds()["StoragePool"]
        selectors = {words(item.spec.pool_selector): item.spec.pool_selector for item in asking}
        pools: dict[str, AnyResource] = {}
        for selector in selectors.values():
            for item in self._server.list(kind, labels=selector).objects:
                try:
                    pools[item["metadata"]["name"]] = parse(kind, item)
                except errors.InvalidSpec as error:
                    log.debug("%s", error)
        held = [item for item in self._store.list(self._kind.name) if pool_name(item) != UNBOUND]
        chooser = Chooser(pools.values(), backend=self._backend, unmade=held)
        found = []
        for volume in in_turn(asking):
            try:
                pool = chooser.choose(volume)
            except errors.StorageError as error:
                log.debug("%s", error)  # told on its status by whoever looks after the unkept
                continue
            if self._store.keeps(pool.key):
                found.append((volume, pool.metadata.name))
        return found


def _pool_of(volume: AnyResource) -> Key:
    return Key("StoragePool", "", pool_name(volume))
