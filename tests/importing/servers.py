"""A real web server on this host that does what a test tells it: cuts, redirects, lies."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Handler = http.server.BaseHTTPRequestHandler


@dataclass
class Site:
    """What the server holds and how it behaves.

    :ivar files: contents by path.
    :ivar cuts: after how many bytes of its body each of the next answers is cut.
    :ivar ranges: whether range requests are answered by ranges.
    :ivar validators: whether answers carry an ETag.
    :ivar answers: what answers a path in place of a file.
    :ivar asked: requests that came: path and headers.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    validators: bool = True
    chunked: bool = False
    version: str = "one"
    answers: dict[str, Callable[[Handler], None]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    on_cut: Callable[[], None] = lambda: None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, site: Site) -> None:
        self.site = site
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        """Clients that go away are what these tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        site = self.server.site
        path = self.path.partition("?")[0]
        site.asked.append((self.path, dict(self.headers)))
        if path in site.answers:
            site.answers[path](self)
            return
        if path not in site.files:
            self.send_error(404)
            return
        self._send(site, site.files[path])

    def _send(self, site: Site, body: bytes) -> None:
        asked = self.headers.get("Range")
        same = self.headers.get("If-Range", "") == f'"{site.version}"'
        first = 0
        if asked and site.ranges and same:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if site.validators:
            self.send_header("ETag", f'"{site.version}"')
        self._send_body(site, body[first:])

    def _send_body(self, site: Site, body: bytes) -> None:
        cut = site.cuts.pop(0) if site.cuts else None
        sent = body if cut is None else body[:cut]
        if site.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if site.chunked:
            for at in range(0, len(sent), 65536):
                piece = sent[at : at + 65536]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"" if cut is not None else b"0\r\n\r\n")
        else:
            self.wfile.write(sent)
        if cut is not None:
            self.wfile.flush()
            site.on_cut()
            self.close_connection = True


@contextlib.contextmanager
def serving(site: Site, *, certificate: Path | None = None) -> Iterator[Site]:
    """Serve over http, or over https with a certificate and its key in one file."""
    server = _Server(site)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    site.url = f"{scheme}://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_certificate(directory: Path) -> tuple[Path, str]:
    """A certificate for localhost that nobody trusts: the file for the server, and its PEM."""
    key, crt, both = (directory / name for name in ("key.pem", "crt.pem", "both.pem"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(crt)],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_text(key.read_text() + crt.read_text())
    return both, crt.read_text()


def redirect(target: str, status: int = 302) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Location", target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def status(code: int) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def raw(text: bytes) -> Callable[[Handler], None]:
    """These very bytes, and the end."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(text)
        handler.close_connection = True

    return answer
