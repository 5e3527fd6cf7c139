"""Pools that run full in the midst of work: nothing half-made is left, and it goes on once there is
room."""

import os
import random

import pytest

from backends import errors
from controller import contents
from controller.admitting import Command
from controller.contents import Selection
from controller.secrets import FileSecrets
from controller.transfers import Transfers, Wanted
from tests.filling.conftest import clone, same_contents, write_contents
from tests.keeper import (
    dir_pool,
    image_info,
    make_image,
    operation,
    operation_key,
    volume,
    volume_key,
)

DISK = volume_key("disk")
KIB, MIB = 2**10, 2**20
SMALL, LARGE = "8Mi", "40Mi"
GROWN = {"capacity": LARGE, "resize": {"allocate": True}}
SPARSE = {"capacity": SMALL, "allocation": "0"}
LUKS = {"encryption": {"format": "luks", "secretRef": {"name": "key"}}}

ROOMS = (0, 64 * KIB, 20 * MIB)
"""Bytes that are left, so that space runs out at an early, at a later and at a late step."""

MADE = {
    "raw": {"capacity": LARGE},
    "raw, written": {"capacity": LARGE, "preallocation": "Full"},
    "qcow2": {"format": "qcow2", "capacity": LARGE, "preallocation": "Falloc"},
    "qcow2, written": {"format": "qcow2", "capacity": LARGE, "preallocation": "Full"},
    "encrypted raw": {"capacity": LARGE, **LUKS},
}

pytestmark = pytest.mark.root


@pytest.fixture
def small(mounted):
    """A pool's directory on a file system of 128 MiB."""
    return mounted("ext4") / "images"


@pytest.fixture
def keeper(keeper, tmp_path):
    """The keeper, with a secret and a pool."""
    directory = tmp_path / "secrets"
    directory.mkdir(mode=0o700)
    (directory / "key").touch(mode=0o600)
    (directory / "key").write_bytes(b"a passphrase")
    keeper.secrets = FileSecrets(directory)
    keeper.engine = keeper.engine_of_boot("boot-1")
    return keeper


class Ballast:
    """A file beside a pool that takes what is free, but for so much."""

    def __init__(self, pool, room):
        self._path = pool.parent / "ballast"
        with self._path.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(64 * KIB)):
                    pass
            except OSError:
                os.fsync(file)
            file.truncate(max(0, file.tell() - room))
        os.sync()

    def drop(self):
        self._path.unlink()
        os.sync()


def attempts(keeper, *documents):
    keeper.apply(*documents)
    for _ in range(3):
        keeper.reconcile()
        assert keeper.engine.jobs.idle(120)
    keeper.reconcile()
    assert keeper.engine.jobs.idle(120)


def free(path):
    os.sync()
    facts = os.statvfs(path)
    return facts.f_bfree * facts.f_frsize


def assert_done_once_there_is_room(keeper, small, room, wanted):
    """Nothing is left of it until then, and what stood there stands."""
    ballast = Ballast(small, room)
    stood, before = os.listdir(small), free(small)
    attempts(keeper, wanted)
    assert "NoSpace" in keeper.reasons(DISK)
    assert keeper.truth(DISK, "Stalled") is None
    assert os.listdir(small) == stood
    assert before - free(small) < MIB
    ballast.drop()
    keeper.annotate(DISK, requested_at="now")
    keeper.settle(12)
    keeper.assert_ready(DISK)
    assert os.listdir(small) == ["disk"]


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("kind", MADE)
def test_a_volume_is_made_once_there_is_room(keeper, small, kind, room):
    keeper.apply(dir_pool("images", small))
    keeper.settle()
    assert_done_once_there_is_room(keeper, small, room, volume("disk", "images", **MADE[kind]))
    assert (small / "disk").stat().st_blocks * 512 >= 40 * MIB


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_volume_grows_once_there_is_room(keeper, small, format, room):
    declared = {**SPARSE, "format": format}
    keeper.apply(dir_pool("images", small), volume("disk", "images", **declared))
    keeper.settle()
    write_contents(small / "disk", format)
    was = (small / "disk").read_bytes()
    (small.parent.parent / "was").write_bytes(was)
    wanted = volume("disk", "images", **{**declared, **GROWN})
    assert_done_once_there_is_room(keeper, small, room, wanted)
    assert same_contents(small.parent.parent / "was", small / "disk", format, format)
    assert image_info(small / "disk")["virtual-size"] == 40 * MIB


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("kind", ["clone", "converted clone", "file", "web"])
def test_a_volume_is_filled_once_there_is_room(keeper, small, tmp_path, site, kind, room):
    path = tmp_path / "large"
    path.write_bytes(os.urandom(MIB) * 40)
    file = {"file": {"path": str(path), "format": "raw"}}
    keeper.apply(dir_pool("images", small), dir_pool("other", tmp_path / "other"))
    if kind.endswith("clone"):
        keeper.apply(volume("base", "other", source=file))
        format = "qcow2" if kind.startswith("conv") else "raw"
        wanted = clone("disk", "base", format=format)
    elif kind == "file":
        wanted = volume("disk", "images", source=file)
    else:
        site.files["/image"] = path.read_bytes()
        http = {"url": f"{site.url}/image", "format": "raw"}
        wanted = volume("disk", "images", source={"http": http})
    keeper.settle(12)
    assert_done_once_there_is_room(keeper, small, room, wanted)
    format = "qcow2" if kind.startswith("conv") else "raw"
    assert same_contents(path, small / "disk", "raw", format)


def upload(keeper, data):
    def run(target, selection, work):
        pieces = (data[start : start + MIB] for start in range(0, len(data), MIB))
        return contents.write(target, selection, pieces, work)

    wanted = Wanted(volume=DISK, command=Command.UPLOAD, selection=Selection())
    try:
        Transfers(keeper.engine).begin(wanted, run).outcome.result(120)
    finally:
        assert keeper.engine.jobs.idle(120)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_upload_is_told_that_there_is_no_room(keeper, small, tmp_path, format, room):
    image = tmp_path / "image"
    if format == "raw":
        image.write_bytes(os.urandom(MIB) * 40)
    else:
        make_image(image, "40M", options=["-o", "preallocation=full"])
    declared = {"format": format, "capacity": LARGE, "allocation": "0"}
    keeper.apply(dir_pool("images", small), volume("disk", "images", **declared))
    keeper.settle()
    path = small / "disk"
    old, ballast = path.read_bytes(), Ballast(small, room)
    with pytest.raises(errors.NoSpace):
        upload(keeper, image.read_bytes())
    assert os.listdir(small) == ["disk"]
    assert path.stat().st_size == len(old)
    if format == "qcow2":
        assert path.read_bytes() == old
    keeper.reconcile()
    keeper.assert_ready(DISK)
    ballast.drop()
    upload(keeper, image.read_bytes())
    assert path.read_bytes() == image.read_bytes()
    keeper.settle()
    keeper.assert_ready(DISK)


WIPED = {
    "raw": {},
    "qcow2": {"format": "qcow2"},
    "qcow2, written": {"format": "qcow2", "preallocation": "Full"},
    "encrypted raw": LUKS,
    "encrypted qcow2": {"format": "qcow2", **LUKS},
}
NEXT_TO_NOTHING = 64 * KIB


@pytest.mark.parametrize("algorithm", ["random", "trim"])
@pytest.mark.parametrize("kind", WIPED)
def test_a_wipe_needs_next_to_no_room(keeper, small, kind, algorithm):
    declared = {"capacity": SMALL, **WIPED[kind]}
    keeper.apply(dir_pool("images", small), volume("disk", "images", **declared))
    keeper.settle()
    path, secret = small / "disk", random.Random(3).randbytes(MIB)
    with path.open("r+b") as file:
        file.seek(4 * MIB)
        file.write(secret)
    Ballast(small, NEXT_TO_NOTHING)
    attempts(keeper, operation("gone", "disk", "Wipe", wipe={"algorithm": algorithm}))
    assert keeper.get(operation_key("gone")).status.phase == "Succeeded"
    assert secret[:4096] not in path.read_bytes()
    keeper.settle()
    keeper.assert_ready(DISK)
    assert os.listdir(small) == ["disk"]


def test_shared_extents_are_wiped_once_there_is_room_for_them(keeper, mounted):
    small = mounted("xfs") / "images"
    wiped = {"deletion_policy": "Delete", "wipe_on_delete": {"algorithm": "random"}}
    keeper.apply(dir_pool("images", small), volume("disk", "images", capacity=LARGE, **wiped))
    keeper.settle()
    contents = random.Random(3).randbytes(40 * MIB)
    (small / "disk").write_bytes(contents)
    keeper.apply(clone("copy", "disk", reflink="Always"))
    keeper.settle()
    ballast = Ballast(small, 20 * MIB)
    keeper.delete(DISK)
    attempts(keeper)
    keeper.assert_retrying(DISK, "NoSpace")
    assert "NoSpace" in keeper.reasons(DISK)
    assert (small / "disk").stat().st_size == 40 * MIB
    ballast.drop()
    keeper.settle()
    assert keeper.gone(DISK)
    assert os.listdir(small) == ["copy"]
    assert (small / "copy").read_bytes() == contents
