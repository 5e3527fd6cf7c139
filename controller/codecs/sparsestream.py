"""A stream of a volume's contents in which holes are not sent, of the media type ``MEDIA_TYPE``.

``MAGIC``, then frames: a letter, a length as eight bytes with the greatest first, and for D so many
bytes of data. H is a hole of that length. E ends the stream; its length is that of all contents,
holes included, so that what was cut off or lost is noticed. docs/data.md describes it for others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from backends import errors
from backends.images.transferring import Hole, Piece
from backends.sizes import KIB, MAX_SIZE

MEDIA_TYPE = "application/vnd.poolkeeper.sparse"
PLAIN_MEDIA_TYPE = "application/octet-stream"

LAST_CHUNK = b"0\r\n\r\n"

GATHERED = 64 * KIB
"""Bytes that smaller parts are gathered to, before they are sent."""

MAGIC = b"PKSPRS1\n"
_FRAME = struct.Struct(">cQ")
_DATA, _HOLE, _END = b"D", b"H", b"E"


def encode(pieces: Iterable[Piece]) -> Iterator[bytes | memoryview]:
    """The stream in parts. A memoryview holds good only until the next part is asked for."""
    yield MAGIC
    total = 0
    for piece in pieces:
        if isinstance(piece, Hole):
            total += piece.length
            yield _FRAME.pack(_HOLE, piece.length)
        elif len(piece):
            total += len(piece)
            yield _FRAME.pack(_DATA, len(piece))
            yield piece
    yield _FRAME.pack(_END, total)


def in_chunks(parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Parts of a body in the chunked coding of HTTP (RFC 9112, 7.1), without its last chunk.

    Small parts are gathered, so that each part that comes out is worth sending.
    """
    waiting = bytearray()
    for part in parts:
        waiting += b"%x\r\n" % len(part)
        if len(part) < GATHERED:
            waiting += part
        else:
            yield bytes(waiting)
            yield part
            waiting.clear()
        waiting += b"\r\n"
        if len(waiting) >= GATHERED:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


class Decoder:
    """Takes a stream as it arrives, in parts of any size, and keeps no more than one frame's head.

    :ivar ended: whether the end was seen.
    """

    def __init__(self) -> None:
        self.ended = False
        self._head = bytearray()
        self._begun = False
        self._data_left = 0
        self._total = 0

    def feed(self, part: bytes | memoryview) -> Iterator[Piece]:
        """The pieces that a part brings.

        :raises errors.InvalidStream: it is not of this form, or goes on after its end.
        """
        view = memoryview(part)
        while view:
            if self.ended:
                raise _invalid("it goes on after its end")
            if self._data_left:
                taken = view[: self._data_left]
                self._data_left -= len(taken)
                yield taken
            else:
                taken = view[: self._head_length - len(self._head)]
                self._head += taken
                if len(self._head) == self._head_length:
                    yield from self._take_head()
            view = view[len(taken) :]

    def close(self) -> None:
        """No more comes.

        :raises errors.Interrupted: the end was not seen.
        """
        if not self.ended:
            raise errors.Interrupted(
                f"The stream was cut off after {self._total - self._data_left} bytes.",
                hint="Send it again, or go on where it was cut.",
            )

    @property
    def _head_length(self) -> int:
        return _FRAME.size if self._begun else len(MAGIC)

    def _take_head(self) -> Iterator[Piece]:
        head = bytes(self._head)
        self._head.clear()
        if not self._begun:
            if head != MAGIC:
                raise _invalid("it does not begin as one")
            self._begun = True
            return
        kind, length = _FRAME.unpack(head)
        if kind == _END:
            if length != self._total:
                raise _invalid(f"it has {self._total} bytes and says {length} at its end")
            self.ended = True
            return
        if kind not in (_DATA, _HOLE) or length > MAX_SIZE - self._total:
            raise _invalid(f"after byte {self._total} of contents there is no frame")
        self._total += length
        if kind == _DATA:
            self._data_left = length
        elif length:
            yield Hole(length)


def _invalid(why: str) -> errors.InvalidStream:
    return errors.InvalidStream(
        f"What was sent is no sparse stream: {why}.",
        hint=f"Send plain contents as {PLAIN_MEDIA_TYPE}, or see docs/data.md for the form.",
    )
