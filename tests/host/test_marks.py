from __future__ import annotations

import errno
import json
import os
import pathlib
import stat
import subprocess
from collections.abc import Callable

import pytest

from backends import errors
from backends.host import kernel, marks

Mounter = Callable[[str], pathlib.Path]

MARK = marks.Mark("0b7c-uid", "StorageVolume/default/disk1", "Created")
OTHER = marks.Mark("ffff-uid", "StorageVolume/default/größer", "Adopted")


@pytest.fixture
def store(tmp_path: pathlib.Path) -> marks.MarkStore:
    return marks.MarkStore(tmp_path / "state")


@pytest.fixture
def pool(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "pool"
    path.mkdir()
    (path / "disk").touch()
    return path


class Opened:
    """An inode opened with O_PATH."""

    def __init__(self, path: pathlib.Path) -> None:
        self.fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def read(store: marks.MarkStore, path: pathlib.Path) -> marks.Mark | None:
    """The mark, by both ways of reading, which must agree."""
    with Opened(path) as fd:
        mark = store.read(fd)
    with Opened(path.parent) as directory:
        assert store.read_entry(directory, path.name) == mark
    return mark


def write(store: marks.MarkStore, path: pathlib.Path, mark: marks.Mark) -> None:
    with Opened(path) as fd:
        store.write(fd, mark)


def clear(store: marks.MarkStore, path: pathlib.Path) -> None:
    with Opened(path) as fd:
        store.clear(fd)


def keeps_marks_with_the_data(path: pathlib.Path) -> bool:
    try:
        os.setxattr(path, "user.poolkeeper.test", b"")
        os.removexattr(path, "user.poolkeeper.test")
    except OSError:
        return False
    return True


def kept(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    directory = tmp_path / "state" / "marks"
    return list(directory.iterdir()) if directory.exists() else []


def check_life_of_a_mark(store: marks.MarkStore, path: pathlib.Path) -> None:
    assert read(store, path) is None
    write(store, path, MARK)
    assert read(store, path) == MARK
    path.rename(path.with_name("renamed"))
    path = path.with_name("renamed")
    assert read(store, path) == MARK
    write(store, path, OTHER)
    assert read(store, path) == OTHER
    neighbour = path.with_name("neighbour")
    neighbour.touch()
    assert read(store, neighbour) is None
    clear(store, path)
    assert read(store, path) is None
    clear(store, path)


def test_a_mark_is_written_read_replaced_and_cleared(
    store: marks.MarkStore, pool: pathlib.Path
) -> None:
    check_life_of_a_mark(store, pool / "disk")


def test_a_mark_that_went_with_its_file_is_cleared(
    store: marks.MarkStore, pool: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GlusterFS, which answers so for a removed file that is still open."""

    def stale(path: str, name: str) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with Opened(pool / "disk") as fd:
        store.write(fd, MARK)
        (pool / "disk").unlink()
        monkeypatch.setattr(os, "removexattr", stale)
        store.clear(fd)


def test_a_directory_can_be_marked(store: marks.MarkStore, pool: pathlib.Path) -> None:
    (pool / "directory").mkdir()
    check_life_of_a_mark(store, pool / "directory")


def test_a_mark_lives_with_the_data_and_not_with_the_store(
    store: marks.MarkStore, pool: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    if not keeps_marks_with_the_data(pool / "disk"):
        pytest.skip("the temporary directory's file system keeps no user attributes")
    write(store, pool / "disk", MARK)
    assert kept(tmp_path) == []
    assert read(marks.MarkStore(tmp_path / "other"), pool / "disk") == MARK
    assert os.getxattr(pool / "disk", "user.poolkeeper.uid") == b"0b7c-uid"


@pytest.mark.parametrize(
    "written",
    [
        {"resource": b"StorageVolume/default/disk1", "origin": b"Created"},
        {"uid": b"u"},
        {"uid": b"u", "resource": b"r"},
        {"uid": b"u", "origin": b"Created"},
        {"uid": b"u", "resource": b"r", "origin": b"Stolen"},
        {"uid": b"", "resource": b"r", "origin": b"Created"},
        {"uid": b"u", "resource": b"r", "origin": b"\xff"},
    ],
)
def test_a_partly_written_or_foreign_mark_is_none(
    store: marks.MarkStore, pool: pathlib.Path, written: dict[str, bytes]
) -> None:
    if not keeps_marks_with_the_data(pool / "disk"):
        pytest.skip("the temporary directory's file system keeps no user attributes")
    for name, value in written.items():
        os.setxattr(pool / "disk", f"user.poolkeeper.{name}", value)
    assert read(store, pool / "disk") is None
    write(store, pool / "disk", MARK)
    assert read(store, pool / "disk") == MARK


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_mark_whose_writing_was_cut_short_is_none(
    store: marks.MarkStore, pool: pathlib.Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    if not keeps_marks_with_the_data(pool / "disk"):
        pytest.skip("the temporary directory's file system keeps no user attributes")
    write(store, pool / "disk", MARK)
    left = iter(range(steps))
    really_set = os.setxattr

    def set_until_cut(path: str, name: str, value: bytes) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        really_set(path, name, value)

    with monkeypatch.context() as patched:
        patched.setattr(os, "setxattr", set_until_cut)
        with pytest.raises(KeyboardInterrupt):
            write(store, pool / "disk", OTHER)
    assert read(store, pool / "disk") is None
    write(store, pool / "disk", OTHER)
    assert read(store, pool / "disk") == OTHER


@pytest.mark.parametrize("origin", ["", "created", "Stolen"])
def test_a_mark_that_could_not_be_read_again_is_not_written(
    store: marks.MarkStore, pool: pathlib.Path, origin: str
) -> None:
    with pytest.raises(ValueError, match="not whole"):
        write(store, pool / "disk", marks.Mark("u", "r", origin))  # type: ignore[arg-type]
    assert read(store, pool / "disk") is None


def test_a_copy_of_a_marked_files_data_is_not_marked(
    store: marks.MarkStore, pool: pathlib.Path
) -> None:
    write(store, pool / "disk", MARK)
    (pool / "copy").write_bytes((pool / "disk").read_bytes())
    assert read(store, pool / "copy") is None


def test_a_name_that_is_not_there_says_so(store: marks.MarkStore, pool: pathlib.Path) -> None:
    with Opened(pool) as directory, pytest.raises(errors.NotFound, match="missing"):
        store.read_entry(directory, "missing")


def test_a_links_target_is_neither_read_nor_marked(
    store: marks.MarkStore, pool: pathlib.Path
) -> None:
    (pool / "link").symlink_to("disk")
    (pool / "dangling").symlink_to("nowhere")
    write(store, pool / "disk", MARK)
    assert read(store, pool / "link") is None
    assert read(store, pool / "dangling") is None
    clear(store, pool / "link")
    assert read(store, pool / "disk") == MARK


@pytest.mark.parametrize("kind", ["fifo", "socket", "link"])
def test_special_files_are_marked_in_the_state_directory(
    store: marks.MarkStore, pool: pathlib.Path, tmp_path: pathlib.Path, kind: str
) -> None:
    special = pool / "special"

    def make() -> None:
        match kind:
            case "fifo":
                os.mkfifo(special)
            case "socket":
                os.mknod(special, stat.S_IFSOCK | 0o600)
            case "link":
                special.symlink_to("disk")

    make()
    assert read(store, special) is None
    write(store, special, MARK)
    assert read(store, special) == MARK
    assert read(marks.MarkStore(tmp_path / "state"), special) == MARK
    assert read(store, pool / "disk") is None
    (entry,) = kept(tmp_path)
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(entry.parent.stat().st_mode) == 0o700
    special.unlink()
    make()
    assert read(store, special) is None
    write(store, special, OTHER)
    clear(store, special)
    assert read(store, special) is None


def test_the_unreadable_file_of_an_ordinary_user_is_not_taken_for_unmarked(
    store: marks.MarkStore, pool: pathlib.Path
) -> None:
    write(store, pool / "disk", MARK)
    (pool / "disk").chmod(0)
    try:
        os.close(os.open(pool / "disk", os.O_RDONLY))
        may_read = True
    except PermissionError:
        may_read = False
    if may_read:
        assert read(store, pool / "disk") == MARK
    else:
        with pytest.raises(errors.PermissionRefused):
            read(store, pool / "disk")


def test_a_damaged_entry_is_not_taken_for_no_mark(
    store: marks.MarkStore, pool: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    os.mkfifo(pool / "fifo")
    write(store, pool / "fifo", MARK)
    (entry,) = kept(tmp_path)
    for damaged in ("", "[]", "{}", '{"uid": '):
        entry.write_text(damaged)
        with pytest.raises(errors.SystemFailure, match="damaged"):
            read(store, pool / "fifo")


def test_a_mark_written_by_another_store_is_seen_at_once(
    store: marks.MarkStore, pool: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for number in range(20):
        fifo = pool / f"fifo-{number}"
        os.mkfifo(fifo)
        assert read(store, fifo) is None
        write(marks.MarkStore(tmp_path / "state"), fifo, MARK)
        assert read(store, fifo) == MARK
        clear(marks.MarkStore(tmp_path / "state"), fifo)
        assert read(store, fifo) is None
    assert kept(tmp_path) == []


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "btrfs", "tmpfs", "ramfs", "vfat"])
def test_a_mark_holds_on_every_file_system(
    store: marks.MarkStore, mounted: Mounter, kind: str
) -> None:
    path = mounted(kind) / "disk"
    path.touch()
    check_life_of_a_mark(store, path)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ramfs", "vfat"])
def test_without_user_attributes_the_mark_is_in_the_state_directory(
    store: marks.MarkStore, mounted: Mounter, tmp_path: pathlib.Path, kind: str
) -> None:
    path = mounted(kind) / "disk"
    path.touch()
    assert not keeps_marks_with_the_data(path)
    write(store, path, MARK)
    (entry,) = kept(tmp_path)
    assert json.loads(entry.read_text())["uid"] == MARK.uid
    assert read(marks.MarkStore(tmp_path / "state"), path) == MARK
    assert read(marks.MarkStore(tmp_path / "other"), path) is None


@pytest.mark.root
def test_an_inode_number_given_again_does_not_bring_the_old_mark(
    store: marks.MarkStore, mounted: Mounter
) -> None:
    point = mounted("ext4")
    numbers = set()
    reused = False
    for _ in range(5):
        # A FIFO has its mark in the state directory on ext4 too, and ext4 gives numbers again.
        os.mkfifo(point / "fifo")
        number = (point / "fifo").stat().st_ino
        reused = reused or number in numbers
        numbers.add(number)
        assert read(store, point / "fifo") is None
        write(store, point / "fifo", MARK)
        (point / "fifo").unlink()
    assert reused


@pytest.mark.root
def test_an_entry_in_the_state_directory_outlives_a_remount(
    store: marks.MarkStore, mounted: Mounter
) -> None:
    point = mounted("ext4")
    os.mkfifo(point / "fifo")
    write(store, point / "fifo", MARK)
    image = point.parent / "ext4.img"
    subprocess.run(["umount", str(point)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    assert read(store, point / "fifo") == MARK


def test_where_no_identity_lasts_marking_is_refused(
    store: marks.MarkStore, pool: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "filesystem_magic", lambda _: kernel.FUSE_MAGIC)
    os.mkfifo(pool / "fifo")
    born = pool.stat().st_mtime_ns
    monkeypatch.setattr(kernel, "birth_time", lambda _: born)
    write(store, pool / "fifo", MARK)
    assert read(store, pool / "fifo") == MARK
    monkeypatch.setattr(kernel, "birth_time", lambda _: born + 1)
    assert read(store, pool / "fifo") is None
    monkeypatch.setattr(kernel, "birth_time", lambda _: None)
    with pytest.raises(errors.Unsupported, match="inode number"):
        write(store, pool / "fifo", MARK)
    assert read(store, pool / "fifo") is None
