"""Volumes and operations that name no node: claimed by the agent that keeps what they belong to.

Every agent watches them, by a selector of its own beside that of its node. There is no leader: a
claim is a write that holds only for the version that was read, and a node once named stays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from backends import errors
from controller.apiserver import ApiServer, Object
from controller.clusterstore import ClusterStore
from controller.resources import Key, kinds
from controller.retrying import backoff

log = logging.getLogger(__name__)

UNBOUND = {"spec.nodeName": ""}
"""What the server selects objects without a node by."""


def pool_of(found: Object) -> Key:
    """The pool of a volume."""
    reference = found["spec"].get("poolRef") or {}
    return Key("StoragePool", "", reference.get("name", ""))


def volume_of(found: Object) -> Key:
    """The volume of an operation."""
    name = found["spec"]["volumeRef"]["name"]
    return Key("StorageVolume", found["metadata"]["namespace"], name)


class Binder:
    """Follows objects of a kind that name no node, and claims those whose owner this node keeps.

    One thread follows and another claims, so that neither holds up the other.

    :param owner: what has to be this node's: the pool of a volume, the volume of an operation.
    :param stop: ends both threads; ``look`` has to be called after it was set.
    """

    def __init__(
        self,
        server: ApiServer,
        store: ClusterStore,
        *,
        stop: threading.Event,
        kind: str = "StorageVolume",
        owner: Callable[[Object], Key] = pool_of,
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
        listed = self._server.list(self._kind, UNBOUND)
        with self._lock:
            self._unbound = {found["metadata"]["uid"]: found for found in listed.objects}
        self._news.set()
        return listed.version

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                version = self.resync()
                for gone, found in self._server.watch(self._kind, UNBOUND, version):
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
        failures = 0
        while not self._stop.is_set():
            self._news.wait()
            self._news.clear()
            try:
                self._claim_all()
                failures = 0
            except errors.Inaccessible as error:
                failures += 1
                log.debug("%s", error)
                self._stop.wait(backoff(failures))
                self._news.set()

    def _claim_all(self) -> None:
        """Claim what can be claimed; what could not be for another's write comes with the watch."""
        with self._lock:
            waiting = [item for item in self._unbound.items() if self._claimable(item[1])]
        for uid, found in waiting:
            if self._stop.is_set():
                return
            name = "/".join((found["metadata"]["namespace"], found["metadata"]["name"]))
            try:
                claimed = self._bind(found)
            except errors.Inaccessible:
                raise
            except errors.StorageError as error:
                log.warning("%s %s can't be claimed: %s", self._kind.name, name, error)
                continue
            if claimed:
                log.debug("%s %s is claimed", self._kind.name, name)
                with self._lock:
                    self._unbound.pop(uid, None)

    def _bind(self, found: Object) -> bool:
        metadata = found["metadata"]
        return self._store.bind(
            Key(self._kind.name, metadata["namespace"], metadata["name"]),
            uid=metadata["uid"],
            version=metadata["resourceVersion"],
            node=self._store.node,
        )

    def _claimable(self, found: Object) -> bool:
        if found["metadata"].get("deletionTimestamp"):
            return False
        return self._store.keeps(self._owner(found))
