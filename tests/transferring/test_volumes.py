"""Contents of declared volumes: who may have them moved, and what stands there afterwards."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import errors
from backends.images.transferring import Hole, Piece
from controller.admitting import Command, Waits
from tests import keeper as keeping
from tests.keeper import dir_pool, volume, volume_key
from tests.transferring.sites import Site
from tests.transferring.streams import MIB

WEB = volume_key("web")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.settle()
    yield made
    made.store.close()


def image(path: Path, data: bytes) -> bytes:
    raw = path.with_suffix(".raw")
    raw.write_bytes(data)
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True
    )
    return path.read_bytes()


def test_what_is_uploaded_is_downloaded(site: Site) -> None:
    path = site.declare("web")
    data = os.urandom(MIB)
    moved = site.upload([Hole(MIB), data, Hole(MIB)], offset=MIB, checksum="sha256")
    assert moved.length == 3 * MIB
    assert moved.checksum == hashlib.sha256(bytes(MIB) + data + bytes(MIB)).hexdigest()
    assert path.read_bytes() == bytes(2 * MIB) + data + bytes(MIB)
    assert site.download() == path.read_bytes()
    assert site.download(offset=2 * MIB, length=10) == data[:10]
    site.settle()
    site.assert_ready(WEB)


def test_what_is_known_to_be_too_much_is_refused_at_once(site: Site) -> None:
    path = site.declare("web")
    with pytest.raises(errors.OutOfRange):
        site.upload([b"x"], expected=4 * MIB + 1)
    assert path.read_bytes() == bytes(4 * MIB)


def test_an_image_takes_the_place_of_the_old_one_whole(site: Site, tmp_path: Path) -> None:
    path = site.declare(
        "web", format="qcow2", permissions={"mode": "0640"}, deletionPolicy="Delete"
    )
    before, mark = path.stat(), keeping.marked(path)
    data = image(tmp_path / "new.qcow2", os.urandom(2 * MIB) + bytes(2 * MIB))
    site.upload([data])
    assert path.read_bytes() == data
    assert path.stat().st_mode == before.st_mode
    assert keeping.marked(path) == mark
    site.settle()
    site.assert_ready(WEB)
    assert os.listdir(site.pool) == ["web"]
    assert site.download() == data


def test_a_smaller_image_grows_to_what_is_declared(site: Site, tmp_path: Path) -> None:
    path = site.declare("web", format="qcow2")
    site.upload([image(tmp_path / "new.qcow2", os.urandom(MIB))])
    site.settle()
    site.assert_ready(WEB)
    assert keeping.image_info(path)["virtual-size"] == 4 * MIB


@pytest.mark.parametrize("fault", ["cut", "checksum", "format", "too large"])
def test_an_image_that_does_not_arrive_leaves_the_old_one(
    site: Site, tmp_path: Path, fault: str
) -> None:
    path = site.declare("web", format="qcow2")
    before = keeping.tree(site.pool)
    data = image(tmp_path / "new.qcow2", os.urandom(2 * MIB))

    def cut() -> Iterator[Piece]:
        yield data[:MIB]
        raise errors.Interrupted("The stream was cut off.")

    problems = {
        "cut": (cut(), {}, errors.Interrupted),
        "checksum": ([data], {"checksum": "sha256", "announced": "0" * 64},
                     errors.ChecksumMismatch),
        "format": ([b"x" * MIB], {}, errors.ImageRefused),
        "too large": ([image(tmp_path / "large", bytes(5 * MIB))], {}, errors.ImageRefused),
    }  # fmt: skip
    pieces, options, error = problems[fault]
    with pytest.raises(error):
        site.upload(pieces, **options)  # type: ignore[arg-type]
    assert path.read_bytes() == before[str(path)][-1]
    kept = [".poolkeeper"] if fault == "cut" else []  # for the rest of it to come
    assert sorted(os.listdir(site.pool)) == [*kept, "web"]
    site.settle()
    site.assert_ready(WEB)


def test_a_new_image_is_the_way_out_of_one_that_was_overwritten(site: Site, tmp_path: Path) -> None:
    path = site.declare("web", format="qcow2")
    path.write_bytes(bytes(MIB))
    site.settle()
    site.assert_stalled(WEB, "FormatChanged")
    with pytest.raises(errors.FormatChanged):
        site.admit(Command.DOWNLOAD)
    site.upload([image(tmp_path / "new.qcow2", os.urandom(MIB))])
    site.settle()
    site.assert_ready(WEB)


def test_what_stands_on_a_volume_protects_it(site: Site) -> None:
    site.declare("web")
    site.declare(
        "top", format="qcow2", backingStore={"volumeRef": {"name": "web"}, "format": "raw"}
    )
    for command in (Command.UPLOAD, Command.WIPE):
        with pytest.raises(errors.InUse, match="top"):
            site.admit(command)
    site.admit(Command.DOWNLOAD)


def test_who_uses_a_volume_is_named(site: Site) -> None:
    path = site.declare("web")
    holder = subprocess.Popen(["sleep", "100"], stdin=path.open("rb"))
    try:
        for command in (Command.UPLOAD, Command.WIPE):
            with pytest.raises(errors.InUse, match=rf"sleep \(pid {holder.pid}\)"):
                site.admit(command)
        site.admit(Command.DOWNLOAD)
    finally:
        holder.kill()
        holder.wait()


def test_what_is_not_ready_is_waited_for(site: Site) -> None:
    with pytest.raises(Waits, match="not declared"):
        site.admit(Command.WIPE)
    site.apply(volume("web", "images", capacity="4Mi", allocation=0))
    with pytest.raises(Waits, match="CreateVolume goes first"):
        site.admit(Command.WIPE)
    site.settle()
    site.admit(Command.WIPE)
    site.apply(volume("web", "images", capacity="4Mi", allocation=0, suspend=True))
    with pytest.raises(Waits, match="suspended"):
        site.admit(Command.WIPE)
    site.apply(volume("web", "images", capacity="4Mi", allocation=0))
    site.apply(dir_pool("images", site.pool, state="Inactive"))
    site.settle()
    with pytest.raises(Waits, match="not running"):
        site.admit(Command.DOWNLOAD)


def test_what_is_only_observed_is_read_and_not_written(site: Site) -> None:
    (site.pool / "web").write_bytes(b"theirs")
    site.apply(volume("web", "images", adoption="Observe"))
    site.settle()
    assert site.download() == b"theirs"
    for command in (Command.UPLOAD, Command.WIPE):
        with pytest.raises(errors.OwnedByOther):
            site.admit(command)


def test_another_ones_file_is_neither_read_nor_written(site: Site) -> None:
    (site.pool / "web").write_bytes(b"theirs")
    site.apply(volume("web", "images", capacity="4Mi", adoption="Never"))
    site.settle()
    for command in Command:
        with pytest.raises(errors.AlreadyExists):
            site.admit(command)
