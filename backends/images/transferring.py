"""Reading and writing a volume's contents as a stream: upload and download.

The contents are those of the file or device itself, as libvirt's virStorageVolUpload and
virStorageVolDownload have it: of a raw volume what a guest sees, of a qcow2 volume the image with
its header. Holes travel as holes (libvirt's SPARSE_STREAM) in both directions.

A raw volume is written in place, any part of it. An image with a header is replaced as a whole
(``Backend.replace_volume``), and only after its header was found to be what is declared and to
refer to no other file: what was cut off, and what is hostile, never stands under the volume's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from backends import errors
from backends.base import OpenVolume, Progress, Work
from backends.host import kernel
from backends.images import probing
from backends.images.formats import FORMATS, same
from backends.images.holes import clear, extents, is_zero
from backends.sizes import MIB, format_quantity

PIECE = 1 * MIB
"""The most that is read or written at once, in bytes."""

ZERO_BLOCK = 64 * 1024
"""Where holes have to be found by looking for zeros, the least that makes one, in bytes."""

WRITTEN_OUT_AFTER = 64 * MIB
"""Bytes of a stream that the page cache may gather before the disk is set to work on them."""

IMAGE_OVERHEAD = 16 * MIB
"""With an eighth of the capacity, what the tables of an image may take at most, in bytes."""

ALGORITHMS = ("sha256", "sha512")
"""What a checksum can be of."""

_ZEROS = bytes(PIECE)


@dataclass(frozen=True, slots=True)
class Hole:
    """So many bytes that read as zeros and take no space."""

    length: int


Piece = bytes | memoryview | Hole
"""A part of a stream. A memoryview holds good only until the next piece is asked for."""


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes from ``start`` up to and without ``end``."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


class Checksum:
    """A digest over the bytes of a stream, those of its holes included.

    :raises errors.InvalidSpec: for an algorithm that is none of ``ALGORITHMS``.
    """

    def __init__(self, algorithm: str) -> None:
        if algorithm not in ALGORITHMS:
            raise errors.InvalidSpec(
                f"There is no checksum {algorithm!r}.", hint=f"Use {' or '.join(ALGORITHMS)}."
            )
        self.algorithm = algorithm
        self._digest = hashlib.new(algorithm)

    def add(self, piece: Piece) -> None:
        if not isinstance(piece, Hole):
            self._digest.update(piece)
            return
        left = piece.length
        while left > 0:
            self._digest.update(_ZEROS[: min(left, PIECE)])
            left -= PIECE

    @property
    def hex(self) -> str:
        return self._digest.hexdigest()

    def require(self, wanted: str, *, hint: str = "Send it again.") -> None:
        """Compare with what was announced.

        :param hint: what to do where it is another.
        :raises errors.ChecksumMismatch: they differ.
        """
        if self.hex != wanted.strip().lower():
            raise errors.ChecksumMismatch(
                f"The {self.algorithm} of what arrived is {self.hex}, announced was {wanted}.",
                hint=hint,
            )


def has_header(opened: OpenVolume) -> bool:
    """Whether the contents are an image that a header describes, which is written as a whole."""
    known = FORMATS.get(opened.format or "raw")
    return known is not None and known.has_header


def limit(opened: OpenVolume) -> int:
    """Where the contents have to end, in bytes.

    For raw contents that is the capacity, for an encrypted volume with the header before it. An
    image may take what its tables need beside its capacity, and no more.
    """
    if has_header(opened):
        return opened.capacity + opened.capacity // 8 + IMAGE_OVERHEAD
    return opened.size if opened.encryption else opened.capacity


def tag(opened: OpenVolume) -> str:
    """What stays the same as long as the contents do, as an entity tag (RFC 9110, 8.8.3).

    It is a weak one: a machine that writes twice in a moment may leave the time as it was, and what
    is written to a device leaves no time at all.
    """
    facts = os.fstat(_descriptor(opened))
    return f'W/"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{opened.size:x}"'


def readable(opened: OpenVolume, *, offset: int = 0, length: int | None = None) -> Span:
    """What a download reads: ``length`` bytes, or what there is of them.

    :param length: 0 or None for all to the end, as libvirt has it.
    :raises errors.OutOfRange: the offset is past the end.
    """
    end = opened.size
    if offset > end:
        raise errors.OutOfRange(
            f"The volume has {end} bytes; there is nothing at byte {offset}.",
            hint="Give a smaller offset.",
        )
    return Span(offset, min(end, offset + length) if length else end)


def writable(opened: OpenVolume, *, offset: int = 0, length: int | None = None) -> Span:
    """Where an upload may write.

    :param length: the most that may be written; 0 or None for all to the end.
    :raises errors.OutOfRange: it would reach past the end.
    :raises errors.Unsupported: a part of an image with a header.
    """
    end = limit(opened)
    if has_header(opened) and offset and offset != opened.size:
        raise errors.Unsupported(
            f"A volume of format {opened.format} can't be written in parts.",
            hint="Send the whole image, without an offset.",
        )
    if offset + (length or 0) > end:
        raise errors.OutOfRange(
            f"The volume ends at byte {end}; {format_quantity(length or 0)} bytes at {offset} "
            "would not fit.",
            hint="Raise the volume's capacity first, or send less.",
        )
    return Span(offset, offset + length if length else end)


def read(opened: OpenVolume, span: Span, work: Work, *, sparse: bool = True) -> Iterator[Piece]:
    """The contents of a span, in order.

    A hole of a file comes as one. Of a device, which keeps no account of them, blocks of zeros are
    holes. Without ``sparse`` the zeros are given out as they are.

    :raises errors.Cancelled: where ``work`` was cancelled.
    :raises errors.StorageError: where the contents can't be read.
    """
    fd = _descriptor(opened)
    looked_for = sparse and not stat.S_ISREG(os.fstat(fd).st_mode)
    buffer = memoryview(bytearray(PIECE))
    done = 0
    with _translated(opened, "read"):
        for start, end, data in extents(fd, span.start, span.end):
            for piece in _of_extent(fd, start, end, buffer, data=data, sparse=sparse):
                _stop_where_cancelled(work)
                if looked_for and not isinstance(piece, Hole):
                    yield from with_holes(piece)
                else:
                    yield piece
                done += piece_length(piece)
                work.report(Progress(done=done, total=span.length))


def piece_length(piece: Piece) -> int:
    """How many bytes of contents a piece stands for."""
    return piece.length if isinstance(piece, Hole) else len(piece)


def _of_extent(
    fd: int, start: int, end: int, buffer: memoryview, *, data: bool, sparse: bool
) -> Iterator[Piece]:
    if not data and sparse:
        yield Hole(end - start)
        return
    while start < end:
        wanted = min(PIECE, end - start)
        if data:
            got = os.preadv(fd, [buffer[:wanted]], start)
            if got == 0:
                raise errors.Interrupted(f"The volume was cut to {start} bytes while it was read.")
            yield buffer[:got]
        else:
            got = wanted
            yield memoryview(_ZEROS)[:wanted]
        start += got


def with_holes(data: bytes | memoryview) -> Iterator[Piece]:
    """The same bytes with each run of whole zero blocks as a hole."""
    view = memoryview(data)
    start, end = 0, len(view)
    while start < end:
        zeros = _is_zero(view, start)
        last = start
        while last < end and _is_zero(view, last) == zeros:
            last = min(last + ZERO_BLOCK, end)
        yield Hole(last - start) if zeros else view[start:last]
        start = last


def _is_zero(view: memoryview, start: int) -> bool:
    return is_zero(view, start, start + ZERO_BLOCK)


class Writer:
    """Takes a stream into a span of a volume.

    Nothing is written past the span. ``finish`` has to be called at the end: it makes what was
    written outlast a power cut, and looks at an image with a header before anybody else does.

    :param total: bytes that are expected, for the progress; 0 where that is not known.
    :param backing: path of the image that the volume is declared to stand on; the only one that
        an image may refer to.
    :ivar position: byte of the volume at which the next piece will stand.
    """

    def __init__(
        self,
        opened: OpenVolume,
        span: Span,
        work: Work,
        *,
        total: int = 0,
        backing: str | None = None,
    ) -> None:
        self.position = span.start
        self._written_out = span.start
        self._opened = opened
        self._fd = _descriptor(opened)
        self._span = span
        self._work = work
        self._total = total
        self._backing = backing

    def put(self, piece: Piece) -> None:
        """Take the next piece of the stream.

        :raises errors.OutOfRange: it reaches past the span.
        :raises errors.Cancelled: where the work was cancelled.
        """
        _stop_where_cancelled(self._work)
        end = self.position + piece_length(piece)
        if end > self._span.end:
            raise errors.OutOfRange(
                f"More was sent than fits: the last byte may stand at {self._span.end - 1}.",
                hint="Raise the volume's capacity first, or send less.",
            )
        with _translated(self._opened, "write"):
            if isinstance(piece, Hole):
                clear(self._fd, self.position, end, self._cleared)
                self.position = end
            else:
                self._write(memoryview(piece))
        self._report(end)

    def _write(self, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._fd, data[:PIECE], self.position)
            self.position += written
            data = data[written:]
        if self.position - self._written_out >= WRITTEN_OUT_AFTER:
            # The disk writes while more comes, instead of all at the end.
            with contextlib.suppress(OSError):  # fdatasync tells what went wrong
                kernel.begin_writing_out(
                    self._fd, self._written_out, self.position - self._written_out
                )
            self._written_out = self.position

    def _cleared(self, offset: int) -> None:
        _stop_where_cancelled(self._work)
        self._report(offset)

    def _report(self, reached: int) -> None:
        self._work.report(Progress(done=reached - self._span.start, total=self._total))

    def sync(self) -> None:
        """Let all that was written so far outlast a power cut."""
        with _translated(self._opened, "write out"):
            self._extend()
            os.fdatasync(self._fd)

    def _extend(self) -> None:
        """Let a file that ends in a hole end there."""
        facts = os.fstat(self._fd)
        if stat.S_ISREG(facts.st_mode) and facts.st_size < self.position:
            os.ftruncate(self._fd, self.position)

    def finish(self) -> None:
        """End the stream.

        :raises errors.ImageRefused: an image that is not as declared.
        """
        with _translated(self._opened, "write"):
            self._extend()
        if has_header(self._opened):
            _accept(self._opened, probing.probe(self._fd), self._backing)
        self.sync()


def _accept(opened: OpenVolume, header: probing.ImageHeader, backing: str | None) -> None:
    """Refuse an image that is not as declared, or would open other files."""
    if not same(opened.format or "raw", header.format):
        raise _refused(f"It is {header.format}, and the volume is declared {opened.format}.")
    if header.backing_path is not None and header.backing_path != backing:
        raise _refused(f"It stands on another image, {header.backing_path!r}.")
    if header.data_file is not None or header.extents:
        raise _refused("Its data is in other files.")
    if header.encryption and not opened.encryption:
        raise _refused("It is encrypted, and the volume is declared without encryption.")
    if opened.encryption and not header.encryption:
        raise _refused("It is not encrypted, and the volume is declared to be.")
    if header.corrupt:
        raise _refused(f"{probing.MARKED_AS_CORRUPT}.")
    if header.capacity > opened.capacity:
        raise _refused(
            f"Its size is {format_quantity(header.capacity)}, that of the volume "
            f"{format_quantity(opened.capacity)}."
        )


def _refused(why: str) -> errors.ImageRefused:
    return errors.ImageRefused(
        f"The image that was sent is refused: {why}",
        hint="The volume is as it was; send another image, or change what is declared.",
    )


def _descriptor(opened: OpenVolume) -> int:
    if opened.fd is None:
        raise errors.Unsupported(
            f"{opened.path} can't be read or written as a stream: it is reached by a network "
            "client alone."
        )
    return opened.fd


def _stop_where_cancelled(work: Work) -> None:
    if work.cancel.is_set():
        raise errors.Cancelled("The transfer was stopped.", hint="Begin it anew or resume it.")


@contextlib.contextmanager
def _translated(opened: OpenVolume, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.from_os_error(error, doing=f"{doing} {opened.path}") from error
