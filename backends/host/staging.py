"""The directory beneath a pool where things are made before they get their names."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat as modes
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from backends import errors, names
from backends.host import files
from backends.host.files import Directory, Kind

NAME = names.RESERVED_PREFIX
"""Of the staging directory; it is no volume's."""

_LOST_RACES = 100


@dataclass(slots=True)
class _Stage:
    """The users of one pool's staging directory.

    :param lock: held while the directory is made or removed, so that a pool on a dead server
        holds up no other pool.
    :param references: threads that hold or wait for ``lock``, or stage; under ``_stages_lock``.
    :param users: threads that stage; under ``lock``.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    references: int = 0
    users: int = 0


_stages: dict[tuple[int, int], _Stage] = {}
_stages_lock = threading.Lock()


@contextlib.contextmanager
def opened(directory: Directory) -> Iterator[Directory]:
    """The private directory beneath a pool where a volume is made before it gets its name.

    It is made with mode 0700 if missing, and removed again by the last of this process's threads
    if nothing is left in it. Another process may remove it while it is empty; then creating in it
    raises ``errors.NotFound``, and the step is repeated.

    :raises errors.Inaccessible: a link or a file stands in its place.
    :raises errors.OwnedByOther: somebody else's directory stands in its place.
    """
    with _stage_of(directory) as stage:
        with stage.lock:
            made = _open(directory)
            stage.users += 1
        try:
            yield made
        finally:
            made.close()
            with stage.lock:
                stage.users -= 1
                if stage.users == 0:
                    _remove(directory)


def listed(directory: Directory) -> list[str]:
    """The names in the staging directory, sorted: what runs now, and what a dead agent left.

    :raises errors.Inaccessible: a link or a file stands in its place.
    """
    try:
        with directory.open_directory(NAME) as found:
            return sorted(found.names())
    except errors.NotFound:
        return []


@contextlib.contextmanager
def _stage_of(directory: Directory) -> Iterator[_Stage]:
    facts = os.fstat(directory.fd)
    key = (facts.st_dev, facts.st_ino)
    with _stages_lock:
        stage = _stages.setdefault(key, _Stage())
        stage.references += 1
    try:
        yield stage
    finally:
        with _stages_lock:
            stage.references -= 1
            if stage.references == 0:
                del _stages[key]


def _open(directory: Directory) -> Directory:
    for _ in range(_LOST_RACES):
        with contextlib.suppress(errors.AlreadyExists):
            directory.mkdir(NAME, 0o700)
        try:
            found = directory.open_directory(NAME)
        except errors.NotFound:
            continue  # another process removed it in between
        try:
            _make_private(directory, found)
        except BaseException:
            found.close()
            raise
        return found
    raise errors.InUse(
        f"{directory.shown(NAME)} is removed again and again by another process.",
        hint="Run one agent for a pool.",
    )


def _make_private(directory: Directory, found: Directory) -> None:
    facts = os.fstat(found.fd)
    if facts.st_uid != os.geteuid() and facts.st_uid != _owner_of_new(directory):
        raise errors.OwnedByOther(
            f"{found.path} belongs to user {facts.st_uid}.",
            hint="See what is in it, and remove it.",
        )
    if modes.S_IMODE(facts.st_mode) != 0o700:
        files.set_permissions(found.fd, mode=0o700)


def _owner_of_new(directory: Directory) -> int:
    """Whom the file system takes us for; an NFS server with root_squash gives root another name."""
    name = f"{NAME}-{secrets.token_hex(8)}"
    directory.mkdir(name, 0o700)
    try:
        return directory.stat(name).st_uid
    finally:
        directory.remove_directory(name)


def _remove(directory: Directory) -> None:
    # Something is left in it, or another process was first.
    with contextlib.suppress(errors.DeletionRefused, errors.NotFound):
        directory.remove_directory(NAME)


def discard(stage: Directory, name: str) -> None:
    """Remove what stands under a name in the staging directory, if anything does."""
    if not stage.exists(name):
        return
    if files.kind_of(stage.stat(name)) is Kind.DIRECTORY:
        stage.remove_directory(name)
    else:
        stage.remove_file(name)
