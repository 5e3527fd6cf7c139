"""An agent follows the tree of examples/host: from git, from a folder, and by commands."""

import os
import shutil
import stat
import subprocess
import time

import pytest

from backends.sizes import MIB
from controller.resources import Key
from controller.store import Store
from controller.summarising import ready
from tests.manifests.conftest import OLD_DATA
from tests.processes import PATIENCE, condition, truth

GENEROUS = 10.0
"""Seconds within which an agent has to begin with what a command hands over."""

ADDED = """apiVersion: poolkeeper.dev/v1alpha1
kind: StorageVolume
metadata: {name: added}
spec:
  poolRef: {name: scratch}
  volumeName: added.raw
  capacity: 1Mi
  allocation: 0
"""


class Followed:
    """A host, and its store as it is now; reading it takes no process."""

    def __init__(self, host):
        self.host = host
        self.store = Store(host.root / "state")

    def get(self, kind, name):
        found = self.store.get(Key(kind, "" if kind == "StoragePool" else "default", name))
        return found.dump() if found else None

    def pool(self, name):
        return self.get("StoragePool", name)

    def volume(self, name):
        return self.get("StorageVolume", name)

    def all_ready(self, count):
        found = [*self.store.list("StoragePool"), *self.store.list("StorageVolume")]
        return len(found) == count and all(ready(item) for item in found)

    def told(self, reason, words):
        """Messages of the events of that reason that have these words."""
        said = [item.message for item in self.store.events() if item.reason == reason]
        return [message for message in said if words in message]


@pytest.fixture
def followed(host):
    host.mend()
    made = Followed(host)
    yield made
    made.store.close()


def git(directory, *arguments):
    settings = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0")
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *settings, *arguments],
        cwd=directory, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def commit(tree):
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message=change")
    return git(tree, "rev-parse", "HEAD")


@pytest.fixture
def repository(host):
    """The tree as a repository; as an agent is told to follow it."""
    git(host.tree, "init", "--quiet", "--initial-branch=main")
    return ("--git", host.tree, "--branch", "main", "--git-interval", "200ms")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commits_are_followed_and_their_revisions_told(followed, repository):
    host = followed.host
    first = commit(host.tree)
    with host.poolkeeper.agent(*repository) as agent:
        agent.wait_for(lambda: followed.all_ready(10))
        agent.wait_for(lambda: followed.told("Revision", first))
        host.edit(
            "scratch/data.yaml",
            ("capacity: 8Mi", "capacity: 12Mi"),
            ("capacity: 10Gi", "capacity: 11Gi"),
        )
        host.edit("images/machines.yaml", ("capacity: 128Mi", "capacity: 160Mi"))
        (host.tree / "scratch" / "added.yaml").write_text(ADDED)
        second = commit(host.tree)
        agent.wait_for(lambda: followed.told("Revision", second))
        agent.wait_for(lambda: followed.all_ready(11))
        assert (host.scratch / "data-full.raw").stat().st_size == 12 * MIB
        assert (host.scratch / "data-sparse.raw").stat().st_size == 11 * 2**30
        assert (host.scratch / "added.raw").stat().st_size == MIB
        assert followed.volume("web-2")["status"]["capacity"] == "160Mi"
        (host.tree / "scratch" / "added.yaml").unlink()
        third = commit(host.tree)
        agent.wait_for(lambda: followed.told("Revision", third))
    assert followed.volume("added") is not None, "nothing is pruned unless asked for"
    listed = host.poolkeeper.done("events", "-o", "json").json["items"]
    messages = [item["message"] for item in listed if item["reason"] == "Revision"]
    assert [text.split()[1] for text in messages] == [first, second, third]
    (source,) = {item["involvedObject"]["name"] for item in listed if item["reason"] == "Revision"}
    assert str(host.tree) in source


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_drift_is_told_and_corrected_where_the_policy_says_so(followed, repository):
    host = followed.host
    host.edit("images/pool.yaml", ("interval: 1m", "interval: 1s"))
    commit(host.tree)
    with host.poolkeeper.agent(*repository) as agent:
        agent.wait_for(lambda: followed.all_ready(10))

        (host.images / "web-2.qcow2").chmod(0o666)
        (host.images / "strange.qcow2").write_bytes(b"not ours")
        agent.wait_for(lambda: followed.told("PermissionsChanged", "mode 0666 to 0640"))
        assert stat.S_IMODE((host.images / "web-2.qcow2").stat().st_mode) == 0o640
        agent.wait_for(lambda: followed.pool("images")["status"]["volumes"]["unmanaged"] == 1)
        (stranger,) = followed.pool("images")["status"]["discovered"]
        assert stranger["name"] == "strange.qcow2"

        # The other pool is looked at every five minutes, and when somebody asks for it.
        os.truncate(host.scratch / "data-full.raw", 4 * MIB)
        os.truncate(host.scratch / "old-data.img", 6 * MIB)
        (host.scratch / "data-sparse.raw").unlink()
        (host.scratch / "log.qcow2").unlink()
        request = "  name: data-full\n  annotations: {poolkeeper.dev/requested-at: now}"
        host.edit("scratch/data.yaml", ("  name: data-full", request))
        commit(host.tree)
        agent.wait_for(
            lambda: followed.volume("data-full")["status"].get("lastHandledRequest") == "now"
        )
        # A pass writes one status after another.
        agent.wait_for(lambda: truth(followed.volume("log.qcow2"), "Stalled"))
        agent.wait_for(lambda: truth(followed.volume("old-data"), "Stalled"))
        agent.wait_for(lambda: truth(followed.volume("data-sparse"), "InSync") == "True")

        assert followed.told("Resized", "capacity is to go from 4Mi to 8Mi")
        assert (host.scratch / "data-full.raw").stat().st_size == 8 * MIB
        assert followed.told("Created", "It has gone, and recreation is IfMissing")
        assert (host.scratch / "data-sparse.raw").stat().st_size == 10 * 2**30
        for name in ("data-full", "data-sparse"):
            assert truth(followed.volume(name)) == truth(followed.volume(name), "InSync") == "True"

        assert not (host.scratch / "log.qcow2").exists()
        lost = followed.volume("log.qcow2")
        assert condition(lost)["reason"] == condition(lost, "Stalled")["reason"] == "VolumeMissing"
        assert "was there and has gone" in condition(lost)["message"]

        grown = followed.volume("old-data")
        assert condition(grown, "Stalled")["reason"] == "ShrinkNotAllowed"
        assert grown["status"]["drift"] == [
            {"field": "capacity", "desired": "4Mi", "observed": "6Mi"}
        ]
        assert (host.scratch / "old-data.img").read_bytes()[: 4 * MIB] == OLD_DATA
        assert (host.scratch / "old-data.img").stat().st_size == 6 * MIB
    assert (host.images / "strange.qcow2").read_bytes() == b"not ours"


def save_as_editors_do(file, text):
    """Write beside the file, and rename over it."""
    beside = file.with_name(f".{file.name}.swp")
    beside.write_text(text)
    beside.rename(file)


def test_a_broken_save_keeps_the_last_good_version_in_force(followed):
    host = followed.host
    data = host.tree / "scratch" / "data.yaml"
    good = data.read_text()
    with host.poolkeeper.agent("--directory", host.tree) as agent:
        agent.wait_for(lambda: followed.all_ready(10))
        save_as_editors_do(data, good.replace("capacity: 8Mi", "capacity: 9Mi"))
        agent.wait_for(lambda: (host.scratch / "data-full.raw").stat().st_size == 9 * MIB)
        agent.wait_for(lambda: followed.all_ready(10))

        broken = good.replace("capacity: 8Mi", "capacity: 16Mi\n  capactiy: 1Mi")
        save_as_editors_do(data, broken)
        (told,) = agent.wait_for(lambda: followed.told("InvalidManifest", "capactiy"))
        line = 1 + broken.splitlines().index("  capactiy: 1Mi")
        assert told.startswith(f"{data}:{line}: ")
        assert "Did you mean capacity?" in told
        assert "stays in force" in told
        assert told in agent.log
        assert followed.volume("data-full")["spec"]["capacity"] == "9Mi"
        assert (host.scratch / "data-full.raw").stat().st_size == 9 * MIB
        assert followed.all_ready(10)

        save_as_editors_do(data, good.replace("capacity: 8Mi", "capacity: 16Mi"))
        agent.wait_for(lambda: (host.scratch / "data-full.raw").stat().st_size == 16 * MIB)


def measured(agent, holds, what):
    """Wait for something; the seconds that it took, which are printed too."""
    begun = time.monotonic()
    agent.wait_for(holds, within=PATIENCE)
    took = time.monotonic() - begun
    print(f"{what}: {took:.2f} s after the command's return")
    return took


def test_commands_reach_a_running_agent_at_once(followed, tmp_path):
    host = followed.host
    keeper = host.poolkeeper
    with keeper.agent("--directory", host.tree) as agent:
        agent.wait_for(lambda: followed.all_ready(10))
        manifest = tmp_path / "added.yaml"
        manifest.write_text(ADDED)
        handed_over = keeper.done("apply", "-f", manifest)
        assert f"process {agent.process.pid}" in handed_over.err
        made = (host.scratch / "added.raw").exists
        assert measured(agent, made, "made") < GENEROUS

        manifest.write_text(ADDED.replace("1Mi", "3Mi"))
        waited = keeper.done("apply", "-f", manifest, "--wait")
        assert "storagevolume/added configured" in waited.out
        assert (host.scratch / "added.raw").stat().st_size == 3 * MIB

        requested = keeper.done("delete", "svol", "web-1")
        assert "deletion requested" in requested.out
        gone = lambda: not (host.images / "web-1.qcow2").exists()  # noqa: E731
        assert measured(agent, gone, "deleted") < GENEROUS
        keeper.done("wait", "svol", "web-1", "--for", "delete")
        kept = keeper.done("delete", "svol", "added", "--wait")
        assert "Retain" in kept.err
        assert (host.scratch / "added.raw").stat().st_size == 3 * MIB


def test_pruning_follows_a_removed_file_and_stops_where_all_is_gone(followed):
    host = followed.host
    with host.poolkeeper.agent("--directory", host.tree, "--prune") as agent:
        agent.wait_for(lambda: followed.all_ready(10))
        (host.tree / "scratch" / "log.xml").unlink()
        agent.wait_for(lambda: followed.volume("log.qcow2") is None)
        assert (host.scratch / "log.qcow2").exists(), "it is retained"
        (host.tree / "images" / "machines.yaml").unlink()
        agent.wait_for(lambda: followed.volume("web-1") is None and followed.volume("db-1") is None)
        agent.wait_for(lambda: os.listdir(host.images) == ["debian-base.qcow2"])
        files = {item: item.stat().st_ino for item in (host.root / "srv").rglob("*")}

        for file in host.tree.rglob("*.*ml"):
            file.unlink()
        agent.wait_for(lambda: followed.told("PruneRefused", ""))
        time.sleep(3)  # longer than a removed file is waited for
        shutil.rmtree(host.tree)
        agent.wait_for(lambda: followed.told("InvalidManifest", str(host.tree)))
        time.sleep(3)
        assert followed.all_ready(6)
    assert {item: item.stat().st_ino for item in (host.root / "srv").rglob("*")} == files
