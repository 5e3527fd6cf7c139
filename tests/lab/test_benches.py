"""The benches in short form: their ratios go to the lab's log, and what they made is looked at.

How fast anything was fails no test: the guest has one processor, and its host other work.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.host import commands
from tests.bench import copying, creating, downloading, probing, wiping
from tests.images import samples
from tests.lab.spare import Spares

MIB = 2**20


@pytest.fixture(autouse=True)
def shown(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """What a bench prints is for who reads the log, whether the test fails or not."""
    yield
    said = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{said}", end="")


@pytest.mark.parametrize("reflink", ["Auto", "Never"])
def test_clones(tmp_path: Path, reflink: copying.Reflink) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    copying.make(source, 32 * MIB)
    copying.clone(source, target, reflink)
    assert filecmp.cmp(source, target, shallow=False)
    if reflink == "Auto":
        copying.main(str(tmp_path), 32, rounds=1)


def test_wipes_of_a_file(tmp_path: Path) -> None:
    wiping.main(str(tmp_path), 32, rounds=1)
    assert list(tmp_path.iterdir()) == []


def test_wipes_of_a_device(device: Spares) -> None:
    disk = device(32 * MIB)
    wiping.main(str(disk), 32, rounds=1)
    wiping.wipe(disk, "zero")
    assert not any(disk.read_bytes())


def test_downloads(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    downloading.make(source, 101 * MIB)
    downloading.download(source, target)
    assert filecmp.cmp(source, target, shallow=False)
    assert target.stat().st_blocks * 512 <= 3 * MIB
    downloading.main(str(tmp_path), 300, rounds=1)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_new_images_take_no_process(tmp_path: Path, format: str) -> None:
    before = commands.spawned()
    creating.ours(tmp_path, format, 20)
    assert commands.spawned() == before
    for path in tmp_path.iterdir():
        facts = samples.info(path)
        assert (facts["format"], facts["virtual-size"]) == (format, creating.SIZE)
        path.unlink()
    if format == "raw":
        creating.main(str(tmp_path), 25, rounds=1)


def test_headers(tmp_path: Path) -> None:
    for path in probing.make(tmp_path, 20):
        header = samples.probe(path)
        assert (header.format, header.capacity) == ("qcow2", 20 * 2**30)
    probing.main(str(tmp_path), 500)
