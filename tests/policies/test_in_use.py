"""What somebody uses is not deleted, shrunk or wiped; what is deleted can be wiped before."""

import contextlib
import os
import random
import subprocess
import threading

import pytest

from backends.images import wiping
from controller import retrying
from tests.keeper import dir_pool, image_info, marked, volume, volume_key

DISK = volume_key("disk")
MIB = 2**20


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.0)


def start(keeper, images, **spec):
    keeper.apply(dir_pool("images", images), disk(**spec))
    keeper.settle()
    keeper.assert_ready(DISK)


def disk(**spec):
    return volume("disk", "images", **{"capacity": "8Mi", "allocation": "0", **spec})


@contextlib.contextmanager
def used(path, mode="<"):
    """Some process has it open; its pid."""
    process = subprocess.Popen(
        ["sh", "-c", f'exec 3{mode}"$1"; echo ready; read end', "sh", str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.communicate(b"end\n")


@pytest.mark.parametrize("wipe", [None, {"algorithm": "zero"}])
def test_a_volume_in_use_is_not_deleted_until_it_is_let_go(keeper, images, wipe):
    start(keeper, images, deletion_policy="Delete", wipe_on_delete=wipe)
    (images / "disk").write_bytes(b"contents" + bytes(8 * MIB - 8))
    with used(images / "disk") as pid:
        keeper.delete(DISK)
        for _ in range(3):
            keeper.reconcile()
            assert keeper.engine.jobs.idle(60)
        assert (images / "disk").read_bytes()[:8] == b"contents"
        keeper.reconcile()
        assert f"pid {pid}" in keeper.assert_retrying(DISK, "InUse")
    keeper.settle()
    assert keeper.gone(DISK)
    assert os.listdir(images) == []


def test_a_volume_in_use_is_not_shrunk_and_may_grow(keeper, images):
    start(keeper, images)
    with used(images / "disk", mode="<>") as pid:
        keeper.apply(disk(capacity="4Mi", resize={"allowShrink": True}))
        keeper.settle()
        assert f"pid {pid}" in keeper.assert_retrying(DISK, "InUse")
        assert (images / "disk").stat().st_size == 8 * MIB
        keeper.apply(disk(capacity="12Mi"))
        keeper.settle()
        keeper.assert_ready(DISK)
    keeper.apply(disk(capacity="4Mi", resize={"allowShrink": True}))
    keeper.settle()
    assert (images / "disk").stat().st_size == 4 * MIB


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("algorithm", ["zero", "random", "trim"])
def test_a_volume_is_wiped_before_it_goes(keeper, images, tmp_path, format, algorithm):
    start(
        keeper, images,
        format=format, deletion_policy="Delete", wipe_on_delete={"algorithm": algorithm},
    )  # fmt: skip
    path = images / "disk"
    secret = random.Random(5).randbytes(MIB)
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(secret)
    kept = tmp_path / "kept"
    os.link(path, kept)  # the same blocks, under a name that stays
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert not path.exists()
    left = kept.read_bytes()
    assert secret[:4096] not in left
    if algorithm != "random":
        assert not any(left)
    verbs = [step.verb for step in keeper.store.finished_steps()]
    assert verbs[-2:] == ["WipeVolume", "DeleteVolume"]


def test_a_wipe_that_was_broken_off_begins_anew(keeper, images, monkeypatch):
    start(
        keeper, images,
        format="qcow2", deletion_policy="Delete", wipe_on_delete={"algorithm": "zero"},
    )  # fmt: skip
    begun = threading.Event()
    wipe = wiping.wipe

    def half(opened, algorithm, work):
        if begun.is_set():
            wipe(opened, algorithm, work)
            return
        os.pwrite(opened.fd, bytes(4096), 0)  # no header any more
        begun.set()
        assert work.cancel.wait(60)
        work.check()

    monkeypatch.setattr(wiping, "wipe", half)
    keeper.delete(DISK)
    keeper.reconcile()
    assert begun.wait(60)
    keeper.engine.stop()
    assert keeper.engine.jobs.idle(60)
    assert (images / "disk").exists()
    keeper.reboot("boot-1")
    keeper.settle()
    assert keeper.gone(DISK)
    assert os.listdir(images) == []


def test_a_policy_that_is_changed_to_retain_ends_the_wipe(keeper, images, monkeypatch):
    start(keeper, images, deletion_policy="Delete", wipe_on_delete={"algorithm": "zero"})
    begun, cancelled = threading.Event(), threading.Event()

    def slow(opened, algorithm, work):
        begun.set()
        assert work.cancel.wait(60)
        cancelled.set()
        work.check()

    monkeypatch.setattr(wiping, "wipe", slow)
    keeper.delete(DISK)
    keeper.reconcile()
    assert begun.wait(60)
    keeper.edit_as_an_api_server_would(DISK, deletionPolicy="Retain")
    keeper.reconcile()
    assert cancelled.wait(60)
    assert keeper.engine.jobs.idle(60)
    keeper.settle()
    assert keeper.gone(DISK)
    assert (images / "disk").stat().st_size == 8 * MIB
    assert marked(images / "disk")


def test_what_was_adopted_or_is_another_s_is_not_wiped(keeper, images):
    images.mkdir()
    (images / "disk").write_bytes(b"theirs" + bytes(8 * MIB - 6))
    start(keeper, images, deletion_policy="Delete", wipe_on_delete={"algorithm": "zero"})
    keeper.delete(DISK)
    keeper.settle()
    assert keeper.gone(DISK)
    assert (images / "disk").read_bytes()[:6] == b"theirs"


def test_a_base_is_neither_wiped_nor_deleted_while_others_stand_on_it(keeper, images):
    start(
        keeper, images,
        format="qcow2", deletion_policy="Delete", wipe_on_delete={"algorithm": "zero"},
    )  # fmt: skip
    keeper.apply(
        volume(
            "top", "images", format="qcow2",
            backing_store={"format": "qcow2", "volumeRef": {"name": "disk"}},
        )
    )  # fmt: skip
    keeper.settle()
    keeper.delete(DISK)
    keeper.settle()
    assert "top" in keeper.assert_retrying(DISK, "DeletionRefused")
    assert image_info(images / "disk")["format"] == "qcow2"
