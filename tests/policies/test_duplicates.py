"""One thing, one owner: the later claim waits and names the first."""

import os

import pytest

from tests.keeper import dir_pool, marked, pool_key, volume, volume_key

UUID = "0d0f2f5a-6f6b-4b4e-9a5c-0e5f0f5f6a11"
FIRST, SECOND = pool_key("first"), pool_key("second")


def declare_second(images, tmp_path, way):
    """A second pool that claims something of the first."""
    alias = tmp_path / "alias"
    match way:
        case "the same path":
            return dir_pool("second", images)
        case "a trailing slash":
            return dir_pool("second", f"{images}/")
        case "a detour":
            return dir_pool("second", f"{images}/../{images.name}")
        case "a link":
            alias.symlink_to(images)
            return dir_pool("second", alias)
        case "a link on the way":
            alias.symlink_to(images.parent)
            return dir_pool("second", alias / images.name)
        case "the uuid":
            return dir_pool("second", tmp_path / "elsewhere", uuid=UUID)
        case _:
            return dir_pool("second", tmp_path / "elsewhere", pool_name="first")


WAYS = [
    "the same path", "a trailing slash", "a detour", "a link", "a link on the way", "the uuid",
    "the pool's name",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_later_pool_stalls_and_gets_its_turn(keeper, images, tmp_path, way):
    keeper.apply(dir_pool("first", images, uuid=UUID))
    keeper.settle()
    keeper.apply(declare_second(images, tmp_path, way))
    keeper.settle()
    assert str(FIRST) in keeper.assert_stalled(SECOND, "Conflict")
    keeper.assert_ready(FIRST)
    assert marked(images)["resource"] == str(FIRST)
    assert not (tmp_path / "elsewhere").exists()
    keeper.delete(FIRST)
    keeper.settle()
    keeper.assert_ready(SECOND)
    assert keeper.truth(SECOND, "Stalled") is None


def test_two_pools_declared_at_once_do_not_both_get_it(keeper, images):
    keeper.apply(dir_pool("first", images), dir_pool("second", images))
    keeper.settle()
    ready = [key for key in (FIRST, SECOND) if keeper.truth(key, "Ready") == "True"]
    assert len(ready) == 1
    assert marked(images)["resource"] == str(ready[0])
    keeper.settle()
    keeper.assert_ready(*ready)


def test_pools_of_another_node_claim_nothing_here(keeper, images):
    keeper.apply(dir_pool("first", images, node_name="elsewhere"))
    keeper.apply(dir_pool("second", images))
    keeper.settle()
    keeper.assert_ready(SECOND)


def test_the_later_volume_of_a_name_stalls_and_gets_its_turn(keeper, images):
    keeper.apply(dir_pool("images", images), volume("one", "images", capacity="1Mi"))
    keeper.settle()
    keeper.apply(volume("two", "images", capacity="1Mi", volume_name="one"))
    keeper.settle()
    one, two = volume_key("one"), volume_key("two")
    assert str(one) in keeper.assert_stalled(two, "Conflict")
    keeper.assert_ready(one)
    assert marked(images / "one")["resource"] == str(one)
    keeper.delete(one)
    keeper.settle()
    keeper.assert_ready(two)
    assert marked(images / "one")["resource"] == str(two)
    assert keeper.get(two).status.origin == "Adopted"


def test_a_volume_that_only_repeats_a_name_deletes_nothing(keeper, images):
    keeper.apply(
        dir_pool("images", images),
        volume("one", "images", capacity="1Mi"),
    )
    keeper.settle()
    keeper.apply(
        volume("two", "images", capacity="1Mi", volume_name="one", deletion_policy="Delete")
    )
    keeper.settle()
    keeper.delete(volume_key("two"))
    keeper.settle()
    assert keeper.gone(volume_key("two"))
    keeper.assert_ready(volume_key("one"))
    assert os.listdir(images) == ["one"]


def test_a_mark_binds_only_while_its_resource_is_declared(keeper, images):
    keeper.apply(dir_pool("images", images), volume("one", "images", capacity="1Mi"))
    keeper.settle()
    keeper.apply(volume("other", "images", capacity="1Mi"))
    keeper.settle()
    (images / "one").rename(images / "mine")  # somebody moved it; it still carries its mark
    keeper.apply(volume("mine", "images", capacity="1Mi"))
    keeper.settle()
    assert "StorageVolume/default/one" in keeper.assert_stalled(volume_key("mine"), "OwnedByOther")
    keeper.delete(volume_key("one"))
    keeper.settle()
    keeper.assert_ready(volume_key("mine"))
