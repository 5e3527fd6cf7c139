"""A watched folder: what reaches the agent, and what an accident may not do."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from controller.sources.base import Snapshot, follow
from controller.sources.directory import DirectorySource, Timing
from tests.powers import without_powers

Text = Callable[..., str]
Eventually = Callable[[Callable[[], object]], None]

UNHELPED = Timing(rescan=3600.0)
"""Nothing is found by looking from time to time, only by what the kernel reports."""


class Followed:
    """A source that is being followed, and the snapshots that it gave."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    @property
    def last(self) -> Snapshot:
        return self.snapshots[-1]

    @property
    def states(self) -> dict[str, str]:
        """The declared state of each pool that the last snapshot has."""
        if not self.snapshots:
            return {}
        return {item.metadata.name: str(item.spec.dump()["state"]) for item in self.last.declared}

    def has(self, name: str) -> bool:
        return name in self.states

    def declares(self, **states: str) -> bool:
        return self.states == states


@contextmanager
def following(source: DirectorySource) -> Iterator[Followed]:
    followed, stop = Followed(), threading.Event()
    thread = threading.Thread(target=follow, args=(source, followed.snapshots.append, stop))
    thread.start()
    try:
        yield followed
    finally:
        stop.set()
        source.stop()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, pool_yaml: Text) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    (path / "one.yaml").write_text(pool_yaml("one"))
    return path


def test_what_is_there_is_read_first_and_changes_when_they_happen(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.states == {"one": "Active"})
        assert followed.last.origin == f"directory:{folder}"
        assert followed.last.complete
        (folder / "one.yaml").write_text(pool_yaml("one", state="Inactive"))
        eventually(lambda: followed.states == {"one": "Inactive"})
        (folder / "two.yaml").write_text(pool_yaml("two"))
        eventually(lambda: followed.states == {"one": "Inactive", "two": "Active"})
        (folder / "one.yaml").unlink()
        eventually(lambda: followed.states == {"two": "Active"})
        assert followed.last.complete


def test_a_folder_made_later_is_watched_too(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        (folder / "a/b").mkdir(parents=True)
        (folder / "a/b/two.yaml").write_text(pool_yaml("two"))
        eventually(lambda: set(followed.states) == {"one", "two"})
        (folder / "a/b/two.yaml").write_text(pool_yaml("two", state="Inactive"))
        eventually(lambda: followed.states["two"] == "Inactive")


def test_a_file_renamed_over_another_is_read(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        (folder / ".one.yaml.tmp").write_text(pool_yaml("one", state="Inactive"))
        (folder / ".one.yaml.tmp").rename(folder / "one.yaml")
        eventually(lambda: followed.states == {"one": "Inactive"})


def test_a_file_that_an_editor_moves_away_and_writes_anew_is_never_missing(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    timing = Timing(rescan=3600.0, grace=60.0)
    with following(DirectorySource(folder, timing=timing)) as followed:
        eventually(lambda: followed.snapshots)
        (folder / "one.yaml").rename(folder / "one.yaml~")
        for name in ("two", "three"):
            (folder / f"{name}.yaml").write_text(pool_yaml(name))
            eventually(partial(followed.has, name))
        (folder / "one.yaml").write_text(pool_yaml("one", state="Inactive"))
        eventually(lambda: followed.states["one"] == "Inactive")
        assert all("one" in names for names in map(declared_names, followed.snapshots))


def declared_names(snapshot: Snapshot) -> set[str]:
    return {item.metadata.name for item in snapshot.declared}


def test_a_resource_moved_to_another_file_is_no_duplicate(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        (folder / "one.yaml").rename(folder / "moved.yaml")
        eventually(lambda: followed.last.declared[0].file == f"{folder}/moved.yaml")
        assert all(item.complete for item in followed.snapshots)
        assert all(declared_names(item) == {"one"} for item in followed.snapshots)


def test_a_broken_file_keeps_its_last_good_version(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    (folder / "two.yaml").write_text(pool_yaml("two"))
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        (folder / "one.yaml").write_text("kind: [StoragePool")
        eventually(lambda: not followed.last.complete)
        assert followed.states == {"one": "Active", "two": "Active"}
        (problem,) = followed.last.problems
        assert problem.file == f"{folder}/one.yaml"
        assert "Until then the version of 20" in str(problem)
        assert "one.yaml" in followed.last.reason

        (folder / "one.yaml").write_text(pool_yaml("one", state="Inactive"))
        eventually(lambda: followed.last.complete)
        assert followed.states == {"one": "Inactive", "two": "Active"}


def test_an_emptied_file_keeps_its_last_good_version(folder: Path, eventually: Eventually) -> None:
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        os.truncate(folder / "one.yaml", 0)
        eventually(lambda: not followed.last.complete)
        assert followed.states == {"one": "Active"}
        assert "it is empty" in followed.last.reason


def test_a_file_written_in_two_halves_ends_up_whole(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    text = pool_yaml("one", state="Inactive")
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        with open(folder / "one.yaml", "w") as file:
            file.write(text[:40])
            file.flush()
            eventually(lambda: not followed.last.complete)
            assert followed.states == {"one": "Active"}
            file.write(text[40:])
        eventually(lambda: followed.last.complete)
        assert followed.states == {"one": "Inactive"}


def test_a_burst_of_changes_is_one_snapshot(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    timing = Timing(quiet=0.5, longest=30.0, rescan=3600.0)
    with following(DirectorySource(folder, timing=timing)) as followed:
        eventually(lambda: followed.snapshots)
        for number in range(200):
            (folder / f"{number}.yaml").write_text(pool_yaml(f"pool-{number}"))
        eventually(lambda: len(followed.states) == 201)
        assert len(followed.snapshots) < 100


def test_changes_without_end_do_not_put_reading_off(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    done = threading.Event()

    def disturb() -> None:
        while not done.wait(0.01):
            (folder / "notes.txt").write_text("x")

    thread = threading.Thread(target=disturb)
    with following(DirectorySource(folder, timing=Timing(rescan=3600.0))) as followed:
        eventually(lambda: followed.snapshots)
        thread.start()
        try:
            (folder / "two.yaml").write_text(pool_yaml("two"))
            eventually(lambda: "two" in followed.states)
        finally:
            done.set()
            thread.join()


def test_our_own_reading_wakes_nobody(folder: Path) -> None:
    woken: list[None] = []
    source = DirectorySource(folder, timing=UNHELPED)
    source.start(lambda: woken.append(None))
    try:
        assert source.poll() is not None
        for _ in range(20):
            (folder / "one.yaml").read_text()
            os.listdir(folder)
            assert source.poll() is None
            time.sleep(0.02)
    finally:
        quiet = not woken
        source.stop()
    assert quiet


def test_two_writes_of_one_size_in_quick_succession_are_told_apart(
    folder: Path, pool_yaml: Text
) -> None:
    source = DirectorySource(folder)
    source.poll()
    for turn in range(100):
        (folder / "one.yaml").write_text(pool_yaml("one", path=f"/srv/{turn:03}"))
        snapshot = source.poll()
        assert snapshot is not None
        assert snapshot.declared[0].spec.dump()["target"]["path"] == f"/srv/{turn:03}"


def test_an_unchanged_file_written_again_gives_nothing_new(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        (folder / "same").write_text(pool_yaml("one"))
        (folder / "same").rename(folder / "one.yaml")
        time.sleep(0.5)
        (folder / "two.yaml").write_text(pool_yaml("two"))
        eventually(lambda: "two" in followed.states)
        assert len(followed.snapshots) == 2


def test_a_mounted_config_map_is_read_through_its_swaps(
    tmp_path: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    folder = tmp_path / "config"
    folder.mkdir()

    def swap(version: str, **files: str) -> None:
        (folder / f"..{version}").mkdir()
        for name, text in files.items():
            (folder / f"..{version}/{name}.yaml").write_text(text)
            if not (folder / f"{name}.yaml").is_symlink():
                (folder / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")
        (folder / "..data_tmp").symlink_to(f"..{version}")
        former = (folder / "..data").resolve()
        (folder / "..data_tmp").rename(folder / "..data")
        if former.name.startswith("..") and former.name != "..data":
            shutil.rmtree(former)

    swap("2024_1", one=pool_yaml("one"), two=pool_yaml("two"))
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.states == {"one": "Active", "two": "Active"})
        for turn, state in enumerate(("Inactive", "Active", "Inactive"), start=2):
            swap(f"2024_{turn}", one=pool_yaml("one", state=state), two=pool_yaml("two"))
            eventually(partial(followed.declares, one=state, two="Active"))
        assert all(declared_names(item) == {"one", "two"} for item in followed.snapshots)


def test_a_folder_that_goes_keeps_what_it_declared_and_is_found_again(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        shutil.rmtree(folder)
        eventually(lambda: not followed.last.complete)
        time.sleep(2 * UNHELPED.grace)
        assert followed.states == {"one": "Active"}
        assert f"{folder}: The folder can't be read: no such file" in followed.last.reason

        folder.mkdir()
        (folder / "one.yaml").write_text(pool_yaml("one", state="Inactive"))
        eventually(lambda: followed.last.complete)
        assert followed.states == {"one": "Inactive"}
        (folder / "two.yaml").write_text(pool_yaml("two"))
        eventually(lambda: set(followed.states) == {"one", "two"})


def test_a_folder_replaced_by_another_is_watched_in_its_place(
    folder: Path, tmp_path: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    (tmp_path / "next").mkdir()
    (tmp_path / "next/two.yaml").write_text(pool_yaml("two"))
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        folder.rename(tmp_path / "former")
        (tmp_path / "next").rename(folder)
        eventually(lambda: followed.states == {"two": "Active"})
        (folder / "two.yaml").write_text(pool_yaml("two", state="Inactive"))
        eventually(lambda: followed.states == {"two": "Inactive"})


def test_a_link_to_a_folder_is_followed_when_it_is_switched(
    folder: Path, tmp_path: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/one.yaml").write_text(pool_yaml("one", state="Inactive"))
    current = tmp_path / "current"
    current.symlink_to(folder)
    with following(DirectorySource(current, timing=UNHELPED)) as followed:
        eventually(lambda: followed.states == {"one": "Active"})
        (tmp_path / "new").symlink_to("other")
        (tmp_path / "new").rename(current)
        eventually(lambda: followed.states == {"one": "Inactive"})
        (tmp_path / "other/one.yaml").write_text(pool_yaml("one"))
        eventually(lambda: followed.states == {"one": "Active"})


def test_a_folder_that_is_missing_at_first_is_not_complete(
    tmp_path: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    with following(DirectorySource(tmp_path / "later", timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        assert not followed.last.complete
        assert followed.last.declared == ()
        (tmp_path / "later").mkdir()
        (tmp_path / "later/one.yaml").write_text(pool_yaml("one"))
        eventually(lambda: followed.last.complete)
        assert followed.states == {"one": "Active"}


def test_an_emptied_folder_is_not_complete(folder: Path, eventually: Eventually) -> None:
    with following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        (folder / "one.yaml").unlink()
        eventually(lambda: not followed.states)
        assert not followed.last.complete
        assert followed.last.reason == "It holds no manifest."


def test_a_folder_that_may_not_be_read_keeps_what_it_declared(
    folder: Path, eventually: Eventually
) -> None:
    with without_powers(), following(DirectorySource(folder, timing=UNHELPED)) as followed:
        eventually(lambda: followed.snapshots)
        folder.chmod(0)
        eventually(lambda: not followed.last.complete)
        assert followed.states == {"one": "Active"}
        folder.chmod(0o700)
        eventually(lambda: followed.last.complete)


def test_changes_that_nobody_reports_are_found_in_time(
    folder: Path, pool_yaml: Text, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    source = DirectorySource(folder, timing=Timing(rescan=0.2))
    monkeypatch.setattr(source._watch, "on_any_event", lambda event: None)
    with following(source) as followed:
        eventually(lambda: followed.snapshots)
        (folder / "one.yaml").write_text(pool_yaml("one", state="Inactive"))
        eventually(lambda: followed.states == {"one": "Inactive"})


def test_a_flood_of_events_is_survived(
    folder: Path, pool_yaml: Text, eventually: Eventually
) -> None:
    with following(DirectorySource(folder, timing=Timing(rescan=2.0))) as followed:
        eventually(lambda: followed.snapshots)
        for number in range(5000):
            (folder / f"note-{number}").touch()
            (folder / f"note-{number}").unlink()
        (folder / "made").mkdir()
        (folder / "made/two.yaml").write_text(pool_yaml("two"))
        eventually(lambda: "two" in followed.states)
        (folder / "made/two.yaml").write_text(pool_yaml("two", state="Inactive"))
        eventually(lambda: followed.states["two"] == "Inactive")
