"""Volumes that are block devices which are found and not made: what iscsi, scsi and mpath share.

A device of that kind has no place for a mark of ours, so the mark is in the state directory, by
the device's world-wide name. Such a volume is never made, resized or deleted from here: whoever
gives it does that. Its contents are read and written as those of any other volume.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backends import blockvolumes, errors
from backends.base import (
    Backend,
    BackendContext,
    OpenVolume,
    Operation,
    Pool,
    PoolFacts,
    Presence,
    Verb,
    Volume,
    VolumeFacts,
)
from backends.host import devices, files, partitions, scsi
from backends.host.marks import Mark, Origin
from backends.spec import Adoption, Permissions

CONTENTS = frozenset({Operation.WIPE_VOLUME, Operation.UPLOAD, Operation.DOWNLOAD})
"""What can be done with the contents of any block device."""

_DEV = pathlib.Path("/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDevice:
    """A block device that is a volume of a pool.

    :param name: of the volume.
    :param node: the kernel's own name, such as ``/dev/sdb``.
    :param serial: world-wide name or the like; empty where it has none and can't be marked.
    :param size: bytes.
    :param problem: why it can't be used; empty where it can.
    """

    name: str
    node: str
    serial: str
    size: int
    problem: str = ""

    @property
    def identity(self) -> str:
        """What its mark is kept under: the same by whatever way the device is reached."""
        return f"block device {self.serial}"


class FoundVolumes(Backend):
    """A backend whose volumes are block devices that the kernel has found."""

    what = "block device"
    """What a volume is, in messages."""

    giver = "the storage behind the pool"
    """Who makes and deletes volumes, in messages."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._paths: dict[tuple[str, str], str] = {}
        """Path of each volume as last observed, by the pool's uid and the volume's name."""
        self._serials: dict[tuple[str, str], str] = {}
        """Likewise the serial number, or what stands for it."""
        self._nameless: set[tuple[str, str]] = set()
        """Pools and volumes for which udev was waited for in vain."""

    @abstractmethod
    def devices_of(self, pool: Pool) -> Sequence[FoundDevice]:
        """The devices of a pool that is there, as the kernel has them now.

        :raises errors.StorageError: the pool's source is not there or can't be reached.
        """

    def observe_found(self, pool: Pool) -> PoolFacts:
        """The facts of a pool whose source is there. All its space is its volumes'.

        :raises errors.StorageError: as ``devices_of`` does.
        """
        volumes, skipped = self._observe_devices(pool)
        total = sum(item.capacity or 0 for item in volumes.values())
        return PoolFacts(
            presence=Presence.PRESENT,
            capacity=total,
            allocation=total,
            available=0,
            volumes=volumes,
            skipped=skipped,
        )

    def _observe_devices(
        self, pool: Pool
    ) -> tuple[dict[str, VolumeFacts], tuple[tuple[str, str], ...]]:
        """The volumes of a pool, and what is none for want of a lasting name, with the reason."""
        found = self.devices_of(pool)
        links = {item.name: lasting_path(pool.target_path, item.node) for item in found}
        missing = {(pool.uid, name) for name, path in links.items() if path is None}
        if missing - self._nameless or any(self._is_another(pool, item) for item in found):
            devices.settle()  # a device that has just come has no links yet, or a former one's
            found = self.devices_of(pool)
            links = {item.name: lasting_path(pool.target_path, item.node) for item in found}
        self._nameless -= {(pool.uid, item.name) for item in found}
        volumes: dict[str, VolumeFacts] = {}
        skipped = []
        for item in found:
            path = links[item.name]
            if path is None:
                self._nameless.add((pool.uid, item.name))
                skipped.append((item.name, f"{item.node} has no name in {pool.target_path}"))
                continue
            volumes[item.name] = self._observe(item, path)
            self._paths[pool.uid, item.name] = path
            self._serials[pool.uid, item.name] = item.serial
        return volumes, tuple(skipped)

    def _is_another(self, pool: Pool, item: FoundDevice) -> bool:
        """Whether a device has another one's place since the last look."""
        return self._serials.get((pool.uid, item.name), item.serial) != item.serial

    def _observe(self, item: FoundDevice, path: str) -> VolumeFacts:
        return VolumeFacts(
            name=item.name,
            path=path,
            key=item.serial or path,
            type="block",
            format=None,
            capacity=item.size,
            allocation=item.size,
            physical=item.size,
            permissions=permissions_of(item.node),
            mark=self._mark(item),
            problem=item.problem,
        )

    def _mark(self, item: FoundDevice) -> Mark | None:
        return self.context.marks.read_named(item.identity) if item.serial else None

    def volume_path(self, pool: Pool, name: str) -> str:
        """Where the volume was seen last; one that never was would be under the target."""
        return self._paths.get((pool.uid, name)) or str(pool.target_path / name)

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        if verb in (Verb.GROW_VOLUME, Verb.SHRINK_VOLUME) and volume is not None:
            raise errors.Unsupported(
                f"Volume {volume.name!r} is a {self.what}, whose size {self.giver} sets.",
                hint="Declare the capacity that it has, or resize it there.",
            )
        return ()

    def adopt_volume(self, pool: Pool, volume: Volume) -> None:
        item = self._find(pool, volume)
        if not item.serial:
            raise errors.Unsupported(
                f"{item.node} has neither a world-wide name nor a serial number, so it can't be "
                "marked as ours.",
                hint="Set adoption Observe.",
            )
        mark = self._mark(item)
        origin: Origin = "Adopted"
        if mark is not None and mark.resource == volume.resource:
            origin = mark.origin
        self.context.marks.write_named(item.identity, volume.mark(origin))

    def set_volume_permissions(self, pool: Pool, volume: Volume) -> None:
        item = self._find(pool, volume)
        self._require_ours(item, volume)
        set_node_permissions(item.node, volume.permissions)

    @contextlib.contextmanager
    def open_volume(
        self, pool: Pool, volume: Volume, *, write: bool = False
    ) -> Iterator[OpenVolume]:
        item = self._find(pool, volume)
        if item.problem:
            raise errors.Inaccessible(f"{item.node} can't be used: {item.problem}.")
        if write or volume.spec.adoption is not Adoption.OBSERVE:  # which leaves no mark
            self._require_ours(item, volume)
        with blockvolumes.opened(item.node, write=write) as contents:
            yield contents

    def users(self, pool: Pool, volume: Volume) -> tuple[str, ...]:
        try:
            item = self._find(pool, volume)
        except errors.NotFound:
            return ()
        return blockvolumes.users_of(item.node)

    def require_unused(self, pool: Pool) -> None:
        """Refuse to take away what somebody stands on.

        :raises errors.InUse: with who it is.
        """
        for item in self.devices_of(pool):
            found = blockvolumes.users_of(item.node)
            if found:
                raise errors.InUse(
                    f"Pool {pool.name!r} can't stop: {item.node} is in use: {'; '.join(found)}.",
                    hint="Stop what uses it.",
                )

    def _find(self, pool: Pool, volume: Volume) -> FoundDevice:
        for item in self.devices_of(pool):
            if item.name == volume.name:
                return item
        raise errors.NotFound(
            f"The {self.what} {volume.name!r} of pool {pool.name!r} has gone.",
            hint=f"See what {self.giver} gives.",
        )

    def _require_ours(self, item: FoundDevice, volume: Volume) -> None:
        """Look once more, at the very thing: what was planned may have been replaced since."""
        mark = self._mark(item)
        if mark is None or (mark.uid != volume.uid and mark.resource != volume.resource):
            raise errors.OwnedByOther(
                f"{item.node} is not marked as {volume.resource}'s.",
                hint="It was replaced; nothing was changed.",
            )


def found_luns(luns: Sequence[scsi.Lun], *, giver: str) -> tuple[FoundDevice, ...]:
    """LUNs as volumes, by libvirt's names: ``unit:BUS:TARGET:LUN``."""
    return tuple(
        FoundDevice(
            name="unit:{1}:{2}:{3}".format(*lun.address),
            node=lun.node,
            serial=scsi.serial(lun),
            size=lun.size,
            problem=_problem(lun, giver),
        )
        for lun in luns
    )


def _problem(lun: scsi.Lun, giver: str) -> str:
    if lun.size == 0:
        return f"it has no size: {giver} no longer gives it, or it has no medium"
    return "" if lun.state == "running" else f"the kernel has it as {lun.state}"


def lasting_path(target: pathlib.Path, node: str) -> str | None:
    """A name under a pool's target that leads to a device; None where there is none.

    Under ``/dev`` itself that is the kernel's name, which lasts until the next boot only, but for
    devices of device mapper, which have names.
    """
    if target == _DEV:
        return partitions.mapped_path(node) or node
    for link in _links_of(target, node):
        if os.path.realpath(link) == node:
            return str(link)
    return None


def _links_of(target: pathlib.Path, node: str) -> Iterator[pathlib.Path]:
    """Names that may lead to a device: those that udev lists, then all that are there."""
    yield from sorted(link for link in devices.udev_links(node) if link.parent == target)
    with contextlib.suppress(OSError):
        yield from sorted(pathlib.Path(entry.path) for entry in os.scandir(target))


@contextlib.contextmanager
def _handle(node: str) -> Iterator[int]:
    """The device's node, without opening the device."""
    try:
        fd = os.open(node, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise errors.NotFound(f"{node} is not there.") from error
    except OSError as error:
        raise errors.from_os_error(error, doing=f"look up {node}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def permissions_of(node: str) -> files.Permissions | None:
    """The permissions of a device's node; None where it has just gone."""
    try:
        with _handle(node) as fd:
            return files.read_permissions(fd)
    except errors.StorageError:  # unplugged since it was listed
        return None


def set_node_permissions(node: str, wanted: Permissions) -> None:
    """Give a device's node the mode, owner, group and label that are not None. udev may set them
    back when the device changes."""
    with _handle(node) as fd:
        files.set_permissions(
            fd, mode=wanted.mode, owner=wanted.owner, group=wanted.group, label=wanted.label
        )
