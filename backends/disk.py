"""Pools on the partitions of a disk (libvirt's disk).

On a gpt label the partition's name is the volume's, and its UUID is made of the name of the
resource that it was made for, so that what is ours is known also when all state is lost. The entry
is written in one go, after what stood there was cleared: a partition is complete or not there.
One that gets contents when it is made has a reserved name until they are all there.
Other labels keep neither, so the state directory has both, under the disk's identity and the
partition's bounds, which unlike its number never change.
"""

from __future__ import annotations

import pathlib
from typing import get_args

from backends import disktables, errors, madefor
from backends.base import (
    FreeExtent,
    Operation,
    Pool,
    PoolFacts,
    PoolType,
    Presence,
    Verb,
    Volume,
)
from backends.disktables import DiskSource
from backends.diskvolumes import DiskVolumes
from backends.foundvolumes import CONTENTS
from backends.host import devices, partitions, signatures
from backends.host.devices import BlockDevice
from backends.host.marks import Mark, Origin
from backends.host.needs import Needs
from backends.host.partitions import Extent, Table
from backends.spec import PartitionFormat

_NOT_MADE = {
    "lvm2": "it is a disk that LVM has",
    "pc98": "Linux shows no partitions of it",
}


class DiskBackend(DiskVolumes):
    """A partition table that is made, and its partitions."""

    def claims(self, pool: Pool) -> frozenset[str]:
        return frozenset({f"device {pathlib.Path(disktables.source(pool).device.path).resolve()}"})

    def place(self, pool: Pool) -> str:
        return disktables.source(pool).device.path

    def observe(self, pool: Pool) -> PoolFacts:
        try:
            disk = devices.find(disktables.source(pool).device.path)
            table = disktables.read(pool, disk)
            if table is None or not disktables.is_declared(pool, table):
                return _without_table(disk)
            return self._observe_table(pool, disk, table)
        except errors.StorageError as error:
            return PoolFacts(presence=Presence.UNREACHABLE, detail=error.message.rstrip("."))

    def _observe_table(self, pool: Pool, disk: BlockDevice, table: Table) -> PoolFacts:
        identity = disktables.table_identity(disk, table)
        listed = self.observe_volumes(pool, disk, table)
        self.paths.update({(pool.uid, name): facts.path for name, facts in listed.items()})
        free = sum(item.size for item in (*table.free, *table.logical))
        found = tuple(
            FreeExtent(start=item.start, end=item.end)
            for item in sorted((*table.free, *table.logical), key=lambda item: item.start)
        )
        in_step = not disktables.missing(pool, disk, table)
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
            leftovers=tuple(self.leftovers(pool, disk, table)),
        )

    def _pool_mark(self, pool: Pool, table: Table, identity: str) -> Mark | None:
        mark = self.context.marks.read_named(f"partition table {identity}")
        if mark is None and madefor.is_for(table.id, pool.resource):
            return Mark(uid=table.id, resource=pool.resource, origin="Created")
        return mark

    def clean(self, pool: Pool) -> None:
        with self.changing(pool) as (disk, table):
            for name, _ in self.staged(pool, disk, table):
                if (disk.node, name) not in self.filling:
                    self.remove_staged(pool, disk, name)
            prefix = f"partition {disktables.table_identity(disk, table)} "
            there = {disktables.identity(disk, table, item) for item in table.partitions}
            for thing in self.context.marks.named(prefix):
                if thing not in there:
                    self.context.marks.clear_named(thing)

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        if verb is Verb.BUILD_POOL:
            return partitions.table_commands(self.place(pool), disktables.label(pool))
        return super().commands(verb, pool, volume)

    def build(self, pool: Pool, *, overwrite: bool) -> None:
        """Write an empty table, where nothing is found or it may be overwritten."""
        disk = devices.find(disktables.source(pool).device.path)
        label = disktables.label(pool)
        if label in _NOT_MADE:
            raise errors.Unsupported(
                f"A label {label} can't be made: {_NOT_MADE[label]}.",
                hint="Use gpt or dos, or a pool of type logical.",
            )
        with self.locks[disk.node]:
            devices.settle()
            using = disktables.users(disk)
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
        disk, table = disktables.find(pool)
        mark = self._pool_mark(pool, table, disktables.table_identity(disk, table))
        origin: Origin = "Adopted"
        if mark is not None and mark.resource == pool.resource:
            origin = mark.origin
        self._write_pool_mark(pool, disk, pool.mark(origin))

    def _write_pool_mark(self, pool: Pool, disk: BlockDevice, mark: Mark) -> None:
        table = disktables.read(pool, disk)
        if table is not None:
            identity = disktables.table_identity(disk, table)
            self.context.marks.write_named(f"partition table {identity}", mark)

    def start(self, pool: Pool) -> None:
        """Have the kernel show the partitions that the table has."""
        with self.changing(pool) as (disk, table):
            self.show(pool, disk, table)

    def delete(self, pool: Pool) -> None:
        """Remove the table, which has to be empty and ours."""
        with self.changing(pool) as (disk, table):
            identity = disktables.table_identity(disk, table)
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


def _without_table(disk: BlockDevice) -> PoolFacts:
    """What to say of a disk that has not the declared table: what a build would write over."""
    found = signatures.probe(disk.node)
    using = disktables.users(disk)
    if using:
        devices.settle()  # udev looks at a device that has just come, or was just written to
        using = disktables.users(disk)
    told = [f"{disk.path} holds {found}"] if not found.empty else []
    told += [f"{disk.path} is in use: {'; '.join(using)}"] if using else []
    return PoolFacts(
        presence=Presence.ABSENT,
        detail=f"{disk.path} has no partition table of the declared kind",
        data_found=" and ".join(told),
        devices=(devices.identify(disk, uuid=found.uuid),),
    )


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
