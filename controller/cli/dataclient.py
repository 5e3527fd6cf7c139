"""A client of an agent's HTTP side for the contents of volumes.

It speaks to the agent of the state directory over that one's socket, or to any by URL. Holes are
sent and taken as such.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import ssl
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backends import errors
from backends.images.transferring import PIECE, Piece
from controller.cli.options import is_loopback
from controller.codecs.sparsestream import (
    LAST_CHUNK,
    MEDIA_TYPE,
    PLAIN_MEDIA_TYPE,
    Decoder,
    encode,
    in_chunks,
)
from controller.contents import WHOLE, Selection

CONNECT_WITHIN = 30.0
IDLE = 120.0
"""Seconds in which the agent has to answer, or to take or send something."""

Connect = Callable[[], http.client.HTTPConnection]


class NotNow(Exception):
    """The agent is busy with the volume, and may be asked again."""


@dataclass(frozen=True, slots=True)
class Described:
    """What the agent says of a volume's contents.

    :param whole: whether the checksum of an upload that goes on is that of all bytes.
    """

    size: int
    reached: int | None
    whole: bool


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a socket of this host, by way of its directory (``serving``)."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=IDLE)
        self._path = path

    def connect(self) -> None:
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(IDLE)
            self.sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)


def over_socket(path: Path) -> Connect:
    return lambda: _SocketConnection(path)


def over_network(url: str, authority: Path | None) -> Connect:
    """Connections to ``https://HOST:PORT``, or to ``http://`` on this host.

    :raises errors.InvalidSpec: it is none of these, or the authority's file is no good.
    """
    scheme, host, port = _parsed(url)
    if scheme == "http":
        if not is_loopback(host):
            raise errors.InvalidSpec(
                f"{url} would have the token sent for all to read.", hint="Use https."
            )
        return lambda: http.client.HTTPConnection(host, port, timeout=IDLE)
    try:
        context = ssl.create_default_context(cafile=str(authority) if authority else None)
    except (OSError, ssl.SSLError) as error:
        raise errors.InvalidSpec(f"{authority} can't be read as certificates: {error}.") from error
    return lambda: http.client.HTTPSConnection(host, port, timeout=IDLE, context=context)


def _parsed(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port."""
    try:
        parts = urllib.parse.urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme not in ("http", "https") or not host or parts.path.strip("/") or parts.query:
        raise errors.InvalidSpec(f"{url!r} is not like https://HOST:PORT.")
    return scheme, host, port


class DataClient:
    """Asks for one volume.

    All methods raise ``errors.StorageError`` for what the agent refuses, and ``NotNow``.
    """

    def __init__(self, connect: Connect, token: str, *, namespace: str, volume: str) -> None:
        self._connect = connect
        self._headers = {"Authorization": f"Bearer {token}"}
        self._path = f"/v1/namespaces/{namespace}/volumes/{volume}"

    def describe(self) -> Described:
        """Ask how large the contents are, and where the last upload broke off."""
        try:
            with self._answer("HEAD", self._path + "/data") as answer:
                reached = answer.headers.get("Upload-Offset")
                size = int(answer.headers.get("Content-Length") or 0)
                whole = answer.headers.get("Upload-Checksum") == WHOLE
                return Described(size, int(reached) if reached else None, whole)
        except errors.StorageError:
            # The answer to a HEAD has no body that says why.
            self.download(Selection(length=1), lambda piece: None)
            raise

    def upload(self, pieces: Iterator[Piece], selection: Selection, operation: str = "") -> str:
        """Send contents; the checksum that the agent took of them, or nothing."""
        path = f"{self._path}/data?{_query(selection, operation)}"
        headers = {"Content-Type": MEDIA_TYPE, "Transfer-Encoding": "chunked"}
        body = itertools.chain(in_chunks(encode(pieces)), [LAST_CHUNK])
        with self._answer("PUT", path, body=body, headers=headers) as answer:
            told = json.loads(answer.read() or b"{}")
        return str(told.get(selection.checksum, ""))

    def download(
        self, selection: Selection, take: Callable[[Piece], None], operation: str = ""
    ) -> None:
        """Take contents, piece by piece."""
        path = f"{self._path}/data?{_query(selection, operation)}"
        wanted = MEDIA_TYPE if selection.sparse else PLAIN_MEDIA_TYPE
        with self._answer("GET", path, headers={"Accept": wanted}) as answer:
            if answer.headers.get("Content-Type") != MEDIA_TYPE:
                _take_plain(answer, take)
                return
            decoder = Decoder()
            with _broken_off():
                for part in _parts(answer):
                    for piece in decoder.feed(part):
                        take(piece)
            decoder.close()

    @contextlib.contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        *,
        body: Iterator[bytes | memoryview] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connect()
        try:
            with _broken_off():
                # Where the agent does not read to the end, it has said why.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(
                        method,
                        path,
                        body,
                        {**self._headers, **(headers or {})},
                    )
                answer = connection.getresponse()
                if answer.status >= 300:
                    raise _refusal(answer)
            yield answer
        finally:
            connection.close()


def _take_plain(answer: http.client.HTTPResponse, take: Callable[[Piece], None]) -> None:
    length = int(answer.headers.get("Content-Length") or 0)
    came = 0
    with _broken_off():
        for part in _parts(answer):
            came += len(part)
            take(part)
    if came != length:
        raise errors.Interrupted(f"The contents were cut off after {came} bytes.")


def _parts(answer: http.client.HTTPResponse) -> Iterator[memoryview]:
    """The body. Each part holds good only until the next is asked for."""
    buffer = memoryview(bytearray(PIECE))
    while came := answer.readinto(buffer):
        yield buffer[:came]


def _query(selection: Selection, operation: str) -> str:
    given: dict[str, str] = {}
    if selection.offset or selection.length:
        given = {"offset": str(selection.offset), "length": str(selection.length or 0)}
    if selection.checksum:
        given["checksum"] = selection.checksum
    if operation:
        given["operation"] = operation
    return urllib.parse.urlencode(given)


@contextlib.contextmanager
def _broken_off() -> Iterator[None]:
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise errors.Inaccessible(
            f"The agent's certificate is not trusted: {error.verify_message}.",
            hint="Give its authority by --ca.",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        said = str(error) or type(error).__name__
        raise errors.Interrupted(
            f"The connection to the agent broke off: {said}.", hint="Begin again with --resume."
        ) from error


def _refusal(answer: http.client.HTTPResponse) -> Exception:
    try:
        told = json.loads(answer.read() or b"{}")
    except ValueError:
        told = {}
    said = f"The agent answered with status {answer.status}."
    if 300 <= answer.status < 400:
        said = f"{said[:-1]}: a redirect, which is not followed, as the token is not for others."
    message = str(told.get("message", said))
    if answer.status == 503:
        return NotNow(message)
    known = {kind.reason: kind for kind in _kinds(errors.StorageError)}
    return known.get(str(told.get("reason", "")), errors.SystemFailure)(message)


def _kinds(base: type[errors.StorageError]) -> Iterator[type[errors.StorageError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)
