"""Marks of ownership that live with the data.

A mark is three extended attributes on a file or directory. The uid is written last and removed
first, so that a half-written mark is none.

Some file systems keep no ``user`` attributes (vfat, many NFS servers), and FIFOs, sockets, links
and device nodes have none anywhere (xattr(7)). For these the mark is a small file in the state
directory instead, found by the inode's identity. An inode's number alone is none, as it is given
to another file once its own is gone. So the identity is, whichever is there first:

1. on vfat, which numbers its files anew whenever it reads them anew, the file system's serial
   number, and the file's first block and time of birth: renaming, growing and a new mount leave
   both as they are, and a later file in the block was born later;
2. the file handle, which holds the inode's generation or the NFS server's name for the file;
3. on ramfs, number, device and boot, since nothing there outlives the boot and numbers don't recur;
4. number, time of birth, and file system (FUSE has handles, but they don't outlive a mount).

Where none of these is to be had, nothing can be marked, and ``write`` says so. An identity that
changes, as that of a vfat file which was emptied or moved by a defragmenter, loses the mark: what
was ours counts as not ours and is left alone until it is adopted. The other way round, a foreign
file that counts as ours, can't come of it.

The attributes are written by anybody who may write to the file. They say what we made; they are
no proof against the file's owner.

What is no inode of a file system (a LUN, a partition of a label without names) has its mark in the
state directory alone, under what its pool type knows it by: ``read_named`` and its like.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import secrets
import stat as modes
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from backends import errors
from backends.host import kernel, mounts

Origin = Literal["Created", "Adopted"]

UID = "user.poolkeeper.uid"
RESOURCE = "user.poolkeeper.resource"
ORIGIN = "user.poolkeeper.origin"

_SETTLED = 2 * 10**9
"""Nanoseconds after which a directory's time of change is taken to tell all changes."""

_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose a thing on the host is.

    :param uid: ``metadata.uid`` of the resource.
    :param resource: kind, namespace and name, for people: ``StorageVolume/default/disk1``.
    :param origin: ``Adopted`` for what stood there before the resource did.
    :param name: of the thing, where it can't say so itself; only in the state directory.
    """

    uid: str
    resource: str
    origin: Origin
    name: str = ""


class MarkStore:
    """Reads and writes marks, and keeps those that can't live with the data.

    :param state_directory: the agent's own; ``marks/`` is made in it with the first such mark.
    """

    def __init__(self, state_directory: pathlib.Path) -> None:
        self._directory = state_directory / "marks"
        self._seen: tuple[int, bool] = (-1, False)

    def read(self, fd: int) -> Mark | None:
        """The mark of an open inode; ``O_PATH`` is enough.

        For a file without a mark this is one getxattr(2), and one stat(2) of the state directory.

        :raises errors.PermissionRefused: an ordinary user may not read the attributes of a file
            that it may not read.
        """
        with _translated("read a mark of ownership"):
            uid = _attribute(_inode(fd), UID)
            return self._kept_mark(fd) if uid is None else _attribute_mark(fd, uid)

    def read_entry(self, directory_fd: int, name: str) -> Mark | None:
        """The mark of a name in an open directory; of a link, the link's own.

        A name without a mark, as most are in a large directory, is not opened.
        """
        path = f"{_inode(directory_fd)}/{name}"
        with _translated(f"read the mark of {name}"):
            marked = _attribute(path, UID, follow_symlinks=False) is not None
            if not marked and not self._keeps_any():
                return None
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory_fd)
        try:
            return self.read(fd)
        finally:
            os.close(fd)

    def write(self, fd: int, mark: Mark) -> None:
        """Mark an open inode, in place of any mark that it has; ``O_PATH`` is enough.

        The mark outlives a power cut once the inode has been synced.

        :raises errors.Unsupported: neither attributes nor a lasting identity are to be had.
        """
        _check(mark)
        with _translated("write a mark of ownership"):
            if _may_have_attributes(fd) and _write_attributes(fd, mark):
                return
            self._keep(_required_identity(fd), mark)

    def clear(self, fd: int) -> None:
        """Take the mark off an open inode; without one, nothing happens. ``O_PATH`` is enough.

        Before a file is removed whose mark is in the state directory, this removes that too.
        """
        # GlusterFS has forgotten a file that was removed, and its attributes with it.
        with _translated("remove a mark of ownership"), _suppressed(errno.ESTALE):
            self._clear(fd)

    def _clear(self, fd: int) -> None:
        if _may_have_attributes(fd):
            for name in (UID, RESOURCE, ORIGIN):
                _remove_attribute(fd, name)
        if self._keeps_any():
            for identity in _identities(fd):
                self._entry(identity).unlink(missing_ok=True)
            self._sync()

    def read_named(self, thing: str) -> Mark | None:
        """The mark of what has no inode to carry one, such as a file system that is not mounted.

        Without any mark in the state directory this is one stat(2).

        :param thing: a name that nothing else will ever have: ``filesystem UUID``.
        """
        with _translated(f"read the mark of the {thing}"):
            return self._kept(_named(thing)) if self._keeps_any() else None

    def write_named(self, thing: str, mark: Mark) -> None:
        """Keep a mark of such a thing, in place of any that it has; it outlives a power cut."""
        _check(mark)
        with _translated(f"write the mark of the {thing}"):
            self._keep(_named(thing), mark)

    def clear_named(self, thing: str) -> None:
        """Forget the mark of such a thing; without one, nothing happens."""
        with _translated(f"remove the mark of the {thing}"):
            if self._keeps_any():
                self._entry(_named(thing)).unlink(missing_ok=True)
                self._sync()

    def named(self, prefix: str) -> dict[str, Mark]:
        """The marks of all such things whose names begin so, by name."""
        if not self._keeps_any():
            return {}
        with _translated(f"read the marks of {prefix}"):
            entries = [json.loads(item.read_bytes()) for item in self._directory.glob("*.json")]
        return {
            item["identity"].removeprefix(_NAMED): mark
            for item in entries
            if item["identity"].startswith(_named(prefix))
            and (mark := _from_entry(item)) is not None
        }

    def _entry(self, identity: str) -> pathlib.Path:
        return self._directory / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"

    def _keeps_any(self) -> bool:
        """Whether the state directory holds any mark, looked at anew when it has changed."""
        try:
            changed = self._directory.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        seen, keeps_any = self._seen
        if seen != changed:
            keeps_any = any(self._directory.glob("*.json"))
            # A change within the clock's tick of another does not show in the time.
            if time.time_ns() - changed > _SETTLED:
                self._seen = (changed, keeps_any)
        return keeps_any

    def _kept_mark(self, fd: int) -> Mark | None:
        if not self._keeps_any():
            return None
        found = (self._kept(identity) for identity in _identities(fd))
        return next((mark for mark in found if mark is not None), None)

    def _kept(self, identity: str) -> Mark | None:
        entry = self._entry(identity)
        try:
            return _from_entry(json.loads(entry.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise errors.SystemFailure(
                f"The mark of ownership {entry} is damaged.",
                hint="Remove it; what it marked counts as not ours until it is adopted.",
            ) from error

    def _keep(self, identity: str, mark: Mark) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry = self._entry(identity)
        staged = self._directory / f".{secrets.token_hex(8)}"
        fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                json.dump({"identity": identity, **asdict(mark)}, file)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(entry)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        self._sync()

    def _sync(self) -> None:
        self._seen = (-1, False)
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


_NAMED = "name "


def _named(thing: str) -> str:
    return f"{_NAMED}{thing}"


def _inode(fd: int) -> str:
    # fgetxattr(2) refuses O_PATH descriptors; through /proc it is the same inode.
    return f"/proc/self/fd/{fd}"


def _may_have_attributes(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return modes.S_ISREG(mode) or modes.S_ISDIR(mode)


def _attribute(path: str, name: str, *, follow_symlinks: bool = True) -> str | None:
    try:
        return os.fsdecode(os.getxattr(path, name, follow_symlinks=follow_symlinks))
    except OSError as error:
        if error.errno == errno.ENODATA or error.errno in _UNSUPPORTED:
            return None
        raise


def _attribute_mark(fd: int, uid: str) -> Mark | None:
    return _valid(uid, _attribute(_inode(fd), RESOURCE), _attribute(_inode(fd), ORIGIN))


def _from_entry(entry: dict[str, object]) -> Mark | None:
    return _valid(entry["uid"], entry["resource"], entry["origin"], entry.get("name", ""))


def _valid(uid: object, resource: object, origin: object, name: object = "") -> Mark | None:
    """The mark if it is whole; what we did not write so is no mark of ours."""
    if not (isinstance(uid, str) and isinstance(resource, str) and uid and resource):
        return None
    for known in get_args(Origin):
        if origin == known:
            return Mark(uid, resource, known, str(name))
    return None


def _check(mark: Mark) -> None:
    if _valid(mark.uid, mark.resource, mark.origin) is None:
        raise ValueError(f"{mark} is not whole")


def _write_attributes(fd: int, mark: Mark) -> bool:
    """Whether the file system took the mark."""
    try:
        _remove_attribute(fd, UID)
        for name, value in ((RESOURCE, mark.resource), (ORIGIN, mark.origin), (UID, mark.uid)):
            os.setxattr(_inode(fd), name, os.fsencode(value))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _remove_attribute(fd: int, name: str) -> None:
    try:
        os.removexattr(_inode(fd), name)
    except OSError as error:
        if error.errno != errno.ENODATA and error.errno not in _UNSUPPORTED:
            raise


def _required_identity(fd: int) -> str:
    identity = next(_identities(fd), None)
    if identity is None:
        raise errors.Unsupported(
            "The file system keeps neither extended attributes nor anything that tells a file "
            "from a later one of the same inode number, so nothing on it can be marked as ours.",
            hint="Use another file system for the pool.",
        )
    return identity


def _identities(fd: int) -> Iterator[str]:
    """What tells the inode from every other one, also from later ones; what lasts longest first.

    Most have one. A vfat file has the second alone until it has contents.
    """
    magic = kernel.filesystem_magic(fd)
    if magic == kernel.FAT_MAGIC:
        lasting = _fat_identity(fd)
        if lasting is not None:
            yield lasting
    if magic != kernel.FUSE_MAGIC:
        # EPERM is a seccomp filter's answer.
        with _suppressed(errno.EOPNOTSUPP, errno.ENOSYS, errno.EOVERFLOW, errno.EPERM):
            handle = kernel.file_handle(fd)
            yield f"handle {magic:x} {handle}"
            return
    facts = os.fstat(fd)
    if magic == kernel.RAMFS_MAGIC:
        yield f"boot {mounts.boot_id()} {facts.st_dev:x} {facts.st_ino}"
        return
    born = kernel.birth_time(fd)
    if born is not None:
        yield f"birth {magic:x} {os.fstatvfs(fd).f_fsid:x} {facts.st_ino} {born}"


def _fat_identity(fd: int) -> str | None:
    """None for what has no block of its own, such as a directory or an empty file, and where the
    kernel tells no time of birth (before Linux 5.19)."""
    born, block, serial = kernel.birth_time(fd), 0, 0
    if born is None or not modes.S_ISREG(os.fstat(fd).st_mode):
        return None
    opened = os.open(_inode(fd), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _suppressed(errno.EPERM, errno.ERANGE, errno.ENOTTY):
            serial, block = kernel.fat_volume_id(opened), kernel.first_block(opened)
    finally:
        os.close(opened)
    return f"fat {serial:08x} {block} {born}" if block else None


@contextlib.contextmanager
def _suppressed(*numbers: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise errors.NotFound(f"Could not {doing}: it is not there.") from error
    except OSError as error:
        raise errors.from_os_error(error, doing=doing) from error
