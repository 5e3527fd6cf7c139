"""Pools on an LVM volume group (libvirt's logical).

The group is asked for by one LVM command a look. What says whose the group and its volumes are are
LVM's own tags, set by the very command that makes them. A group's metadata is on its devices, so
the names of these matter only until it is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from backends import blockvolumes, errors, names
from backends.base import (
    Operation,
    Pool,
    PoolFacts,
    PoolType,
    Presence,
    Shortage,
    TargetUse,
    Verb,
    Volume,
)
from backends.host import commands, devices, lvm, signatures
from backends.host.lvm import LogicalVolume, VolumeGroup
from backends.host.needs import Needs
from backends.logicalcommands import (
    THIN_POOL,
    is_thin,
    path_of,
    size_arguments,
    thin_pool_name,
)
from backends.logicalvolumes import LogicalVolumes
from backends.schema import Model, Name, Quantity, Rule, Xml
from backends.sizes import format_quantity, round_up
from backends.spec import Devices, SourceQuery, ThinPoolStatus

WARN_AT = (95, 90, 80)
"""Percentages of a thin pool or snapshot from which on its filling is told of."""


class ThinPool(Model):
    """The thin pool that a group's thin volumes take their space from."""

    name: Name = Field(THIN_POOL, description="Name of the logical volume.")
    size: Quantity | None = Field(
        None, description="Its size; it grows when this does. All free space if left out."
    )


class LogicalSource(Model):
    """A volume group."""

    rules = (
        Rule(
            cel="!has(self.thinPool) || (has(self.provisioning) && self.provisioning == 'Thin')",
            message="thinPool is only for provisioning Thin",
            holds=lambda self: self.thin_pool is None or self.provisioning == "Thin",
        ),
    )

    volume_group: Annotated[Name | None, Xml("source/name")] = Field(
        None, description="Name of the volume group; default: the pool's name."
    )
    devices: Annotated[Devices, Xml("source/device")] = Field(
        (),
        description="Physical volumes; needed to build the group. One that is added and blank "
        "joins it.",
    )
    format: Annotated[Literal["unknown", "lvm2"], Xml("source/format/@type")] = Field(
        "lvm2", description="Format of the metadata."
    )
    provisioning: Literal["Thick", "Thin"] = Field(
        "Thick",
        description="How new volumes take their space: when they are made, or as they are written.",
    )
    thin_pool: ThinPool | None = Field(None, description="The thin pool, for provisioning Thin.")


class LogicalBackend(LogicalVolumes):
    """A volume group that is made, started, stopped and removed as a pool."""

    def claims(self, pool: Pool) -> frozenset[str]:
        return frozenset({f"volume group {pool.source_name}"})

    def observe(self, pool: Pool) -> PoolFacts:
        try:
            group = self.report(pool.source_name)
            if group is None:
                return _observe_devices(pool)
            return self._observe_group(pool, group)
        except errors.MissingTool:
            raise
        except errors.StorageError as error:
            return PoolFacts(presence=Presence.UNREACHABLE, detail=error.message.rstrip("."))

    def _observe_group(self, pool: Pool, group: VolumeGroup) -> PoolFacts:
        if group.exported or group.lock_type not in ("", "none"):
            why = "exported (see vgimport)" if group.exported else "shared by a lock manager"
            detail = f"volume group {group.name!r} is {why}"
            return PoolFacts(presence=Presence.UNREACHABLE, detail=detail)
        if _other_devices(pool, group):
            return PoolFacts(
                presence=Presence.PRESENT,
                mark=group.mark,
                adoptable=group.mark is not None,
                data_found=f"a volume group on {_named(group)}, of which none is declared",
            )
        thin = group.volumes.get(thin_pool_name(pool)) if is_thin(pool) else None
        visible = [item for item in group.volumes.values() if not _reserved(item)]
        own = thin.name if thin is not None and thin.mark == _thin_mark(pool, thin) else ""
        return PoolFacts(
            presence=Presence.PRESENT,
            detail=_missing(group),
            mark=group.mark,
            active=_active(visible),
            degraded=group.missing > 0 or any(_unwell(group)),
            warnings=tuple(_warnings(pool, group)),
            shortages=tuple(_shortages(group)),
            capacity=group.size,
            allocation=group.size - group.free,
            available=group.free,
            volumes={
                item.name: self.observe_volume(pool, group, item)
                for item in visible
                if not _no_volume(item)
            },
            leftovers=self.leftovers(group),
            skipped=tuple(
                (item.name, _no_volume(item))
                for item in visible
                if _no_volume(item) and item.name != own
            ),
            growth=_growth(pool, group) if group.mark is not None else "",
            thin_pool=_thin_pool_status(thin),
        )

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        if volume is not None:
            return super().commands(verb, pool, volume)
        if verb is Verb.BUILD_POOL:
            return tuple(_build_commands(pool))
        return {
            Verb.START_POOL: (_activation(pool, "ly"),),
            Verb.STOP_POOL: (_activation(pool, "ln"),),
            Verb.DELETE_POOL: (("vgremove", pool.source_name),),
        }.get(verb, ())

    def build(self, pool: Pool, *, overwrite: bool) -> None:
        """Make physical volumes whose UUIDs are known to be ours, and the group in one step."""
        for item in pool.devices:
            self._prepare(pool, item.path, overwrite=overwrite)
        for argv in _build_commands(pool):
            if argv[0] != "pvcreate" or not _is_own_orphan(pool, argv[-1]):
                self.run(argv)
        self._ensure_thin_pool(pool)

    def _prepare(self, pool: Pool, path: str, *, overwrite: bool) -> None:
        """Look at a device once more, and clear it where that was asked for by name."""
        found = _found_on(pool, path, _probed(pool, path))
        if not found:
            return
        if blockvolumes.users_of(path) or not overwrite:
            raise errors.OverwriteRefused(f"{path} {found}.", hint="Nothing was changed.")
        commands.run(("wipefs", "--all", "--force", path), timeout=self.context.command_timeout)

    def adopt(self, pool: Pool) -> None:
        group = self.group(pool)
        mark = group.mark
        former = mark.origin if mark and mark.resource == pool.resource else "Adopted"
        self.run(("vgchange", *lvm.marking(pool.mark(former), former=group.tags), group.name))

    def start(self, pool: Pool) -> None:
        self.run(_activation(pool, "ly"))

    def stop(self, pool: Pool) -> None:
        group = self.group(pool)
        for item in group.volumes.values():
            used = self.users_of(group, item) if item.active and not _no_volume(item) else ()
            if used:
                raise errors.InUse(
                    f"{path_of(group, item.name)} is in use: {'; '.join(used)}.",
                    hint="Stop what uses it; the pool is stopped then.",
                )
        self.run(_activation(pool, "ln"))

    def grow(self, pool: Pool) -> None:
        group = self.group(pool)
        for path in _joining(pool, group):
            self._extend(pool, group, path)
        self._ensure_thin_pool(pool)

    def _extend(self, pool: Pool, group: VolumeGroup, path: str) -> None:
        """Let a device join the group, if nothing at all is found on it."""
        found = _found_on(pool, path, _probed(pool, path))
        if found:
            raise errors.OverwriteRefused(
                f"{path} is to join volume group {group.name!r}, and {found}.",
                hint="Nothing was changed. Clear it with wipefs if nobody needs what is there.",
            )
        if not _is_own_orphan(pool, path):
            self.run(_labelling(pool, path))
        self.run(("vgextend", group.name, path))

    def _ensure_thin_pool(self, pool: Pool) -> None:
        if not is_thin(pool):
            return
        group, name, size = self.group(pool), thin_pool_name(pool), _thin_pool_size(pool)
        there = group.volumes.get(name)
        if there is None:
            self.run(_thin_pool_creation(pool))
        elif not there.thin_pool:
            raise errors.AlreadyExists(
                f"{path_of(group, name)} is no thin pool.",
                hint="Choose another thinPool.name, or remove it.",
            )
        elif size is not None and there.size < round_up(size, group.extent):
            self.run(("lvextend", *size_arguments(size), f"{group.name}/{name}"))

    def clean(self, pool: Pool) -> None:
        group = self.group(pool)
        for name in self.leftovers(group):
            self.remove(group, group.volumes[name])

    def delete(self, pool: Pool) -> None:
        """Remove our thin pool, the group, and the labels of its physical volumes."""
        group = self.report(pool.source_name)
        if group is not None:
            if group.mark is None or group.mark.resource != pool.resource:
                raise errors.OwnedByOther(
                    f"Volume group {group.name!r} does not carry the mark of {pool.resource}.",
                    hint="It was replaced; nothing was changed.",
                )
            paths = [item.name for item in group.devices if not item.missing]
            thin = group.volumes.get(thin_pool_name(pool)) if is_thin(pool) else None
            if thin is not None and thin.mark == _thin_mark(pool, thin):
                self.remove(group, thin)
            # Without --yes it asks before it removes volumes, and nobody answers.
            self.run(("vgremove", group.name))
        else:
            paths = [item.path for item in pool.devices if _is_own_orphan(pool, item.path)]
        for path in paths:
            self.run(("pvremove", path))

    def find_sources(self, query: SourceQuery | None) -> tuple[Model, ...]:
        """The volume groups that LVM sees on this host, with their devices."""
        return tuple(
            LogicalSource.model_validate(
                {"volumeGroup": name, "devices": [{"path": path} for path in sorted(paths)]}
            )
            for name, paths in sorted(lvm.groups().items())
        )


def _thin_mark(pool: Pool, thin: LogicalVolume) -> object:
    """The mark that our thin pool has: the pool's, of this life or an earlier one."""
    mark = thin.mark
    return mark if mark is not None and mark.resource == pool.resource else object()


def _thin_pool_size(pool: Pool) -> int | None:
    """Declared bytes of the thin pool; None for all that is free."""
    wanted: ThinPool | None = getattr(pool.source, "thin_pool", None)
    return wanted.size if wanted is not None else None


def _thin_pool_creation(pool: Pool) -> tuple[str, ...]:
    size = _thin_pool_size(pool)
    room = ("--extents", "100%FREE") if size is None else size_arguments(size)
    marks = lvm.marking(pool.mark("Created"))
    target = ("--name", thin_pool_name(pool), *marks, pool.source_name)
    return ("lvcreate", "--yes", "--type", "thin-pool", "--zero", "y", *room, *target)


def _activation(pool: Pool, how: str) -> tuple[str, ...]:
    return ("vgchange", "--activate", how, pool.source_name)


def _build_commands(pool: Pool) -> Iterator[tuple[str, ...]]:
    problem = lvm.group_name_problem(pool.source_name)
    if problem:
        raise errors.InvalidSpec(f"The volume group name {pool.source_name!r} {problem}.")
    if not pool.devices:
        raise errors.InvalidSpec(
            f"Volume group {pool.source_name!r} is not there, and pool {pool.name!r} names no "
            "device to make it on.",
            hint="Give logical.devices, or bring the group there.",
        )
    for item in pool.devices:
        yield _labelling(pool, item.path)
    paths = [item.path for item in pool.devices]
    yield ("vgcreate", *lvm.marking(pool.mark("Created")), pool.source_name, *paths)


def _labelling(pool: Pool, path: str) -> tuple[str, ...]:
    uuid = lvm.derived_uuid(pool.uid, path)
    return ("pvcreate", "--norestorefile", "--uuid", uuid, path)


def _observe_devices(pool: Pool) -> PoolFacts:
    """Facts of a group that LVM does not see: whether its devices may become one."""
    told, orphans = [], []
    for item in pool.devices:
        try:
            contents = _probed(pool, item.path)
            found = _found_on(pool, item.path, contents)
        except errors.StorageError as error:
            return PoolFacts(presence=Presence.UNREACHABLE, detail=error.message.rstrip("."))
        if found:
            told.append(f"{item.path} {found}")
        elif not contents.empty:
            orphans.append(item.path)
    return PoolFacts(
        presence=Presence.ABSENT,
        detail=f"volume group {pool.source_name!r} is not there",
        data_found="; ".join(told),
        leftovers=tuple(orphans),
    )


def _probed(pool: Pool, path: str) -> signatures.Contents:
    """What stands on a device.

    :raises errors.Inaccessible: it holds the very group that LVM does not see.
    """
    contents = signatures.probe(path)
    if contents.volume_group == pool.source_name:
        raise errors.Inaccessible(
            f"{path} belongs to volume group {pool.source_name!r}, and LVM does not see it.",
            hint="Look at lvm lvmdevices --check, at filters in lvm.conf, and at vgs.",
        )
    return contents


def _found_on(pool: Pool, path: str, contents: signatures.Contents) -> str:
    """What keeps a device from becoming a physical volume of ours, in words; empty for nothing."""
    if _own_orphan(pool, path, contents):
        return ""
    told = [f"holds {contents}"] if not contents.empty else []
    told += [f"is in use: {item}" for item in blockvolumes.users_of(path)]
    if devices.find(path).read_only:
        told.append("is read-only")
    return " and ".join(told)


def _own_orphan(pool: Pool, path: str, contents: signatures.Contents) -> bool:
    """Whether a device is a physical volume that we made and did not get into a group yet."""
    return (
        contents.volume_group is None
        and [item.type for item in contents.signatures] == ["LVM2_member"]
        and contents.uuid == lvm.derived_uuid(pool.uid, path)
    )


def _is_own_orphan(pool: Pool, path: str) -> bool:
    return _own_orphan(pool, path, signatures.probe(path))


def _other_devices(pool: Pool, group: VolumeGroup) -> bool:
    """Whether devices are declared, and the group stands on none of them (libvirt's rule)."""
    if not pool.devices or group.mark is not None:
        return False
    standing = _numbers(item.name for item in group.devices)
    declared = _numbers(item.path for item in pool.devices)
    return bool(standing) and not set(standing.values()) & set(declared.values())


def _numbers(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The numbers of devices, by their paths; without those that are not there."""
    found = {}
    for path in paths:
        with contextlib.suppress(errors.StorageError):
            found[path] = devices.find(path).number
    return found


def _joining(pool: Pool, group: VolumeGroup) -> tuple[str, ...]:
    """Declared devices that the group has not got yet.

    None while the group has any that is not declared: a name may then lead to another device than
    the one that it was declared for.
    """
    if group.missing:
        return ()
    standing = set(_numbers(item.name for item in group.devices).values())
    declared = _numbers(item.path for item in pool.devices)
    if not standing <= set(declared.values()):
        return ()
    return tuple(path for path, number in declared.items() if number not in standing)


def _undeclared(pool: Pool, group: VolumeGroup) -> tuple[str, ...]:
    """Devices of the group that are not declared, where any are."""
    declared = set(_numbers(item.path for item in pool.devices).values())
    standing = _numbers(item.name for item in group.devices)
    found = tuple(path for path, number in standing.items() if number not in declared)
    return found if pool.devices else ()


def _named(group: VolumeGroup) -> str:
    return ", ".join(item.name for item in group.devices if item.name) or "missing devices"


def _reserved(item: LogicalVolume) -> bool:
    return item.name.startswith(names.RESERVED_PREFIX)


def _no_volume(item: LogicalVolume) -> str:
    """Why a logical volume is no volume of the pool; empty where it is one."""
    if item.thin_pool:
        return "it is a thin pool"
    return "it is a pool for caches or the like" if "pool" in item.layout else ""


def _active(visible: Sequence[LogicalVolume]) -> bool | None:
    """Whether the volumes are active; None where there are none, or only some are."""
    states = {item.active for item in visible if not item.skipped and not item.thin_pool}
    return states.pop() if len(states) == 1 else None


def _missing(group: VolumeGroup) -> str:
    if not group.missing:
        return ""
    uuids = ", ".join(item.uuid for item in group.devices if item.missing)
    return f"physical volumes of group {group.name!r} are missing: {uuids}"


def _warnings(pool: Pool, group: VolumeGroup) -> Iterator[str]:
    if group.missing:
        yield f"{_missing(group)}."
    strange = _undeclared(pool, group)
    if strange:
        yield (
            f"The group also stands on {', '.join(strange)}, which the pool does not name; "
            "pvmove and vgreduce take a device out."
        )
    for thin in _unwell(group):
        yield (
            f"LVM calls the state of thin pool {thin.name!r} {thin.health}: its volumes can't be "
            "written to, or not even read."
        )
    for item in _shortages(group):
        yield item.told


def _unwell(group: VolumeGroup) -> Iterator[LogicalVolume]:
    """Thin pools with which something is wrong, as they are no volumes that could tell of it."""
    return (item for item in group.volumes.values() if item.thin_pool and item.health)


def _shortages(group: VolumeGroup) -> Iterator[Shortage]:
    for item in group.volumes.values():
        what = "Thin pool" if item.thin_pool else "The space of snapshot"
        if item.thin_pool or item.thick_snapshot:
            for kind, percent in (("", item.data_percent), (" metadata", item.metadata_percent)):
                reached = next((limit for limit in WARN_AT if (percent or 0) >= limit), None)
                if reached is not None:
                    told = f"{what} {item.name!r} has used more than {reached}% of its{kind} space."
                    yield Shortage(percent=reached, told=told)


def _growth(pool: Pool, group: VolumeGroup) -> str:
    """Why the group or its thin pool has to be made larger; empty where they are as declared."""
    joining = _joining(pool, group)
    told = [f"{', '.join(joining)} is to join it."] if joining else []
    told += [_thin_growth(pool, group)] if is_thin(pool) else []
    return " ".join(filter(None, told))


def _thin_growth(pool: Pool, group: VolumeGroup) -> str:
    there = group.volumes.get(thin_pool_name(pool))
    if there is None:
        return f"It has no thin pool {thin_pool_name(pool)!r} yet."
    size = _thin_pool_size(pool) or 0
    if there.size < round_up(size, group.extent):
        told = f"{format_quantity(there.size)} to {format_quantity(size)}"
        return f"Its thin pool is to grow from {told}."
    return ""


def _thin_pool_status(thin: LogicalVolume | None) -> ThinPoolStatus | None:
    if thin is None:
        return None
    return ThinPoolStatus(
        size=thin.size,
        data_percent=None if thin.data_percent is None else int(thin.data_percent),
        metadata_percent=None if thin.metadata_percent is None else int(thin.metadata_percent),
    )


POOL_TYPE = PoolType(
    name="logical",
    order=4,
    description="An LVM volume group.",
    source=LogicalSource,
    source_name="volume_group",
    target=TargetUse.DERIVED,
    target_template="/dev/{source}",
    needs=Needs(programs=("lvm", "vgchange", "lvcreate"), modules=("dm-mod",)),
    operations=frozenset(Operation),
    backend=LogicalBackend,
)
"""libvirt's logical."""
