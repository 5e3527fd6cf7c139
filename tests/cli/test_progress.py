"""Bars on a terminal for work that is waited for, whoever does it."""

import os
import pty
import re
import select
import subprocess
import threading

import pytest

from tests.importing.servers import Site, serving

MIB = 2**20
IMAGE = b"\x5a" * (32 * MIB)


@pytest.fixture
def slow_site():
    """A server that sends an image piece by piece, and the rest of it once the event is set."""
    enough = threading.Event()

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(IMAGE)))
        handler.end_headers()
        sent = 0
        while not enough.wait(0.1) and sent < len(IMAGE) // 2:
            handler.wfile.write(IMAGE[sent : sent + 65536])
            handler.wfile.flush()
            sent += 65536
        handler.wfile.write(IMAGE[sent:])

    with serving(Site(answers={"/disk.raw": answer})) as site:
        yield site, enough
        enough.set()


class Terminal:
    """A command with a terminal for its standard error."""

    def __init__(self, argv, environment):
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            argv, env={**environment, "TERM": "xterm", "COLUMNS": "120"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def _read(self):
        """Read what there is; false at its end."""
        ready, _, _ = select.select([self._master], [], [], 0.2)
        if ready:
            try:
                got = os.read(self._master, 65536)
            except OSError:  # EIO: nobody has the other side any more
                return False
            self.seen += got.decode(errors="replace")
        return True

    def until(self, pattern):
        """Read until something was drawn; the match."""
        while not (found := re.search(pattern, self.seen)):
            assert self._read(), self.seen
        return found

    def end(self):
        while self._read():
            pass
        os.close(self._master)
        self.process.stdout.close()
        return self.process.wait()


@pytest.fixture
def on_terminal(poolkeeper):
    started = []

    def start(*arguments):
        started.append(Terminal(poolkeeper.argv(*arguments), poolkeeper.environment()))
        return started[-1]

    yield start
    for terminal in started:
        terminal.process.kill()
        terminal.process.wait()


def imported(volume, site):
    source = {"http": {"url": f"{site.url}/disk.raw", "format": "raw"}}
    return volume("web", capacity="32Mi", source=source)


BAR = r"CreateVolume StorageVolume/default/web.*?([0-9.]+) MiB of 32 MiB"


def test_apply_shows_how_far_an_import_of_the_agent_is(
    agent, on_terminal, write, pool, volume, images, slow_site
):
    site, enough = slow_site
    agent()
    terminal = on_terminal("apply", "-f", write("a.yaml", pool(), imported(volume, site)), "--wait")
    assert 0 < float(terminal.until(BAR)[1]) < 32
    enough.set()
    assert terminal.end() == 0, terminal.seen
    assert (images / "web").read_bytes() == IMAGE


def test_wait_shows_it_too(poolkeeper, agent, on_terminal, write, pool, volume, slow_site):
    site, enough = slow_site
    agent()
    assert poolkeeper("apply", "-f", write("a.yaml", pool(), imported(volume, site))).code == 0
    terminal = on_terminal("wait", "svol", "web")
    terminal.until(BAR)
    enough.set()
    assert terminal.end() == 0, terminal.seen


def test_a_wipe_is_drawn_once_where_the_agent_carries_it_out(
    poolkeeper, agent, on_terminal, write, pool, volume, images
):
    manifest = write("a.yaml", pool(), volume("disk", capacity="512Mi", allocation="512Mi"))
    agent()
    assert poolkeeper("apply", "-f", manifest, "--wait").code == 0
    with (images / "disk").open("r+b") as file:  # what was never written need not be wiped
        file.write(os.urandom(512 * MIB))
    terminal = on_terminal("volume", "wipe", "disk", "--algorithm", "gutmann")
    terminal.until(r"Wipe VolumeOperation/default/disk-wipe-\w+.*? of [0-9.]+ GiB")
    (record,) = poolkeeper("get", "volop", "-o", "json").json["items"]
    assert poolkeeper("delete", "volop", record["metadata"]["name"], "--wait").code == 0
    assert terminal.end() == 1, terminal.seen


def test_nothing_is_drawn_where_no_terminal_is(poolkeeper, agent, write, pool, volume, slow_site):
    site, enough = slow_site
    enough.set()
    agent()
    done = poolkeeper("apply", "-f", write("a.yaml", pool(), imported(volume, site)), "--wait")
    assert done.code == 0, done.err
    assert "\x1b" not in done.err
    assert "of 32 MiB" not in done.err
