"""What a pool type is, what is observed of a pool, and what can be done to it.

A pool type is a module in this package with a ``POOL_TYPE``. The planner in ``controller`` decides
from facts alone what has to be done; a ``Backend`` observes those facts and does one thing at a
time. A backend decides nothing: it neither reads policies nor compares sizes.
"""

from __future__ import annotations

import enum
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, get_args

from backends import errors
from backends.host.devices import DeviceExtent, Identity
from backends.host.files import Permissions as PermissionFacts
from backends.host.marks import Mark, MarkStore, Origin
from backends.host.needs import NOTHING, Needs
from backends.schema import Model
from backends.spec import (
    Device,
    Permissions,
    PoolSpecBase,
    SecretRef,
    SourceQuery,
    ThinPoolStatus,
    VolumeSpec,
)


class TargetUse(enum.Enum):
    """What ``target.path`` means for a pool type."""

    REQUIRED = "required"
    DERIVED = "derived"
    NONE = "none"


class Operation(enum.Enum):
    """What a backend can do; the capability table of a pool type is a set of these."""

    BUILD = "build"
    START = "start"
    STOP = "stop"
    DELETE = "delete"
    CREATE_VOLUME = "create volume"
    CLONE_VOLUME = "clone volume"
    IMPORT_VOLUME = "import volume"
    DELETE_VOLUME = "delete volume"
    GROW_VOLUME = "grow volume"
    SHRINK_VOLUME = "shrink volume"
    FIND_SOURCES = "find sources"
    WIPE_VOLUME = "wipe volume"
    UPLOAD = "upload"
    DOWNLOAD = "download"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolType:
    """One pool type: its spec member, its names and defaults, and what serves it.

    :param name: libvirt's spelling (``iscsi-direct``).
    :param order: place in libvirt's list of pool types; own types come after.
    :param source: model of the member that the type's name selects.
    :param source_name: field of ``source`` that names the source on the host; where it is left out
        the pool's name stands for it (libvirt: virStoragePoolOptions, SOURCE_NAME).
    :param target: what ``target.path`` means.
    :param target_template: path of a derived target, with ``{source}`` for the source's name.
    :param volume_formats: formats that volumes may have; empty where volumes have no format.
    :param default_volume_format: format of a volume that gives none.
    :param needs: what a host has to have for any pool of the type.
    :param format_needs: what it has to have beside, by format of the source; where every format
        that is listed here lacks something, and no other is left, the type can't be served.
    :param backend: makes the backend; None where this release can read and write the type's
        manifests and XML and can't serve it.
    """

    name: str
    order: int
    description: str
    source: type[Model]
    source_name: str | None = None
    target: TargetUse = TargetUse.REQUIRED
    target_template: str = ""
    volume_formats: tuple[str, ...] = ()
    default_volume_format: str | None = None
    operations: frozenset[Operation] = frozenset()
    needs: Needs = NOTHING
    format_needs: Mapping[str, Needs] = field(default_factory=dict, hash=False)
    backend: Callable[[BackendContext], Backend] | None = None

    @property
    def member(self) -> str:
        """The field of the pool's spec that holds ``source``: ``iscsiDirect``."""
        head, *rest = self.name.split("-")
        return head + "".join(part.capitalize() for part in rest)

    @property
    def attribute(self) -> str:
        """The same as a Python attribute: ``iscsi_direct``."""
        return self.name.replace("-", "_")

    @property
    def member_required(self) -> bool:
        """Whether the member has a field that can't be left out."""
        return any(item.is_required() for item in self.source.model_fields.values())

    @property
    def found_only(self) -> bool:
        """Whether what its pools stand on is found and not made, so that it is nobody's to own."""
        return self.backend is not None and Operation.BUILD not in self.operations

    @property
    def finds_volumes(self) -> bool:
        """Whether volumes are found in its pools and can't be made there."""
        return self.backend is not None and Operation.CREATE_VOLUME not in self.operations

    @property
    def source_formats(self) -> tuple[str, ...]:
        """Formats of the source that a manifest may name, default included."""
        item = self.source.model_fields.get("format")
        return get_args(item.annotation) if item is not None else ()

    @property
    def default_source_format(self) -> str | None:
        item = self.source.model_fields.get("format")
        return item.default if item is not None else None


class Presence(enum.Enum):
    """Whether the backing of a pool is there. Unreachable is never taken for absent."""

    PRESENT = "present"
    ABSENT = "absent"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One image that a volume stands on; ``present`` is None for what is not a file."""

    path: str
    format: str | None
    present: bool | None
    capacity: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFacts:
    """What was observed of a volume; sizes in bytes.

    :param format: the declared format where that is taken at its word, else what the header shows.
    :param header_format: what the header shows in any case; None where that is nothing more.
    :param extents: where it stands on devices, in the order of its contents.
    """

    name: str
    path: str
    key: str
    type: Literal["file", "block", "dir", "network", "netdir", "ploop"]
    format: str | None
    capacity: int | None
    allocation: int | None
    header_format: str | None = None
    physical: int | None = None
    permissions: PermissionFacts | None = None
    mark: Mark | None = None
    encryption: str | None = None
    compat: str | None = None
    cluster_size: int | None = None
    lazy_refcounts: bool | None = None
    extended_l2: bool | None = None
    backing_path: str | None = None
    backing_format: str | None = None
    backing_chain: tuple[Link, ...] = ()
    extents: tuple[DeviceExtent, ...] = ()
    granularity: int | None = None
    """Bytes to which the host rounds this volume's capacity up; None for its format's own."""
    problem: str = ""
    """Why the volume can't be read or used as it is; empty where all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeExtent:
    """A stretch of a disk that no partition takes; ``end`` is the first byte past it."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Something of a pool that runs full.

    :param percent: how full it is, by the last threshold that it has passed.
    :param told: a sentence.
    """

    percent: int
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """What was observed of a pool in one scan; sizes in bytes.

    :param detail: why the pool is not present, or is degraded.
    :param active: whether the pool is started; None for types that the kernel keeps no such
        state of, where what was done in this boot counts.
    :param data_found: what a probe found where a build would write; empty for nothing.
    :param listed: whether volumes, sizes and permissions could be seen; not so in a pool that has
        to be started first.
    :param adoptable: whether what was found is of the kind that is declared, so that the pool can
        stand on it; where it is not, only a build that may overwrite it goes on.
    :param devices: what tells the pool's devices from others, of those that are there.
    :param warnings: what a user should know though all is well, each a sentence.
    :param free_extents: of a disk, where further partitions could be.
    :param leftovers: half-made things of ours, by name, that no one is working on.
    :param skipped: entries that are not volumes, with the reason.
    :param shortages: what of the pool runs full.
    :param spoken_for: bytes of what is available that steps under way still need.
    :param growth: why the backing is to be made larger, in a sentence; empty where it is not.
    :param thin_pool: how full the pool's thin pool is, where it has one.
    """

    presence: Presence
    detail: str = ""
    mark: Mark | None = None
    active: bool | None = None
    degraded: bool = False
    data_found: str = ""
    listed: bool = True
    adoptable: bool = True
    devices: tuple[Identity, ...] = ()
    warnings: tuple[str, ...] = ()
    capacity: int | None = None
    allocation: int | None = None
    available: int | None = None
    spoken_for: int = 0
    permissions: PermissionFacts | None = None
    volumes: Mapping[str, VolumeFacts] = field(default_factory=dict)
    free_extents: tuple[FreeExtent, ...] = ()
    leftovers: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    shortages: tuple[Shortage, ...] = ()
    growth: str = ""
    thin_pool: ThinPoolStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A declared pool as a backend sees it.

    :param resource: the declaring resource, ``StoragePool/images``.
    :param formats: declared formats by volume name. What a guest wrote into a volume that is
        declared raw is never taken for a header.
    :param encrypted: names of the volumes that are declared encrypted. A LUKS header in another
        raw volume is its guest's.
    :param owners: the declaring resources of volumes, by volume name.
    """

    uid: str
    resource: str
    name: str
    spec: PoolSpecBase
    type: PoolType
    formats: Mapping[str, str | None] = field(default_factory=dict)
    encrypted: frozenset[str] = frozenset()
    owners: Mapping[str, str] = field(default_factory=dict)

    def mark(self, origin: Origin) -> Mark:
        return Mark(uid=self.uid, resource=self.resource, origin=origin)

    @property
    def source(self) -> Model | None:
        """The member that the type names."""
        found = getattr(self.spec, self.type.attribute, None)
        return found if isinstance(found, Model) else None

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices that its source names."""
        several = getattr(self.source, "devices", ())
        one = getattr(self.source, "device", None)
        return tuple(item for item in (*several, one) if isinstance(item, Device))

    @property
    def source_name(self) -> str:
        """The name of the source on the host; the pool's own where none is given."""
        given = getattr(self.source, self.type.source_name, None) if self.type.source_name else None
        return str(given) if given else self.name

    @property
    def target_path(self) -> Path:
        """Where the pool stands on the host.

        :raises errors.InvalidSpec: for a type that has no target, or where it was left out.
        """
        if self.type.target is TargetUse.DERIVED:
            return Path(self.type.target_template.format(source=self.source_name))
        if self.spec.target is None or self.spec.target.path is None:
            raise errors.InvalidSpec(
                f"Pool {self.name!r} has no target.path.", hint="Give the directory of the pool."
            )
        return Path(self.spec.target.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneFrom:
    """The volume that a new one is filled from, as its own backend sees it.

    :param resource: that declares it.
    :param capacity: bytes, as it was seen last.
    """

    resource: str
    pool: Pool
    volume: Volume
    backend: Backend
    reflink: Literal["Auto", "Always", "Never"]
    capacity: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A declared volume as a backend sees it, with all defaults filled in.

    :param resource: the declaring resource, ``StorageVolume/default/disk1``.
    :param namespace: the resource's, in which its secrets are.
    :param format: the declared format, or the pool type's default.
    :param capacity: bytes; for an overlay without one, the backing image's, for a clone without
        one, its source's.
    :param source: for a clone that is still to be made; other sources are in ``spec``.
    :param backing_path: path of the backing image; None where there is none.
    :param permissions: the volume's own over the pool's defaults; None fields are left alone.
    """

    uid: str
    resource: str
    namespace: str = ""
    name: str
    spec: VolumeSpec
    format: str | None
    capacity: int | None
    permissions: Permissions
    backing_path: str | None = None
    backing_format: str | None = None
    source: CloneFrom | None = None

    @property
    def bare(self) -> Volume:
        """The volume as mere bytes, which no header has anything to say about."""
        spec = self.spec.model_copy(update={"encryption": None})
        return replace(self, format="raw", spec=spec)

    def mark(self, origin: Origin) -> Mark:
        return Mark(uid=self.uid, resource=self.resource, origin=origin)


class Verb(enum.StrEnum):
    """Everything that an action can do to a host."""

    BUILD_POOL = "BuildPool"
    ADOPT_POOL = "AdoptPool"
    START_POOL = "StartPool"
    STOP_POOL = "StopPool"
    SET_POOL_PERMISSIONS = "SetPoolPermissions"
    CLEAN_POOL = "CleanPool"
    GROW_POOL = "GrowPool"
    DELETE_POOL = "DeletePool"
    CREATE_VOLUME = "CreateVolume"
    ADOPT_VOLUME = "AdoptVolume"
    GROW_VOLUME = "GrowVolume"
    SHRINK_VOLUME = "ShrinkVolume"
    WIPE_VOLUME = "WipeVolume"
    SET_VOLUME_PERMISSIONS = "SetVolumePermissions"
    DELETE_VOLUME = "DeleteVolume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Bytes done of bytes in all; ``total`` 0 where it is not known."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a running step is given beside its target: a way to report, and a way to be stopped."""

    report: Callable[[Progress], None] = lambda progress: None
    cancel: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Called between pieces of work.

        :raises errors.Cancelled: it is to stop.
        """
        if self.cancel.is_set():
            raise errors.Cancelled("It was cancelled.", hint="It is looked at anew.")

    def checkpoint(self, total: int) -> Callable[[int], None]:
        """Reports bytes done of ``total``, and checks."""

        def reached(done: int) -> None:
            self.check()
            self.report(Progress(done=done, total=total))

        return reached


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVolume:
    """A volume's contents, opened and held. Two pools exchange data through these alone.

    :param fd: of the file or device; None for what only a network client reaches.
    :param path: by which a command opens the same thing: leads to it with ``pass_fds`` open.
    :param format: as declared, or as found; None where the volume has none.
    :param size: bytes of the file or device.
    :param capacity: bytes that a user of the volume sees.
    :param backing_chain: the images that it stands on, from the top.
    :param distrusted: why nothing may follow what its header names; empty where all of that is
        declared.
    """

    fd: int | None
    path: str
    pass_fds: tuple[int, ...] = ()
    kind: Literal["file", "block", "network"]
    format: str | None
    size: int
    capacity: int
    encryption: str | None = None
    backing_chain: tuple[Link, ...] = ()
    distrusted: str = ""


class Secrets(Protocol):
    """Where passphrases and keys are read, each time anew; nothing keeps them."""

    def read(self, reference: SecretRef, *, namespace: str, key: str = "passphrase") -> bytes:
        """The value.

        :param namespace: of the resource that refers to it.
        :param key: which of a secret's values, where the reference names none.
        :raises errors.SecretUnavailable: it is not there, not readable, or readable by others.
        """


class NoSecrets:
    """Where nothing provides secrets."""

    def read(self, reference: SecretRef, *, namespace: str, key: str = "passphrase") -> bytes:
        raise errors.SecretUnavailable(
            f"Secret {reference.name or reference.usage or reference.uuid!r} can't be read: no "
            "secrets are provided here."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendContext:
    """What a backend is made with.

    :param marks: where ownership is recorded.
    :param command_timeout: seconds that a host command may take.
    """

    marks: MarkStore
    secrets: Secrets = field(default_factory=NoSecrets)
    command_timeout: float = 300.0


class Backend(ABC):
    """One pool type at work. Every step may be repeated: done already is success.

    All methods raise ``errors.StorageError``.
    """

    def __init__(self, context: BackendContext) -> None:
        self.context = context

    @abstractmethod
    def observe(self, pool: Pool) -> PoolFacts:
        """Look at the pool and all its volumes in one scan, changing nothing."""

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        """The host commands that a step would run, for a plan; empty where it runs none."""
        return ()

    def granularity(self, format: str | None) -> int:
        """Bytes to which the host rounds a volume's capacity up."""
        return 1

    def claims(self, pool: Pool) -> frozenset[str]:
        """What only one pool of a node may stand on, in words: ``directory /srv/images``."""
        return frozenset()

    def volume_path(self, pool: Pool, name: str) -> str:
        """Where a volume of that name is, or will be."""
        return str(pool.target_path / name)

    def same_format(self, declared: str, observed: str) -> bool:
        """Whether what a header shows may be a volume that is declared so."""
        return declared == observed

    def place(self, pool: Pool) -> str:
        """Where the pool is, for people: its directory, volume group or address."""
        return str(pool.target_path)

    def space_needed(self, pool: Pool, volume: Volume) -> int:
        """Bytes that making the volume takes from the pool at once."""
        return 0

    def takes_long(self, verb: Verb, pool: Pool, volume: Volume) -> bool:
        """Whether a step on a volume moves so many bytes that it is to run apart from the pass."""
        source = volume.spec.source
        filled = source is not None and source.upload is None
        return verb is Verb.WIPE_VOLUME or (verb is Verb.CREATE_VOLUME and filled)

    def check_volume(self, pool: Pool, volume: Volume) -> None:
        """Refuse, before anything is done, a volume that could never be made."""

    def find_sources(self, query: SourceQuery | None) -> tuple[Model, ...]:
        """What pools of the type could stand on, changing nothing: models of the type's source.

        :param query: the server to ask; None to look at this host.
        :raises errors.InvalidSpec: the query lacks what the type has to know, such as the host.
        """
        raise errors.Unsupported("There is no way to look for sources of pools of this type.")

    def build(self, pool: Pool, *, overwrite: bool) -> None:
        """Make what backs the pool, and mark it ours before it can be found by its name."""
        raise _unsupported(pool, "build")

    def adopt(self, pool: Pool) -> None:
        """Mark a backing that is there as ours."""
        raise _unsupported(pool, "adopt")

    def start(self, pool: Pool) -> None:
        """Make the pool usable; nothing to do for types that always are."""

    def stop(self, pool: Pool) -> None:
        """Undo ``start``, leaving all data."""

    def set_permissions(self, pool: Pool, permissions: Permissions) -> None:
        """Give the target the mode, owner, group and label that are not None."""
        raise _unsupported(pool, "change permissions of")

    def grow(self, pool: Pool) -> None:
        """Make the backing as large as is declared."""
        raise _unsupported(pool, "grow")

    def clean(self, pool: Pool) -> None:
        """Remove half-made things of ours that no one is working on."""

    def delete(self, pool: Pool) -> None:
        """Destroy what backs the pool."""
        raise _unsupported(pool, "delete")

    def create_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        """Make the volume. It appears under its name complete and marked, or not at all."""
        raise _unsupported(pool, "create volumes in")

    def adopt_volume(self, pool: Pool, volume: Volume) -> None:
        """Mark a volume that is there as ours, with origin Adopted."""
        raise _unsupported(pool, "adopt volumes in")

    def resize_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        """Give the volume the declared capacity, up or down."""
        raise _unsupported(pool, "resize volumes in")

    def open_volume(
        self, pool: Pool, volume: Volume, *, write: bool = False
    ) -> AbstractContextManager[OpenVolume]:
        """Open a volume's contents to copy, wipe, upload or download them.

        :raises errors.NotFound: it is not there.
        """
        raise _unsupported(pool, "open volumes in")

    def replace_volume(
        self, pool: Pool, volume: Volume, *, resume_at: int = 0
    ) -> AbstractContextManager[OpenVolume]:
        """Open new contents, which take the place of the volume's when the context ends in order.

        They are empty at first, and have the volume's capacity as their limit. Where the context
        ends with an error the volume is as it was. Where that is ``errors.Interrupted`` or
        ``errors.Cancelled``, what came is kept for a while (``unfinished``).

        :param resume_at: byte from which on to go on with what was kept.
        :raises errors.Conflict: less than that was kept.
        """
        raise _unsupported(pool, "replace volumes in")

    def unfinished(self, pool: Pool, volume: Volume) -> int:
        """Bytes that are kept of new contents that broke off; 0 for none."""
        return 0

    def remake_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        """Make the volume anew and empty, in the place of the one that is there."""
        raise _unsupported(pool, "make volumes anew in")

    def users(self, pool: Pool, volume: Volume) -> tuple[str, ...]:
        """Who holds the volume open, locked, mapped or mounted, each in words."""
        return ()

    def set_volume_permissions(self, pool: Pool, volume: Volume) -> None:
        """Give the volume the mode, owner, group and label that are not None."""
        raise _unsupported(pool, "change permissions of volumes in")

    def delete_volume(self, pool: Pool, volume: Volume) -> None:
        """Delete the volume if it carries our mark. Gone already is success."""
        raise _unsupported(pool, "delete volumes in")


def _unsupported(pool: Pool, doing: str) -> errors.Unsupported:
    return errors.Unsupported(
        f"Can't {doing} pool {pool.name!r}: type {pool.type.name} has no way."
    )
