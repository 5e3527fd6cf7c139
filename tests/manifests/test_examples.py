"""The tree of examples/host is applied as its README says, and is what qemu-img finds it to be.

The command line runs as a process, over a real host directory; no agent runs.
"""

import itertools
import json
import os
import stat
import subprocess

import pytest

from tests.manifests.conftest import MANIFESTS, OLD_DATA, made_host
from tests.processes import truth

SEARCH = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
VOLUMES = {
    "debian-base": "images/debian-base.qcow2",
    "web-1": "images/web-1.qcow2",
    "web-2": "images/web-2.qcow2",
    "db-1": "images/db-1.qcow2",
    "data-full": "scratch/data-full.raw",
    "data-sparse": "scratch/data-sparse.raw",
    "old-data": "scratch/old-data.img",
    "log.qcow2": "scratch/log.qcow2",
}
IMAGES = [name for name, path in VOLUMES.items() if path.endswith(".qcow2")]
EXERCISED = {
    "examples/cluster": "../cluster/test_example_tree.py",
    "examples/host": "test_examples.py",
    "install": "../cluster/test_install.py",
    "quickstart": "test_quickstart.py",
    "systemd": "test_systemd_unit.py",
}


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    """The host after one apply of the whole tree, and what that command said."""
    host = made_host(tmp_path_factory.mktemp("examples"))
    return host, host.poolkeeper("apply", "-f", host.tree, "--wait", "--timeout", "4m")


@pytest.fixture
def poolkeeper(applied):
    return applied[0].poolkeeper


@pytest.fixture
def path_of(applied):
    return lambda name: applied[0].root / "srv" / VOLUMES[name]


def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=SEARCH).stdout


def image_info(path, *options):
    return json.loads(run("qemu-img", "info", "--output=json", *options, str(path)))


def size(quantity):
    from backends.sizes import parse_quantity

    return parse_quantity(quantity)


def test_every_manifest_of_the_repository_has_a_test():
    files = [item.relative_to(MANIFESTS) for item in MANIFESTS.rglob("*") if item.is_file()]
    unknown = {str(item) for item in files if not str(item).startswith(tuple(EXERCISED))}
    assert not unknown, "say here which test exercises them"
    tests = MANIFESTS.parent / "tests" / "manifests"
    assert all((tests / name).exists() for name in EXERCISED.values())


def test_the_broken_manifest_is_named_and_all_others_are_ready(applied):
    host, ended = applied
    assert ended.code == 1
    broken = host.tree / "broken.yaml"
    line = 1 + broken.read_text().splitlines().index("  capactiy: 1Gi")
    (told,) = [item for item in ended.err.splitlines() if "broken" in item]
    assert told.startswith(f"{broken}:{line}: ")
    assert "capactiy" in told
    assert "Did you mean capacity?" in told
    found = host.poolkeeper.done("get", "all", "-A", "-o", "json").json["items"]
    assert {item["metadata"]["name"] for item in found} == {"images", "scratch", *VOLUMES}
    for item in found:
        assert truth(item) == truth(item, "InSync") == "True", item["status"]
        assert item["status"]["observedGeneration"] == item["metadata"]["generation"] == 1
    created = sorted(f"{item['kind'].lower()}/{item['metadata']['name']} created" for item in found)
    assert sorted(ended.out.splitlines()) == created
    assert sorted(os.listdir(host.images)) == sorted(
        os.path.basename(path) for path in VOLUMES.values() if path.startswith("images/")
    )


def test_with_strict_nothing_at_all_is_applied(host):
    before = {item: item.lstat() for item in host.root.rglob("*")}
    ended = host.poolkeeper("apply", "--strict", "-f", host.tree, "--wait")
    assert ended.code == 1
    assert ended.out == ""
    assert "broken.yaml:" in ended.err
    assert "Nothing was applied" in ended.err
    after = {item: item.lstat() for item in host.root.rglob("*")}
    assert after.keys() == before.keys()
    for item, facts in before.items():
        now = after[item]
        assert (now.st_mtime_ns, now.st_ctime_ns, now.st_mode, now.st_size) == (
            facts.st_mtime_ns, facts.st_ctime_ns, facts.st_mode, facts.st_size,
        )  # fmt: skip


def test_a_second_plan_and_apply_find_nothing_to_do(host):
    host.mend()
    host.poolkeeper.done("apply", "-f", host.tree, "--wait")
    files = [item for item in (host.root / "srv").rglob("*")]
    before = {item: (item.lstat().st_ctime_ns, item.lstat().st_ino) for item in files}
    for arguments in (["-f", host.tree], []):
        plan = host.poolkeeper.done("plan", *arguments, "-o", "json").json
        assert plan["summary"]["unchanged"] == 2 + len(VOLUMES)
        assert not any(item["actions"] or item["drift"] for item in plan["resources"])
    again = host.poolkeeper.done("apply", "-f", host.tree, "--wait")
    assert {line.rpartition(" ")[2] for line in again.out.splitlines()} == {"unchanged"}
    assert {item: (item.lstat().st_ctime_ns, item.lstat().st_ino) for item in files} == before


@pytest.mark.parametrize("name", VOLUMES)
def test_the_status_is_what_qemu_img_and_stat_report(poolkeeper, path_of, name):
    status, path = poolkeeper.object("svol", name)["status"], path_of(name)
    facts = path.lstat()
    assert stat.S_ISREG(facts.st_mode)
    assert status["path"] == status["key"] == str(path)
    assert status["type"] == "file"
    assert size(status["allocation"]) == facts.st_blocks * 512
    assert size(status["physical"]) == facts.st_size
    permissions = status["permissions"]
    assert int(permissions["mode"], 8) == stat.S_IMODE(facts.st_mode)
    assert (permissions["owner"], permissions["group"]) == (facts.st_uid, facts.st_gid)
    given = [] if name in IMAGES else ["-f", "raw"]
    found = image_info(path, *given)
    assert size(status["capacity"]) == found["virtual-size"]
    assert status["format"] == found["format"]
    assert size(status["allocation"]) == found["actual-size"]
    assert status.get("compat") == found.get("format-specific", {}).get("data", {}).get("compat")
    if name in IMAGES:
        assert size(status["clusterSize"]) == found["cluster-size"]
        assert run("qemu-img", "check", "-f", "qcow2", str(path)).startswith("No errors")


@pytest.mark.parametrize("name", IMAGES)
def test_the_backing_chain_is_the_one_that_qemu_img_follows(poolkeeper, path_of, name):
    status = poolkeeper.object("svol", name)["status"]
    links = image_info(path_of(name), "--backing-chain")
    below = [(item["filename"], item["format"], item["virtual-size"]) for item in links[1:]]
    chain = status.get("backingChain", [])
    assert [(item["path"], item["format"], size(item["capacity"])) for item in chain] == below
    assert all(item["present"] for item in chain)
    for upper, lower in itertools.pairwise(links):
        assert upper["full-backing-filename"] == lower["filename"]
        assert upper["backing-filename-format"] == lower["format"]


def test_each_declaration_is_kept(poolkeeper, path_of, applied):
    host, _ = applied
    web, larger, db = (image_info(path_of(name)) for name in ("web-1", "web-2", "db-1"))
    assert web["virtual-size"] == image_info(path_of("debian-base"))["virtual-size"] == 64 * 2**20
    assert larger["virtual-size"] == 128 * 2**20
    assert db["virtual-size"] == 256 * 2**20
    assert db["cluster-size"] == 128 * 2**10
    assert db["format-specific"]["data"]["lazy-refcounts"]
    assert not web["format-specific"]["data"]["lazy-refcounts"]
    modes = {name: stat.S_IMODE(path_of(name).stat().st_mode) for name in VOLUMES}
    assert modes["web-1"] == modes["web-2"] == modes["debian-base"] == 0o640
    assert modes["db-1"] == 0o600
    assert stat.S_IMODE(host.images.stat().st_mode) == 0o711
    assert stat.S_IMODE(host.scratch.stat().st_mode) == 0o700
    full, sparse = path_of("data-full").stat(), path_of("data-sparse").stat()
    assert full.st_size == 8 * 2**20
    assert full.st_blocks * 512 >= full.st_size
    assert sparse.st_size == 10 * 2**30
    assert sparse.st_blocks * 512 < 2**20
    assert path_of("old-data").read_bytes() == OLD_DATA
    log = image_info(path_of("log.qcow2"))
    assert (log["virtual-size"], log["format-specific"]["data"]["compat"]) == (32 * 2**20, "1.1")
    origins = {name: poolkeeper.object("svol", name)["status"]["origin"] for name in VOLUMES}
    adopted = {name for name, origin in origins.items() if origin == "Adopted"}
    assert adopted == {"debian-base", "old-data"}


@pytest.mark.parametrize("name", ["debian-base", "web-1", "web-2", "db-1"])
def test_a_machine_finds_the_file_system_of_the_base(path_of, tmp_path, name):
    disk = tmp_path / "disk.raw"
    run("qemu-img", "convert", "-O", "raw", str(path_of(name)), str(disk))
    assert run("blkid", "-o", "value", "-s", "TYPE", str(disk)).strip() == "ext4"
    assert run("debugfs", "-R", "cat /etc/hostname", str(disk)) == "base\n"
    run("e2fsck", "-fn", str(disk))


@pytest.mark.root
def test_the_base_can_be_mounted(path_of, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    disk, point = tmp_path / "disk.raw", tmp_path / "mounted"
    point.mkdir()
    run("qemu-img", "convert", "-O", "raw", str(path_of("web-1")), str(disk))
    run("mount", "-o", "loop,ro", str(disk), str(point))
    try:
        assert (point / "README").read_text() == "made for the examples\n"
    finally:
        run("umount", str(point))


def test_a_write_through_an_overlay_leaves_the_base_alone(host):
    host.mend()
    host.poolkeeper.done("apply", "-f", host.tree, "--wait")
    base, overlay = host.images / "debian-base.qcow2", host.images / "web-1.qcow2"
    before = base.read_bytes()
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", str(overlay))
    assert base.read_bytes() == before
    assert host.poolkeeper.done("plan").out.startswith("Plan: 0 to create, 0 to change")


def test_what_is_deleted_follows_its_policy(host):
    host.mend()
    keeper = host.poolkeeper
    keeper.done("apply", "-f", host.tree, "--wait")
    blocked = keeper("delete", "svol", "debian-base", "--wait", "--timeout", "1s")
    assert blocked.code == 0  # its policy is Retain, so nothing is deleted that others stand on
    keeper.done("delete", "svol", "web-1", "old-data", "--wait")
    assert not (host.images / "web-1.qcow2").exists()
    assert (host.images / "debian-base.qcow2").exists()
    assert (host.scratch / "old-data.img").read_bytes() == OLD_DATA
    keeper.done("delete", "-f", host.tree, "--ignore-not-found", "--wait")
    assert sorted(os.listdir(host.images)) == ["debian-base.qcow2"]
    left = {"log.qcow2", "old-data.img"}  # libvirt's XML has no deletion policy, and Retain is ours
    assert set(os.listdir(host.scratch)) == left
    assert keeper.done("get", "all", "-A", "-o", "json").json["items"] == []
