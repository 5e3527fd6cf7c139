"""A kill -9 of the agent between any two effects on the host or the store loses nothing.

The agent runs in a process of its own, with an audit hook that kills the process right before its
Nth effect, for N = 1, 2, 3 ... until a run comes through. After each kill the pool is looked at as
it was left, and then a new agent converges.
"""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from backends.base import BackendContext
from backends.host.marks import MarkStore
from controller.agent import Agent
from controller.codecs import manifests
from controller.engine import Engine
from controller.resources import Key
from controller.store import Store
from controller.summarising import ready
from tests import killing

VOLUME = Key("StorageVolume", "default", "disk")


def manifest(pool_path, *, format, capacity, allocation="0"):
    return f"""
apiVersion: poolkeeper.dev/v1alpha1
kind: StoragePool
metadata: {{name: images}}
spec:
  type: dir
  target: {{path: {pool_path}}}
  deletionPolicy: Delete
---
apiVersion: poolkeeper.dev/v1alpha1
kind: StorageVolume
metadata: {{name: disk}}
spec:
  poolRef: {{name: images}}
  capacity: {capacity}
  allocation: {allocation}
  format: {format}
  permissions: {{mode: "0640"}}
  deletionPolicy: Delete
"""


class Host:
    """A state directory and a pool directory that can be set back to how they were."""

    def __init__(self, root):
        self.root = root
        self.state = root / "now" / "state"
        self.pool = root / "now" / "images"
        self.state.mkdir(parents=True)

    def store(self):
        return Store(self.state)

    def apply(self, text):
        loaded = manifests.load(text)
        assert not loaded.problems
        store = self.store()
        for item in loaded.declared:
            store.apply(item)
        store.close()

    def keep(self):
        shutil.copytree(self.root / "now", self.root / "kept", symlinks=True)

    def restore(self):
        shutil.rmtree(self.root / "now")
        shutil.copytree(self.root / "kept", self.root / "now", symlinks=True)

    def run_agent(self, finished, *, kill_before=0):
        """Run an agent until ``finished(store)``; the signal that ended it, or 0."""
        return killing.ended_by(lambda: _agent(self.state, finished, kill_before))

    def names(self):
        return sorted(os.listdir(self.pool)) if self.pool.exists() else []


def _agent(state, finished, kill_before):
    store = Store(state)
    if kill_before:
        killing.kill_before(kill_before)
    context = BackendContext(marks=MarkStore(state))
    engine = Engine(store, context, node="here", boot="boot-1")
    stop = threading.Event()

    def watch():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not finished(store):
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    assert Agent(store, engine).run(stop)
    assert finished(store), f"the agent did not converge: {[item.status for item in store.list()]}"


def ready_now(store):
    found = store.list()
    return bool(found) and all(ready(item) for item in found) and not store.unfinished_steps()


def ready_with(capacity):
    def finished(store):
        volume = store.get(VOLUME)
        return ready_now(store) and volume is not None and volume.status.capacity == capacity

    return finished


def gone(store):
    return store.get(VOLUME) is None


def image(path):
    shown = subprocess.run(
        ["qemu-img", "info", "--output=json", path], check=True, capture_output=True
    )
    return json.loads(shown.stdout)


def assert_whole(path, format, sizes):
    """Under its name a volume is complete, marked, and of one of these sizes."""
    assert os.getxattr(path, "user.poolkeeper.resource") == b"StorageVolume/default/disk"
    assert os.getxattr(path, "user.poolkeeper.uid")
    if format == "raw":
        assert path.stat().st_size in sizes
    else:
        assert image(path)["format"] == format
        assert image(path)["virtual-size"] in sizes
        subprocess.run(["qemu-img", "check", "-q", path], check=True)


def every_kill(host, finished, check_killed, check_converged):
    """Kill before each effect in turn; how many kills there were."""
    host.keep()
    for number in range(1, 1000):
        host.restore()
        ended_by = host.run_agent(finished, kill_before=number)
        if not ended_by:
            return number - 1
        assert ended_by == signal.SIGKILL
        check_killed()
        assert host.run_agent(finished) == 0
        check_converged()
    raise AssertionError("the agent never came through")


SMALL, LARGE = 8 * 2**20, 24 * 2**20


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_creating_a_volume_survives_a_kill_between_any_two_steps(tmp_path, format):
    host = Host(tmp_path)
    disk = host.pool / "disk"
    host.apply(manifest(host.pool, format=format, capacity="8Mi", allocation="1Mi"))

    def killed():
        if disk.exists():
            assert_whole(disk, format, {SMALL})
            assert disk.stat().st_mode & 0o777 == 0o640
        assert set(host.names()) <= {"disk", ".poolkeeper"}

    def converged():
        assert host.names() == ["disk"]
        assert sorted(os.listdir(host.pool.parent)) == ["images", "state"]
        assert_whole(disk, format, {SMALL})
        assert os.getxattr(disk, "user.poolkeeper.origin") == b"Created"
        assert os.getxattr(host.pool, "user.poolkeeper.origin") == b"Created"

    assert every_kill(host, ready_with(SMALL), killed, converged) > 15


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_growing_a_volume_survives_a_kill_between_any_two_steps(tmp_path, format):
    host = Host(tmp_path)
    disk = host.pool / "disk"
    host.apply(manifest(host.pool, format=format, capacity="8Mi"))
    assert host.run_agent(ready_with(SMALL)) == 0
    write = ["qemu-io", "-f", format, "-c", "write -P 0x5a 1M 64k", str(disk)]
    subprocess.run(write, check=True, capture_output=True)
    host.apply(manifest(host.pool, format=format, capacity="24Mi"))

    def intact():
        read = ["qemu-io", "-f", format, "-c", "read -P 0x5a 1M 64k", str(disk)]
        subprocess.run(read, check=True, capture_output=True)

    def killed():
        assert_whole(disk, format, {SMALL, LARGE})
        intact()

    def converged():
        assert host.names() == ["disk"]
        assert_whole(disk, format, {LARGE})
        intact()

    assert every_kill(host, ready_with(LARGE), killed, converged) > 5


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_deleting_a_volume_survives_a_kill_between_any_two_steps(tmp_path, format):
    host = Host(tmp_path)
    disk = host.pool / "disk"
    host.apply(manifest(host.pool, format=format, capacity="8Mi"))
    assert host.run_agent(ready_with(SMALL)) == 0
    (host.pool / "strange").write_bytes(b"not ours")
    store = Store(host.state)
    assert store.request_deletion(VOLUME)
    store.close()

    def killed():
        if disk.exists():
            assert_whole(disk, format, {SMALL})
        assert (host.pool / "strange").read_bytes() == b"not ours"

    def converged():
        assert host.names() == ["strange"]
        assert (host.pool / "strange").read_bytes() == b"not ours"

    assert every_kill(host, gone, killed, converged) > 3


def test_a_lost_store_is_rebuilt_from_manifests_and_marks(tmp_path):
    host = Host(tmp_path)
    disk = host.pool / "disk"
    text = manifest(host.pool, format="qcow2", capacity="8Mi")
    host.apply(text)
    assert host.run_agent(ready_with(SMALL)) == 0
    before = disk.stat()
    shutil.rmtree(host.state)
    Path(host.state).mkdir()
    host.apply(text)
    assert host.run_agent(ready_with(SMALL)) == 0
    assert disk.stat().st_ino == before.st_ino
    assert disk.stat().st_mtime_ns == before.st_mtime_ns
    assert os.getxattr(disk, "user.poolkeeper.origin") == b"Created"
    store = Store(host.state)
    assert os.getxattr(disk, "user.poolkeeper.uid").decode() == store.get(VOLUME).metadata.uid
    assert store.get(VOLUME).status.origin == "Created"
