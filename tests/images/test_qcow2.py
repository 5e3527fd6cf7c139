"""Empty qcow2 images that are written in process are those that qemu-img makes."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import errors
from backends.images import creating, probing
from backends.images.creating import ImageRequest
from backends.images.formats import FORMATS, max_capacity
from tests.images import samples

MIB, GIB = 2**20, 2**30
SLOW = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def no_command(argv: Sequence[str]) -> None:
    raise AssertionError(f"{argv} was run")


@st.composite
def requests(draw: st.DrawFn) -> ImageRequest:
    cluster = 2 ** draw(st.integers(9, 21))
    compat = draw(st.sampled_from(["0.10", "1.1", None]))
    extended = compat != "0.10" and cluster >= 16384 and draw(st.booleans())
    limit = min(max_capacity(FORMATS["qcow2"], cluster, extended_l2=extended), 2**55)
    return ImageRequest(
        "qcow2",
        draw(
            st.one_of(
                st.integers(0, min(limit, 64 * GIB)),
                st.sampled_from([0, 1, 511, 512, 513, cluster, cluster + 1, limit]),
            )
        ),
        compat=compat,
        cluster_size=cluster,
        lazy_refcounts=compat != "0.10" and draw(st.booleans()),
        extended_l2=extended,
    )


def comparable(path: pathlib.Path) -> dict[str, Any]:
    facts = samples.info(path, "qcow2")
    for name in ("filename", "actual-size"):
        facts.pop(name)
    return facts


@SLOW
@given(request=requests())
def test_qemu_img_can_not_tell_it_from_its_own(
    tmp_path: pathlib.Path, request: ImageRequest
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours, theirs):
        path.unlink(missing_ok=True)
    creating.create(request, str(ours), no_command)
    (argv,) = creating.tool_commands(request, str(theirs))
    subprocess.run(argv, check=True)
    assert comparable(ours) == comparable(theirs)
    samples.qemu_img("check", "-q", "-f", "qcow2", ours)
    fds = [os.open(path, os.O_RDONLY) for path in (ours, theirs)]
    try:
        one, other = (probing.probe(fd) for fd in fds)
        assert one == other
    finally:
        for fd in fds:
            os.close(fd)


@SLOW
@given(request=requests(), offset=st.integers(0, 2**40))
def test_what_is_written_to_it_is_kept(
    tmp_path: pathlib.Path, request: ImageRequest, offset: int
) -> None:
    path = tmp_path / "image"
    path.unlink(missing_ok=True)
    creating.create(request, str(path), no_command)
    capacity = samples.probe(path).capacity
    if capacity < 4096:
        return
    at = offset % (capacity - 4095)
    for act in (f"write -P 7 {at} 4k", f"read -P 7 {at} 4k"):
        done = subprocess.run(
            ["qemu-io", "-f", "qcow2", "-c", act, str(path)], capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert "verification failed" not in done.stdout
    samples.qemu_img("check", "-q", "-f", "qcow2", path)


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
