"""Pools on the partitions of a disk (libvirt's disk).

On a gpt label the partition's name is the volume's, and its UUID is made of the name of the
resource that it was made for, so that what is ours is known also when all state is lost. The entry
is written in one go, after what stood there was cleared: a partition is complete or not there.
One that gets contents when it is made has a reserved name until they are all there.
Other labels keep neither, so the state directory has both, under the disk's identity and the
partition's bounds, which unlike its number never change.
"""

from __future__ import annotations

import contextlib
import pathlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal, get_args

from pydantic import Field

from backends import blockvolumes, diskspace, errors, filling, luksdevices, madefor, names
from backends.base import (
    Backend,
    BackendContext,
    FreeExtent,
    OpenVolume,
    Operation,
    Pool,
    PoolFacts,
    PoolType,
    Presence,
    Progress,
    Verb,
    Volume,
    VolumeFacts,
    Work,
)
from backends.foundvolumes import CONTENTS, lasting_path, permissions_of, set_node_permissions
from backends.host import devices, partitions, signatures
from backends.host.devices import BlockDevice, DeviceExtent
from backends.host.marks import Mark, Origin
from backends.host.needs import Needs
from backends.host.partitions import Extent, Partition, Table
from backends.images import encrypting
from backends.schema import Model, Xml
from backends.spec import Device, PartitionFormat

MAX_GPT_NAME = 36
"""UTF-16 code units of a gpt partition's name (UEFI)."""

_NOT_IN_GPT_NAMES = frozenset('"\\')
"""What would need quoting in sfdisk's scripts, and in the names that udev makes of it."""


_NOT_MADE = {
    "lvm2": "it is a disk that LVM has",
    "pc98": "Linux shows no partitions of it",
}


class DiskSource(Model):
    """A disk with a partition table."""

    device: Annotated[Device, Xml("source/device")] = Field(description="The disk.")
    format: Annotated[
        Literal["unknown", "dos", "dvh", "gpt", "mac", "bsd", "pc98", "sun", "lvm2"],
        Xml("source/format/@type"),
    ] = Field("unknown", description="Partition table; unknown is written as dos.")


class DiskBackend(Backend):
    """A partition table that is made, and its partitions."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        """One change of a table at a time, by disk."""
        self._paths: dict[tuple[str, str], str] = {}
        """Path of each volume as last observed, by the pool's uid and the volume's name."""
        self._filling: set[tuple[str, str]] = set()
        """Disks and reserved names of partitions that a thread is filling."""

    def claims(self, pool: Pool) -> frozenset[str]:
        return frozenset({f"device {pathlib.Path(_source(pool).device.path).resolve()}"})

    def place(self, pool: Pool) -> str:
        return _source(pool).device.path

    def observe(self, pool: Pool) -> PoolFacts:
        try:
            disk = devices.find(_source(pool).device.path)
            table = _read(pool, disk)
            if table is None or not _is_declared(pool, table):
                return _without_table(disk)
            return self._observe_table(pool, disk, table)
        except errors.StorageError as error:
            return PoolFacts(presence=Presence.UNREACHABLE, detail=error.message.rstrip("."))

    def _observe_table(self, pool: Pool, disk: BlockDevice, table: Table) -> PoolFacts:
        identity = _table_identity(disk, table)
        listed = self._volumes(pool, disk, table)
        self._paths.update({(pool.uid, name): facts.path for name, facts in listed.items()})
        free = sum(item.size for item in (*table.free, *table.logical))
        found = tuple(
            FreeExtent(start=item.start, end=item.end)
            for item in sorted((*table.free, *table.logical), key=lambda item: item.start)
        )
        in_step = not _missing(pool, disk, table)
        return PoolFacts(
            presence=Presence.PRESENT,
            mark=self._pool_mark(pool, table, identity),
            active=None if in_step else False,
            devices=(devices.identify(disk, uuid=table.id or None),),
            capacity=disk.size,
            allocation=disk.size - free,
            available=free,
            volumes=listed,
            free_extents=found,
            leftovers=tuple(self._leftovers(pool, disk, table)),
        )

    def _pool_mark(self, pool: Pool, table: Table, identity: str) -> Mark | None:
        mark = self.context.marks.read_named(f"partition table {identity}")
        if mark is None and madefor.is_for(table.id, pool.resource):
            return Mark(uid=table.id, resource=pool.resource, origin="Created")
        return mark

    def _volumes(self, pool: Pool, disk: BlockDevice, table: Table) -> dict[str, VolumeFacts]:
        known = partitions.shown(disk.node)
        found = {}
        for name, item in self._named(pool, disk, table).items():
            node = known[item.number].node if item.number in known else ""
            facts = _facts(pool, table, item, name, node)
            if name in pool.encrypted and node:
                facts = _decrypted(facts, disk, item, node)
            mark, owner = self._mark(disk, table, item), pool.owners.get(name)
            if mark is None and owner is not None and madefor.is_for(item.uuid, owner):
                mark = Mark(uid=item.uuid, resource=owner, origin="Created", name=name)
            found[name] = replace(facts, mark=mark)
        return found

    def _named(self, pool: Pool, disk: BlockDevice, table: Table) -> dict[str, Partition]:
        """The complete partitions by the names of their volumes."""
        marks = {item.number: self._mark(disk, table, item) for item in table.partitions}
        staged = {item.number for _, item in self._staged(pool, disk, table)}
        complete = replace(
            table, partitions=tuple(item for item in table.partitions if item.number not in staged)
        )
        known = partitions.shown(disk.node)
        return {name: item for item, name in _names(pool, complete, marks, known)}

    def _staged(
        self, pool: Pool, disk: BlockDevice, table: Table
    ) -> Iterator[tuple[str, Partition]]:
        """The partitions of ours that have not got all their contents, by their reserved names."""
        for item in table.partitions:
            mark = self._mark(disk, table, item)
            kept = mark.name if mark is not None else ""
            name = item.name if table.label == "gpt" else kept
            if name.startswith(names.RESERVED_PREFIX) and (
                mark is not None
                or any(madefor.is_for(item.uuid, owner) for owner in pool.owners.values())
            ):
                yield name, item

    def _mark(self, disk: BlockDevice, table: Table, item: Partition) -> Mark | None:
        return self.context.marks.read_named(_identity(disk, table, item))

    def _leftovers(self, pool: Pool, disk: BlockDevice, table: Table) -> Iterator[str]:
        """Partitions that no thread fills any more, and marks of partitions that were never made,
        or are gone. A change that is under way has its mark before its partition, and the lock."""
        for name, _ in self._staged(pool, disk, table):
            if (disk.node, name) not in self._filling:
                yield name
        lock = self._locks[disk.node]
        if not lock.acquire(blocking=False):
            return
        try:
            prefix = f"partition {_table_identity(disk, table)} "
            there = {_identity(disk, table, item) for item in table.partitions}
            for thing, mark in sorted(self.context.marks.named(prefix).items()):
                if thing not in there:
                    yield mark.name or thing
        finally:
            lock.release()

    def clean(self, pool: Pool) -> None:
        with self._changing(pool) as (disk, table):
            for name, _ in self._staged(pool, disk, table):
                if (disk.node, name) not in self._filling:
                    self._remove_staged(pool, disk, name)
            prefix = f"partition {_table_identity(disk, table)} "
            there = {_identity(disk, table, item) for item in table.partitions}
            for thing in self.context.marks.named(prefix):
                if thing not in there:
                    self.context.marks.clear_named(thing)

    def same_format(self, declared: str, observed: str) -> bool:
        return _same_format(declared, observed)

    def granularity(self, format: str | None) -> int:
        return diskspace.ROUNDING

    def space_needed(self, pool: Pool, volume: Volume) -> int:
        return diskspace.rounded(luksdevices.sized(volume).capacity or 0)

    def takes_long(self, verb: Verb, pool: Pool, volume: Volume) -> bool:
        encrypts = verb is Verb.CREATE_VOLUME and luksdevices.is_encrypted(volume)
        return encrypts or super().takes_long(verb, pool, volume)

    def volume_path(self, pool: Pool, name: str) -> str:
        """Where the partition was seen last; one that never was has no path yet."""
        seen = self._paths.get((pool.uid, name))
        return seen or f"partition {name!r} of {self.place(pool)}"

    def check_volume(self, pool: Pool, volume: Volume) -> None:
        label = _label(pool)
        if _source(pool).format == "unknown":
            with contextlib.suppress(errors.StorageError):
                label = _find(pool)[1].label
        if volume.backing_path is not None:
            raise errors.Unsupported(
                f"Volume {volume.name!r} is to be a partition, which stands on no other image.",
                hint="Leave backingStore out.",
            )
        if volume.format == "extended" and label != "dos":
            raise errors.Unsupported(
                f"A {label} label has no extended partitions.", hint="Leave format out."
            )
        self._check_contents(volume)
        if label == "gpt":
            _check_gpt_name(volume.name)

    def _check_contents(self, volume: Volume) -> None:
        luksdevices.check(volume)
        if not filling.has_source(volume) and not volume.capacity:
            raise errors.InvalidSpec(
                f"The partition {volume.name!r} needs a capacity.", hint="Give one."
            )
        if volume.format == "extended" and _has_contents(volume):
            raise errors.Unsupported(
                f"{volume.name!r} is to be an extended partition, whose contents are other "
                "partitions.",
                hint="Leave source and encryption out, or format.",
            )
        filling.check(replace(volume, format="raw"))

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        path = self.place(pool)
        if verb is Verb.BUILD_POOL:
            return partitions.table_commands(path, _label(pool))
        if verb is Verb.CREATE_VOLUME:
            by_sfdisk = _label(pool) in partitions.TYPES
            added = ("sfdisk", "--append", path) if by_sfdisk else ("parted", path, "mkpart")
            return (added, *(luksdevices.command(volume, path) if volume is not None else ()))
        if verb is Verb.SHRINK_VOLUME and volume is not None:
            raise errors.Unsupported(
                f"The partition {volume.name!r} can't be made smaller.",
                hint="Declare the capacity that it has.",
            )
        if verb in (Verb.GROW_VOLUME, Verb.DELETE_VOLUME) and volume is not None:
            disk, table = _find(pool)
            item = self._partition(pool, disk, table, volume)
            if verb is Verb.DELETE_VOLUME:
                return (partitions.remove_command(path, table.label, item.number),)
            return (("sfdisk", "-N", str(item.number), path),)
        return ()

    def build(self, pool: Pool, *, overwrite: bool) -> None:
        """Write an empty table, where nothing is found or it may be overwritten."""
        disk = devices.find(_source(pool).device.path)
        label = _label(pool)
        if label in _NOT_MADE:
            raise errors.Unsupported(
                f"A label {label} can't be made: {_NOT_MADE[label]}.",
                hint="Use gpt or dos, or a pool of type logical.",
            )
        with self._locks[disk.node]:
            devices.settle()
            using = _users(disk)
            if using:
                raise errors.InUse(
                    f"{disk.path} is in use: {'; '.join(using)}.", hint="Stop what uses it."
                )
            found = signatures.probe(disk.node)
            if not (found.empty or overwrite):
                raise errors.OverwriteRefused(
                    f"{disk.path} holds {found}.", hint="Nothing was changed."
                )
            for number in partitions.shown(disk.node):
                partitions.hide(disk.node, number)
            made = madefor.new(pool.resource) if label == "gpt" else ""
            partitions.make_table(disk.node, label, id=made)
            self._write_pool_mark(pool, disk, pool.mark("Created"))
            devices.settle()

    def adopt(self, pool: Pool) -> None:
        disk, table = _find(pool)
        mark = self._pool_mark(pool, table, _table_identity(disk, table))
        origin: Origin = "Adopted"
        if mark is not None and mark.resource == pool.resource:
            origin = mark.origin
        self._write_pool_mark(pool, disk, pool.mark(origin))

    def _write_pool_mark(self, pool: Pool, disk: BlockDevice, mark: Mark) -> None:
        table = _read(pool, disk)
        if table is not None:
            identity = _table_identity(disk, table)
            self.context.marks.write_named(f"partition table {identity}", mark)

    def start(self, pool: Pool) -> None:
        """Have the kernel show the partitions that the table has."""
        with self._changing(pool) as (disk, table):
            self._show(pool, disk, table)

    def _show(self, pool: Pool, disk: BlockDevice, table: Table) -> None:
        if _missing(pool, disk, table):
            separator = _source(pool).device.part_separator
            partitions.tell_kernel(disk.node, table, separator=separator)
            devices.settle()

    def delete(self, pool: Pool) -> None:
        """Remove the table, which has to be empty and ours."""
        with self._changing(pool) as (disk, table):
            identity = _table_identity(disk, table)
            mark = self._pool_mark(pool, table, identity)
            if mark is None or mark.resource != pool.resource or mark.origin != "Created":
                raise errors.OwnedByOther(
                    f"The partition table of {disk.path} does not carry the mark of "
                    f"{pool.resource}.",
                    hint="It was replaced; nothing was changed.",
                )
            if table.partitions:
                raise errors.DeletionRefused(
                    f"{disk.path} still has partitions.", hint="Delete them first."
                )
            partitions.clear_edges(disk.node, Extent(start=0, end=disk.size))
            self.context.marks.clear_named(f"partition table {identity}")
            devices.settle()

    def create_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        self.check_volume(pool, volume)
        if _has_contents(volume):
            size = self._make_with_contents(pool, volume, work)
        else:
            size = self._add(pool, volume, volume.name)[1].size
        self.set_volume_permissions(pool, volume)
        work.report(Progress(done=size, total=size))

    def _add(self, pool: Pool, volume: Volume, name: str) -> tuple[BlockDevice, Partition]:
        """Make the partition of a volume, empty and under any name, and show it."""
        with self._changing(pool) as (disk, table):
            wanted = replace(self._place(disk, table, volume), name=name)
            identity = _identity(disk, table, wanted)
            self.context.marks.write_named(identity, replace(volume.mark("Created"), name=name))
            try:
                # The first sectors of an extended partition are the chain of its logical ones.
                extent = Extent(start=wanted.start, end=wanted.end)
                partitions.clear_edges(disk.node, extent)
                partitions.add(disk.node, table, wanted, volume.format or "none")
            except errors.StorageError:
                self.context.marks.clear_named(identity)
                raise
            changed = _read(pool, disk)
            made = changed.at(wanted.start) if changed is not None else None
            if changed is None or made is None:
                raise errors.SystemFailure(
                    f"The partition {volume.name!r} is not where it was put on {disk.path}.",
                    hint="See what else writes to the partition table.",
                )
            self._show(pool, disk, changed)
            return disk, made

    def _make_with_contents(self, pool: Pool, volume: Volume, work: Work) -> int:
        """Make a partition that is encrypted, or has the contents of its source; its bytes."""
        if not filling.has_source(volume):
            return self._make_staged(pool, volume, None, work)
        with (
            filling.Scratch() as scratch,
            filling.opened_source(volume, self.context, work, scratch) as source,
        ):
            sized = replace(volume, capacity=filling.capacity(volume, source))
            return self._make_staged(pool, sized, source, work)

    def _make_staged(
        self, pool: Pool, volume: Volume, source: OpenVolume | None, work: Work
    ) -> int:
        with self._staged_partition(pool, luksdevices.sized(volume)) as (disk, item):
            node, expected = _node(disk, item), partitions.is_node_of(disk.node, item)
            encrypted = luksdevices.is_encrypted(volume)
            if encrypted:
                with blockvolumes.opened(node, write=True, expected=expected) as made:
                    luksdevices.make(made, volume, self.context, work)
            if source is not None:
                with blockvolumes.opened(
                    node, write=True, encrypted=encrypted, expected=expected
                ) as made:
                    filling.fill(volume, source, made, self.context, work)
            work.check()
            self._give_name(pool, volume, item)
        return item.size

    def remake_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        """Give an encrypted partition that was wiped a header anew."""
        with self.open_volume(pool, volume.bare, write=True) as opened:
            luksdevices.make(opened, volume, self.context, work)

    @contextlib.contextmanager
    def _staged_partition(
        self, pool: Pool, volume: Volume
    ) -> Iterator[tuple[BlockDevice, Partition]]:
        """A new partition under a reserved name; if it still has that after an error it goes."""
        name = names.staged_name(volume.uid)
        entry = (devices.find(_source(pool).device.path).node, name)
        self._filling.add(entry)
        try:
            yield self._add(pool, volume, name)
        except BaseException:
            with contextlib.suppress(errors.StorageError), self._changing(pool) as (disk, _):
                self._remove_staged(pool, disk, name)
            raise
        finally:
            self._filling.discard(entry)

    def _give_name(self, pool: Pool, volume: Volume, staged: Partition) -> None:
        """Let a partition that is complete have its name: in the table where names are kept there,
        else in its mark."""
        with self._changing(pool) as (disk, table):
            item = table.at(staged.start)
            if item is None or item.uuid != staged.uuid or item.size != staged.size:
                raise errors.SystemFailure(
                    f"The partition that was to be {volume.name!r} has gone from {disk.path}.",
                    hint="See what else writes to the partition table.",
                )
            partitions.hide(disk.node, item.number)  # so that udev learns of the name, too
            partitions.rename(disk.node, table, item.number, volume.name)
            named = replace(volume.mark("Created"), name=volume.name)
            self.context.marks.write_named(_identity(disk, table, item), named)
            self._show(pool, disk, table)

    def _remove_staged(self, pool: Pool, disk: BlockDevice, name: str) -> None:
        """Remove all partitions of a reserved name. The table's lock is held."""
        while table := _read(pool, disk):  # numbers may change with each that goes
            found = next(
                (item for own, item in self._staged(pool, disk, table) if own == name), None
            )
            if found is None:
                self._show(pool, disk, table)
                return
            self._require_unused(disk, table, found, name)
            self._remove(disk, table, found)

    def _place(self, disk: BlockDevice, table: Table, volume: Volume) -> Partition:
        """The partition that a new volume is to be."""
        size = diskspace.rounded(volume.capacity or 0, diskspace.step(table))
        extended = volume.format == "extended"
        start = diskspace.place(disk.path, table, volume.name, size, extended=extended)
        made_for = madefor.new(volume.resource) if table.label == "gpt" else ""
        return Partition(number=0, start=start, size=size, uuid=made_for, name=volume.name)

    def adopt_volume(self, pool: Pool, volume: Volume) -> None:
        disk, table = _find(pool)
        item = self._partition(pool, disk, table, volume)
        mark = self._mark(disk, table, item)
        origin: Origin = "Created" if madefor.is_for(item.uuid, volume.resource) else "Adopted"
        if mark is not None and mark.resource == volume.resource:
            origin = mark.origin
        named = replace(volume.mark(origin), name=volume.name)
        self.context.marks.write_named(_identity(disk, table, item), named)

    def resize_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        """Grow a partition into the free space that directly follows it."""
        with self._changing(pool) as (disk, table):
            item = self._ours(pool, disk, table, volume)
            before = 0
            if luksdevices.is_encrypted(volume):
                before = _payload_offset(disk, item, _node(disk, item)) or encrypting.HEADER
            size = diskspace.rounded(before + (volume.capacity or 0))
            if size <= item.size:
                return
            diskspace.require(disk.path, table, item, size)
            extent = Extent(start=item.start, end=item.start + size)
            partitions.clear_edges(disk.node, extent, kept=item.size)
            former, grown = _identity(disk, table, item), replace(item, size=size)
            mark = self.context.marks.read_named(former) or volume.mark("Created")
            self.context.marks.write_named(_identity(disk, table, grown), mark)
            partitions.resize(disk.node, table, item, size)
            if _identity(disk, table, grown) != former:
                self.context.marks.clear_named(former)
            changed = _read(pool, disk)
            if changed is not None:
                self._show(pool, disk, changed)

    def set_volume_permissions(self, pool: Pool, volume: Volume) -> None:
        with self._changing(pool) as (disk, table):
            item = self._ours(pool, disk, table, volume)
            set_node_permissions(_node(disk, item), volume.permissions)

    @contextlib.contextmanager
    def open_volume(
        self, pool: Pool, volume: Volume, *, write: bool = False
    ) -> Iterator[OpenVolume]:
        disk, table = _find(pool)
        find = self._ours if write else self._partition
        item = find(pool, disk, table, volume)
        if table.is_extended(item):
            raise errors.Unsupported(
                f"{volume.name!r} is an extended partition, whose contents are other partitions."
            )
        expected = partitions.is_node_of(disk.node, item)
        encrypted = luksdevices.is_encrypted(volume)
        with blockvolumes.opened(
            _node(disk, item), write=write, encrypted=encrypted, expected=expected
        ) as contents:
            yield contents

    def users(self, pool: Pool, volume: Volume) -> tuple[str, ...]:
        """Nobody uses what the kernel does not show: its deletion may have been cut short there."""
        try:
            disk, table = _find(pool)
            item = self._partition(pool, disk, table, volume)
        except errors.NotFound:
            return ()
        return blockvolumes.users_of(_node(disk, item)) if _is_shown(disk, item) else ()

    def delete_volume(self, pool: Pool, volume: Volume) -> None:
        with self._changing(pool) as (disk, table):
            try:
                item = self._ours(pool, disk, table, volume)
            except errors.NotFound:
                return
            if table.is_extended(item) and any(map(table.is_logical, table.partitions)):
                held = sorted(
                    name
                    for name, found in self._named(pool, disk, table).items()
                    if table.is_logical(found)
                )
                raise errors.DeletionRefused(
                    f"The extended partition {volume.name!r} holds {', '.join(held)}.",
                    hint="Delete these first.",
                )
            self._require_unused(disk, table, item, volume.name)
            self._remove(disk, table, item)
            changed = _read(pool, disk)
            if changed is not None:
                self._show(pool, disk, changed)

    def _require_unused(self, disk: BlockDevice, table: Table, item: Partition, name: str) -> None:
        """:raises errors.InUse: a partition is in use, or one that it would give another number."""
        for other in _moved_by(table, item):
            using = blockvolumes.users_of(_node(disk, other)) if _is_shown(disk, other) else ()
            if using:
                raise errors.InUse(
                    f"The partition {name!r} can't go: {_node(disk, other)}, which it is or which "
                    f"it would give another number, is in use: {'; '.join(using)}.",
                    hint="Stop what uses it.",
                )

    def _remove(self, disk: BlockDevice, table: Table, item: Partition) -> None:
        for other in reversed(_moved_by(table, item)):
            partitions.hide(disk.node, other.number)
        partitions.remove(disk.node, table, item)
        self.context.marks.clear_named(_identity(disk, table, item))

    def _partition(self, pool: Pool, disk: BlockDevice, table: Table, volume: Volume) -> Partition:
        """The partition that a volume is.

        :raises errors.NotFound: there is none.
        """
        found = self._named(pool, disk, table).get(volume.name)
        if found is not None:
            return found
        raise errors.NotFound(f"There is no partition {volume.name!r} on {disk.path}.")

    def _ours(self, pool: Pool, disk: BlockDevice, table: Table, volume: Volume) -> Partition:
        """The same, looked at once more: what was planned may have been replaced since."""
        item = self._partition(pool, disk, table, volume)
        mark = self._mark(disk, table, item)
        owned = mark is not None and (mark.uid == volume.uid or mark.resource == volume.resource)
        if not owned and not madefor.is_for(item.uuid, volume.resource):
            raise errors.OwnedByOther(
                f"Partition {item.number} of {disk.path} does not carry the mark of "
                f"{volume.resource}.",
                hint="It was replaced; nothing was changed.",
            )
        return item

    @contextlib.contextmanager
    def _changing(self, pool: Pool) -> Iterator[tuple[BlockDevice, Table]]:
        """Hold the disk's table while it is changed."""
        disk = devices.find(_source(pool).device.path)
        with self._locks[disk.node]:
            yield _find(pool)


def _facts(pool: Pool, table: Table, item: Partition, name: str, node: str) -> VolumeFacts:
    """What is to be seen of a partition; ``node`` is empty where the kernel does not show it."""
    format, declared = table.format_of(item), pool.formats.get(name)
    if declared is not None and _same_format(declared, format):
        format = declared
    path = (lasting_path(pool.target_path, node) if node else None) or node
    return VolumeFacts(
        name=name,
        path=path or f"partition {item.number} of {_source(pool).device.path}",
        key=item.uuid or path,
        type="block",
        format=format,
        capacity=item.size,
        allocation=0 if table.is_extended(item) else item.size,
        physical=item.size,
        permissions=permissions_of(node) if node else None,
        extents=(DeviceExtent(device=_source(pool).device.path, start=item.start, end=item.end),),
        granularity=diskspace.step(table),
    )


def _decrypted(facts: VolumeFacts, disk: BlockDevice, item: Partition, node: str) -> VolumeFacts:
    """The facts of a partition that is declared to be encrypted."""
    try:
        return luksdevices.seen(facts, _payload_offset(disk, item, node))
    except errors.StorageError as error:
        return replace(facts, problem=error.message.rstrip("."))


def _payload_offset(disk: BlockDevice, item: Partition, node: str) -> int | None:
    expected = partitions.is_node_of(disk.node, item)
    with blockvolumes.opened(node, expected=expected) as opened:
        return luksdevices.payload_offset(opened)


def _has_contents(volume: Volume) -> bool:
    """Whether something is to be written to a partition before it is complete."""
    return filling.has_source(volume) or luksdevices.is_encrypted(volume)


def _same_format(declared: str, observed: str) -> bool:
    """Labels tell few types apart: no format is any but extended, and gpt has one for FAT."""
    if declared == "none":
        return observed != "extended"
    return declared == observed or {declared, observed} == {"fat16", "fat32"}


def _without_table(disk: BlockDevice) -> PoolFacts:
    """What to say of a disk that has not the declared table: what a build would write over."""
    found = signatures.probe(disk.node)
    using = _users(disk)
    if using:
        devices.settle()  # udev looks at a device that has just come, or was just written to
        using = _users(disk)
    told = [f"{disk.path} holds {found}"] if not found.empty else []
    told += [f"{disk.path} is in use: {'; '.join(using)}"] if using else []
    return PoolFacts(
        presence=Presence.ABSENT,
        detail=f"{disk.path} has no partition table of the declared kind",
        data_found=" and ".join(told),
        devices=(devices.identify(disk, uuid=found.uuid),),
    )


def _source(pool: Pool) -> DiskSource:
    if not isinstance(pool.source, DiskSource):
        raise errors.InvalidSpec(f"Pool {pool.name!r} names no disk.")
    return pool.source


def _label(pool: Pool) -> str:
    """The label that a build writes."""
    format = _source(pool).format
    return "dos" if format == "unknown" else format


def _read(pool: Pool, disk: BlockDevice) -> Table | None:
    format = _source(pool).format
    return partitions.read(disk.node, disk.size, label=None if format == "unknown" else format)


def _is_declared(pool: Pool, table: Table) -> bool:
    return _source(pool).format in ("unknown", table.label)


def _find(pool: Pool) -> tuple[BlockDevice, Table]:
    disk = devices.find(_source(pool).device.path)
    table = _read(pool, disk)
    if table is None or not _is_declared(pool, table):
        raise errors.Inaccessible(
            f"{disk.path} has no {_label(pool)} partition table.", hint="See what became of it."
        )
    return disk, table


def _missing(pool: Pool, disk: BlockDevice, table: Table) -> tuple[str, ...]:
    separator = _source(pool).device.part_separator
    return partitions.missing(disk.node, table, separator=separator)


def _users(disk: BlockDevice) -> tuple[str, ...]:
    """Who uses a disk or a partition of it. Partitions of a map are maps, too, which alone are
    nobody's use of it."""
    parts = [seen.node for seen in partitions.shown(disk.node).values()]
    besides = frozenset(parts) if partitions.mapped_path(disk.node) else frozenset()
    found = blockvolumes.users_of(disk.node, besides=besides)
    for node in sorted(besides):
        found += tuple(f"{item} ({node})" for item in blockvolumes.users_of(node))
    return found


def _node(disk: BlockDevice, item: Partition) -> str:
    seen = partitions.shown(disk.node).get(item.number)
    if seen is None:
        devices.settle()  # a change of another partition may be under way
        seen = partitions.shown(disk.node).get(item.number)
    if seen is None:
        raise errors.Inaccessible(
            f"The kernel does not show partition {item.number} of {disk.path}.",
            hint="It is shown by the next look.",
        )
    return seen.node


def _is_shown(disk: BlockDevice, item: Partition) -> bool:
    return item.number in partitions.shown(disk.node)


def _table_identity(disk: BlockDevice, table: Table) -> str:
    """What tells the table from others: its own id, or that of the disk where it has none."""
    if table.id:
        return f"{table.label} {table.id}"
    known = devices.identify(disk)
    return f"{table.label} {known.wwn or known.serial or known.id or disk.path}"


def _identity(disk: BlockDevice, table: Table, item: Partition) -> str:
    """What the mark of a partition is kept under; numbers change, where others are deleted."""
    own = item.uuid if table.label == "gpt" else f"{item.start} {item.size}"
    return f"partition {_table_identity(disk, table)} {own}"


def _names(
    pool: Pool,
    table: Table,
    marks: dict[int, Mark | None],
    known: dict[int, partitions.Shown],
) -> Iterator[tuple[Partition, str]]:
    """The volume name of each partition: as it was made or adopted, else as the table has it.

    One without a name is ``part3``; by libvirt's name for it, ``sdb3``, it can be declared.
    """
    taken: set[str] = set()
    later = []
    for item in table.partitions:
        mark = marks[item.number]
        kept = mark.name if mark is not None else ""
        if kept not in taken and _is_name(kept):
            taken.add(kept)
            yield item, kept
        else:
            later.append(item)
    for item in later:
        seen = known.get(item.number)
        libvirts = pathlib.Path(seen.node).name if seen is not None else ""
        own = [name for name in (item.name, f"part{item.number}") if _is_name(name)]
        declared = [name for name in (*own, libvirts) if name in pool.formats]
        name = next(name for name in (*declared, *own, f"part{item.number}") if name not in taken)
        taken.add(name)
        yield item, name


def _is_name(name: str) -> bool:
    try:
        names.check_name(name, what="name")
    except errors.InvalidSpec:
        return False
    return True


def _check_gpt_name(name: str) -> None:
    length = len(name.encode("utf-16-le")) // 2
    if length > MAX_GPT_NAME or _NOT_IN_GPT_NAMES & set(name):
        raise errors.InvalidSpec(
            f"{name!r} can't be the name of a gpt partition: it has at most {MAX_GPT_NAME} "
            "characters and neither quotes nor backslashes.",
            hint="Choose another volumeName.",
        )


def _moved_by(table: Table, item: Partition) -> Sequence[Partition]:
    """A partition and those whose numbers its deletion changes: the later logical ones."""
    if not table.is_logical(item):
        return (item,)
    return [part for part in table.partitions if part.number >= item.number]


POOL_TYPE = PoolType(
    name="disk",
    order=5,
    description="The partitions of a disk.",
    source=DiskSource,
    volume_formats=get_args(PartitionFormat),
    default_volume_format="none",
    operations=frozenset(
        {
            Operation.BUILD,
            Operation.START,
            Operation.STOP,
            Operation.DELETE,
            Operation.CREATE_VOLUME,
            Operation.CLONE_VOLUME,
            Operation.IMPORT_VOLUME,
            Operation.DELETE_VOLUME,
            Operation.GROW_VOLUME,
        }
    )
    | CONTENTS,
    needs=Needs(programs=("sfdisk", "wipefs", "partx")),
    format_needs={label: Needs(programs=("parted",)) for label in ("dvh", "mac", "bsd", "sun")},
    backend=DiskBackend,
)
