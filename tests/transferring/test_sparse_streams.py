"""The sparse form on the wire: what goes in comes out, and anything else is refused."""

from __future__ import annotations

import http.client
import io
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import errors
from backends.images.transferring import Hole, Piece
from backends.sizes import MAX_SIZE
from controller.codecs.sparsestream import (
    GATHERED,
    LAST_CHUNK,
    MAGIC,
    Decoder,
    encode,
    in_chunks,
)
from tests.transferring.streams import plain

pieces = st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 2**40).map(Hole)), max_size=10)


def encoded(given: list[Piece]) -> bytes:
    return b"".join(bytes(part) for part in encode(given))


def decoded(stream: bytes, cuts: list[int]) -> list[Piece]:
    decoder = Decoder()
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    found: list[Piece] = []
    for start, end in itertools.pairwise(places):
        found += [
            item if isinstance(item, Hole) else bytes(item)
            for item in decoder.feed(stream[start:end])
        ]
    decoder.close()
    return found


def merged(given: list[Piece]) -> list[Piece]:
    """Neighbouring data as one, and nothing empty."""
    result: list[Piece] = []
    for item in given:
        if isinstance(item, Hole):
            result += [item] if item.length else []
        elif item:
            if result and isinstance(result[-1], bytes):
                result[-1] = bytes(result[-1]) + bytes(item)
            else:
                result.append(bytes(item))
    return result


@given(pieces, st.lists(st.integers(0), max_size=10))
def test_what_goes_in_comes_out_however_it_arrives(given, cuts) -> None:
    assert merged(decoded(encoded(given), cuts)) == merged(given)


class _Answer:
    """What an HTTP client reads from."""

    def __init__(self, sent: bytes) -> None:
        self._sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + sent

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._sent)


@given(st.lists(st.integers(1, 300) | st.integers(GATHERED - 9, GATHERED + 9), max_size=10))
def test_chunks_are_those_of_http(lengths) -> None:
    parts = [bytes([number + 1]) * length for number, length in enumerate(lengths)]
    sent = [bytes(part) for part in in_chunks(parts)]
    answer = http.client.HTTPResponse(_Answer(b"".join(sent) + LAST_CHUNK))  # type: ignore[arg-type]
    answer.begin()
    assert answer.read() == b"".join(parts)
    assert len(sent) <= 1 + 2 * sum(length > 300 for length in lengths)


@given(pieces, st.integers(0))
def test_a_stream_that_is_cut_anywhere_is_noticed(given, cut) -> None:
    stream = encoded(given)
    with pytest.raises(errors.Interrupted):
        decoded(stream[: cut % len(stream)], [])


@given(st.binary(max_size=100))
def test_anything_else_is_refused(stream) -> None:
    with pytest.raises((errors.InvalidStream, errors.Interrupted)):
        decoded(stream, [])


@given(st.binary(min_size=1, max_size=40))
def test_any_frame_that_is_none_is_refused(rest) -> None:
    """Behind the magic, all that decodes is what encodes to the same."""
    try:
        found = decoded(MAGIC + rest, [])
    except (errors.InvalidStream, errors.Interrupted):
        return
    assert plain(decoded(encoded(found), [])) == plain(found)


@pytest.mark.parametrize(
    "frames",
    [
        struct.pack(">cQ", b"X", 1),
        struct.pack(">cQ", b"H", MAX_SIZE + 1),
        struct.pack(">cQcQ", b"H", MAX_SIZE, b"H", 1),
        struct.pack(">cQcQ", b"H", 5, b"E", 6),
        struct.pack(">cQ", b"E", 0) + b"x",
    ],
    ids=["unknown", "too long", "too long together", "wrong total", "after the end"],
)
def test_a_frame_that_does_not_add_up_is_refused(frames: bytes) -> None:
    with pytest.raises(errors.InvalidStream):
        decoded(MAGIC + frames, [])


def test_the_form_is_the_documented_one() -> None:
    assert encoded([b"ab", Hole(3)]).hex(" ", 1) == (
        "50 4b 53 50 52 53 31 0a "
        "44 00 00 00 00 00 00 00 02 61 62 "
        "48 00 00 00 00 00 00 00 03 "
        "45 00 00 00 00 00 00 00 05"
    )
