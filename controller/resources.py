"""Resources: the envelope around a spec and a status, as the Kubernetes API has it."""

from __future__ import annotations

import datetime
import hashlib
import re
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Generic, TypeVar

from backends import errors
from backends.registry import pool_spec
from backends.schema import Model, violations
from backends.spec import (
    NodeSpec,
    NodeStatus,
    OperationSpec,
    OperationStatus,
    PoolStatus,
    StatusBase,
    VolumeSpec,
    VolumeStatus,
)

GROUP = "poolkeeper.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FINALIZER = f"{GROUP}/finalizer"
REQUESTED_AT = f"{GROUP}/requested-at"
PRUNE = f"{GROUP}/prune"
DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of ``kubectl get``: a JSON path and how to show it.

    :param wide: shown only with ``-o wide``.
    """

    name: str
    path: str
    type: str = "string"
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of resource, its names and its models."""

    name: str
    plural: str
    short: str
    namespaced: bool
    spec: type[Model]
    status: type[StatusBase]
    columns: tuple[Column, ...]
    selectable: tuple[str, ...] = ()
    description: str = ""

    @property
    def needs_spec(self) -> bool:
        """Whether there can be no object without a spec: it has a field that a rule asks for."""
        if any(item.is_required() for item in self.spec.model_fields.values()):
            return True
        return any(violations(self.spec()))

    @property
    def names(self) -> tuple[str, ...]:
        """What a user may call the kind, in lower case."""
        return self.name.lower(), self.plural, self.short


_READY = '.status.conditions[?(@.type=="Ready")]'
_TAIL = (
    Column(name="Ready", path=f"{_READY}.status"),
    Column(name="Status", path=f"{_READY}.message", wide=True),
    Column(name="Age", path=".metadata.creationTimestamp", type="date"),
)


@cache
def kinds() -> dict[str, Kind]:
    """All kinds by name."""
    listed = (
        Kind(
            name="StoragePool",
            plural="storagepools",
            short="spool",
            namespaced=False,
            spec=pool_spec(),
            status=PoolStatus,
            description="A storage pool of a host.",
            selectable=(".spec.nodeName", ".spec.type"),
            columns=(
                Column(name="Type", path=".spec.type"),
                Column(name="Node", path=".spec.nodeName"),
                Column(name="State", path=".status.state"),
                Column(name="Capacity", path=".status.capacity"),
                Column(name="Available", path=".status.available"),
                Column(name="Volumes", path=".status.volumes.total", type="integer"),
                Column(name="Target", path=".spec.target.path", wide=True),
                Column(name="UUID", path=".status.uuid", wide=True),
                *_TAIL,
            ),
        ),
        Kind(
            name="StorageVolume",
            plural="storagevolumes",
            short="svol",
            namespaced=True,
            spec=VolumeSpec,
            status=VolumeStatus,
            description="A volume in a storage pool.",
            selectable=(".spec.poolRef.name", ".spec.nodeName"),
            columns=(
                Column(name="Pool", path=".spec.poolRef.name"),
                Column(name="Format", path=".status.format"),
                Column(name="Capacity", path=".status.capacity"),
                Column(name="Allocation", path=".status.allocation"),
                Column(name="Path", path=".status.path", wide=True),
                Column(name="Node", path=".spec.nodeName", wide=True),
                *_TAIL,
            ),
        ),
        Kind(
            name="VolumeOperation",
            plural="volumeoperations",
            short="volop",
            namespaced=True,
            spec=OperationSpec,
            status=OperationStatus,
            description="A command on a volume, carried out once.",
            selectable=(".spec.nodeName", ".spec.volumeRef.name"),
            columns=(
                Column(name="Operation", path=".spec.operation"),
                Column(name="Volume", path=".spec.volumeRef.name"),
                Column(name="Phase", path=".status.phase"),
                Column(name="Progress", path=".status.progress.percent", type="integer"),
                Column(name="Message", path=".status.message", wide=True),
                Column(name="Node", path=".spec.nodeName", wide=True),
                Column(name="Age", path=".metadata.creationTimestamp", type="date"),
            ),
        ),
        Kind(
            name="StorageNode",
            plural="storagenodes",
            short="snode",
            namespaced=False,
            spec=NodeSpec,
            status=NodeStatus,
            description="A host and what it can serve.",
            columns=(
                Column(name="Serves", path=".status.serves"),
                Column(name="Heartbeat", path=".status.heartbeatTime", type="date"),
                Column(name="Version", path=".status.agentVersion", wide=True),
                Column(name="Boot", path=".status.bootID", wide=True),
                *_TAIL,
            ),
        ),
    )
    return {item.name: item for item in listed}


def kind_of(name: str) -> Kind:
    """A kind by its name, plural or short name, in any case.

    :raises errors.InvalidManifest: where there is none.
    """
    for item in kinds().values():
        if name.lower() in item.names:
            return item
    known = ", ".join(f"{item.plural} ({item.short})" for item in kinds().values())
    raise errors.InvalidManifest(f"There is no kind {name!r}.", hint=f"Use one of {known}.")


_OBJECT_NAME = re.compile(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII
)


def is_object_name(name: str) -> bool:
    """Whether a resource can be called so (RFC 1123 subdomain)."""
    return len(name) <= 253 and _OBJECT_NAME.fullmatch(name) is not None


def object_name(name: str) -> str:
    """A resource name (RFC 1123 subdomain) for a pool or volume; itself where it is one.

    What had to be changed ends in a hash of the name, so that ``A`` and ``a`` stay two.
    """
    if is_object_name(name):
        return name
    readable = re.sub("[^a-z0-9.]+", "-", name.lower())
    readable = re.sub(r"[-.]*\.[-.]*", ".", readable).strip("-.")[:200].rstrip("-.")
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:10]
    return f"{readable}-{digest}" if readable else f"x-{digest}"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What names a resource; ``namespace`` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.namespace, self.name) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Names, labels and book-keeping of a resource. Times are RFC 3339 in UTC."""

    name: str
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()

    def dump(self) -> dict[str, Any]:
        """As a manifest holds it, without what is not set."""
        shown = {
            "name": self.name,
            "namespace": self.namespace,
            "labels": self.labels,
            "annotations": self.annotations,
            "uid": self.uid,
            "generation": self.generation,
            "resourceVersion": self.resource_version,
            "creationTimestamp": self.creation_timestamp,
            "deletionTimestamp": self.deletion_timestamp,
            "finalizers": list(self.finalizers),
        }
        return {key: value for key, value in shown.items() if value}


S = TypeVar("S", bound=Model)
T = TypeVar("T", bound=StatusBase)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource(Generic[S, T]):
    """One resource: what is wanted (spec) and what was seen (status)."""

    kind: Kind
    metadata: Metadata
    spec: S
    status: T

    @property
    def key(self) -> Key:
        return Key(self.kind.name, self.metadata.namespace, self.metadata.name)

    @property
    def deleting(self) -> bool:
        return self.metadata.deletion_timestamp is not None

    @property
    def signature(self) -> tuple[object, ...]:
        """What a worker has to act on when it changes; status and events are not part of it."""
        metadata = self.metadata
        return (
            str(self.key),
            metadata.uid,
            metadata.generation,
            self.deleting,
            metadata.annotations.get(REQUESTED_AT, ""),
            tuple(sorted(metadata.labels.items())),
        )

    def dump(self) -> dict[str, Any]:
        """The object as the API server would give it."""
        return {
            "apiVersion": API_VERSION,
            "kind": self.kind.name,
            "metadata": self.metadata.dump(),
            "spec": self.spec.dump(),
            "status": self.status.dump(),
        }

    def manifest(self) -> dict[str, Any]:
        """What a user would write to get this resource: no book-keeping, no status."""
        kept = replace(
            self.metadata,
            uid="",
            generation=0,
            resource_version="",
            creation_timestamp="",
            deletion_timestamp=None,
            finalizers=(),
        )
        return {
            "apiVersion": API_VERSION,
            "kind": self.kind.name,
            "metadata": kept.dump(),
            "spec": self.spec.dump(),
        }


AnyResource = Resource[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A resource as a manifest declares it, before a store has seen it.

    :param file: the manifest it came from, as the user gave it; empty for standard input.
    :param line: where it begins in the file, from 1.
    """

    kind: Kind
    metadata: Metadata
    spec: Model
    file: str = ""
    line: int = 0

    @property
    def key(self) -> Key:
        return Key(self.kind.name, self.metadata.namespace, self.metadata.name)


def now() -> str:
    """The present as RFC 3339 in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
