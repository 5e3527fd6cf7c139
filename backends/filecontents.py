"""The contents of a volume that is a file: opened and held, for whatever moves data."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from backends import errors
from backends.base import Link, OpenVolume, Volume
from backends.host import users
from backends.host.files import Directory
from backends.host.marks import MarkStore
from backends.images import chains, probing
from backends.images.formats import same
from backends.images.probing import ImageHeader

HEADERLESS = frozenset({"raw", "iso"})
"""Declared formats that are taken at their word: a guest may write any header into its disk."""


@contextlib.contextmanager
def opened(
    directory: Directory, volume: Volume, marks: MarkStore, *, write: bool
) -> Iterator[OpenVolume]:
    """Open the file of a volume, following no link.

    :raises errors.NotFound: it is not there.
    :raises errors.OwnedByOther: it is opened for writing, and the file is not the volume's.
    :raises errors.FormatChanged: its header is not that of the declared format.
    """
    fd = directory.open_file(volume.name, os.O_RDWR if write else os.O_RDONLY)
    try:
        if write:
            _require_ours(fd, directory.shown(volume.name), volume, marks)
        yield _described(directory, fd, volume)
    finally:
        os.close(fd)


@contextlib.contextmanager
def begun(stage: Directory, name: str, volume: Volume, *, size: int) -> Iterator[OpenVolume]:
    """Begin an empty file that is to take the place of a volume's, or go on with one.

    :param size: bytes of the file that are there and stay; 0 for a new one.
    :raises errors.Conflict: they are not there.
    """
    fd = _kept(stage, name, volume, size) if size else _new(stage, name)
    encryption = volume.spec.encryption
    try:
        yield OpenVolume(
            fd=fd,
            path=f"/proc/self/fd/{fd}",
            pass_fds=(fd,),
            kind="file",
            format=volume.format,
            size=size,
            capacity=volume.capacity or 0,
            encryption=encryption.format if encryption is not None else None,
        )
    finally:
        os.close(fd)


def _new(stage: Directory, name: str) -> int:
    with contextlib.suppress(errors.NotFound):
        stage.remove_file(name)
    return stage.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def _kept(stage: Directory, name: str, volume: Volume, size: int) -> int:
    there = 0
    with contextlib.suppress(errors.NotFound):
        fd = stage.open_file(name, os.O_RDWR)
        there = os.fstat(fd).st_size
        if there >= size:
            os.ftruncate(fd, size)
            return fd
        os.close(fd)
    raise errors.Conflict(
        f"Of the upload to {volume.resource} that broke off {there} bytes are kept, not {size}.",
        hint="Send the whole image, without an offset.",
    )


def users_of(directory: Directory, name: str) -> tuple[str, ...]:
    """Who uses a file or directory, each in words; nobody where it is not there."""
    try:
        fd = directory.open_path(name)
    except errors.NotFound:
        return ()
    try:
        return users.users_of(fd)
    finally:
        os.close(fd)


def path_for_commands(
    directory: Directory, fd: int, name: str, header: ImageHeader
) -> tuple[str, tuple[int, ...]]:
    """A path to an open image, and the descriptors that lead there.

    qemu-img follows links, so it is given the open file itself. Another file that the header calls
    by a relative name is found only from the image's own directory; such an image is opened by
    its name.
    """
    names = (header.backing_path, header.data_file, *header.extents)
    if all(other is None or other.startswith("/") for other in names):
        return f"/proc/self/fd/{fd}", (fd,)
    return directory.path_for_commands(name), directory.pass_fds


def _require_ours(fd: int, path: str, volume: Volume, marks: MarkStore) -> None:
    mark = marks.read(fd)
    if mark is None or (mark.uid != volume.uid and mark.resource != volume.resource):
        raise errors.OwnedByOther(
            f"{path} does not carry the mark of {volume.resource}.",
            hint="It was replaced; nothing was changed.",
        )


def _described(directory: Directory, fd: int, volume: Volume) -> OpenVolume:
    size = os.fstat(fd).st_size
    plain = (f"/proc/self/fd/{fd}", (fd,))
    encrypted = volume.spec.encryption is not None
    if volume.format in HEADERLESS and not encrypted:
        return _open_volume(fd, plain, volume.format, size)
    header = probing.probe(fd)
    path = directory.shown(volume.name)
    if volume.format is not None and not same(volume.format, header.format):
        raise errors.FormatChanged(
            f"{path} is declared {volume.format}, and its header shows {header.format}.",
            hint="Something else wrote to it.",
        )
    if encrypted and header.encryption is None:
        raise errors.FormatChanged(
            f"{path} is declared to be encrypted, and its header shows no encryption.",
            hint="Something else wrote to it.",
        )
    way = path_for_commands(directory, fd, volume.name, header)
    plain_description = _open_volume(fd, way, volume.format or header.format, size, header)
    chain = chains.chain(header, directory.path) if header.backing_path else ()
    return replace(
        plain_description,
        backing_chain=tuple(as_link(link) for link in chain),
        distrusted=_distrusted(path, volume, header, chain),
    )


def as_link(link: chains.BackingLink) -> Link:
    return Link(
        path=link.path,
        format=link.format,
        present=link.present,
        capacity=link.capacity,
        problem=link.problem,
    )


def plain_path(link: chains.BackingLink) -> str:
    """The path as a declaration would have it, without the detours that a header may take."""
    return link.path if link.present is None else os.path.normpath(link.path)


def _distrusted(
    path: str, volume: Volume, header: ImageHeader, chain: Sequence[chains.BackingLink]
) -> str:
    """Why what the header names must not be followed: it is not what is declared."""
    if header.data_file is not None or header.extents:
        return f"The data of {path} is in other files, which its header names."
    declared = volume.backing_path
    found = plain_path(chain[0]) if chain else None
    if found is not None and (declared is None or found != os.path.normpath(declared)):
        said = f"and {declared} is declared" if declared else "and none is declared"
        return f"{path} stands on {found} by its header, {said}."
    return ""


def _open_volume(
    fd: int,
    way: tuple[str, tuple[int, ...]],
    format: str | None,
    size: int,
    header: ImageHeader | None = None,
) -> OpenVolume:
    path, pass_fds = way
    return OpenVolume(
        fd=fd,
        path=path,
        pass_fds=pass_fds,
        kind="file",
        format=format,
        size=size,
        capacity=header.capacity if header is not None else size,
        encryption=header.encryption if header is not None else None,
    )
