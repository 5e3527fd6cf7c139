"""Fetching a large file over HTTP: whole, in bounded memory, going on where a connection was cut.

Made for hostile servers and bad lines. Redirects are counted and never lead from https to http;
credentials go to the host of the address alone. Nothing is inherited from the environment: no
proxy, no netrc. A cut is made up for by a range request, under the condition that the file is still
the same one; where the server can't say so the fetch begins anew.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import SplitResult, urljoin, urlsplit

from backends import errors
from backends.base import Work
from backends.sizes import KIB

log = logging.getLogger(__name__)

PIECE = 256 * KIB
REDIRECTS = 5
"""How many redirects are followed for one request."""

CUTS = 8
"""Cuts in a row, without a byte in between, after which it is given up for now."""

FIRST_WAIT = 0.25
"""Seconds after the first cut; doubled with each that follows without a byte in between."""

LONGEST_WAIT = 30.0
BEGINNINGS = 4
"""How often a fetch begins anew, for a file that changes or a server that knows no ranges."""

CONNECT_WITHIN = 15.0
SILENCE = 60.0
"""Seconds without a byte that count as a cut."""

LEAST_RATE = 1 * KIB
RATE_OVER = 300.0
"""A server that sends less than ``LEAST_RATE`` bytes a second over so many seconds is given up."""

_MOVED = frozenset({301, 302, 303, 307, 308})
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOOK = 0.2


class _BeginAnew(Exception):
    """What was fetched can't be gone on with."""


class _Cut(Exception):
    """The connection broke, or the server is busy; it is worth another try."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file is, and what is needed to ask for it.

    :param url: http or https.
    :param authorization: value of the header, for the url's own host alone.
    :param certificates: PEM of those to trust, in place of the host's; empty for these.
    """

    url: str
    authorization: str = field(default="", repr=False)
    certificates: str = ""

    @property
    def shown(self) -> str:
        """The address for people: without a query, which may hold a secret."""
        return self.url.partition("?")[0]

    def trying(self, attempt: Callable[[], None], work: Work) -> None:
        """Make an attempt at the whole; again where it has to begin anew.

        :raises errors.Interrupted: it had to be begun anew too often.
        """
        for number in range(BEGINNINGS):
            work.check()
            with contextlib.suppress(_BeginAnew):
                attempt()
                return
            log.info("%s is fetched anew (%d)", self.shown, number + 1)
        raise errors.Interrupted(
            f"{self.shown} could not be fetched whole: the connection breaks, and the server does "
            "not let it go on.",
            hint="It is tried again. A server that takes range requests would help.",
        )


def basic(user: bytes, password: bytes) -> str:
    """The header's value for a user name and password (RFC 7617)."""
    if b":" in user:
        raise errors.SecretUnavailable("The user name holds a colon, which Basic can't send.")
    return "Basic " + base64.b64encode(user + b":" + password).decode()


def bearer(token: bytes) -> str:
    """The header's value for a token (RFC 6750).

    :raises errors.SecretUnavailable: it holds what can't stand in a header.
    """
    text = token.decode("latin-1").strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        # Without the text: http.client would quote it in its error.
        raise errors.SecretUnavailable("The token is empty or can't stand in a header.")
    return f"Bearer {text}"


class Body:
    """A file that is being fetched.

    :ivar length: bytes of all of it; None where the server does not say.
    :ivar framed: whether its end can be told from a cut all the same.
    """

    def __init__(self, address: Address, work: Work) -> None:
        self._address = address
        self._work = work
        self._reply = _Reply.ask(address, 0, "", work)
        self.length = self._reply.length
        self.framed = self._reply.framed
        self._validator = self._reply.validator

    def pieces(self) -> Iterator[bytes]:
        """All bytes in order, over as many connections as it takes."""
        position, cuts = 0, 0
        while True:
            try:
                for piece in self._reply.pieces(self._work):
                    position += len(piece)
                    cuts = 0
                    yield piece
                if self.length is None or position >= self.length:
                    return
                raise _Cut("it ended before its end")
            except _Cut as cut:
                cuts += 1
                self._go_on(position, cuts, cut)

    def _go_on(self, position: int, cuts: int, cut: Exception) -> None:
        """Ask for the rest, once the server answers again."""
        while True:
            self._reply.close()
            if cuts > CUTS:
                raise errors.Interrupted(
                    f"{self._address.shown} could not be fetched: {cut}.",
                    hint="It is tried again later.",
                )
            if not self._validator or self.length is None:
                raise _BeginAnew
            log.info("%s goes on at byte %d: %s", self._address.shown, position, cut)
            if self._work.cancel.wait(min(FIRST_WAIT * 2 ** (cuts - 1), LONGEST_WAIT)):
                self._work.check()
            try:
                self._reply = _Reply.ask(self._address, position, self._validator, self._work)
            except _Cut as again:
                cut, cuts = again, cuts + 1
                continue
            if self._reply.length != self.length:
                raise _BeginAnew
            return

    def close(self) -> None:
        self._reply.close()


@contextlib.contextmanager
def fetch(address: Address, work: Work) -> Iterator[Body]:
    """Ask for a file. To be called within ``Address.trying``.

    :raises errors.NotFound: the server does not have it.
    :raises errors.PermissionRefused: the server does not give it to us, or we don't ask there.
    :raises errors.Inaccessible: the server can't be reached or is not to be trusted.
    """
    body = _first(address, work)
    try:
        yield body
    finally:
        body.close()


def _first(address: Address, work: Work) -> Body:
    try:
        return Body(address, work)
    except _Cut as error:
        raise errors.Inaccessible(
            f"{address.shown} can't be reached: {error}.", hint="It is tried again."
        ) from error


class _Reply:
    """One answer of a server, with the file or the rest of it."""

    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        self._connection = connection
        self._response = response
        self._socket: socket.socket | None = connection.sock
        self.length = _length(response)
        self.framed = bool(response.chunked)
        self.validator = _validator(response)

    @classmethod
    def ask(cls, address: Address, position: int, validator: str, work: Work) -> _Reply:
        """Ask for the bytes from ``position`` on, following redirects."""
        url = urlsplit(address.url)
        for _ in range(REDIRECTS + 1):
            own = _origin(url) == _origin(urlsplit(address.url))
            headers = {"Accept-Encoding": "identity", "User-Agent": "poolkeeper"}
            if own and address.authorization:
                headers["Authorization"] = address.authorization
            if position:
                headers |= {"Range": f"bytes={position}-", "If-Range": validator}
            connection, response = _exchange(url, address, headers, work)
            if response.status not in _MOVED:
                return _accepted(cls, connection, response, address, position)
            connection.close()
            url = _redirected(url, response.getheader("Location"), address)
        raise errors.Inaccessible(
            f"{address.shown} leads on and on: more than {REDIRECTS} redirects.",
            hint="Give the address of the image itself.",
        )

    def pieces(self, work: Work) -> Iterator[bytes]:
        """The bytes of this answer.

        :raises _Cut: there are fewer than announced, or none for too long.
        """
        began, since = time.monotonic(), 0
        with _cutting(self._connection, self._socket, work):
            while True:
                try:
                    piece = self._response.read1(PIECE)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    work.check()
                    raise _Cut(_told(error)) from error
                work.check()
                if not piece:
                    return
                since += len(piece)
                if time.monotonic() - began > RATE_OVER:
                    if since < LEAST_RATE * RATE_OVER:
                        raise _Cut("it sends next to nothing")
                    began, since = time.monotonic(), 0
                yield piece

    def close(self) -> None:
        self._response.close()
        self._connection.close()


def _exchange(
    url: SplitResult, address: Address, headers: dict[str, str], work: Work
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = _connection(url, address)
    try:
        connection.connect()
        _require_proper_peer(connection.sock, address)
        connection.sock.settimeout(SILENCE)
        with _cutting(connection, connection.sock, work):
            connection.request("GET", _path(url), headers=headers)
            return connection, connection.getresponse()
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise errors.Inaccessible(
            f"{_server(url)} can't be trusted: {error.verify_message}.",
            hint="Name its certificate authority in source.http.caRef.",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        work.check()
        raise _Cut(_told(error)) from error
    except BaseException:
        connection.close()
        raise


def _connection(url: SplitResult, address: Address) -> http.client.HTTPConnection:
    host = url.hostname or ""
    if url.scheme == "http":
        return http.client.HTTPConnection(host, url.port, timeout=CONNECT_WITHIN)
    try:
        context = ssl.create_default_context(cadata=address.certificates or None)
    except (ssl.SSLError, ValueError) as error:
        raise errors.SecretUnavailable(
            "The certificates of source.http.caRef are not in PEM form."
        ) from error
    return http.client.HTTPSConnection(host, url.port, timeout=CONNECT_WITHIN, context=context)


def _require_proper_peer(connected: socket.socket, address: Address) -> None:
    """Link-local addresses hold no images, and on a cloud's machines their credentials."""
    peer = ipaddress.ip_address(str(connected.getpeername()[0]).partition("%")[0])
    mapped = getattr(peer, "ipv4_mapped", None) or peer
    if mapped.is_link_local:
        raise errors.PermissionRefused(
            f"{address.shown} leads to the link-local address {mapped}, which is not asked.",
            hint="Give the address of a web server.",
        )


@contextlib.contextmanager
def _cutting(
    connection: http.client.HTTPConnection, connected: socket.socket | None, work: Work
) -> Iterator[None]:
    """Cut the connection as soon as the work is cancelled, so that nothing waits for the server."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK):
            if work.cancel.is_set():
                if connected is not None:
                    with contextlib.suppress(OSError):
                        connected.shutdown(socket.SHUT_RDWR)
                return

    watcher = threading.Thread(target=watch, name="fetching", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()


def _accepted(
    made: type[_Reply],
    connection: http.client.HTTPConnection,
    response: http.client.HTTPResponse,
    address: Address,
    position: int,
) -> _Reply:
    if position and response.status in (200, 412, 416):
        connection.close()
        raise _BeginAnew  # another file by now, or a server without ranges
    if response.status != (206 if position else 200):
        connection.close()
        _refuse(response.status, response.reason, address)
    reply = made(connection, response)
    if position and _first_byte(response) != position:
        reply.close()
        raise _BeginAnew
    return reply


def _refuse(status: int, reason: str, address: Address) -> NoReturn:
    said = f"{address.shown} is answered by {status} {reason}".rstrip()
    if status in _BUSY:
        raise _Cut(said)
    if status in (401, 403, 407):
        raise errors.PermissionRefused(f"{said}.", hint="Check source.http.auth.")
    if status in (404, 410):
        raise errors.NotFound(f"{said}.", hint="Check source.http.url.")
    raise errors.Inaccessible(f"{said}.", hint="Check source.http.url.")


def _redirected(url: SplitResult, location: str | None, address: Address) -> SplitResult:
    target = urlsplit(urljoin(url.geturl(), location or ""))
    if target.scheme not in ("http", "https") or not target.hostname or "@" in target.netloc:
        raise errors.Inaccessible(
            f"{address.shown} leads to what is no web address.",
            hint="Give the address of the image itself.",
        )
    if url.scheme == "https" and target.scheme == "http":
        raise errors.Inaccessible(
            f"{address.shown} leads from https to http, which is not followed.",
            hint="Give an address that stays with https.",
        )
    return target


def _origin(url: SplitResult) -> tuple[str, str, int]:
    default = 443 if url.scheme == "https" else 80
    return url.scheme, (url.hostname or "").lower(), url.port or default


def _server(url: SplitResult) -> str:
    return f"{url.scheme}://{url.netloc}"


def _path(url: SplitResult) -> str:
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def _length(response: http.client.HTTPResponse) -> int | None:
    """Bytes of the whole file, by the answer's header."""
    ranged = response.getheader("Content-Range")
    if response.status == 206 and ranged:
        total = ranged.rpartition("/")[2].strip()
        return int(total) if total.isdigit() else None
    return response.length


def _first_byte(response: http.client.HTTPResponse) -> int | None:
    given = (response.getheader("Content-Range") or "").removeprefix("bytes").strip()
    first = given.partition("-")[0]
    return int(first) if first.isdigit() else None


def _validator(response: http.client.HTTPResponse) -> str:
    """What names this very state of the file (RFC 9110, If-Range); a weak ETag does not."""
    etag = response.getheader("ETag") or ""
    if etag and not etag.startswith("W/"):
        return etag
    return response.getheader("Last-Modified") or ""


def _told(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was cut"
    if isinstance(error, TimeoutError):
        return "the server says nothing"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"the answer is no HTTP ({type(error).__name__})"
