"""Workers: one at a pool, and waits that grow."""

import itertools
import threading
import time

from controller import retrying
from controller.engine import Outcome
from controller.workers import Workers
from tests.agent.conftest import PATIENCE, wait_until

IDLE = Outcome(acted=False, retry=False, interval=600)
TROUBLED = Outcome(acted=False, retry=True, interval=600)


def test_tries_are_further_and_further_apart(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.05)
    times = []

    def reconcile(name):
        times.append(time.monotonic())
        return TROUBLED

    made = Workers(reconcile)
    made.wake(["images"])
    wait_until(lambda: len(times) >= 5)
    assert made.stop(PATIENCE) == []
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    for number, gap in enumerate(gaps[:4]):
        assert gap >= 0.9 * 0.05 * 2**number - 0.005


def test_a_mistake_in_one_pass_ends_neither_the_worker_nor_the_others(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_RETRY", 0.01)
    calls = []

    def reconcile(name):
        calls.append(name)
        if name == "bad":
            raise ZeroDivisionError
        return IDLE

    made = Workers(reconcile)
    made.wake(["bad", "good"])
    wait_until(lambda: calls.count("bad") > 2 and "good" in calls)
    assert made.stop(PATIENCE) == []


def test_a_wake_during_a_pass_leads_to_another_pass():
    calls, entered, go_on = [], threading.Event(), threading.Event()

    def reconcile(name):
        calls.append(name)
        entered.set()
        go_on.wait(PATIENCE)
        return IDLE

    made = Workers(reconcile)
    made.wake(["images"])
    assert entered.wait(PATIENCE)
    made.wake(["images"])
    go_on.set()
    wait_until(lambda: len(calls) == 2)
    assert made.stop(PATIENCE) == []


def test_a_pool_declared_anew_waits_for_the_pass_over_the_former_one():
    active, most, calls = [0], [0], []
    entered, go_on = threading.Event(), threading.Event()

    def reconcile(name):
        active[0] += 1
        most[0] = max(most[0], active[0])
        calls.append(name)
        entered.set()
        go_on.wait(PATIENCE)
        active[0] -= 1
        return IDLE

    made = Workers(reconcile)
    made.wake(["images"])
    assert entered.wait(PATIENCE)
    made.keep([])
    made.wake(["images"])
    made.keep([])
    made.wake(["images"])
    time.sleep(0.2)
    assert len(calls) == 1
    go_on.set()
    wait_until(lambda: len(calls) >= 2)
    assert made.stop(PATIENCE) == []
    assert most == [1]


def test_a_stop_waits_for_a_pass_over_a_pool_that_is_no_longer_declared():
    entered, go_on = threading.Event(), threading.Event()

    def reconcile(name):
        entered.set()
        go_on.wait(PATIENCE)
        return IDLE

    made = Workers(reconcile)
    made.wake(["images"])
    assert entered.wait(PATIENCE)
    made.keep([])
    assert made.stop(0.05) == ["images"]
    go_on.set()
