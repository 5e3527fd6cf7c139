"""Names and command lines of logical volumes."""

from __future__ import annotations

from pathlib import Path

from backends import names
from backends.base import Pool, Volume
from backends.host import lvm
from backends.host.lvm import LogicalVolume, VolumeGroup
from backends.sizes import round_up

THIN_POOL = "thin-pool"
"""Name of a pool's thin pool where none is declared."""

SECTOR = 512


def path_of(group: VolumeGroup, name: str) -> str:
    return f"/dev/{group.name}/{name}"


def staged_name(volume: Volume) -> str:
    """The reserved name under which a volume is made."""
    return names.staged_name(volume.uid)


def size_arguments(size: int, option: str = "--size") -> tuple[str, str]:
    return (option, f"{round_up(size, SECTOR)}b")


def is_thin(pool: Pool) -> bool:
    """Whether new volumes of the pool take their space as they are written."""
    return getattr(pool.source, "provisioning", "Thick") == "Thin"


def thin_pool_name(pool: Pool) -> str:
    wanted = getattr(pool.source, "thin_pool", None)
    return wanted.name if wanted is not None else THIN_POOL


def is_sparse(pool: Pool, volume: Volume) -> bool:
    """Whether a volume is to be a snapshot of nothing, with space for less than its capacity."""
    allocation = volume.spec.allocation
    if volume.backing_path is not None or is_thin(pool) or allocation is None:
        return False
    return allocation < (volume.capacity or 0)


def name_beneath(pool: Pool, volume: Volume) -> str:
    """What LVM adds to a volume's name for the longest-named device that it stands on."""
    if is_sparse(pool, volume):
        return "_vorigin-real"
    return "" if volume.backing_path is None or is_thin(pool) else "-cow"


def creation(pool: Pool, volume: Volume, origin: LogicalVolume | None) -> tuple[str, ...]:
    """The command that makes a volume under its reserved name, with its tags.

    An origin makes a snapshot. In a pool for thick volumes an allocation below the capacity makes
    what libvirt makes of it: a snapshot of nothing, with that much space.
    """
    group, capacity = pool.source_name, volume.capacity or 0
    common = ("--yes", "--name", staged_name(volume), *lvm.marking(volume.mark("Created")))
    if volume.backing_path is not None:
        place = f"{group}/{Path(volume.backing_path).name}"
        if origin is not None and origin.thin:
            thin = ("--snapshot", "--setactivationskip", "n")
            return ("lvcreate", *thin, *common, place)
        space = volume.spec.allocation or capacity or (origin.capacity if origin else 0)
        return ("lvcreate", "--snapshot", *size_arguments(space), *common, place)
    if is_thin(pool):
        size = size_arguments(capacity, "--virtualsize")
        kind = ("--type", "thin", "--thinpool", thin_pool_name(pool))
        return ("lvcreate", *kind, *size, *common, group)
    if is_sparse(pool, volume):
        virtual = size_arguments(capacity, "--virtualsize")
        space_for_data = size_arguments(volume.spec.allocation or SECTOR)
        return ("lvcreate", "--type", "snapshot", *space_for_data, *virtual, *common, group)
    return ("lvcreate", "--wipesignatures", "y", *size_arguments(capacity), *common, group)
