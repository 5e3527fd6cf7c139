"""Volumes that nobody declared."""

import os

from backends.sizes import MIB
from controller.summarising import SAMPLE
from tests.keeper import dir_pool, make_image, marked, pool_key, tree, volume, volume_key

POOL = pool_key("images")


def start(keeper, images, *volumes, **spec):
    keeper.apply(dir_pool("images", images, **spec), *volumes)
    keeper.settle()


def strange(images, *names):
    for name in names:
        (images / name).write_bytes(b"x" * 4096)


def test_strangers_are_counted_and_a_sample_of_them_is_named(keeper, images):
    start(keeper, images, volume("disk", "images", capacity="1Mi"))
    strange(images, *(f"s{number:03}" for number in range(SAMPLE + 7)))
    keeper.settle()
    status = keeper.get(POOL).status
    assert (status.volumes.total, status.volumes.managed, status.volumes.unmanaged) == (
        SAMPLE + 8,
        1,
        SAMPLE + 7,
    )
    assert [item.name for item in status.discovered] == [f"s{n:03}" for n in range(SAMPLE)]
    keeper.assert_ready(POOL)


def test_what_is_no_volume_is_not_counted_and_not_opened(keeper, images):
    start(keeper, images)
    (images / "link").symlink_to("/etc/passwd")
    os.mkfifo(images / "pipe")
    (images / "-rf").write_bytes(b"")
    (images / "new\nline").write_bytes(b"")
    keeper.settle()
    assert keeper.get(POOL).status.volumes.total == 0
    keeper.assert_ready(POOL)


def test_strangers_are_adopted_where_discovery_says_so(keeper, images):
    start(keeper, images, discovery="Adopt")
    strange(images, "raw.img", "UPPER Case")
    make_image(images / "disk.qcow2", "8M")
    (images / "tree").mkdir()
    before = {name: (images / name).stat().st_mtime_ns for name in os.listdir(images)}
    keeper.settle()
    volumes = {item.spec.volume_name: item for item in keeper.store.list("StorageVolume")}
    assert set(volumes) == {"raw.img", "UPPER Case", "disk.qcow2", "tree"}
    for item in volumes.values():
        keeper.assert_ready(item.key)
        assert item.spec.deletion_policy == "Retain"
        assert item.metadata.finalizers == ()
        assert item.status.origin == "Adopted"
    assert (volumes["disk.qcow2"].spec.format, volumes["disk.qcow2"].spec.capacity) == (
        "qcow2",
        8 * MIB,
    )
    assert keeper.get(POOL).status.volumes.unmanaged == 0
    assert {name: (images / name).stat().st_mtime_ns for name in before} == before
    assert "Discovered" in keeper.reasons(volume_key("raw.img"))


def test_nothing_is_adopted_in_a_pool_that_only_reports_or_is_suspended(keeper, images):
    start(keeper, images)
    strange(images, "raw.img")
    keeper.settle()
    start(keeper, images, discovery="Adopt", suspend=True)
    assert keeper.store.list("StorageVolume") == []
    assert marked(images / "raw.img") == {}


def test_a_discovered_volume_never_takes_the_name_of_a_declared_one(keeper, images, tmp_path):
    other = tmp_path / "other"
    keeper.apply(dir_pool("other", other), volume("disk", "other", capacity="1Mi"))
    start(keeper, images, discovery="Adopt")
    strange(images, "disk")
    keeper.settle()
    declared = keeper.get(volume_key("disk"))
    assert declared.spec.pool_ref.name == "other"
    assert declared.metadata.generation == 1
    found = [item for item in keeper.store.list("StorageVolume") if item.key != declared.key]
    assert [(item.spec.pool_ref.name, item.spec.volume_name) for item in found] == [
        ("images", "disk")
    ]
    keeper.assert_ready(declared.key, found[0].key)


def test_what_was_declared_since_the_look_is_not_overwritten(keeper, images, monkeypatch):
    start(keeper, images, discovery="Adopt")
    strange(images, "disk")
    look = keeper.engine.world
    mine = volume("disk", "images", capacity=4096, permissions={"mode": "0640"})
    calls = []

    def world_before_the_user():
        seen = look()
        calls.append(1)
        if len(calls) == 2:  # the one that the pass goes by
            keeper.apply(mine)
        return seen

    monkeypatch.setattr(keeper.engine, "world", world_before_the_user)
    keeper.engine.reconcile("images")
    monkeypatch.undo()
    assert keeper.get(volume_key("disk")).spec.permissions.mode == 0o640
    assert len(keeper.store.list("StorageVolume")) == 1


def test_a_file_that_is_discovered_is_left_as_it_is(keeper, images):
    start(keeper, images)
    strange(images, "raw.img")
    before = tree(images / "raw.img")
    keeper.settle()
    assert tree(images / "raw.img") == before
