"""Volumes that are clones of others: across formats, sizes, pools and namespaces."""

import os
import subprocess
import threading

import pytest

from backends.images import copying
from controller import retrying
from controller.resources import Key
from tests.filling.conftest import MIB, clone, same_contents, write_contents
from tests.keeper import dir_pool, image_info, marked, pool_key, volume, volume_key

BASE, COPY = volume_key("base"), volume_key("copy")


def start(keeper, *documents):
    keeper.apply(*documents)
    keeper.settle(12)


def base(**spec):
    return volume("base", "images", **{"capacity": "8Mi", "allocation": "0", **spec})


@pytest.mark.parametrize("target", ["raw", "qcow2", "vmdk", "vdi", "qed", "vpc"])
@pytest.mark.parametrize("source", ["raw", "qcow2"])
def test_a_clone_has_the_contents_of_its_source(keeper, images, source, target):
    start(keeper, dir_pool("images", images), base(format=source))
    write_contents(images / "base", source)
    start(keeper, clone("copy", "base", format=target))
    keeper.assert_ready(COPY)
    driver = "vpc" if target == "vpc" else target
    assert same_contents(images / "base", images / "copy", source, driver)
    assert marked(images / "copy")["origin"] == "Created"
    assert "Cloned" in keeper.reasons(COPY)
    assert keeper.planned() == {}
    assert sorted(os.listdir(images)) == ["base", "copy"]


@pytest.mark.parametrize("target", ["raw", "qcow2"])
@pytest.mark.parametrize("source", ["raw", "qcow2"])
def test_a_larger_capacity_is_reached_and_what_is_new_reads_as_zeros(
    keeper, images, source, target
):
    start(keeper, dir_pool("images", images), base(format=source))
    write_contents(images / "base", source)
    start(keeper, clone("copy", "base", format=target, capacity="24Mi"))
    keeper.assert_ready(COPY)
    assert keeper.get(COPY).status.capacity == 24 * MIB
    assert image_info(images / "copy")["virtual-size"] == 24 * MIB
    assert same_contents(images / "base", images / "copy", source, target)


def test_a_capacity_that_is_left_out_is_the_source_s(keeper, images):
    start(keeper, dir_pool("images", images), base(), clone("copy", "base", format="qcow2"))
    keeper.assert_ready(COPY)
    assert keeper.get(COPY).status.capacity == 8 * MIB
    assert keeper.planned() == {}


def test_a_smaller_capacity_is_refused_before_anything_is_done(keeper, images):
    start(keeper, dir_pool("images", images), base(), clone("copy", "base", capacity="4Mi"))
    assert "8Mi" in keeper.assert_stalled(COPY, "InvalidSpec")
    assert os.listdir(images) == ["base"]
    keeper.apply(clone("copy", "base", capacity="8Mi"))
    keeper.settle()
    keeper.assert_ready(COPY)


def test_holes_stay_holes(keeper, images):
    start(keeper, dir_pool("images", images), base(capacity="64Mi"))
    write_contents(images / "base")
    start(keeper, clone("copy", "base"))
    assert (images / "copy").stat().st_size == 64 * MIB
    assert (images / "copy").stat().st_blocks * 512 < MIB


def test_what_is_to_be_set_aside_is(keeper, images):
    start(keeper, dir_pool("images", images), base())
    write_contents(images / "base")
    start(keeper, clone("copy", "base", preallocation="Falloc"))
    assert (images / "copy").stat().st_blocks * 512 >= 8 * MIB
    assert same_contents(images / "base", images / "copy")


def test_an_overlay_is_flattened(keeper, images):
    top = volume(
        "top", "images", format="qcow2",
        backing_store={"format": "raw", "volumeRef": {"name": "base"}},
    )  # fmt: skip
    start(keeper, dir_pool("images", images), base(), top)
    write_contents(images / "base", seed=1)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 64k", str(images / "top")],
        check=True, capture_output=True,
    )  # fmt: skip
    start(keeper, clone("copy", "top", format="qcow2"), clone("plain", "top"))
    keeper.assert_ready(COPY, volume_key("plain"))
    assert "backing-filename" not in image_info(images / "copy")
    assert keeper.get(COPY).status.backing_chain == ()
    assert same_contents(images / "top", images / "copy", "qcow2", "qcow2")
    assert same_contents(images / "top", images / "plain", "qcow2", "raw")


def test_a_clone_in_another_pool(keeper, images, tmp_path):
    other = tmp_path / "other"
    start(
        keeper, dir_pool("images", images), dir_pool("other", other), base(),
        clone("copy", "base", "other", format="qcow2"),
    )  # fmt: skip
    keeper.assert_ready(COPY)
    assert same_contents(images / "base", other / "copy", "raw", "qcow2")


def test_sources_are_made_before_their_clones_whatever_their_names(keeper, images):
    start(
        keeper, dir_pool("images", images),
        clone("a", "b"), clone("b", "c", format="qcow2"), clone("c", "z"),
        volume("z", "images", capacity="1Mi"),
    )  # fmt: skip
    keeper.assert_ready(*[volume_key(name) for name in "abcz"])


def test_a_loop_of_clones_is_refused_by_name(keeper, images):
    start(keeper, dir_pool("images", images), clone("a", "b"), clone("b", "c"), clone("c", "a"))
    told = keeper.assert_stalled(volume_key("a"), "InvalidSpec")
    assert "StorageVolume/default/b" in told
    assert os.listdir(images) == []


def test_a_source_that_is_not_declared_is_waited_for_by_name(keeper, images):
    start(keeper, dir_pool("images", images), clone("copy", "base"))
    assert "StorageVolume/default/base" in keeper.assert_retrying(COPY, "NotFound")
    start(keeper, base())
    keeper.assert_ready(COPY)


def test_a_source_that_waits_for_a_pool_itself_is_waited_for_by_name(keeper, images):
    waiting = base(pool_selector={"matchLabels": {"app": "none"}})
    del waiting["spec"]["poolRef"]
    start(
        keeper,
        dir_pool("images", images),
        waiting,
        clone("copy", "base"),
        volume("other", "images", capacity="1Mi", allocation=0),
    )
    assert "not there yet" in keeper.assert_retrying(COPY, "NotFound")
    keeper.assert_ready(pool_key("images"), volume_key("other"))


def test_a_source_that_is_going_is_waited_for_by_name(keeper, images):
    start(keeper, dir_pool("images", images), base(deletion_policy="Delete"))
    keeper.apply(base(deletion_policy="Delete", suspend=True))
    keeper.delete(BASE)
    start(keeper, clone("copy", "base"))
    assert "being deleted" in keeper.assert_retrying(COPY, "InUse")
    assert os.listdir(images) == ["base"]


def test_a_source_that_somebody_writes_to_is_refused_by_name(keeper, images, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 600.0)
    start(keeper, dir_pool("images", images), base())
    writer = subprocess.Popen(
        ["sh", "-c", 'exec 3<>"$1"; echo ready; read end', "sh", str(images / "base")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert writer.stdout.readline() == b"ready\n"
        start(keeper, clone("copy", "base"))
        assert str(writer.pid) in keeper.assert_retrying(COPY, "InUse")
        assert os.listdir(images) == ["base"]
    finally:
        writer.communicate(b"end\n")
    keeper.annotate(COPY, requested_at="now")
    keeper.settle()
    keeper.assert_ready(COPY)


def test_a_source_that_is_only_read_is_cloned(keeper, images):
    start(keeper, dir_pool("images", images), base())
    reader = subprocess.Popen(
        ["sh", "-c", 'exec 3<"$1"; echo ready; read end', "sh", str(images / "base")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert reader.stdout.readline() == b"ready\n"
        start(keeper, clone("copy", "base"))
        keeper.assert_ready(COPY)
    finally:
        reader.communicate(b"end\n")


def test_the_clone_outlives_its_source(keeper, images):
    start(keeper, dir_pool("images", images), base(deletion_policy="Delete"), clone("copy", "base"))
    keeper.delete(BASE)
    keeper.settle()
    assert keeper.gone(BASE)
    assert os.listdir(images) == ["copy"]
    keeper.assert_ready(COPY)
    start(keeper, clone("copy", "base", capacity="16Mi"))
    keeper.assert_ready(COPY)
    assert keeper.get(COPY).status.capacity == 16 * MIB


def test_a_source_stays_as_it_is_while_it_is_read(keeper, images, monkeypatch):
    start(keeper, dir_pool("images", images), base(deletion_policy="Delete"))
    write_contents(images / "base")
    reading, go_on = threading.Event(), threading.Event()
    fill = copying.fill

    def slowly(filling, work):
        reading.set()
        assert go_on.wait(60)
        fill(filling, work)

    monkeypatch.setattr(copying, "fill", slowly)
    keeper.apply(clone("copy", "base"))
    keeper.reconcile()
    assert reading.wait(60)
    keeper.apply(base(deletion_policy="Delete", capacity="16Mi"))
    keeper.reconcile()
    assert "copy" in keeper.assert_retrying(BASE, "InUse")
    assert (images / "base").stat().st_size == 8 * MIB
    keeper.delete(BASE)
    keeper.reconcile()
    assert "copy" in keeper.assert_retrying(BASE, "InUse")
    assert (images / "base").exists()
    go_on.set()
    keeper.settle(12)
    assert keeper.gone(BASE)
    assert os.listdir(images) == ["copy"]
    keeper.assert_ready(COPY)


def test_reflink_always_is_refused_where_extents_can_not_be_shared(keeper, images):
    start(
        keeper, dir_pool("images", images), base(),
        clone("copy", "base", format="qcow2", reflink="Always"),
    )  # fmt: skip
    assert "reflink" in keeper.assert_stalled(COPY, "Unsupported")
    assert os.listdir(images) == ["base"]


@pytest.mark.root
def test_extents_are_shared_where_they_can_be(keeper, mounted):
    images = mounted("xfs") / "images"
    start(keeper, dir_pool("images", images), base())
    write_contents(images / "base")
    start(
        keeper,
        clone("copy", "base", reflink="Always", capacity="16Mi"),
        clone("own", "base", reflink="Never"),
    )  # fmt: skip
    keeper.assert_ready(COPY, volume_key("own"))
    assert same_contents(images / "base", images / "copy")
    assert same_contents(images / "base", images / "own")
    assert _shared(images / "copy")
    assert not _shared(images / "own")


def _shared(path):
    argv = ["filefrag", "-v", str(path)]
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return any("shared" in line.rpartition(":")[2] for line in told.splitlines()[3:])


def of(namespace, manifest):
    manifest["metadata"]["namespace"] = namespace
    return manifest


def test_a_volume_of_another_namespace_can_be_cloned_where_both_pools_are_for_it(
    keeper, images, tmp_path
):
    golden = volume("golden", "images", capacity="1Mi")
    start(
        keeper,
        dir_pool("images", images, allowed_namespaces=["blue", "golden"]),
        dir_pool("other", tmp_path / "other"),
        of("golden", golden),
        of("blue", clone("copy", "golden/golden", "other")),
        of("red", clone("theirs", "golden/golden", "other")),
    )
    keeper.assert_ready(Key("StorageVolume", "blue", "copy"))
    told = keeper.assert_stalled(Key("StorageVolume", "red", "theirs"), "NamespaceNotAllowed")
    assert "'images'" in told


def test_a_directory_can_not_be_cloned(keeper, images):
    start(keeper, dir_pool("images", images), base(format="dir"), clone("copy", "base"))
    assert "directory" in keeper.assert_stalled(COPY, "Unsupported")
    start(keeper, volume("raw", "images", capacity="1Mi"), clone("dir", "raw", format="dir"))
    keeper.assert_stalled(volume_key("dir"), "Unsupported")


def test_the_plan_says_where_the_contents_come_from(keeper, images):
    keeper.apply(dir_pool("images", images), base(), clone("copy", "base", format="qcow2"))
    (examined,) = keeper.plans()
    plans = {item.resource.metadata.name: item.plan for item in examined.volumes}
    (action,) = plans["copy"].actions
    assert "StorageVolume/default/base" in action.reason
    assert action.long
    assert not plans["copy"].refusals
    assert not images.exists()


def test_a_clone_that_somebody_replaced_is_a_loss_and_not_made_anew(keeper, images):
    start(keeper, dir_pool("images", images), base(), clone("copy", "base"))
    (images / "copy").unlink()
    keeper.settle()
    keeper.assert_stalled(COPY, "VolumeMissing")
    start(keeper, clone("copy", "base", recreation="IfMissing"))
    keeper.assert_ready(COPY)
    keeper.assert_ready(pool_key("images"))
