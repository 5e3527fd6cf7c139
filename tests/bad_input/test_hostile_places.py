"""Places that can't be read or written, or have no room: nothing half-made is left behind."""

import functools
import os
import subprocess

import pytest

from backends.host import mounts
from tests.bad_input.conftest import facts, snapshot
from tests.keeper import Keeper, dir_pool
from tests.keeper import volume as volume_manifest
from tests.processes import Poolkeeper

MANIFEST = """apiVersion: poolkeeper.dev/v1alpha1
kind: StoragePool
metadata: {{name: small}}
spec:
  type: dir
  target: {{path: {path}}}
"""
VOLUME = """---
apiVersion: poolkeeper.dev/v1alpha1
kind: StorageVolume
metadata: {{name: {name}}}
spec:
  poolRef: {{name: small}}
  format: {format}
  capacity: {capacity}
  {how}
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def poolkeeper(tmp_path):
    return Poolkeeper(tmp_path / "state", tmp_path)


def volume(name, *, capacity, format="raw", how=""):
    return VOLUME.format(name=name, capacity=capacity, format=format, how=how)


@pytest.mark.root
@as_root
@pytest.mark.parametrize(
    ("format", "how", "says"),
    [
        ("raw", "", "needs 64Mi"),
        ("raw", "preallocation: Full", "needs 64Mi"),
        ("qcow2", "preallocation: Falloc", "needs 64Mi"),
        ("qcow2", "preallocation: Metadata\n  clusterSize: 512", "No space left on device"),
    ],
)
def test_a_file_system_that_fills_up_keeps_no_half(
    mounted, poolkeeper, tmp_path, format, how, says
):
    point = mounted("ext4")
    space = os.statvfs(point)
    with open(point / "ballast", "wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, space.f_bfree * space.f_frsize - 3 * 2**20)
    before = facts(point / "ballast")
    manifest = write(
        tmp_path / "all.yaml",
        MANIFEST.format(path=point)
        + volume("large", capacity="64Mi", format=format, how=how)
        + volume("little", capacity="4Ki", how="allocation: 0"),
    )
    ended = poolkeeper("apply", "-f", manifest)
    assert ended.code == 1
    assert says in ended.err, ended.words
    assert "Free some space" in ended.err
    assert sorted(os.listdir(point)) == ["ballast", "little", "lost+found"]
    assert facts(point / "ballast") == before
    (point / "ballast").unlink()
    assert poolkeeper("apply", "-f", manifest, "--wait").code == 0
    assert "large" in os.listdir(point)


@pytest.mark.root
@as_root
def test_a_read_only_mount_is_named_and_left(mounted, poolkeeper, tmp_path):
    point = mounted("ext4")
    (point / "strange").write_bytes(b"x")
    subprocess.run(["mount", "-o", "remount,ro", point], check=True)
    before = snapshot(point)
    text = MANIFEST.format(path=point) + volume("disk", capacity="4Ki", how="allocation: 0")
    ended = poolkeeper("apply", "-f", write(tmp_path / "all.yaml", text))
    assert ended.code == 1
    assert "read-only" in ended.err.lower(), ended.words
    assert snapshot(point) == before


@pytest.fixture
def ordinary(poolkeeper):
    """Commands of a user that file modes hold for."""
    return functools.partial(poolkeeper, ordinary=True)


def test_a_directory_that_may_not_be_written_is_named_and_left(ordinary, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "strange").write_bytes(b"x")
    closed.chmod(0o555)
    before = snapshot(closed)
    text = MANIFEST.format(path=closed) + volume("disk", capacity="4Ki", how="allocation: 0")
    text += "---\n" + MANIFEST.format(path=closed / "below").replace("small", "below")
    ended = ordinary("apply", "-f", write(tmp_path / "all.yaml", text))
    assert ended.code == 1
    assert "Run as a user that may" in ended.err, ended.words
    assert snapshot(closed) == before
    closed.chmod(0o755)


def test_a_manifest_that_may_not_be_read_is_named(ordinary, tmp_path):
    secret = write(tmp_path / "secret.yaml", "secret: x\n")
    secret.chmod(0)
    good = write(tmp_path / "good.yaml", MANIFEST.format(path=tmp_path / "images"))
    ended = ordinary("apply", "-f", secret, "-f", good)
    assert ended.code == 1
    assert f"{secret}: The manifest can't be read: permission denied." in ended.err
    assert (tmp_path / "images").is_dir()


def test_a_state_directory_that_may_not_be_written_is_named(ordinary, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    manifest = write(tmp_path / "pool.yaml", MANIFEST.format(path=tmp_path / "images"))
    for state in (closed, closed / "below"):
        ended = ordinary("apply", "-f", manifest, "--state-dir", state)
        assert ended.code == 1
        assert str(state) in ended.err, ended.words
        assert not (tmp_path / "images").exists()
    assert os.listdir(closed) == []


@pytest.mark.parametrize("damage", [b"", b"This is no database. " * 1000, bytes(8192)])
def test_a_damaged_store_says_how_it_is_rebuilt(poolkeeper, tmp_path, damage):
    images = tmp_path / "images"
    keeper = Keeper(poolkeeper.state, boot=mounts.boot_id(), node=mounts.host_name())
    disk = volume_manifest("disk", "small", capacity="4Ki", allocation=0)
    keeper.apply(dir_pool("small", images), disk)
    keeper.reconcile()
    keeper.store.close()
    store = poolkeeper.state / "store.db"
    with open(store, "r+b") as file:
        file.truncate(0)
        file.write(damage)
    text = MANIFEST.format(path=images) + volume("disk", capacity="4Ki", how="allocation: 0")
    manifest = write(tmp_path / "all.yaml", text)
    before = snapshot(images)
    if damage:
        for command in (("apply", "-f", manifest), ("get", "spool"), ("plan",)):
            ended = poolkeeper(*command)
            assert ended.code == 1
            assert str(store) in ended.err
            assert "a new one is filled from the manifests" in ended.err, ended.words
        assert snapshot(images) == before
        for file in poolkeeper.state.glob("store.db*"):
            file.rename(tmp_path / file.name)
    poolkeeper.done("apply", "-f", manifest, "--wait")
    assert (images / "disk").stat().st_ino == before[images / "disk"][0]
    assert (images / "disk").read_bytes() == bytes(4096)
