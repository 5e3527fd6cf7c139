"""Uploads of images that break off and are gone on with."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import errors, stagedfiles
from backends.base import Work
from backends.host import staging
from controller.admitting import Command
from tests.keeper import image_info, volume_key
from tests.serving.test_data import DATA, WEB, Answer, Served, eventually
from tests.transferring.streams import MIB


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    made.declare("web", format="qcow2", capacity="16Mi", deletionPolicy="Delete")
    yield made
    made.engine.stop()
    made.server.stop()
    made.rest()
    made.store.close()


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    """A qcow2 image with 4 MiB of noise."""
    path, noise = tmp_path / "source.qcow2", tmp_path / "noise"
    noise.write_bytes(os.urandom(4 * MIB))
    command = ["qemu-img", "convert", "-O", "qcow2", str(noise), str(path)]
    subprocess.run(command, check=True)
    return path.read_bytes()


def staged(site: Served) -> list[Path]:
    return sorted((site.pool / staging.NAME).glob("*"))


def broken_off(site: Served, image: bytes) -> None:
    """Send half of an image, and break off."""
    raw = site.half_upload(image)
    eventually(lambda: any(path.stat().st_size >= len(image) // 2 for path in staged(site)))
    raw.close()
    site.rest()


def rest(site: Served, image: bytes, **query: str) -> Answer:
    reached = int(site.ask("HEAD").headers["upload-offset"])
    more = "".join(f"&{key}={value}" for key, value in query.items())
    return site.ask("PUT", f"{DATA}?offset={reached}{more}", image[reached:])


def test_the_rest_makes_the_image_whole(site: Served, image: bytes) -> None:
    before = (site.pool / "web").read_bytes()
    broken_off(site, image)
    site.settle()
    assert (site.pool / "web").read_bytes() == before
    assert sorted(path.name for path in site.pool.iterdir()) == [staging.NAME, "web"]
    assert site.ask("HEAD").headers["upload-offset"] == str(len(image) // 2)
    site.assert_ready(WEB)
    assert not site.planned()
    told = rest(site, image, checksum=f"sha256:{hashlib.sha256(image).hexdigest()}")
    assert (told.status, told.json["sha256"]) == (200, hashlib.sha256(image).hexdigest())
    assert (site.pool / "web").read_bytes() == image
    assert image_info(site.pool / "web")["format"] == "qcow2"
    assert "upload-offset" not in site.ask("HEAD").headers
    assert not (site.pool / staging.NAME).exists()
    site.settle()
    site.assert_ready(WEB)


def test_the_rest_of_another_image_is_refused_by_the_checksum(site: Served, image: bytes) -> None:
    before = (site.pool / "web").read_bytes()
    broken_off(site, os.urandom(len(image)))
    told = rest(site, image, checksum=f"sha256:{hashlib.sha256(image).hexdigest()}")
    assert (told.status, told.json["reason"]) == (422, "ChecksumMismatch")
    assert (site.pool / "web").read_bytes() == before
    assert "upload-offset" not in site.ask("HEAD").headers
    assert staged(site) == []


def test_what_is_no_image_in_the_end_is_refused_and_not_kept(site: Served, image: bytes) -> None:
    before = (site.pool / "web").read_bytes()
    broken_off(site, bytes(len(image)))
    assert rest(site, image).status == 422
    assert (site.pool / "web").read_bytes() == before
    assert staged(site) == []


def test_it_goes_on_only_where_it_broke_off(site: Served, image: bytes) -> None:
    assert site.ask("PUT", f"{DATA}?offset=4096", image[4096:]).status == 422
    broken_off(site, image)
    reached = len(image) // 2
    beyond = site.ask("PUT", f"{DATA}?offset={reached + 1}", image[reached + 1 :])
    assert f"Go on at byte {reached}" in beyond.json["message"]
    earlier = site.ask("PUT", f"{DATA}?offset={MIB}", image[MIB:])
    assert earlier.status == 200, earlier.json
    assert (site.pool / "web").read_bytes() == image


def test_one_from_the_start_forgets_what_was_kept(site: Served, image: bytes) -> None:
    broken_off(site, os.urandom(len(image)))
    assert site.ask("PUT", body=image).status == 200
    assert (site.pool / "web").read_bytes() == image
    assert not (site.pool / staging.NAME).exists()


def test_it_survives_an_agent_that_is_another_process(site: Served, image: bytes) -> None:
    broken_off(site, image)
    site.reboot("boot-2")
    site.settle()
    assert len(staged(site)) == 1
    target = site.admit(Command.DOWNLOAD)
    assert target.backend.unfinished(target.pool, target.volume) == len(image) // 2


def test_it_goes_with_its_volume(site: Served, image: bytes) -> None:
    broken_off(site, image)
    site.delete(volume_key("web"))
    site.settle()
    assert site.gone(WEB)
    assert list(site.pool.iterdir()) == []


def test_it_goes_after_a_day(site: Served, image: bytes) -> None:
    broken_off(site, image)
    (kept,) = staged(site)
    past = time.time() - stagedfiles.UNFINISHED_FOR - 1
    os.utime(kept, (past, past))
    site.settle()
    assert not (site.pool / staging.NAME).exists()
    assert "upload-offset" not in site.ask("HEAD").headers
    target = site.admit(Command.DOWNLOAD)
    going_on = target.backend.replace_volume(target.pool, target.volume, resume_at=4096)
    with pytest.raises(errors.Conflict, match="0 bytes are kept"):
        going_on.__enter__()


def test_wiping_takes_it_away(site: Served, image: bytes) -> None:
    broken_off(site, image)
    target = site.admit(Command.DOWNLOAD)
    target.backend.remake_volume(target.pool, target.volume, Work())
    assert staged(site) == []
