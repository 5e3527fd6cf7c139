"""Fetching from web servers that are slow, broken, hostile or merely picky."""

import hashlib
import os
import random
import resource
import socket
import threading
import time

import pytest

from backends import errors
from backends.host import fetching
from backends.images.importing import Room
from tests.importing.conftest import MIB
from tests.importing.servers import Site, raw, redirect, serving, status

IMAGE = random.Random(7).randbytes(3 * MIB + 12345)
SHA256 = f"sha256:{hashlib.sha256(IMAGE).hexdigest()}"


def test_what_is_fetched_is_what_the_server_has(site, taken):
    site.files["/a"] = IMAGE
    taken.fetch(f"{site.url}/a?token=secret", checksum=SHA256)
    assert taken.contents == IMAGE
    assert site.asked[0][0] == "/a?token=secret"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_wrong_checksum_is_refused(site, taken, algorithm):
    site.files["/a"] = IMAGE
    digest = hashlib.new(algorithm, IMAGE + b"x").hexdigest()
    with pytest.raises(errors.ChecksumMismatch):
        taken.fetch(f"{site.url}/a", checksum=f"{algorithm}:{digest}")


def test_a_cut_is_made_up_for_by_asking_for_the_rest(site, taken):
    site.files["/a"] = IMAGE
    site.cuts = [MIB, 0, 5, MIB]
    taken.fetch(f"{site.url}/a", checksum=SHA256)
    assert taken.contents == IMAGE
    ranges = [headers.get("Range") for _, headers in site.asked]
    assert ranges == [
        None, f"bytes={MIB}-", f"bytes={MIB}-", f"bytes={MIB + 5}-", f"bytes={2 * MIB + 5}-",
    ]  # fmt: skip


def test_a_file_that_changed_after_a_cut_is_fetched_anew(site, taken):
    other = IMAGE[::-1]
    site.files["/a"] = IMAGE
    site.cuts = [MIB]

    def change():
        site.files["/a"], site.version = other, "two"

    site.on_cut = change
    taken.fetch(f"{site.url}/a")
    assert taken.contents == other


@pytest.mark.parametrize("lacking", ["ranges", "validators"])
def test_a_server_that_can_not_go_on_is_asked_anew(site, taken, lacking):
    setattr(site, lacking, False)
    site.files["/a"] = IMAGE
    site.cuts = [MIB, 2 * MIB]
    taken.fetch(f"{site.url}/a", checksum=SHA256)
    assert taken.contents == IMAGE


def test_a_server_that_always_cuts_is_given_up_for_now(site, taken):
    site.files["/a"] = IMAGE
    site.cuts = [100] + [0] * 100
    with pytest.raises(errors.Interrupted) as caught:
        taken.fetch(f"{site.url}/a")
    assert not caught.value.terminal
    assert len(site.asked) < 20


def test_chunks_are_put_together_and_a_cut_among_them_is_noticed(site, taken):
    site.chunked = True
    site.files["/a"] = IMAGE
    site.cuts = [MIB]
    taken.fetch(f"{site.url}/a")
    assert taken.contents == IMAGE
    assert len(site.asked) == 2


def test_an_end_that_could_be_a_cut_is_not_believed_without_a_checksum(site, taken):
    site.answers["/a"] = raw(b"HTTP/1.0 200 OK\r\n\r\n" + IMAGE)
    with pytest.raises(errors.Inaccessible, match="how long"):
        taken.fetch(f"{site.url}/a")
    taken.fetch(f"{site.url}/a", checksum=SHA256)
    assert taken.contents == IMAGE


def test_a_length_that_is_too_long_is_a_cut_without_end(site, taken):
    site.answers["/a"] = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b"short")
    with pytest.raises(errors.Interrupted):
        taken.fetch(f"{site.url}/a")


def test_what_is_sent_past_the_announced_length_is_not_taken(site, taken):
    site.answers["/a"] = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + b"12345extra")
    taken.fetch(f"{site.url}/a")
    assert taken.contents == b"12345"


def test_a_range_that_begins_elsewhere_is_not_pieced_in(site, taken):
    body = b"".join([
        b"HTTP/1.1 206 Partial Content\r\nETag: \"one\"\r\n",
        b"Content-Range: bytes 0-%d/%d\r\n" % (len(IMAGE) - 1, len(IMAGE)),
        b"Content-Length: %d\r\n\r\n" % len(IMAGE), IMAGE,
    ])  # fmt: skip
    calls = []

    def answer(handler):
        calls.append(handler.headers.get("Range"))
        if calls[-1]:
            raw(body)(handler)
        else:
            head = b'HTTP/1.1 200 OK\r\nETag: "one"\r\nContent-Length: %d\r\n\r\n' % len(IMAGE)
            raw(head + (IMAGE if len(calls) > 2 else IMAGE[:1000]))(handler)

    site.answers["/a"] = answer
    taken.fetch(f"{site.url}/a", checksum=SHA256)
    assert calls == [None, "bytes=1000-", None]
    assert taken.contents == IMAGE


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site, taken, code):
    site.files["/b/image"] = IMAGE
    site.answers["/a"] = redirect("/b/image", code)
    taken.fetch(f"{site.url}/a", checksum=SHA256)
    assert taken.contents == IMAGE


def test_redirects_without_end_are_not(site, taken):
    site.answers["/a"] = redirect("/a")
    with pytest.raises(errors.Inaccessible, match="redirects"):
        taken.fetch(f"{site.url}/a")
    assert len(site.asked) == fetching.REDIRECTS + 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://localhost/x", "http://", ""])
def test_redirects_to_what_is_no_web_address_are_not(site, taken, target):
    site.answers["/a"] = redirect(target)
    with pytest.raises(errors.Inaccessible):
        taken.fetch(f"{site.url}/a")
    assert not taken.contents


def test_https_is_never_left_for_http(site, secure_site, taken):
    secure, pem = secure_site
    site.files["/a"] = IMAGE
    secure.answers["/a"] = redirect(f"{site.url}/a")
    with pytest.raises(errors.Inaccessible, match="https to http"):
        taken.fetch(f"{secure.url}/a", pem=pem)
    assert site.asked == []


def test_a_private_authority_is_trusted_where_it_is_named(secure_site, taken):
    site, pem = secure_site
    site.files["/a"] = IMAGE
    with pytest.raises(errors.Inaccessible, match="caRef"):
        taken.fetch(f"{site.url}/a")
    taken.fetch(f"{site.url}/a", pem=pem, checksum=SHA256)
    assert taken.contents == IMAGE


def test_certificates_that_are_none_are_refused(secure_site, taken):
    site, _ = secure_site
    with pytest.raises(errors.SecretUnavailable):
        taken.fetch(f"{site.url}/a", pem="no certificate")


def test_credentials_go_to_the_host_of_the_address_alone(secure_site, taken):
    site, pem = secure_site
    site.files["/b"] = IMAGE
    with serving(Site()) as elsewhere:
        site.answers["/a"] = redirect("/b")
        taken.fetch(f"{site.url}/a", pem=pem, authorization=fetching.basic(b"u", b"p:w"))
        assert [headers["Authorization"] for _, headers in site.asked] == ["Basic dTpwOnc="] * 2
        elsewhere.files["/c"] = IMAGE
        elsewhere.answers["/d"] = redirect(f"{elsewhere.url.replace('localhost', '127.0.0.1')}/c")
        taken.fetch(f"{elsewhere.url}/d", authorization=fetching.bearer(b"token\n"))
        (_, first), (_, second) = elsewhere.asked
        assert first["Authorization"] == "Bearer token"
        assert "Authorization" not in second


@pytest.mark.parametrize("token", [b"", b"a b", b"a\r\nX-Evil: 1", b"\xff", b"a\0"])
def test_a_token_that_can_not_stand_in_a_header_is_not_told(token):
    with pytest.raises(errors.SecretUnavailable) as caught:
        fetching.bearer(token)
    assert "Evil" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (401, errors.PermissionRefused), (403, errors.PermissionRefused), (404, errors.NotFound),
        (410, errors.NotFound), (418, errors.Inaccessible), (204, errors.Inaccessible),
        (500, errors.Inaccessible), (503, errors.Inaccessible),
    ],
)  # fmt: skip
def test_answers_that_bring_no_file_have_a_name(site, taken, code, error):
    site.answers["/a"] = status(code)
    with pytest.raises(error) as caught:
        taken.fetch(f"{site.url}/a?secret=1")
    assert not caught.value.terminal
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_can_not_be_reached(taken):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(errors.Inaccessible):
        taken.fetch(f"http://127.0.0.1:{port}/a")


def test_an_answer_that_is_no_http_has_a_name(site, taken):
    site.answers["/a"] = raw(b"\x00\x01SSH-2.0-whatever\r\n\r\n")
    with pytest.raises(errors.Inaccessible):
        taken.fetch(f"{site.url}/a")


def test_headers_without_end_are_not_read(site, taken):
    site.answers["/a"] = raw(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100000)
    with pytest.raises(errors.Inaccessible):
        taken.fetch(f"{site.url}/a")


def test_a_link_local_address_is_not_asked(taken, monkeypatch):
    class Connected:
        def getpeername(self):
            return "169.254.169.254", 80

    with pytest.raises(errors.PermissionRefused, match="link-local"):
        fetching._require_proper_peer(Connected(), fetching.Address("http://metadata/"))


def test_no_proxy_of_the_environment_is_used(site, taken, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    site.files["/a"] = IMAGE
    taken.fetch(f"{site.url}/a")
    assert taken.contents == IMAGE


def test_a_silent_server_does_not_outlast_a_cancel(site, taken):
    reached, over = threading.Event(), threading.Event()

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"some")
        handler.wfile.flush()
        reached.set()
        over.wait(60)

    site.answers["/a"] = answer
    failed = []

    def run():
        try:
            taken.fetch(f"{site.url}/a")
        except errors.StorageError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(30)
    began = time.monotonic()
    taken.work.cancel.set()
    thread.join(fetching.SILENCE)
    assert not thread.is_alive()
    over.set()
    assert time.monotonic() - began < fetching.SILENCE
    assert isinstance(failed[0], errors.Cancelled)


def test_what_is_larger_than_the_room_is_not_begun(site, taken):
    site.files["/a"] = IMAGE
    taken.room = Room(contents=64 * MIB, stored=MIB)
    with pytest.raises(errors.NoSpace):
        taken.fetch(f"{site.url}/a")
    assert not taken.contents


def test_memory_stays_the_same_however_much_is_fetched(site, taken, tmp_path):
    site.files["/a"] = bytes(256 * MIB)
    taken.room = Room(contents=512 * MIB, stored=512 * MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken.fetch(f"{site.url}/a")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # KiB
    assert taken.path.stat().st_size == 256 * MIB
    assert taken.path.stat().st_blocks * 512 < MIB
    os.truncate(taken.path, 0)


def test_the_certificate_has_to_be_for_the_host(secure_site, taken):
    site, pem = secure_site
    site.files["/a"] = IMAGE
    with pytest.raises(errors.Inaccessible, match="trusted"):
        taken.fetch(f"{site.url.replace('localhost', '127.0.0.1')}/a", pem=pem)
