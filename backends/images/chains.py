"""Chains of images that stand on one another, followed as qemu would and never guessed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace

from backends import errors
from backends.images import probing
from backends.images.formats import FORMATS, same

MAX_CHAIN = 200
"""How many images may stand on one another; libvirt's limit is the same."""


@dataclass(frozen=True, slots=True)
class BackingLink:
    """One image that another stands on.

    :param path: where it is; control characters and what is not UTF-8 are escaped.
    :param format: as the image above says; ``raw`` where that says nothing.
    :param present: None for what is not a file of this host.
    :param problem: why it can't be used; empty where all is well.
    :param capacity: bytes; None where it is not known.
    """

    path: str
    format: str | None
    present: bool | None
    problem: str = ""
    capacity: int | None = None


def links(path: str, format: str | None) -> tuple[BackingLink, ...]:
    """An image of a known format and all that it stands on, as ``chain`` has them.

    :param path: absolute.
    :param format: libvirt's name; None is taken for raw, as libvirt does: it is never guessed.
    """
    first = _follow(path, format)
    below = _below(first.header, os.path.dirname(path)) if first.header is not None else ()
    return (first.link, *below)


def chain(header: probing.ImageHeader, directory: str) -> tuple[BackingLink, ...]:
    """All images below one, from the top; it ends with the first that can't be followed.

    A format that no header gives is taken for raw, and a raw image stands on nothing, whatever
    it holds. Nothing raises: what is wrong with a link stands in it.

    :param directory: the absolute path of the directory that the image is in.
    """
    return tuple(_below(header, directory))


def _below(header: probing.ImageHeader, directory: str) -> Iterator[BackingLink]:
    seen: set[tuple[int, int]] = set()
    for _ in range(MAX_CHAIN):
        if header.backing_path is None:
            return
        format = header.backing_format or "raw"
        path = _resolved(header.backing_path, directory)
        if path is None:
            yield BackingLink(_printable(header.backing_path), format, None)
            return
        followed = _follow(path, format)
        if followed.identity in seen:
            yield replace(followed.link, problem="the images stand on one another in a loop")
            return
        yield followed.link
        if followed.header is None or followed.identity is None:
            return
        seen.add(followed.identity)
        header, directory = followed.header, os.path.dirname(path)
    if header.backing_path is not None:
        path = _resolved(header.backing_path, directory) or header.backing_path
        why = f"more than {MAX_CHAIN} images stand on one another"
        yield BackingLink(_printable(path), header.backing_format, None, why)


def _resolved(name: str, directory: str) -> str | None:
    """The path of a backing image as qemu takes it; None for what is not a file's name.

    A colon before the first slash makes a name an address (``nbd://``, ``rbd:``, ``json:``); the
    ``file:`` of a path means nothing, whatever slashes follow it.
    """
    if name.startswith("file:/"):
        return "/" + name.removeprefix("file:").lstrip("/")
    if ":" in name.partition("/")[0]:
        return None
    return os.path.join(directory, name)


def _printable(path: str) -> str:
    """A name out of a header may hold anything, such as commands to a terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in path
    )


@dataclass(frozen=True, slots=True)
class _Followed:
    """A link, and how to go on from it: None where there is no way."""

    link: BackingLink
    header: probing.ImageHeader | None = None
    identity: tuple[int, int] | None = None


def _follow(path: str, format: str | None) -> _Followed:
    link = BackingLink(_printable(path), format or "raw", False)
    try:
        fd = _open(path)
    except OSError as error:
        return _Followed(replace(link, problem=error.strerror or str(error)))
    except (errors.StorageError, ValueError) as error:
        return _Followed(replace(link, problem=str(error).rstrip(".")))
    try:
        facts = os.fstat(fd)
        return _examined(replace(link, present=True), fd, (facts.st_dev, facts.st_ino))
    finally:
        os.close(fd)


def _open(path: str) -> int:
    """Open an image for reading, and nothing else: to open a device or a pipe can have effects."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(place).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise errors.ProbeFailed("it is neither a file nor a block device")
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(place)


def _examined(link: BackingLink, fd: int, identity: tuple[int, int]) -> _Followed:
    item = FORMATS.get(link.format or "raw")
    try:
        if item is not None and not item.has_header:
            return _Followed(replace(link, capacity=probing.size(fd)), None, identity)
        header = probing.probe(fd)
    except errors.StorageError as error:
        return _Followed(replace(link, problem=error.message.rstrip(".")), None, identity)
    if not same(link.format or "raw", header.format):
        problem = f"it is said to be {link.format}, and its header shows {header.format}"
        return _Followed(replace(link, problem=problem), None, identity)
    return _Followed(replace(link, capacity=header.capacity), header, identity)
