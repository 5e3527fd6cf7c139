"""The agent's HTTP side for volumes' contents: GET and PUT of ``/v1/namespaces/N/volumes/V/data``.

docs/data.md has it as its users see it. A transfer is a job in a thread of its own, which reads or
writes the volume; what goes over the connection is done by the server's loop, piece by piece, and
the job waits for each piece. So a transfer holds no more than a few pieces, a client that is slow
slows its own job alone, and one that stands still is let go after ``IDLE``.

Where the connection is not encrypted, the job's thread sends and receives on it by itself
meanwhile: to hand each piece from one thread to the other takes longer than to copy it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import re
import socket
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from backends import errors
from backends.base import OpenVolume, Work
from backends.images import transferring
from backends.images.transferring import Piece, Span
from backends.sizes import MAX_SIZE, MIB
from controller import contents
from controller.admitting import Command, Target, Waits
from controller.codecs.sparsestream import MEDIA_TYPE, PLAIN_MEDIA_TYPE, Decoder, encode, in_chunks
from controller.contents import WHOLE, Moved, Selection
from controller.resources import Key, is_object_name
from controller.serving.access import Access, bearer
from controller.serving.server import in_thread
from controller.transfers import Begun, Transfers, Wanted

log = logging.getLogger(__name__)

T = TypeVar("T")

IDLE = 60.0
"""Seconds in which a client has to take or send something."""

LOOK_EVERY = 0.5
"""Seconds between two looks whether a transfer was cancelled, while it waits for its client."""

SENT_AT_ONCE = 1 * MIB
"""Bytes that small parts of a stream are gathered to, where the loop has to encrypt them."""

RECEIVED_AT_ONCE = 1 * MIB
"""Bytes of a body that are taken at once, where so many are there."""

RETRY_AFTER = 5
"""Seconds after which a client may ask again for what can't be begun now."""

_PATH = "/v1/namespaces/{namespace}/volumes/{volume}"

_RANGE = re.compile(r"bytes=([0-9]{1,19})-([0-9]{0,19})", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_CHECKSUM = re.compile(r"(sha256|sha512)(?::([0-9a-fA-F]{64}|[0-9a-fA-F]{128}))?", re.ASCII)

_STATUS: tuple[tuple[type[errors.StorageError], int], ...] = (
    (errors.Unauthenticated, 401),
    (errors.AccessDenied, 403),
    (errors.NotFound, 404),
    (errors.Interrupted, 408),
    (errors.Conflict, 409),
    (errors.InUse, 409),
    (errors.OwnedByOther, 409),
    (errors.InvalidStream, 400),
    (errors.InvalidSpec, 400),
    (errors.ChecksumMismatch, 422),
    (errors.ImageRefused, 422),
    (errors.Unsupported, 422),
    (errors.Cancelled, 503),
    (errors.NoSpace, 507),
)
"""Status codes of errors; the first that fits. All others are a 500."""


def data_routes(transfers: Transfers, access: Access) -> list[web.RouteDef]:
    """Contents of volumes, for who may have them."""
    data = _Data(transfers, access)
    return [
        web.get(f"{_PATH}/data", data.get, allow_head=False),
        web.head(f"{_PATH}/data", data.head),
        web.put(f"{_PATH}/data", data.put, expect_handler=_continue_later),
        web.get(f"{_PATH}/checksum", data.checksum, allow_head=False),
    ]


async def _continue_later(request: web.Request) -> None:
    """A client that asks before it sends is answered once the upload may begin."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request asks for."""

    wanted: Wanted
    if_range: str = ""
    announced: str = ""

    @property
    def selection(self) -> Selection:
        return self.wanted.selection or Selection()


class _Data:
    """The handlers. Each lets nobody pass before the token was looked at."""

    def __init__(self, transfers: Transfers, access: Access) -> None:
        self._transfers = transfers
        self._access = access

    async def get(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request, Command.DOWNLOAD, self._download)

    async def head(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request, Command.DOWNLOAD, self._look)

    async def put(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request, Command.UPLOAD, self._upload)

    async def checksum(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request, Command.DOWNLOAD, self._checksum)

    async def _answered(
        self,
        request: web.Request,
        command: Command,
        handle: Callable[[web.Request, _Asked], Coroutine[Any, Any, web.StreamResponse]],
    ) -> web.StreamResponse:
        try:
            volume = _volume(request)
            token = bearer(request.headers.get("Authorization", ""))
            await in_thread(request, self._access.check, token, command, volume)
            return await handle(request, _asked(request, command, volume))
        except Waits as wait:
            headers = {"Retry-After": str(RETRY_AFTER)}
            return _refusal(request, 503, "NotNow", str(wait), headers)
        except errors.StorageError as error:
            return _error(request, error)

    async def _look(self, request: web.Request, asked: _Asked) -> web.StreamResponse:
        looked = await in_thread(request, self._transfers.look, asked.wanted)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(looked.size),
            "Content-Type": PLAIN_MEDIA_TYPE,
            "ETag": looked.tag,
        }
        if looked.reached is not None:
            headers["Upload-Offset"] = str(looked.reached)
        if looked.image:
            headers["Upload-Checksum"] = WHOLE
        return web.Response(headers=headers)

    async def _checksum(self, request: web.Request, asked: _Asked) -> web.StreamResponse:
        algorithm = request.query.get("algorithm", transferring.ALGORITHMS[0])
        selection = replace(asked.selection, checksum=algorithm)
        transferring.Checksum(algorithm)
        begun = await in_thread(
            request,
            self._transfers.begin,
            replace(asked.wanted, selection=selection),
            contents.digest,
        )
        moved = await _outcome(begun)
        return web.json_response(_told(moved, selection))

    async def _download(self, request: web.Request, asked: _Asked) -> web.StreamResponse:
        exchange = _Exchange(request)
        sparse = MEDIA_TYPE in request.headers.get("Accept", "")

        def run(target: Target, selection: Selection, work: Work) -> Moved:
            return exchange.send(target, _current(selection, asked, target), work, sparse=sparse)

        begun = await in_thread(request, self._transfers.begin, asked.wanted, run)
        try:
            await _outcome(begun)
        except errors.StorageError as error:
            if exchange.response is None:
                raise
            log.info("a download of %s broke off: %s", asked.wanted.volume, error)
            if request.transport is not None:
                request.transport.abort()  # so that nobody takes what was sent for all
        assert exchange.response is not None  # noqa: S101 - it began before it ended
        return exchange.response

    async def _upload(self, request: web.Request, asked: _Asked) -> web.StreamResponse:
        exchange = _Exchange(request)

        def run(target: Target, selection: Selection, work: Work) -> Moved:
            with contextlib.closing(exchange.received(work)) as pieces:
                return contents.write(
                    target,
                    selection,
                    pieces,
                    work,
                    expected=_expected(request),
                    announced=asked.announced,
                    synced=functools.partial(self._transfers.note_reached, target),
                )

        begun = await in_thread(request, self._transfers.begin, asked.wanted, run)
        moved = await _outcome(begun)
        response = web.json_response(_told(moved, asked.selection))
        response.force_close()  # the loop lost count of what was received past it
        return response


async def _outcome(begun: Begun) -> Moved:
    """What a transfer came to; it is cancelled where nobody waits for it any more."""
    try:
        return await asyncio.wrap_future(begun.outcome)
    except asyncio.CancelledError:
        begun.job.cancel("its client has gone")
        raise


class _Exchange:
    """What a transfer's job does over the connection of a request, from its own thread."""

    def __init__(self, request: web.Request) -> None:
        self.response: web.StreamResponse | None = None
        self._request = request
        self._loop = asyncio.get_running_loop()

    def send(self, target: Target, selection: Selection, work: Work, *, sparse: bool) -> Moved:
        """Answer with the contents."""
        with contents.source(target, selection) as (opened, span):
            self._await(work, self._begin_answer(opened, span, sparse=sparse))
            pieces = transferring.read(opened, span, work, sparse=sparse)
            parts = encode(pieces) if sparse else _plain(pieces)
            with self._connection(work) as connection:
                if connection is None:
                    for gathered in _gathered(parts):
                        self._await(work, self._send(gathered))
                else:
                    for part in in_chunks(parts) if self._chunked else parts:
                        connection.send(part)
            self._await(work, self._end_answer())
        return Moved(length=span.length)

    async def _begin_answer(self, opened: OpenVolume, span: Span, *, sparse: bool) -> None:
        whole = span.length == opened.size
        response = web.StreamResponse(status=200 if whole else 206)
        response.headers["Accept-Ranges"] = "bytes"
        response.headers["ETag"] = transferring.tag(opened)
        response.headers["Content-Type"] = MEDIA_TYPE if sparse else PLAIN_MEDIA_TYPE
        if not whole and span.length:
            response.headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{opened.size}"
        if not sparse:
            response.content_length = span.length
        await response.prepare(self._request)
        self.response = response

    @contextlib.contextmanager
    def _connection(self, work: Work) -> Iterator[_Connection | None]:
        """The connection itself, for this thread; None where the loop has to encrypt."""
        found = self._await(work, self._idle_connection())
        if found is None:
            yield None
            return
        with found:
            yield _Connection(found, work)

    async def _idle_connection(self) -> socket.socket | None:
        """A second descriptor of the connection, once the loop has no more to send on it."""
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("it was closed")
        if transport.get_extra_info("ssl_object") is not None:
            return None
        if self.response is not None:
            await self.response.write(b"")  # its head, if that was not sent yet
        transport.set_write_buffer_limits(0)
        await self._request.writer.drain()
        found: socket.socket = transport.get_extra_info("socket").dup()
        return found

    @property
    def _chunked(self) -> bool:
        assert self.response is not None  # noqa: S101 - begun before
        return self.response.headers.get("Transfer-Encoding") == "chunked"

    async def _send(self, part: bytes) -> None:
        assert self.response is not None  # noqa: S101 - begun before
        await self.response.write(part)

    async def _end_answer(self) -> None:
        assert self.response is not None  # noqa: S101 - begun before
        await self.response.write_eof()

    def received(self, work: Work) -> Generator[Piece]:
        """The body of the request, as it comes."""
        self._await(work, self._ask_for_body())
        if self._request.content_type != MEDIA_TYPE:
            sparse = self._request.query.get("sparse") == "true"
            for part in self._parts(work):
                if sparse:
                    yield from transferring.with_holes(part)
                else:
                    yield part
            return
        decoder = Decoder()
        for part in self._parts(work):
            yield from decoder.feed(part)
        decoder.close()

    async def _ask_for_body(self) -> None:
        if self._request.headers.get("Expect", "").lower() == "100-continue":
            writer = self._request.writer
            await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            writer.output_size = 0  # it is no part of the answer

    def _parts(self, work: Work) -> Iterator[bytes | memoryview]:
        """The body. Each part holds good only until the next is asked for."""
        length = self._request.content_length
        if length is not None and "Content-Encoding" not in self._request.headers:
            with self._connection(work) as connection:
                if connection is not None:
                    yield from self._received_directly(connection, length, work)
                    return
        while part := self._await(work, self._receive()):
            yield part

    def _received_directly(
        self, connection: _Connection, left: int, work: Work
    ) -> Iterator[bytes | memoryview]:
        came: bytes | memoryview = self._await(work, self._stop_receiving())
        buffer = memoryview(bytearray(RECEIVED_AT_ONCE))
        try:
            while True:
                left -= len(came)
                yield came
                if not left:
                    break
                came = connection.receive(buffer[:left])
        finally:
            with contextlib.suppress(RuntimeError):  # the server ended meanwhile
                self._loop.call_soon_threadsafe(self._go_on_receiving, left == 0)

    async def _stop_receiving(self) -> bytes:
        """Leave the rest of the body in the connection; what of it the loop took already."""
        came = bytearray()
        while part := self._request.content.read_nowait():
            came += part
        if self._request.transport is None:
            raise ConnectionResetError("it was closed")
        self._request.transport.pause_reading()
        return bytes(came)

    def _go_on_receiving(self, ended: bool) -> None:
        if self._request.transport is not None:
            self._request.transport.resume_reading()
        if ended:
            self._request.content.feed_eof()

    async def _receive(self) -> bytes:
        return await self._request.content.read(RECEIVED_AT_ONCE)

    def _await(self, work: Work, doing: Coroutine[Any, Any, T]) -> T:
        """Have the server's loop do something for the connection, and wait for it.

        :raises errors.Interrupted: the client has gone, or stood still for ``IDLE``.
        :raises errors.Cancelled: the transfer was cancelled meanwhile.
        """
        future = asyncio.run_coroutine_threadsafe(doing, self._loop)
        patience = _Patience(work)
        while True:
            try:
                return future.result(LOOK_EVERY)
            except concurrent.futures.TimeoutError:
                try:
                    patience.look()
                except errors.StorageError:
                    future.cancel()
                    raise
            except (OSError, RuntimeError, aiohttp.ClientError, web.HTTPException) as error:
                raise _gone(error) from error
            except (asyncio.CancelledError, concurrent.futures.CancelledError) as error:
                raise _gone(error) from error


class _Patience:
    """How long a transfer waits for its client, from now on."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._deadline = time.monotonic() + IDLE

    def look(self) -> None:
        """Give up, or not.

        :raises errors.Interrupted: the client stood still for ``IDLE``.
        :raises errors.Cancelled: the transfer was cancelled.
        """
        self._work.check()
        if time.monotonic() > self._deadline:
            raise errors.Interrupted(
                f"The client stood still for {IDLE:g} s.", hint="Go on where it was cut."
            )


class _Connection:
    """A connection on which the server's loop neither sends nor receives for now.

    What goes over it between two threads costs more than the copying, where a client is fast.
    """

    def __init__(self, connection: socket.socket, work: Work) -> None:
        connection.settimeout(LOOK_EVERY)
        self._connection = connection
        self._work = work

    def send(self, part: bytes | memoryview) -> None:
        left = memoryview(part)
        while left:
            sent = self._patiently(functools.partial(self._connection.send, left))
            left = left[sent:]

    def receive(self, buffer: memoryview) -> memoryview:
        """What comes, at least one byte of it, and no more than the buffer takes."""
        came = self._patiently(functools.partial(self._connection.recv_into, buffer))
        if buffer and not came:
            raise _gone(ConnectionResetError("it was closed"))
        return buffer[:came]

    def _patiently(self, act: Callable[[], int]) -> int:
        patience = _Patience(self._work)
        while True:
            try:
                return act()
            except TimeoutError:
                patience.look()
            except OSError as error:
                raise _gone(error) from error


def _gone(error: BaseException) -> errors.Interrupted:
    said = str(error) or type(error).__name__
    return errors.Interrupted(
        f"The connection to the client broke off: {said}.", hint="Go on where it was cut."
    )


def _plain(pieces: Iterable[Piece]) -> Iterator[bytes | memoryview]:
    for piece in pieces:
        if isinstance(piece, transferring.Hole):
            raise AssertionError("plain contents have no holes")
        yield piece


def _gathered(parts: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The same bytes in parts that are worth sending, each a copy that stays as it is."""
    waiting = bytearray()
    for part in parts:
        if not waiting and len(part) >= SENT_AT_ONCE:
            yield bytes(part)
            continue
        waiting += part
        if len(waiting) >= SENT_AT_ONCE:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


def _volume(request: web.Request) -> Key:
    """The volume that a request's path names.

    :raises errors.NotFound: no volume can be called so.
    """
    namespace, name = request.match_info["namespace"], request.match_info["volume"]
    if not is_object_name(namespace) or not is_object_name(name):
        raise errors.NotFound("No volume has such a name.")
    return Key("StorageVolume", namespace, name)


def _asked(request: web.Request, command: Command, volume: Key) -> _Asked:
    """Read the query and the headers.

    :raises errors.InvalidSpec: they can't be understood.
    """
    operation = request.query.get("operation", "")
    if operation and not is_object_name(operation):
        raise errors.NotFound("No operation has such a name.")
    algorithm, announced = _announced(request.query.get("checksum", ""))
    selection = _selection(request, command)
    if algorithm:
        selection = replace(selection or Selection(), checksum=algorithm)
    return _Asked(
        Wanted(volume=volume, command=command, selection=selection, operation=operation),
        if_range=request.headers.get("If-Range", ""),
        announced=announced,
    )


def _announced(text: str) -> tuple[str, str]:
    """An algorithm, and behind a colon a checksum."""
    if not text:
        return "", ""
    found = _CHECKSUM.fullmatch(text)
    if found is None or (found[2] and len(found[2]) != {"sha256": 64, "sha512": 128}[found[1]]):
        raise errors.InvalidSpec(
            "The checksum can't be understood.", hint="Give sha256, or sha256:DIGITS."
        )
    return found[1], found[2] or ""


def _selection(request: web.Request, command: Command) -> Selection | None:
    """Which bytes: of the query, else of a header; None for what the operation says, else all."""
    query = request.query
    if "offset" in query or "length" in query:
        return Selection(offset=_number(query, "offset"), length=_number(query, "length") or None)
    header = request.headers.get("Content-Range" if command.writes else "Range", "")
    found = (_CONTENT_RANGE if command.writes else _RANGE).fullmatch(header.strip())
    if found is None:
        if header and command.writes:
            # RFC 9110, 14.4: to take it for the whole would overwrite what is not meant.
            raise errors.InvalidSpec("Content-Range can't be understood.")
        return None  # RFC 9110, 14.2: a Range that is not understood is left aside
    first, last = int(found[1]), int(found[2]) if found[2] else None
    if max(first, last or 0) > MAX_SIZE or (last is not None and last < first):
        raise errors.OutOfRange(f"There are no bytes {header}.")
    return Selection(offset=first, length=None if last is None else last - first + 1)


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "0")
    if not _NUMBER.fullmatch(text) or int(text) > MAX_SIZE:
        raise errors.InvalidSpec(f"{name} has to be a number of bytes.")
    return int(text)


def _expected(request: web.Request) -> int:
    """Bytes of contents that a body will have, where that is known beforehand."""
    if request.content_type == MEDIA_TYPE:
        return 0
    return request.content_length or 0


def _current(selection: Selection, asked: _Asked, target: Target) -> Selection:
    """The selection, or all where the part was wanted of contents that are others by now
    (RFC 9110, 13.1.5)."""
    if not asked.if_range:
        return selection
    with contents.source(target, Selection()) as (opened, _):
        return selection if transferring.tag(opened) == asked.if_range else Selection()


def _told(moved: Moved, selection: Selection) -> dict[str, Any]:
    told: dict[str, Any] = {"length": moved.length}
    return told | ({selection.checksum: moved.checksum} if moved.checksum else {})


def _error(request: web.Request, error: errors.StorageError) -> web.Response:
    if isinstance(error, errors.OutOfRange):
        status = 413 if request.method == "PUT" else 416
    else:
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return _refusal(request, status, error.reason, str(error), headers)


def _refusal(
    request: web.Request, status: int, reason: str, message: str, headers: Mapping[str, str]
) -> web.Response:
    told = {"reason": reason, "message": message}
    response = web.json_response(told, status=status, headers=headers)
    if request.method == "PUT":
        response.force_close()  # what is left of its body is not worth reading
    return response
