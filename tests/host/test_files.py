from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from backends import errors
from backends.host import attributes, commands, files, kernel, staging
from tests.powers import without_powers

Mounter = Callable[[str], pathlib.Path]


@pytest.fixture
def pool(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "pool"
    path.mkdir()
    return path


@pytest.fixture
def directory(pool: pathlib.Path) -> Iterator[files.Directory]:
    with files.Directory.open(pool) as opened:
        yield opened


@pytest.fixture(params=["rename", "link"])
def renaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once as this kernel renames, once as on a file system that can't but by replacing."""
    if request.param == "link":

        def refuse(*_: object) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(kernel, "rename_without_replacing", refuse)
    return str(request.param)


def read_all(directory: files.Directory, name: str) -> bytes:
    with os.fdopen(directory.open_file(name), "rb") as file:
        return file.read()


def write_new(directory: files.Directory, name: str, data: bytes = b"") -> None:
    fd = directory.open_file(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(fd, "wb") as file:
        file.write(data)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "../x", "a\0b"])
def test_only_single_names_are_taken(directory: files.Directory, name: str) -> None:
    for use in (
        directory.open_file,
        directory.open_path,
        directory.open_directory,
        directory.stat,
        directory.exists,
        directory.mkdir,
        directory.remove_file,
        directory.remove_directory,
        directory.path_for_commands,
        directory.permissions,
    ):
        with pytest.raises(ValueError, match="single name"):
            use(name)


def test_a_pool_is_opened_by_an_absolute_path_only(pool: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="absolute"):
        files.Directory.open("pool")
    with pytest.raises(errors.NotFound, match="missing"):
        files.Directory.open(pool / "missing")
    (pool / "file").touch()
    with pytest.raises(errors.Inaccessible):
        files.Directory.open(pool / "file")


def test_links_are_never_followed(
    directory: files.Directory, pool: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = outside / "secret"
    secret.write_text("secret")
    secret.chmod(0o640)
    (pool / "to-file").symlink_to(secret)
    (pool / "to-directory").symlink_to(outside)
    (pool / "dangling").symlink_to(outside / "made")

    for name in ("to-file", "to-directory", "dangling"):
        for flags in (
            os.O_RDONLY,
            os.O_RDWR,
            os.O_WRONLY | os.O_TRUNC,
            os.O_RDONLY | os.O_NONBLOCK,
        ):
            with pytest.raises(errors.Inaccessible, match="symbolic link"):
                directory.open_file(name, flags)
        with pytest.raises(errors.AlreadyExists):
            directory.open_file(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with pytest.raises(errors.Inaccessible):
            directory.open_directory(name)
        with pytest.raises(errors.Inaccessible):
            directory.set_permissions(name, mode=0o777)
        with pytest.raises(errors.AlreadyExists):
            directory.mkdir(name)
        assert directory.exists(name)
        assert files.kind_of(directory.stat(name)) is files.Kind.LINK
    assert secret.read_text() == "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o640
    assert os.listdir(outside) == ["secret"]

    with pytest.raises(errors.StorageError):
        directory.remove_directory("to-directory")
    directory.remove_file("to-file")
    assert secret.exists()
    assert not directory.exists("to-file")


def test_creating_may_not_open_what_stands_there(directory: files.Directory) -> None:
    with pytest.raises(ValueError, match="O_EXCL"):
        directory.open_file("x", os.O_WRONLY | os.O_CREAT)
    write_new(directory, "x", b"1")
    with pytest.raises(errors.AlreadyExists):
        write_new(directory, "x", b"2")
    assert read_all(directory, "x") == b"1"


def test_a_directory_swapped_after_opening_leads_nobody_astray(
    directory: files.Directory, pool: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    write_new(directory, "disk", b"ours")
    pool.rename(tmp_path / "moved")
    other = tmp_path / "other"
    other.mkdir()
    (other / "disk").write_text("theirs")
    pool.symlink_to(other)
    assert read_all(directory, "disk") == b"ours"
    write_new(directory, "new")
    assert (tmp_path / "moved" / "new").exists()
    assert not (other / "new").exists()
    path = directory.path_for_commands("disk")
    assert commands.run(["cat", path], pass_fds=directory.pass_fds).stdout == "ours"


def test_fifos_and_sockets_do_not_block(directory: files.Directory, pool: pathlib.Path) -> None:
    os.mkfifo(pool / "fifo", 0o600)
    os.mknod(pool / "socket", stat.S_IFSOCK | 0o600)
    for name, kind in (("fifo", files.Kind.FIFO), ("socket", files.Kind.SOCKET)):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            with pytest.raises(errors.Inaccessible, match=kind.value):
                directory.open_file(name, flags)
        assert files.kind_of(directory.stat(name)) is kind
        assert directory.permissions(name).mode == 0o600
        assert directory.set_permissions(name, mode=0o640)
        assert directory.permissions(name).mode == 0o640
    assert {name for name, _ in directory.entries()} == {"fifo", "socket"}
    os.mkfifo(pool / "staged")
    directory.publish(directory, "staged", "published")
    assert directory.exists("published")


def test_entries_have_every_name_with_its_own_facts(
    directory: files.Directory, pool: pathlib.Path
) -> None:
    write_new(directory, "file", b"12345")
    directory.mkdir("directory")
    (pool / "link").symlink_to("file")
    (pool / os.fsdecode(b"not-utf8-\xff")).touch()
    facts = dict(directory.entries())
    assert {name: files.kind_of(fact).name for name, fact in facts.items()} == {
        "file": "FILE",
        "directory": "DIRECTORY",
        "link": "LINK",
        os.fsdecode(b"not-utf8-\xff"): "FILE",
    }
    assert facts["file"].st_size == 5


def test_what_vanishes_while_listing_is_left_out(
    directory: files.Directory, pool: pathlib.Path
) -> None:
    for number in range(3):
        (pool / str(number)).touch()
    entries = directory.entries()
    first, _ = next(entries)
    for number in range(3):
        (pool / str(number)).unlink()
    assert first in {"0", "1", "2"}
    assert list(entries) == []


def test_threads_that_list_one_directory_each_see_all(
    directory: files.Directory, pool: pathlib.Path
) -> None:
    wanted = {f"file-{number}" for number in range(500)}
    for name in wanted:
        (pool / name).touch()
    with ThreadPoolExecutor(8) as threads:
        for listed in threads.map(lambda _: directory.names(), range(64)):
            assert sorted(listed) == sorted(wanted)


def test_removing_says_what_is_in_the_way(directory: files.Directory, pool: pathlib.Path) -> None:
    directory.mkdir("full")
    (pool / "full" / "x").touch()
    with pytest.raises(errors.DeletionRefused, match="stands in it"):
        directory.remove_directory("full")
    (pool / "full" / "x").unlink()
    directory.remove_directory("full")
    with pytest.raises(errors.NotFound):
        directory.remove_directory("full")
    with pytest.raises(errors.NotFound):
        directory.remove_file("full")


@pytest.mark.usefixtures("renaming")
def test_publishing_gives_the_name_and_takes_the_staged_one(directory: files.Directory) -> None:
    with staging.opened(directory) as staged:
        write_new(staged, "temp", b"data")
        directory.publish(staged, "temp", "disk")
        assert staged.names() == []
    assert read_all(directory, "disk") == b"data"
    assert directory.stat("disk").st_nlink == 1


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("there", ["file", "empty directory", "directory", "dangling link"])
@pytest.mark.parametrize("staged_kind", ["file", "directory"])
def test_publishing_never_replaces(
    directory: files.Directory, pool: pathlib.Path, there: str, staged_kind: str
) -> None:
    match there:
        case "file":
            (pool / "disk").write_text("theirs")
        case "dangling link":
            (pool / "disk").symlink_to("nowhere")
        case _:
            (pool / "disk").mkdir()
            if there == "directory":
                (pool / "disk" / "x").touch()
    before = (directory.stat("disk").st_ino, directory.stat("disk").st_mtime_ns)
    with staging.opened(directory) as staged:
        if staged_kind == "file":
            write_new(staged, "temp", b"ours")
        else:
            staged.mkdir("temp")
        with pytest.raises(errors.AlreadyExists, match="disk"):
            directory.publish(staged, "temp", "disk")
        assert staged.names() == ["temp"]
    assert (directory.stat("disk").st_ino, directory.stat("disk").st_mtime_ns) == before
    assert not (pool / "nowhere").exists()


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_of_many_that_publish_one_name_exactly_one_wins(
    directory: files.Directory, kind: str
) -> None:
    writers = 16
    together = threading.Barrier(writers)

    def publish(number: int) -> bool:
        with staging.opened(directory) as staged:
            name = f"temp-{number}"
            if kind == "file":
                write_new(staged, name, str(number).encode() * 1000)
            else:
                staged.mkdir(name)
                with staged.open_directory(name) as made:
                    write_new(made, "number", str(number).encode() * 1000)
            together.wait()
            try:
                directory.publish(staged, name, "disk")
            except errors.AlreadyExists:
                return False
            return True

    for _ in range(5):
        with ThreadPoolExecutor(writers) as threads:
            won = list(threads.map(publish, range(writers)))
        assert won.count(True) == 1
        data = str(won.index(True)).encode() * 1000
        with staging.opened(directory) as staged:
            for name in staged.names():
                if kind == "directory":
                    with staged.open_directory(name) as made:
                        made.remove_file("number")
                    staged.remove_directory(name)
                else:
                    staged.remove_file(name)
        if kind == "file":
            assert read_all(directory, "disk") == data
            directory.remove_file("disk")
        else:
            with directory.open_directory("disk") as made:
                assert read_all(made, "number") == data
                made.remove_file("number")
            directory.remove_directory("disk")
    assert directory.names() == []


def test_a_file_that_its_owner_may_not_read_can_be_published(directory: files.Directory) -> None:
    with staging.opened(directory) as staged:
        write_new(staged, "temp", b"data")
        staged.set_permissions("temp", mode=0)
        directory.publish(staged, "temp", "disk")
    assert directory.permissions("disk").mode == 0
    assert directory.stat("disk").st_size == 4


def test_publishing_what_is_not_there_says_so(directory: files.Directory) -> None:
    with staging.opened(directory) as staged, pytest.raises(errors.NotFound, match="temp"):
        directory.publish(staged, "temp", "disk")


def test_external_programs_write_and_read_by_descriptor(directory: files.Directory) -> None:
    if commands.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    with staging.opened(directory) as staged:
        target = staged.path_for_commands("x.qcow2")
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", target, "1M"]
        commands.run(create, pass_fds=staged.pass_fds)
        staged.fsync()
        directory.publish(staged, "x.qcow2", "x.qcow2")
    assert directory.names() == ["x.qcow2"]
    info = ["qemu-img", "info", "--output=json", directory.path_for_commands("x.qcow2")]
    facts = json.loads(commands.run(info, pass_fds=directory.pass_fds).stdout)
    assert facts["format"] == "qcow2"
    assert facts["virtual-size"] == 2**20


def test_staging_is_private_and_gone_afterwards(
    directory: files.Directory, pool: pathlib.Path
) -> None:
    assert staging.listed(directory) == []
    before = os.umask(0)
    try:
        with staging.opened(directory) as staged:
            assert stat.S_IMODE((pool / ".poolkeeper").stat().st_mode) == 0o700
            write_new(staged, "temp")
            assert staging.listed(directory) == ["temp"]
            staged.remove_file("temp")
    finally:
        os.umask(before)
    assert directory.names() == []


def test_what_is_left_in_staging_stays_and_is_listed(
    directory: files.Directory, pool: pathlib.Path
) -> None:
    with staging.opened(directory) as staged:
        write_new(staged, "b")
        write_new(staged, "a")
    assert staging.listed(directory) == ["a", "b"]
    (pool / ".poolkeeper").chmod(0o777)
    with staging.opened(directory) as staged:
        assert stat.S_IMODE((pool / ".poolkeeper").stat().st_mode) == 0o700
        for name in staging.listed(directory):
            staged.remove_file(name)
    assert directory.names() == []


@pytest.mark.parametrize("planted", ["link", "file", "fifo"])
def test_staging_refuses_what_was_planted_in_its_place(
    directory: files.Directory, pool: pathlib.Path, tmp_path: pathlib.Path, planted: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    match planted:
        case "link":
            (pool / ".poolkeeper").symlink_to(outside)
        case "file":
            (pool / ".poolkeeper").touch()
        case "fifo":
            os.mkfifo(pool / ".poolkeeper")
    with pytest.raises(errors.Inaccessible), staging.opened(directory):
        pytest.fail("staged in what somebody else planted")
    with pytest.raises(errors.Inaccessible):
        staging.listed(directory)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755
    assert os.listdir(pool) == [".poolkeeper"]


@pytest.mark.root
def test_staging_refuses_a_directory_of_somebody_else(
    directory: files.Directory, pool: pathlib.Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a directory away")
    (pool / ".poolkeeper").mkdir(mode=0o700)
    os.chown(pool / ".poolkeeper", 12345, 12345)
    with pytest.raises(errors.OwnedByOther, match="12345"), staging.opened(directory):
        pytest.fail("staged in somebody else's directory")
    assert os.listdir(pool) == [".poolkeeper"]


def test_threads_share_staging_and_the_last_one_removes_it(
    directory: files.Directory, pool: pathlib.Path
) -> None:
    def work(number: int) -> None:
        # Each opens the pool anew, as a worker does: what counts is the directory itself.
        with files.Directory.open(pool) as own:
            for turn in range(20):
                name = f"disk-{number}-{turn}"
                with staging.opened(own) as staged:
                    write_new(staged, name, name.encode())
                    own.publish(staged, name, name)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    names = directory.names()
    assert len(names) == 160
    assert all(read_all(directory, name) == name.encode() for name in names)
    assert not staging._stages


def test_one_that_leaves_staging_does_not_take_it_from_another(
    directory: files.Directory, pool: pathlib.Path
) -> None:
    with staging.opened(directory) as staged:
        with files.Directory.open(pool) as own, staging.opened(own):
            pass
        write_new(staged, "temp")
        directory.publish(staged, "temp", "disk")
    assert directory.names() == ["disk"]


OTHER_PROCESS = """
import sys
from backends import errors
from backends.host import files, staging
with files.Directory.open(sys.argv[1]) as directory:
    print("ready", flush=True)
    while not directory.exists("stop"):
        with staging.opened(directory):
            pass
"""


def test_staging_survives_another_process_that_stages(
    directory: files.Directory, pool: pathlib.Path
) -> None:
    def stage_until_done(name: str) -> int:
        """How often the other process took the empty directory away under our hands."""
        for lost in range(10_000):
            with contextlib.suppress(errors.NotFound), staging.opened(directory) as staged:
                write_new(staged, name, name.encode())
                directory.publish(staged, name, name)
                return lost
        pytest.fail("never got to stage")

    root = pathlib.Path(files.__file__).parents[2]
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, str(pool)], cwd=root, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    with other, other.stdout:
        try:
            assert other.stdout.readline() == b"ready\n"
            for number in range(300):
                stage_until_done(f"disk-{number}")
        finally:
            (pool / "stop").touch()
        assert other.wait() == 0
    (pool / "stop").unlink()
    assert len(directory.names()) == 300
    assert all(read_all(directory, name) == name.encode() for name in directory.names())


def test_permissions_are_set_only_where_they_differ(directory: files.Directory) -> None:
    write_new(directory, "disk")
    assert directory.set_permissions("disk", mode=0o640)
    before = directory.stat("disk").st_ctime_ns
    seen = directory.permissions("disk")
    assert seen.mode == 0o640
    assert (seen.owner, seen.group) == (os.geteuid(), directory.stat("disk").st_gid)
    assert not directory.set_permissions(
        "disk", mode=0o640, owner=seen.owner, group=seen.group, label=seen.label
    )
    assert directory.stat("disk").st_ctime_ns == before


def test_permissions_of_an_unreadable_file_can_be_seen_and_set(directory: files.Directory) -> None:
    write_new(directory, "disk")
    directory.set_permissions("disk", mode=0)
    assert directory.permissions("disk").mode == 0
    assert directory.set_permissions("disk", mode=0o600)
    assert directory.permissions("disk").mode == 0o600


@pytest.mark.root
def test_owner_mode_and_label_are_set_together(directory: files.Directory) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    write_new(directory, "disk")
    label = "system_u:object_r:virt_image_t:s0"
    wanted = files.Permissions(0o4751, 107, 108, label)
    changed = directory.set_permissions("disk", mode=0o4751, owner=107, group=108, label=label)
    assert changed
    assert directory.permissions("disk") == wanted
    directory.set_permissions("disk", group=109, mode=0o4751)
    assert directory.permissions("disk").mode == 0o4751


def test_an_ordinary_user_is_told_that_it_may_not_give_files_away(
    directory: files.Directory,
) -> None:
    write_new(directory, "disk")
    stranger = os.geteuid() + 1
    with without_powers(), pytest.raises(errors.PermissionRefused, match="disk"):
        directory.set_permissions("disk", owner=stranger)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["tmpfs", "ramfs", "ext4", "btrfs", "vfat"])
def test_publishing_works_on_every_file_system(mounted: Mounter, kind: str) -> None:
    with files.Directory.open(mounted(kind)) as directory:
        before = set(directory.names())
        for name in ("one", "two"):
            with staging.opened(directory) as staged:
                write_new(staged, "temp", b"data")
                directory.publish(staged, "temp", name)
        with staging.opened(directory) as staged:
            write_new(staged, "temp", b"other")
            with pytest.raises(errors.AlreadyExists):
                directory.publish(staged, "temp", "one")
            staged.remove_file("temp")
        assert set(directory.names()) == before | {"one", "two"}
        assert read_all(directory, "one") == b"data"


@pytest.mark.root
def test_copy_on_write_is_turned_off_and_on(mounted: Mounter) -> None:
    with files.Directory.open(mounted("btrfs")) as directory:
        write_new(directory, "disk")
        fd = directory.open_file("disk", os.O_RDWR)
        try:
            assert not attributes.get_nocow(fd)
            attributes.set_nocow(fd, True)
            assert attributes.get_nocow(fd)
            attributes.set_nocow(fd, True)
            attributes.set_nocow(fd, False)
            assert not attributes.get_nocow(fd)
        finally:
            os.close(fd)


@pytest.mark.root
def test_a_file_system_without_attributes_of_inodes_says_so(mounted: Mounter) -> None:
    with files.Directory.open(mounted("ramfs")) as directory, pytest.raises(OSError, match="ioctl"):
        attributes.get_nocow(directory.fd)


def test_a_full_scan_leaks_no_descriptor(directory: files.Directory, pool: pathlib.Path) -> None:
    os.mkfifo(pool / "fifo")
    write_new(directory, "disk")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        list(directory.entries())
        directory.permissions("disk")
        with staging.opened(directory):
            pass
        for name in ("fifo", "missing"):
            with pytest.raises(errors.StorageError):
                directory.open_file(name)
    assert len(os.listdir("/proc/self/fd")) == before
