"""sd_notify(3) through a real socket."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from controller.notifying import notify
from tests.agent.conftest import wait_until
from tests.keeper import dir_pool, pool_key


@pytest.fixture(params=["path", "abstract"])
def manager(request, monkeypatch):
    """The socket of a service manager, as NOTIFY_SOCKET names it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(60)
        if request.param == "path":
            directory = Path(tempfile.mkdtemp(prefix="sd"))  # a socket's path is short
            name = str(directory / "notify")
            listening.bind(name)
        else:
            name = f"@poolkeeper-test-{os.getpid()}-{os.urandom(4).hex()}"
            listening.bind("\0" + name[1:])
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening
    if request.param == "path":
        os.unlink(name)
        directory.rmdir()


def test_a_state_is_one_datagram(manager):
    assert notify("READY=1")
    assert manager.recv(4096) == b"READY=1"


def test_an_agent_tells_when_it_is_ready_and_when_it_stops(manager, site):
    with site.running():
        assert manager.recv(4096) == b"READY=1"
    assert manager.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234"])
def test_without_a_socket_nothing_is_sent(monkeypatch, address):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert notify("READY=1") is False


def test_an_agent_runs_on_where_the_service_manager_has_gone(monkeypatch, site, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    site.keeper.apply(dir_pool("images", tmp_path / "images"))
    with site.running():
        wait_until(lambda: site.keeper.truth(pool_key("images"), "Ready") == "True")
