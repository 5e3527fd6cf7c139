"""The partition table of a pool's disk: found, and what tells its parts from others."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from backends import blockvolumes, errors, names
from backends.base import Pool
from backends.host import devices, partitions
from backends.host.devices import BlockDevice
from backends.host.marks import Mark
from backends.host.partitions import Partition, Table
from backends.schema import Model, Xml
from backends.spec import Device

MAX_GPT_NAME = 36
"""UTF-16 code units of a gpt partition's name (UEFI)."""

_NOT_IN_GPT_NAMES = frozenset('"\\')
"""What would need quoting in sfdisk's scripts, and in the names that udev makes of it."""


class DiskSource(Model):
    """A disk with a partition table."""

    device: Annotated[Device, Xml("source/device")] = Field(description="The disk.")
    format: Annotated[
        Literal["unknown", "dos", "dvh", "gpt", "mac", "bsd", "pc98", "sun", "lvm2"],
        Xml("source/format/@type"),
    ] = Field("unknown", description="Partition table; unknown is written as dos.")


def source(pool: Pool) -> DiskSource:
    if not isinstance(pool.source, DiskSource):
        raise errors.InvalidSpec(f"Pool {pool.name!r} names no disk.")
    return pool.source


def label(pool: Pool) -> str:
    """The label that a build writes."""
    format = source(pool).format
    return "dos" if format == "unknown" else format


def read(pool: Pool, disk: BlockDevice) -> Table | None:
    format = source(pool).format
    return partitions.read(disk.node, disk.size, label=None if format == "unknown" else format)


def is_declared(pool: Pool, table: Table) -> bool:
    return source(pool).format in ("unknown", table.label)


def find(pool: Pool) -> tuple[BlockDevice, Table]:
    disk = devices.find(source(pool).device.path)
    table = read(pool, disk)
    if table is None or not is_declared(pool, table):
        raise errors.Inaccessible(
            f"{disk.path} has no {label(pool)} partition table.", hint="See what became of it."
        )
    return disk, table


def missing(pool: Pool, disk: BlockDevice, table: Table) -> tuple[str, ...]:
    separator = source(pool).device.part_separator
    return partitions.missing(disk.node, table, separator=separator)


def users(disk: BlockDevice) -> tuple[str, ...]:
    """Who uses a disk or a partition of it. Partitions of a map are maps, too, which alone are
    nobody's use of it."""
    parts = [seen.node for seen in partitions.shown(disk.node).values()]
    besides = frozenset(parts) if partitions.mapped_path(disk.node) else frozenset()
    found = blockvolumes.users_of(disk.node, besides=besides)
    for node in sorted(besides):
        found += tuple(f"{item} ({node})" for item in blockvolumes.users_of(node))
    return found


def node(disk: BlockDevice, item: Partition) -> str:
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


def is_shown(disk: BlockDevice, item: Partition) -> bool:
    return item.number in partitions.shown(disk.node)


def table_identity(disk: BlockDevice, table: Table) -> str:
    """What tells the table from others: its own id, or that of the disk where it has none."""
    if table.id:
        return f"{table.label} {table.id}"
    known = devices.identify(disk)
    return f"{table.label} {known.wwn or known.serial or known.id or disk.path}"


def identity(disk: BlockDevice, table: Table, item: Partition) -> str:
    """What the mark of a partition is kept under; numbers change, where others are deleted."""
    own = item.uuid if table.label == "gpt" else f"{item.start} {item.size}"
    return f"partition {table_identity(disk, table)} {own}"


def named(
    pool: Pool,
    table: Table,
    marks: dict[int, Mark | None],
    known: dict[int, partitions.Shown],
) -> Iterator[tuple[Partition, str]]:
    """The volume name of each partition: as it was made or adopted, else as the table has it.

    One without a name is ``part3``, or ``part3-2`` where another has that; by libvirt's name for
    it, ``sdb3``, it can be declared.
    """
    taken: set[str] = set()
    later = []
    for item in table.partitions:
        mark = marks[item.number]
        kept = mark.name if mark is not None else ""
        if kept not in taken and is_name(kept):
            taken.add(kept)
            yield item, kept
        else:
            later.append(item)
    for item in later:
        seen = known.get(item.number)
        libvirts = pathlib.Path(seen.node).name if seen is not None else ""
        numbered = f"part{item.number}"
        own = [name for name in (item.name, numbered) if is_name(name)]
        declared = [name for name in (*own, libvirts) if name in pool.formats]
        further = (f"{numbered}-{count}" for count in itertools.count(2))
        name = next(name for name in itertools.chain(declared, own, further) if name not in taken)
        taken.add(name)
        yield item, name


def is_name(name: str) -> bool:
    try:
        names.check_name(name, what="name")
    except errors.InvalidSpec:
        return False
    return True


def check_gpt_name(name: str) -> None:
    length = len(name.encode("utf-16-le")) // 2
    if length > MAX_GPT_NAME or _NOT_IN_GPT_NAMES & set(name):
        raise errors.InvalidSpec(
            f"{name!r} can't be the name of a gpt partition: it has at most {MAX_GPT_NAME} "
            "characters and neither quotes nor backslashes.",
            hint="Choose another volumeName.",
        )


def moved_by(table: Table, item: Partition) -> Sequence[Partition]:
    """A partition and those whose numbers its deletion changes: the later logical ones."""
    if not table.is_logical(item):
        return (item,)
    return [part for part in table.partitions if part.number >= item.number]
