"""Partitions as a pool's volumes: made, filled, encrypted, grown and deleted.

A partition without contents is written into the table in one go, after what stood there was
cleared. One that gets contents when it is made has a reserved name until they are all there. So
under its own name it is complete, or not there.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from backends import (
    blockvolumes,
    diskspace,
    disktables,
    errors,
    filling,
    luksdevices,
    madefor,
    names,
)
from backends.base import (
    Backend,
    BackendContext,
    OpenVolume,
    Pool,
    Progress,
    Verb,
    Volume,
    VolumeFacts,
    Work,
)
from backends.foundvolumes import lasting_path, permissions_of, set_node_permissions
from backends.host import devices, partitions
from backends.host.devices import BlockDevice, DeviceExtent
from backends.host.marks import Mark, Origin
from backends.host.partitions import Extent, Partition, Table
from backends.images import encrypting


class DiskVolumes(Backend):
    """A backend whose volumes are the partitions of its pool's disk."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self.locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        """One change of a table at a time, by disk."""
        self.paths: dict[tuple[str, str], str] = {}
        """Path of each volume as last observed, by the pool's uid and the volume's name."""
        self.filling: set[tuple[str, str]] = set()
        """Disks and reserved names of partitions that a thread is filling."""

    def observe_volumes(
        self, pool: Pool, disk: BlockDevice, table: Table
    ) -> dict[str, VolumeFacts]:
        known = partitions.shown(disk.node)
        found = {}
        for name, item in self._named(pool, disk, table).items():
            node = known[item.number].node if item.number in known else ""
            facts = _facts(pool, table, item, name, node)
            if name in pool.encrypted and node:
                facts = _decrypted(facts, disk, item, node)
            mark, owner = self.mark_of(disk, table, item), pool.owners.get(name)
            if mark is None and owner is not None and madefor.is_for(item.uuid, owner):
                mark = Mark(uid=item.uuid, resource=owner, origin="Created", name=name)
            found[name] = replace(facts, mark=mark)
        return found

    def _named(self, pool: Pool, disk: BlockDevice, table: Table) -> dict[str, Partition]:
        """The complete partitions by the names of their volumes."""
        marks = {item.number: self.mark_of(disk, table, item) for item in table.partitions}
        staged = {item.number for _, item in self.staged(pool, disk, table)}
        complete = replace(
            table, partitions=tuple(item for item in table.partitions if item.number not in staged)
        )
        known = partitions.shown(disk.node)
        return {name: item for item, name in disktables.named(pool, complete, marks, known)}

    def staged(
        self, pool: Pool, disk: BlockDevice, table: Table
    ) -> Iterator[tuple[str, Partition]]:
        """The partitions of ours that have not got all their contents, by their reserved names."""
        for item in table.partitions:
            mark = self.mark_of(disk, table, item)
            kept = mark.name if mark is not None else ""
            name = item.name if table.label == "gpt" else kept
            if name.startswith(names.RESERVED_PREFIX) and (
                mark is not None
                or any(madefor.is_for(item.uuid, owner) for owner in pool.owners.values())
            ):
                yield name, item

    def mark_of(self, disk: BlockDevice, table: Table, item: Partition) -> Mark | None:
        return self.context.marks.read_named(disktables.identity(disk, table, item))

    def leftovers(self, pool: Pool, disk: BlockDevice, table: Table) -> Iterator[str]:
        """Partitions that no thread fills any more, and marks of partitions that were never made,
        or are gone. A change that is under way has its mark before its partition, and the lock."""
        for name, _ in self.staged(pool, disk, table):
            if (disk.node, name) not in self.filling:
                yield name
        lock = self.locks[disk.node]
        if not lock.acquire(blocking=False):
            return
        try:
            prefix = f"partition {disktables.table_identity(disk, table)} "
            there = {disktables.identity(disk, table, item) for item in table.partitions}
            for thing, mark in sorted(self.context.marks.named(prefix).items()):
                if thing not in there:
                    yield mark.name or thing
        finally:
            lock.release()

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
        seen = self.paths.get((pool.uid, name))
        return seen or f"partition {name!r} of {self.place(pool)}"

    def check_volume(self, pool: Pool, volume: Volume) -> None:
        label = disktables.label(pool)
        if disktables.source(pool).format == "unknown":
            with contextlib.suppress(errors.StorageError):
                label = disktables.find(pool)[1].label
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
            disktables.check_gpt_name(volume.name)

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

    def show(self, pool: Pool, disk: BlockDevice, table: Table) -> None:
        if disktables.missing(pool, disk, table):
            separator = disktables.source(pool).device.part_separator
            partitions.tell_kernel(disk.node, table, separator=separator)
            devices.settle()

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        path = self.place(pool)
        if verb is Verb.CREATE_VOLUME:
            by_sfdisk = disktables.label(pool) in partitions.TYPES
            added = ("sfdisk", "--append", path) if by_sfdisk else ("parted", path, "mkpart")
            return (added, *(luksdevices.command(volume, path) if volume is not None else ()))
        if verb is Verb.SHRINK_VOLUME and volume is not None:
            raise errors.Unsupported(
                f"The partition {volume.name!r} can't be made smaller.",
                hint="Declare the capacity that it has.",
            )
        if verb in (Verb.GROW_VOLUME, Verb.DELETE_VOLUME) and volume is not None:
            disk, table = disktables.find(pool)
            item = self._partition(pool, disk, table, volume)
            if verb is Verb.DELETE_VOLUME:
                return (partitions.remove_command(path, table.label, item.number),)
            return (("sfdisk", "-N", str(item.number), path),)
        return ()

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
        with self.changing(pool) as (disk, table):
            wanted = replace(self._place(disk, table, volume), name=name)
            identity = disktables.identity(disk, table, wanted)
            self.context.marks.write_named(identity, replace(volume.mark("Created"), name=name))
            try:
                # The first sectors of an extended partition are the chain of its logical ones.
                extent = Extent(start=wanted.start, end=wanted.end)
                partitions.clear_edges(disk.node, extent)
                partitions.add(disk.node, table, wanted, volume.format or "none")
            except errors.StorageError:
                self.context.marks.clear_named(identity)
                raise
            changed = disktables.read(pool, disk)
            made = changed.at(wanted.start) if changed is not None else None
            if changed is None or made is None:
                raise errors.SystemFailure(
                    f"The partition {volume.name!r} is not where it was put on {disk.path}.",
                    hint="See what else writes to the partition table.",
                )
            self.show(pool, disk, changed)
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
            node, expected = disktables.node(disk, item), partitions.is_node_of(disk.node, item)
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
        entry = (devices.find(disktables.source(pool).device.path).node, name)
        self.filling.add(entry)
        try:
            yield self._add(pool, volume, name)
        except BaseException:
            with contextlib.suppress(errors.StorageError), self.changing(pool) as (disk, _):
                self.remove_staged(pool, disk, name)
            raise
        finally:
            self.filling.discard(entry)

    def _give_name(self, pool: Pool, volume: Volume, staged: Partition) -> None:
        """Let a partition that is complete have its name: in the table where names are kept there,
        else in its mark."""
        with self.changing(pool) as (disk, table):
            item = table.at(staged.start)
            if item is None or item.uuid != staged.uuid or item.size != staged.size:
                raise errors.SystemFailure(
                    f"The partition that was to be {volume.name!r} has gone from {disk.path}.",
                    hint="See what else writes to the partition table.",
                )
            partitions.hide(disk.node, item.number)  # so that udev learns of the name, too
            partitions.rename(disk.node, table, item.number, volume.name)
            named = replace(volume.mark("Created"), name=volume.name)
            self.context.marks.write_named(disktables.identity(disk, table, item), named)
            self.show(pool, disk, table)

    def remove_staged(self, pool: Pool, disk: BlockDevice, name: str) -> None:
        """Remove all partitions of a reserved name. The table's lock is held."""
        while table := disktables.read(pool, disk):  # numbers may change with each that goes
            found = next(
                (item for own, item in self.staged(pool, disk, table) if own == name), None
            )
            if found is None:
                self.show(pool, disk, table)
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
        disk, table = disktables.find(pool)
        item = self._partition(pool, disk, table, volume)
        mark = self.mark_of(disk, table, item)
        origin: Origin = "Created" if madefor.is_for(item.uuid, volume.resource) else "Adopted"
        if mark is not None and mark.resource == volume.resource:
            origin = mark.origin
        named = replace(volume.mark(origin), name=volume.name)
        self.context.marks.write_named(disktables.identity(disk, table, item), named)

    def resize_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        """Grow a partition into the free space that directly follows it."""
        with self.changing(pool) as (disk, table):
            item = self._ours(pool, disk, table, volume)
            before = 0
            if luksdevices.is_encrypted(volume):
                before = (
                    _payload_offset(disk, item, disktables.node(disk, item)) or encrypting.HEADER
                )
            size = diskspace.rounded(before + (volume.capacity or 0))
            if size <= item.size:
                return
            diskspace.require(disk.path, table, item, size)
            extent = Extent(start=item.start, end=item.start + size)
            partitions.clear_edges(disk.node, extent, kept=item.size)
            former, grown = disktables.identity(disk, table, item), replace(item, size=size)
            mark = self.context.marks.read_named(former) or volume.mark("Created")
            self.context.marks.write_named(disktables.identity(disk, table, grown), mark)
            partitions.resize(disk.node, table, item, size)
            if disktables.identity(disk, table, grown) != former:
                self.context.marks.clear_named(former)
            changed = disktables.read(pool, disk)
            if changed is not None:
                self.show(pool, disk, changed)

    def set_volume_permissions(self, pool: Pool, volume: Volume) -> None:
        with self.changing(pool) as (disk, table):
            item = self._ours(pool, disk, table, volume)
            set_node_permissions(disktables.node(disk, item), volume.permissions)

    @contextlib.contextmanager
    def open_volume(
        self, pool: Pool, volume: Volume, *, write: bool = False
    ) -> Iterator[OpenVolume]:
        disk, table = disktables.find(pool)
        find = self._ours if write else self._partition
        item = find(pool, disk, table, volume)
        if table.is_extended(item):
            raise errors.Unsupported(
                f"{volume.name!r} is an extended partition, whose contents are other partitions."
            )
        expected = partitions.is_node_of(disk.node, item)
        encrypted = luksdevices.is_encrypted(volume)
        with blockvolumes.opened(
            disktables.node(disk, item), write=write, encrypted=encrypted, expected=expected
        ) as contents:
            yield contents

    def users(self, pool: Pool, volume: Volume) -> tuple[str, ...]:
        """Nobody uses what the kernel does not show: its deletion may have been cut short there."""
        try:
            disk, table = disktables.find(pool)
            item = self._partition(pool, disk, table, volume)
        except errors.NotFound:
            return ()
        return (
            blockvolumes.users_of(disktables.node(disk, item))
            if disktables.is_shown(disk, item)
            else ()
        )

    def delete_volume(self, pool: Pool, volume: Volume) -> None:
        with self.changing(pool) as (disk, table):
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
            changed = disktables.read(pool, disk)
            if changed is not None:
                self.show(pool, disk, changed)

    def _require_unused(self, disk: BlockDevice, table: Table, item: Partition, name: str) -> None:
        """:raises errors.InUse: a partition is in use, or one that it would give another number."""
        for other in disktables.moved_by(table, item):
            if not disktables.is_shown(disk, other):
                continue
            node = disktables.node(disk, other)
            using = blockvolumes.users_of(node)
            if using:
                raise errors.InUse(
                    f"The partition {name!r} can't go: {node}, which it is or which it would give "
                    f"another number, is in use: {'; '.join(using)}.",
                    hint="Stop what uses it.",
                )

    def _remove(self, disk: BlockDevice, table: Table, item: Partition) -> None:
        for other in reversed(disktables.moved_by(table, item)):
            partitions.hide(disk.node, other.number)
        partitions.remove(disk.node, table, item)
        self.context.marks.clear_named(disktables.identity(disk, table, item))

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
        mark = self.mark_of(disk, table, item)
        owned = mark is not None and (mark.uid == volume.uid or mark.resource == volume.resource)
        if not owned and not madefor.is_for(item.uuid, volume.resource):
            raise errors.OwnedByOther(
                f"Partition {item.number} of {disk.path} does not carry the mark of "
                f"{volume.resource}.",
                hint="It was replaced; nothing was changed.",
            )
        return item

    @contextlib.contextmanager
    def changing(self, pool: Pool) -> Iterator[tuple[BlockDevice, Table]]:
        """Hold the disk's table while it is changed."""
        disk = devices.find(disktables.source(pool).device.path)
        with self.locks[disk.node]:
            yield disktables.find(pool)


def _facts(pool: Pool, table: Table, item: Partition, name: str, node: str) -> VolumeFacts:
    """What is to be seen of a partition; ``node`` is empty where the kernel does not show it."""
    format, declared = table.format_of(item), pool.formats.get(name)
    if declared is not None and _same_format(declared, format):
        format = declared
    path = (lasting_path(pool.target_path, node) if node else None) or node
    return VolumeFacts(
        name=name,
        path=path or f"partition {item.number} of {disktables.source(pool).device.path}",
        key=item.uuid or path,
        type="block",
        format=format,
        capacity=item.size,
        allocation=0 if table.is_extended(item) else item.size,
        physical=item.size,
        permissions=permissions_of(node) if node else None,
        extents=(
            DeviceExtent(
                device=disktables.source(pool).device.path, start=item.start, end=item.end
            ),
        ),
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
