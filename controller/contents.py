"""What is done to a volume's contents on command: wiping, writing and reading them.

The contents are those of the file or device itself, whatever a header in them says. What a volume
is declared to be matters where it is to be one again: an image that was wiped is made anew, empty,
and one that is sent is looked at before it takes the place of the old one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from backends import errors
from backends.base import OpenVolume, Volume, Work
from backends.images import transferring, wiping
from backends.images.formats import FORMATS
from backends.images.transferring import Checksum, Hole, Piece, Span, Writer
from backends.sizes import MIB
from controller.admitting import Target

SYNC_EVERY = 256 * MIB
"""Bytes of an upload after which they are written out, so that its end does not take minutes."""

WHOLE = "whole"
"""Value of the header ``Upload-Checksum``: the checksum of an upload that goes on is that of all
bytes, as an image's is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which bytes are moved, and how.

    :param length: 0 or None for all to the end.
    :param sparse: whether holes are kept as such.
    :param checksum: algorithm of the checksum to take; empty for none.
    """

    offset: int = 0
    length: int | None = None
    sparse: bool = True
    checksum: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a transfer came to.

    :param length: bytes of contents, holes included.
    :param checksum: in hexadecimal digits; empty where none was asked for.
    """

    length: int
    checksum: str = ""


def is_image(volume: Volume) -> bool:
    """Whether a header describes the contents, so that they are replaced as a whole."""
    known = FORMATS.get(volume.format or "raw")
    return known is not None and known.has_header


def bare(volume: Volume) -> Volume:
    """The volume as mere bytes, which no header has anything to say about."""
    return replace(volume, format="raw", spec=volume.spec.model_copy(update={"encryption": None}))


@contextlib.contextmanager
def source(target: Target, selection: Selection) -> Iterator[tuple[OpenVolume, Span]]:
    """The contents opened to be read, and what is to be read of them.

    :raises errors.OutOfRange: there is nothing at the offset.
    """
    with target.backend.open_volume(target.pool, bare(target.volume)) as opened:
        yield (
            opened,
            transferring.readable(opened, offset=selection.offset, length=selection.length),
        )


def read(
    opened: OpenVolume, span: Span, selection: Selection, work: Work, take: Callable[[Piece], None]
) -> Moved:
    """Give out a span piece by piece."""
    checksum = Checksum(selection.checksum) if selection.checksum else None
    for piece in transferring.read(opened, span, work, sparse=selection.sparse):
        if checksum is not None:
            checksum.add(piece)
        take(piece)
    return Moved(length=span.length, checksum=checksum.hex if checksum else "")


def wipe(target: Target, algorithm: wiping.Algorithm, work: Work) -> None:
    """Overwrite the contents, all of the file or device; an image is made anew, empty."""
    pool, volume, backend = target.pool, target.volume, target.backend
    made_anew = is_image(volume) or volume.spec.encryption is not None
    with backend.open_volume(pool, bare(volume), write=True) as opened:
        wiping.wipe(opened, algorithm, work)
        if made_anew:
            wiping.give_back(opened)
    if made_anew:
        # A clone's capacity is its source's where none is declared, and that may have gone.
        known = volume.capacity or target.resource.status.capacity or target.facts.capacity
        backend.remake_volume(pool, replace(volume, capacity=known, source=None), work)


def digest(target: Target, selection: Selection, work: Work) -> Moved:
    """The checksum of what would be read."""
    with source(target, selection) as (opened, span):
        return read(opened, span, selection, work, lambda piece: None)


def write(
    target: Target,
    selection: Selection,
    pieces: Iterable[Piece],
    work: Work,
    *,
    expected: int = 0,
    announced: str = "",
    synced: Callable[[int], None] = lambda reached: None,
) -> Moved:
    """Take contents into the volume.

    :param expected: bytes that will come; 0 where that is not known.
    :param announced: the checksum that they are to have; empty for none. Of an image that goes on
        where an upload broke off, it is that of all bytes.
    :param synced: told now and then, and where the transfer breaks off, up to which byte of the
        volume all outlasts a power cut.
    :raises errors.ChecksumMismatch: what came is not what was announced. An image is as it was
        then; a raw volume has what came.
    """
    checksum = Checksum(selection.checksum) if selection.checksum else None
    with _destination(target, selection) as opened:
        # What can't fit is refused before its first byte.
        length = selection.length or expected
        transferring.writable(opened, offset=selection.offset, length=length)
        span = transferring.writable(opened, offset=selection.offset, length=selection.length)
        writer = Writer(opened, span, work, total=expected, backing=target.volume.backing_path)
        if checksum is not None and is_image(target.volume):
            for piece in transferring.read(opened, Span(0, span.start), Work(cancel=work.cancel)):
                checksum.add(piece)
        try:
            _take(pieces, writer, checksum, synced)
        except BaseException:
            with contextlib.suppress(errors.StorageError):  # what broke it off is what counts
                writer.sync()
                synced(writer.position)
            raise
        if checksum is not None and announced:
            checksum.require(announced)
        writer.finish()
    return Moved(length=writer.position - span.start, checksum=checksum.hex if checksum else "")


def _take(
    pieces: Iterable[Piece],
    writer: Writer,
    checksum: Checksum | None,
    synced: Callable[[int], None],
) -> None:
    unsynced = 0
    for piece in pieces:
        if checksum is not None:
            checksum.add(piece)
        writer.put(piece)
        unsynced += 0 if isinstance(piece, Hole) else len(piece)
        if unsynced >= SYNC_EVERY:
            writer.sync()
            synced(writer.position)
            unsynced = 0


@contextlib.contextmanager
def _destination(target: Target, selection: Selection) -> Iterator[OpenVolume]:
    if is_image(target.volume):
        with target.backend.replace_volume(
            target.pool, target.volume, resume_at=selection.offset
        ) as opened:
            yield opened
    else:
        with target.backend.open_volume(target.pool, bare(target.volume), write=True) as opened:
            yield opened
