from __future__ import annotations

import os
import pathlib
import subprocess
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import errors
from backends.host import mounts

Mounter = Callable[[str], pathlib.Path]

TEXT = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b""))
PATHS = TEXT.map(lambda data: os.fsdecode(b"/" + data))
WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789.=:_", min_size=1, max_size=12)
NUMBERS = st.integers(0, 2**31 - 1)
MOUNTS = st.builds(
    mounts.Mount,
    id=NUMBERS,
    parent=NUMBERS,
    device=st.tuples(NUMBERS, NUMBERS),
    root=PATHS,
    mount_point=PATHS,
    options=st.lists(WORDS, min_size=1, max_size=4).map(tuple),
    filesystem=WORDS,
    source=TEXT.map(os.fsdecode),
    filesystem_options=st.lists(WORDS, min_size=1, max_size=4).map(tuple),
)
OPTIONAL_FIELDS = st.lists(
    st.sampled_from(["shared:1", "master:22", "propagate_from:3", "unbindable"]), max_size=3
)


def escaped(text: str) -> bytes:
    """As the kernel writes a word of mountinfo: space, tab, newline, backslash, hash in octal."""
    return b"".join(
        b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in os.fsencode(text)
    )


def line_of(mount: mounts.Mount, optional: list[str]) -> bytes:
    words = [
        b"%d" % mount.id,
        b"%d" % mount.parent,
        b"%d:%d" % mount.device,
        escaped(mount.root),
        escaped(mount.mount_point),
        ",".join(mount.options).encode(),
        *(word.encode() for word in optional),
        b"-",
        mount.filesystem.encode(),
        escaped(mount.source),
        ",".join(mount.filesystem_options).encode(),
    ]
    return b" ".join(words) + b"\n"


@given(st.lists(st.tuples(MOUNTS, OPTIONAL_FIELDS), max_size=5))
def test_mountinfo_reads_back_as_the_kernel_writes_it(
    table: list[tuple[mounts.Mount, list[str]]],
) -> None:
    text = b"".join(line_of(mount, optional) for mount, optional in table)
    assert mounts.parse_mountinfo(text) == [mount for mount, _ in table]


def is_read(line: bytes) -> bool:
    try:
        mounts.parse_mountinfo(line)
    except errors.SystemFailure:
        return False
    return True


@given(st.binary(max_size=200))
def test_of_anything_each_line_is_read_or_refused(text: bytes) -> None:
    lines = [line for line in text.split(b"\n") if line]
    if all(is_read(line) for line in lines):
        assert len(mounts.parse_mountinfo(text)) == len(lines)
    else:
        with pytest.raises(errors.SystemFailure, match="mountinfo"):
            mounts.parse_mountinfo(text)


def mount_of(path: str | os.PathLike[str]) -> mounts.Mount:
    fd = os.open(path, os.O_PATH)
    try:
        return mounts.mount_of_descriptor(fd)
    finally:
        os.close(fd)


def test_this_machines_mounts_are_read() -> None:
    proc = mounts.mount_at("/proc")
    assert proc is not None
    assert proc.filesystem == "proc"
    assert mount_of("/proc/self/status") == proc
    stat = os.stat("/proc")
    assert proc.device == (os.major(stat.st_dev), os.minor(stat.st_dev))


def test_a_plain_directory_is_no_mount_point(tmp_path: pathlib.Path) -> None:
    (tmp_path / "plain").mkdir()
    assert mounts.mount_at(tmp_path / "plain") is None
    assert mounts.mount_at(tmp_path / "missing") is None
    holding = mount_of(tmp_path / "plain")
    assert str(tmp_path.resolve()).startswith(holding.mount_point)


@pytest.mark.root
def test_a_mount_is_found_by_odd_names_and_through_links(tmp_path: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    point = tmp_path / "odd \t\n\\040 #ü"
    point.mkdir()
    (tmp_path / "to-point").symlink_to(point)
    (tmp_path / "to-parent").symlink_to(tmp_path)
    argv = ["mount", "-t", "tmpfs", "-o", "size=1M,ro", "odd source#1", str(point)]
    subprocess.run(argv, check=True)
    try:
        found = mounts.mount_at(point)
        assert found is not None
        assert found.mount_point == str(point.resolve())
        assert found.source == "odd source#1"
        assert found.filesystem == "tmpfs"
        assert "ro" in found.options
        assert "size=1024k" in found.filesystem_options
        assert mounts.mount_at(tmp_path / "to-point") == found
        assert mounts.mount_at(tmp_path / "to-parent" / point.name) == found
        assert mount_of(point) == found
        fd = os.open(point, os.O_PATH)
        try:
            assert mounts.filesystem_type(fd) == "tmpfs"
            assert mounts.space(fd).capacity == 2**20
        finally:
            os.close(fd)
    finally:
        subprocess.run(["umount", str(point)], check=True)
    assert mounts.mount_at(point) is None


@pytest.mark.root
def test_of_mounts_over_one_another_the_uppermost_counts(mounted: Mounter) -> None:
    point = mounted("tmpfs")
    subprocess.run(["mount", "-t", "ramfs", "upper", str(point)], check=True)
    try:
        found = mounts.mount_at(point)
        assert found is not None
        assert (found.filesystem, found.source) == ("ramfs", "upper")
        assert mount_of(point) == found
    finally:
        subprocess.run(["umount", str(point)], check=True)


@pytest.mark.root
def test_a_file_system_unmounted_under_an_open_file_is_inaccessible(tmp_path: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
    fd = os.open(tmp_path, os.O_PATH)
    try:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
        with pytest.raises(errors.Inaccessible, match="no longer mounted"):
            mounts.filesystem_type(fd)
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "btrfs", "tmpfs"])
def test_space_is_counted_as_libvirt_counts_it(mounted: Mounter, kind: str) -> None:
    point = mounted(kind)
    fd = os.open(point, os.O_RDONLY)
    try:
        before = mounts.space(fd)
        assert before.capacity == before.available + before.allocation
        (point / "data").write_bytes(os.urandom(4 * 2**20))
        os.sync()
        after = mounts.space(fd)
        assert after.capacity == before.capacity
        assert after.allocation - before.allocation >= 4 * 2**20
        output = subprocess.run(
            ["stat", "-f", "-c", "%S %b %f", str(point)], check=True, capture_output=True, text=True
        ).stdout
        size, blocks, free = (int(word) for word in output.split())
        assert (after.capacity, after.available) == (size * blocks, size * free)
    finally:
        os.close(fd)


def test_the_boot_and_the_host_have_names() -> None:
    assert len(mounts.boot_id()) == 36
    assert mounts.boot_id() == mounts.boot_id()
    assert mounts.host_name() == os.uname().nodename


def test_a_call_in_time_gives_its_result_or_its_error() -> None:
    assert mounts.bounded(lambda: 7, 60, key="seven") == 7
    with pytest.raises(FileNotFoundError):
        mounts.bounded(lambda: os.stat("/nowhere/at/all"), 60, key="seven")
    assert mounts.bounded(lambda: None, 60, key="seven") is None


def test_a_call_that_hangs_is_left_alone_and_blocks_only_its_own_key() -> None:
    hanging = threading.Event()
    discarded: list[str] = []
    gone = threading.Event()

    def hang() -> str:
        hanging.wait()
        return "late"

    def discard(result: str) -> None:
        discarded.append(result)
        gone.set()

    before = threading.active_count()
    with pytest.raises(errors.Inaccessible, match=r"/srv/dead did not answer within 0\.2 s"):
        mounts.bounded(hang, 0.2, key="/srv/dead", discard=discard)
    called: list[bool] = []
    for _ in range(50):
        with pytest.raises(errors.Inaccessible, match="earlier call"):
            mounts.bounded(lambda: called.append(True), 60, key="/srv/dead")
    assert called == []
    assert threading.active_count() == before + 1
    assert mounts.bounded(lambda: "alive", 60, key="/srv/alive") == "alive"

    hanging.set()
    assert gone.wait(60)
    assert discarded == ["late"]
    assert mounts.bounded(lambda: "back", 60, key="/srv/dead") == "back"


def test_calls_of_one_key_take_turns() -> None:
    running = 0
    most = 0
    lock = threading.Lock()

    def call() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.005)
        with lock:
            running -= 1
        return 1

    results: list[int] = []

    def worker() -> None:
        for _ in range(5):
            results.append(mounts.bounded(call, 60, key="/srv/shared"))

    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert most == 1


def test_waiting_for_a_turn_ends_at_the_deadline() -> None:
    hanging, started = threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        hanging.wait()

    first = threading.Thread(target=lambda: mounts.bounded(hang, 300, key="/srv/busy"))
    first.start()
    try:
        assert started.wait(60)
        with pytest.raises(errors.Inaccessible, match="busy"):
            mounts.bounded(lambda: None, 0.2, key="/srv/busy")
    finally:
        hanging.set()
        first.join()
