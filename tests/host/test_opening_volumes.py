"""A volume's contents are opened as they are declared, and held; nothing else is opened."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator

import pytest

from backends import blockvolumes, errors
from backends.base import BackendContext, Pool, Volume
from backends.dir import DirBackend
from backends.host.marks import MarkStore
from backends.registry import pool_type
from backends.spec import Permissions, PoolSpecBase, Target, VolumeSpec
from tests.images import samples

MIB = 2**20


class Place:
    """A pool's directory with its backend."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.path = directory / "pool"
        self.path.mkdir()
        self.marks = MarkStore(directory)
        self.backend = DirBackend(BackendContext(marks=self.marks))
        spec = PoolSpecBase(target=Target(path=str(self.path)))
        self.pool = Pool(
            uid="p", resource="StoragePool/p", name="p", spec=spec, type=pool_type("dir")
        )

    def volume(self, name: str, format: str | None = "raw", **spec: object) -> Volume:
        fields = {"poolRef": {"name": "p"}, "capacity": "1Mi", **spec}
        return Volume(
            uid=f"uid-{name}",
            resource=f"StorageVolume/default/{name}",
            name=name,
            spec=VolumeSpec.model_validate(fields),
            format=format,
            capacity=MIB,
            permissions=Permissions(),
        )

    def mark(self, volume: Volume) -> None:
        fd = os.open(self.path / volume.name, os.O_RDONLY)
        try:
            self.marks.write(fd, volume.mark("Created"))
        finally:
            os.close(fd)


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    return Place(tmp_path)


def test_a_raw_volume_is_taken_at_its_word(place: Place) -> None:
    volume = place.volume("disk")
    samples.make(place.path / "disk", "qcow2", 20 * MIB)
    length = (place.path / "disk").stat().st_size
    with place.backend.open_volume(place.pool, volume) as opened:
        assert (opened.kind, opened.format, opened.encryption) == ("file", "raw", None)
        assert opened.size == opened.capacity == length
        assert os.pread(opened.fd, 4, 0) == b"QFI\xfb"


def test_an_image_is_described_by_its_header(place: Place) -> None:
    samples.make(place.path / "disk", "qcow2", 20 * MIB)
    with place.backend.open_volume(place.pool, place.volume("disk", "qcow2")) as opened:
        assert (opened.format, opened.capacity) == ("qcow2", 20 * MIB)
        shown = subprocess.run(
            ["qemu-img", "info", "-f", "qcow2", opened.path],
            pass_fds=opened.pass_fds, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "virtual size: 20 MiB" in shown


def test_what_is_opened_stays_the_same_when_its_name_goes_to_another(place: Place) -> None:
    path = place.path / "disk"
    path.write_bytes(b"first")
    with place.backend.open_volume(place.pool, place.volume("disk")) as opened:
        path.unlink()
        path.write_bytes(b"other")
        shown = subprocess.run(
            ["cat", opened.path], pass_fds=opened.pass_fds, capture_output=True, check=True
        ).stdout
        assert shown == os.pread(opened.fd, 9, 0) == b"first"


def test_an_overlay_with_a_relative_name_is_opened_in_its_own_directory(place: Place) -> None:
    samples.make(place.path / "base", "raw", 2 * MIB)
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top"]
    subprocess.run(words, cwd=place.path, check=True)
    with place.backend.open_volume(place.pool, place.volume("top", "qcow2")) as opened:
        command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", opened.path]
        target = place.path / "copy"
        subprocess.run([*command, str(target)], pass_fds=opened.pass_fds, check=True)
        assert target.stat().st_size == 2 * MIB


@pytest.mark.parametrize("write", [False, True])
def test_a_link_is_not_followed(place: Place, tmp_path: pathlib.Path, write: bool) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (place.path / "disk").symlink_to(tmp_path / "outside")
    volume = place.volume("disk")
    with (
        pytest.raises(errors.Inaccessible, match="symbolic link"),
        place.backend.open_volume(place.pool, volume, write=write),
    ):
        pass


@pytest.mark.parametrize("write", [False, True])
def test_a_missing_volume_is_not_found(place: Place, write: bool) -> None:
    with (
        pytest.raises(errors.NotFound),
        place.backend.open_volume(place.pool, place.volume("disk"), write=write),
    ):
        pass
    assert list(place.path.iterdir()) == []
    assert place.backend.users(place.pool, place.volume("disk")) == ()


def test_only_our_own_volume_is_opened_for_writing(place: Place) -> None:
    volume, path = place.volume("disk"), place.path / "disk"
    path.write_bytes(bytes(MIB))
    with (
        pytest.raises(errors.OwnedByOther),
        place.backend.open_volume(place.pool, volume, write=True),
    ):
        pass
    place.mark(volume)
    with place.backend.open_volume(place.pool, volume, write=True) as opened:
        os.pwrite(opened.fd, b"data", 0)
    assert path.read_bytes()[:4] == b"data"


@pytest.mark.parametrize("write", [False, True])
def test_an_image_that_became_something_else_is_refused(place: Place, write: bool) -> None:
    volume = place.volume("disk", "qcow2")
    (place.path / "disk").write_bytes(bytes(MIB))
    place.mark(volume)
    with (
        pytest.raises(errors.FormatChanged, match="declared qcow2"),
        place.backend.open_volume(place.pool, volume, write=write),
    ):
        pass


def test_the_capacity_of_an_encrypted_raw_volume_is_its_contents(place: Place) -> None:
    (place.path / "disk").write_bytes(samples.luks1(2 * MIB, 3 * MIB))
    volume = place.volume("disk", encryption={"secretRef": {"name": "s"}})
    with place.backend.open_volume(place.pool, volume) as opened:
        assert (opened.format, opened.encryption) == ("raw", "luks")
        assert (opened.size, opened.capacity) == (3 * MIB, MIB)


def test_a_volume_that_lost_its_encryption_is_refused(place: Place) -> None:
    (place.path / "disk").write_bytes(bytes(MIB))
    volume = place.volume("disk", encryption={"secretRef": {"name": "s"}})
    with (
        pytest.raises(errors.FormatChanged, match="encrypt"),
        place.backend.open_volume(place.pool, volume),
    ):
        pass


def test_users_of_a_volume_are_named(place: Place) -> None:
    path = place.path / "disk"
    path.write_bytes(b"x")
    with subprocess.Popen(["tail", "-f", str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        found = place.backend.users(place.pool, place.volume("disk"))
        process.terminate()
    assert found == (f"tail (pid {process.pid}) has it open for reading",)


@pytest.fixture
def device(tmp_path: pathlib.Path) -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("needs root for a loop device")
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(3 * MIB))
    words = ["losetup", "-f", "--show", str(image)]
    name = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield name
    finally:
        subprocess.run(["losetup", "-d", name], check=True)


@pytest.mark.root
def test_a_block_device_is_opened_by_a_link(device: str, tmp_path: pathlib.Path) -> None:
    link = tmp_path / "by-id"
    link.symlink_to(device)
    with blockvolumes.opened(str(link)) as opened:
        assert (opened.kind, opened.format) == ("block", "raw")
        assert opened.size == opened.capacity == 3 * MIB
        assert os.pread(opened.fd, MIB, 0) == (tmp_path / "disk.img").read_bytes()[:MIB]


@pytest.mark.root
def test_a_block_device_is_opened_for_writing_by_one_alone(device: str) -> None:
    with (
        blockvolumes.opened(device, write=True),
        pytest.raises(errors.InUse),
        blockvolumes.opened(device, write=True),
    ):
        pass
    with blockvolumes.opened(device, write=True) as opened:
        os.pwrite(opened.fd, b"data", 0)


@pytest.mark.root
def test_another_device_than_the_expected_one_is_refused(device: str) -> None:
    with (
        pytest.raises(errors.Inaccessible, match="another device"),
        blockvolumes.opened(device, expected=lambda facts: False),
    ):
        pass


@pytest.mark.root
def test_a_device_that_lost_its_encryption_is_refused(device: str) -> None:
    with (
        pytest.raises(errors.FormatChanged, match="no LUKS header"),
        blockvolumes.opened(device, encrypted=True),
    ):
        pass


@pytest.mark.parametrize("use", [blockvolumes.opened, blockvolumes.users_of])
def test_a_file_is_no_device(tmp_path: pathlib.Path, use: Callable[[str], object]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(errors.Inaccessible, match="not a block device"):
        getattr(use(str(path)), "__enter__", lambda: None)()
