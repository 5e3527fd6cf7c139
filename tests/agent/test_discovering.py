"""Servers that are asked for storage: each apart, and none takes away what it told before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends import errors
from backends.base import BackendContext
from backends.host.marks import MarkStore
from backends.netfs import NetfsSource
from backends.spec import DiscoveredSource, Host, SourceQuery
from controller.discovering import Discoverer
from tests.agent.conftest import wait_until

Servers = dict[str, Callable[[], list[Any]]]


def query(server: str, **more: Any) -> SourceQuery:
    return SourceQuery(type="netfs", host=Host(name=server, **more))


def export(server: str, directory: str) -> NetfsSource:
    return NetfsSource(hosts=(Host(name=server),), directory=directory)


class Network:
    """Servers by name, and how often each was asked."""

    def __init__(self, state: Path) -> None:
        self.servers: Servers = {}
        self.asked: list[str] = []
        self.release = threading.Event()
        self._context = BackendContext(marks=MarkStore(state))

    def discoverer(self, *, deadline: float = 60.0) -> Discoverer:
        return Discoverer(self._context, lambda: None, deadline=deadline, find=self._find)

    def _find(self, asked: SourceQuery) -> list[Any]:
        name = asked.host.name if asked.host else ""
        self.asked.append(name)
        return self.servers[name]()

    def hang(self) -> list[Any]:
        self.release.wait()
        return []


@pytest.fixture
def network(tmp_path: Path) -> Any:
    made = Network(tmp_path)
    yield made
    made.release.set()


def refuse() -> list[Any]:
    raise errors.Inaccessible("The server does not answer.")


def told(discoverer: Discoverer) -> list[str]:
    return [item.source for item in discoverer.sources]


def state(discoverer: Discoverer) -> str:
    return "".join(item.status for item in discoverer.aspects())


def test_what_servers_tell_is_what_a_pool_is_declared_with(network: Network) -> None:
    network.servers["a"] = lambda: [export("a", "/srv/x"), export("a", "/srv/y")]
    discoverer = network.discoverer()
    discoverer.ask([query("a", port=2049)], ())
    wait_until(lambda: state(discoverer) == "True")
    (first, _) = discoverer.sources
    assert first == DiscoveredSource(
        type="netfs",
        server="a:2049",
        source='{"directory": "/srv/x", "format": "auto", "hosts": [{"name": "a"}]}',
    )


def test_a_server_that_hangs_holds_up_no_other(network: Network) -> None:
    network.servers = {"dead": network.hang, "a": lambda: [export("a", "/srv/x")]}
    discoverer = network.discoverer(deadline=1.0)
    discoverer.ask([query("dead"), query("a")], ())
    wait_until(lambda: len(discoverer.sources) == 1)
    wait_until(lambda: state(discoverer) == "False")
    (aspect,) = discoverer.aspects()
    assert aspect.message.startswith("netfs at dead: ")


def test_a_server_that_hangs_is_not_asked_again_meanwhile(network: Network) -> None:
    network.servers["silent"] = network.hang  # another test's "dead" may hang still
    discoverer = network.discoverer()
    for _ in range(5):
        discoverer.ask([query("silent")], (), request=str(time.monotonic()))
    wait_until(lambda: network.asked == ["silent"])
    assert state(discoverer) == "Unknown"


def test_what_a_silent_server_told_before_stays(network: Network) -> None:
    network.servers["a"] = lambda: [export("a", "/srv/x")]
    discoverer = network.discoverer()
    discoverer.ask([query("a")], ())
    wait_until(lambda: state(discoverer) == "True")
    before = discoverer.sources
    network.servers["a"] = refuse
    discoverer.ask([query("a")], (), request="again")
    wait_until(lambda: state(discoverer) == "False")
    assert discoverer.sources == before != ()


def test_an_agent_that_starts_anew_keeps_what_the_status_holds(network: Network) -> None:
    network.servers = {"a": refuse, "b": network.hang}
    former = tuple(
        DiscoveredSource(type="netfs", server=name, source="{}") for name in ("a", "b", "c")
    )
    discoverer = network.discoverer()
    discoverer.ask([query("a"), query("b")], former)
    wait_until(lambda: state(discoverer) == "False")
    assert [item.server for item in discoverer.sources] == ["a", "b"]


def test_what_is_there_no_longer_goes_once_the_server_says_so(network: Network) -> None:
    network.servers["a"] = list
    discoverer = network.discoverer()
    discoverer.ask([query("a")], (DiscoveredSource(type="netfs", server="a", source="{}"),))
    wait_until(lambda: state(discoverer) == "True")
    assert discoverer.sources == ()


def test_nobody_is_asked_twice_without_need(network: Network) -> None:
    network.servers["a"] = list
    discoverer = network.discoverer()
    for _ in range(5):
        discoverer.ask([query("a")], ())
        wait_until(lambda: state(discoverer) == "True")
    assert network.asked == ["a"]
    discoverer.ask([query("a")], (), request="now")
    wait_until(lambda: network.asked == ["a", "a"])


def test_what_is_no_longer_asked_for_is_forgotten(network: Network) -> None:
    network.servers["a"] = lambda: [export("a", "/srv/x")]
    discoverer = network.discoverer()
    discoverer.ask([query("a")], ())
    wait_until(lambda: told(discoverer) != [])
    discoverer.ask([], discoverer.sources)
    assert discoverer.sources == ()
    assert discoverer.aspects() == []


def test_a_mistake_in_looking_ends_nothing_else(network: Network) -> None:
    network.servers = {"bad": lambda: [1 // 0], "a": lambda: [export("a", "/srv/x")]}
    discoverer = network.discoverer()
    discoverer.ask([query("bad"), query("a")], ())
    wait_until(lambda: state(discoverer) == "False" and len(told(discoverer)) == 1)


def test_a_type_without_sources_is_told_by_name(tmp_path: Path) -> None:
    discoverer = Discoverer(BackendContext(marks=MarkStore(tmp_path)), lambda: None)
    discoverer.ask([SourceQuery(type="dir"), SourceQuery(type="tape")], ())
    wait_until(lambda: state(discoverer) == "False")
    wait_until(lambda: "dir on this node" in discoverer.aspects()[0].message)
    wait_until(lambda: "'tape'" in discoverer.aspects()[0].message)
