"""Logical volumes as a pool's volumes: thick, thin and snapshots.

A volume is made under a reserved name with its tags, cleared, and only then renamed: under its own
name it is complete and marked, or not there. What a volume gets of a group's free extents may hold
what others wrote there, so it is cleared before anybody can read it, also what a volume grows by.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from backends import blockvolumes, errors, filling, luksdevices, names
from backends.base import (
    Backend,
    BackendContext,
    Link,
    OpenVolume,
    Pool,
    Progress,
    Verb,
    Volume,
    VolumeFacts,
    Work,
)
from backends.host import files, lvm
from backends.host.lvm import LogicalVolume, VolumeGroup
from backends.host.scsi import attribute
from backends.images import encrypting, holes
from backends.logicalcommands import (
    SECTOR,
    creation,
    is_thin,
    name_beneath,
    path_of,
    size_arguments,
    staged_name,
)
from backends.sizes import MIB, format_quantity, round_up

QUICKLY_CLEARED = 256 * MIB
"""Bytes that any device clears while a pass may wait for them."""

_READ_AT_ONCE = 4 * MIB
_PLAIN_FORMATS = (None, "raw")


class LogicalVolumes(Backend):
    """A backend whose volumes are those of the group ``pool.source_name``."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._staged: set[tuple[str, str]] = set()
        """Groups and reserved names of volumes that a thread is making."""
        self._devices: dict[str, tuple[str, ...]] = {}
        """Devices of groups, as the last look at all devices found them."""

    def run(self, argv: Sequence[str], work: Work | None = None) -> None:
        lvm.run(
            *argv,
            timeout=self.context.command_timeout,
            cancel=work.cancel if work is not None else None,
        )

    def report(self, name: str) -> VolumeGroup | None:
        """Look at a group: at its devices alone as long as it is whole on them, else at all."""
        known = self._devices.get(name)
        if known:
            with contextlib.suppress(errors.CommandFailed, errors.Inaccessible):
                group = lvm.report(name, devices=known)
                if group is not None and not group.missing:
                    return group
        group = lvm.report(name)
        whole = group is not None and not group.missing
        found = tuple(item.name for item in group.devices) if group is not None else ()
        self._devices[name] = found if whole else ()
        return group

    def group(self, pool: Pool) -> VolumeGroup:
        """The group as it is now.

        :raises errors.Inaccessible: LVM does not see it.
        """
        group = self.report(pool.source_name)
        if group is None:
            raise errors.Inaccessible(
                f"Volume group {pool.source_name!r} is not there.",
                hint="See what vgs and pvs say.",
            )
        return group

    def leftovers(self, group: VolumeGroup) -> tuple[str, ...]:
        """Half-made volumes of ours that no thread works on."""
        return tuple(
            name
            for name, item in group.volumes.items()
            if name.startswith(names.RESERVED_PREFIX)
            and item.mark is not None
            and (group.name, name) not in self._staged
        )

    def observe_volume(self, pool: Pool, group: VolumeGroup, item: LogicalVolume) -> VolumeFacts:
        facts = self._observe_device(group, item)
        if item.name not in pool.encrypted or not item.active:
            return facts
        try:
            return luksdevices.seen(facts, self._payload_offset(group, item))
        except errors.StorageError as error:
            return replace(facts, problem=facts.problem or error.message.rstrip("."))

    def _payload_offset(self, group: VolumeGroup, item: LogicalVolume) -> int | None:
        path, expected = path_of(group, item.name), is_device_of(group, item)
        with blockvolumes.opened(path, expected=expected) as device:
            return luksdevices.payload_offset(device)

    def _observe_device(self, group: VolumeGroup, item: LogicalVolume) -> VolumeFacts:
        path = path_of(group, item.name)
        seen = item.origin if item.origin and not item.origin.startswith("[") else None
        origin = path_of(group, seen) if seen else None
        # A thin snapshot lives on without its origin; a thick one has only what differs.
        chain = (
            (Link(path=origin, format=None, present=True, capacity=item.origin_size),)
            if origin is not None and item.thick_snapshot
            else ()
        )
        return VolumeFacts(
            name=item.name,
            path=path,
            key=item.uuid,
            type="block",
            format=None,
            capacity=item.capacity,
            allocation=_allocation(item),
            physical=item.capacity,
            permissions=_permissions(path) if item.active else None,
            mark=item.mark,
            backing_path=origin,
            backing_chain=chain,
            extents=item.extents,
            granularity=group.extent,
            problem=_problem(item),
        )

    def space_needed(self, pool: Pool, volume: Volume) -> int:
        if volume.backing_path is not None or is_thin(pool):
            return 0
        allocation, capacity = volume.spec.allocation, luksdevices.sized(volume).capacity or 0
        return capacity if allocation is None else min(allocation, capacity)

    def check_volume(self, pool: Pool, volume: Volume) -> None:
        names.check_name(volume.name, what="volume name")
        beneath = name_beneath(pool, volume)
        problem = lvm.name_problem(pool.source_name, volume.name, beneath=beneath)
        if problem:
            raise errors.InvalidSpec(
                f"The volume name {volume.name!r} {problem}.", hint="Choose another volumeName."
            )
        if volume.format not in _PLAIN_FORMATS:
            raise errors.Unsupported(
                f"A logical volume has no format, and {volume.format} is declared for "
                f"{volume.name!r}.",
                hint="Leave format out.",
            )
        self._check_contents(volume)
        if volume.backing_path is not None:
            self._check_origin(pool, volume)
        elif volume.capacity is None and not filling.has_source(volume):
            raise errors.InvalidSpec(f"Volume {volume.name!r} has no capacity.")

    def _check_contents(self, volume: Volume) -> None:
        luksdevices.check(volume)
        filling.check(replace(volume, format="raw"))

    def _check_origin(self, pool: Pool, volume: Volume) -> None:
        origin = Path(volume.backing_path or "")
        if origin.parent != Path("/dev", pool.source_name):
            raise errors.InvalidSpec(
                f"Volume {volume.name!r} is to be a snapshot of {origin}, which is not in volume "
                f"group {pool.source_name!r}.",
                hint="A snapshot's origin has to be in the same group.",
            )

    def takes_long(self, verb: Verb, pool: Pool, volume: Volume) -> bool:
        if super().takes_long(verb, pool, volume):
            return True
        if verb is Verb.CREATE_VOLUME and luksdevices.is_encrypted(volume):
            return True  # to make a key of a passphrase is meant to take time
        thick = volume.backing_path is None and not is_thin(pool)
        large = (volume.capacity or 0) > QUICKLY_CLEARED
        return thick and large and verb in (Verb.CREATE_VOLUME, Verb.GROW_VOLUME)

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        if volume is None:
            return ()
        place = f"{pool.source_name}/{volume.name}"
        if verb is Verb.CREATE_VOLUME:
            staged = staged_name(volume)
            return (
                creation(pool, luksdevices.sized(volume), None),
                *luksdevices.command(volume, f"/dev/{pool.source_name}/{staged}"),
                ("lvrename", pool.source_name, staged, volume.name),
            )
        size = size_arguments(luksdevices.sized(volume).capacity or 0)
        if verb is Verb.GROW_VOLUME and volume.capacity is not None:
            return (("lvextend", *size, place),)
        if verb is Verb.SHRINK_VOLUME and volume.capacity is not None:
            return (("lvreduce", "--force", "--yes", *size, place),)
        if verb is Verb.DELETE_VOLUME:
            return (("lvremove", "--yes", place),)
        return ()

    def create_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        self.check_volume(pool, volume)
        group = self.group(pool)
        if volume.name in group.volumes:
            raise errors.AlreadyExists(f"{path_of(group, volume.name)} is there already.")
        with self._staged_volume(group, volume) as temporary:
            made = self._make(pool, group, volume, work)
            self._give_permissions(group, temporary, volume)
            work.check()
            self.run(("lvrename", group.name, temporary, volume.name))
        self._give_permissions(group, volume.name, volume)
        work.report(Progress(done=made.capacity, total=made.capacity))

    def _make(self, pool: Pool, group: VolumeGroup, volume: Volume, work: Work) -> LogicalVolume:
        """Make the volume under its reserved name, with its contents."""
        origin = _thin_source(pool, group, volume)
        if origin is not None:
            return self._make_thin_clone(pool, origin, volume, work)
        if filling.has_source(volume):
            return self._make_filled(pool, volume, work)
        if volume.backing_path is not None:
            origin = group.volumes.get(Path(volume.backing_path).name)
        _check_snapshot(group, volume, origin)
        made = self._make_empty(pool, volume, origin, work)
        if not (made.thin or made.thick_snapshot):
            self._clear(group, made, 0, made.size, work)
        self._encrypt(group, made, volume, work)
        return made

    def _encrypt(self, group: VolumeGroup, item: LogicalVolume, volume: Volume, work: Work) -> None:
        if luksdevices.is_encrypted(volume):
            path, expected = path_of(group, item.name), is_device_of(group, item)
            with blockvolumes.opened(path, write=True, expected=expected) as device:
                luksdevices.make(device, volume, self.context, work)

    def remake_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        """Give an encrypted volume that was wiped a header anew."""
        group = self.group(pool)
        self._encrypt(group, self._ours(group, volume), volume, work)

    def _make_empty(
        self, pool: Pool, volume: Volume, origin: LogicalVolume | None, work: Work
    ) -> LogicalVolume:
        self.run(creation(pool, luksdevices.sized(volume), origin), work)
        return self.group(pool).volumes[staged_name(volume)]

    def _make_thin_clone(
        self, pool: Pool, origin: LogicalVolume, volume: Volume, work: Work
    ) -> LogicalVolume:
        wanted = volume.capacity or origin.capacity
        place = f"{pool.source_name}/{origin.name}"
        common = ("--name", staged_name(volume), *lvm.marking(volume.mark("Created")))
        self.run(("lvcreate", "--snapshot", "--setactivationskip", "n", *common, place), work)
        if wanted > origin.capacity:
            temporary = f"{pool.source_name}/{staged_name(volume)}"
            self.run(("lvextend", *size_arguments(wanted), temporary), work)
        return self.group(pool).volumes[staged_name(volume)]

    def _make_filled(self, pool: Pool, volume: Volume, work: Work) -> LogicalVolume:
        """Make a volume with the contents of its source; what is left over reads as zeros."""
        with (
            filling.Scratch() as scratch,
            filling.opened_source(volume, self.context, work, scratch) as source,
        ):
            sized = replace(volume, capacity=filling.capacity(volume, source))
            made = self._make_empty(pool, sized, None, work)
            group = self.group(pool)
            self._encrypt(group, made, sized, work)
            path, expected = path_of(group, made.name), is_device_of(group, made)
            encrypted = luksdevices.is_encrypted(volume)
            with blockvolumes.opened(
                path, write=True, encrypted=encrypted, expected=expected
            ) as target:
                filling.fill(volume, source, target, self.context, work)
        return made

    @contextmanager
    def _staged_volume(self, group: VolumeGroup, volume: Volume) -> Iterator[str]:
        """A reserved name; what stands under it in the end is removed."""
        name = staged_name(volume)
        entry = (group.name, name)
        self._staged.add(entry)
        try:
            yield name
        except BaseException:
            with contextlib.suppress(errors.StorageError):
                left = self.report(group.name)
                if left is not None and name in left.volumes:
                    self.remove(left, left.volumes[name])
            raise
        finally:
            self._staged.discard(entry)

    def _clear(
        self, group: VolumeGroup, item: LogicalVolume, start: int, end: int, work: Work
    ) -> None:
        """Let a part of a volume read as zeros."""
        with self._opened(group, item, write=True, exclusive=start == 0) as fd:
            holes.clear(fd, start, end, work.checkpoint(end))
            os.fsync(fd)

    @contextmanager
    def _opened(
        self, group: VolumeGroup, item: LogicalVolume, *, write: bool, exclusive: bool
    ) -> Iterator[int]:
        path = path_of(group, item.name)
        if exclusive:
            expected = is_device_of(group, item)
            with blockvolumes.opened(path, write=write, expected=expected) as contents:
                if contents.fd is None:
                    raise AssertionError("a device has a descriptor")
                yield contents.fd
            return
        with errors.translated(f"open {path}"):
            fd = os.open(path, os.O_RDWR if write else os.O_RDONLY)
        try:
            if not is_device_of(group, item)(os.fstat(fd)):
                raise errors.Inaccessible(f"{path} is another device than LVM says.")
            yield fd
        finally:
            os.close(fd)

    def adopt_volume(self, pool: Pool, volume: Volume) -> None:
        group = self.group(pool)
        item = _present(group, volume)
        mark = item.mark
        former = mark.origin if mark and mark.resource == volume.resource else "Adopted"
        marking = lvm.marking(volume.mark(former), former=item.tags)
        self.run(("lvchange", *marking, f"{group.name}/{item.name}"))

    def resize_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        if volume.capacity is None:
            return
        group = self.group(pool)
        item = self._ours(group, volume)
        if item.thick_snapshot:
            raise errors.Unsupported(
                f"{path_of(group, item.name)} is a snapshot, which is as large as its origin.",
                hint="Declare the capacity that it has.",
            )
        before = 0
        if luksdevices.is_encrypted(volume):
            before = self._payload_offset(group, item) or encrypting.HEADER
        wanted = round_up(round_up(before + volume.capacity, SECTOR), group.extent)
        if wanted < item.capacity:
            self._shrink(group, item, volume, wanted, work)
        elif wanted > item.capacity:
            self._grow(group, item, wanted, work)

    def _grow(self, group: VolumeGroup, item: LogicalVolume, wanted: int, work: Work) -> None:
        """Make it larger, and clear what it got before that counts as done."""
        place = f"{group.name}/{item.name}"
        growing = f"{lvm.GROWING}{item.capacity}"
        if not item.thin and growing not in item.tags:
            self.run(("lvchange", f"--addtag={growing}", place))
        if wanted > item.size:
            self._lengthen(group, item, ("lvextend", *size_arguments(wanted), place), work)
        if not item.thin:
            self._clear(group, item, item.capacity, wanted, work)
            self.run(("lvchange", f"--deltag={growing}", place))

    def _lengthen(
        self, group: VolumeGroup, item: LogicalVolume, argv: Sequence[str], work: Work
    ) -> None:
        """Run a command that makes it larger; one that did nothing leaves no tag behind.

        With the tag, what somebody else adds to the volume later would be cleared as ours.
        """
        try:
            self.run(argv, work)
        except errors.StorageError:
            with contextlib.suppress(errors.StorageError):
                left = self.report(group.name)
                same = left.volumes.get(item.name) if left is not None else None
                # What an earlier growth added, and did not get to clear, keeps its tag.
                if left is not None and same is not None and same.size == item.capacity:
                    self._forget_growth(left, same)
            raise

    def _shrink(
        self, group: VolumeGroup, item: LogicalVolume, volume: Volume, wanted: int, work: Work
    ) -> None:
        path = path_of(group, item.name)
        used = self.users_of(group, item)
        if used:
            raise errors.InUse(
                f"{path} can't shrink while it is in use: {'; '.join(used)}.",
                hint="Stop what uses it.",
            )
        if not volume.spec.resize.allow_data_loss:
            self._require_zeros(group, item, wanted, work)
        argv = ("--force", "--yes", *size_arguments(wanted), f"{group.name}/{item.name}")
        try:
            self.run(("lvreduce", "--fs", "ignore", *argv), work)
        except errors.CommandFailed as error:
            if "option" not in error.message:  # LVM before 2.03.17 looks at no file system
                raise
            self.run(("lvreduce", *argv), work)
        self._forget_growth(group, item)

    def _forget_growth(self, group: VolumeGroup, item: LogicalVolume) -> None:
        for tag in item.tags:
            if tag.startswith(lvm.GROWING):
                self.run(("lvchange", f"--deltag={tag}", f"{group.name}/{item.name}"))

    def _require_zeros(
        self, group: VolumeGroup, item: LogicalVolume, start: int, work: Work
    ) -> None:
        """:raises errors.ShrinkNotAllowed: data lies past ``start``."""
        with self._opened(group, item, write=False, exclusive=False) as fd:
            for offset in range(start, item.size, _READ_AT_ONCE):
                work.check()
                piece = os.pread(fd, min(_READ_AT_ONCE, item.size - offset), offset)
                if piece.count(0) != len(piece):
                    raise errors.ShrinkNotAllowed(
                        f"{path_of(group, item.name)} holds data past {format_quantity(start)}.",
                        hint="Set resize.allowDataLoss to lose it, or declare a larger capacity.",
                    )

    @contextmanager
    def open_volume(
        self, pool: Pool, volume: Volume, *, write: bool = False
    ) -> Iterator[OpenVolume]:
        group = self.group(pool)
        item = self._ours(group, volume) if write else _present(group, volume)
        path, expected = path_of(group, item.name), is_device_of(group, item)
        encrypted = luksdevices.is_encrypted(volume)
        with blockvolumes.opened(
            path, write=write, encrypted=encrypted, expected=expected
        ) as contents:
            yield contents

    def users(self, pool: Pool, volume: Volume) -> tuple[str, ...]:
        group = self.group(pool)
        item = group.volumes.get(volume.name)
        return self.users_of(group, item) if item is not None else ()

    def users_of(self, group: VolumeGroup, item: LogicalVolume) -> tuple[str, ...]:
        """Who uses a volume; LVM's own devices that stand on it don't count."""
        path, expected = path_of(group, item.name), is_device_of(group, item)
        return blockvolumes.users_of(path, expected=expected, besides=_own_holders(group, path))

    def set_volume_permissions(self, pool: Pool, volume: Volume) -> None:
        group = self.group(pool)
        self._give_permissions(group, self._ours(group, volume).name, volume)

    def _give_permissions(self, group: VolumeGroup, name: str, volume: Volume) -> None:
        """Those of the device node, which udev makes anew when the volume is activated."""
        wanted = volume.permissions
        fd = os.open(path_of(group, name), os.O_PATH)
        try:
            files.set_permissions(
                fd,
                mode=wanted.mode,
                owner=wanted.owner,
                group=wanted.group,
                label=wanted.label,
            )
        finally:
            os.close(fd)

    def delete_volume(self, pool: Pool, volume: Volume) -> None:
        group = self.group(pool)
        if volume.name not in group.volumes:
            return
        item = self._ours(group, volume)
        standing = [other.name for other in group.volumes.values() if other.origin == item.name]
        if standing and not item.thin:  # lvremove would take them along
            raise errors.DeletionRefused(
                f"{path_of(group, item.name)} is the origin of {', '.join(sorted(standing))}.",
                hint="Delete these snapshots first.",
            )
        used = self.users_of(group, item)
        if used:
            raise errors.InUse(
                f"{path_of(group, item.name)} can't be deleted: {'; '.join(used)}.",
                hint="Stop what uses it.",
            )
        self.remove(group, item)

    def remove(self, group: VolumeGroup, item: LogicalVolume) -> None:
        """Remove the very volume that was looked at, and not another one of its name."""
        same = f"lv_uuid={item.uuid}"
        self.run(("lvremove", "--yes", "--select", same, f"{group.name}/{item.name}"))

    def _ours(self, group: VolumeGroup, volume: Volume) -> LogicalVolume:
        """Look once more: what was planned may have been replaced since."""
        item = _present(group, volume)
        mark = item.mark
        if mark is None or (mark.uid != volume.uid and mark.resource != volume.resource):
            raise errors.OwnedByOther(
                f"{path_of(group, item.name)} does not carry the mark of {volume.resource}.",
                hint="It was replaced; nothing was changed.",
            )
        return item


def _mapping_uuid(group: VolumeGroup) -> str:
    """How the device-mapper UUIDs of all devices of a group begin (lvm2's build_dm_uuid)."""
    return f"LVM-{group.uuid.replace('-', '')}"


def is_device_of(group: VolumeGroup, item: LogicalVolume) -> Callable[[os.stat_result], bool]:
    """Whether a device node is that of a volume, by the UUID that LVM gave its mapping."""
    wanted = _mapping_uuid(group) + item.uuid.replace("-", "")

    def is_it(facts: os.stat_result) -> bool:
        if not modes.S_ISBLK(facts.st_mode):
            return False
        number = f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}"
        return attribute(Path("/sys/dev/block", number, "dm/uuid")) == wanted

    return is_it


def _thin_source(pool: Pool, group: VolumeGroup, volume: Volume) -> LogicalVolume | None:
    """The thin volume of the same group that a clone can share its extents with."""
    clone = volume.source
    if clone is None or clone.reflink == "Never" or clone.pool.type.name != pool.type.name:
        return None
    if clone.pool.source_name != pool.source_name or not is_thin(pool):
        return None
    if luksdevices.is_encrypted(volume) or luksdevices.is_encrypted(clone.volume):
        return None  # a passphrase of its own would be that of the source
    found = group.volumes.get(clone.volume.name)
    return found if found is not None and found.thin else None


def _check_snapshot(group: VolumeGroup, volume: Volume, origin: LogicalVolume | None) -> None:
    if volume.backing_path is None:
        return
    if origin is None:
        raise errors.BackingMissing(
            f"{volume.backing_path}, of which {volume.name!r} is to be a snapshot, is not there.",
            hint="Make the origin first.",
        )
    rounded = round_up(volume.capacity or origin.capacity, group.extent)
    if rounded != origin.capacity:
        raise errors.InvalidSpec(
            f"Snapshot {volume.name!r} is to have {format_quantity(volume.capacity or 0)}, and its "
            f"origin has {format_quantity(origin.capacity)}.",
            hint="A snapshot is as large as its origin; leave capacity out.",
        )


def _present(group: VolumeGroup, volume: Volume) -> LogicalVolume:
    item = group.volumes.get(volume.name)
    if item is None:
        raise errors.NotFound(f"{path_of(group, volume.name)} is not there.")
    return item


def _allocation(item: LogicalVolume) -> int:
    if item.thin and item.data_percent is not None:
        return int(item.size * item.data_percent / 100)
    return item.size


def _permissions(path: str) -> files.Permissions | None:
    try:
        fd = os.open(path, os.O_PATH)
    except OSError:
        return None
    try:
        return files.read_permissions(fd)
    finally:
        os.close(fd)


def _problem(item: LogicalVolume) -> str:
    if item.invalid:
        return "its space for changes ran full, and its contents are lost"
    if item.health:
        return f"LVM calls its state {item.health}"
    if not item.active:
        return "it is not active; see lvchange --activate"
    return ""


def _own_holders(group: VolumeGroup, path: str) -> frozenset[str]:
    """The devices of the group that stand on one of its volumes, such as ``/dev/dm-3``."""
    try:
        number = os.stat(path).st_rdev
        holders = os.listdir(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/holders")
    except OSError:
        return frozenset()
    own = _mapping_uuid(group)
    return frozenset(
        f"/dev/{name}"
        for name in holders
        if attribute(Path("/sys/class/block", name, "dm/uuid")).startswith(own)
    )
