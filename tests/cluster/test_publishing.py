"""Volumes as PersistentVolumes, on a real API server.

No controller binds claims there; a test says of a PersistentVolume what the controller would.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from controller.publishing import UID
from controller.resources import FINALIZER, GROUP
from tests.cluster.sites import Site, address, until

pytestmark = pytest.mark.cluster

LABEL = "kubernetes.io/hostname"


def folder(site: Site, name: str = "data", **publish: Any) -> dict[str, Any]:
    """A volume that is a directory, published."""
    wish = {"publish": {"persistentVolume": publish}}
    return site.volume(name, format="dir", capacity="10Mi", **wish)


def found(site: Site, volume: dict[str, Any]) -> dict[str, Any] | None:
    """The PersistentVolume that stands for a volume, whatever its name."""
    namespaced = f"default/{volume['metadata']['name']}"
    listed = site.cluster.read("get", "persistentvolumes")["items"]
    made = [
        item
        for item in listed
        if item["metadata"].get("annotations", {}).get(f"{GROUP}/volume") == namespaced
    ]
    assert len(made) <= 1
    return made[0] if made else None


def the(site: Site, volume: dict[str, Any]) -> dict[str, Any]:
    made = found(site, volume)
    assert made is not None
    return made


def claim(site: Site, volume: dict[str, Any], phase: str = "Bound") -> None:
    """What Kubernetes' controller does when a claim gets the PersistentVolume."""
    name = the(site, volume)["metadata"]["name"]
    reference = {"namespace": "team-a", "name": "claim", "uid": "u-1"}
    _patch(site, name, {"spec": {"claimRef": reference}})
    _patch(site, name, {"status": {"phase": phase}}, "--subresource=status")


def _patch(site: Site, name: str, patch: dict[str, Any], *more: str) -> None:
    done = site.cluster.kubectl(
        "patch", "persistentvolume", name, "--type=merge", f"--patch={json.dumps(patch)}", *more
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def published(site: Site) -> Iterator[Site]:
    """A site with an operator, whose PersistentVolumes are taken off afterwards."""
    site.operator()
    yield site
    for item in site.cluster.read("get", "persistentvolumes")["items"]:
        if site.name in item["metadata"].get("annotations", {}).get(f"{GROUP}/volume", ""):
            name = item["metadata"]["name"]
            site.cluster.kubectl("delete", "persistentvolume", name, "--wait=false")


def test_a_volume_that_is_a_directory_is_published_for_its_node(published: Site) -> None:
    site = published
    pool, volume = site.pool(), folder(site, storageClassName="local")
    site.apply(pool, volume)
    site.ready(pool, volume)
    made, status = the(site, volume), site.read(volume)["status"]
    assert status["persistentVolume"] == made["metadata"]["name"]
    assert made["metadata"]["labels"][UID] == site.read(volume)["metadata"]["uid"]
    assert made["spec"]["local"] == {"path": str(site.directory("images") / "data")}
    assert made["spec"]["volumeMode"] == "Filesystem"
    assert made["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert made["spec"]["storageClassName"] == "local"
    assert made["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert int(made["spec"]["capacity"]["storage"]) == 10 * 2**20
    (term,) = made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": LABEL, "operator": "In", "values": [site.node("n1")]}
    ]
    site.wait(volume, "--for=condition=Published")


def test_the_affinity_goes_by_the_label_of_the_node(site: Site) -> None:
    name = site.node("n1")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    node["metadata"]["labels"] = {LABEL: "host-of-that-node"}
    done = site.cluster.kubectl("create", "-f", "-", given=json.dumps(node))
    assert done.returncode == 0, done.stderr
    try:
        site.operator()
        volume = folder(site)
        site.apply(site.pool(), volume)
        site.wait(volume, "--for=condition=Published")
        affinity = the(site, volume)["spec"]["nodeAffinity"]
        assert "host-of-that-node" in json.dumps(affinity)
    finally:
        site.cluster.kubectl("delete", "node", name, "--wait=false")


def test_nothing_is_asked_or_written_while_nothing_changes(published: Site) -> None:
    site = published
    pool, volume = site.pool(refresh={"interval": "1s"}), folder(site)
    site.apply(pool, volume)
    site.wait(volume, "--for=condition=Published")
    before = the(site, volume)["metadata"]["resourceVersion"], site.version(volume)
    site.cluster.kubectl("annotate", *address(pool), f"{GROUP}/requested-at=now")
    site.wait(pool, "--for=jsonpath={.status.lastHandledRequest}=now")
    assert (the(site, volume)["metadata"]["resourceVersion"], site.version(volume)) == before


def test_it_goes_with_the_volume_and_the_data_stay_as_the_policy_says(published: Site) -> None:
    site = published
    kept, gone = folder(site, "kept"), folder(site, "gone")
    gone["spec"]["deletionPolicy"] = "Delete"
    site.apply(site.pool(), kept, gone)
    site.ready(kept, gone)
    assert site.read(kept)["metadata"]["finalizers"] == [FINALIZER]
    site.delete(kept, gone)
    assert (found(site, kept), found(site, gone)) == (None, None)
    assert [item.name for item in site.directory("images").iterdir()] == ["kept"]


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_a_claimed_volume_stays_and_says_who_holds_it(published: Site, policy: str) -> None:
    site = published
    volume = folder(site)
    volume["spec"]["deletionPolicy"] = policy
    pool = site.pool(refresh={"interval": "1s"})
    site.apply(pool, volume)
    site.wait(volume, "--for=condition=Published")
    precious = site.directory("images") / "data" / "precious"
    precious.write_text("x")
    claim(site, volume)
    site.cluster.kubectl("delete", *address(volume), "--wait=false")
    until(
        lambda: "team-a/claim" in json.dumps(site.read(volume)["status"]["conditions"]),
        told=site.said,
    )
    assert found(site, volume) is not None
    assert precious.exists()
    precious.unlink()  # a directory with something in it is never deleted
    claim(site, volume, "Released")
    site.wait(volume, "--for=delete")
    assert found(site, volume) is None


def test_it_goes_when_it_is_no_longer_wished_for(published: Site) -> None:
    site = published
    volume = folder(site)
    site.apply(site.pool(), volume)
    site.wait(volume, "--for=condition=Published")
    site.apply(site.volume("data", format="dir", capacity="10Mi"))
    until(lambda: found(site, volume) is None, told=site.said)
    until(lambda: "persistentVolume" not in site.read(volume)["status"], told=site.said)
    until(lambda: "finalizers" not in site.read(volume)["metadata"], told=site.said)
    assert (site.directory("images") / "data").is_dir()


def test_one_that_was_deleted_or_changed_by_hand_is_put_right_on_request(published: Site) -> None:
    site = published
    volume = folder(site)
    site.apply(site.pool(), volume)
    site.wait(volume, "--for=condition=Published")
    site.cluster.kubectl("delete", "persistentvolume", the(site, volume)["metadata"]["name"])
    site.cluster.kubectl("annotate", *address(volume), f"{GROUP}/requested-at=one")
    until(lambda: found(site, volume) is not None, told=site.said)


@pytest.mark.parametrize(
    ("format", "publish"),
    [("raw", {}), ("qcow2", {"volumeMode": "Block"}), ("dir", {"volumeMode": "Block"})],
)
def test_what_kubelet_cannot_use_is_refused_by_name(
    published: Site, format: str, publish: dict[str, Any]
) -> None:
    site = published
    volume = site.volume("a", format=format, publish={"persistentVolume": publish})
    site.apply(site.pool(), volume)
    site.wait(volume, "--for=condition=Stalled")
    (stalled,) = [
        item for item in site.read(volume)["status"]["conditions"] if item["type"] == "Stalled"
    ]
    assert "kubelet mounts directories and block devices" in stalled["message"]
    assert found(site, volume) is None
    assert (site.directory("images") / "a").exists()
    site.delete(volume)


def test_a_claim_that_is_named_is_the_only_one_that_may_have_it(published: Site) -> None:
    site = published
    volume = folder(site, claimName="mine")
    site.apply(site.pool(), volume)
    site.wait(volume, "--for=condition=Published")
    reference = the(site, volume)["spec"]["claimRef"]
    assert (reference["namespace"], reference["name"]) == ("default", "mine")
    site.delete(volume)  # nobody has claimed it
    assert found(site, volume) is None
