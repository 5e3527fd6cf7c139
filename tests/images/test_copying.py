"""A volume that is filled from another one reads the same, in every format and on every place."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import errors
from backends.base import Progress, Work
from backends.images import copying
from backends.images.copying import Filling
from tests.images import samples
from tests.images.opened import contents, loop_device, made, opened

Mounter = Callable[[str], pathlib.Path]
Parts = list[tuple[str, int]]

KIB, MIB = 2**10, 2**20
FILESYSTEMS = ["", *(pytest.param(kind, marks=pytest.mark.root) for kind in ("xfs", "btrfs"))]
SHARING = [pytest.param(kind, marks=pytest.mark.root) for kind in ("xfs", "btrfs")]
SET_ASIDE = 256 * KIB
"""Bytes that a file system may set aside for a file that seems to grow."""

SLOW = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

parts = st.lists(
    st.tuples(
        st.sampled_from(["data", "zeros", "hole"]),
        st.one_of(
            st.integers(0, 9000),
            st.sampled_from([512, 4096, 65536, 131072, 262144, MIB]),
            st.integers(0, 700_000),
        ),
    ),
    max_size=8,
)
"""A file in parts, each of so many bytes; zeros are written and holes are not."""


def planted(path: pathlib.Path, pattern: Parts) -> pathlib.Path:
    with path.open("wb") as file:
        for kind, length in pattern:
            if kind == "hole":
                file.seek(length, os.SEEK_CUR)
            else:
                file.write(os.urandom(length) if kind == "data" else bytes(length))
        file.truncate(sum(length for _, length in pattern))
    return path


def fill(
    source: pathlib.Path | str,
    target: pathlib.Path | str,
    formats: tuple[str, str] = ("raw", "raw"),
    work: Work | None = None,
    **how: object,
) -> None:
    with opened(source, formats[0]) as one, opened(target, formats[1]) as other:
        copying.fill(Filling(one, other, **how), work or Work())  # type: ignore[arg-type]


def allocated(path: pathlib.Path) -> int:
    with path.open("rb") as file:
        os.fsync(file)
    return path.stat().st_blocks * 512


def blocks(path: pathlib.Path) -> set[int]:
    """Where its data is on the device, by fiemap."""
    allocated(path)
    done = subprocess.run(["filefrag", "-v", str(path)], capture_output=True, text=True, check=True)
    extents = re.findall(
        r"^ *[0-9]+: +[0-9]+\.\. *[0-9]+: +([0-9]+)\.\. *([0-9]+):", done.stdout, re.M
    )
    return {block for first, last in extents for block in range(int(first), int(last) + 1)}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path, mounted: Mounter) -> pathlib.Path:
    return mounted(request.param) if request.param else tmp_path


@pytest.mark.parametrize("place", FILESYSTEMS, indirect=True)
@pytest.mark.parametrize("reflink", ["Auto", "Never"])
@SLOW
@given(pattern=parts, more=st.sampled_from([0, 1, 4096, 1_000_003]))
def test_a_raw_copy_reads_as_cp_has_it_and_takes_no_more(
    place: pathlib.Path, reflink: str, pattern: Parts, more: int
) -> None:
    for old in place.glob("[stc]*"):
        if old.is_file():
            old.unlink()
    source = planted(place / "source", pattern)
    size = source.stat().st_size
    target = made(place / "target", "raw", size + more)
    fill(source, target, reflink=reflink)
    copied = place / "copied"
    subprocess.run(["cp", str(source), str(copied)], check=True)
    assert target.read_bytes() == copied.read_bytes() + bytes(more)
    assert allocated(target) <= allocated(source) + SET_ASIDE


@pytest.mark.parametrize("place", SHARING, indirect=True)
@pytest.mark.parametrize("reflink", ["Auto", "Always"])
@pytest.mark.parametrize("more", [0, 1, MIB])
@pytest.mark.parametrize("size", [8 * MIB, 8 * MIB + 77])
def test_extents_are_shared_where_that_can_be_had(
    place: pathlib.Path, reflink: str, more: int, size: int
) -> None:
    source = planted(place / "source", [("data", size)])
    target = made(place / "target", "raw", size + more)
    fill(source, target, reflink=reflink)
    assert len(blocks(source)) >= size // (64 * KIB)
    assert len(blocks(source) - blocks(target)) <= 1  # the last may be half the source's
    assert target.read_bytes() == source.read_bytes() + bytes(more)
    with target.open("r+b") as file:
        file.write(b"changed")
    assert source.read_bytes()[:7] != b"changed"


@pytest.mark.parametrize("place", SHARING, indirect=True)
@pytest.mark.parametrize(("reflink", "allocation"), [("Never", 0), ("Auto", 8 * MIB)])
def test_extents_are_not_shared_where_the_space_is_to_be_its_own(
    place: pathlib.Path, reflink: str, allocation: int
) -> None:
    source = planted(place / "source", [("data", 8 * MIB)])
    target = made(place / "target", "raw", 8 * MIB, allocation=allocation)
    fill(source, target, reflink=reflink)
    assert not blocks(target) & blocks(source)
    assert allocated(target) >= 8 * MIB
    assert target.read_bytes() == source.read_bytes()


def test_extents_that_have_to_be_shared_and_can_not_are_refused(tmp_path: pathlib.Path) -> None:
    source = planted(tmp_path / "source", [("data", MIB)])
    target = made(tmp_path / "target", "raw", MIB)
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.strip()
    if kind in ("xfs", "btrfs"):
        pytest.skip("the temporary directory is on a file system that shares extents")
    with pytest.raises(errors.Unsupported, match="reflink Auto"):
        fill(source, target, reflink="Always")
    image = made(tmp_path / "image", "qcow2", MIB)
    with pytest.raises(errors.Unsupported, match="raw files alone"):
        fill(source, image, ("raw", "qcow2"), reflink="Always")


def test_space_that_was_set_aside_stays_so(tmp_path: pathlib.Path) -> None:
    source = planted(tmp_path / "source", [("hole", 4 * MIB), ("data", MIB), ("hole", 3 * MIB)])
    target = made(tmp_path / "target", "raw", 8 * MIB, allocation=None)
    fill(source, target)
    assert allocated(target) >= 8 * MIB
    assert target.read_bytes() == source.read_bytes()


@pytest.fixture
def devices(tmp_path: pathlib.Path) -> Iterator[Callable[[int], str]]:
    """Loop devices that are full of what stood there before."""
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices")
    with contextlib.ExitStack() as stack:
        count = 0

        def device(size: int) -> str:
            nonlocal count
            count += 1
            image = tmp_path / f"device{count}.img"
            image.write_bytes(b"stale..." * (size // 8))
            return stack.enter_context(loop_device(image))

        yield device


DEVICE_SIZE = 8 * MIB


@pytest.mark.root
@SLOW
@given(pattern=parts)
def test_nothing_that_stood_on_a_device_shows_behind_a_hole(
    tmp_path: pathlib.Path, devices: Callable[[int], str], pattern: Parts
) -> None:
    source = planted(tmp_path / "source", pattern)
    wanted = source.read_bytes()
    device = devices(DEVICE_SIZE)
    fill(source, device)
    assert pathlib.Path(device).read_bytes() == wanted + bytes(DEVICE_SIZE - len(wanted))


@pytest.mark.root
@pytest.mark.parametrize("sector", [512, 4096])
def test_devices_with_any_sectors_are_filled(tmp_path: pathlib.Path, sector: int) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"stale..." * (DEVICE_SIZE // 8))
    pattern = [("data", 5000), ("hole", MIB), ("data", 100), ("hole", 300), ("zeros", MIB)]
    source = planted(tmp_path / "source", pattern)
    with loop_device(image, "--sector-size", str(sector)) as device:
        fill(source, device)
        found = pathlib.Path(device).read_bytes()
    assert found == source.read_bytes() + bytes(DEVICE_SIZE - source.stat().st_size)


@pytest.mark.root
def test_a_device_is_copied_to_a_file_without_its_zeros_and_to_a_device(
    tmp_path: pathlib.Path, devices: Callable[[int], str]
) -> None:
    one, other = devices(DEVICE_SIZE), devices(DEVICE_SIZE)
    with open(one, "r+b") as file:
        file.write(bytes(4 * MIB) + os.urandom(MIB) + bytes(MIB))
    target = made(tmp_path / "target", "raw", DEVICE_SIZE)
    fill(one, target)
    assert target.read_bytes() == pathlib.Path(one).read_bytes()
    assert allocated(target) <= 3 * MIB + 64 * KIB
    fill(one, other)
    assert pathlib.Path(other).read_bytes() == pathlib.Path(one).read_bytes()


@pytest.mark.root
@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
def test_an_image_is_converted_to_a_device_with_the_rest_cleared(
    tmp_path: pathlib.Path, devices: Callable[[int], str], format: str
) -> None:
    device = devices(DEVICE_SIZE)
    raw = planted(tmp_path / "raw", [("data", MIB), ("hole", 3 * MIB), ("data", 512)])
    samples.qemu_img("convert", "-f", "raw", "-O", format, raw, tmp_path / "source")
    fill(tmp_path / "source", device, (format, "raw"))
    wanted = raw.read_bytes()
    assert pathlib.Path(device).read_bytes() == wanted + bytes(DEVICE_SIZE - len(wanted))


CONVERTIBLE = ["raw", "iso", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc"]


@pytest.mark.parametrize("into", CONVERTIBLE)
@pytest.mark.parametrize("format", CONVERTIBLE)
def test_every_format_is_filled_from_every_other(
    tmp_path: pathlib.Path, format: str, into: str
) -> None:
    raw = planted(
        tmp_path / "raw", [("data", 70000), ("hole", 15 * MIB), ("zeros", 65536), ("data", 5)]
    )
    with raw.open("r+b") as file:
        file.truncate(16 * MIB)
    drivers = {"iso": "raw"}
    before, after = drivers.get(format, format), drivers.get(into, into)
    samples.qemu_img("convert", "-f", "raw", "-O", before, raw, tmp_path / "source")
    with opened(tmp_path / "source", format) as source:
        least = source.capacity
    target = made(tmp_path / "target", into, least + MIB)
    seen: list[Progress] = []
    fill(tmp_path / "source", target, (format, into), Work(report=seen.append))
    samples.qemu_img("compare", "-f", "raw", "-F", after, raw, target)
    assert samples.info(target, after)["virtual-size"] >= least + MIB
    assert seen[-1] == Progress(done=least, total=least)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert allocated(target) <= 5 * MIB


@SLOW
@given(
    pattern=parts,
    cluster=st.sampled_from([512, 4096, 65536, 2 * MIB]),
    options=st.sampled_from(
        [{}, {"extended_l2": True}, {"compat": "0.10"}, {"preallocation": "Metadata"}]
    ),
)
def test_any_pattern_survives_the_way_through_qcow2(
    tmp_path: pathlib.Path, pattern: Parts, cluster: int, options: dict[str, object]
) -> None:
    if options.get("extended_l2"):
        cluster = max(cluster, 16384)
    for name in ("source", "image", "back"):
        (tmp_path / name).unlink(missing_ok=True)
    source = planted(tmp_path / "source", pattern)
    size = source.stat().st_size
    image = made(tmp_path / "image", "qcow2", size, cluster_size=cluster, **options)
    fill(source, image, ("raw", "qcow2"))
    samples.qemu_img("check", "-q", "-f", "qcow2", image)
    back = made(tmp_path / "back", "raw", samples.probe(image).capacity)
    fill(image, back, ("qcow2", "raw"))
    assert back.read_bytes() == source.read_bytes() + bytes(-size % 512)


@pytest.mark.parametrize("into", ["raw", "qcow2"])
def test_a_backing_chain_is_flattened(tmp_path: pathlib.Path, into: str) -> None:
    base = planted(tmp_path / "of a, plan", [("data", 3 * MIB)])
    middle, top = tmp_path / "middle", tmp_path / "top"
    create = ["create", "-q", "-f", "qcow2", "-F"]
    samples.qemu_img(*create, "raw", "-b", base, middle, 4 * MIB)
    samples.qemu_img(*create, "qcow2", "-b", "middle", top)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 1M 64k", str(top)], check=True)
    target = made(tmp_path / "target", into, 5 * MIB)
    fill(top, target, ("qcow2", into))
    expected = bytearray(base.read_bytes() + bytes(2 * MIB))
    expected[MIB : MIB + 65536] = b"\7" * 65536
    assert "backing-filename" not in samples.info(target, into)
    assert contents(target, into, tmp_path / "seen") == bytes(expected)


def test_a_backing_image_without_a_format_is_raw_whatever_it_holds(tmp_path: pathlib.Path) -> None:
    """What a guest wrote into its raw disk is no header, even where an overlay gives no format."""
    (tmp_path / "secret").write_bytes(b"the host's own".ljust(MIB))
    base = tmp_path / "base"
    samples.qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", tmp_path / "secret", base)
    header = base.read_bytes()
    top = tmp_path / "top"
    top.write_bytes(samples.qcow2(MIB, backing=os.fsencode(base)))
    samples.qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "raw", top, MIB)
    target = made(tmp_path / "target", "raw", MIB)
    fill(top, target, ("qcow2", "raw"))
    assert b"the host's own" not in target.read_bytes()
    assert target.read_bytes()[: len(header)] == header[:MIB]


def test_a_header_that_names_what_is_not_declared_is_not_followed(tmp_path: pathlib.Path) -> None:
    image = made(tmp_path / "image", "qcow2", MIB)
    target = made(tmp_path / "target", "raw", MIB)
    with opened(image, "qcow2") as source, opened(target) as into:
        hostile = replace(source, distrusted="It stands on /etc/shadow by its header.")
        with pytest.raises(errors.FormatChanged, match="/etc/shadow"):
            copying.fill(Filling(hostile, into), Work())


def test_a_smaller_target_is_refused(tmp_path: pathlib.Path) -> None:
    source = planted(tmp_path / "source", [("data", 2 * MIB)])
    target = made(tmp_path / "target", "raw", MIB)
    with pytest.raises(errors.InvalidSpec, match="not smaller"):
        fill(source, target)
    assert target.read_bytes() == bytes(MIB)
    with opened(source) as volume:
        assert copying.capacity_of_clone(None, volume, name="v") == 2 * MIB
        assert copying.capacity_of_clone(3 * MIB, volume, name="v") == 3 * MIB
        with pytest.raises(errors.InvalidSpec, match="'v'"):
            copying.capacity_of_clone(MIB, volume, name="v")


@pytest.mark.parametrize("formats", [("raw", "raw"), ("qcow2", "raw")])
def test_a_copy_is_cancelled(tmp_path: pathlib.Path, formats: tuple[str, str]) -> None:
    source = made(tmp_path / "source", formats[0], MIB)
    target = made(tmp_path / "target", "raw", MIB)
    work = Work()
    work.cancel.set()
    with pytest.raises(errors.Cancelled):
        fill(source, target, formats, work)


def test_a_copy_is_cancelled_on_its_way(tmp_path: pathlib.Path) -> None:
    source = planted(tmp_path / "source", [("data", MIB), ("hole", MIB), ("data", MIB)])
    target = made(tmp_path / "target", "raw", 3 * MIB)
    work = Work(report=lambda progress: work.cancel.set())
    with pytest.raises(errors.Cancelled):
        fill(source, target, work=work)


@pytest.mark.root
@pytest.mark.parametrize("formats", [("raw", "raw"), ("raw", "qcow2"), ("qcow2", "raw")])
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_full_file_system_is_named(
    tmp_path: pathlib.Path, mounted: Mounter, kind: str, formats: tuple[str, str]
) -> None:
    target_directory = mounted(kind)
    space = os.statvfs(target_directory)
    size = space.f_bfree * space.f_frsize // MIB * MIB + 8 * MIB
    raw, piece = tmp_path / "raw", os.urandom(MIB)
    with raw.open("wb") as file:
        for _ in range(size // MIB):
            file.write(piece)
    source = raw
    if formats[0] == "qcow2":
        source = tmp_path / "source"
        samples.qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, source)
    target = made(target_directory / "target", formats[1], size)
    with pytest.raises(errors.NoSpace):
        fill(source, target, formats)


def test_an_image_that_a_machine_writes_is_in_use(tmp_path: pathlib.Path) -> None:
    source = made(tmp_path / "source", "qcow2", MIB)
    target = made(tmp_path / "target", "raw", MIB)
    pipe = subprocess.PIPE
    argv = ["qemu-io", "-f", "qcow2", str(source)]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("length\n")
        process.stdin.flush()
        process.stdout.readline()
        with pytest.raises(errors.InUse, match="lock"):
            fill(source, target, ("qcow2", "raw"))
        process.stdin.close()
