"""The tree of examples/host by kubectl on a cluster ends as it does on a standalone host."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.sites import PATIENCE, Site, until
from tests.manifests.conftest import MANIFESTS, OLD_DATA, Host, copied, made_host
from tests.processes import Poolkeeper

pytestmark = pytest.mark.cluster

VOLUMES = (
    "debian-base", "web-1", "web-2", "db-1", "data-full", "data-sparse", "old-data", "log.qcow2",
)  # fmt: skip


class Tree:
    """A host whose pools the cluster's overlay declares."""

    def __init__(self, site: Site, root: Path) -> None:
        self.site = site
        self.host = made_host(root)
        copied(MANIFESTS / "examples", root / "examples", "/srv/poolkeeper", root / "srv")
        self.overlay = root / "examples" / "cluster"
        file = self.overlay / "kustomization.yaml"
        file.write_text(file.read_text().replace("hv-01", site.node("n1")))

    def kubectl(self, *arguments: str) -> str:
        done = self.site.cluster.kubectl(*arguments)
        assert done.returncode == 0, done.stderr + self.told()
        return str(done.stdout)

    def told(self) -> str:
        """Logs, and what is left on the server."""
        left = self.site.cluster.kubectl("get", "poolkeeper", "-A", "-o", "yaml").stdout
        return self.site.said() + str(left)

    def ready(self) -> None:
        for kind in ("storagepools", "storagevolumes"):
            self.kubectl("wait", "--for=condition=Ready", f"--timeout={PATIENCE}s", kind, "--all")


@pytest.fixture
def tree(own_site: Site, tmp_path: Path) -> Tree:
    made = Tree(own_site, tmp_path / "clustered")
    own_site.operator()
    return made


@pytest.fixture
def standalone(tmp_path: Path) -> Host:
    """Another host of the same kind, kept by the command line."""
    host = made_host(tmp_path / "standalone")
    host.mend()
    host.poolkeeper.done("apply", "-f", host.tree, "--wait", "--timeout", "4m")
    return host


def on_disk(host: Host) -> dict[str, Any]:
    """Everything beneath a host's pools, without what differs between any two hosts."""
    found: dict[str, Any] = {}
    for item in sorted((host.root / "srv").rglob("*")):
        facts = item.lstat()
        name = str(item.relative_to(host.root))
        found[name] = [stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid]
        if item.suffix == ".qcow2":
            shown = subprocess.run(
                ["qemu-img", "info", "--output=json", str(item)], check=True, capture_output=True
            )
            info = json.loads(shown.stdout)
            backing = Path(info.get("full-backing-filename", "")).name
            found[name] += [info["virtual-size"], info["cluster-size"], backing]
        elif item.is_file():
            with item.open("rb") as file:
                found[name] += [facts.st_size, file.read(4096)]
    return found


def test_the_manifests_of_the_cluster_are_the_converted_xml(tmp_path: Path) -> None:
    poolkeeper = Poolkeeper(tmp_path / "state", tmp_path)
    scratch = MANIFESTS / "examples" / "host" / "scratch"
    texts = [
        poolkeeper.done("convert", scratch / "pool.xml", "--to", "yaml").out,
        poolkeeper.done(
            "convert", scratch / "log.xml", "--to", "yaml", "--pool", scratch / "pool.xml"
        ).out,
    ]
    kept = (MANIFESTS / "examples" / "cluster" / "scratch.yaml").read_text()
    assert list(yaml.safe_load_all(kept)) == [yaml.safe_load(text) for text in texts]


def test_applied_changed_drifted_and_deleted_it_ends_as_on_a_standalone_host(
    tree: Tree, standalone: Host
) -> None:
    tree.kubectl("apply", "-k", str(tree.overlay))
    tree.ready()
    listed = json.loads(tree.kubectl("get", "storagevolumes", "-o", "json"))["items"]
    assert sorted(item["metadata"]["name"] for item in listed) == sorted(VOLUMES)
    assert on_disk(tree.host) == on_disk(standalone)
    assert (tree.host.scratch / "old-data.img").read_bytes() == OLD_DATA

    larger = '{"spec":{"capacity":"256Mi"}}'
    tree.kubectl("patch", "storagevolume", "web-2", "--type=merge", f"--patch={larger}")
    tree.kubectl("wait", "--for=jsonpath={.status.capacity}=256Mi", "storagevolume", "web-2")
    standalone.edit("images/machines.yaml", ("capacity: 128Mi", "capacity: 256Mi"))
    standalone.poolkeeper.done("apply", "-f", standalone.tree, "--wait")
    assert on_disk(tree.host) == on_disk(standalone)

    disk = tree.host.images / "db-1.qcow2"
    disk.chmod(0o644)
    (tree.host.scratch / "data-sparse.raw").unlink()  # recreation: IfMissing
    for pool in ("images", "scratch"):
        tree.kubectl("annotate", "storagepool", pool, "poolkeeper.dev/requested-at=now")
        tree.kubectl("wait", "--for=jsonpath={.status.lastHandledRequest}=now", "storagepool", pool)
    tree.ready()
    until(lambda: on_disk(tree.host) == on_disk(standalone), told=tree.site.said)

    tree.kubectl("delete", "-k", str(tree.overlay), f"--timeout={PATIENCE}s")
    standalone.poolkeeper.done("delete", "-f", standalone.tree, "--ignore-not-found", "--wait")
    assert on_disk(tree.host) == on_disk(standalone)
    assert sorted(item.name for item in tree.host.images.iterdir()) == ["debian-base.qcow2"]
    assert {item.name for item in tree.host.scratch.iterdir()} == {"log.qcow2", "old-data.img"}
