"""What goes with a resource, and what stays."""

import os

import pytest

from backends import errors
from backends.sizes import MIB
from controller.resources import FINALIZER
from tests.keeper import dir_pool, make_image, pool_key, tree, volume, volume_key

POOL = pool_key("images")
DISK = volume_key("disk")


def start(keeper, images, *volumes, **spec):
    keeper.apply(dir_pool("images", images, **spec), *volumes)
    keeper.settle()


def disk(**spec):
    return volume("disk", "images", **{"capacity": "1Mi", **spec})


def overlay(name, **backing):
    return volume(
        name, "images", format="qcow2", backing_store={"format": "qcow2", **backing},
        deletion_policy="Delete",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pool", "volume_", "held"),
    [
        ({}, {}, set()),
        ({"deletion_policy": "Retain"}, {"deletion_policy": "Retain"}, set()),
        ({"deletion_policy": "Retain"}, {"deletion_policy": "Delete"}, {POOL, DISK}),
        ({"deletion_policy": "Undefine"}, {}, {POOL}),
        ({"deletion_policy": "Delete"}, {"deletion_policy": "Delete"}, {POOL, DISK}),
        ({"adoption": "Observe"}, {"adoption": "Observe"}, set()),
    ],
)
def test_only_what_needs_an_effect_is_held(keeper, images, pool, volume_, held):
    images.mkdir()
    start(keeper, images, disk(**volume_), **pool)
    for key in (POOL, DISK):
        assert (FINALIZER in keeper.get(key).metadata.finalizers) == (key in held)


def test_a_retained_volume_keeps_its_file_as_it_is(keeper, images):
    start(keeper, images, disk())
    before = tree(images / "disk")
    keeper.delete(DISK)
    assert keeper.gone(DISK)
    keeper.settle()
    assert tree(images / "disk") == before
    assert keeper.get(POOL).status.volumes.unmanaged == 1


def test_what_has_lost_our_mark_is_not_deleted(keeper, images):
    start(keeper, images, disk(deletion_policy="Delete"))
    (images / "disk").rename(images / "moved")
    (images / "disk").write_bytes(b"a stranger's")
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert (images / "disk").read_bytes() == b"a stranger's"
    assert (images / "moved").exists()


def test_a_change_to_delete_holds_it_and_a_change_to_retain_lets_it_go(keeper, images):
    start(keeper, images, disk(), deletion_policy="Retain")
    start(keeper, images, disk(deletion_policy="Delete"), deletion_policy="Delete")
    assert keeper.get(DISK).metadata.finalizers == (FINALIZER,)
    start(keeper, images, disk(deletion_policy="Retain"), deletion_policy="Retain")
    assert keeper.get(DISK).metadata.finalizers == ()
    assert keeper.get(POOL).metadata.finalizers == ()


def stick(keeper, images):
    """A volume and a pool that are to be deleted and can't be."""
    start(keeper, images, disk(deletion_policy="Delete"), deletion_policy="Delete")
    images.rename(images.with_name("lost"))
    images.write_bytes(b"")
    keeper.delete(DISK, POOL)
    keeper.settle()
    for key in (DISK, POOL):
        assert "Retain" in keeper.assert_retrying(key, "Inaccessible")


def test_a_stuck_resource_goes_once_its_policy_says_retain(keeper, images):
    stick(keeper, images)
    for key in (DISK, POOL):
        keeper.edit_as_an_api_server_would(key, deletionPolicy="Retain")
    keeper.settle()
    assert keeper.gone(DISK)
    assert keeper.gone(POOL)
    assert (images.with_name("lost") / "disk").stat().st_size == MIB


def test_a_suspended_resource_waits_with_its_deletion(keeper, images):
    start(
        keeper, images, disk(deletion_policy="Delete", suspend=True),
        volume("other", "images", capacity="1Mi", deletion_policy="Delete"),
        deletion_policy="Delete",
    )  # fmt: skip
    keeper.edit_as_an_api_server_would(DISK, suspend=False)
    keeper.settle()
    keeper.edit_as_an_api_server_would(POOL, suspend=True)
    keeper.delete(DISK, POOL, volume_key("other"))
    keeper.settle()
    assert not keeper.gone(POOL)
    assert not keeper.gone(DISK)
    assert sorted(os.listdir(images)) == ["disk", "other"]
    keeper.edit_as_an_api_server_would(POOL, suspend=False)
    keeper.settle()
    assert keeper.gone(POOL)
    assert not images.exists()


def test_a_volume_of_a_pool_that_nobody_declares_can_go(keeper):
    keeper.apply(volume("disk", "imagse", capacity="1Mi", deletion_policy="Delete"))
    keeper.settle()
    assert "imagse" in keeper.assert_retrying(DISK, "PoolNotFound")
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)


@pytest.mark.parametrize("policy", ["Retain", "Undefine"])
def test_a_pool_waits_for_volumes_that_could_not_be_deleted_without_it(keeper, images, policy):
    start(keeper, images, disk(deletion_policy="Delete"), deletion_policy=policy)
    keeper.delete(POOL)  # of a pool and its volumes it may be the first
    keeper.settle()
    assert "StorageVolume/default/disk" in keeper.assert_retrying(POOL, "DeletionRefused")
    assert (images / "disk").exists()
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert keeper.gone(POOL)
    assert os.listdir(images) == []


def test_a_pool_does_not_wait_for_volumes_that_are_to_stay(keeper, images):
    start(keeper, images, disk(deletion_policy="Delete"))
    keeper.delete(POOL)
    keeper.settle()
    assert not keeper.gone(POOL)
    keeper.apply(disk())
    keeper.settle()
    assert keeper.gone(POOL)
    assert (images / "disk").exists()


@pytest.mark.parametrize("policy", ["Retain", "Undefine", "Delete"])
def test_a_pool_that_goes_with_its_volumes_goes_last(keeper, images, policy):
    over = overlay("over", volumeRef={"name": "disk"}, format="raw")
    start(keeper, images, disk(deletion_policy="Delete"), over, deletion_policy=policy)
    keeper.delete(POOL, DISK)
    keeper.settle()
    assert "stand on it" in keeper.assert_retrying(DISK, "DeletionRefused")
    assert not keeper.gone(POOL)
    keeper.delete(volume_key("over"))
    keeper.settle()
    assert keeper.names() == []
    assert [str(item.key) for item in keeper.store.list()] == []
    assert images.exists() == (policy != "Delete")
    assert policy == "Delete" or os.listdir(images) == []


def test_a_volume_that_could_never_be_made_can_go(keeper, images):
    start(keeper, images, disk(deletion_policy="Delete", format="linux"))
    keeper.assert_stalled(DISK, "Unsupported")
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)


def test_a_pool_of_a_type_that_cannot_be_served_can_go(keeper):
    keeper.apply(
        {
            "apiVersion": "poolkeeper.dev/v1alpha1", "kind": "StoragePool",
            "metadata": {"name": "images"},
            "spec": {
                "type": "sheepdog", "deletionPolicy": "Delete",
                "sheepdog": {"hosts": [{"name": "localhost"}], "name": "images"},
            },
        },
        disk(deletion_policy="Delete"),
    )  # fmt: skip
    keeper.settle()
    keeper.assert_stalled(POOL, "Unsupported")
    keeper.delete(POOL, DISK)
    keeper.settle()
    assert keeper.gone(POOL)
    assert keeper.gone(DISK)


def test_a_base_stays_as_long_as_an_overlay_stands_on_it(keeper, images):
    base = volume("base", "images", capacity="8Mi", format="qcow2", deletion_policy="Delete")
    start(keeper, images, base, overlay("top", volumeRef={"name": "base"}))
    keeper.assert_ready(volume_key("base"), volume_key("top"))
    keeper.delete(volume_key("base"))
    keeper.settle()
    assert str(images / "top") in keeper.assert_retrying(volume_key("base"), "DeletionRefused")
    keeper.delete(volume_key("top"))
    keeper.settle()
    assert keeper.gone(volume_key("base"))
    assert keeper.gone(volume_key("top"))
    assert os.listdir(images) == []


@pytest.mark.parametrize("way", ["by its path", "by a link"])
def test_a_base_stays_as_long_as_a_strangers_overlay_stands_on_it(keeper, images, tmp_path, way):
    base = volume("base", "images", capacity="8Mi", format="qcow2", deletion_policy="Delete")
    start(keeper, images, base)
    alias = tmp_path / "alias"
    alias.symlink_to(images)
    named = (images if way == "by its path" else alias) / "base"
    make_image(images / "strange", "8M", options=["-b", str(named), "-F", "qcow2"])
    keeper.delete(volume_key("base"))
    keeper.settle()
    keeper.assert_retrying(volume_key("base"), "DeletionRefused")
    assert (images / "base").exists()
    (images / "strange").unlink()
    keeper.settle()
    assert keeper.gone(volume_key("base"))


def test_a_base_stays_as_long_as_an_overlay_in_another_pool_stands_on_it(keeper, images, tmp_path):
    base = volume("base", "images", capacity="8Mi", format="qcow2", deletion_policy="Delete")
    top = overlay("top", volumeRef={"name": "base"})
    top["spec"]["poolRef"] = {"name": "tops"}
    keeper.apply(dir_pool("tops", tmp_path / "tops"), top)
    start(keeper, images, base)
    keeper.assert_ready(volume_key("base"), volume_key("top"))
    keeper.delete(volume_key("base"))
    keeper.settle()
    told = keeper.assert_retrying(volume_key("base"), "DeletionRefused")
    assert "StorageVolume/default/top" in told
    keeper.delete(volume_key("top"))
    keeper.settle()
    assert keeper.gone(volume_key("base"))
    assert os.listdir(images) == []


def test_an_overlay_can_go_after_its_base_is_no_longer_declared(keeper, images):
    base = volume("base", "images", capacity="8Mi", format="qcow2")
    start(keeper, images, base, overlay("top", volumeRef={"name": "base"}))
    keeper.delete(volume_key("base"))
    keeper.settle()
    keeper.assert_retrying(volume_key("top"), "BackingMissing")
    keeper.delete(volume_key("top"))
    keeper.settle()
    assert keeper.gone(volume_key("top"))
    assert os.listdir(images) == ["base"]


def test_a_directory_volume_is_deleted_only_while_it_is_empty(keeper, images):
    start(keeper, images, volume("disk", "images", format="dir", deletion_policy="Delete"))
    (images / "disk" / "kept").write_bytes(b"data")
    keeper.delete(DISK)
    keeper.settle()
    keeper.assert_retrying(DISK, "DeletionRefused")
    assert (images / "disk" / "kept").read_bytes() == b"data"
    (images / "disk" / "kept").unlink()
    keeper.settle()
    assert keeper.gone(DISK)
    assert os.listdir(images) == []


def test_a_pool_that_holds_what_is_no_volume_names_it_and_stays(keeper, images):
    start(keeper, images, deletion_policy="Delete")
    (images / "link").symlink_to("/etc")
    os.mkfifo(images / "pipe")
    strange = os.fsencode(images) + b"/not\xffutf8\n"
    os.close(os.open(strange, os.O_CREAT | os.O_EXCL))
    keeper.delete(POOL)
    keeper.settle()
    told = keeper.assert_retrying(POOL, "DeletionRefused")
    for name in ("link", "pipe", r"not\udcffutf8\n"):
        assert name in told
    assert told.isprintable()
    assert len(os.listdir(images)) == 3


def test_half_made_files_of_ours_do_not_keep_a_pool_from_going(keeper, images):
    start(keeper, images, deletion_policy="Delete")
    keeper.delete(POOL)
    staging = images / ".poolkeeper"
    staging.mkdir(mode=0o700)
    (staging / "uid.1234").write_bytes(b"half")
    keeper.settle()
    assert keeper.gone(POOL)
    assert not images.exists()


def test_a_duplicate_that_goes_takes_nothing_along(keeper, images):
    start(keeper, images, disk(), deletion_policy="Delete")
    keeper.apply(dir_pool("second", images, deletion_policy="Delete"))
    keeper.settle()
    before = tree(images)
    keeper.delete(pool_key("second"))
    keeper.settle()
    assert keeper.gone(pool_key("second"))
    keeper.assert_ready(POOL, DISK)
    assert tree(images) == before


def test_a_stuck_deletion_goes_when_its_policy_is_applied_as_retain(keeper, images):
    keeper.apply(dir_pool("images", images, deletion_policy="Delete"))
    keeper.settle()
    (images / "strange").write_bytes(b"x")
    keeper.delete(POOL)
    keeper.settle()
    keeper.assert_retrying(POOL, "DeletionRefused")
    with pytest.raises(errors.Conflict, match="being deleted"):
        keeper.apply(dir_pool("images", images, deletion_policy="Delete", suspend=False))
    keeper.apply(dir_pool("images", images, deletion_policy="Retain"))
    keeper.settle()
    assert keeper.gone(POOL)
    assert (images / "strange").read_bytes() == b"x"
