"""Empty qcow2 images that are written in process are those that qemu-img makes."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Sequence

import pytest

from backends import errors
from backends.images import creating
from backends.images.creating import ImageRequest
from tests.images import samples

MIB, GIB = 2**20, 2**30


def no_command(argv: Sequence[str]) -> None:
    raise AssertionError(f"{argv} was run")


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("name", ["base", "of a, plan", "größe", "x" * 200])
def test_an_overlay_is_made_in_process(tmp_path: pathlib.Path, compat: str, name: str) -> None:
    base, path = tmp_path / name, tmp_path / "top"
    base.write_bytes(os.urandom(MIB))
    request = ImageRequest(
        "qcow2", 2 * MIB, compat=compat, backing_path=str(base), backing_format="raw"
    )
    creating.create(request, str(path), no_command)
    facts = samples.info(path, "qcow2")
    assert (facts["backing-filename"], facts["backing-filename-format"]) == (str(base), "raw")
    samples.qemu_img("convert", "-O", "raw", path, tmp_path / "seen")
    assert (tmp_path / "seen").read_bytes() == base.read_bytes() + bytes(MIB)


def test_a_header_that_does_not_fit_its_cluster_is_left_to_qemu_img() -> None:
    request = ImageRequest(
        "qcow2", MIB, cluster_size=512, backing_path="/" + "x" * 600, backing_format="raw"
    )
    assert creating.commands(request, "/image") != ()


@pytest.mark.parametrize("kind", ["Metadata", "Falloc", "Full"])
def test_a_preallocated_image_is_left_to_qemu_img(kind: str) -> None:
    assert creating.commands(ImageRequest("qcow2", MIB, preallocation=kind), "/image") != ()


def test_nothing_is_replaced(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"somebody's")
    with pytest.raises(errors.AlreadyExists):
        creating.create(ImageRequest("qcow2", MIB), str(path), no_command)
    assert path.read_bytes() == b"somebody's"


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_full_file_system_is_named(mounted: Callable[[str], pathlib.Path], kind: str) -> None:
    directory = mounted(kind)
    with contextlib.suppress(OSError), (directory / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass
    huge = ImageRequest("qcow2", 2**50, cluster_size=2 * MIB)

    def fill() -> None:
        for number in range(64):
            creating.create(huge, str(directory / f"image{number}"), no_command)

    with pytest.raises(errors.NoSpace):
        fill()
