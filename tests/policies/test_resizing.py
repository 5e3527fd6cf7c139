"""Volumes that grow and shrink: what is set aside, what is lost, and what new space reads as."""

import os
import subprocess

import pytest

from controller import retrying
from tests.keeper import dir_pool, image_info, volume, volume_key

DISK = volume_key("disk")
MIB = 2**20
formats = pytest.mark.parametrize("format", ["raw", "qcow2"])


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.0)


def disk(name="disk", **spec):
    return volume(name, "images", **{"capacity": "16Mi", "allocation": "0", **spec})


def start(keeper, images, *documents):
    keeper.apply(dir_pool("images", images), *documents)
    keeper.settle()


def io(path, format, *commands):
    argv = ["qemu-io", "-f", format]
    for command in commands:
        argv += ["-c", command]
    done = subprocess.run([*argv, str(path)], check=True, capture_output=True, text=True)
    assert "failed" not in done.stdout, done.stdout


@formats
def test_an_empty_end_may_be_cut_off_by_allow_shrink_alone(keeper, images, format):
    start(keeper, images, disk(format=format))
    io(images / "disk", format, "write -P 7 0 64k")
    start(keeper, images, disk(format=format, capacity="8Mi", resize={"allowShrink": True}))
    keeper.assert_ready(DISK)
    assert image_info(images / "disk")["virtual-size"] == 8 * MIB
    io(images / "disk", format, "read -P 7 0 64k")


@formats
def test_data_past_the_new_end_is_lost_only_by_a_further_word(keeper, images, format):
    start(keeper, images, disk(format=format))
    io(images / "disk", format, "write -P 7 12M 64k", "write -P 8 1M 64k")
    start(keeper, images, disk(format=format, capacity="8Mi", resize={"allowShrink": True}))
    told = keeper.assert_stalled(DISK, "ShrinkNotAllowed")
    assert "allowDataLoss" in told
    assert str(12 * MIB) in told
    assert image_info(images / "disk")["virtual-size"] == 16 * MIB
    io(images / "disk", format, "read -P 7 12M 64k")
    both = {"allowShrink": True, "allowDataLoss": True}
    start(keeper, images, disk(format=format, capacity="8Mi", resize=both))
    keeper.assert_ready(DISK)
    io(images / "disk", format, "read -P 8 1M 64k")


@formats
def test_less_than_is_allocated_is_left_only_by_a_further_word(keeper, images, format):
    start(keeper, images, disk(format=format, preallocation="Falloc"))
    start(keeper, images, disk(format=format, capacity="8Mi", resize={"allowShrink": True}))
    assert "allocated" in keeper.assert_stalled(DISK, "ShrinkNotAllowed")
    both = {"allowShrink": True, "allowDataLoss": True}
    start(keeper, images, disk(format=format, capacity="8Mi", resize=both))
    keeper.assert_ready(DISK)
    assert image_info(images / "disk")["virtual-size"] == 8 * MIB


@formats
def test_what_was_cut_off_and_is_added_again_reads_as_zeros(keeper, images, format):
    start(keeper, images, disk(format=format))
    io(images / "disk", format, "write -P 9 0 16M")
    both = {"allowShrink": True, "allowDataLoss": True}
    start(keeper, images, disk(format=format, capacity="8Mi", resize=both))
    start(keeper, images, disk(format=format, capacity="24Mi"))
    keeper.assert_ready(DISK)
    io(images / "disk", format, "read -P 9 0 8M", "read -P 0 8M 16M")


@formats
@pytest.mark.parametrize("allocate", [False, True])
def test_added_space_is_set_aside_where_it_is_asked_for(keeper, images, format, allocate):
    start(keeper, images, disk(format=format))
    io(images / "disk", format, "write -P 9 15M 1M")
    before = (images / "disk").stat().st_blocks * 512
    start(keeper, images, disk(format=format, capacity="48Mi", resize={"allocate": allocate}))
    keeper.assert_ready(DISK)
    added = (images / "disk").stat().st_blocks * 512 - before
    assert (added >= 32 * MIB) is allocate
    io(images / "disk", format, "read -P 9 15M 1M", "read -P 0 16M 32M")
    assert keeper.planned() == {}


def test_blocks_that_stand_past_the_end_of_a_raw_file_read_as_zeros(keeper, images):
    start(keeper, images, disk())
    path = images / "disk"
    io(path, "raw", "write -P 9 0 16M")
    subprocess.run(["fallocate", "--keep-size", "-l", "32M", str(path)], check=True)
    start(keeper, images, disk(capacity="32Mi"))
    io(path, "raw", "read -P 9 0 16M", "read -P 0 16M 16M")


def test_an_overlay_that_grows_over_a_larger_base_does_not_show_the_base_there(keeper, images):
    start(
        keeper, images, disk("base", capacity="32Mi", format="qcow2"),
    )  # fmt: skip
    io(images / "base", "qcow2", "write -P 3 0 32M")
    backing = {"format": "qcow2", "volumeRef": {"name": "base"}}
    start(keeper, images, disk(format="qcow2", backing_store=backing))
    start(keeper, images, disk(format="qcow2", backing_store=backing, capacity="32Mi"))
    keeper.assert_ready(DISK)
    io(images / "disk", "qcow2", "read -P 3 0 16M", "read -P 0 16M 16M")


def test_a_growth_that_there_is_no_room_for_is_refused_before_it_begins(keeper, images):
    start(keeper, images, disk())
    start(keeper, images, disk(capacity="100Ti", resize={"allocate": True}))
    assert keeper.reason(DISK) == "NoSpace"
    assert (images / "disk").stat().st_size == 16 * MIB


@pytest.mark.root
@formats
def test_a_growth_that_fails_for_want_of_room_leaves_the_volume_as_it_was(keeper, mounted, format):
    images = mounted("ext4") / "images"
    start(keeper, images, disk(format=format))
    io(images / "disk", format, "write -P 9 15M 1M")
    keeper.apply(disk(format=format, capacity="1Gi", resize={"allocate": True}))
    for _ in range(3):
        keeper.reconcile()
    assert "NoSpace" in (keeper.reason(DISK), *keeper.reasons(DISK))
    assert image_info(images / "disk")["virtual-size"] == 16 * MIB
    io(images / "disk", format, "read -P 9 15M 1M")
    if format == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", images / "disk"], check=True)
    assert os.listdir(images) == ["disk"]
    start(keeper, images, disk(format=format, capacity="24Mi", resize={"allocate": True}))
    keeper.assert_ready(DISK)
