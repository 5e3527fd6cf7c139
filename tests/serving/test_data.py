"""Contents of volumes over HTTP, moved by curl and by clients that misbehave."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import random
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends import errors
from backends.images import transferring
from backends.images.transferring import Hole
from controller.codecs.sparsestream import MEDIA_TYPE, Decoder, encode
from controller.serving import access
from controller.serving import data as dataserving
from controller.serving.access import TokenFile
from controller.serving.data import data_routes
from controller.serving.server import Address, Server
from controller.transfers import Transfers
from tests.keeper import dir_pool, operation, operation_key, volume, volume_key
from tests.transferring.sites import Site
from tests.transferring.streams import KIB, MIB, allocated, plain

PATIENCE = 60.0
WEB = volume_key("web")
DATA = "/v1/namespaces/default/volumes/web/data"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served(Site):
    """A site whose volumes are served."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.settle()
        self.tokens = TokenFile(self.state)
        self.server = Server(
            Address("127.0.0.1", 0), data_routes(Transfers(self.engine), self.tokens)
        )
        self.server.start()

    @property
    def url(self) -> str:
        return f"http://{self.server.address}{DATA}"

    def ask(
        self, method: str, path: str = DATA, body: Any = None, *, token: str | None = None,
        **headers: str,
    ) -> Answer:  # fmt: skip
        connection = http.client.HTTPConnection(str(self.server.address), timeout=PATIENCE)
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        sent["Authorization"] = f"Bearer {self.tokens.read() if token is None else token}"
        chunked = body is not None and not isinstance(body, bytes)
        if chunked:
            sent["Transfer-Encoding"] = "chunked"
        try:
            connection.request(method, path, body, sent, encode_chunked=chunked)
            answer = connection.getresponse()
            found = {key.lower(): value for key, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def curl(self, *arguments: str | Path, url: str = "") -> bytes:
        """curl with the token from a file, as docs/data.md has it."""
        config = self.state.parent / "curl.conf"
        config.write_text(f'header = "Authorization: Bearer {self.tokens.read()}"\n')
        command = ["curl", "-sS", "--fail-with-body", "-K", str(config), *map(str, arguments)]
        done = subprocess.run([*command, url or self.url], capture_output=True, check=False)
        assert done.returncode == 0, (done.stderr, done.stdout)
        return done.stdout

    def half_upload(self, data: bytes, **headers: str) -> socket.socket:
        """A client that sends a half, and waits."""
        raw = socket.create_connection(("127.0.0.1", self.server.address.port), PATIENCE)
        sent = {"Host": "x", "Authorization": f"Bearer {self.tokens.read()}",
                "Content-Length": str(len(data)), **headers}  # fmt: skip
        head = "".join(f"{key}: {value}\r\n" for key, value in sent.items())
        raw.sendall(f"PUT {DATA} HTTP/1.1\r\n{head}\r\n".encode() + data[: len(data) // 2])
        return raw

    def rest(self) -> None:
        assert self.engine.jobs.idle(PATIENCE)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.engine.stop()
    made.server.stop()
    made.rest()
    made.store.close()


@pytest.fixture
def disk(site: Served) -> Path:
    return site.declare("web")


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestCurl:
    def test_an_upload_and_a_download(self, site: Served, disk: Path, tmp_path: Path) -> None:
        sent, came = tmp_path / "sent", tmp_path / "came"
        sent.write_bytes(os.urandom(3 * MIB))
        told = json.loads(site.curl("-T", sent))
        assert told == {"length": 3 * MIB}
        assert disk.read_bytes() == sent.read_bytes() + bytes(MIB)
        site.curl("-o", came)
        assert came.read_bytes() == disk.read_bytes()

    def test_a_part(self, site: Served, disk: Path) -> None:
        disk.write_bytes(os.urandom(4 * MIB))
        assert site.curl("-r", "100-199") == disk.read_bytes()[100:200]
        url = f"{site.url}?offset=1048576&length=10"
        assert site.curl(url=url) == disk.read_bytes()[MIB : MIB + 10]

    def test_resuming_both_ways(self, site: Served, disk: Path, tmp_path: Path) -> None:
        whole, part = tmp_path / "whole", tmp_path / "part"
        whole.write_bytes(os.urandom(4 * MIB))
        part.write_bytes(whole.read_bytes()[:MIB])
        site.curl("-T", part)
        site.curl("-T", whole, "-C", str(MIB))
        assert disk.read_bytes() == whole.read_bytes()
        site.curl("-o", part, "-C", "-")
        assert part.read_bytes() == whole.read_bytes()

    def test_a_checksum_that_is_announced(self, site: Served, disk: Path, tmp_path: Path) -> None:
        sent = tmp_path / "sent"
        sent.write_bytes(os.urandom(MIB))
        digest = hashlib.sha256(sent.read_bytes()).hexdigest()
        told = json.loads(site.curl("-T", sent, url=f"{site.url}?checksum=sha256:{digest}"))
        assert told == {"length": MIB, "sha256": digest}
        asked = f"{site.url.removesuffix('data')}checksum?algorithm=sha256&length={MIB}"
        assert json.loads(site.curl(url=asked)) == {"length": MIB, "sha256": digest}
        wrong = site.ask("PUT", f"{DATA}?checksum=sha256:{'0' * 64}", sent.read_bytes())
        assert (wrong.status, wrong.json["reason"]) == (422, "ChecksumMismatch")

    def test_zeros_that_are_to_be_holes(self, site: Served, disk: Path, tmp_path: Path) -> None:
        disk.write_bytes(b"\xff" * 4 * MIB)
        sent = tmp_path / "sent"
        sent.write_bytes(bytes(3 * MIB) + b"x" * MIB)
        site.curl("-T", sent, url=f"{site.url}?sparse=true")
        assert disk.read_bytes() == sent.read_bytes()
        assert allocated(disk) <= MIB + 128 * KIB


class TestSparse:
    def test_holes_are_neither_sent_nor_stored(self, site: Served, disk: Path) -> None:
        data = os.urandom(64 * 1024)
        parts = [bytes(part) for part in encode([Hole(MIB), data, Hole(3 * MIB - len(data))])]
        disk.write_bytes(b"\xff" * 4 * MIB)
        done = site.ask("PUT", body=iter(parts), Content_Type=MEDIA_TYPE)
        assert (done.status, done.json) == (200, {"length": 4 * MIB})
        assert allocated(disk) <= len(data) + 8 * KIB
        came = site.ask("GET", Accept=MEDIA_TYPE)
        assert came.headers["content-type"] == MEDIA_TYPE
        assert len(came.body) < 2 * len(data)
        decoder = Decoder()
        assert plain([*decoder.feed(came.body)]) == disk.read_bytes()
        decoder.close()

    @pytest.mark.parametrize("stream", [b"nonsense", b"PKSPRS1\nD\0\0\0\0\0\0\0\5ab"])
    def test_what_is_no_sparse_stream_is_refused(
        self, site: Served, disk: Path, stream: bytes
    ) -> None:
        done = site.ask("PUT", body=stream, Content_Type=MEDIA_TYPE)
        assert done.status in (400, 408), done
        assert done.json["reason"] in ("InvalidStream", "Interrupted")

    def test_a_hole_past_the_end_is_refused(self, site: Served, disk: Path) -> None:
        parts = b"".join(bytes(part) for part in encode([Hole(2**60)]))
        done = site.ask("PUT", body=parts, Content_Type=MEDIA_TYPE)
        assert (done.status, done.json["reason"]) == (413, "OutOfRange")


class TestAccess:
    @pytest.mark.parametrize("header", ["", "Basic Zm9vOmJhcg==", "Bearer", "Bearer ", "Bearer no"])
    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
    def test_without_the_token_nothing_is_told(
        self, site: Served, disk: Path, header: str, method: str
    ) -> None:
        before = disk.read_bytes()
        for path in (DATA, DATA.replace("web", "none")):
            connection = http.client.HTTPConnection(str(site.server.address), timeout=PATIENCE)
            connection.request(method, path, b"x" * 100, {"Authorization": header})
            answer = connection.getresponse()
            assert answer.status == 401
            assert answer.getheader("WWW-Authenticate") == "Bearer"
            assert b"web" not in answer.read()
            connection.close()
        assert disk.read_bytes() == before

    def test_the_token_is_made_once_for_its_owner_alone(self, site: Served, tmp_path: Path) -> None:
        token = site.tokens.read()
        path = site.state / access.FILE_NAME
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert TokenFile(site.state).read() == token
        assert len(token) >= 40
        assert TokenFile(tmp_path / "other").read() != token

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
    def test_a_token_that_others_can_read_counts_for_nobody(
        self, site: Served, disk: Path, mode: int
    ) -> None:
        token = site.tokens.read()
        (site.state / access.FILE_NAME).chmod(mode)
        answer = site.ask("GET", token=token)
        assert (answer.status, answer.json["reason"]) == (500, "SecretUnavailable")

    def test_a_link_in_the_place_of_the_token_is_not_followed(
        self, site: Served, disk: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "mine").write_text("mine\n")
        (tmp_path / "mine").chmod(0o600)
        path = site.state / access.FILE_NAME
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "mine")
        assert site.ask("GET", token="mine").status == 500

    def test_many_make_one_token(self, tmp_path: Path) -> None:
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda: found.append(TokenFile(tmp_path / "state").read()))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1

    def test_the_token_is_nowhere_to_be_seen(
        self, site: Served, disk: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        site.ask("PUT", body=b"x" * 10)
        site.ask("PUT", body=b"x" * 5 * MIB)
        site.ask("GET")
        secret = "a-token-of-somebody-else"
        for answer in (site.ask("GET", token=secret), site.ask("PUT", token=secret, body=b"x")):
            assert secret.encode() not in answer.body
        site.rest()
        token = site.tokens.read()
        seen = caplog.text + str(site.told()) + str(site.events())
        for path in site.state.rglob("*"):
            if path.is_file() and path.name != access.FILE_NAME:
                seen += path.read_bytes().decode(errors="replace")
        own = Path("/proc/self/cmdline").read_text() + Path("/proc/self/environ").read_text()
        for hidden in (token, secret):
            assert hidden not in seen
            assert hidden not in own


class TestRefusals:
    @pytest.mark.parametrize(
        ("method", "path", "status", "reason"),
        [
            ("GET", DATA.replace("web", "none"), 404, "NotFound"),
            ("GET", "/v1/namespaces/default/volumes/..%2Fweb/data", 404, "NotFound"),
            ("GET", "/v1/namespaces/Def_ault/volumes/web/data", 404, "NotFound"),
            ("GET", f"{DATA}?offset=4194305", 416, "OutOfRange"),
            ("GET", f"{DATA}?offset=-1", 400, "InvalidSpec"),
            ("GET", f"{DATA}?offset=99999999999999999999", 400, "InvalidSpec"),
            ("GET", f"{DATA}?operation=none", 404, "NotFound"),
            ("GET", f"{DATA}?operation=a/b", 404, "NotFound"),
            ("PUT", f"{DATA}?offset=4194304&length=1", 413, "OutOfRange"),
            ("PUT", f"{DATA}?checksum=md5:00", 400, "InvalidSpec"),
            ("PUT", f"{DATA}?checksum=sha256:00", 400, "InvalidSpec"),
        ],
    )
    def test_what_can_not_be_is_said(
        self, site: Served, disk: Path, method: str, path: str, status: int, reason: str
    ) -> None:
        before = disk.read_bytes()
        answer = site.ask(method, path, b"x" if method == "PUT" else None)
        assert (answer.status, answer.json["reason"]) == (status, reason), answer.json
        assert disk.read_bytes() == before

    def test_too_much_is_refused_before_it_is_sent(self, site: Served, disk: Path) -> None:
        disk.write_bytes(b"\xaa" * 4 * MIB)
        answer = site.ask("PUT", body=b"x" * (4 * MIB + 1))
        assert (answer.status, answer.json["reason"]) == (413, "OutOfRange")
        assert disk.read_bytes() == b"\xaa" * 4 * MIB

    def test_a_client_that_asks_first_need_not_send(self, site: Served, disk: Path) -> None:
        with socket.create_connection(("127.0.0.1", site.server.address.port), PATIENCE) as raw:
            head = (
                f"PUT {DATA} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.tokens.read()}\r\n"
                f"Content-Length: {2**50}\r\nExpect: 100-continue\r\n\r\n"
            )
            raw.sendall(head.encode())
            assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")

    @pytest.mark.parametrize("header", ["bytes 5-1/6", "bytes */6", "lines 1-2/3", "bytes 0-x/9"])
    def test_a_content_range_that_is_none_writes_nothing(
        self, site: Served, disk: Path, header: str
    ) -> None:
        disk.write_bytes(b"\xaa" * 4 * MIB)
        answer = site.ask("PUT", body=b"x", Content_Range=header)
        assert answer.status in (400, 413)
        assert disk.read_bytes() == b"\xaa" * 4 * MIB

    def test_a_volume_in_use_names_who(self, site: Served, disk: Path) -> None:
        holder = subprocess.Popen(["sleep", "100"], stdin=disk.open("rb"))
        try:
            answer = site.ask("PUT", body=b"x")
        finally:
            holder.kill()
            holder.wait()
        assert (answer.status, answer.json["reason"]) == (409, "InUse")
        assert f"pid {holder.pid}" in answer.json["message"]

    def test_what_is_not_there_yet_may_be_asked_for_again(self, site: Served) -> None:
        site.apply(volume("web", "images", capacity="1Mi", allocation=0))
        answer = site.ask("GET")
        assert (answer.status, answer.json["reason"]) == (503, "NotNow")
        assert int(answer.headers["retry-after"]) > 0


class TestDescription:
    def test_a_head_tells_what_there_is(self, site: Served, disk: Path) -> None:
        answer = site.ask("HEAD")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-length"] == str(4 * MIB)
        assert answer.headers["accept-ranges"] == "bytes"
        assert "upload-offset" not in answer.headers
        tag = answer.headers["etag"]
        assert site.ask("GET", Range="bytes=0-9").headers["etag"] == tag
        assert site.ask("PUT", body=b"other").status == 200
        assert site.ask("HEAD").headers["etag"] != tag

    def test_a_part_of_what_has_changed_is_the_whole(self, site: Served, disk: Path) -> None:
        tag = site.ask("HEAD").headers["etag"]
        part = site.ask("GET", Range="bytes=0-9", If_Range=tag)
        assert (part.status, len(part.body)) == (206, 10)
        assert part.headers["content-range"] == f"bytes 0-9/{4 * MIB}"
        site.ask("PUT", body=b"other")
        whole = site.ask("GET", Range="bytes=0-9", If_Range=tag)
        assert (whole.status, len(whole.body)) == (200, 4 * MIB)

    def test_a_range_that_is_not_understood_is_left_aside(self, site: Served, disk: Path) -> None:
        assert len(site.ask("GET", Range="bytes=0-1,5-6").body) == 4 * MIB


class TestBreakingOff:
    def test_an_upload_that_broke_off_is_told_and_gone_on_with(
        self, site: Served, disk: Path
    ) -> None:
        data = os.urandom(4 * MIB)
        raw = site.half_upload(data)
        eventually(lambda: disk.read_bytes()[: 2 * MIB] == data[: 2 * MIB])
        raw.close()
        site.rest()
        assert "UploadBroken" in site.reasons(WEB)
        reached = int(site.ask("HEAD").headers["upload-offset"])
        assert reached == 2 * MIB
        site.ask(
            "PUT", body=data[reached:], Content_Range=f"bytes {reached}-{4 * MIB - 1}/{4 * MIB}"
        )
        assert disk.read_bytes() == data
        assert "upload-offset" not in site.ask("HEAD").headers
        assert "UploadDone" in site.reasons(WEB)

    def test_a_volume_that_is_uploaded_to_is_kept_for_it(self, site: Served, disk: Path) -> None:
        raw = site.half_upload(bytes(4 * MIB))
        eventually(lambda: site.engine.jobs.on(WEB))
        second = site.ask("PUT", body=b"x")
        assert (second.status, second.json["reason"]) == (503, "NotNow")
        assert site.ask("GET").status == 503
        site.apply(volume("web", "images", capacity="8Mi", allocation=0))
        site.reconcile()
        assert disk.stat().st_size == 4 * MIB
        raw.close()
        site.rest()
        site.settle()
        assert disk.stat().st_size == 8 * MIB

    def test_downloads_share_a_volume_and_keep_it(self, site: Served, disk: Path) -> None:
        disk.write_bytes(os.urandom(4 * MIB))
        held = http.client.HTTPConnection(str(site.server.address), timeout=PATIENCE)
        held.sock = socket.create_connection(("127.0.0.1", site.server.address.port), PATIENCE)
        held.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        held.request("GET", DATA, headers={"Authorization": f"Bearer {site.tokens.read()}"})
        answer = held.getresponse()
        eventually(lambda: site.engine.jobs.reading(WEB))
        assert site.ask("GET", Range="bytes=0-0").status == 206
        assert site.ask("PUT", body=b"x").status == 503
        site.apply(volume("web", "images", capacity="8Mi", allocation=0))
        site.reconcile()
        assert disk.stat().st_size == 4 * MIB
        assert answer.read() == disk.read_bytes()
        held.close()

    def test_a_client_that_stands_still_is_let_go(
        self, site: Served, disk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dataserving, "IDLE", 0.2)
        with site.half_upload(bytes(4 * MIB)) as raw:
            assert raw.recv(1000).startswith(b"HTTP/1.1 408 ")
        site.rest()
        assert "stood still" in [item.message for item in site.events(WEB)][-1]

    def test_a_download_that_fails_is_cut_and_not_ended(
        self, site: Served, disk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = transferring.read

        def broken(*arguments: Any, **more: Any) -> Iterator[transferring.Piece]:
            yield bytes(MIB)
            raise errors.Inaccessible("The disk is away.")

        for wanted in ("*/*", MEDIA_TYPE):
            monkeypatch.setattr(transferring, "read", broken)
            with pytest.raises((http.client.IncompleteRead, OSError)):
                site.ask("GET", Accept=wanted)
            monkeypatch.setattr(transferring, "read", real)
        assert site.ask("GET").status == 200

    def test_no_more_run_than_may_at_once(self, site: Served, disk: Path) -> None:
        site.declare("other")
        site.declare("third")
        paths = [DATA.replace("web", name) for name in ("web", "other")]
        held = []
        for path in paths:
            raw = socket.create_connection(("127.0.0.1", site.server.address.port), PATIENCE)
            raw.sendall(
                f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.tokens.read()}\r\n"
                f"Content-Length: 1000\r\n\r\n".encode()
            )
            held.append(raw)
        eventually(lambda: len(site.engine.jobs.snapshot()) == 2)
        answer = site.ask("GET", DATA.replace("web", "third"))
        assert (answer.status, answer.json["reason"]) == (503, "NotNow")
        for raw in held:
            raw.close()
        site.rest()
        assert site.ask("GET", DATA.replace("web", "third")).status == 200

    def test_a_full_disk_is_told(
        self, site: Served, mounted: Callable[[str], Path], tmp_path: Path
    ) -> None:
        small = mounted("ext4")
        site.apply(dir_pool("small", small / "pool"))
        site.apply(volume("big", "small", capacity="1Gi", allocation=0))
        site.settle()
        noise = random.Random(0).randbytes(MIB)
        answer = site.ask("PUT", DATA.replace("web", "big"), body=iter([noise] * 200))
        assert (answer.status, answer.json["reason"]) == (507, "NoSpace")
        site.rest()
        assert "UploadBroken" in site.reasons(volume_key("big"))


class TestOperations:
    def test_an_upload_carries_an_operation_out(self, site: Served, disk: Path) -> None:
        site.apply(operation("new", "web", "Upload", transfer={"offset": "1Mi", "length": "1Mi"}))
        site.settle()
        data = os.urandom(MIB)
        assert site.ask("PUT", f"{DATA}?operation=new", data).status == 200
        assert disk.read_bytes() == bytes(MIB) + data + bytes(2 * MIB)
        site.rest()
        found = site.get(operation_key("new"))
        assert (found.status.phase, found.status.progress) != ("Running", None)
        assert found.status.phase == "Succeeded"
        again = site.ask("PUT", f"{DATA}?operation=new", data)
        assert (again.status, again.json["reason"]) == (409, "Conflict")

    def test_more_than_it_allows_is_refused_and_ends_it(self, site: Served, disk: Path) -> None:
        site.apply(operation("new", "web", "Upload", transfer={"length": "1Mi"}))
        site.settle()
        answer = site.ask("PUT", f"{DATA}?operation=new", bytes(MIB + 1))
        assert (answer.status, answer.json["reason"]) == (413, "OutOfRange")
        site.rest()
        assert site.get(operation_key("new")).status.phase == "Failed"

    def test_one_that_was_cut_waits_for_the_rest(self, site: Served, disk: Path) -> None:
        site.apply(operation("new", "web", "Upload"))
        site.settle()
        data = os.urandom(4 * MIB)
        raw = socket.create_connection(("127.0.0.1", site.server.address.port), PATIENCE)
        raw.sendall(
            f"PUT {DATA}?operation=new HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {site.tokens.read()}\r\n"
            f"Content-Length: {4 * MIB}\r\n\r\n".encode()
            + data[:MIB]
        )
        eventually(lambda: site.get(operation_key("new")).status.phase == "Running")
        raw.close()
        site.rest()
        site.reconcile()
        found = site.get(operation_key("new"))
        assert found.status.phase == "Pending"
        assert "It was broken off." in found.status.message
        assert "UploadBroken" in site.reasons(WEB)
        reached = int(site.ask("HEAD").headers["upload-offset"])
        path = f"{DATA}?operation=new&offset={reached}"
        assert site.ask("PUT", path, data[reached:]).status == 200
        site.rest()
        assert site.get(operation_key("new")).status.phase == "Succeeded"
        assert disk.read_bytes() == data

    def test_cancelling_it_ends_the_transfer(self, site: Served, disk: Path) -> None:
        site.apply(operation("new", "web", "Upload"))
        site.settle()
        raw = socket.create_connection(("127.0.0.1", site.server.address.port), PATIENCE)
        raw.sendall(
            f"PUT {DATA}?operation=new HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {site.tokens.read()}\r\nContent-Length: 1000\r\n\r\n".encode()
        )
        eventually(lambda: site.engine.jobs.of(operation_key("new")))
        site.apply(operation("new", "web", "Upload", cancel=True))
        site.reconcile()
        assert raw.recv(1000).startswith(b"HTTP/1.1 503 ")
        raw.close()
        site.rest()
        assert site.get(operation_key("new")).status.phase == "Cancelled"

    def test_another_volumes_operation_is_refused(self, site: Served, disk: Path) -> None:
        site.declare("other")
        site.apply(operation("new", "other", "Upload"), operation("out", "web", "Download"))
        for name in ("new", "out"):
            answer = site.ask("PUT", f"{DATA}?operation={name}", b"x")
            assert (answer.status, answer.json["reason"]) == (400, "InvalidSpec")


def test_an_image_that_is_sent_takes_its_place(site: Served, tmp_path: Path) -> None:
    disk = site.declare("web", format="qcow2")
    source = tmp_path / "source.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(source), "4M"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 5 0 1M", str(source)], check=True)
    site.curl("-T", source)
    assert disk.read_bytes() == source.read_bytes()
    refused = site.ask("PUT", body=b"QFI\xfb" + bytes(1000))
    assert refused.status in (422, 500)
    assert disk.read_bytes() == source.read_bytes()
    assert site.ask("PUT", f"{DATA}?offset=5", b"x").json["reason"] == "Unsupported"
