"""Bringing an image from a web server or a file of the host into a file of ours.

What arrives is taken in pieces of bounded size, its checksum reckoned and its zeros left out on the
way. It may be compressed with gzip, xz or zstd; what it is decompressed to is bounded by the
capacity that is declared and by the room that the pool has, so that a few bytes can't become more
than that. Nothing is believed of an image: its header is read here, in process and within bounds,
and one that names another file is refused before any program sees it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import stat as modes
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from backends import errors
from backends.base import OpenVolume, Progress, Work
from backends.host import reservations
from backends.host.fetching import Address, fetch
from backends.images import probing, transferring
from backends.images.formats import FORMATS, same
from backends.images.transferring import Checksum, Hole, Span, Writer
from backends.sizes import MIB, format_quantity
from backends.spec import FileSource

PIECE = 1 * MIB
"""The most that is held of an image at once, in bytes, beside a decompressor's window."""

WINDOW = 128 * MIB
"""The most memory that a decompressor may ask for, in bytes: what ``zstd --ultra -22`` needs."""

FED_AT_ONCE = 1024
"""Bytes that the zstd decompressor is given at a time."""

_GZIP, _XZ, _ZSTD = b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_UNKNOWN_CONTAINERS = {
    b"vhdxfile": "vhdx",
    b"WithoutFreeSpace": "parallels",
    b"WithouFreSpacExt": "parallels",
}
"""Image formats of qemu's that libvirt has no name for, by what they begin with."""

_OTHER_CHECKSUM = (
    "Declare the checksum of the file as it is fetched (compressed, if it is), or another image."
)
_DAMAGED = (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError)

Read = Callable[[int], bytes]
"""Gives at most so many bytes, none at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much an image may bring.

    :param contents: bytes that it may have once decompressed, holes included.
    :param stored: bytes that it may take on the disk.
    """

    contents: int
    stored: int


def room(fd: int, *, format: str | None, capacity: int | None) -> Room:
    """The room for an image in the file system of an open file.

    :param format: as the image is declared; None where nothing is.
    :param capacity: bytes of the volume, if declared.
    """
    space = os.fstatvfs(fd)
    available, whole = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    if capacity is None:
        return Room(contents=whole, stored=available)
    tables = capacity // 8 + transferring.IMAGE_OVERHEAD if _may_have_header(format) else 0
    return Room(contents=capacity + tables, stored=available)


def _may_have_header(format: str | None) -> bool:
    return format is None or FORMATS[format].has_header


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What takes an image in.

    :param name: of the image, for people.
    :param fd: a regular file without contents, open for reading and writing.
    :param checksum: ``sha256:HEX`` or ``sha512:HEX`` of what arrives; None for none.
    """

    name: str
    fd: int
    room: Room
    checksum: str | None
    work: Work


def from_web(address: Address, intake: Intake) -> None:
    """Fetch an image.

    :raises errors.ChecksumMismatch: it is not what was declared.
    :raises errors.ImageRefused: it is larger than it may be, or damaged.
    :raises errors.NoSpace: the pool has no room for it.
    :raises errors.StorageError: the server can't be reached, or does not have it.
    """

    def attempt() -> None:
        os.ftruncate(intake.fd, 0)
        with fetch(address, intake.work) as body:
            if body.length is None and not (body.framed or intake.checksum):
                raise errors.Inaccessible(
                    f"The server of {address.shown} does not say how long it is, so that a cut "
                    "would not be seen.",
                    hint="Give source.http.checksum.",
                )
            length = body.length or 0
            _require_room(length, intake)
            with reservations.reserved(intake.fd, length, intake.name):
                _take(body.pieces(), length, intake)

    address.trying(attempt, intake.work)


def from_file(original: int, intake: Intake) -> None:
    """The same from an open file of the host, which is only read."""
    facts = os.fstat(original)
    with reservations.reserved(intake.fd, facts.st_blocks * 512, intake.name):
        _take(_read_pieces(original), facts.st_size, intake)


@contextlib.contextmanager
def opened_file(source: FileSource) -> Iterator[int]:
    """Open the file of a source; nothing but a regular file will do.

    :raises errors.NotFound: it is not there.
    :raises errors.ImageRefused: it is a device, a pipe or a directory.
    """
    try:
        fd = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise errors.NotFound(f"{source.path} is not there.", hint="Put it there.") from error
    except OSError as error:
        raise errors.from_os_error(error, doing=f"open {source.path}") from error
    try:
        if not modes.S_ISREG(os.fstat(fd).st_mode):
            raise errors.ImageRefused(
                f"{source.path} is not a regular file.", hint="Give the path of an image."
            )
        yield fd
    finally:
        os.close(fd)


def is_compressed(fd: int) -> bool:
    """Whether a file has to be decompressed first."""
    return os.pread(fd, len(_XZ), 0).startswith((_GZIP, _XZ, _ZSTD))


def described(fd: int, format: str | None, *, name: str) -> OpenVolume:
    """What an image is, seen by its header.

    :param format: as it is declared; None where nothing is.
    :param name: of the image, for people.
    :raises errors.ImageRefused: it is another one, is encrypted, or refers to other files.
    """
    try:
        header = probing.probe(fd)
    except errors.ProbeFailed as error:
        raise errors.ImageRefused(
            f"{name} can't be used: {error.message}", hint="Use another image."
        ) from error
    size = os.fstat(fd).st_size
    _refuse_unknown_container(fd, name)
    if format is None and header.format == "raw" and header.encryption:
        raise errors.ImageRefused(
            f"{name} is refused: it is encrypted.",
            hint="Declare source format raw to take it as the bytes that it is.",
        )
    if header.format == "raw" and (format is None or not FORMATS[format].has_header):
        return _opened(fd, format or "raw", size, size)
    if format is not None and not same(format, header.format):
        raise errors.ImageRefused(
            f"{name} is declared {format}, and its header shows {header.format}.",
            hint="Declare what it is, or use another image.",
        )
    for found, why in (
        (header.backing_path, "it stands on another image"),
        (header.data_file, "its data is in another file"),
        (header.extents, "its data is in other files"),
        (header.encryption, "it is encrypted"),
    ):
        if found:
            raise errors.ImageRefused(
                f"{name} is refused: {why}.", hint="Flatten it first: qemu-img convert."
            )
    if header.corrupt:
        raise errors.ImageRefused(
            f"{name} is refused: {probing.MARKED_AS_CORRUPT}.", hint="Use another image."
        )
    return _opened(fd, format or header.format, size, header.capacity)


def _refuse_unknown_container(fd: int, name: str) -> None:
    """An image that nobody here can read would pass for a raw one."""
    head = os.pread(fd, 16, 0)
    for magic, called in _UNKNOWN_CONTAINERS.items():
        if head.startswith(magic):
            raise errors.ImageRefused(
                f"{name} is refused: it is a {called} image, which is not read here.",
                hint="Convert it first: qemu-img convert -O qcow2.",
            )


def _opened(fd: int, format: str, size: int, capacity: int) -> OpenVolume:
    return OpenVolume(
        fd=fd,
        path=f"/proc/self/fd/{fd}",
        pass_fds=(fd,),
        kind="file",
        format=format,
        size=size,
        capacity=capacity,
    )


def _require_room(length: int, intake: Intake) -> None:
    if length > intake.room.stored:
        raise errors.NoSpace(
            f"{intake.name} has {format_quantity(length)}, and there are "
            f"{format_quantity(intake.room.stored)} left for it.",
            hint="Free some space or use a larger pool.",
        )


def _read_pieces(fd: int) -> Iterator[bytes]:
    offset = 0
    while piece := os.pread(fd, PIECE, offset):
        offset += len(piece)
        yield piece


class _Stream(io.RawIOBase):
    """Pieces as something to read from, with their checksum and how far they have come."""

    def __init__(self, pieces: Iterator[bytes], length: int, intake: Intake) -> None:
        self._pieces = pieces
        self._length = length
        self._work = intake.work
        self._rest = b""
        self._fetched = 0
        algorithm, _, self._wanted = (intake.checksum or "").partition(":")
        self._checksum = Checksum(algorithm) if algorithm else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        if not self._rest:
            self._rest = self._next()
        count = min(len(view), len(self._rest))
        view[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def _next(self) -> bytes:
        self._work.check()
        piece = next(self._pieces, b"")
        self._fetched += len(piece)
        if self._checksum is not None:
            self._checksum.add(piece)
        self._work.report(Progress(done=self._fetched, total=self._length))
        return piece

    def end(self) -> None:
        """Take what is left, so that the checksum is that of all.

        :raises errors.ChecksumMismatch: it is not the declared one.
        """
        self._rest = b""
        while self._next():
            pass
        if self._checksum is not None:
            self._checksum.require(self._wanted, hint=_OTHER_CHECKSUM)


def _take(pieces: Iterator[bytes], length: int, intake: Intake) -> None:
    stream = _Stream(pieces, length, intake)
    target = OpenVolume(
        fd=intake.fd,
        path=intake.name,
        kind="file",
        format="raw",
        size=0,
        capacity=intake.room.contents,
    )
    writer = Writer(target, Span(0, intake.room.contents), Work(cancel=intake.work.cancel))
    stored = 0
    try:
        for piece in _decompressed(stream):
            stored += _put(writer, piece, intake, intake.room.stored - stored)
    except _DAMAGED as error:
        stream.end()  # a wrong checksum says more than that it can't be decompressed
        raise errors.ImageRefused(
            f"{intake.name} can't be decompressed: {error}.", hint="Use another image."
        ) from error
    stream.end()
    writer.finish()


def _put(writer: Writer, data: bytes, intake: Intake, left: int) -> int:
    """Write a piece; how many bytes of it are no zeros."""
    room, stored = intake.room, 0
    for part in transferring.with_holes(data):
        length = transferring.piece_length(part)
        if writer.position + length > room.contents:
            raise errors.ImageRefused(
                f"{intake.name} brings more than the {format_quantity(room.contents)} that there "
                "may be.",
                hint="Declare a larger capacity, or use another image.",
            )
        stored += 0 if isinstance(part, Hole) else length
        if stored > left:
            raise errors.NoSpace(
                f"{intake.name} needs more than the {format_quantity(room.stored)} that are left.",
                hint="Free some space or use a larger pool.",
            )
        writer.put(part)
    return stored


def _decompressed(stream: _Stream) -> Iterator[bytes]:
    """The contents, in pieces; as they are where they are not compressed."""
    buffered = io.BufferedReader(stream, PIECE)
    head = buffered.peek(len(_XZ))
    if head.startswith(_GZIP):
        with gzip.GzipFile(fileobj=buffered, mode="rb") as plain:
            yield from iter(lambda: plain.read(PIECE), b"")
    elif head.startswith(_XZ):
        yield from _from_xz(buffered.read1)
    elif head.startswith(_ZSTD):
        yield from _gathered(_from_zstd(buffered.read1))
    else:
        yield from iter(lambda: buffered.read1(PIECE), b"")


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces put together, so that holes in them are found."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        if len(gathered) >= PIECE:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


def _from_xz(read: Read) -> Iterator[bytes]:
    """All streams of a file, between which there may be padding (xz(1), the .xz file format)."""
    left = read(PIECE)
    while left:
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW)
        while not decompressor.eof:
            if decompressor.needs_input and not left:
                left = read(PIECE)
                if not left:
                    raise EOFError("it ends in the middle")
            yield decompressor.decompress(left, PIECE)
            left = b""
        left = decompressor.unused_data.lstrip(b"\0")
        while not left and (more := read(PIECE)):
            left = more.lstrip(b"\0")


def _from_zstd(read: Read) -> Iterator[bytes]:
    """All frames of a file. The decompressor has no bound for what it gives out at once, so it is
    given little: a byte of input is no more than 64 KiB of output (RFC 8878: a block of 3 bytes
    and more stands for at most 128 KiB)."""
    import zstandard  # noqa: PLC0415 - large, and few images need it

    context = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    left = read(FED_AT_ONCE)
    try:
        while left:
            frame = context.decompressobj()
            while not frame.eof:
                if not left and not (left := read(FED_AT_ONCE)):
                    raise EOFError("it ends in the middle")
                yield frame.decompress(left)
                left = b""
            left = frame.unused_data or read(FED_AT_ONCE)
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error
