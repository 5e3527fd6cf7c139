"""Volumes that change, vanish, stand on others, or find their name taken."""

import os
import subprocess

import pytest

from backends.sizes import MIB
from tests.keeper import (
    dir_pool,
    image_info,
    make_image,
    mark_as_corrupt,
    marked,
    pool_key,
    tree,
    volume,
    volume_key,
)

POOL = pool_key("images")
DISK = volume_key("disk")
BASE, TOP = volume_key("base"), volume_key("top")


def start(keeper, images, *volumes, **spec):
    keeper.apply(dir_pool("images", images, **spec), *volumes)
    keeper.settle()


def disk(**spec):
    return volume("disk", "images", **{"capacity": "1Mi", **spec})


def overlay(name="top", pool="images", *, on=None, **spec):
    backing = {"format": "qcow2", **(on or {"volumeRef": {"name": "base"}})}
    return volume(name, pool, format="qcow2", backing_store=backing, **spec)


def base(pool="images", **spec):
    return volume("base", pool, **{"capacity": "8Mi", "format": "qcow2", **spec})


def test_a_volume_that_has_gone_is_a_loss_that_somebody_has_to_know_of(keeper, images):
    start(keeper, images, disk())
    (images / "disk").unlink()
    keeper.settle()
    assert "recreation" in keeper.assert_stalled(DISK, "VolumeMissing")
    assert os.listdir(images) == []
    keeper.settle()
    assert os.listdir(images) == []
    start(keeper, images, disk(recreation="IfMissing"))
    keeper.assert_ready(DISK)
    assert (images / "disk").stat().st_size == MIB


def test_a_volume_that_comes_back_is_ready_again(keeper, images, tmp_path):
    start(keeper, images, disk())
    (images / "disk").rename(tmp_path / "kept")
    keeper.settle()
    keeper.assert_stalled(DISK, "VolumeMissing")
    (tmp_path / "kept").rename(images / "disk")
    keeper.settle()
    keeper.assert_ready(DISK)


def test_a_volume_that_was_replaced_and_then_removed_is_still_a_loss(keeper, images):
    start(keeper, images, disk())
    (images / "disk").unlink()
    (images / "disk").write_bytes(b"something else")
    keeper.settle()
    keeper.assert_stalled(DISK, "AdoptionMismatch")
    (images / "disk").unlink()
    keeper.settle()
    keeper.assert_stalled(DISK, "VolumeMissing")
    assert os.listdir(images) == []


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_changed_mode_is_set_back_and_a_changed_size_grows_back(keeper, images, format):
    start(keeper, images, disk(format=format, capacity="8Mi", permissions={"mode": "0640"}))
    path = images / "disk"
    os.chmod(path, 0o600)
    subprocess.run(
        ["qemu-img", "resize", "-q", "--shrink", "-f", format, str(path), "4M"], check=True
    )
    keeper.settle()
    keeper.assert_ready(DISK)
    assert path.stat().st_mode & 0o777 == 0o640
    assert keeper.get(DISK).status.capacity == 8 * MIB
    subprocess.run(["qemu-img", "resize", "-q", "-f", format, str(path), "12M"], check=True)
    keeper.settle()
    assert "lose" in keeper.assert_stalled(DISK, "ShrinkNotAllowed")
    (drift,) = keeper.get(DISK).status.drift
    assert (drift.field, drift.desired, drift.observed) == ("capacity", "8Mi", "12Mi")
    start(keeper, images, disk(format=format, capacity="12Mi", permissions={"mode": "0640"}))
    keeper.assert_ready(DISK)


def test_a_declared_image_whose_header_is_broken_is_reported_and_left_alone(keeper, images):
    start(keeper, images, disk(format="qcow2", capacity="8Mi"))
    with (images / "disk").open("r+b") as file:
        file.seek(4)
        file.write(b"\xff\xff\xff\xff")
    before = tree(images / "disk")
    keeper.settle()
    assert keeper.truth(DISK, "Ready") == "False"
    assert keeper.reason(DISK) == "ProbeFailed"
    assert tree(images / "disk") == before
    keeper.assert_ready(POOL)


def test_an_image_that_qemu_marked_as_corrupt_is_told_until_it_is_mended(keeper, images):
    start(keeper, images, disk(format="qcow2", capacity="8Mi"))
    path = images / "disk"
    mark_as_corrupt(path)
    before = tree(path)
    keeper.apply(disk(format="qcow2", capacity="16Mi"))
    keeper.settle()
    assert "corrupt" in keeper.assert_retrying(DISK, "ProbeFailed")
    assert tree(path) == before
    subprocess.run(["qemu-img", "check", "-r", "all", path], check=True, capture_output=True)
    keeper.settle()
    keeper.assert_ready(DISK)
    assert image_info(path)["virtual-size"] == 16 * 2**20


def test_an_image_that_qemu_marked_as_corrupt_can_be_deleted(keeper, images):
    wipe = {"algorithm": "zero"}
    start(
        keeper, images,
        disk(format="qcow2", capacity="8Mi", deletion_policy="Delete", wipe_on_delete=wipe),
    )  # fmt: skip
    mark_as_corrupt(images / "disk")
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert not (images / "disk").exists()


def test_a_volume_too_large_for_its_pool_is_not_begun(keeper, images):
    start(keeper, images, disk(capacity="100Ti"))
    told = keeper.message(DISK)
    assert keeper.reason(DISK) == "NoSpace"
    assert "100Ti" in told
    assert os.listdir(images) == []
    start(keeper, images, disk(capacity="1Mi"))
    keeper.assert_ready(DISK)


def plant(path, what, outside):
    match what:
        case "a link to a file":
            path.symlink_to(outside)
        case "a link to nothing":
            path.symlink_to(outside.with_name("nothing"))
        case "a link to a directory":
            path.symlink_to(outside.parent)
        case "a pipe":
            os.mkfifo(path)
        case "a directory":
            path.mkdir()
            (path / "kept").write_bytes(b"data")


PLANTED = [
    "a link to a file",
    "a link to nothing",
    "a link to a directory",
    "a pipe",
    "a directory",
]


@pytest.mark.parametrize("what", PLANTED)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_name_that_something_else_stands_under_is_refused(keeper, images, tmp_path, what, format):
    images.mkdir()
    outside = tmp_path / "outside" / "file"
    outside.parent.mkdir()
    outside.write_bytes(b"x" * MIB)
    plant(images / "disk", what, outside)
    before = tree(outside.parent), tree(images / "disk")
    wanted = disk(
        format=format, permissions={"mode": "0666"}, deletion_policy="Delete",
        recreation="IfMissing",
    )  # fmt: skip
    start(keeper, images, wanted)
    keeper.assert_stalled(DISK, "AdoptionMismatch" if what == "a directory" else "AlreadyExists")
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert (tree(outside.parent), tree(images / "disk")) == before


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_put_in_a_volumes_place_is_neither_changed_nor_followed(
    keeper, images, tmp_path, what
):
    start(keeper, images, disk(format="qcow2", permissions={"mode": "0640"}))
    outside = tmp_path / "outside" / "file"
    outside.parent.mkdir()
    make_image(outside, "1M")
    (images / "disk").unlink()
    plant(images / "disk", what, outside)
    before = tree(outside.parent), tree(images / "disk")
    start(
        keeper, images,
        disk(format="qcow2", permissions={"mode": "0666"}, capacity="2Mi", deletionPolicy="Delete"),
    )  # fmt: skip
    assert keeper.truth(DISK, "Ready") == "False"
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert (tree(outside.parent), tree(images / "disk")) == before


def test_an_overlay_is_made_after_the_base_that_it_names(keeper, images):
    keeper.apply(dir_pool("images", images), overlay("a-top"), base())  # the overlay sorts first
    keeper.reconcile()
    keeper.assert_ready(BASE, volume_key("a-top"))
    told = image_info(images / "a-top")
    assert told["backing-filename"] == str(images / "base")
    assert told["backing-filename-format"] == "qcow2"
    assert told["virtual-size"] == 8 * MIB
    status = keeper.get(volume_key("a-top")).status
    assert [(link.path, link.format, link.present) for link in status.backing_chain] == [
        (str(images / "base"), "qcow2", True)
    ]
    assert keeper.planned() == {}


def test_a_tower_of_overlays_is_made_in_one_pass(keeper, images):
    third = overlay("c", on={"volumeRef": {"name": "top"}})
    keeper.apply(dir_pool("images", images), third, overlay(), base())
    keeper.reconcile()
    keeper.assert_ready(BASE, TOP, volume_key("c"))
    chain = keeper.get(volume_key("c")).status.backing_chain
    assert [link.path for link in chain] == [str(images / "top"), str(images / "base")]


def test_an_overlay_waits_for_a_base_in_another_pool(keeper, images, tmp_path):
    keeper.apply(dir_pool("tops", tmp_path / "tops"), overlay(pool="tops"), base())
    keeper.settle()
    keeper.assert_retrying(TOP, "BackingMissing")
    start(keeper, images)
    keeper.assert_ready(BASE, TOP)
    assert image_info(tmp_path / "tops" / "top")["backing-filename"] == str(images / "base")


def test_an_overlay_may_have_a_size_of_its_own(keeper, images):
    start(keeper, images, base(), overlay(capacity="32Mi"))
    keeper.assert_ready(TOP)
    assert image_info(images / "top")["virtual-size"] == 32 * MIB


@pytest.mark.parametrize(
    "path", ["base.img", "./base.img", "../images/base.img", "{images}/base.img"]
)
def test_an_overlay_may_name_its_base_by_any_path(keeper, images, path):
    images.mkdir()
    make_image(images / "base.img", "8M", format="raw")
    named = {"path": path.format(images=images), "format": "raw"}
    start(keeper, images, overlay(on=named))
    keeper.assert_ready(TOP)
    assert keeper.truth(TOP, "InSync") == "True"
    assert [link.path for link in keeper.get(TOP).status.backing_chain] == [
        str(images / "base.img")
    ]
    assert keeper.planned() == {}


def test_an_adopted_overlay_keeps_the_relative_name_of_its_base(keeper, images):
    images.mkdir()
    make_image(images / "base", "8M")
    make_image(images / "top", "8M", options=["-b", "base", "-F", "qcow2"])
    start(keeper, images, overlay(on={"path": "base"}, capacity="8Mi"))
    keeper.assert_ready(TOP)
    start(keeper, images, overlay(on={"path": "base"}, capacity="16Mi"))
    keeper.assert_ready(TOP)
    assert image_info(images / "top")["backing-filename"] == "base"
    assert image_info(images / "top")["virtual-size"] == 16 * MIB


def test_a_base_that_has_gone_is_told_and_forgotten_when_it_is_back(keeper, images, tmp_path):
    start(keeper, images, base(), overlay())
    (images / "base").rename(tmp_path / "kept")
    before = tree(images / "top")
    keeper.settle()
    assert str(images / "base") in keeper.assert_retrying(TOP, "BackingMissing")
    assert [link.present for link in keeper.get(TOP).status.backing_chain] == [False]
    (tmp_path / "kept").rename(images / "base")
    keeper.settle()
    keeper.assert_ready(TOP, BASE)
    assert tree(images / "top") == before


def test_an_overlay_is_not_made_on_a_base_that_is_not_there(keeper, images):
    start(keeper, images, overlay(on={"path": "nothing"}))
    keeper.assert_retrying(TOP, "BackingMissing")
    assert os.listdir(images) == []
    make_image(images / "nothing", "8M")
    keeper.settle()
    keeper.assert_ready(TOP)


def test_overlays_that_stand_on_each_other_are_not_made(keeper, images):
    one = overlay("one", on={"volumeRef": {"name": "two"}})
    two = overlay("two", on={"volumeRef": {"name": "one"}})
    start(keeper, images, one, two)
    for name in ("one", "two"):
        assert keeper.truth(volume_key(name), "Ready") == "False"
    assert os.listdir(images) == []


def test_a_base_does_not_shrink_under_its_overlays(keeper, images):
    start(keeper, images, base(), overlay())
    smaller = base(capacity="4Mi", resize={"allowShrink": True})
    start(keeper, images, smaller)
    assert str(images / "top") in keeper.assert_retrying(BASE, "InUse")
    assert image_info(images / "base")["virtual-size"] == 8 * MIB


def test_an_extra_file_changes_nothing_but_the_count(keeper, images):
    start(keeper, images, disk())
    before = tree(images / "disk"), marked(images)
    (images / "extra").write_bytes(b"x")
    keeper.settle()
    keeper.assert_ready(POOL, DISK)
    assert (tree(images / "disk"), marked(images)) == before
    assert keeper.get(POOL).status.volumes.unmanaged == 1
