"""Nodes that go silent, and what no agent keeps: told by whichever agent comes first."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from controller.resources import FINALIZER
from tests.cluster.sites import Site, address, manifest, until
from tests.cluster.test_operator import _requests as requests

pytestmark = pytest.mark.cluster

READING = ("GET", "LIST", "WATCH")
FAST = {"POOLKEEPER_HEARTBEAT": "500ms", "POOLKEEPER_SILENCE": "4s"}


@pytest.fixture
def site(own_site: Site) -> Site:
    """A cluster of the test's own: who comes first depends on all nodes that there are."""
    return own_site


def ready(site: Site, item: dict[str, Any]) -> dict[str, Any]:
    listed = site.read(item)["status"].get("conditions", [])
    return next((one for one in listed if one["type"] == "Ready"), {})


def reason(site: Site, item: dict[str, Any]) -> str:
    return str(ready(site, item).get("reason", ""))


def told(site: Site, item: dict[str, Any], wanted: str) -> dict[str, Any]:
    """Wait until the reason of Ready is that; the condition."""
    until(
        lambda: reason(site, item) == wanted,
        told=lambda: f"{ready(site, item)}\n{site.said()}",
    )
    return ready(site, item)


def node(site: Site, name: str) -> dict[str, Any]:
    return manifest("StorageNode", site.node(name), {})


def test_a_node_that_was_killed_goes_unknown_and_comes_back(site: Site) -> None:
    site.operator("n1", **FAST)
    killed = site.operator("n2", **FAST)
    pool, volume = site.pool("images", "n2", refresh={"interval": "1s"}), site.volume("a")
    other = site.pool("other", "n1")
    site.apply(pool, volume, other)
    site.ready(pool, volume, other)
    before = [site.read(item)["status"] for item in (pool, volume)]
    killed.kill()
    for item in (node(site, "n2"), pool, volume):
        condition = told(site, item, "NodeSilent")
        assert condition["status"] == "Unknown"
        assert site.node("n2") in condition["message"]
    for item, former in zip((pool, volume), before, strict=True):
        status = site.read(item)["status"]
        assert {one["status"] for one in status["conditions"]} == {"Unknown"}
        for field in set(former) - {"conditions"}:
            assert status[field] == former[field], field
    assert reason(site, other) == "Running"
    assert reason(site, node(site, "n1")) == "Reporting"
    assert (site.directory("images") / "a").exists()
    versions = site.version(pool, volume, node(site, "n2"))
    time.sleep(5)
    assert site.version(pool, volume, node(site, "n2")) == versions
    until(lambda: [item["reason"] for item in site.events(node(site, "n2"))] == ["NodeSilent"])
    killed.start()
    site.ready(node(site, "n2"), pool, volume)
    until(lambda: "NodeReporting" in [item["reason"] for item in site.events(node(site, "n2"))])


def test_an_agent_that_only_stood_still_takes_back_what_is_its_own(site: Site) -> None:
    site.operator("n1", **FAST)
    still = site.operator("n2", **FAST)
    pool, volume = site.pool("images", "n2", refresh={"interval": "1h"}), site.volume("a")
    site.apply(pool, volume)
    site.ready(pool, volume)
    assert still.process is not None
    still.process.send_signal(signal.SIGSTOP)
    told(site, volume, "NodeSilent")
    still.process.send_signal(signal.SIGCONT)
    site.ready(pool, volume, node(site, "n2"))


def test_when_the_first_dies_the_next_takes_its_place(site: Site) -> None:
    first = site.operator("n1", **FAST)
    site.operator("n2", **FAST)
    site.operator("n3", **FAST)
    pool = site.pool("images", "n1")
    site.apply(pool)
    site.ready(pool)
    first.kill()
    told(site, pool, "NodeSilent")
    orphan = site.pool("orphan", "nowhere")
    site.apply(orphan)
    told(site, orphan, "NoAgent")


def test_a_deletion_that_keeps_the_data_goes_through(site: Site) -> None:
    site.operator("n1", **FAST)
    killed = site.operator("n2", **FAST)
    pool, kept = site.pool("images", "n2"), site.volume("kept")
    doomed = site.volume("doomed", deletionPolicy="Delete")
    site.apply(pool, kept, doomed)
    site.ready(pool, kept, doomed)
    killed.kill()
    told(site, doomed, "NodeSilent")
    site.delete(kept)
    site.cluster.kubectl("delete", *address(doomed), "--wait=false")
    time.sleep(2)
    assert site.read(doomed)["metadata"]["finalizers"] == [FINALIZER]
    patch = json.dumps({"spec": {"deletionPolicy": "Retain"}})
    done = site.cluster.kubectl("patch", *address(doomed), "--type=merge", f"--patch={patch}")
    assert done.returncode == 0, done.stderr
    site.wait(doomed, "--for=delete")
    site.delete(pool)
    names = sorted(item.name for item in site.directory("images").iterdir())
    assert names == ["doomed", "kept"]


def test_what_no_agent_keeps_says_why(site: Site) -> None:
    site.operator("n1", **FAST)
    elsewhere, homeless = site.pool("elsewhere", "nowhere"), site.pool("homeless")
    del homeless["spec"]["nodeName"]
    volumes = [site.volume(name, name) for name in ("elsewhere", "homeless", "missing")]
    bound = site.volume("bound", "elsewhere", nodeName=site.node("nowhere"))
    site.apply(elsewhere, homeless, bound, *volumes)
    where = site.node("nowhere")
    assert f"no agent for node {where}" in told(site, elsewhere, "NoAgent")["message"]
    assert "names no node" in told(site, homeless, "NoAgent")["message"]
    assert f"no agent for node {where}" in told(site, bound, "NoAgent")["message"]
    assert f"no agent for node {where}" in told(site, volumes[0], "NoAgent")["message"]
    assert "names no node" in told(site, volumes[1], "NoAgent")["message"]
    assert "is not declared" in told(site, volumes[2], "PoolNotFound")["message"]
    versions = site.version(elsewhere, homeless, bound, *volumes)
    time.sleep(3)
    assert site.version(elsewhere, homeless, bound, *volumes) == versions
    site.apply(site.pool("missing", "n1"))
    site.ready(volumes[2])
    site.operator("nowhere", **FAST)
    site.ready(elsewhere, bound, volumes[0])


def test_an_operation_that_no_agent_carries_out_says_why(site: Site) -> None:
    site.operator("n1", **FAST)
    pool, volume = site.pool("elsewhere", "nowhere"), site.volume("there", "elsewhere")
    orphan, waiting = site.operation("orphan", "missing"), site.operation("waiting", "there")
    upload = site.operation("upload", "missing", operation="Upload")
    site.apply(pool, volume, orphan, waiting, upload)
    for item in (orphan, upload):
        assert (
            f"no StorageVolume/default/{site.name}-missing"
            in told(site, item, "NotFound")["message"]
        )
        assert site.read(item)["status"]["phase"] == "Pending"
    assert "No agent keeps" in told(site, waiting, "NoAgent")["message"]
    versions = site.version(orphan, waiting, upload)
    time.sleep(3)
    assert site.version(orphan, waiting, upload) == versions
    site.apply(site.pool("images", "n1"), site.volume("missing", "images"))
    site.wait(orphan, "--for=condition=Complete")
    until(lambda: "It waits for PUT" in site.read(upload)["status"]["message"], told=site.said)
    site.operator("nowhere", **FAST)
    site.wait(waiting, "--for=condition=Complete")


def test_an_operation_of_a_node_that_was_killed_says_so(site: Site) -> None:
    site.operator("n1", **FAST)
    killed = site.operator("n2", **FAST)
    pool, volume = site.pool("images", "n2"), site.volume("a")
    upload = site.operation("upload", "a", operation="Upload")
    site.apply(pool, volume, upload)
    until(lambda: "It waits for" in str(site.read(upload).get("status", {}).get("message")))
    killed.kill()
    assert site.node("n2") in told(site, upload, "NodeSilent")["message"]
    killed.start()
    until(lambda: "It waits for" in site.read(upload)["status"]["message"], told=site.said)


def test_nobody_is_taken_for_silent_because_the_server_was_away(site: Site, server: Any) -> None:
    site.operator("n1", **FAST)
    site.operator("n2", **FAST)
    pool, volume = site.pool("images", "n2", refresh={"interval": "1h"}), site.volume("a")
    site.apply(pool, volume)
    site.ready(pool, volume, node(site, "n1"), node(site, "n2"))
    time.sleep(5)
    versions = site.version(volume)
    server.kill()
    time.sleep(6)
    server.start()
    time.sleep(8)
    assert site.version(volume) == versions
    site.ready(node(site, "n1"), node(site, "n2"))


def test_two_agents_at_rest_write_their_heartbeats_and_nothing_else(
    site: Site, record_property: Callable[[str, object], None]
) -> None:
    site.operator("n1", **FAST)
    site.operator("n2", **FAST)
    pools = [site.pool(f"p{number}", f"n{number}") for number in (1, 2)]
    volumes = [site.volume(f"v{number}", f"p{number}") for number in (1, 2)]
    site.apply(*pools, *volumes)
    site.ready(*pools, *volumes, node(site, "n1"), node(site, "n2"))
    time.sleep(5)
    before = requests(site.cluster)
    time.sleep(10)
    counted = {
        key: number - before.get(key, 0)
        for key, number in requests(site.cluster).items()
        if number > before.get(key, 0)
    }
    record_property("requests", counted)
    print("requests of two agents at rest in 10 s:", counted)
    writes = {key: number for key, number in counted.items() if key[0] not in READING}
    assert set(writes) == {("PATCH", "storagenodes", "status")}, counted
    beats = sum(writes.values())
    lists = {key[1]: number for key, number in counted.items() if key[0] == "LIST"}
    assert lists.pop("storagenodes") <= 2 * beats  # whose turn it is, and the nodes for the first
    assert all(number <= beats for number in lists.values()), counted
