"""Where on a disk a partition may be, and how far it may grow. All figures are bytes."""

from __future__ import annotations

from collections.abc import Sequence

from backends import errors
from backends.host.partitions import (
    ALIGNMENT,
    DOS_LOGICALS,
    DOS_PRIMARIES,
    Extent,
    Partition,
    Table,
)
from backends.sizes import format_quantity

ROUNDING = 4096
"""To which capacities are rounded up: a multiple of both sizes of sectors."""


def step(table: Table) -> int:
    """To which sizes are rounded up; on some old labels that is a cylinder."""
    return ROUNDING if table.alignment == ALIGNMENT else table.alignment


def rounded(size: int, to: int = ROUNDING) -> int:
    return -(-size // to) * to


def place(path: str, table: Table, name: str, size: int, *, extended: bool) -> int:
    """Where a new partition is to start: in the smallest stretch that it fits in, as in libvirt.
    On a dos label it is a primary one as long as there is room for that.

    :param path: of the disk, for messages.
    :param extended: whether it is to be the one that holds the logical ones.
    :raises errors.NoSpace: it fits nowhere.
    """
    if extended and table.extended is not None:
        raise errors.Unsupported(
            f"{path} has an extended partition already, and can have only one.",
            hint="Use that one.",
        )
    choices: Sequence[Sequence[Extent]] = (
        () if table.full else table.free,
        () if extended or table.full_of_logical else table.logical,
    )
    for extents in choices:
        fits = [item for item in extents if item.size >= size]
        if fits:
            return min(fits, key=lambda item: (item.size, item.start)).start
    raise _no_place(path, table, name, size)


def _no_place(path: str, table: Table, name: str, size: int) -> errors.NoSpace:
    largest = max((item.size for item in (*table.free, *table.logical)), default=0)
    told = f"{path} has no place for partition {name!r} of {format_quantity(size)}"
    if table.full and largest >= size and table.label != "dos":
        return errors.NoSpace(
            f"{told}: all {table.entries} entries of its {table.label} label are taken.",
            hint="Delete a partition, or use another disk.",
        )
    if table.full and largest >= size:
        return errors.NoSpace(
            f"{told}: a dos label has {DOS_PRIMARIES} primary partitions, and there is no room "
            f"in an extended one, which has at most {DOS_LOGICALS} logical ones.",
            hint="Make a volume of format extended in place of a primary one, or use gpt.",
        )
    return errors.NoSpace(
        f"{told}: the largest stretch left has {format_quantity(largest)}.",
        hint="Delete a partition, or use a larger disk.",
    )


def require(path: str, table: Table, item: Partition, size: int) -> None:
    """Refuse to grow a partition into what is not free and directly behind it.

    :raises errors.NoSpace: with how far it can grow.
    """
    if table.is_extended(item):
        raise errors.Unsupported(f"The extended partition of {path} can't grow.", hint="Use gpt.")
    following = [part for part in table.partitions if part.start > item.start]
    logical = table.is_logical(item)
    if logical and any(map(table.is_logical, following)):
        # The record of the next one stands somewhere in between.
        raise errors.NoSpace(
            f"Partition {item.number} of {path} can't grow: of logical partitions only the last "
            "one can.",
            hint="Use gpt.",
        )
    end = _end_of_free_space(table.logical if logical else table.free, item, following)
    if item.start + size > end:
        raise errors.NoSpace(
            f"Partition {item.number} of {path} can't grow to {format_quantity(size)}: the free "
            f"space behind it ends at {format_quantity(end - item.start)}.",
            hint="Delete what stands behind it, or make a new volume.",
        )


def _end_of_free_space(
    extents: Sequence[Extent], item: Partition, following: Sequence[Partition]
) -> int:
    """Where the stretch that touches a partition's end ends; the partition's end for none.

    A stretch begins where a new partition could, which is up to two steps behind.
    """
    behind = [part for part in extents if part.start >= item.end]
    nearest = min(behind, key=lambda part: part.start, default=None)
    if nearest is None or any(item.end <= part.start < nearest.start for part in following):
        return item.end
    return nearest.end
