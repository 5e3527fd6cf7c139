"""Each pass of a wipe reaches the device, in the published order, and nothing else is touched."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable
from typing import get_args

import pytest

from backends import errors
from backends.base import OpenVolume, Progress, Work
from backends.images import wiping
from backends.spec import Wipe
from tests.images import samples
from tests.images.opened import loop_device, made, opened

Mounter = Callable[[str], pathlib.Path]

MIB = 2**20
R = "random"
PUBLISHED = {
    "zero": ["00"],
    "nnsa": [R, R, "00", "verify"],
    "dod": [R, "00", "ff", "verify"],
    "bsi": ["ff", "fe", "fd", "fb", "f7", "ef", "df", "bf", "7f"],
    "gutmann": [
        R, R, R, R, "55", "aa", "924924", "492492", "249249",
        "00", "11", "22", "33", "44", "55", "66", "77", "88", "99", "aa", "bb", "cc", "dd", "ee",
        "ff", "924924", "492492", "249249", "6db6db", "b6db6d", "db6db6", R, R, R, R,
    ],
    "schneier": ["00", "ff", R, R, R, R, R],
    "pfitzner7": [R] * 7,
    "pfitzner33": [R] * 33,
    "random": [R],
}  # fmt: skip
"""What is written in turn, as scrub's manual page has it."""


def test_every_algorithm_of_a_manifest_is_known() -> None:
    declared = get_args(Wipe.model_fields["algorithm"].annotation)
    assert set(declared) == {*PUBLISHED, "trim"} == {*get_args(wiping.Algorithm)}
    assert set(wiping.PASSES) == set(PUBLISHED)


@pytest.mark.parametrize("algorithm", sorted(PUBLISHED))
def test_the_passes_are_those_of_scrub(tmp_path: pathlib.Path, algorithm: str) -> None:
    if shutil.which("scrub") is None:
        pytest.skip("scrub is not installed")
    path = tmp_path / "file"
    path.write_bytes(os.urandom(65536))
    pattern = "fillzero" if algorithm == "zero" else algorithm
    argv = ["scrub", "-f", "-S", "-p", pattern, str(path)]
    said = subprocess.run(argv, check=True, capture_output=True, text=True)
    passes = re.findall(r"^scrub: (random|verify|0x[0-9a-f]+) *\|", said.stdout + said.stderr, re.M)
    assert [word.removeprefix("0x") for word in passes] == PUBLISHED[algorithm]


class Recorder:
    """Keeps what stands in a file after each pass; it is not read through what is wiped."""

    def __init__(self, path: pathlib.Path, size: int) -> None:
        self.seen: dict[int, bytes] = {}
        self.reports: list[Progress] = []

        def report(progress: Progress) -> None:
            self.reports.append(progress)
            count, rest = divmod(progress.done, size)
            if rest == 0:
                self.seen[count] = path.read_bytes()

        self.work = Work(report=report)


def is_pass(contents: bytes, word: str) -> bool:
    if word != R:
        pattern = bytes.fromhex(word)
        return contents == (pattern * (len(contents) // len(pattern) + 1))[: len(contents)]
    blocks = {contents[start : start + 4096] for start in range(0, len(contents), 4096)}
    packed = len(zlib.compress(contents, 1))
    return packed > len(contents) and len(blocks) == -(-len(contents) // 4096)


def require(recorder: Recorder, algorithm: str) -> None:
    words = PUBLISHED[algorithm]
    assert sorted(recorder.seen) == list(range(len(words) + 1))
    last = ""
    for number, word in enumerate(words, start=1):
        last = last if word == "verify" else word
        assert is_pass(recorder.seen[number], last), (number, word)
    random = [recorder.seen[number] for number, word in enumerate(words, start=1) if word == R]
    assert len(set(random)) == len(random)


@pytest.mark.root
@pytest.mark.parametrize("algorithm", sorted(PUBLISHED))
def test_each_pass_reaches_a_device(tmp_path: pathlib.Path, algorithm: str) -> None:
    size = wiping.PIECE + 5 * 4096 + 512
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(size))
    recorder = Recorder(image, size)
    with loop_device(image) as device, opened(device) as volume:
        wiping.wipe(volume, algorithm, recorder.work)  # type: ignore[arg-type]
    require(recorder, algorithm)
    assert recorder.reports[-1] == Progress(
        done=size * len(PUBLISHED[algorithm]), total=size * len(PUBLISHED[algorithm])
    )


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "ramfs"])
@pytest.mark.parametrize("algorithm", ["nnsa", "bsi", "gutmann"])
def test_each_pass_reaches_a_file(mounted: Mounter, kind: str, algorithm: str) -> None:
    size = 70_001
    path = mounted(kind) / "volume"
    path.write_bytes(os.urandom(size))
    recorder = Recorder(path, size)
    with opened(path) as volume:
        wiping.wipe(volume, algorithm, recorder.work)  # type: ignore[arg-type]
    require(recorder, algorithm)
    assert path.stat().st_size == size


@pytest.mark.root
def test_direct_writes_are_used_where_they_can_be_had(mounted: Mounter) -> None:
    path = mounted("ext4") / "volume"
    path.write_bytes(os.urandom(4 * MIB))
    flags: set[int] = set()

    def look(progress: Progress) -> None:
        for number in os.listdir("/proc/self/fd"):
            try:
                if os.path.samefile(f"/proc/self/fd/{number}", path):
                    text = pathlib.Path(f"/proc/self/fdinfo/{number}").read_text()
                    flags.add(int(text.split("flags:")[1].split()[0], 8))
            except OSError:
                continue

    with opened(path) as volume:
        wiping.wipe(volume, "zero", Work(report=look))
    assert any(flag & os.O_DIRECT for flag in flags)


def test_of_a_sparse_file_only_what_is_allocated_is_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "volume"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        for offset in (4096, 10 * MIB + 8192, 64 * MIB - 100):
            file.seek(offset)
            file.write(b"secret " * 1000 if offset < 60 * MIB else b"secret")
        file.truncate(64 * MIB)
    before = path.stat().st_blocks
    with opened(path) as volume:
        wiping.wipe(volume, "bsi", Work())
    contents = path.read_bytes()
    assert b"secret" not in contents
    assert contents[:4096] == bytes(4096)
    assert contents[4096 : 4096 + 7000] == b"\x7f" * 7000
    assert path.stat().st_size == 64 * MIB
    assert path.stat().st_blocks == before


def test_zeros_over_a_sparse_file_leave_a_hole_and_over_a_full_one_its_space(
    tmp_path: pathlib.Path,
) -> None:
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    with sparse.open("wb") as file:
        file.write(b"secret " * 100_000)
        file.truncate(8 * MIB)
    full.write_bytes(b"secret!!" * MIB)
    seen: list[bytes] = []
    for path in (sparse, full):

        def look(progress: Progress, path: pathlib.Path = path) -> None:
            if progress.done == progress.total:
                seen.append(path.read_bytes())

        with opened(path) as volume:
            wiping.wipe(volume, "zero", Work(report=look))
        assert path.read_bytes() == bytes(8 * MIB)
    assert set(seen) == {bytes(8 * MIB)}
    assert sparse.stat().st_blocks == 0
    assert full.stat().st_blocks * 512 >= 8 * MIB


@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
def test_the_tables_of_an_image_are_wiped_too(tmp_path: pathlib.Path, format: str) -> None:
    path = made(tmp_path / "volume", format, 8 * MIB)
    samples.qemu_img("convert", "-n", "-f", "raw", "-O", format, _data(tmp_path), path)
    size = path.stat().st_size
    with opened(path, format) as volume:
        wiping.wipe(volume, "zero", Work())
    assert path.read_bytes() == bytes(size)


def _data(directory: pathlib.Path) -> pathlib.Path:
    path = directory / "data"
    path.write_bytes(os.urandom(MIB))
    return path


@pytest.mark.root
def test_a_device_is_trimmed(tmp_path: pathlib.Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"secret!!" * MIB)
    with loop_device(image) as device, opened(device) as volume:
        wiping.wipe(volume, "trim", Work())
    assert image.stat().st_blocks == 0


@pytest.mark.root
def test_a_device_that_can_not_trim_says_so(mounted: Mounter) -> None:
    image = mounted("ramfs") / "disk.img"
    image.write_bytes(b"secret!!" * MIB)
    with (
        loop_device(image) as device,
        opened(device) as volume,
        pytest.raises(errors.Unsupported, match="can't discard"),
    ):
        wiping.wipe(volume, "trim", Work())
    assert image.read_bytes() == b"secret!!" * MIB


def test_a_file_is_trimmed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"secret!!" * MIB)
    with opened(path) as volume:
        wiping.wipe(volume, "trim", Work())
    assert (path.stat().st_size, path.stat().st_blocks) == (8 * MIB, 0)


@pytest.mark.parametrize("algorithm", ["dod", "nnsa"])
def test_what_a_device_does_not_keep_is_noticed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    path = tmp_path / "volume"
    path.write_bytes(os.urandom(MIB))
    write = os.pwrite

    def faulty(fd: int, data: memoryview, offset: int) -> int:
        if bytes(data[:1]) in (b"\xff", b"\0"):
            data = memoryview(b"kept".ljust(len(data), bytes(data[:1])))
        return write(fd, data, offset)

    with opened(path) as volume:
        monkeypatch.setattr(wiping, "_opened_directly", lambda fd: None)
        monkeypatch.setattr(os, "pwrite", faulty)
        with pytest.raises(errors.SystemFailure, match="read back at byte 0"):
            wiping.wipe(volume, algorithm, Work())  # type: ignore[arg-type]


def test_a_wipe_is_cancelled_between_pieces(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"\xa5" * (3 * wiping.PIECE))

    work = Work(report=lambda progress: progress.done and work.cancel.set())
    with opened(path) as volume, pytest.raises(errors.Cancelled):
        wiping.wipe(volume, "zero", work)
    contents = path.read_bytes()
    assert contents[: wiping.PIECE] == bytes(wiping.PIECE)
    assert contents[2 * wiping.PIECE :] == b"\xa5" * wiping.PIECE


def test_what_no_descriptor_reaches_is_refused() -> None:
    remote = OpenVolume(
        fd=None, path="rbd:pool/image", kind="network", format="raw", size=0, capacity=0
    )
    with pytest.raises(errors.Unsupported, match="network client"):
        wiping.wipe(remote, "zero", Work())
