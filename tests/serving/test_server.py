"""The agent's HTTP side, asked as kubelet and Prometheus ask."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from aiohttp import web

from backends import errors
from controller.cli import options
from controller.serving import health as healths
from controller.serving.health import Health
from controller.serving.server import Address, Server, health_routes, in_thread
from tests.processes import Poolkeeper

LOOPBACK = Address("127.0.0.1", 0)


def get(server: Server | str, path: str, **headers: str) -> tuple[int, str]:
    address = server if isinstance(server, str) else str(server.address)
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def server(health: Health) -> Iterator[Server]:
    with Server(LOOPBACK, health_routes(health)) as made:
        yield made


def test_all_is_well_where_no_check_says_otherwise(server: Server, health: Health) -> None:
    health.ready_while("store", lambda: "")
    assert get(server, "/readyz") == (200, "store: ok\n")
    assert get(server, "/healthz") == (200, "")
    assert get(server, "/other")[0] == 404


def test_what_is_wrong_is_named(server: Server, health: Health) -> None:
    health.ready_while("store", lambda: "the disk is away")
    health.ready_while("sources", lambda: "")
    assert get(server, "/readyz") == (503, "sources: ok\nstore: the disk is away\n")
    assert get(server, "/healthz")[0] == 200


def test_a_loop_that_stands_still_is_not_alive(
    server: Server, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse = health.pulse("agent")
    assert get(server, "/healthz")[0] == 200
    monkeypatch.setattr(healths, "STILL_WITHIN", 0.05)
    time.sleep(0.1)
    assert get(server, "/healthz")[0] == 503
    monkeypatch.undo()
    pulse.beat()
    assert get(server, "/healthz")[0] == 200


def test_a_thread_that_ended_is_told(server: Server, health: Health) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="events")
    thread.start()
    health.threads(thread)
    assert get(server, "/healthz")[0] == 200
    stop.set()
    thread.join()
    assert get(server, "/healthz") == (503, "events: its thread has ended\n")


def test_it_answers_while_all_its_threads_are_at_work(health: Health) -> None:
    release = threading.Event()

    async def slow(request: web.Request) -> web.Response:
        await in_thread(request, release.wait, 60)
        return web.Response()

    with Server(LOOPBACK, [*health_routes(health), web.get("/slow", slow)]) as server:
        callers = [threading.Thread(target=get, args=(server, "/slow")) for _ in range(20)]
        for caller in callers:
            caller.start()
        time.sleep(0.2)
        assert get(server, "/healthz")[0] == 200
        release.set()
        for caller in callers:
            caller.join()


def test_a_body_of_any_length_comes_and_goes_in_pieces() -> None:
    async def take(request: web.Request) -> web.Response:
        digest = hashlib.sha256()
        async for piece in request.content.iter_chunked(65536):
            digest.update(piece)
        return web.Response(text=digest.hexdigest())

    async def give(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for place in range(0, len(body), 65536):
            await answer.write(body[place : place + 65536])
        return answer

    body = os.urandom(16 * 2**20)
    with Server(LOOPBACK, [web.put("/", take), web.get("/", give)]) as server:
        url = f"http://{server.address}/"
        upload = urllib.request.Request(url, data=body, method="PUT")
        with urllib.request.urlopen(upload, timeout=60) as answer:
            assert answer.read().decode() == hashlib.sha256(body).hexdigest()
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.read() == body


def test_the_port_is_free_again_after_its_end(health: Health) -> None:
    with Server(LOOPBACK, health_routes(health)) as first:
        address = first.address
    with Server(address, health_routes(health)) as second:
        assert second.address == address


def test_an_address_in_use_is_refused_by_name(server: Server) -> None:
    with pytest.raises(errors.StorageError, match=str(server.address)):
        Server(server.address, ()).start()


def test_a_request_under_way_does_not_hold_up_the_end() -> None:
    begun = threading.Event()

    async def endless(request: web.Request) -> web.Response:
        begun.set()
        await asyncio.sleep(3600)
        return web.Response()

    server = Server(LOOPBACK, [web.get("/", endless)])
    server.start()
    with socket.create_connection((server.address.host, server.address.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert begun.wait(60)
        server.stop()
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        ("8080", ("127.0.0.1", 8080)),
        (":8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:8080", ("::1", 8080)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_an_address_without_a_host_is_this_host_alone(
    text: str, address: tuple[str, int] | None
) -> None:
    assert options.address(text) == address


@pytest.mark.parametrize(
    "text", ["localhost", "a:b", "1.2.3.4:70000", "::1:80", "http://a:80", ":"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        options.address(text)


@pytest.fixture
def poolkeeper(tmp_path: Path) -> Poolkeeper:
    (tmp_path / "work").mkdir()
    return Poolkeeper(tmp_path / "state", tmp_path / "work")


def test_an_agent_tells_that_it_is_ready_and_how_full_its_pools_are(
    poolkeeper: Poolkeeper, tmp_path: Path
) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "pool.yaml").write_text(
        "apiVersion: poolkeeper.dev/v1alpha1\nkind: StoragePool\nmetadata: {name: images}\n"
        f"spec: {{type: dir, target: {{path: {tmp_path / 'images'}}}}}\n"
    )
    with poolkeeper.agent("--directory", manifests, "--listen", "0") as agent:
        address = agent.log.split("listening at http://", 1)[1].split()[0]
        assert address.startswith("127.0.0.1:")
        agent.wait_for(lambda: get(address, "/readyz")[0] == 200)
        assert "sources: ok\n" in get(address, "/readyz")[1]
        assert get(address, "/healthz")[0] == 200
        agent.wait_for(
            lambda: 'poolkeeper_pool_capacity_bytes{pool="images"}' in get(address, "/metrics")[1]
        )
        assert "poolkeeper_ready 1.0" in get(address, "/metrics")[1]
        openmetrics = get(address, "/metrics", Accept="application/openmetrics-text")[1]
        assert openmetrics.endswith("# EOF\n")
        listening = subprocess.run(["ss", "-tlnp"], capture_output=True, text=True, check=False)
        mine = [
            line for line in listening.stdout.splitlines() if f"pid={agent.process.pid}," in line
        ]
        assert all("127.0.0.1:" in line for line in mine)


def test_an_agent_listens_nowhere_unless_told(poolkeeper: Poolkeeper) -> None:
    with poolkeeper.agent() as agent:
        told = [line for line in agent.log.splitlines() if "listening at" in line]
        assert all("unix://" in line for line in told), "a socket of the agent's own user alone"


def test_an_address_that_is_taken_ends_the_agent_by_name(
    poolkeeper: Poolkeeper, server: Server
) -> None:
    ended = poolkeeper("run", "--listen", str(server.address))
    assert ended.code == 1
    assert f"listen at {server.address}" in ended.err
