"""Who uses a file or a device is found and named, and this process's own handles are not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from backends.host import users

Mounter = Callable[[str], pathlib.Path]

HOLD = """
import fcntl, os, struct, sys
flags, action, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
fd = os.open(path, flags)
whole = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)
if action == 'flock':
    fcntl.flock(fd, fcntl.LOCK_EX)
if action == 'posix':
    fcntl.lockf(fd, fcntl.LOCK_EX)
if action == 'ofd':
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole)
if action == 'stand':
    os.fchdir(fd)
    os.close(fd)
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(*argv: object) -> Iterator[int]:
    """A program that says a line once it is ready, and ends when it is told nothing more."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*map(str, argv)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield process.pid
        finally:
            process.stdin.close()


def holding(
    path: pathlib.Path, action: str = "open", flags: int = os.O_RDWR
) -> contextlib.AbstractContextManager[int]:
    return held(sys.executable, "-c", HOLD, flags, action, path)


def users_of(path: pathlib.Path | str) -> tuple[str, ...]:
    fd = os.open(path, os.O_PATH)
    try:
        return users.users_of(fd)
    finally:
        os.close(fd)


def made(directory: pathlib.Path) -> pathlib.Path:
    path = directory / "volume"
    path.write_bytes(bytes(65536))
    return path


KINDS = ["", pytest.param("btrfs", marks=pytest.mark.root)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("action", "flags", "words"),
    [
        ("open", os.O_RDONLY, "has it open for reading"),
        ("open", os.O_WRONLY, "has it open for writing"),
        ("flock", os.O_RDWR, "has it open for writing, with a lock"),
        ("posix", os.O_RDWR, "has it open for writing, with a lock"),
        ("ofd", os.O_RDWR, "has it open for writing, with a lock"),
    ],
)
def test_a_process_that_uses_a_file_is_named(
    tmp_path: pathlib.Path, mounted: Mounter, kind: str, action: str, flags: int, words: str
) -> None:
    path = made(mounted(kind) if kind else tmp_path)
    assert users_of(path) == ()
    with holding(path, action, flags) as pid:
        program = os.path.basename(sys.executable)
        (found,) = users_of(path)
        assert re.fullmatch(rf"python3?[.0-9]* \(pid {pid}\) {words}", found), (found, program)
    assert users_of(path) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_that_runs_has_its_file_mapped(
    tmp_path: pathlib.Path, mounted: Mounter, kind: str
) -> None:
    path = (mounted(kind) if kind else tmp_path) / "shell"
    shutil.copy(os.path.realpath("/bin/sh"), path)
    with held(path, "-c", "echo; read line") as pid:
        assert users_of(path) == (f"shell (pid {pid}) has it mapped into memory",)


def test_another_name_of_the_file_makes_no_difference(tmp_path: pathlib.Path) -> None:
    path, other = made(tmp_path), tmp_path / "other"
    os.link(path, other)
    with holding(other) as pid:
        assert any(f"(pid {pid})" in user for user in users_of(path))


def test_a_file_that_only_has_the_same_number_elsewhere_does_not_count(
    tmp_path: pathlib.Path,
) -> None:
    path, other = made(tmp_path), tmp_path / "other"
    other.write_bytes(b"x")
    with holding(other, "ofd"):
        assert users_of(path) == ()


def test_own_handles_and_locks_do_not_count(tmp_path: pathlib.Path) -> None:
    path = made(tmp_path)
    with path.open("r+b") as first, path.open("r+b") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.lockf(second, fcntl.LOCK_EX)
        assert users_of(path) == ()


def test_a_process_that_works_in_a_directory_is_named(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "volume"
    directory.mkdir()
    with holding(directory, "stand", os.O_RDONLY) as pid:
        (found,) = users_of(directory)
        assert found.endswith(f"(pid {pid}) works in it")
    assert users_of(directory) == ()


def test_a_virtual_machine_is_named_by_its_guest(tmp_path: pathlib.Path) -> None:
    path = made(tmp_path)
    qemu = tmp_path / "qemu-system-x86_64"
    qemu.symlink_to(os.path.realpath(sys.executable))
    with held(
        qemu, "-c", HOLD, os.O_RDWR, "open", path, "-name", "guest=web1,debug-threads=on"
    ) as pid:
        assert users_of(path) == (
            f"virtual machine 'web1' (qemu-system-x86_64, pid {pid}) has it open for writing",
        )


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_the_image_lock_of_qemu_is_named(tmp_path: pathlib.Path, format: str) -> None:
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", format, str(path), "1M"], check=True)
    argv = ["qemu-io", "-f", format, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("length\n")
        process.stdin.flush()
        process.stdout.readline()
        found = users_of(path)
        process.stdin.close()
    assert found == (
        f"qemu-io (pid {process.pid}) has it open for writing, under qemu's image lock",
    )


@pytest.mark.root
def test_loop_devices_and_what_is_mounted_of_them_are_named(
    tmp_path: pathlib.Path, mounted: Mounter
) -> None:
    point = mounted("ext4")
    device = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE", str(point)], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert users_of(tmp_path / "ext4.img") == (f"loop device {device} stands on it",)
    assert users_of(device) == (f"it is mounted on {point}",)


@pytest.mark.root
def test_a_mount_in_another_namespace_is_named(tmp_path: pathlib.Path) -> None:
    with loop_device(tmp_path) as device:
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        point = tmp_path / "point"
        point.mkdir()
        command = f"mount {device} {point} && echo && exec cat"
        with held("unshare", "-m", "sh", "-c", command) as pid:
            assert users_of(device) == (f"it is mounted on {point} for cat (pid {pid})",)
        assert users_of(device) == ()


@pytest.mark.root
def test_users_of_a_partition_are_users_of_the_disk(tmp_path: pathlib.Path) -> None:
    with loop_device(tmp_path, "-P") as device:
        # Told to the kernel itself, which may know no partition tables.
        subprocess.run(["addpart", device, "1", "2048", "32768"], check=True)
        part = f"{device}p1"
        subprocess.run(["mkfs.ext4", "-q", part], check=True)
        point = tmp_path / "point"
        point.mkdir()
        subprocess.run(["mount", part, str(point)], check=True)
        try:
            name = os.path.basename(part)
            assert users_of(device) == (f"its partition {name} is mounted on {point}",)
            assert users_of(part) == (f"it is mounted on {point}",)
        finally:
            subprocess.run(["umount", str(point)], check=True)


@pytest.mark.root
def test_swap_on_a_device_is_named(tmp_path: pathlib.Path) -> None:
    with loop_device(tmp_path) as device:
        subprocess.run(["mkswap", "-q", device], check=True, capture_output=True)
        subprocess.run(["swapon", device], check=True)
        try:
            assert users_of(device) == ("it is swap space in use",)
        finally:
            subprocess.run(["swapoff", device], check=True)


@pytest.mark.root
def test_a_device_that_a_process_has_open_is_in_use(tmp_path: pathlib.Path) -> None:
    with loop_device(tmp_path) as device:
        assert users_of(device) == ()
        with holding(pathlib.Path(device)) as pid:
            (found,) = users_of(device)
            assert found.endswith(f"(pid {pid}) has it open for writing")
        own = os.open(device, os.O_RDWR | os.O_EXCL)
        try:
            assert users_of(device) == ()
        finally:
            os.close(own)


@contextlib.contextmanager
def loop_device(directory: pathlib.Path, *options: str) -> Iterator[str]:
    image = directory / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    device = subprocess.run(
        ["losetup", "-f", "--show", *options, str(image)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
