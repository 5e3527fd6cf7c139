"""The store with several processes, kills, damage, and a file system that refuses."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backends import errors
from controller.resources import Declared
from controller.store import Store
from tests.powers import without_powers

Declare = Callable[..., Declared]
ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


def writer(directory: Path, number: int, turns: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "tests/store/writing.py", directory, str(number), str(turns)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def holds(process: subprocess.Popen[str], path: Path) -> bool:
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.path.samefile(descriptor, path):
                return True
    return False


def sound(directory: Path) -> bool:
    with closing(sqlite3.connect(directory / "store.db")) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok")


def test_processes_that_apply_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [writer(tmp_path / "state", number, turns=15) for number in range(3)]
    for process in writers:
        _, problem = process.communicate()
        assert process.returncode == 0, problem

    with closing(Store(tmp_path / "state")) as store:
        listed = {item.metadata.name: item for item in store.list()}
        assert set(listed) == {"shared", "own-0", "own-1", "own-2"}
        for number in range(3):
            own = listed[f"own-{number}"]
            assert own.metadata.generation == 15
            assert own.status.observed_generation == 15
            assert own.status.capacity == 14
        assert 15 <= listed["shared"].metadata.generation <= 45
        versions = [int(item.metadata.resource_version) for item in listed.values()]
        assert len(set(versions)) == len(versions)
        assert store.unfinished_steps() == []
    assert sound(tmp_path / "state")


def test_a_process_killed_while_it_writes_leaves_a_consistent_store(tmp_path: Path) -> None:
    state = tmp_path / "state"
    chance = random.Random(7)
    confirmed = -1
    for _ in range(8):
        process = writer(state, 0, turns=0)
        assert process.stdout is not None
        confirmed = int(process.stdout.readline() or confirmed)
        time.sleep(chance.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        lines = process.communicate()[0].split()
        confirmed = int(lines[-1]) if lines else confirmed

        with closing(Store(state)) as store:
            resources = store.list()
            assert store.problems() == []
            for item in resources:
                permissions = item.spec.target.permissions
                assert permissions.owner == permissions.group
                assert item.status.available == item.status.capacity
                assert permissions.owner >= confirmed
            # One writer is in one step at a time; only the one it died in is open.
            open_steps = store.unfinished_steps()
            assert len(open_steps) <= 1
            for step in open_steps:
                store.end_step(step.id, "The process ended.")
        assert sound(state)
        for item in resources:
            with closing(Store(state)) as store:
                store.request_deletion(item.key)


def test_a_writer_waits_for_another(tmp_path: Path, pool: Declare) -> None:
    with closing(Store(tmp_path)) as store:
        held = sqlite3.connect(tmp_path / "store.db", isolation_level=None, check_same_thread=False)
        held.execute("BEGIN IMMEDIATE")
        process = writer(tmp_path, 0, turns=1)
        while not holds(process, tmp_path / "store.db"):
            assert process.poll() is None
            time.sleep(0.01)
        assert store.list() == []
        held.execute("COMMIT")
        held.close()
        _, problem = process.communicate()
        assert process.returncode == 0, problem
        assert len(store.list()) == 2


MAKE_MANY = """
import pathlib, sys, time
from controller.store import Store
folder = pathlib.Path(sys.argv[1])
for number in range(100):
    # All processes come to each store at about the same time.
    (folder / f"{number}-{sys.argv[2]}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob(f"{number}-*"))) < 3:
        assert time.monotonic() < deadline, "another process ended"
    Store(folder / f"state-{number}").close()
"""


def test_a_store_may_be_made_by_many_at_once(tmp_path: Path) -> None:
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE_MANY, tmp_path, str(number)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    assert [maker.communicate()[1] for maker in makers] == ["", "", ""]


def test_the_store_is_for_its_owner_only(tmp_path: Path, pool: Declare) -> None:
    with closing(Store(tmp_path / "var/state")) as store:
        store.apply(pool())
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode)
            for path in (tmp_path / "var/state").iterdir()
        }
        assert set(modes.values()) == {0o600}
        assert stat.S_IMODE((tmp_path / "var/state").stat().st_mode) == 0o700


def test_a_store_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    Store(tmp_path).close()
    (tmp_path / "store.db").chmod(0o644)
    Store(tmp_path).close()
    assert stat.S_IMODE((tmp_path / "store.db").stat().st_mode) == 0o600


def test_a_store_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(errors.Unsupported, match=r"newer release \(schema 99"):
        Store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 99


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute("CREATE TABLE cookies(a)")
    with pytest.raises(errors.StorageError, match="another program"):
        Store(tmp_path)


def test_a_file_that_is_no_database_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database, but somebody's file" * 100)
    with pytest.raises(errors.StorageError, match=r"store\.db is damaged.*move the file away"):
        Store(tmp_path)
    assert (tmp_path / "store.db").read_bytes().startswith(b"not a database")


def test_damage_within_the_file_is_named(tmp_path: Path, pool: Declare) -> None:
    with closing(Store(tmp_path)) as store:
        for number in range(50):
            store.apply(pool(f"pool-{number}"))
    content = bytearray((tmp_path / "store.db").read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    (tmp_path / "store.db").write_bytes(content)
    with pytest.raises(errors.StorageError, match="is damaged"), closing(Store(tmp_path)) as store:
        store.list()


def test_a_state_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(errors.StorageError, match=r"Could not open the store .*store\.db"):
        Store(tmp_path / "state")


def test_a_directory_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o500)
    with without_powers(), pytest.raises(errors.PermissionRefused, match=r"store\.db"):
        Store(tmp_path / "state")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.root
@needs_root
def test_a_read_only_file_system_is_named(small_disk: Path, pool: Declare) -> None:
    with closing(Store(small_disk)) as store:
        store.apply(pool())
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(errors.PermissionRefused, match=r"store\.db"):
        Store(small_disk)


@pytest.mark.root
@needs_root
def test_a_full_disk_is_named_and_what_was_stored_stays(small_disk: Path, pool: Declare) -> None:
    with closing(Store(small_disk)) as store:
        store.apply(pool("first"))
        stored = ["first"]

        def fill() -> None:
            for number in range(10_000):
                store.apply(pool(f"pool-{number}", labels={"a": "x" * 4000}))
                stored.append(f"pool-{number}")

        with pytest.raises(errors.NoSpace, match=r"room left.*store\.db"):
            fill()
        assert {item.metadata.name for item in store.list()} == set(stored)
        subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
        assert store.apply(pool("later")).outcome == "created"
    assert shutil.disk_usage(small_disk).free > 0
    assert sound(small_disk)
