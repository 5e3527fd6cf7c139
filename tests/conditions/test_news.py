"""What a look writes and tells: news once, and nothing for what moves by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends import errors
from backends.host import mounts
from controller.resources import Key
from controller.store import Store
from tests.keeper import Keeper, dir_pool, pool_key, volume, volume_key

POOL, DISK = pool_key("images"), volume_key("disk")
CAPACITY = 2**40


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


def start(keeper: Keeper, images: Path, **spec: Any) -> None:
    keeper.apply(dir_pool("images", images, **spec), volume("disk", "images", capacity="1Mi"))
    keeper.settle()
    keeper.assert_ready(POOL, DISK)


def fill(monkeypatch: pytest.MonkeyPatch, used: int) -> None:
    """Let the file system have so many bytes in use."""
    found = mounts.Space(capacity=CAPACITY, available=CAPACITY - used, allocation=used)
    monkeypatch.setattr(mounts, "space", lambda fd: found)


def test_a_busy_file_system_is_not_news(
    keeper: Keeper, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(monkeypatch, 2**39)
    start(keeper, images)
    before = keeper.recorded()
    for used in (2**39 + 4096, 2**39 - 2**20, 2**39 + CAPACITY // 101):
        fill(monkeypatch, used)
        keeper.reconcile()
        assert keeper.recorded() == before
    assert keeper.get(POOL).status.allocation == 2**39


def test_a_file_system_that_fills_is_news(
    keeper: Keeper, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(monkeypatch, 2**39)
    start(keeper, images)
    for step in range(1, 11):  # each too small to tell, together not
        fill(monkeypatch, 2**39 + step * CAPACITY // 200)
        keeper.reconcile()
    status = keeper.get(POOL).status
    assert abs(status.allocation - (2**39 + CAPACITY // 20)) <= CAPACITY // 100
    assert status.available == CAPACITY - status.allocation


def test_other_news_bring_exact_sizes_along(
    keeper: Keeper, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(monkeypatch, 2**39)
    start(keeper, images)
    fill(monkeypatch, 2**39 + 4096)
    (images / "stranger").write_bytes(b"x")
    keeper.reconcile()
    assert keeper.get(POOL).status.allocation == 2**39 + 4096


def test_a_volume_that_is_written_to_is_no_news_for_each_block(
    keeper: Keeper, images: Path
) -> None:
    keeper.apply(dir_pool("images", images), volume("disk", "images", capacity="64Mi"))
    keeper.settle()
    before = keeper.recorded()
    with (images / "disk").open("r+b") as file:
        file.write(b"x" * 4096)
    keeper.reconcile()
    assert keeper.recorded() == before
    with (images / "disk").open("r+b") as file:
        file.write(b"x" * 2**20)
    keeper.reconcile()
    assert keeper.get(DISK).status.allocation >= 2**20


def test_a_status_that_is_refused_holds_up_no_other(
    keeper: Keeper, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = volume_key("a-bad")
    keeper.apply(
        dir_pool("images", images),
        volume("a-bad", "images", capacity="1Mi"),
        volume("disk", "images", capacity="1Mi"),
    )
    write = Store.write_status

    def picky(store: Store, key: Key, *rest: Any, **more: Any) -> bool:
        if key == bad:
            raise errors.SystemFailure(f"The server refused to write the status of {key}.")
        return write(store, key, *rest, **more)

    monkeypatch.setattr(Store, "write_status", picky)
    for _ in range(3):
        with pytest.raises(errors.SystemFailure, match="a-bad"):
            keeper.reconcile()
    keeper.assert_ready(POOL, DISK)
    monkeypatch.undo()
    keeper.settle()
    keeper.assert_ready(bad)


def test_a_store_that_is_away_ends_the_pass(
    keeper: Keeper, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Key] = []

    def away(store: Store, key: Key, *rest: Any, **more: Any) -> bool:
        tried.append(key)
        raise errors.Inaccessible("The server is away.")

    keeper.apply(dir_pool("images", images), volume("disk", "images", capacity="1Mi"))
    monkeypatch.setattr(Store, "write_status", away)
    with pytest.raises(errors.Inaccessible):
        keeper.reconcile()
    assert len(tried) == 1


def test_a_pool_is_told_of_from_its_beginning_to_its_end(keeper: Keeper, images: Path) -> None:
    start(keeper, images, deletion_policy="Delete")
    keeper.annotate(POOL, requested_at="noon")
    keeper.settle()
    keeper.settle()
    keeper.delete(DISK)
    (images / "disk").unlink()
    keeper.delete(POOL)
    keeper.settle()
    assert keeper.gone(POOL)
    assert keeper.reasons(POOL) == [
        "Defined", "Built", "Started", "Refreshed", "Stopped", "Deleted", "Undefined",
    ]  # fmt: skip
    assert all(item.count == 1 for item in keeper.events(POOL))


def test_a_pool_that_leaves_its_data_is_undefined_and_not_deleted(
    keeper: Keeper, images: Path
) -> None:
    start(keeper, images)
    keeper.delete(POOL)
    assert keeper.reasons(POOL)[-1] == "Undefined"
    assert "Deleted" not in keeper.reasons(POOL)


def test_drift_that_stays_is_told_of_once(keeper: Keeper, images: Path) -> None:
    start(keeper, images)
    keeper.apply(
        dir_pool("images", images, suspend=True),
        volume("disk", "images", capacity="1Mi", permissions={"mode": "0640"}),
    )
    (images / "disk").chmod(0o600)
    for _ in range(3):
        keeper.reconcile()
    told = [item for item in keeper.events(DISK) if item.reason == "Drifted"]
    assert [item.count for item in told] == [1]
    assert "0600" in told[0].message


def test_waiting_for_a_source_that_is_being_made_is_no_trouble(
    keeper: Keeper, images: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 2**20)
    file = {"file": {"path": str(source), "format": "raw"}}
    clone = {"clone": {"volumeRef": {"name": "base"}}}
    copy = volume_key("copy")
    keeper.apply(
        dir_pool("images", images),
        volume("base", "images", source=file),
        volume("copy", "images", source=clone),
    )
    keeper.reconcile()
    assert "not there yet" in keeper.assert_retrying(copy, "Progressing")
    assert keeper.engine.jobs.idle(60)
    keeper.settle()
    keeper.assert_ready(copy)
    assert not [item for item in keeper.events() if item.type == "Warning"]


def test_waiting_for_a_source_that_is_in_trouble_is_told(
    keeper: Keeper, images: Path, tmp_path: Path
) -> None:
    file = {"file": {"path": str(tmp_path / "none"), "format": "raw"}}
    clone = {"clone": {"volumeRef": {"name": "base"}}}
    copy = volume_key("copy")
    keeper.apply(
        dir_pool("images", images),
        volume("base", "images", source=file),
        volume("copy", "images", source=clone),
    )
    for _ in range(3):
        keeper.reconcile()
        assert keeper.engine.jobs.idle(60)
    assert "base, which is not there yet" in keeper.assert_retrying(copy, "NotFound")
    assert "NotFound" in keeper.reasons(copy)
