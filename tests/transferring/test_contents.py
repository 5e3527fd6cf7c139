"""Contents that go out of a volume and into another are the same, holes included."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import errors
from backends.base import Progress, Work
from backends.host import kernel
from backends.images import holes, transferring
from backends.images.transferring import Checksum, Hole
from tests.images import samples
from tests.keeper import mark_as_corrupt
from tests.transferring.streams import (
    BLOCK,
    KIB,
    MIB,
    allocated,
    download,
    opened,
    patterned,
    plain,
    upload,
)

patterns = st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=8)
quiet = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quiet
@given(pattern=patterns, cut=st.tuples(st.integers(0, 200_000), st.integers(0, 200_000)))
def test_any_part_of_any_pattern_is_read_as_it_is(pattern, cut) -> None:
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "disk"
        contents = patterned(path, pattern)
        offset, length = min(cut[0], len(contents)), cut[1]
        wanted = contents[offset : offset + length] if length else contents[offset:]
        assert plain(download(path, offset=offset, length=length)) == wanted
        dense = download(path, offset=offset, length=length, sparse=False)
        assert plain(dense) == wanted
        assert not [item for item in dense if isinstance(item, Hole)]


@quiet
@given(pattern=patterns)
def test_a_copy_takes_no_more_space_than_the_data(pattern) -> None:
    with tempfile.TemporaryDirectory() as made:
        source, target = Path(made) / "source", Path(made) / "target"
        contents = patterned(source, pattern)
        target.write_bytes(b"\xff" * len(contents))
        upload(target, download(source))
        assert target.read_bytes() == contents
        data = sum(blocks for full, blocks in pattern if full) * BLOCK
        assert allocated(target) <= data + 64 * KIB


@quiet
@given(
    pattern=patterns,
    offset=st.integers(0, 3 * MIB),
    old=st.sampled_from([b"\0", b"\xee"]),
)
def test_a_part_is_written_where_it_belongs_and_nothing_else_changes(pattern, offset, old) -> None:
    with tempfile.TemporaryDirectory() as made:
        source, target = Path(made) / "source", Path(made) / "target"
        contents = patterned(source, pattern)
        before = old * (5 * MIB)
        target.write_bytes(before)
        upload(target, download(source), offset=offset)
        after = before[:offset] + contents + before[offset + len(contents) :]
        assert target.read_bytes() == after


def test_a_hole_takes_the_space_of_what_was_there(disk: Path) -> None:
    disk.write_bytes(os.urandom(4 * MIB))
    upload(disk, [Hole(4 * MIB)])
    assert disk.read_bytes() == bytes(4 * MIB)
    assert allocated(disk) == 0


def test_a_file_system_without_holes_gets_zeros(
    tmp_path: Path, mounted: Callable[[str], Path]
) -> None:
    disk = mounted("ramfs") / "disk"
    disk.write_bytes(b"\xff" * MIB)
    upload(disk, [Hole(MIB // 2)], offset=100)
    assert disk.read_bytes() == (b"\xff" * 100 + bytes(MIB // 2) + b"\xff" * (MIB - MIB // 2 - 100))
    assert plain(download(disk)) == disk.read_bytes()


@pytest.mark.parametrize("offset", [0, 1, 511, 4096, 5000])
@pytest.mark.parametrize("length", [1, 4095, 4096, 300_000])
def test_a_hole_on_a_device_becomes_zeros(
    disk: Path, device: Callable[[Path], Path], offset: int, length: int
) -> None:
    disk.write_bytes(b"\xff" * MIB)
    loop = device(disk)
    upload(loop, [Hole(length), b"x"], offset=offset)
    expected = b"\xff" * offset + bytes(length) + b"x"
    assert loop.read_bytes() == expected + b"\xff" * (MIB - len(expected))


def test_zeros_of_a_device_are_not_sent(disk: Path, device: Callable[[Path], Path]) -> None:
    with disk.open("r+b") as file:
        file.seek(MIB + 5)
        file.write(b"data")
    pieces = download(device(disk))
    assert plain(pieces) == disk.read_bytes()
    sent = sum(len(item) for item in pieces if not isinstance(item, Hole))
    assert sent <= 64 * KIB


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200_000)), max_size=6))
def test_looking_for_zeros_changes_nothing(pattern) -> None:
    data = b"".join((b"\1" if full else b"\0") * length for full, length in pattern)
    assert plain([*transferring.with_holes(data)]) == data


def test_what_would_not_fit_is_refused_before_anything_is_written(disk: Path) -> None:
    disk.write_bytes(b"\xaa" * MIB)
    for offset, length in [(0, MIB + 1), (MIB, 1), (2 * MIB, 0)]:
        with pytest.raises(errors.OutOfRange, match="ends at byte 1048576"):
            upload(disk, [b"x"], offset=offset, length=length)
    assert disk.read_bytes() == b"\xaa" * MIB


@pytest.mark.parametrize("piece", [b"12345", Hole(5)])
def test_nothing_is_written_past_the_length(disk: Path, piece: transferring.Piece) -> None:
    disk.write_bytes(b"\xaa" * 100)
    with pytest.raises(errors.OutOfRange, match="More was sent than fits"):
        upload(disk, [b"ab", piece], offset=10, length=6)
    assert disk.read_bytes() == b"\xaa" * 10 + b"ab" + b"\xaa" * 88


def test_a_download_ends_where_the_volume_does(disk: Path) -> None:
    assert len(plain(download(disk, offset=4 * MIB - 10, length=100))) == 10
    assert download(disk, offset=4 * MIB) == []
    with pytest.raises(errors.OutOfRange, match="nothing at byte 4194305"):
        download(disk, offset=4 * MIB + 1)


def test_an_encrypted_volume_is_written_with_its_header(disk: Path) -> None:
    with opened(disk, capacity=2 * MIB, encryption="luks") as volume:
        assert transferring.writable(volume).end == 4 * MIB


def test_a_volume_that_only_a_client_reaches_is_refused(disk: Path) -> None:
    with opened(disk) as volume:
        remote = dataclasses.replace(volume, fd=None, path="rbd:pool/image")
        with pytest.raises(errors.Unsupported, match="network client"):
            next(transferring.read(remote, transferring.Span(0, 1), Work()))


def test_progress_ends_at_the_whole(disk: Path) -> None:
    seen: list[Progress] = []
    download(disk, work=Work(report=seen.append))
    assert seen[-1] == Progress(done=4 * MIB, total=4 * MIB)
    assert [item.done for item in seen] == sorted({item.done for item in seen})


def test_a_stop_is_heeded_at_the_next_piece(disk: Path) -> None:
    disk.write_bytes(b"\xaa" * 4 * MIB)
    stop = threading.Event()
    work = Work(report=lambda progress: stop.set(), cancel=stop)
    with pytest.raises(errors.Cancelled):
        download(disk, work=work)
    stop.clear()
    with pytest.raises(errors.Cancelled):
        upload(disk, [bytes(MIB)] * 4, work=work)
    assert disk.read_bytes() == bytes(MIB) + b"\xaa" * 3 * MIB


def test_a_full_file_system_is_no_space(mounted: Callable[[str], Path]) -> None:
    target = mounted("ext4") / "disk"
    with target.open("wb") as file:
        file.truncate(1024 * MIB)
    with pytest.raises(errors.NoSpace, match="No space left"):
        upload(target, [os.urandom(MIB)] * 256)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_checksum_is_that_of_the_contents(disk: Path, algorithm: str) -> None:
    with disk.open("r+b") as file:
        file.seek(3 * MIB - 7)
        file.write(b"something")
    checksum = Checksum(algorithm)
    for piece in download(disk):
        checksum.add(piece)
    wanted = hashlib.new(algorithm, disk.read_bytes()).hexdigest()
    assert checksum.hex == wanted
    checksum.require(wanted.upper())
    with pytest.raises(errors.ChecksumMismatch, match=wanted):
        checksum.require("0" * len(wanted))


def test_what_is_written_out_meanwhile_is_what_came(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    begin = kernel.begin_writing_out

    def noted(fd: int, offset: int, length: int) -> None:
        asked.append((offset, length))
        begin(fd, offset, length)

    monkeypatch.setattr(kernel, "begin_writing_out", noted)
    monkeypatch.setattr(transferring, "WRITTEN_OUT_AFTER", 256 * KIB)
    data = os.urandom(MIB + 5)
    upload(disk, [data[at : at + 100 * KIB] for at in range(0, len(data), 100 * KIB)], offset=7)
    assert disk.read_bytes()[7 : 7 + len(data)] == data
    assert asked == [(7 + 300 * KIB * number, 300 * KIB) for number in range(3)]


def test_an_unknown_checksum_is_refused() -> None:
    with pytest.raises(errors.InvalidSpec, match="sha256 or sha512"):
        Checksum("md5")


def test_holes_are_cleared_in_place_of_data_only(disk: Path) -> None:
    disk.write_bytes(b"\xaa" * MIB)
    fd = os.open(disk, os.O_RDWR)
    try:
        holes.clear(fd, 5000, 500_000, lambda offset: None)
        assert [*holes.extents(fd, 0, MIB)] == [
            (0, 8192, True), (8192, 500_000 // 4096 * 4096, False),
            (500_000 // 4096 * 4096, MIB, True),
        ]  # fmt: skip
        holes.clear(fd, MIB, 2 * MIB, lambda offset: None)
    finally:
        os.close(fd)
    assert disk.stat().st_size == MIB


class TestImages:
    """Images with a header are looked at before anybody else can open them."""

    def make(self, path: Path, *arguments: str, format: str = "qcow2") -> bytes:
        samples.qemu_img("create", "-q", "-f", format, *arguments)
        return path.read_bytes()

    def send(
        self,
        target: Path,
        data: bytes,
        *,
        format: str = "qcow2",
        backing: str | None = None,
        encryption: str | None = None,
    ) -> None:
        facts = {"format": format, "encryption": encryption}
        with opened(target, capacity=64 * MIB, **facts) as volume:
            span = transferring.writable(volume)
            writer = transferring.Writer(volume, span, Work(), backing=backing)
            for start in range(0, len(data), 100_000):
                writer.put(data[start : start + 100_000])
            writer.finish()

    @pytest.fixture
    def target(self, tmp_path: Path) -> Path:
        path = tmp_path / "target"
        path.touch()
        return path

    @pytest.mark.parametrize("format", ["qcow2", "vmdk", "vpc", "vdi", "qed", "qcow"])
    def test_an_image_arrives_whole(self, tmp_path: Path, target: Path, format: str) -> None:
        source, raw = tmp_path / "source", tmp_path / "raw"
        raw.write_bytes(os.urandom(8 * MIB))
        convert = ["qemu-img", "convert", "-f", "raw", "-O", format, str(raw), str(source)]
        subprocess.run(convert, check=True)
        self.send(target, source.read_bytes(), format=format)
        assert target.read_bytes() == source.read_bytes()
        compare = ["qemu-img", "compare", "-f", "raw", "-F", format, str(raw), str(target)]
        subprocess.run(compare, check=True, capture_output=True)

    def test_another_format_is_refused(self, tmp_path: Path, target: Path) -> None:
        source = tmp_path / "source"
        image = self.make(source, str(source), "1M", format="qed")
        with pytest.raises(errors.ImageRefused, match="It is qed"):
            self.send(target, image)

    def test_an_image_on_another_is_refused(self, tmp_path: Path, target: Path) -> None:
        base, source = tmp_path / "base", tmp_path / "source"
        self.make(base, str(base), "1M", format="raw")
        image = self.make(source, "-F", "raw", "-b", str(base), str(source))
        with pytest.raises(errors.ImageRefused, match="stands on another image"):
            self.send(target, image)
        self.send(target, image, backing=str(base))
        assert target.read_bytes() == image

    def test_an_image_with_its_data_elsewhere_is_refused(
        self, tmp_path: Path, target: Path
    ) -> None:
        source = tmp_path / "source"
        image = self.make(source, "-o", f"data_file={tmp_path}/data", str(source), "1M")
        with pytest.raises(errors.ImageRefused, match="in other files"):
            self.send(target, image)

    @pytest.mark.parametrize("encrypted", [True, False])
    def test_an_image_is_encrypted_where_the_volume_is(
        self, tmp_path: Path, target: Path, encrypted: bool
    ) -> None:
        source = tmp_path / "source"
        options = ["encrypt.format=luks", "encrypt.key-secret=s", "encrypt.iter-time=10"]
        secret = ["--object", "secret,id=s,data=geheim", "-o", ",".join(options)]
        image = self.make(source, *(secret if encrypted else ()), str(source), "1M")
        with pytest.raises(errors.ImageRefused, match="encrypt"):
            self.send(target, image, encryption=None if encrypted else "luks")
        self.send(target, image, encryption="luks" if encrypted else None)
        assert target.read_bytes() == image

    def test_a_corrupt_image_is_refused(self, tmp_path: Path, target: Path) -> None:
        source = tmp_path / "source"
        self.make(source, str(source), "1M")
        mark_as_corrupt(source)
        with pytest.raises(errors.ImageRefused, match="corrupt"):
            self.send(target, source.read_bytes())

    def test_a_larger_image_than_declared_is_refused(self, tmp_path: Path, target: Path) -> None:
        source = tmp_path / "source"
        image = self.make(source, str(source), "65M")
        with pytest.raises(errors.ImageRefused, match="65Mi"):
            self.send(target, image)

    def test_a_part_is_refused(self, target: Path) -> None:
        with (
            opened(target, format="qcow2", capacity=MIB) as volume,
            pytest.raises(errors.Unsupported, match="in parts"),
        ):
            transferring.writable(volume, offset=4096)

    def test_more_than_an_image_can_take_is_refused(self, target: Path) -> None:
        with opened(target, format="qcow2", capacity=MIB) as volume:
            span = transferring.writable(volume)
            assert span.end < 18 * MIB
