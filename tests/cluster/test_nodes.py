"""StorageNodes: what each agent reports of its node, on a real API server."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.cluster.sites import Site, address, manifest, until

pytestmark = pytest.mark.cluster

FAST = {"POOLKEEPER_HEARTBEAT": "1s", "POOLKEEPER_SILENCE": "5s"}


def node(site: Site, name: str = "n1", **spec: Any) -> dict[str, Any]:
    return manifest("StorageNode", site.node(name), spec)


def heartbeat(site: Site, item: dict[str, Any]) -> str:
    return str(site.read(item)["status"].get("heartbeatTime", ""))


def test_each_agent_reports_its_node(site: Site) -> None:
    site.operator("n1", **FAST)
    site.operator("n2", **FAST)
    for name in ("n1", "n2"):
        site.wait(node(site, name), "--for=create")
        site.wait(node(site, name), "--for=condition=Ready")
        status = site.read(node(site, name))["status"]
        (served,) = [item for item in status["poolTypes"] if item["type"] == "dir"]
        assert served["supported"]
        assert "raw" in served["formats"]
        for item in status["poolTypes"]:
            assert item["supported"] or item["reason"]
        assert "qemu-img" in [item["name"] for item in status["tools"]]
        assert status["observedGeneration"] == 1


def test_its_columns_say_what_a_node_serves_and_when_it_reported(site: Site) -> None:
    site.operator(**FAST)
    site.wait(node(site), "--for=create")
    site.wait(node(site), "--for=condition=Ready")
    heads, row = site.cluster.kubectl("get", *address(node(site))).stdout.splitlines()
    assert heads.split() == ["NAME", "SERVES", "HEARTBEAT", "READY", "AGE"]
    assert row.startswith(site.node("n1"))
    assert " dir" in row
    assert " True " in row


def test_what_a_user_wants_discovered_is_asked_for_and_kept(site: Site) -> None:
    wanted = {"discover": [{"type": "dir", "host": {"name": "192.0.2.1"}}]}
    site.apply(node(site, **wanted))
    operator = site.operator(**FAST)
    site.wait(node(site), "--for=condition=Discovered=False")
    assert site.read(node(site))["spec"] == wanted
    site.apply(node(site))
    until(
        lambda: "Discovered" not in str(site.read(node(site))["status"]["conditions"]),
        told=site.said,
    )
    site.delete(node(site))
    site.wait(node(site), "--for=create")
    site.wait(node(site), "--for=condition=Ready")
    assert operator.stop() == 0


def test_while_nothing_changes_the_heartbeat_is_all_that_is_written(site: Site) -> None:
    site.operator(**FAST)
    pool, volume = site.pool(refresh={"interval": "1s"}), site.volume("a")
    site.apply(pool, volume)
    site.ready(pool, volume)
    site.wait(node(site), "--for=condition=Ready")
    time.sleep(2)
    before, versions = site.read(node(site)), site.version(volume)
    until(lambda: heartbeat(site, node(site)) > before["status"]["heartbeatTime"], told=site.said)
    time.sleep(3)
    after = site.read(node(site))
    for found in (before, after):
        del found["status"]["heartbeatTime"], found["metadata"]["resourceVersion"]
        found["metadata"].pop("managedFields", None)
    assert after == before
    assert site.version(volume) == versions
