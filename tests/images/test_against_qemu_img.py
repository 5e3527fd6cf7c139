"""The life of an image of any format, as qemu-img sees it at each step.

What is made, written to, grown, shrunk and cloned is looked at by ``qemu-img check``, ``info`` and
``compare``. The formats and their options are those of the table that the code itself goes by.
"""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backends.base import Work
from backends.host import commands
from backends.images import copying, creating
from backends.images.copying import Filling
from backends.images.creating import ImageRequest
from backends.images.formats import FORMATS, ImageFormat, Maker, max_capacity, same
from backends.sizes import GIB, MIB, round_up
from tests.images import samples
from tests.images.opened import opened

CREATABLE = [item for item in FORMATS.values() if item.creatable]
CHECKED = ("qcow2", "qed", "vdi", "vmdk")
"""Drivers that ``qemu-img check`` knows how to check."""

PIECE = 4096


def run(argv: Sequence[str]) -> None:
    commands.run(argv)


@st.composite
def requests(draw: st.DrawFn) -> ImageRequest:
    """What can be made, within 4 GiB, and within 8 MiB where all of it is set aside."""
    item = draw(st.sampled_from(CREATABLE))
    cluster, options = None, dict[str, Any]()
    if item.cluster_sizes is not None:
        least, greatest = (size.bit_length() - 1 for size in item.cluster_sizes)
        cluster = 2 ** draw(st.integers(least, greatest))
    if item.options:
        compat = draw(st.sampled_from(["0.10", "1.1", None]))
        newer = compat != "0.10"
        options = {
            "compat": compat,
            "lazy_refcounts": newer and draw(st.booleans()),
            "extended_l2": newer and (cluster or 0) >= 16384 and draw(st.booleans()),
        }
    if item.preallocations:
        options["preallocation"] = draw(st.sampled_from([None, *sorted(item.preallocations)]))
    small = options.get("preallocation") is not None or item.maker is Maker.SELF
    limit = max_capacity(item, cluster, extended_l2=options.get("extended_l2", False))
    request = ImageRequest(item.name, 0, cluster_size=cluster, **options)
    return replace(
        request, capacity=draw(capacities(item, min(limit, 8 * MIB if small else 4 * GIB)))
    )


def capacities(item: ImageFormat, limit: int) -> st.SearchStrategy[int]:
    borders = st.sampled_from([1, 511, 512, 513, 65536, 65537, MIB])
    return borders | st.integers(0 if item.takes_empty else 1, limit)


def exact(item: ImageFormat, capacity: int) -> int:
    """What a capacity becomes."""
    return capacity if item.maker is Maker.SELF else round_up(capacity, 512)


class Image:
    """An image, and beside it a raw file of what a guest is to read from it."""

    def __init__(self, directory: pathlib.Path, request: ImageRequest) -> None:
        self.item = FORMATS[request.format]
        self.path, self.wanted = directory / "image", directory / "wanted"
        self.path.unlink(missing_ok=True)
        creating.check(request)
        creating.create(request, str(self.path), run)
        self.wanted.write_bytes(b"")
        self.has(request.capacity)

    def has(self, capacity: int) -> None:
        """It has that capacity, is as it should be, and reads as it should."""
        size = exact(self.item, capacity)
        with self.wanted.open("r+b") as file:
            file.truncate(size)
        agrees(self.path, self.item, size)
        samples.qemu_img("compare", "-f", "raw", "-F", self.item.driver, self.wanted, self.path)

    def write(self, at: int) -> None:
        """Write somewhere, where there is room for a piece."""
        sectors = (self.wanted.stat().st_size - PIECE) // 512
        if sectors < 0:
            return
        start = at % (sectors + 1) * 512
        write = ["qemu-io", "-f", self.item.driver, "-c", f"write -P 7 {start} {PIECE}"]
        subprocess.run([*write, str(self.path)], check=True, capture_output=True)
        with self.wanted.open("r+b") as file:
            file.seek(start)
            file.write(b"\7" * PIECE)

    def resize(self, capacity: int, *, shrink: bool, allocate: bool) -> None:
        creating.resize(
            self.item.name, str(self.path), capacity, shrink=shrink, allocate=allocate, run=run
        )
        self.has(capacity)

    def clone(self, request: ImageRequest) -> None:
        target = Image(self.path.parent.joinpath("clone"), request)
        formats = self.item.name, target.item.name
        with opened(self.path, formats[0]) as one, opened(target.path, formats[1]) as other:
            copying.fill(Filling(one, other), Work())
        target.wanted.write_bytes(self.wanted.read_bytes())
        target.has(request.capacity)


def agrees(path: pathlib.Path, item: ImageFormat, size: int) -> None:
    """What qemu-img and we say of an image is the same, and qemu-img finds nothing wrong."""
    facts, header = samples.info(path, item.driver), samples.probe(path)
    assert same(item.name, header.format)
    assert header.capacity == size
    assert facts["virtual-size"] == round_up(size, 512)
    assert header.cluster_size == facts.get("cluster-size")
    if item.driver in CHECKED:
        samples.qemu_img("check", "-q", "-f", item.driver, path)


def as_qemu_img_makes_it(image: Image, request: ImageRequest, theirs: pathlib.Path) -> None:
    """One that is written in process can't be told from one that qemu-img makes."""
    theirs.unlink(missing_ok=True)
    for argv in creating.tool_commands(request, str(theirs)):
        run(argv)
    assert told(image.path, image.item) == told(theirs, image.item)
    assert samples.probe(image.path) == samples.probe(theirs)


def told(path: pathlib.Path, item: ImageFormat) -> dict[str, Any]:
    facts = samples.info(path, item.driver)
    return {name: facts[name] for name in facts if name not in ("filename", "actual-size")}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    request=requests(),
    at=st.integers(0, 2**40),
    more=st.integers(0, 4 * MIB),
    less=st.integers(0, 8 * MIB),
    allocate=st.booleans(),
    target=requests(),
)
@example(
    ImageRequest("qcow2", 8 * 2**40, cluster_size=2 * MIB),
    2**42,
    1,
    0,
    False,
    ImageRequest("raw", 1),
)
def test_an_image_is_what_qemu_img_says_at_each_step(
    tmp_path: pathlib.Path, request: ImageRequest, at: int, more: int, less: int, allocate: bool,
    target: ImageRequest,
) -> None:  # fmt: skip
    (tmp_path / "clone").mkdir(exist_ok=True)
    image = Image(tmp_path, request)
    item, capacity = image.item, request.capacity
    if item.maker is Maker.QEMU_IMG and not creating.commands(request, str(image.path)):
        as_qemu_img_makes_it(image, request, tmp_path / "theirs")
    image.write(at)
    if item.grows:
        added = exact(item, capacity + more) - exact(item, capacity)
        takes_space = "Falloc" in item.preallocations and allocate and added > 0
        capacity += more
        image.resize(capacity, shrink=False, allocate=takes_space)
        image.write(at + 7)
    if item.shrinks:
        capacity = max(1, capacity - less)
        image.resize(capacity, shrink=True, allocate=False)
    source = image.wanted.stat().st_size
    if source <= 64 * MIB:
        image.clone(replace(target, capacity=source + more))
