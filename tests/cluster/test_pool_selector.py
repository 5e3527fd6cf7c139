"""``spec.poolSelector`` with several agents: one of them claims a volume and records its pool."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.sites import Site, address, until

pytestmark = pytest.mark.cluster

FAST = {"POOLKEEPER_HEARTBEAT": "500ms", "POOLKEEPER_SILENCE": "4s"}


@pytest.fixture
def site(own_site: Site) -> Site:
    """A cluster of the test's own: what is not claimed is told by whichever node comes first."""
    return own_site


@pytest.fixture
def sized(site: Site) -> Iterator[Callable[[str, str, str], dict[str, Any]]]:
    """Pools with a label, each on a file system of its own with so much space."""
    mounted: list[Path] = []

    def make(name: str, node: str, size: str) -> dict[str, Any]:
        point = site.root / f"of-{name}"
        point.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "poolkeeper-test", str(point)],
            check=True,
        )
        mounted.append(point)
        made = site.pool(name, node, target={"path": str(point / "pool")})
        return labelled(made, app=site.name)

    yield make
    for operator in site.operators:
        operator.kill()
    for point in mounted:
        subprocess.run(["umount", str(point)], check=True)


def labelled(pool: dict[str, Any], **labels: str) -> dict[str, Any]:
    pool["metadata"]["labels"] = labels
    return pool


def asking(site: Site, name: str, **spec: Any) -> dict[str, Any]:
    selector = {"matchLabels": {"app": site.name}}
    made = site.volume(name, poolSelector=selector, **spec)
    del made["spec"]["poolRef"]
    return made


def pool_of(site: Site, volume: dict[str, Any]) -> str:
    reference = site.read(volume)["spec"].get("poolRef", {})
    return str(reference.get("name", "")).removeprefix(f"{site.name}-")


def reason(site: Site, item: dict[str, Any]) -> str:
    listed = site.read(item)["status"].get("conditions", [])
    return next((one["reason"] for one in listed if one["type"] == "Ready"), "")


def test_the_pool_with_most_space_of_all_nodes_is_taken(site: Site, sized: Any) -> None:
    for name in ("n1", "n2"):
        site.operator(name, **FAST)
    pools = [sized("small", "n1", "16m"), sized("large", "n2", "64m"), sized("less", "n1", "32m")]
    site.apply(*pools)
    site.ready(*pools)
    volume = asking(site, "a")
    site.apply(volume)
    site.ready(volume)
    assert pool_of(site, volume) == "large"
    assert site.read(volume)["spec"]["nodeName"] == site.node("n2")
    assert (site.root / "of-large" / "pool" / "a").exists()
    until(lambda: "PoolChosen" in [item["reason"] for item in site.events(volume)])
    version = site.read(volume)["metadata"]["generation"]
    site.apply(volume)  # the manifest without the binding leaves the binding
    assert site.read(volume)["metadata"]["generation"] == version


def test_many_volumes_at_once_have_one_node_each(site: Site) -> None:
    for name in ("n1", "n2", "n3"):
        site.operator(name, **FAST)
    pools = [labelled(site.pool(f"p{number}", f"n{number}"), app=site.name) for number in (1, 2, 3)]
    site.apply(*pools)
    site.ready(*pools)
    volumes = [asking(site, f"v{number}") for number in range(30)]
    site.apply(*volumes)
    site.ready(*volumes)
    found: dict[str, list[str]] = {}
    for pool in ("p1", "p2", "p3"):
        for path in site.directory(pool).glob("v*"):
            found.setdefault(path.name, []).append(pool)
    assert sorted(found) == sorted(f"v{number}" for number in range(30))
    assert all(len(places) == 1 for places in found.values()), found
    for volume in volumes:
        name = volume["metadata"]["name"].removeprefix(f"{site.name}-")
        assert found[name] == [pool_of(site, volume)]
        assert site.read(volume)["spec"]["nodeName"] == site.node(f"n{pool_of(site, volume)[1:]}")


def test_what_no_agent_can_claim_says_why_until_one_can(site: Site, sized: Any) -> None:
    site.operator("n1", **FAST)
    volume = asking(site, "a", capacity="24Mi")
    site.apply(volume)
    until(lambda: reason(site, volume) == "NoPoolMatches", told=site.said)
    closed = sized("images", "n1", "16m")
    closed["spec"]["allowedNamespaces"] = ["elsewhere"]
    site.apply(closed)
    until(lambda: reason(site, volume) == "NamespaceNotAllowed", told=site.said)
    closed["spec"]["allowedNamespaces"] = ["elsewhere", "default"]
    site.apply(closed)
    until(lambda: reason(site, volume) == "NoSpace", told=site.said)
    versions = site.version(volume)
    roomy = sized("roomy", "n1", "64m")
    del roomy["metadata"]["labels"]
    site.apply(roomy)
    site.ready(roomy)
    assert site.version(volume) == versions
    given = json.dumps({"metadata": {"labels": {"app": site.name}}})
    site.cluster.kubectl("patch", *address(roomy), "--type=merge", f"--patch={given}")
    site.ready(volume)
    assert pool_of(site, volume) == "roomy"


def test_a_node_that_is_silent_gets_no_new_volumes(site: Site, sized: Any) -> None:
    site.operator("n1", **FAST)
    killed = site.operator("n2", **FAST)
    pools = [sized("near", "n1", "16m"), sized("large", "n2", "64m")]
    site.apply(*pools)
    site.ready(*pools)
    killed.kill()
    until(lambda: reason(site, pools[1]) == "NodeSilent", told=site.said)
    volume = asking(site, "a")
    site.apply(volume)
    site.ready(volume)
    assert pool_of(site, volume) == "near"


def test_a_volume_may_ask_for_a_pool_of_one_node(site: Site, sized: Any) -> None:
    for name in ("n1", "n2"):
        site.operator(name, **FAST)
    pools = [sized("near", "n1", "16m"), sized("large", "n2", "64m")]
    site.apply(*pools)
    site.ready(*pools)
    volume = asking(site, "a", nodeName=site.node("n1"))
    site.apply(volume)
    site.ready(volume)
    assert pool_of(site, volume) == "near"
