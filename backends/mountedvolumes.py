"""Pools of files on a file system that has to be mounted first: what fs and netfs share.

Whether a pool is active is read from the kernel's mounts at each look, never remembered. Nothing
is ever made in, listed of, or concluded from the directory beneath a mount that is not there:
every step opens the target anew and checks that it stands on the pool's own mount.
"""

from __future__ import annotations

import abc
import enum
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field

from backends import errors
from backends.base import Pool, PoolFacts, Presence, Verb, Volume
from backends.filevolumes import FileVolumes
from backends.host import commands, mounts, users
from backends.host.files import Directory
from backends.host.mounts import Mount

LOOK_SECONDS = 30.0
"""How long a look at a mounted pool may take, beyond which its device or server counts as dead."""

PATH_SECONDS = 10.0
"""How long the directories above a pool's target may take to be looked up."""

MOUNT_SECONDS = 60.0
"""How long a mount or an unmount may take; a server that is down answers neither."""

SAFE_OPTIONS = ("nodev", "nosuid", "noexec")
"""What every pool is mounted with, as libvirt does; the pool's own options come after."""

_POINT_MODE = 0o700
"""Of a target that we make: while nothing is mounted there, nobody else is to write in it."""


class Unmount(enum.StrEnum):
    WHEN_FREE = "WhenFree"
    LAZY = "Lazy"


Unmounting = Annotated[
    Unmount | None,
    Field(
        description="How the pool is unmounted: WhenFree, the default, waits until nobody uses it "
        "and its device or server answers; Lazy detaches it at once, and who has files open in it "
        "keeps them."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """What is given to mount(8).

    :param filesystem: for ``-t``; empty to leave it to mount.
    :param options: after the safe ones.
    :param environment: variables that a mount helper reads.
    """

    source: str
    filesystem: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()

    def argv(self, target: str) -> tuple[str, ...]:
        options = ",".join((*SAFE_OPTIONS, *self.options))
        kind = ("-t", self.filesystem) if self.filesystem else ()
        return ("mount", "-o", options, *kind, self.source, target)


class MountedVolumes(FileVolumes):
    """A backend whose pools are started by mounting ``pool.target_path``."""

    @abc.abstractmethod
    def request(self, pool: Pool) -> MountRequest:
        """What to mount, without secrets."""

    @abc.abstractmethod
    def unmounting(self, pool: Pool) -> Unmount | None:
        """How the pool is declared to be unmounted."""

    @abc.abstractmethod
    def mismatch(self, pool: Pool, mount: Mount) -> str:
        """Why what is mounted at the target is not the pool's, in words; empty where it is."""

    def is_stale(self, mount: Mount) -> bool:
        """Whether what is mounted can never answer again, so that it may make way."""
        return False

    @abc.abstractmethod
    def observe_unmounted(self, pool: Pool) -> PoolFacts:
        """What can be seen of a pool while nothing is mounted at its target."""

    def observe(self, pool: Pool) -> PoolFacts:
        try:
            mount = self.mount(pool)
            if mount is None:
                return self.observe_unmounted(pool)
            wrong = self.mismatch(pool, mount)
            if wrong and self.is_stale(mount):
                return self.observe_unmounted(pool)
            if wrong:
                return PoolFacts(presence=Presence.UNREACHABLE, detail=wrong)
        except errors.StorageError as error:
            return PoolFacts(presence=Presence.UNREACHABLE, detail=str(error).rstrip("."))
        try:
            return self.observe_mounted(pool, mount)
        except errors.StorageError as error:
            detail = str(error).rstrip(".")
            return PoolFacts(presence=Presence.UNREACHABLE, detail=detail, active=True)

    def observe_mounted(self, pool: Pool, mount: Mount) -> PoolFacts:
        facts = mounts.bounded(
            lambda: super(MountedVolumes, self).observe(pool), LOOK_SECONDS, key=_mount_key(pool)
        )
        if facts.presence is not Presence.PRESENT:  # absent where it was unmounted in between
            return replace(facts, presence=Presence.UNREACHABLE, active=True)
        missing = [item for item in SAFE_OPTIONS if item not in mount.options]
        warnings = facts.warnings
        asked = {part for option in self.request(pool).options for part in option.split(",")}
        if missing and not {"dev", "suid", "exec"} & asked:
            warnings += (f"{mount.mount_point} is mounted without {', '.join(missing)}.",)
        read_only = "ro" in (*mount.options, *mount.filesystem_options)
        turned = read_only and "ro" not in asked and not _is_read_only(mount)
        if turned:
            warnings += (
                f"The file system at {mount.mount_point} can only be read: it was mounted so, or "
                "errors turned it so.",
            )
        return replace(facts, active=True, degraded=turned, warnings=warnings)

    def mount(self, pool: Pool) -> Mount | None:
        """What is mounted at the target, whatever it is."""
        path = pool.target_path
        return mounts.bounded(
            lambda: mounts.mount_at(path), PATH_SECONDS, key=f"the path {path.parent}"
        )

    def claims(self, pool: Pool) -> frozenset[str]:
        path = pool.target_path
        place = mounts.bounded(
            lambda: mounts.true_place(path), PATH_SECONDS, key=f"the path {path.parent}"
        )
        return frozenset({f"directory {place}"})

    def commands(
        self, verb: Verb, pool: Pool, volume: Volume | None = None
    ) -> tuple[tuple[str, ...], ...]:
        target = str(pool.target_path)
        if volume is None and verb is Verb.START_POOL:
            return (self.request(pool).argv(target),)
        if volume is None and verb is Verb.STOP_POOL:
            return (self._unmount_command(pool, target),)
        return super().commands(verb, pool, volume)

    def start(self, pool: Pool) -> None:
        """Mount the file system at the target, which is made if need be.

        What a device that has gone for good left mounted there is unmounted first.
        """
        mount = self.mount(pool)
        if mount is not None:
            wrong = self.mismatch(pool, mount)
            if not wrong:
                return
            if not self.is_stale(mount):
                raise errors.InUse(f"Pool {pool.name!r} can't be mounted: {wrong}.")
            self.unmount(pool, mount)
        self.make_target(pool)
        self.run_mount(pool, self.request(pool))
        mount = self.mount(pool)
        wrong = "nothing is" if mount is None else self.mismatch(pool, mount)
        if wrong:
            raise errors.Inaccessible(
                f"{pool.target_path} was mounted, and now {wrong}.",
                hint="See what else mounts there: findmnt.",
            )

    def run_mount(self, pool: Pool, request: MountRequest) -> None:
        commands.run(
            request.argv(str(pool.target_path)),
            timeout=min(MOUNT_SECONDS, self.context.command_timeout),
            environment=request.environment,
            pass_fds=request.pass_fds,
        )

    def make_target(self, pool: Pool) -> None:
        """Make the directory to mount on, if it is not there. One that we made carries our mark."""
        mounts.bounded(
            lambda: self._make_target(pool), PATH_SECONDS, key=f"the path {pool.target_path.parent}"
        )

    def _make_target(self, pool: Pool) -> None:
        path = pool.target_path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.from_os_error(error, doing=f"make {path.parent}") from error
        with Directory.open(str(path.parent)) as parent:
            if parent.exists(path.name):
                return
            parent.mkdir(path.name, _POINT_MODE)
            with parent.open_directory(path.name) as made:
                self.context.marks.write(made.fd, pool.mark("Created"))

    def remove_target(self, pool: Pool) -> None:
        """Remove the directory beneath the mount if we made it and nothing stands in it."""
        path = pool.target_path
        if self.mount(pool) is not None:
            return
        with Directory.open(str(path.parent)) as parent:
            if not parent.exists(path.name):
                return
            mark = self.context.marks.read_entry(parent.fd, path.name)
            with parent.open_directory(path.name) as directory:
                empty = not directory.names()
            if mark is not None and mark.resource == pool.resource and empty:
                parent.remove_directory(path.name)

    def stop(self, pool: Pool) -> None:
        """Unmount the pool's own file system; refused, by name, while somebody uses it."""
        mount = self.mount(pool)
        if mount is None:
            return
        wrong = self.mismatch(pool, mount)
        if wrong:
            raise errors.InUse(f"{pool.target_path} is not unmounted: {wrong}.")
        self.unmount(pool, mount)

    def unmount(self, pool: Pool, mount: Mount) -> None:
        """Unmount what is at the target.

        :raises errors.InUse: somebody uses it, and the pool does not say ``unmount: Lazy``.
        """
        try:
            commands.run(
                self._unmount_command(pool, mount.mount_point),
                timeout=min(MOUNT_SECONDS, self.context.command_timeout),
            )
        except errors.CommandFailed as error:
            left = self.mount(pool)
            if left is None or left.id != mount.id:
                return
            using = users.users_beneath(mount.mount_point)
            if not using:
                raise
            raise errors.InUse(
                f"{mount.mount_point} can't be unmounted: {_named(using)}.",
                hint="Stop what uses it; it is tried again. To detach it all the same, set unmount "
                "to Lazy.",
            ) from error

    def _unmount_command(self, pool: Pool, mount_point: str) -> tuple[str, ...]:
        lazy = self.unmounting(pool) is Unmount.LAZY
        return ("umount", *(("--lazy",) if lazy else ()), mount_point)

    def _open(self, pool: Pool) -> Directory:
        """The root of the pool's mounted file system, and of nothing else."""
        directory = Directory.open(str(pool.target_path))
        try:
            mount = mounts.mount_of_descriptor(directory.fd)
            place = mounts.true_place(pool.target_path)
            if mount.mount_point not in (place, os.path.realpath(pool.target_path)):
                raise errors.Inaccessible(
                    f"Nothing is mounted at {pool.target_path}.", hint="It is mounted at its start."
                )
            wrong = self.mismatch(pool, mount)
            if wrong:
                raise errors.Inaccessible(f"{pool.target_path} is not the pool's: {wrong}.")
        except BaseException:
            directory.close()
            raise
        return directory


def mount_facts(mount: Mount) -> str:
    """A mount in words: ``/dev/sdb (ext4)``."""
    return f"{mount.source or 'something'} ({mount.filesystem})"


def _mount_key(pool: Pool) -> str:
    return f"pool {pool.name!r} at {pool.target_path}"


def _is_read_only(mount: Mount) -> bool:
    """Whether its kind can only be read anyway."""
    return mount.filesystem in ("iso9660", "squashfs", "erofs")


def _named(using: Sequence[str], most: int = 5) -> str:
    more = len(using) - most
    return "; ".join(using[:most]) + (f"; and {more} more" if more > 0 else "")
