"""Events, the journal of steps, and what a host remembers."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import controller.store
from controller.resources import Key
from controller.store import MAX_EVENT_AGE, MAX_EVENT_MESSAGE, Store

KEY = Key("StoragePool", "", "images")
OTHER = Key("StorageVolume", "default", "disk")


class Clock:
    def __init__(self) -> None:
        self.time = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)

    def __call__(self) -> datetime.datetime:
        return self.time

    def advance(self, **span: float) -> None:
        self.time += datetime.timedelta(**span)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with closing(Store(tmp_path, clock=clock)) as opened:
        yield opened


def test_events_are_given_back_in_order(store: Store) -> None:
    store.record_event(KEY, "u1", "Normal", "Started", "Pool images runs.")
    store.record_event(OTHER, "u2", "Warning", "NoSpace", "There is no room.")

    first, second = store.events()
    assert (first.key, first.uid, first.type, first.reason) == (KEY, "u1", "Normal", "Started")
    assert (first.count, first.first_time) == (1, "2024-05-01T12:00:00Z")
    assert store.events(since_id=first.id) == [second]
    assert store.events(key=KEY) == [first]


def test_an_event_that_repeats_is_counted_and_shown_again(store: Store, clock: Clock) -> None:
    store.record_event(KEY, "u1", "Warning", "NoSpace", "There is no room.")
    store.record_event(KEY, "u1", "Warning", "InUse", "Somebody holds it.")
    seen = store.events()[-1].id
    clock.advance(minutes=5)
    store.record_event(KEY, "u1", "Warning", "NoSpace", "There is no room.")

    (repeated,) = store.events(since_id=seen)
    assert repeated.count == 2
    assert repeated.first_time == "2024-05-01T12:00:00Z"
    assert repeated.last_time == "2024-05-01T12:05:00Z"
    assert len(store.events()) == 2


@pytest.mark.parametrize(
    "other",
    [
        (OTHER, "u1", "Warning", "NoSpace", "m"),
        (KEY, "u2", "Warning", "NoSpace", "m"),
        (KEY, "u1", "Normal", "NoSpace", "m"),
        (KEY, "u1", "Warning", "InUse", "m"),
        (KEY, "u1", "Warning", "NoSpace", "n"),
    ],
)
def test_events_that_differ_are_kept_apart(
    store: Store, other: tuple[Key, str, controller.store.EventType, str, str]
) -> None:
    store.record_event(KEY, "u1", "Warning", "NoSpace", "m")
    store.record_event(*other)
    assert [item.count for item in store.events()] == [1, 1]


def test_an_event_that_repeats_much_later_is_a_new_one(store: Store, clock: Clock) -> None:
    store.record_event(KEY, "u1", "Normal", "Started", "m")
    clock.advance(hours=1)
    store.record_event(KEY, "u1", "Normal", "Started", "m")
    assert [item.count for item in store.events()] == [1, 1]


def test_a_long_message_is_cut(store: Store) -> None:
    store.record_event(KEY, "u1", "Normal", "Started", "x" * 5000)
    store.record_event(KEY, "u1", "Normal", "Started", "x" * 5000)
    (event,) = store.events()
    assert len(event.message) == MAX_EVENT_MESSAGE
    assert event.message.endswith("x…")
    assert event.count == 2


def test_only_the_newest_events_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller.store, "MAX_EVENTS", 50)
    for number in range(300):
        store.record_event(KEY, "u1", "Normal", "Counted", f"{number}")
    messages = [item.message for item in store.events()]
    assert 50 <= len(messages) < 50 + 64
    assert messages[-1] == "299"
    assert messages == sorted(messages, key=int)


def test_old_events_go(store: Store, clock: Clock) -> None:
    store.record_event(KEY, "u1", "Normal", "Old", "m")
    clock.advance(days=MAX_EVENT_AGE.days, hours=1)
    for number in range(70):
        store.record_event(KEY, "u1", "Normal", "New", f"{number}")
    assert {item.reason for item in store.events()} == {"New"}


def test_a_step_is_unfinished_until_it_is_ended(tmp_path: Path, store: Store) -> None:
    first = store.begin_step(KEY, "u1", "BuildPool", "/srv/images", {"overwrite": False})
    second = store.begin_step(OTHER, "u2", "CreateVolume", "/srv/images/disk")
    store.end_step(first)

    with closing(Store(tmp_path)) as after_restart:
        (step,) = after_restart.unfinished_steps()
    assert (step.id, step.key, step.verb, step.target) == (
        second,
        OTHER,
        "CreateVolume",
        "/srv/images/disk",
    )
    assert step.ended is None
    (ended,) = store.finished_steps()
    assert (ended.detail, ended.error) == ({"overwrite": False}, "")
    store.end_step(second, "There is no room.")
    assert store.unfinished_steps() == []
    assert store.finished_steps()[-1].error == "There is no room."


def test_finished_steps_are_bounded_and_unfinished_ones_are_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller.store, "MAX_FINISHED_STEPS", 20)
    kept = store.begin_step(KEY, "u1", "BuildPool", "t")
    for _ in range(150):
        store.end_step(store.begin_step(KEY, "u1", "StartPool", "t"))
    assert [item.id for item in store.unfinished_steps()] == [kept]
    assert 20 <= len(store.finished_steps()) < 20 + 64


def test_runtime_facts_are_kept_over_a_restart(tmp_path: Path, store: Store) -> None:
    assert store.runtime("u1") == {}
    store.set_runtime("u1", {"boot": "b1", "seen": True})
    store.set_runtime("u1", {"boot": "b2"})
    with closing(Store(tmp_path)) as after_restart:
        assert after_restart.runtime("u1") == {"boot": "b2"}
