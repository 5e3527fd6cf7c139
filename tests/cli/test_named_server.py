"""``--server``: contents over TLS, from an agent that is a process of its own."""

import hashlib
import http.server
import os
import re
import ssl
import subprocess
import threading

import pytest

from tests.authorities import Authority

MIB = 2**20


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def files(tmp_path):
    return tmp_path / "tls.crt", tmp_path / "tls.key"


@pytest.fixture
def served(poolkeeper, write, pool, volume, images, authority, files):
    """An agent that serves a volume of 4 MiB to all addresses; its URL."""
    manifest = write("a.yaml", pool(), volume("disk", capacity="4Mi"))
    assert poolkeeper("apply", "-f", manifest, "--wait").code == 0
    authority.give(*files, "localhost")
    cert, key = files
    options = ["--data-listen", "0.0.0.0:0", "--tls-cert", cert, "--tls-key", key]
    process = subprocess.Popen(
        poolkeeper.argv("run", *options), env=poolkeeper.environment(),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    found = None
    for line in process.stderr:
        found = found or re.search(r"listening at https://0\.0\.0\.0:(\d+)", line)
        if "keeping the pools" in line:
            break
    assert found is not None
    log = []
    reading = threading.Thread(target=lambda: log.extend(process.stderr))
    reading.start()
    yield f"https://localhost:{found[1]}"
    process.terminate()
    assert process.wait(60) == 0
    reading.join()
    process.stderr.close()
    token = (poolkeeper.state / "data-token").read_text().strip()
    assert token not in "".join(log)


@pytest.fixture
def moved(poolkeeper, tmp_path, authority):
    """Upload or download a file by a server; a token and an authority may be others."""

    def move(command, file, server, *more, token=None, ca=None):
        named = ["--server", server, "--token-file", token or poolkeeper.state / "data-token"]
        named += ["--ca", ca or authority.certificate]
        # Another state directory, as of another host.
        away = ["--state-dir", tmp_path / "elsewhere"]
        return poolkeeper("volume", command, "disk", file, *named, *away, *more)

    return move


def test_what_goes_in_comes_out(served, moved, images, tmp_path):
    sent, got = tmp_path / "sent", tmp_path / "got"
    sent.write_bytes(os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB))
    done = moved("upload", sent, served, "--checksum", "sha256")
    assert done.code == 0, done.err
    assert done.out.strip() == f"sha256:{hashlib.sha256(sent.read_bytes()).hexdigest()}"
    assert (images / "disk").read_bytes() == sent.read_bytes()
    done = moved("download", got, served)
    assert done.code == 0, done.err
    assert got.read_bytes() == sent.read_bytes()
    part = moved("download", tmp_path / "part", f"{served}/", "--offset", "1Mi", "--length", "512")
    assert (part.code, (tmp_path / "part").read_bytes()) == (0, bytes(512))


def test_the_token_goes_to_no_agent_whose_certificate_is_not_known(served, moved, tmp_path):
    other = Authority(tmp_path / "other")
    done = moved("download", tmp_path / "got", served, ca=other.certificate)
    assert done.code == 1
    assert "certificate is not trusted" in done.err
    assert "--ca" in done.err
    by_address = moved("download", tmp_path / "got", served.replace("localhost", "127.0.0.1"))
    assert by_address.code == 1
    assert "certificate is not trusted" in by_address.err
    broken = tmp_path / "broken.crt"
    broken.write_text("no certificate")
    assert "can't be read as certificates" in moved("download", "-", served, ca=broken).err


def test_another_token_is_refused_and_not_shown(served, moved, images, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("a-wrong-token\n")
    sent = tmp_path / "sent"
    sent.write_bytes(os.urandom(MIB))
    before = (images / "disk").read_bytes()
    for command, file in (("upload", sent), ("download", tmp_path / "got")):
        done = moved(command, file, served, token=wrong)
        assert done.code == 1
        assert "token" in done.err
        assert "a-wrong-token" not in done.err + done.out
    assert (images / "disk").read_bytes() == before
    done = moved("download", tmp_path / "got", served, token=tmp_path / "none")
    assert (done.code, "none" in done.err) == (1, True)


@pytest.fixture
def redirecting(authority, files, tmp_path):
    """A server that sends all to another one, which writes down who comes."""
    asked = []

    class Away(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            if not self.path.startswith("/there"):
                self.send_response(307)
                self.send_header("Location", f"https://localhost:{self.server.server_port}/there")
            else:
                self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_PUT = do_GET

        def log_message(self, *arguments):
            """Say nothing."""

    authority.give(*files, "localhost")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Away)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"https://localhost:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("command", ["upload", "download"])
def test_a_redirect_is_not_followed(moved, redirecting, tmp_path, command):
    server, asked = redirecting
    token, sent = tmp_path / "token", tmp_path / "sent"
    token.write_text("somebodys\n")
    sent.write_bytes(b"x")
    file = sent if command == "upload" else tmp_path / "got"
    done = moved(command, file, server, token=token)
    assert done.code == 1
    assert "a redirect, which is not followed" in done.err
    assert asked
    assert not [path for path, _ in asked if path.startswith("/there")]


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("http://storage.example:8081", "for all to read"),
        ("ftp://localhost", "is not like https://HOST:PORT"),
        ("https://localhost:port", "is not like https://HOST:PORT"),
        ("https://localhost/prefix", "is not like https://HOST:PORT"),
        ("localhost:8443", "is not like https://HOST:PORT"),
    ],
)
def test_what_can_not_be_a_server_is_said(moved, tmp_path, server, said):
    token = tmp_path / "token"
    token.write_text("somebodys\n")
    done = moved("download", tmp_path / "got", server, token=token)
    assert done.code == 1
    assert said in done.err


def test_a_certificate_that_is_renewed_is_shown_at_once(served, moved, files, tmp_path):
    assert moved("download", tmp_path / "one", served).code == 0
    renewed = Authority(tmp_path / "renewed")
    renewed.give(*files, "localhost")
    done = moved("download", tmp_path / "two", served, ca=renewed.certificate)
    assert done.code == 0, done.err
    assert "not trusted" in moved("download", tmp_path / "three", served).err
    files[0].write_text("half of a renewal")
    assert moved("download", tmp_path / "four", served, ca=renewed.certificate).code == 0
