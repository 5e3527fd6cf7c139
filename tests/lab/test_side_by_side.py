"""One agent with pools of several types at once, and one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.base import BackendContext
from backends.host.marks import MarkStore
from controller.agent import Agent
from controller.engine import Engine
from controller.resources import REQUESTED_AT
from tests.contract.candidate import PoolUnderTest, all_candidates
from tests.keeper import Keeper, dir_pool, pool_key
from tests.lab.cable import Cable
from tests.lab.spare import MIB, Spares, run

TYPES = ("dir", "fs", "iscsi", "logical")
"""Types whose places stand beside each other: some others name their disks as iscsi does."""

PATIENCE = 240.0
"""Seconds after which the agent is taken to hang; what is looked at takes a small part of it."""


@pytest.fixture
def places(tmp_path: Path, device: Spares) -> Iterator[dict[str, PoolUnderTest]]:
    """A place for a pool of each of these types, by the pool's name."""
    made: dict[str, PoolUnderTest] = {}
    for name in TYPES:
        root = tmp_path / name
        root.mkdir()
        made[f"pool-{name}"] = all_candidates()[name](root, device)
    yield made
    for place in made.values():
        place.close()


@pytest.fixture
def frozen(tmp_path: Path, device: Spares) -> Iterator[tuple[Path, Cable]]:
    """A directory on a device that can be made to hang."""
    cable = Cable(device, 64 * MIB)
    point = tmp_path / "frozen"
    point.mkdir()
    run("mkfs.ext4", "-q", cable.device)
    run("mount", cable.device, point)
    yield point, cable
    run("umount", point)


def handled(keeper: Keeper, name: str, stamp: str) -> bool:
    return keeper.get(pool_key(name)).status.last_handled_request == stamp


def seconds_until(done: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < PATIENCE, "the agent hangs"
        time.sleep(0.02)
    return time.monotonic() - began


def reconcile_times(keeper: Keeper, names: list[str], stamp: str) -> dict[str, float]:
    """Ask for a look at each pool in turn; how long each took to be answered, in seconds."""
    times = {}
    for name in names:
        keeper.store.annotate(pool_key(name), REQUESTED_AT, stamp)
        times[name] = seconds_until(lambda: handled(keeper, name, stamp))  # noqa: B023
    return times


def test_a_pool_that_hangs_holds_up_no_other(
    tmp_path: Path, places: dict[str, PoolUnderTest], frozen: tuple[Path, Cable]
) -> None:
    point, cable = frozen
    keeper = Keeper(tmp_path / "state")
    keeper.apply(*(place.declaration(name) for name, place in places.items()))
    keeper.apply(dir_pool("hanging", point))
    engine = Engine(
        keeper.store, BackendContext(marks=MarkStore(keeper.state)), node="here", boot="boot-1"
    )
    stop = threading.Event()
    agent = threading.Thread(target=Agent(keeper.store, engine).run, args=(stop,))
    agent.start()
    try:
        for name in [*places, "hanging"]:
            seconds_until(lambda: keeper.truth(pool_key(name), "Ready") == "True")  # noqa: B023
        before = reconcile_times(keeper, sorted(places), "before")
        run("sync")
        Path("/proc/sys/vm/drop_caches").write_text("3")
        cable.freeze()
        keeper.store.annotate(pool_key("hanging"), REQUESTED_AT, "hung")
        during = reconcile_times(keeper, sorted(places), "during")
        assert not handled(keeper, "hanging", "hung"), "nothing hung, so nothing was shown"
        for name in places:
            keeper.assert_ready(pool_key(name))
            print(f"{name}: {before[name]:.2f} s before, {during[name]:.2f} s beside a hung pool")
        cable.thaw()
        seconds_until(lambda: handled(keeper, "hanging", "hung"))
        keeper.assert_ready(pool_key("hanging"))
    finally:
        cable.thaw()
        stop.set()
        agent.join()
        keeper.store.close()
