"""New images hold what is written to them, show what they stand on, and leave nothing else."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence

import pytest

from backends import errors
from backends.host import commands
from backends.images import creating
from backends.images.creating import ImageRequest
from tests.images import samples

Mounter = Callable[[str], pathlib.Path]

MIB, GIB = 2**20, 2**30


def run(argv: Sequence[str]) -> None:
    commands.run(argv)


@pytest.mark.parametrize("format", ["qcow2", "vdi", "vmdk", "vpc", "qed"])
def test_an_image_holds_what_is_written_to_it(tmp_path: pathlib.Path, format: str) -> None:
    source, path = tmp_path / "source", tmp_path / "image"
    source.write_bytes(os.urandom(MIB))
    creating.create(ImageRequest(format, MIB), str(path), run)
    samples.qemu_img("convert", "-n", "-f", "raw", "-O", format, source, path)
    samples.qemu_img("compare", "-f", "raw", "-F", format, source, path)


@pytest.mark.parametrize("format", ["qcow", "qcow2", "qed"])
@pytest.mark.parametrize("name", ["base", "of a, plan", "a=b,,c", "a:b", " a ", ".b", "größe"])
def test_an_overlay_shows_what_stands_below(tmp_path: pathlib.Path, format: str, name: str) -> None:
    base, path = tmp_path / name, tmp_path / "top"
    base.write_bytes(os.urandom(MIB))
    request = ImageRequest(format, 2 * MIB, backing_path=str(base), backing_format="raw")
    creating.create(request, str(path), run)
    samples.qemu_img("convert", "-O", "raw", path, tmp_path / "seen")
    assert (tmp_path / "seen").read_bytes() == base.read_bytes() + bytes(MIB)


def test_full_is_written_and_not_only_set_aside(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "image"
    creating.create(ImageRequest("raw", 4 * MIB, preallocation="Full"), str(path), run)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 4 * MIB
    finally:
        os.close(fd)


def test_a_sparse_image_may_be_larger_than_the_file_system(tmp_path: pathlib.Path) -> None:
    for format in ("raw", "qcow2"):
        path = tmp_path / format
        creating.create(ImageRequest(format, 2**43, allocation=0), str(path), run)
        assert samples.probe(path).capacity == 2**43
        assert path.stat().st_blocks * 512 < MIB


def test_a_new_raw_image_is_its_owners_alone(tmp_path: pathlib.Path) -> None:
    former = os.umask(0)
    try:
        creating.create(ImageRequest("raw", MIB), str(tmp_path / "image"), run)
    finally:
        os.umask(former)
    assert (tmp_path / "image").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_failure_says_why(tmp_path: pathlib.Path, format: str) -> None:
    with pytest.raises(errors.StorageError, match="No such file or directory"):
        creating.create(ImageRequest(format, MIB), str(tmp_path / "missing" / "image"), run)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_where_nothing_is_copied_on_write_nothing_is_turned_off(
    mounted: Mounter, kind: str, format: str
) -> None:
    path = mounted(kind) / "image"
    creating.create(ImageRequest(format, 4 * MIB, nocow=True), str(path), run)
    assert samples.probe(path).capacity == 4 * MIB


TOO_LARGE = (
    ImageRequest("raw", GIB),
    ImageRequest("raw", 2 * GIB, allocation=GIB),
    ImageRequest("raw", GIB, preallocation="Falloc"),
    ImageRequest("raw", GIB, preallocation="Full"),
    ImageRequest("qcow2", GIB, preallocation="Falloc"),
    ImageRequest("qcow2", GIB, preallocation="Full"),
)


@pytest.mark.root
@pytest.mark.parametrize("asked", TOO_LARGE, ids=str)
def test_a_full_file_system_is_told_and_can_be_used_again(
    mounted: Mounter, asked: ImageRequest
) -> None:
    point = mounted("ext4")
    before = set(point.iterdir())
    with pytest.raises(errors.NoSpace, match="No space left on device") as caught:
        creating.create(asked, str(point / "image"), run)
    assert caught.value.hint
    # What is left under the one name is the caller's to discard, and nothing else is there.
    assert set(point.iterdir()) - before <= {point / "image"}
    (point / "image").unlink(missing_ok=True)
    creating.create(ImageRequest("raw", 50 * MIB), str(point / "image"), run)
    assert (point / "image").stat().st_blocks * 512 >= 50 * MIB
