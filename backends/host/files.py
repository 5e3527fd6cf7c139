"""Files beneath a directory, reached without following links out of it.

A pool's directory is opened once, by the path that the administrator gave (links in that path are
the administrator's own). Everything after it is a single name that is looked up beneath the open
descriptor and not followed if it is a link. A single name without ``/`` that is not ``.`` or
``..`` can lead nowhere else, so ``O_NOFOLLOW`` does all that openat2(2) with ``RESOLVE_BENEATH |
RESOLVE_NO_SYMLINKS`` would, and works on every kernel and under every seccomp filter.

An inode is opened with ``O_PATH`` first, which neither blocks on a FIFO nor wakes a device nor
needs permission to read; only a regular file is then opened for good, through its descriptor.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat as modes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from backends import errors
from backends.host import kernel

_SELINUX = "security.selinux"
_NO_ATTRIBUTES = (errno.ENODATA, errno.ENOTSUP)


class Kind(enum.Enum):
    """What stands under a name, not following links."""

    FILE = "regular file"
    DIRECTORY = "directory"
    LINK = "symbolic link"
    FIFO = "FIFO"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"


_KINDS = {
    modes.S_IFREG: Kind.FILE,
    modes.S_IFDIR: Kind.DIRECTORY,
    modes.S_IFLNK: Kind.LINK,
    modes.S_IFIFO: Kind.FIFO,
    modes.S_IFSOCK: Kind.SOCKET,
    modes.S_IFCHR: Kind.CHARACTER_DEVICE,
    modes.S_IFBLK: Kind.BLOCK_DEVICE,
}


def kind_of(facts: os.stat_result) -> Kind:
    """What kind of inode ``facts`` are about."""
    return _KINDS[modes.S_IFMT(facts.st_mode)]


@dataclass(frozen=True, slots=True)
class Permissions:
    """Who may use a file or directory, as observed.

    :param mode: the permission bits, set-id and sticky bits included.
    :param label: the SELinux label; None where there is none.
    """

    mode: int
    owner: int
    group: int
    label: str | None


class Directory:
    """An open directory, and what stands directly beneath it.

    Any number of threads may use one; it is closed when none does. Names are single components;
    anything else is a ``ValueError``, for it is a mistake of the caller and never a user's.
    All methods raise ``errors.NotFound`` for a name that is not there, ``errors.Inaccessible``
    for a link where a file or directory is needed, and otherwise as ``errors.from_os_error``.

    :param path: the absolute path, for messages only.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Directory:
        """Open a pool's directory by its absolute path.

        :raises errors.Inaccessible: it is not a directory.
        """
        text = os.fspath(path)
        if not os.path.isabs(text):
            raise ValueError(f"{text!r} is not an absolute path")
        with _translated(f"open the directory {text}"):
            return cls(os.open(text, os.O_RDONLY | os.O_DIRECTORY), text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; once more does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def shown(self, name: str) -> str:
        """The path of a name, for messages only."""
        return os.path.join(self.path, name)

    @property
    def pass_fds(self) -> tuple[int]:
        """What a command needs to open ``path_for_commands``."""
        return (self.fd,)

    def path_for_commands(self, name: str) -> str:
        """A path to a name for a command that is started with ``pass_fds``.

        It leads into this very directory, whatever stands under the directory's path by then. The
        name itself is looked up by the command, which may follow a link: give it only names that
        nobody else can have planted (staged ones), and existing files by their descriptor.
        """
        return f"/proc/self/fd/{self.fd}/{_component(name)}"

    def open_path(self, name: str) -> int:
        """Open whatever stands under the name with ``O_PATH``, a link itself included.

        It needs no permission on the file and has no effect on it. The caller closes it.
        """
        with _translated(f"look up {self.shown(name)}"):
            return os.open(_component(name), os.O_PATH | os.O_NOFOLLOW, dir_fd=self.fd)

    def open_file(self, name: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
        """Open a regular file, and return its descriptor, which the caller closes.

        :param flags: as for open(2). ``O_CREAT`` goes with ``O_EXCL``: it makes a new file.
        :param mode: permission bits of a new file, before the umask.
        :raises errors.Inaccessible: something else than a regular file stands there.
        :raises errors.AlreadyExists: with ``O_CREAT``, anything stands there.
        """
        if flags & os.O_CREAT:
            if not flags & os.O_EXCL:
                raise ValueError("O_CREAT without O_EXCL may open what somebody else planted")
            with _translated(f"create {self.shown(name)}"):
                return os.open(_component(name), flags | os.O_NOFOLLOW, mode, dir_fd=self.fd)
        with self._inode(name) as fd:
            self._require(name, fd, Kind.FILE)
            with _translated(f"open {self.shown(name)}"):
                return os.open(_reopened(fd), flags)

    def open_directory(self, name: str) -> Directory:
        """Open a directory directly beneath this one.

        :raises errors.Inaccessible: a link or something else stands there.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        with _translated(f"open the directory {self.shown(name)}"):
            return Directory(os.open(_component(name), flags, dir_fd=self.fd), self.shown(name))

    def stat(self, name: str) -> os.stat_result:
        """The facts on a name, of a link itself."""
        with _translated(f"examine {self.shown(name)}"):
            return os.stat(_component(name), dir_fd=self.fd, follow_symlinks=False)

    def exists(self, name: str) -> bool:
        """Whether anything stands under the name, such as a link that leads nowhere."""
        try:
            self.stat(name)
        except errors.NotFound:
            return False
        return True

    def entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """Each name with its facts (lstat), in no order; what vanishes meanwhile is left out.

        It includes names that start with ``names.RESERVED_PREFIX``. A name that is not UTF-8
        comes with surrogates, as everywhere in Python.
        """
        for name in self.names():
            with contextlib.suppress(errors.NotFound):
                yield name, self.stat(name)

    def names(self) -> list[str]:
        """The names in the directory, in no order."""
        with _translated(f"list {self.path}"):
            # A description of its own: the position of self.fd is shared between threads.
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.fd)
            try:
                return os.listdir(fd)
            finally:
                os.close(fd)

    def mkdir(self, name: str, mode: int = 0o777) -> None:
        """Make a directory.

        :param mode: permission bits, before the umask.
        :raises errors.AlreadyExists: anything stands there.
        """
        with _translated(f"make the directory {self.shown(name)}"):
            os.mkdir(_component(name), mode, dir_fd=self.fd)

    def remove_file(self, name: str) -> None:
        """Remove a name that is no directory; of a link, the link."""
        with _translated(f"remove {self.shown(name)}"):
            os.unlink(_component(name), dir_fd=self.fd)

    def remove_directory(self, name: str) -> None:
        """Remove an empty directory.

        :raises errors.DeletionRefused: something stands in it.
        """
        with _translated(f"remove the directory {self.shown(name)}"):
            os.rmdir(_component(name), dir_fd=self.fd)

    def fsync(self) -> None:
        """Make what was created, renamed and removed here outlast a power cut."""
        with _translated(f"write out {self.path}"):
            _sync_directory(self.fd)

    def publish(self, from_directory: Directory, temp_name: str, name: str) -> None:
        """Give a finished file or directory its name here, whole or not at all, for good.

        A file's data reach the disk before its name does, and the name before this returns.
        Nothing is ever replaced. Where the file system can't rename so (NFS), a file gets its name
        as a second link; a directory replaces an empty one that is made to hold its place, and
        after a power cut in between that empty one may be what stands there.

        :raises errors.AlreadyExists: anything stands under ``name``; the staged one is kept.
        :raises errors.Unsupported: the file system can do none of this.
        """
        facts = from_directory.stat(temp_name)
        from_directory._write_out(temp_name, facts)
        with _translated(f"give {self.shown(name)} its name"):
            try:
                kernel.rename_without_replacing(
                    from_directory.fd, _component(temp_name), self.fd, _component(name)
                )
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                move = _move_directory if modes.S_ISDIR(facts.st_mode) else _move_file
                move(from_directory, temp_name, self, name)
            _sync_directory(self.fd)
            _sync_directory(from_directory.fd)

    def replace(self, from_directory: Directory, temp_name: str, name: str) -> None:
        """Put a finished file in the place of the one here, whole or not at all, for good.

        Whoever has the former one open keeps it.
        """
        from_directory._write_out(temp_name, from_directory.stat(temp_name))
        with _translated(f"replace {self.shown(name)}"):
            os.rename(
                _component(temp_name),
                _component(name),
                src_dir_fd=from_directory.fd,
                dst_dir_fd=self.fd,
            )
            _sync_directory(self.fd)
            _sync_directory(from_directory.fd)

    def permissions(self, name: str) -> Permissions:
        """The owner, group, mode and SELinux label of a name, of a link itself."""
        with self._inode(name) as fd:
            return read_permissions(fd)

    def set_permissions(
        self,
        name: str,
        *,
        mode: int | None = None,
        owner: int | None = None,
        group: int | None = None,
        label: str | None = None,
    ) -> bool:
        """Set what is given of a file's or directory's permissions; see ``set_permissions``.

        :raises errors.Inaccessible: a link stands there.
        """
        with self._inode(name) as fd, _translated(f"set the permissions of {self.shown(name)}"):
            return _set_permissions(fd, mode, owner, group, label)

    @contextlib.contextmanager
    def _inode(self, name: str) -> Iterator[int]:
        fd = self.open_path(name)
        try:
            yield fd
        finally:
            os.close(fd)

    def _require(self, name: str, fd: int, wanted: Kind) -> None:
        kind = kind_of(os.fstat(fd))
        if kind is not wanted:
            raise errors.Inaccessible(
                f"{self.shown(name)} is a {kind.value}, where a {wanted.value} is needed.",
                hint="Remove it, or choose another name.",
            )

    def _write_out(self, name: str, facts: os.stat_result) -> None:
        if modes.S_ISDIR(facts.st_mode):
            with self.open_directory(name) as directory:
                directory.fsync()
        elif modes.S_ISREG(facts.st_mode):
            try:
                fd = self.open_file(name)
            except errors.PermissionRefused:
                # Its mode keeps out even us, its owner, so that all must be written out.
                with _translated(f"write out {self.shown(name)}"):
                    kernel.sync_filesystem(self.fd)
                return
            try:
                with _translated(f"write out {self.shown(name)}"):
                    os.fsync(fd)
            finally:
                os.close(fd)


def read_permissions(fd: int) -> Permissions:
    """The permissions of an open inode; ``O_PATH`` is enough."""
    with _translated("read permissions"):
        facts = os.fstat(fd)
        return Permissions(
            modes.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, _read_label(fd)
        )


def set_permissions(
    fd: int,
    *,
    mode: int | None = None,
    owner: int | None = None,
    group: int | None = None,
    label: str | None = None,
) -> bool:
    """Set what is given, and touch nothing that is so already; ``O_PATH`` is enough.

    :param label: the SELinux label, which also a host without SELinux keeps where it can.
    :return: whether anything had to be changed.
    """
    with _translated("set permissions"):
        return _set_permissions(fd, mode, owner, group, label)


def _set_permissions(
    fd: int, mode: int | None, owner: int | None, group: int | None, label: str | None
) -> bool:
    # fchmod(2) and fchown(2) refuse O_PATH descriptors; through /proc it is the same inode.
    inode, before = _reopened(fd), os.fstat(fd)
    if modes.S_ISLNK(before.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    wanted_owner = -1 if owner is None or owner == before.st_uid else owner
    wanted_group = -1 if group is None or group == before.st_gid else group
    changed = False
    if (wanted_owner, wanted_group) != (-1, -1):
        # The owner before the mode: chown(2) clears the set-id bits.
        os.chown(inode, wanted_owner, wanted_group)
        changed = True
    if mode is not None and modes.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.chmod(inode, mode)
        changed = True
    if label is not None and _read_label(fd) != label:
        os.setxattr(inode, _SELINUX, os.fsencode(label) + b"\0")
        changed = True
    return changed


def _read_label(fd: int) -> str | None:
    try:
        return os.fsdecode(os.getxattr(_reopened(fd), _SELINUX).rstrip(b"\0"))
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return None
        raise


def _move_file(source: Directory, old: str, target: Directory, new: str) -> None:
    try:
        os.link(old, new, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise errors.Unsupported(
                f"The file system of {target.path} can neither rename without replacing nor link.",
                hint="Use another file system for the pool.",
            ) from error
        raise
    os.unlink(old, dir_fd=source.fd)


def _move_directory(source: Directory, old: str, target: Directory, new: str) -> None:
    os.mkdir(new, 0o700, dir_fd=target.fd)
    try:
        # rename(2) replaces an empty directory only, so what others put there meanwhile is safe.
        os.rename(old, new, src_dir_fd=source.fd, dst_dir_fd=target.fd)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        os.rmdir(new, dir_fd=target.fd)
        raise


def _sync_directory(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        # fsync(2): a file system that can't do so for directories answers EINVAL.
        if error.errno != errno.EINVAL:
            raise


def _component(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a single name")
    return name


def _reopened(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


_TRANSLATIONS: dict[int, tuple[Callable[..., errors.StorageError], str, str]] = {
    errno.ENOENT: (errors.NotFound, "it is not there", ""),
    errno.EEXIST: (errors.AlreadyExists, "something stands there", "Choose another name."),
    errno.ENOTEMPTY: (
        errors.DeletionRefused,
        "something stands in it",
        "Remove what is in it first.",
    ),
}


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        known = _TRANSLATIONS.get(error.errno or 0)
        if known is None:
            raise errors.from_os_error(error, doing=doing) from error
        kind, why, hint = known
        raise kind(f"Could not {doing}: {why}.", hint=hint) from error
