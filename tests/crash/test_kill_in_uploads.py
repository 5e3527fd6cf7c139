"""A kill -9 in an upload of an image keeps what is known to be on the disk, and nothing more."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.base import Work
from backends.host import staging
from controller import contents
from controller.admitting import Command, Target
from controller.contents import Moved, Selection
from controller.transfers import Begun, Transfers, Wanted
from tests.keeper import run_in_child, volume_key
from tests.transferring.sites import Site
from tests.transferring.streams import MIB

WEB = volume_key("web")
SYNCED, WRITTEN = 2 * MIB, 2 * MIB + 4096


def upload(site: Site, pieces: Iterator[bytes], selection: Selection, announced: str) -> Begun:
    transfers = Transfers(site.engine)

    def run(target: Target, chosen: Selection, work: Work) -> Moved:
        synced = functools.partial(transfers.note_reached, target)
        return contents.write(target, chosen, pieces, work, announced=announced, synced=synced)

    return transfers.begin(Wanted(volume=WEB, command=Command.UPLOAD, selection=selection), run)


def test_what_was_synced_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "SYNC_EVERY", SYNCED)
    site = Site(tmp_path)
    path = site.declare("web", format="qcow2", capacity="16Mi")
    site.store.close()
    before = path.read_bytes()
    noise, source = tmp_path / "noise", tmp_path / "source"
    noise.write_bytes(os.urandom(4 * MIB))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(noise), str(source)], check=True)
    image = source.read_bytes()

    def killed() -> None:
        def pieces() -> Iterator[bytes]:
            yield image[:SYNCED]
            yield image[SYNCED:WRITTEN]
            os._exit(0)

        upload(Site(tmp_path), pieces(), Selection(), "").outcome.result()
        raise AssertionError("it was not killed")

    run_in_child(killed)
    (kept,) = (site.pool / staging.NAME).iterdir()
    assert kept.stat().st_size == WRITTEN
    assert path.read_bytes() == before

    site = Site(tmp_path)
    site.settle()
    looked = Transfers(site.engine).look(Wanted(volume=WEB, command=Command.DOWNLOAD))
    assert looked.reached == SYNCED
    with kept.open("r+b") as file:  # as a power cut may leave what was not synced
        file.seek(SYNCED)
        file.write(bytes(WRITTEN - SYNCED))
    digest = hashlib.sha256(image).hexdigest()
    selection = Selection(offset=SYNCED, checksum="sha256")
    moved = upload(site, iter([image[SYNCED:]]), selection, digest).outcome.result()
    assert moved.checksum == digest
    assert path.read_bytes() == image
    assert site.engine.jobs.idle(60)
    site.settle()
    site.assert_ready(WEB)
    assert [item.name for item in site.pool.iterdir()] == ["web"]
    site.store.close()
