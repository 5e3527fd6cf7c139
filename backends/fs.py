"""Pools on a file system of a block device (libvirt's fs).

Whose a file system is says the mark on its root directory. While it is not mounted that can't be
read by a path; so the mark is kept in the state directory too, by the file system's UUID, and
where it is not there the root is looked at through a mount that has no place and changes nothing.

A new file system is marked before it is mounted anywhere. Its UUID is made from the pool's uid,
and what is being made is on record while it is: what a kill leaves half made can be told from
what somebody else made since, and only the former is made again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from backends import errors, names
from backends.base import (
    BackendContext,
    Operation,
    Pool,
    PoolFacts,
    PoolType,
    Presence,
    Verb,
    Volume,
)
from backends.host import commands, detached, devices, files, mounts, signatures, users
from backends.host.devices import BlockDevice, Identity
from backends.host.marks import Mark
from backends.host.mounts import Mount
from backends.host.needs import Needs
from backends.host.signatures import Contents
from backends.mountedvolumes import (
    MountedVolumes,
    MountRequest,
    Unmount,
    Unmounting,
    mount_facts,
)
from backends.schema import Model, Text, Xml
from backends.spec import Device, FileFormat, Permissions

MAKE_SECONDS = 3600.0
"""How long mkfs may take: it may discard the whole of a large, slow device."""

ROOT_MODE = 0o711
"""Mode of the root of a file system that we make, where none is declared, as libvirt's pools."""

_NAMESPACE = uuid.UUID("6f1f0c4b-5d38-4f0a-9c5e-7d1f3a3f2b10")
"""For UUIDs of file systems that are made of the uid of a pool."""

MountOptions = Annotated[tuple[Text, ...], Xml("fs:mount_opts/fs:option/@name")]


class FsSource(Model):
    """A file system on a block device."""

    device: Annotated[Device, Xml("source/device")] = Field(description="The block device.")
    format: Annotated[
        Literal[
            "auto", "ext2", "ext3", "ext4", "ufs", "iso9660", "udf", "gfs", "gfs2", "vfat",
            "hfs+", "xfs", "ocfs2", "vmfs",
        ],
        Xml("source/format/@type"),
    ] = Field("auto", description="File system; auto leaves it to mount.")  # fmt: skip
    mount_options: MountOptions = Field(
        (), max_length=64, description="Mount options beside nodev, nosuid and noexec."
    )
    unmount: Unmounting = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A device as it is found: what it is, and what stands on it."""

    device: BlockDevice
    contents: Contents

    @property
    def identity(self) -> Identity:
        return devices.identify(self.device, uuid=self.contents.uuid)

    @property
    def filesystem(self) -> str | None:
        """libblkid's name of the one file system; None where there is none, or several things."""
        if self.contents.ambiguous:
            return None
        sole = self.contents.sole(self.device.path)
        return sole.type if sole is not None and sole.usage == "filesystem" else None


_KERNEL_NAMES = {"hfs+": "hfsplus", "ntfs": "ntfs3"}
"""Where the kernel calls a file system otherwise than libvirt or libblkid do."""

_PROBED_NAMES = {"hfs+": ("hfsplus",), "vmfs": ("VMFS",), "udf": ("udf", "iso9660")}
"""What libblkid calls a format of libvirt's, where that is another word."""

_UNMARKABLE = frozenset({"iso9660", "udf"})
"""File systems that are not written to."""

_MAKERS: dict[str, Callable[[str, str], tuple[str, ...]]] = {
    **{
        kind: lambda made, device, kind=kind: (  # type: ignore[misc]
            f"mkfs.{kind}", "-q", "-F", "-U", made, device,
        )
        for kind in ("ext2", "ext3", "ext4")
    },
    "xfs": lambda made, device: ("mkfs.xfs", "-q", "-f", "-m", f"uuid={made}", device),
    "vfat": lambda made, device: ("mkfs.vfat", "-I", "-i", made.replace("-", ""), device),
}  # fmt: skip
"""The command that makes each format, with the UUID it is to have."""


class FsBackend(MountedVolumes):
    """A file system that is made, mounted and used as a pool."""

    furniture = frozenset({"lost+found"})

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._mounted: dict[tuple[int, int], tuple[tuple[int, int], Contents]] = {}
        """What stands on a mounted device, by its number, with the numbers of disk and mount."""

    def place(self, pool: Pool) -> str:
        return f"{pool.target_path} ({_device_path(pool)})"

    def claims(self, pool: Pool) -> frozenset[str]:
        return super().claims(pool) | {device_claim(_device_path(pool))}

    def request(self, pool: Pool) -> MountRequest:
        source = _source(pool)
        kind = _KERNEL_NAMES.get(source.format, source.format)
        return MountRequest(
            source=source.device.path, filesystem=kind, options=source.mount_options
        )

    def unmounting(self, pool: Pool) -> Unmount | None:
        return _source(pool).unmount

    def mismatch(self, pool: Pool, mount: Mount) -> str:
        try:
            device = devices.find(_device_path(pool))
        except errors.StorageError as error:
            return f"{error.message.rstrip('.')}, and {mount_facts(mount)} is still mounted"
        if _is_of(mount, device):
            return ""
        return f"{mount_facts(mount)} is mounted there, and not {device.path} ({device.node})"

    def is_stale(self, mount: Mount) -> bool:
        major, minor = mount.device
        has_one = mount.source.startswith("/dev/") and major != 0
        return has_one and not devices.exists((major, minor))

    def observe_unmounted(self, pool: Pool) -> PoolFacts:
        try:
            found = _look(pool)
        except errors.StorageError as error:
            return PoolFacts(presence=Presence.UNREACHABLE, detail=str(error).rstrip("."))
        self._mounted.pop(found.device.number, None)  # numbers of mounts are given out again
        facts = PoolFacts(
            presence=Presence.ABSENT,
            active=False,
            listed=False,
            devices=(found.identity,),
            warnings=_warnings(found.device),
        )
        if found.contents.empty:
            return replace(facts, detail=f"{found.device.path} holds nothing")
        if self._half_made(pool, found.contents):
            return replace(facts, detail=f"the file system on {found.device.path} is half made")
        facts = replace(
            facts, presence=Presence.PRESENT, data_found=str(found.contents), adoptable=False
        )
        if found.filesystem is None or not _as_declared(pool, found.filesystem):
            return facts
        try:
            mark = self._mark_unmounted(found)
        except (errors.Inaccessible, errors.MissingTool) as error:
            problem = error.message.rstrip(".")
            return replace(facts, data_found=f"{found.contents}, of which {problem}")
        return replace(facts, mark=mark, adoptable=True)

    def _mark_unmounted(self, found: _Found) -> Mark | None:
        kept = self.context.marks.read_named(_name(found.contents)) if found.contents.uuid else None
        if kept is not None or found.filesystem is None:
            return kept
        kind = _KERNEL_NAMES.get(found.filesystem, found.filesystem)
        try:
            with detached.mounted(found.device.node, kind, write=False) as root:
                return self.context.marks.read(root)
        except errors.InUse:
            require_unused(found.device)  # says who it is
            raise

    def observe_mounted(self, pool: Pool, mount: Mount) -> PoolFacts:
        facts = super().observe_mounted(pool, mount)
        device = devices.find(_device_path(pool))
        contents = self._contents_of(device, mount)
        mark = facts.mark
        if mark is None and contents.uuid and facts.presence is Presence.PRESENT:
            mark = self.context.marks.read_named(_name(contents))
        return replace(
            facts,
            mark=mark,
            devices=(devices.identify(device, uuid=contents.uuid),),
            warnings=_warnings(device) + facts.warnings,
        )

    def _contents_of(self, device: BlockDevice, mount: Mount) -> Contents:
        """What stands on a mounted device, looked at once: it stays as long as the mount does."""
        known = self._mounted.get(device.number)
        if known is None or known[0] != (device.sequence, mount.id):
            known = (device.sequence, mount.id), signatures.probe(device.node)
            self._mounted[device.number] = known
        return known[1]

    def _half_made(self, pool: Pool, contents: Contents) -> bool:
        """Whether it is what an interrupted build of this pool left, and nobody's else."""
        record = self.context.marks.read_named(_record(pool))
        return record is not None and contents.uuid == _own_uuid(pool, contents)

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        if volume is None and verb is Verb.BUILD_POOL:
            return (_maker(pool, _device_path(pool)),)
        if volume is None and verb is Verb.DELETE_POOL:
            return (("wipefs", "--all", _device_path(pool)),)
        return super().commands(verb, pool, volume)

    def build(self, pool: Pool, *, overwrite: bool) -> None:
        """Make the file system and mark its root. What a probe finds is in the way."""
        _check_features(pool)
        found = _look(pool)
        device = found.device
        maker = _maker(pool, device.node)
        if not (found.contents.empty or overwrite or self._half_made(pool, found.contents)):
            raise errors.OverwriteRefused(
                f"{device.path} holds {found.contents}.",
                hint="Nothing was changed. Name another device, or set build.policy Overwrite.",
            )
        require_unused(device)
        self.context.marks.write_named(_record(pool), pool.mark("Created"))
        if not found.contents.empty:
            commands.run(("wipefs", "--all", "--force", device.node), timeout=MAKE_SECONDS)
        commands.run(maker, timeout=MAKE_SECONDS)
        devices.settle()
        made = signatures.probe(device.node)
        self._mark_root(pool, device, made, pool.mark("Created"), furnish=True)
        self.context.marks.clear_named(_record(pool))

    def _mark_root(
        self, pool: Pool, device: BlockDevice, contents: Contents, mark: Mark, *, furnish: bool
    ) -> None:
        """Mark the root of a file system that is not mounted.

        :param furnish: give it the permissions that are declared for the target, or the default.
        """
        sole = contents.sole(device.path)
        if sole is None:
            raise errors.ProbeFailed(f"{device.path} holds {contents}.")
        if sole.type not in _UNMARKABLE and not device.read_only:
            kind = _KERNEL_NAMES.get(sole.type, sole.type)
            with detached.mounted(device.node, kind, write=True) as root:
                if furnish:
                    _furnish(pool, root, sole.type)
                if sole.type != "vfat":  # its inodes are numbered anew at each mount
                    self.context.marks.write(root, mark)
                os.fsync(root)
        if contents.uuid:
            self.context.marks.write_named(_name(contents), mark)

    def adopt(self, pool: Pool) -> None:
        if self.mount(pool) is not None:
            with self._open(pool) as directory:
                former = self.context.marks.read(directory.fd)
                mark = _taken_over(pool, former)
                mount = mounts.mount_of_descriptor(directory.fd)
                if mount.filesystem != "vfat":
                    _write_where_possible(lambda: self.context.marks.write(directory.fd, mark))
            contents = self._contents_of(devices.find(_device_path(pool)), mount)
            if contents.uuid:
                self.context.marks.write_named(_name(contents), mark)
            return
        found = _look(pool)
        mark = _taken_over(pool, self._mark_unmounted(found))
        self._mark_root(pool, found.device, found.contents, mark, furnish=False)

    def start(self, pool: Pool) -> None:
        device = devices.find(_device_path(pool))
        elsewhere = [
            item.mount_point
            for item in mounts.mounts()
            if _is_of(item, device) and item.mount_point != mounts.true_place(pool.target_path)
        ]
        if elsewhere and self.mount(pool) is None:
            raise errors.InUse(
                f"{device.path} is mounted on {', '.join(elsewhere)} already.",
                hint="Unmount it there; a file system is for one pool alone.",
            )
        super().start(pool)

    def delete(self, pool: Pool) -> None:
        """Take the signature off the file system that we made, once nothing stands in it."""
        found = _look(pool)
        self.remove_target(pool)
        if found.contents.empty:
            return
        if found.filesystem is None:
            raise errors.OwnedByOther(
                f"{found.device.path} holds {found.contents} now, and not the pool's file system.",
                hint="It was replaced; nothing was changed.",
            )
        require_unused(found.device)
        self._require_empty(pool, found)
        commands.run(("wipefs", "--all", found.device.node), timeout=MAKE_SECONDS)
        devices.settle()
        if found.contents.uuid:
            self.context.marks.clear_named(_name(found.contents))

    def _require_empty(self, pool: Pool, found: _Found) -> None:
        """Look once more, with the journal replayed: the file system itself is to go."""
        kind = _KERNEL_NAMES.get(found.filesystem or "", found.filesystem or "")
        with detached.mounted(found.device.node, kind, write=True) as root:
            mark = self.context.marks.read(root)
            if mark is None and found.contents.uuid:
                mark = self.context.marks.read_named(_name(found.contents))
            if mark is None or mark.resource != pool.resource or mark.origin != "Created":
                raise errors.OwnedByOther(
                    f"The file system on {found.device.path} does not carry the mark of "
                    f"{pool.resource}.",
                    hint="It was replaced; nothing was changed.",
                )
            left = [
                name
                for name in sorted(os.listdir(root))
                if name not in self.furniture and not name.startswith(names.RESERVED_PREFIX)
            ]
        if left:
            raise errors.DeletionRefused(
                f"The file system on {found.device.path} still holds {', '.join(left[:5])}"
                f"{' and more' if len(left) > 5 else ''}.",
                hint="Delete or move what it holds, or set deletionPolicy Retain.",
            )


def device_claim(path: str) -> str:
    """What a pool claims that stands on a device, in the words that all types share."""
    return f"device {os.path.realpath(path)}"


def require_unused(device: BlockDevice) -> None:
    """Refuse a device that anybody holds.

    :raises errors.InUse: with who it is.
    """
    fd = os.open(device.node, os.O_PATH | os.O_CLOEXEC)
    try:
        using = users.users_of(fd)
    finally:
        os.close(fd)
    if using:
        raise errors.InUse(
            f"{device.path} is in use: {'; '.join(using[:5])}.", hint="Nothing was changed."
        )
    if device.read_only:
        raise errors.PermissionRefused(f"{device.path} is read-only.")


def _source(pool: Pool) -> FsSource:
    source = pool.source
    if not isinstance(source, FsSource):
        raise errors.InvalidSpec(f"Pool {pool.name!r} has no fs.", hint="Give fs.device.")
    return source


def _device_path(pool: Pool) -> str:
    return _source(pool).device.path


def _look(pool: Pool) -> _Found:
    device = devices.find(_device_path(pool))
    return _Found(device=device, contents=signatures.probe(device.path))


def _is_of(mount: Mount, device: BlockDevice) -> bool:
    """Whether a mount is of a device. File systems that may span several have no number of it."""
    if mount.device == device.number:
        return True
    if not mount.source.startswith("/dev/"):
        return False
    node = os.path.realpath(mount.source)
    return node == device.node or (mount.filesystem == "btrfs" and _share(node, device.node))


_BTRFS = Path("/sys/fs/btrfs")
"""A directory for each file system that is mounted, in which ``devices`` has a link for each of
its devices."""


def _share(one: str, other: str) -> bool:
    """Whether two devices, by the kernel's names, carry one btrfs: a mount names one of them."""
    for entry in _BTRFS.glob("*/devices"):
        with contextlib.suppress(OSError):
            if {os.path.basename(one), os.path.basename(other)} <= set(os.listdir(entry)):
                return True
    return False


def _warnings(device: BlockDevice) -> tuple[str, ...]:
    told = devices.unstable_name(device.path)
    return (told,) if told else ()


def _as_declared(pool: Pool, filesystem: str) -> bool:
    declared = _source(pool).format
    return declared == "auto" or filesystem in _PROBED_NAMES.get(declared, (declared,))


def _name(contents: Contents) -> str:
    return f"file system {contents.uuid}"


def _record(pool: Pool) -> str:
    return f"build of {pool.uid}"


def _own_uuid(pool: Pool, contents: Contents | None = None) -> str:
    """The UUID of the file system that is made for a pool; vfat has a short one."""
    made = str(uuid.uuid5(_NAMESPACE, pool.uid))
    short = contents is not None and any(item.type == "vfat" for item in contents.signatures)
    return _short(made) if short else made


def _short(made: str) -> str:
    return f"{made[:4]}-{made[4:8]}".upper()


def _maker(pool: Pool, node: str) -> tuple[str, ...]:
    kind = _source(pool).format
    if kind not in _MAKERS:
        known = ", ".join(_MAKERS)
        raise errors.Unsupported(
            f"A file system of format {kind} can't be made on {_device_path(pool)}.",
            hint=f"Give one of the formats {known}; or make it by hand, and it is taken over.",
        )
    made = _own_uuid(pool)
    return _MAKERS[kind](_short(made) if kind == "vfat" else made, node)


def _check_features(pool: Pool) -> None:
    if pool.spec.features is not None and pool.spec.features.copy_on_write is not None:
        raise errors.Unsupported(
            "Copy-on-write can't be set for a file system of the formats that can be made.",
            hint="Only btrfs has it; leave features.copyOnWrite out.",
        )


def _furnish(pool: Pool, root: int, filesystem: str) -> None:
    wanted = (pool.spec.target.permissions if pool.spec.target else None) or Permissions()
    default = None if filesystem == "vfat" else ROOT_MODE
    files.set_permissions(
        root,
        mode=wanted.mode if wanted.mode is not None else default,
        owner=wanted.owner,
        group=wanted.group,
        label=wanted.label,
    )


def _taken_over(pool: Pool, former: Mark | None) -> Mark:
    ours = former is not None and former.resource == pool.resource
    return pool.mark(former.origin if former is not None and ours else "Adopted")


def _write_where_possible(write: Callable[[], object]) -> None:
    """Do without on a file system that is mounted to be read only."""
    try:
        write()
    except errors.PermissionRefused as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EROFS:
            raise


POOL_TYPE = PoolType(
    name="fs",
    order=2,
    description="A file system on a block device, mounted at the target.",
    source=FsSource,
    volume_formats=get_args(FileFormat),
    default_volume_format="raw",
    operations=frozenset(Operation) - {Operation.FIND_SOURCES},
    needs=Needs(programs=("mount", "umount", "partx", "wipefs")),
    format_needs={
        kind: Needs(filesystems=(_KERNEL_NAMES.get(kind, kind),))
        for kind in get_args(FsSource.model_fields["format"].annotation)
        if kind != "auto"
    },
    backend=FsBackend,
)
