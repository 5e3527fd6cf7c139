"""What no agent keeps: of nodes that went silent, of nodes that never had an agent, of nobody.

There is no leader. The agent whose node comes first by name among those that report looks after it
for all. Two may take themselves for the first for a while: each write holds only for the version
that was read, and both would write the same. Nothing is taken for gone, and nothing is deleted.

That a node is silent is told by this agent's own clock: its heartbeat did not change for so long
while it was looked at. The clocks of nodes decide only who looks.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from backends import errors
from backends.base import Backend
from backends.spec import (
    LabelSelector,
    OperationStatus,
    PoolDeletion,
    StatusBase,
    VolumeDeletion,
)
from controller import summarising
from controller.choosing import Chooser, words
from controller.cluster.apiserver import ApiServer, Object
from controller.cluster.posting import Poster
from controller.cluster.store import parse, tested
from controller.nodes import KIND, NodeSettings, node_key
from controller.operations import FINISHED, status_of
from controller.resources import FINALIZER, AnyResource, Key, kinds, now
from controller.worlds import UNBOUND, pool_name, volume_of

log = logging.getLogger(__name__)

FIRST_FEW = 5
"""Nodes in a page of the list that tells who comes first."""

MAX_EXCLUDED = 200
"""Nodes that a list can leave out on the server side, for the length of an address; of more nodes
than that all is listed and sorted out here."""


@dataclass(slots=True)
class _Watched:
    """A node as this agent sees it.

    :param heartbeat: as it was reported last; empty where it never was.
    :param since: when that was seen first, by the monotonic clock.
    """

    heartbeat: str
    since: float


@dataclass(slots=True)
class _Round:
    """What is known in one look, and asked for once at most."""

    live: frozenset[str]
    pools: dict[str, AnyResource | None] = field(default_factory=dict)
    choosers: dict[str, Chooser] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    """Pools that hold a volume which waits for its deletion to be carried out."""


class NodeLifecycle:
    """Looks after what no agent keeps, in a thread of its own, while this node comes first.

    :param backend: the backend of a pool type, by its name.
    """

    def __init__(
        self,
        server: ApiServer,
        poster: Poster,
        *,
        node: str,
        settings: NodeSettings,
        backend: Callable[[str], Backend],
    ) -> None:
        self._server = server
        self._poster = poster
        self._own = node_key(node).name
        self._settings = settings
        self._backend = backend
        self._watched: dict[str, _Watched] = {}
        self._absent: dict[str, float] = {}
        self._silent: frozenset[str] = frozenset()
        self._looked = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End, waiting at most so long for a look that is under way."""
        self._stop.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.wait(self._settings.heartbeat):
            try:
                self.look()
            except errors.StorageError as error:
                log.warning("other nodes can't be looked at: %s", error)
            except Exception:
                log.exception("looking at other nodes broke off")

    def look(self) -> None:
        """Look at all nodes if this one comes first, and say of what no agent keeps that it is so.

        :raises errors.StorageError: the server can't be asked.
        """
        if not self._comes_first():
            self._watched.clear()
            self._absent.clear()
            self._silent = frozenset()
            return
        nodes = self._server.list(kinds()[KIND]).objects
        self._watch(nodes)
        silent = frozenset(name for name in self._watched if self._is_silent(name))
        reported = {name for name, seen in self._watched.items() if seen.heartbeat}
        round_ = _Round(live=frozenset(reported - silent | {self._own}))
        self._tell_of_nodes(nodes, silent)
        self._silent = silent
        self._see_to(round_)

    def _comes_first(self) -> bool:
        """Whether no node before this one reports, by the clocks of both."""
        present = datetime.datetime.now(datetime.UTC)

        def reports(found: Object) -> bool:
            return _name(found) == self._own or self._recent(_heartbeat(found), present)

        first = self._server.first(kinds()[KIND], reports, page=FIRST_FEW)
        return first is not None and _name(first) == self._own

    def _recent(self, beat: str, present: datetime.datetime) -> bool:
        try:
            age = (present - datetime.datetime.fromisoformat(beat)).total_seconds()
        except ValueError:
            return False
        return abs(age) < self._settings.silence

    def _watch(self, nodes: Sequence[Object]) -> None:
        """Note what each node reported last; begin anew where this agent itself did not look."""
        present = time.monotonic()
        if present - self._looked > self._settings.silence:
            self._watched.clear()
            self._absent.clear()
        self._looked = present
        watched = {}
        for item in nodes:
            name, beat = _name(item), _heartbeat(item)
            seen = self._watched.get(name)
            same = seen is not None and seen.heartbeat == beat
            watched[name] = seen if seen and same else _Watched(beat, present)
        self._watched = watched

    def _is_silent(self, name: str) -> bool:
        seen = self._watched[name]
        unchanged = time.monotonic() - seen.since >= self._settings.silence
        return bool(seen.heartbeat) and name != self._own and unchanged

    def _tell_of_nodes(self, nodes: Sequence[Object], silent: frozenset[str]) -> None:
        concerned = [item for item in nodes if _name(item) in silent | self._silent]
        for item in _parsed(KIND, concerned):
            name, key, uid = item.metadata.name, item.key, item.metadata.uid
            if name in silent:
                error = self._why(name)
                if self._write(item, summarising.unknown_status(item, error, now=now())):
                    self._poster.post(key, uid, "Warning", error.reason, str(error))
            else:
                self._poster.post(key, uid, "Normal", "NodeReporting", f"Node {name} reports.")

    def _why(self, node: str | None) -> errors.StorageError:
        """Why no agent keeps what is of that node."""
        seen = self._watched.get(node or "")
        if node is None:
            return errors.NoAgent(
                "It names no node, so no agent keeps it.", hint="Set spec.nodeName."
            )
        if seen is None or not seen.heartbeat:
            return errors.NoAgent(
                f"There is no agent for node {node}.",
                hint="Run one there, or correct spec.nodeName.",
            )
        return errors.NodeSilent(
            f"Node {node} has not reported since {seen.heartbeat}. What is shown is what it "
            "reported last.",
            hint="Look at the node and its agent.",
        )

    def _see_to(self, round_: _Round) -> None:
        pools = self._listed("StoragePool", round_)
        volumes = self._listed("StorageVolume", round_)
        round_.pools |= {item.metadata.name: item for item in pools}
        round_.held |= {
            pool_name(item) for item in volumes if item.metadata.finalizers and not _lets_go(item)
        }
        operations = [
            item
            for item in self._listed("VolumeOperation", round_)
            if item.status.phase not in FINISHED and not item.deleting
        ]
        named = {item.spec.node_name for item in [*pools, *volumes, *operations]}
        self._absent = {
            name: self._absent.get(name, time.monotonic()) for name in named if name is not None
        }
        for item in [*volumes, *pools]:
            if self._stop.is_set():
                return
            if item.kind.name == "StorageVolume" and item.spec.node_name is None:
                self._see_to_unbound(item, round_)
            else:
                self._see_to_unkept(item, round_)
        for item in operations:
            if self._stop.is_set():
                return
            self._see_to_operation(item, round_)

    def _see_to_operation(self, operation: AnyResource, round_: _Round) -> None:
        """One that nobody carries out: what is missing, unless an agent is about to claim it."""
        node = operation.spec.node_name
        if node is None:
            error = self._why_unclaimed(volume_of(operation), round_)
        elif node in self._silent or self._surely_absent(operation, node):
            error = self._why(node)
        else:
            error = None
        if error is not None:
            former: OperationStatus = operation.status
            status = status_of(
                operation,
                phase=former.phase or "Pending",
                message=str(error),
                reason=error.reason,
            )
            self._write(operation, status)

    def _why_unclaimed(self, key: Key, round_: _Round) -> errors.StorageError | None:
        """Why no agent claims an operation on a volume; None where one is about to."""
        found = self._server.get(key)
        if found is None:
            return errors.NotFound(f"There is no {key}.", hint="Declare it.")
        node = (found.get("spec") or {}).get("nodeName")
        if node in round_.live:
            return None
        if node is None:
            return errors.NoAgent(f"No agent keeps {key}.", hint="Its own status says why.")
        error = self._why(node)
        return type(error)(f"{key}: {error.message}", hint=error.hint)

    def _listed(self, kind: str, round_: _Round) -> list[AnyResource]:
        """Objects of a kind that name none of the nodes that report."""
        excluded = sorted(round_.live) if len(round_.live) <= MAX_EXCLUDED else []
        listed = self._server.list(kinds()[kind], excluding={"spec.nodeName": excluded})
        found = _parsed(kind, listed.objects)
        return [item for item in found if item.spec.node_name not in round_.live]

    def _see_to_unkept(self, item: AnyResource, round_: _Round) -> None:
        """A pool or volume of a node without an agent, or whose agent is silent."""
        node = item.spec.node_name
        if node is not None and node not in self._silent and not self._surely_absent(item, node):
            return
        holds = item.kind.name == "StoragePool" and item.metadata.name in round_.held
        if item.deleting and item.metadata.finalizers and _lets_go(item) and not holds:
            self._let_go(item)
            return
        self._write(item, summarising.unknown_status(item, self._why(node), now=now()))

    def _surely_absent(self, item: AnyResource, node: str) -> bool:
        """Whether there is no agent, and not one that only has still to say so: an agent of an
        older release looked at the thing and reports no node."""
        if item.status.observed_generation < 0:
            return True
        return time.monotonic() - self._absent[node] >= self._settings.silence

    def _let_go(self, item: AnyResource) -> None:
        """Let a resource go whose policy keeps everything: there is nothing to wait for."""
        found = self._server.get(item.key)
        if found is None or found["metadata"]["uid"] != item.metadata.uid:
            return
        left = [name for name in found["metadata"].get("finalizers", ()) if name != FINALIZER]
        patch = [
            tested("uid", item.metadata.uid),
            tested("resourceVersion", item.metadata.resource_version),
            {"op": "add", "path": "/metadata/finalizers", "value": left},
        ]
        self._patch(item.key, patch, status=False)

    def _see_to_unbound(self, volume: AnyResource, round_: _Round) -> None:
        """A volume that no agent has claimed: what is missing, unless one is about to claim it."""
        if volume.deleting:
            return
        try:
            if pool_name(volume) == UNBOUND:
                self._choose(volume, round_)
            else:
                self._seek(volume, round_)
        except errors.Inaccessible:
            raise
        except errors.StorageError as error:
            self._write(volume, summarising.waiting_status(volume, error, now=now()))

    def _seek(self, volume: AnyResource, round_: _Round) -> None:
        """The pool that a volume names, which has to have an agent."""
        name = pool_name(volume)
        if name not in round_.pools:
            found = self._server.get(Key("StoragePool", "", name))
            round_.pools[name] = parse(kinds()["StoragePool"], found) if found else None
        pool = round_.pools[name]
        if pool is None:
            raise errors.PoolNotFound(
                f"Pool {name!r}, which {volume.key} names, is not declared.",
                hint="Declare the pool, or correct poolRef.",
            )
        if pool.spec.node_name not in round_.live:
            error = self._why(pool.spec.node_name)
            raise type(error)(f"Pool {name!r}: {error.message}", hint=error.hint)

    def _choose(self, volume: AnyResource, round_: _Round) -> None:
        """As agents choose; whichever keeps the chosen pool claims the volume."""
        selector: LabelSelector = volume.spec.pool_selector
        told = words(selector)
        if told not in round_.choosers:
            listed = self._server.list(kinds()["StoragePool"], labels=selector)
            pools = _parsed("StoragePool", listed.objects)
            round_.choosers[told] = Chooser(pools, backend=self._backend)
        round_.choosers[told].choose(volume)

    def _write(self, item: AnyResource, status: StatusBase) -> bool:
        """Record a status for the version that was read, where it says something new."""
        if status.dump() == item.status.dump():
            return False
        patch = [
            tested("uid", item.metadata.uid),
            tested("resourceVersion", item.metadata.resource_version),
            {"op": "add", "path": "/status", "value": status.dump()},
        ]
        return self._patch(item.key, patch, status=True)

    def _patch(self, key: Key, patch: list[dict[str, object]], *, status: bool) -> bool:
        try:
            self._server.patch(key, patch, status=status)
        except (errors.Conflict, errors.NotFound):
            return False  # somebody wrote since; it is looked at anew
        return True


def _name(found: Object) -> str:
    return str(found["metadata"]["name"])


def _heartbeat(found: Object) -> str:
    """When the node reported last, of whatever release its agent is; empty where it never did."""
    return str((found.get("status") or {}).get("heartbeatTime") or "")


def _parsed(kind: str, objects: Iterable[Object]) -> list[AnyResource]:
    """Objects as resources, without those that this release can't read."""
    found = []
    for item in objects:
        try:
            found.append(parse(kinds()[kind], item))
        except errors.InvalidSpec as error:
            log.debug("%s", error)
    return found


def _lets_go(item: AnyResource) -> bool:
    return item.spec.deletion_policy in (PoolDeletion.RETAIN, VolumeDeletion.RETAIN)
