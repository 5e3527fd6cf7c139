"""Resources that live on a Kubernetes API server, as one node's engine sees them.

Reads come from a cache that watches and lists feed, so that a pass costs no request. Writes go to
the server, are made only where something changes, and hold only for the object that was looked
at; what the server answers is in the cache at once. The journal of steps stays on the node.
"""

from __future__ import annotations

import builtins
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from backends import errors
from backends.spec import StatusBase
from controller.cluster.apiserver import ApiServer, JsonPatch, Object
from controller.cluster.posting import Poster
from controller.resources import (
    API_VERSION,
    FINALIZER,
    AnyResource,
    Declared,
    Key,
    Kind,
    Metadata,
    Resource,
    kinds,
)
from controller.store import UNDEFINED, Applied, EventType, Outcome, Step, Store
from controller.summarising import condition
from controller.worlds import UNBOUND, pool_name, volume_of

log = logging.getLogger(__name__)

WATCHED = ("StoragePool", "StorageVolume", "VolumeOperation")
"""Kinds that an agent is sent, those of its node."""

CONFLICTS = 5
"""Times a finalizer is tried again after somebody else wrote in between."""

REMEMBERED = 10_000
"""Objects that went and of which a late answer must not bring back a copy."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A cached object.

    :param finalizers: all of them; the resource shows only ours, for the others are not its
        engine's concern.
    """

    resource: AnyResource
    finalizers: tuple[str, ...]


class ClusterStore:
    """Implements ``controller.store.ResourceStore``. Safe for threads.

    Every method that writes raises ``errors.StorageError`` where the server can't be reached or
    refuses; the next pass writes what this one could not.
    """

    def __init__(self, server: ApiServer, local: Store, poster: Poster, *, node: str) -> None:
        self.node = node
        self.changed = threading.Event()
        self._server = server
        self._local = local
        self._poster = poster
        self._entries: dict[Key, _Entry] = {}
        self._keys: dict[str, Key] = {}
        self._gone: OrderedDict[str, int] = OrderedDict()
        self._sorted: builtins.list[AnyResource] | None = None
        self._revision = 0
        self._pools_changed = False
        self._pools_to_wake: set[str] = set()
        self._lock = threading.RLock()

    @property
    def selector(self) -> dict[str, str]:
        """What the server is to select objects by."""
        return {"spec.nodeName": self.node}

    def resync(self) -> None:
        """List everything, and forget what is no longer there.

        A watch that was cut does not tell of what went in the meantime; a list does.
        """
        for name in WATCHED:
            kind = kinds()[name]
            listed = self._server.list(kind, self.selector)
            for found in listed.objects:
                self.observe(kind, found)
            present = {found["metadata"]["uid"] for found in listed.objects}
            with self._lock:
                lost = [
                    entry.resource.metadata.uid
                    for key, entry in self._entries.items()
                    if key.kind == name
                    and entry.resource.metadata.uid not in present
                    and _version(entry.resource) <= _number(listed.version)
                ]
                for uid in lost:
                    self._forget(uid, _number(listed.version))

    def observe(self, kind: Kind, found: Object, *, deleted: bool = False) -> None:
        """Take over what the server sent. An older version than the known one is left out."""
        metadata = found["metadata"]
        uid, version = metadata["uid"], _number(metadata["resourceVersion"])
        finalizers = tuple(metadata.get("finalizers", ()))
        if deleted or (metadata.get("deletionTimestamp") and not finalizers):
            with self._lock:
                self._forget(uid, version)
            return
        try:
            resource = parse(kind, found)
        except errors.InvalidSpec as error:
            log.error("%s", error)
            return
        with self._lock:
            known = self._entries.get(resource.key)
            if version <= self._gone.get(uid, -1):
                return
            if known is not None and version <= _version(known.resource):
                return
            if known is not None:
                self._keys.pop(known.resource.metadata.uid, None)
            self._entries[resource.key] = _Entry(resource, finalizers)
            self._keys[uid] = resource.key
            self._note(known.resource if known else None, resource)

    def _forget(self, uid: str, version: int) -> None:
        self._gone[uid] = max(version, self._gone.get(uid, -1))
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        key = self._keys.pop(uid, None)
        entry = self._entries.pop(key, None) if key else None
        if entry is None:
            return
        self._note(entry.resource, None)
        if entry.resource.kind.name == "StoragePool":
            self.record_event(entry.resource.key, uid, "Normal", *UNDEFINED)

    def _note(self, before: AnyResource | None, after: AnyResource | None) -> None:
        """Remember whom a change concerns. A status or a finalizer concerns nobody."""
        self._sorted = None
        given_up = after is not None and _given_up(after)
        if not given_up and (before and before.signature) == (after and after.signature):
            return
        self._revision += 1
        for resource in (before, after):
            if resource is not None and resource.kind.name == "StoragePool":
                self._pools_changed = True  # it may have claimed, or let go, what another wants
            elif resource is not None:
                self._pools_to_wake.add(self._pool_concerned(resource))
        self.changed.set()

    def _pool_concerned(self, resource: AnyResource) -> str:
        """The pool in whose pass a volume or an operation is seen to."""
        if resource.kind.name == "StorageVolume":
            return pool_name(resource)
        volume = self._entries.get(volume_of(resource))
        return pool_name(volume.resource) if volume is not None else UNBOUND

    def concerned(self) -> set[str] | None:
        """The pools to look at since the last call; None for all of them."""
        with self._lock:
            self.changed.clear()
            pools: set[str] | None = None if self._pools_changed else self._pools_to_wake
            self._pools_changed, self._pools_to_wake = False, set()
            return pools

    def revision(self) -> int:
        """Rises with every change that somebody has to act on."""
        return self._revision

    def get(self, key: Key) -> AnyResource | None:
        """The resource of that key; one of another node is asked for at the server."""
        entry = self._entries.get(key)
        if entry is not None:
            return entry.resource
        found = self._server.get(key)
        return parse(kinds()[key.kind], found) if found else None

    def keeps(self, key: Key) -> bool:
        """Whether this node keeps the resource, and it is to stay."""
        entry = self._entries.get(key)
        return entry is not None and not entry.resource.deleting

    def list(
        self, kind: str | None = None, namespace: str | None = None
    ) -> builtins.list[AnyResource]:
        """This node's resources in order of kind, namespace and name."""
        with self._lock:
            if self._sorted is None:
                order = {name: place for place, name in enumerate(kinds())}
                self._sorted = [
                    entry.resource
                    for key, entry in sorted(
                        self._entries.items(),
                        key=lambda item: (order[item[0].kind], item[0].namespace, item[0].name),
                    )
                ]
            found = self._sorted
        return [
            item
            for item in found
            if kind in (None, item.kind.name) and namespace in (None, item.metadata.namespace)
        ]

    def apply(self, declared: Declared, *, source: str = "") -> Applied:
        """Server-side apply, without taking fields from others. Volumes are bound to this node.

        :raises errors.Conflict: somebody else declares it otherwise.
        """
        spec = declared.spec.dump()
        if declared.kind.name == "StorageVolume":
            spec["nodeName"] = self.node
        metadata = replace(declared.metadata, namespace=declared.key.namespace).dump()
        wanted = {
            "apiVersion": API_VERSION,
            "kind": declared.kind.name,
            "metadata": metadata,
            "spec": spec,
        }
        known = self._entries.get(declared.key)
        found = self._server.apply(declared.key, wanted)
        self.observe(declared.kind, found)
        resource = parse(declared.kind, found)
        outcome: Outcome = "created"
        if known is not None:
            same = _version(known.resource) == _version(resource)
            outcome = "unchanged" if same else "configured"
        return Applied(resource=resource, outcome=outcome)

    def write_status(
        self, key: Key, status: StatusBase, *, uid: str, generation: int | None = None
    ) -> bool:
        """Record what was observed, where that differs from what is recorded.

        The status is replaced as a whole, for the object of that uid alone.

        :param generation: if given, the spec must still be of this generation.
        :returns: whether something was written.
        """
        entry = self._entry(key, uid)
        wanted = status.dump()
        if entry is None or entry.resource.status.dump() == wanted:
            return False
        if generation not in (None, entry.resource.metadata.generation):
            return False
        patch = [tested("uid", uid)]
        if generation is not None:
            patch.append(tested("generation", generation))
        patch.append({"op": "add", "path": "/status", "value": wanted})
        return self._write(key, patch, uid=uid, status=True)

    def annotate(self, key: Key, name: str, value: str | None) -> bool:
        """Set an annotation, or take it off; whether that changed anything."""
        entry = self._entries.get(key)
        if entry is None or entry.resource.metadata.annotations.get(name) == value:
            return False
        metadata = {"uid": entry.resource.metadata.uid, "annotations": {name: value}}
        try:
            found = self._server.merge(key, {"metadata": metadata})
        except (errors.Conflict, errors.NotFound):
            self._refresh(key)
            return False
        self.observe(kinds()[key.kind], found)
        return True

    def request_deletion(self, key: Key) -> bool:
        """Delete the object; it goes when its last finalizer does."""
        there = self._server.delete(key)
        self._refresh(key)
        return there

    def add_finalizer(
        self, key: Key, *, uid: str | None = None, finalizer: str = FINALIZER
    ) -> bool:
        """Keep the object from going before ``remove_finalizer``; whether it has the finalizer."""
        for _ in range(CONFLICTS):
            entry = self._entry(key, uid)
            if entry is None:
                return False
            if finalizer in entry.finalizers or entry.resource.deleting:
                return finalizer in entry.finalizers
            if self._write_finalizers(entry, (*entry.finalizers, finalizer)):
                return True
        raise _contended(key)

    def remove_finalizer(
        self, key: Key, *, uid: str | None = None, finalizer: str = FINALIZER
    ) -> bool:
        """Let the object go; whether it had the finalizer."""
        for _ in range(CONFLICTS):
            entry = self._entry(key, uid)
            if entry is None or finalizer not in entry.finalizers:
                return False
            left = tuple(name for name in entry.finalizers if name != finalizer)
            if self._write_finalizers(entry, left):
                return True
        raise _contended(key)

    def _write_finalizers(self, entry: _Entry, finalizers: tuple[str, ...]) -> bool:
        metadata = entry.resource.metadata
        patch = [
            tested("uid", metadata.uid),
            tested("resourceVersion", metadata.resource_version),
            {"op": "add", "path": "/metadata/finalizers", "value": [*finalizers]},
        ]
        return self._write(entry.resource.key, patch, uid=metadata.uid)

    def bind(self, key: Key, *, uid: str, version: str, node: str, pool: str = "") -> bool:
        """Record the node that keeps a volume, and the pool that was chosen for it, for the
        version that was read; whether it is so now."""
        patch: JsonPatch = [
            tested("uid", uid),
            tested("resourceVersion", version),
            {"op": "add", "path": "/spec/nodeName", "value": node},
        ]
        if pool:
            patch.append({"op": "add", "path": "/spec/poolRef", "value": {"name": pool}})
        try:
            self.observe(kinds()[key.kind], self._server.patch(key, patch))
        except (errors.Conflict, errors.NotFound):
            return False  # somebody wrote since; the watch tells what
        return True

    def _write(self, key: Key, patch: JsonPatch, *, uid: str, status: bool = False) -> bool:
        """Patch; false, with the cache brought up to date, where the object is another by now."""
        kind = kinds()[key.kind]
        try:
            found = self._server.patch(key, patch, status=status)
        except (errors.Conflict, errors.NotFound) as error:
            log.debug("%s", error)
            self._refresh(key)
            return False
        self.observe(kind, found)
        return True

    def _refresh(self, key: Key) -> None:
        """Ask for one object anew."""
        kind = kinds()[key.kind]
        found = self._server.get(key)
        mine = found is not None and found["spec"].get("nodeName") == self.node
        with self._lock:
            known = self._entries.get(key)
            if known is not None:
                metadata = known.resource.metadata
                if found is None or not mine or found["metadata"]["uid"] != metadata.uid:
                    self._forget(metadata.uid, _version(known.resource))
        if found is not None and mine:
            self.observe(kind, found)

    def _entry(self, key: Key, uid: str | None) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None or uid not in (None, entry.resource.metadata.uid):
            return None
        return entry

    def record_event(self, key: Key, uid: str, type: EventType, reason: str, message: str) -> None:
        """Record an event on the node, and post it to the server in due time."""
        self._local.record_event(key, uid, type, reason, message)
        self._poster.post(key, uid, type, reason, message)

    def begin_step(
        self,
        key: Key,
        uid: str,
        verb: str,
        target: str,
        detail: Mapping[str, Any] | None = None,
    ) -> int:
        return self._local.begin_step(key, uid, verb, target, detail)

    def end_step(self, id: int, error: str = "") -> None:
        self._local.end_step(id, error)

    def unfinished_steps(self) -> builtins.list[Step]:
        return self._local.unfinished_steps()

    def runtime(self, uid: str) -> dict[str, Any]:
        return self._local.runtime(uid)

    def set_runtime(self, uid: str, data: Mapping[str, Any]) -> None:
        self._local.set_runtime(uid, data)


def _given_up(resource: AnyResource) -> bool:
    """Whether another agent took this one's node for silent, and wrote so."""
    ready = condition(resource.status, "Ready")
    return ready is not None and ready.reason in (errors.NoAgent.reason, errors.NodeSilent.reason)


def parse(kind: Kind, found: Object) -> AnyResource:
    """An object of the server as a resource.

    :raises errors.InvalidSpec: this release can't read it.
    """
    try:
        return Resource(
            kind=kind,
            metadata=_metadata(found["metadata"]),
            spec=kind.spec.model_validate(found.get("spec", {})),
            status=kind.status.model_validate(found.get("status") or {}),
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        name = found["metadata"]["name"]
        raise errors.InvalidSpec(
            f"{kind.name} {name} can't be read by this release: {where}: {first['msg']}.",
            hint="Install the CRDs of the agent's own release.",
        ) from error


def _metadata(found: Object) -> Metadata:
    return Metadata(
        name=found["name"],
        namespace=found.get("namespace", ""),
        labels=found.get("labels", {}),
        annotations=found.get("annotations", {}),
        uid=found["uid"],
        generation=found.get("generation", 0),
        resource_version=found["resourceVersion"],
        creation_timestamp=found["creationTimestamp"],
        deletion_timestamp=found.get("deletionTimestamp"),
        finalizers=tuple(name for name in found.get("finalizers", ()) if name == FINALIZER),
    )


def _version(resource: AnyResource) -> int:
    return _number(resource.metadata.resource_version)


def _number(version: str) -> int:
    """A resource version as a number: they are decimal and comparable (Kubernetes 1.35 API)."""
    return int(version)


def tested(field: str, value: object) -> dict[str, Any]:
    """The step of a patch without which it does not hold: a field of the metadata is as read."""
    return {"op": "test", "path": f"/metadata/{field}", "value": value}


def _contended(key: Key) -> errors.Inaccessible:
    return errors.Inaccessible(
        f"The finalizer of {key} could not be written: others keep on writing the object."
    )
