"""All declared resources at one moment, and what they say about each other."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

from backends import errors
from backends.base import Backend, CloneFrom, Pool, Volume
from backends.registry import pool_type
from backends.spec import Permissions, VolumeSpec
from controller.resources import AnyResource, Key
from controller.summarising import PROGRESSING, condition

UNBOUND = ""
"""Stands for the pool of volumes that ask for one by labels and have none yet."""


class World:
    """Resources by key. Building one costs a pass over them; it never changes afterwards."""

    def __init__(self, resources: Iterable[AnyResource], *, node: str) -> None:
        self.node = node
        self.resources: dict[Key, AnyResource] = {item.key: item for item in resources}

    def replacing(self, resource: AnyResource) -> World:
        """The same world with one resource as it is now."""
        return World({**self.resources, resource.key: resource}.values(), node=self.node)

    @cached_property
    def marks(self) -> frozenset[str]:
        """What a mark of ownership may name and bind somebody."""
        return frozenset(str(key) for key in self.resources)

    @cached_property
    def _volumes(self) -> dict[str, list[AnyResource]]:
        found: defaultdict[str, list[AnyResource]] = defaultdict(list)
        for item in self.resources.values():
            if item.kind.name == "StorageVolume":
                found[pool_name(item)].append(item)
        return found

    def pools(self) -> Iterator[AnyResource]:
        """The pools that this node keeps."""
        for item in self.resources.values():
            if item.kind.name == "StoragePool" and item.spec.node_name in (None, self.node):
                yield item

    def pool(self, name: str) -> AnyResource | None:
        return self.resources.get(Key("StoragePool", "", name))

    def volumes(self, pool: str) -> list[AnyResource]:
        """Volumes that name the pool, those that others stand on first."""
        return _bases_first(self._volumes.get(pool, []))

    def operations(self, pool: str) -> list[AnyResource]:
        """Operations on volumes that name the pool, oldest first; for ``UNBOUND``, those on volumes
        that nobody declares too."""
        return self._operations.get(pool, [])

    @cached_property
    def _operations(self) -> dict[str, list[AnyResource]]:
        found: defaultdict[str, list[AnyResource]] = defaultdict(list)
        for item in sorted(self.resources.values(), key=_age):
            if item.kind.name == "VolumeOperation":
                volume = self.resources.get(volume_of(item))
                found[pool_name(volume) if volume else UNBOUND].append(item)
        return found

    def concerning(self, pool: str) -> list[AnyResource]:
        """All that a pass over the pool has to act on."""
        own = self.pool(pool)
        return [*self.volumes(pool), *self.operations(pool), *([own] if own else [])]

    def pool_names(self) -> set[str]:
        """Names of the pools that this node keeps, or that a volume names and nobody declares;
        ``UNBOUND`` among them where a volume waits for a pool, or an operation for a volume."""
        undeclared = {name for name in self._volumes if self.pool(name) is None}
        kept = {item.metadata.name for item in self.pools()} | undeclared
        return kept | {UNBOUND} if self._operations.get(UNBOUND) else kept

    def declare_pool(self, resource: AnyResource) -> Pool:
        """The pool as its backend sees it."""
        kind = pool_type(resource.spec.type)
        claims = self._first_claims.get(resource.metadata.name, {})
        formats = {
            name: item.spec.format or kind.default_volume_format for name, item in claims.items()
        }
        encrypted = (name for name, item in claims.items() if item.spec.encryption is not None)
        return Pool(
            uid=resource.metadata.uid,
            resource=str(resource.key),
            name=resource.spec.pool_name or resource.metadata.name,
            spec=resource.spec,
            type=kind,
            formats=formats,
            encrypted=frozenset(encrypted),
            owners={name: str(item.key) for name, item in claims.items()},
        )

    def declare_volume(self, resource: AnyResource, pool: Pool, backend: Backend) -> Volume:
        """The volume as its backend sees it, with all defaults filled in.

        Where the resource is going, it is enough to know what it is called.

        :raises errors.BackingMissing: where it stands on a volume that is not there.
        :raises errors.InvalidSpec: where it stands on itself.
        :raises errors.NamespaceNotAllowed: where the pool, or that of a volume it stands on, is
            not for its namespace.
        :raises errors.Unsupported: for a format that the pool type has not.
        """
        spec: VolumeSpec = resource.spec
        if not resource.deleting:
            self._admit(resource, pool_name(resource))
        formats = pool.type.volume_formats
        if spec.format is not None and spec.format not in formats and not resource.deleting:
            known = f"Use one of {', '.join(formats)}." if formats else "Leave format out."
            raise errors.Unsupported(
                f"Pools of type {pool.type.name} have no volumes of format {spec.format!r}.",
                hint=known,
            )
        volume = Volume(
            uid=resource.metadata.uid,
            resource=str(resource.key),
            namespace=resource.metadata.namespace,
            name=volume_name(resource),
            spec=spec,
            format=spec.format or pool.type.default_volume_format,
            capacity=spec.capacity,
            permissions=_permissions(spec, pool),
        )
        store = spec.backing_store
        if store is None or resource.deleting:
            return volume
        path = store.path or self._backing_path(resource, pool, backend)
        if not path.startswith("/"):
            path = backend.volume_path(pool, path)
        path = os.path.normpath(path)  # as it is resolved from the image's header
        if path == backend.volume_path(pool, volume.name):
            raise _stands_on_itself(resource, ())
        return replace(volume, backing_path=path, backing_format=store.format)

    def backing_key(self, resource: AnyResource) -> Key | None:
        """The volume that a volume stands on, where it names one."""
        return _backing_key(resource)

    def source_key(self, resource: AnyResource) -> Key | None:
        """The volume that a volume is a clone of, where it is one."""
        return _source_key(resource)

    def clone_from(
        self,
        resource: AnyResource,
        backend_of: Callable[[str], Backend],
        *,
        foreseen: bool = False,
    ) -> CloneFrom | None:
        """The volume that a new one is to be filled from; None where it is no clone.

        :param backend_of: serves a pool type.
        :param foreseen: as if all that is declared were there.
        :raises errors.NotFound: it is not declared, or not there for some trouble.
        :raises errors.NotYet: it is being made.
        :raises errors.InUse: it is being deleted.
        :raises errors.InvalidSpec: it is a clone of the new one, by whatever way.
        :raises errors.NamespaceNotAllowed: its pool is not for the new one's namespace.
        :raises errors.Unsupported: another node keeps it.
        """
        key = _source_key(resource)
        if key is None:
            return None
        self._refuse_loop(resource, _needed_key)
        source, pool = self._source_of_clone(resource, key, foreseen=foreseen)
        backend, declared = backend_of(pool.spec.type), self.declare_pool(pool)
        return CloneFrom(
            resource=str(key),
            pool=declared,
            volume=self.declare_volume(source, declared, backend),
            backend=backend,
            reflink=resource.spec.source.clone.reflink,
            capacity=source.status.capacity or source.spec.capacity,
        )

    def _source_of_clone(
        self, resource: AnyResource, key: Key, *, foreseen: bool
    ) -> tuple[AnyResource, AnyResource]:
        """The volume that is to be copied, and its pool."""
        source = self.resources.get(key)
        if source is None:
            raise errors.NotFound(
                f"{resource.key} is a clone of {key}, which is not declared.", hint="Declare it."
            )
        name = pool_name(source)
        self._admit(resource, name)
        pool = self.pool(name)
        if source.deleting:
            raise errors.InUse(f"{key}, of which {resource.key} is a clone, is being deleted.")
        if pool is None or (source.status.path is None and not foreseen):
            missing = errors.NotYet if _is_made(source) else errors.NotFound
            raise missing(
                f"{resource.key} is a clone of {key}, which is not there yet.",
                hint="It is made as soon as that is there.",
            )
        if pool.spec.node_name not in (None, self.node):
            raise errors.Unsupported(
                f"{key}, of which {resource.key} is a clone, is on node {pool.spec.node_name}.",
                hint="Clone a volume of this node, or download that one and upload it.",
            )
        return source, pool

    def _backing_path(self, resource: AnyResource, pool: Pool, backend: Backend) -> str:
        self._refuse_loop(resource, _backing_key)
        key = _backing_key(resource)
        base = self.resources.get(key) if key else None
        if base is None:
            raise errors.BackingMissing(
                f"{resource.key} stands on {key}, which is not declared.",
                hint="Declare it, or give backingStore.path.",
            )
        self._admit(resource, pool_name(base))
        if pool_name(base) == pool_name(resource):
            return backend.volume_path(pool, volume_name(base))
        if base.status.path is None:
            missing = errors.NotYet if _is_made(base) else errors.BackingMissing
            raise missing(
                f"{resource.key} stands on {key}, which is not there yet.",
                hint="It is made as soon as its backing volume is there.",
            )
        return str(base.status.path)

    def _refuse_loop(
        self, resource: AnyResource, needed: Callable[[AnyResource], Key | None]
    ) -> None:
        below: list[Key] = []
        current: AnyResource | None = resource
        while current is not None and (key := needed(current)) and key not in below:
            if key == resource.key:
                raise _stands_on_itself(resource, below)
            below.append(key)
            current = self.resources.get(key)

    def conflicts(
        self, resource: AnyResource, claims: dict[Key, frozenset[str]]
    ) -> list[errors.StorageError]:
        """Claims of a pool that another pool of this node made first."""
        mine = claims.get(resource.key, frozenset())
        found: list[errors.StorageError] = []
        for other in sorted(self.pools(), key=precedence):
            if other.key == resource.key or precedence(other) > precedence(resource):
                continue
            for shared in sorted(mine & claims.get(other.key, frozenset())):
                found.append(
                    errors.Conflict(
                        f"{resource.key} and {other.key} both stand on {shared}; {other.key} came "
                        "first.",
                        hint="Change or delete one of them.",
                    )
                )
        return found

    def entitled(self, volume: AnyResource) -> bool:
        """Whether a volume counts among those of its pool: it may stand there, or stood there
        before the pool's ``allowedNamespaces`` left its namespace out."""
        return volume.status.origin is not None or self._allowed(volume, pool_name(volume))

    def _allowed(self, volume: AnyResource, pool: str) -> bool:
        found = self.pool(pool)
        allowed = found.spec.allowed_namespaces if found else None
        return allowed is None or volume.metadata.namespace in allowed

    def _admit(self, volume: AnyResource, pool: str) -> None:
        if not self._allowed(volume, pool):
            namespace = volume.metadata.namespace
            raise errors.NamespaceNotAllowed(
                f"{volume.key} may not use pool {pool!r}: namespace {namespace!r} is not among "
                "the pool's allowedNamespaces.",
                hint="Have the namespace added to the pool's spec.allowedNamespaces, or use "
                "another pool.",
            )

    @cached_property
    def _first_claims(self) -> dict[str, dict[str, AnyResource]]:
        """Who came first, by pool and by volume name."""
        found: defaultdict[str, dict[str, AnyResource]] = defaultdict(dict)
        for pool, volumes in self._volumes.items():
            claims = found[pool]
            for item in filter(self.entitled, volumes):
                first = claims.setdefault(volume_name(item), item)
                if precedence(item) < precedence(first):
                    claims[volume_name(item)] = item
        return found

    def volume_conflicts(self, resource: AnyResource) -> list[errors.StorageError]:
        """Another volume of the same name in the same pool that came first."""
        pool, name = pool_name(resource), volume_name(resource)
        first = self._first_claims.get(pool, {}).get(name, resource)
        if first.key == resource.key:
            return []
        return [
            errors.Conflict(
                f"{resource.key} and {first.key} both declare volume {name!r} of pool {pool!r}; "
                f"{first.key} came first.",
                hint="Choose another volumeName, or delete one of them.",
            )
        ]


def volume_of(operation: AnyResource) -> Key:
    """The volume that an operation is about."""
    return Key("StorageVolume", operation.metadata.namespace, operation.spec.volume_ref.name)


def pool_name(resource: AnyResource) -> str:
    """Name of the pool that holds the volume; ``UNBOUND`` while none was chosen."""
    reference = resource.spec.pool_ref
    return str(reference.name) if reference is not None else UNBOUND


def _age(resource: AnyResource) -> tuple[str, str]:
    return resource.metadata.creation_timestamp, str(resource.key)


def volume_name(resource: AnyResource) -> str:
    """The volume's name in its pool."""
    return str(resource.spec.volume_name or resource.metadata.name)


def _permissions(spec: VolumeSpec, pool: Pool) -> Permissions:
    defaults = pool.spec.volume_defaults.permissions if pool.spec.volume_defaults else None
    own = spec.permissions or Permissions()
    if defaults is None:
        return own
    given: dict[str, Any] = {
        name: getattr(own, name) if getattr(own, name) is not None else getattr(defaults, name)
        for name in Permissions.model_fields
    }
    return Permissions.model_construct(**given)


def _is_made(volume: AnyResource) -> bool:
    """Whether a volume that is not there is on its way, as far as is known."""
    ready = condition(volume.status, "Ready")
    return ready is None or ready.reason in (PROGRESSING, "Pending")


def _backing_key(resource: AnyResource) -> Key | None:
    store = resource.spec.backing_store
    if store is None or store.volume_ref is None:
        return None
    namespace = store.volume_ref.namespace or resource.metadata.namespace
    return Key("StorageVolume", namespace, store.volume_ref.name)


def _source_key(resource: AnyResource) -> Key | None:
    source = resource.spec.source
    if source is None or source.clone is None:
        return None
    reference = source.clone.volume_ref
    namespace = reference.namespace or resource.metadata.namespace
    return Key("StorageVolume", namespace, reference.name)


def _needed_key(resource: AnyResource) -> Key | None:
    """The volume without which it can't be made; a volume has a backing image or a source."""
    return _backing_key(resource) or _source_key(resource)


def _stands_on_itself(resource: AnyResource, between: Iterable[Key]) -> errors.InvalidSpec:
    way = " on ".join(map(str, between))
    return errors.InvalidSpec(
        f"{resource.key} stands {f'on {way}, and that ' if way else ''}on itself: a loop.",
        hint="Change a backingStore or a source.",
    )


def precedence(resource: AnyResource) -> tuple[str, bool, str]:
    """Order in which resources came: by time; in one second, who holds the thing already first."""
    holds = getattr(resource.status, "origin", None) or getattr(resource.status, "built", None)
    return resource.metadata.creation_timestamp, not holds, str(resource.key)


def _bases_first(volumes: list[AnyResource]) -> list[AnyResource]:
    known = {item.key: item for item in volumes}
    ordered: dict[Key, AnyResource] = {}
    for item in volumes:
        chain = []
        current: AnyResource | None = item
        while current is not None and current.key not in ordered and current not in chain:
            chain.append(current)
            key = _needed_key(current)
            current = known.get(key) if key else None
        ordered.update((link.key, link) for link in reversed(chain))
    return list(ordered.values())
