"""Volumes that are files in a directory: what dir, fs, netfs and vstorage pools share.

A volume is made in the pool's private staging directory, marked, given its permissions, and only
then renamed to its name, without replacing what may stand there. A kill at any moment leaves
either the complete volume under its name, or something in the staging directory that the next
look removes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from backends import errors, filecontents, filling, names, stagedfiles
from backends.base import (
    Backend,
    BackendContext,
    OpenVolume,
    Pool,
    PoolFacts,
    Presence,
    Progress,
    Verb,
    Volume,
    VolumeFacts,
    Work,
)
from backends.filecontents import HEADERLESS
from backends.host import attributes, commands, files, mounts, reservations, staging
from backends.host.files import Directory, Kind
from backends.host.marks import Mark, Origin
from backends.images import chains, creating, encrypting, probing
from backends.images.creating import ImageRequest
from backends.images.encrypting import CommandSecrets
from backends.images.formats import FORMATS, same
from backends.sizes import MIB
from backends.spec import Permissions
from backends.stagedfiles import StagedFiles

DEFAULT_FILE_MODE = 0o600
DEFAULT_DIRECTORY_MODE = 0o700
QUICKLY_WRITTEN = 256 * MIB
"""Bytes that any disk writes while a pass may wait for them."""


class FileVolumes(Backend):
    """A backend whose volumes are the entries of ``pool.target_path``."""

    furniture: frozenset[str] = frozenset()
    """Entries that belong to the file system itself."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._staged = StagedFiles()

    def observe(self, pool: Pool) -> PoolFacts:
        try:
            directory = self._open(pool)
        except errors.NotFound:
            return PoolFacts(presence=Presence.ABSENT, detail=f"{pool.target_path} is not there")
        except errors.StorageError as error:
            return PoolFacts(presence=Presence.UNREACHABLE, detail=error.message.rstrip("."))
        with directory:
            try:
                return self._observe_directory(pool, directory)
            except errors.StorageError as error:
                return PoolFacts(presence=Presence.UNREACHABLE, detail=error.message.rstrip("."))

    def _observe_directory(self, pool: Pool, directory: Directory) -> PoolFacts:
        space = mounts.space(directory.fd)
        volumes: dict[str, VolumeFacts] = {}
        skipped: list[tuple[str, str]] = []
        for name, facts in directory.entries():
            if name.startswith(names.RESERVED_PREFIX) or name in self.furniture:
                continue
            reason = _not_a_volume(name, facts)
            if reason:
                skipped.append((name, reason))
            else:
                volumes[name] = self._observe_entry(pool, directory, name, facts)
        return PoolFacts(
            presence=Presence.PRESENT,
            mark=self.context.marks.read(directory.fd),
            capacity=space.capacity,
            allocation=space.allocation,
            available=space.available,
            spoken_for=reservations.outstanding(directory.fd),
            permissions=files.read_permissions(directory.fd),
            volumes=volumes,
            leftovers=self._staged.leftovers(directory),
            skipped=tuple(skipped),
        )

    def _observe_entry(
        self, pool: Pool, directory: Directory, name: str, facts: os.stat_result
    ) -> VolumeFacts:
        path = directory.shown(name)
        is_directory = files.kind_of(facts) is Kind.DIRECTORY
        declared = pool.formats.get(name)
        basic = VolumeFacts(
            name=name,
            path=path,
            key=path,
            type="dir" if is_directory else "file",
            format="dir" if is_directory else declared if declared in HEADERLESS else "raw",
            capacity=0 if is_directory else facts.st_size,
            allocation=0 if is_directory else facts.st_blocks * 512,
            physical=0 if is_directory else facts.st_size,
        )
        try:
            basic = replace(
                basic,
                mark=self.context.marks.read_entry(directory.fd, name),
                permissions=directory.permissions(name),
            )
            if is_directory:
                return basic
            if declared in HEADERLESS and name not in pool.encrypted:
                return replace(basic, header_format=_header_format(directory, name))
            return self._with_header(directory, basic, declared)
        except errors.NotFound:
            return replace(basic, problem="it vanished while it was looked at")
        except errors.StorageError as error:
            return replace(basic, problem=error.message.rstrip("."))

    def _with_header(
        self, directory: Directory, basic: VolumeFacts, declared: str | None
    ) -> VolumeFacts:
        header = _header(directory, basic.name)
        chain: Sequence[chains.BackingLink] = ()
        if header.backing_path is not None:
            chain = chains.chain(header, directory.path)
        return replace(
            basic,
            format=declared if declared and same(declared, header.format) else header.format,
            capacity=header.capacity,
            encryption=header.encryption,
            compat=header.compat,
            cluster_size=header.cluster_size,
            lazy_refcounts=header.lazy_refcounts,
            extended_l2=header.extended_l2,
            backing_path=filecontents.plain_path(chain[0]) if chain else None,
            backing_format=header.backing_format,
            backing_chain=tuple(filecontents.as_link(link) for link in chain),
            problem=probing.MARKED_AS_CORRUPT if header.corrupt else "",
        )

    def granularity(self, format: str | None) -> int:
        return FORMATS[format].granularity if format is not None and format in FORMATS else 1

    def same_format(self, declared: str, observed: str) -> bool:
        return same(declared, observed)

    def space_needed(self, pool: Pool, volume: Volume) -> int:
        if volume.capacity is None or volume.format == "dir":
            return 0
        return creating.space_needed(_request(volume, volume.capacity))

    def takes_long(self, verb: Verb, pool: Pool, volume: Volume) -> bool:
        if super().takes_long(verb, pool, volume):
            return True
        written = volume.spec.preallocation == "Full" and (volume.capacity or 0) > QUICKLY_WRITTEN
        # To turn a passphrase into a key is made to take seconds.
        slow = written or volume.spec.encryption is not None
        return slow and verb is Verb.CREATE_VOLUME

    def check_volume(self, pool: Pool, volume: Volume) -> None:
        names.check_name(volume.name, what="volume name")
        filling.check(volume)
        if volume.format != "dir":
            unknown = MIB if filling.has_source(volume) else 0
            creating.check(_request(volume, volume.capacity or unknown))

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        if volume is None or volume.format == "dir":
            return ()
        path = self.volume_path(pool, volume.name)
        if verb is Verb.CREATE_VOLUME:
            made = creating.commands(_request(volume, volume.capacity or 0), path)
            if volume.capacity is None:  # known only once the image is there
                of = "SOURCE" if filling.has_source(volume) else "BACKING-IMAGE"
                return tuple((*command[:-1], f"SIZE-OF-{of}") for command in made)
            return made
        if verb in (Verb.GROW_VOLUME, Verb.SHRINK_VOLUME) and volume.capacity is not None:
            shrink, format = verb is Verb.SHRINK_VOLUME, volume.format or "raw"
            allocate = volume.spec.resize.allocate and not shrink
            creating.check_resize(format, shrink=shrink, allocate=allocate)
            secret = encrypting.PASSPHRASE if volume.spec.encryption is not None else ()
            return creating.resize_commands(
                format,
                path,
                volume.capacity,
                shrink=shrink,
                allocate=allocate,
                secret=secret,
            )
        return ()

    def create_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        self.check_volume(pool, volume)
        with (
            self._open(pool) as directory,
            staging.opened(directory) as stage,
            self._staged.name(directory, volume.uid) as temporary,
        ):
            try:
                self._make(stage, temporary, volume, work)
                work.check()
                directory.publish(stage, temporary, volume.name)
            except BaseException:
                staging.discard(stage, temporary)
                raise

    @contextmanager
    def replace_volume(
        self, pool: Pool, volume: Volume, *, resume_at: int = 0
    ) -> Iterator[OpenVolume]:
        with (
            self._replacing(pool, volume, stagedfiles.UPLOAD) as (stage, temporary),
            filecontents.begun(stage, temporary, volume, size=resume_at) as opened,
        ):
            yield opened

    def unfinished(self, pool: Pool, volume: Volume) -> int:
        with self._open(pool) as directory:
            return stagedfiles.size_of_upload(directory, volume.uid)

    def remake_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        empty = replace(volume, spec=volume.spec.model_copy(update={"source": None}))
        if empty.capacity is None and empty.backing_path is None:  # it has that of its source
            with self.open_volume(pool, volume) as former:
                empty = replace(empty, capacity=former.capacity)
        with self._replacing(pool, volume) as (stage, temporary):
            staging.discard(stage, stagedfiles.upload_name(volume.uid))
            self._make(stage, temporary, empty, work)

    @contextmanager
    def _replacing(
        self, pool: Pool, volume: Volume, ending: str = ""
    ) -> Iterator[tuple[Directory, str]]:
        """A name in the staging directory; what stands under it in the end replaces the volume.

        :param ending: of a name under which it is kept where it broke off.
        """
        with (
            self._open(pool) as directory,
            staging.opened(directory) as stage,
            self._staged.name(directory, volume.uid, ending) as temporary,
        ):
            self._require_ours(directory, volume)
            try:
                yield stage, temporary
                self._put_in_place(directory, stage, temporary, volume)
            except BaseException as error:
                broke_off = isinstance(error, errors.Interrupted | errors.Cancelled)
                if not (ending and broke_off):
                    staging.discard(stage, temporary)
                raise

    def _put_in_place(
        self, directory: Directory, stage: Directory, temporary: str, volume: Volume
    ) -> None:
        """Replace a volume's file by another, which gets its permissions and its mark."""
        mark = self._require_ours(directory, volume)
        former = directory.open_path(volume.name)
        try:
            kept = files.read_permissions(former)
            stage.set_permissions(
                temporary, mode=kept.mode, owner=kept.owner, group=kept.group, label=kept.label
            )
            self._mark(stage, temporary, volume, mark.origin)
            directory.replace(stage, temporary, volume.name)
            self.context.marks.clear(former)
        finally:
            os.close(former)

    def _capacity(self, volume: Volume) -> int:
        """Bytes of the new volume; an overlay without a capacity gets its backing image's.

        :raises errors.BackingMissing: an image of the chain is not there or can't be read.
        """
        if volume.backing_path is None:
            return volume.capacity or 0
        chain = chains.links(volume.backing_path, volume.backing_format)
        for link in chain:
            if link.problem:
                raise errors.BackingMissing(
                    f"{link.path}, on which volume {volume.name!r} is to stand, can't be used: "
                    f"{link.problem}.",
                    hint="Bring the backing image there first.",
                )
        if volume.capacity is not None:
            return volume.capacity
        if chain[0].capacity is None:
            raise errors.InvalidSpec(
                f"The size of {volume.backing_path} can't be read.", hint="Give a capacity."
            )
        return chain[0].capacity

    def _make(self, stage: Directory, temporary: str, volume: Volume, work: Work) -> None:
        if volume.format == "dir":
            stage.mkdir(temporary, DEFAULT_DIRECTORY_MODE)
        elif filling.has_source(volume):
            self._make_filled(stage, temporary, volume, work)
        else:
            self._make_image(stage, temporary, volume, self._capacity(volume), work)
        default = DEFAULT_DIRECTORY_MODE if volume.format == "dir" else DEFAULT_FILE_MODE
        _give_permissions(stage, temporary, volume.permissions, default_mode=default)
        self._mark(stage, temporary, volume, "Created")

    def _make_image(
        self, stage: Directory, temporary: str, volume: Volume, capacity: int, work: Work
    ) -> None:
        with self._passphrase(volume) as secrets:
            creating.create(
                _request(volume, capacity),
                stage.path_for_commands(temporary),
                self._runner((*stage.pass_fds, *secrets.pass_fds), work),
                checkpoint=work.checkpoint(capacity),
                secrets=secrets,
            )
        work.report(Progress(done=capacity, total=capacity))

    def _make_filled(self, stage: Directory, temporary: str, volume: Volume, work: Work) -> None:
        """Make an image with the contents of the volume's source."""
        with (
            filling.Scratch(f"/proc/self/fd/{stage.fd}") as scratch,
            filling.opened_source(volume, self.context, work, scratch) as source,
        ):
            capacity = filling.capacity(volume, source)
            as_it_is = scratch.holds(source) and _as_it_is(volume, source)
            if as_it_is and scratch.give_name(stage.fd, temporary):
                creating.resize(
                    volume.format or "raw",
                    stage.path_for_commands(temporary),
                    capacity,
                    shrink=False,
                    allocate=False,
                    run=self._runner(stage.pass_fds, work),
                )
                return
            self._make_image(stage, temporary, volume, capacity, Work(cancel=work.cancel))
            self._mark(stage, temporary, volume, "Created")
            staged = replace(volume, name=temporary)
            with filecontents.opened(stage, staged, self.context.marks, write=True) as target:
                filling.fill(volume, source, target, self.context, work)

    def _passphrase(self, volume: Volume) -> AbstractContextManager[CommandSecrets]:
        """The volume's passphrase for commands; none where it is not encrypted."""
        secret = filling.passphrase(volume, self.context)
        return encrypting.secrets_for_commands(**{encrypting.SECRET_ID: secret})

    def _runner(self, pass_fds: Sequence[int], work: Work) -> creating.Run:
        def run(argv: Sequence[str]) -> None:
            commands.run(
                argv,
                timeout=self.context.command_timeout,
                pass_fds=pass_fds,
                cancel=work.cancel,
            )

        return run

    def _mark(self, directory: Directory, name: str, volume: Volume, origin: Origin) -> None:
        fd = directory.open_path(name)
        try:
            self.context.marks.write(fd, volume.mark(origin))
        finally:
            os.close(fd)

    def adopt_volume(self, pool: Pool, volume: Volume) -> None:
        with self._open(pool) as directory:
            mark = self.context.marks.read_entry(directory.fd, volume.name)
            former: Origin = "Adopted"
            if mark is not None and mark.resource == volume.resource:
                former = mark.origin
            self._mark(directory, volume.name, volume, former)

    def resize_volume(self, pool: Pool, volume: Volume, work: Work) -> None:
        if volume.capacity is None:
            return
        with (
            self._open(pool) as directory,
            self._opened_image(directory, volume) as image,
            self._passphrase(volume) as secrets,
        ):
            path, pass_fds, header = image
            self._require_ours(directory, volume)
            observed = self._observe_entry(
                pool, directory, volume.name, directory.stat(volume.name)
            )
            shrink = observed.capacity is not None and volume.capacity < observed.capacity
            creating.resize(
                volume.format or "raw",
                path,
                volume.capacity,
                shrink=shrink,
                allocate=volume.spec.resize.allocate and not shrink,
                run=self._runner((*pass_fds, *secrets.pass_fds), work),
                checkpoint=work.checkpoint(volume.capacity),
                header=header,
                secrets=secrets,
            )

    @contextmanager
    def _opened_image(
        self, directory: Directory, volume: Volume
    ) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """A path to an existing image, the descriptors that lead there, and the bytes before its
        contents."""
        plain = volume.spec.encryption is None
        if volume.format in HEADERLESS and plain:
            yield directory.path_for_commands(volume.name), directory.pass_fds, 0
            return
        fd = directory.open_file(volume.name, os.O_RDWR)
        try:
            header = probing.probe(fd)
            if not plain and header.encryption is None:
                raise errors.FormatChanged(
                    f"{directory.shown(volume.name)} is declared to be encrypted, and its header "
                    "shows no encryption.",
                    hint="Something else wrote to it.",
                )
            if volume.format in HEADERLESS:
                by_name = directory.path_for_commands(volume.name)
                yield by_name, directory.pass_fds, header.payload_offset or 0
                return
            path, pass_fds = filecontents.path_for_commands(directory, fd, volume.name, header)
            yield path, pass_fds, 0
        finally:
            os.close(fd)

    @contextmanager
    def open_volume(
        self, pool: Pool, volume: Volume, *, write: bool = False
    ) -> Iterator[OpenVolume]:
        with (
            self._open(pool) as directory,
            filecontents.opened(directory, volume, self.context.marks, write=write) as contents,
        ):
            yield contents

    def users(self, pool: Pool, volume: Volume) -> tuple[str, ...]:
        with self._open(pool) as directory:
            return filecontents.users_of(directory, volume.name)

    def set_volume_permissions(self, pool: Pool, volume: Volume) -> None:
        with self._open(pool) as directory:
            self._require_ours(directory, volume)
            _give_permissions(directory, volume.name, volume.permissions)

    def delete_volume(self, pool: Pool, volume: Volume) -> None:
        with self._open(pool) as directory:
            stagedfiles.discard_uploads(directory, volume.uid)
            if not directory.exists(volume.name):
                return
            self._require_ours(directory, volume)
            fd = directory.open_path(volume.name)
            try:
                if files.kind_of(os.fstat(fd)) is Kind.DIRECTORY:
                    directory.remove_directory(volume.name)
                else:
                    directory.remove_file(volume.name)
                self.context.marks.clear(fd)
            finally:
                os.close(fd)
            directory.fsync()

    def clean(self, pool: Pool) -> None:
        with self._open(pool) as directory, staging.opened(directory) as stage:
            for name in set(self._staged.leftovers(directory)) - {staging.NAME}:
                staging.discard(stage, name)

    def adopt(self, pool: Pool) -> None:
        with self._open(pool) as directory:
            mark = self.context.marks.read(directory.fd)
            former: Origin = "Adopted"
            if mark is not None and mark.resource == pool.resource:
                former = mark.origin
            self.context.marks.write(directory.fd, pool.mark(former))

    def set_permissions(self, pool: Pool, permissions: Permissions) -> None:
        with self._open(pool) as directory:
            files.set_permissions(
                directory.fd,
                mode=permissions.mode,
                owner=permissions.owner,
                group=permissions.group,
                label=permissions.label,
            )

    def _open(self, pool: Pool) -> Directory:
        return Directory.open(str(pool.target_path))

    def _require_ours(self, directory: Directory, volume: Volume) -> Mark:
        """Look once more, at the very thing: what was planned may have been replaced since."""
        mark = self.context.marks.read_entry(directory.fd, volume.name)
        if mark is None or (mark.uid != volume.uid and mark.resource != volume.resource):
            raise errors.OwnedByOther(
                f"{directory.shown(volume.name)} does not carry the mark of {volume.resource}.",
                hint="It was replaced; nothing was changed.",
            )
        return mark


def set_copy_on_write(directory: Directory, wanted: bool | None) -> None:
    """Set whether new files in a directory are copied on write, as libvirt's ``features/cow``.

    Without a wish copying is turned off where the file system is btrfs, because images fragment.

    :raises errors.Unsupported: a wish on a file system that can't.
    """
    filesystem = mounts.filesystem_type(directory.fd)
    if filesystem == "btrfs":
        try:
            attributes.set_nocow(directory.fd, nocow=not wanted)
        except OSError as error:
            raise errors.from_os_error(error, doing="turn copy-on-write on or off") from error
    elif wanted is not None:
        raise errors.Unsupported(
            f"Copy-on-write can't be set for {directory.path} on {filesystem}.",
            hint="Only btrfs has it; leave features.copyOnWrite out.",
        )


def _header(directory: Directory, name: str) -> probing.ImageHeader:
    fd = directory.open_file(name, os.O_RDONLY)
    try:
        return probing.probe(fd)
    finally:
        os.close(fd)


def _header_format(directory: Directory, name: str) -> str | None:
    """What stands in a volume that is declared to have no header; nonsense counts as nothing."""
    try:
        return _header(directory, name).format
    except (errors.ProbeFailed, errors.PermissionRefused):
        return None


def _not_a_volume(name: str, facts: os.stat_result) -> str:
    """Why an entry is no volume; empty where it is one."""
    try:
        names.check_name(name, what="name")
    except errors.InvalidSpec as error:
        return error.message.rstrip(".")
    kind = files.kind_of(facts)
    if kind in (Kind.FILE, Kind.DIRECTORY):
        return ""
    return f"it is a {kind.value}" + (", which is not followed" if kind is Kind.LINK else "")


def _as_it_is(volume: Volume, source: OpenVolume) -> bool:
    """Whether an image that was fetched is what is declared, and need not be copied."""
    spec = volume.spec
    asked = (spec.encryption, spec.compat, spec.cluster_size, spec.features, spec.nocow)
    sparse = not spec.allocation and spec.preallocation in (None, "Off")
    plain = sparse and not any(asked)
    return plain and same(volume.format or "raw", source.format or "raw")


def _request(volume: Volume, capacity: int) -> ImageRequest:
    spec = volume.spec
    features = spec.features
    allocation = spec.allocation
    if allocation is None and filling.has_source(volume):
        allocation = 0  # what the source has as a hole stays one
    return ImageRequest(
        format=volume.format or "raw",
        capacity=capacity,
        allocation=allocation,
        preallocation=spec.preallocation,
        nocow=bool(spec.nocow),
        compat=spec.compat,
        cluster_size=spec.cluster_size,
        lazy_refcounts=bool(features and features.lazy_refcounts),
        extended_l2=bool(features and features.extended_l2),
        backing_path=volume.backing_path,
        backing_format=volume.backing_format,
        encryption=spec.encryption,
    )


def _give_permissions(
    directory: Directory, name: str, wanted: Permissions, *, default_mode: int | None = None
) -> None:
    directory.set_permissions(
        name,
        mode=wanted.mode if wanted.mode is not None else default_mode,
        owner=wanted.owner,
        group=wanted.group,
        label=wanted.label,
    )
