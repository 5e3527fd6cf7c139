"""One agent with pools of all types at once, of which one hangs."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends.sizes import MIB
from controller.agent import Agent
from controller.resources import REQUESTED_AT
from tests.contract.candidate import PoolUnderTest, all_candidates
from tests.keeper import Keeper, pool, pool_key
from tests.lab import servers
from tests.lab.cable import Cable
from tests.lab.spare import IN_GUEST, Spares, run
from tests.lab.targets import Disk, FarNetwork, Target

pytestmark = pytest.mark.skipif(not IN_GUEST, reason="needs a kernel whose targets are its own")

LOOKS = 10
"""Looks at each pool, of which the median counts."""

PATIENCE = 240.0
"""Seconds after which the agent is taken to hang; what is looked at takes a small part of it."""

Places = Mapping[str, PoolUnderTest]


@pytest.fixture
def places(tmp_path: Path, device: Spares) -> Iterator[Places]:
    """A place for a pool of each type, by the pool's name."""
    made: dict[str, PoolUnderTest] = {}
    try:
        for name, candidate in sorted(all_candidates().items()):
            root = tmp_path / name
            root.mkdir()
            made[name] = candidate(root, device)
        yield made
    finally:
        for place in made.values():
            place.close()


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A way for a pool to hang.

    :param pool: its name.
    :param declaration: its manifest; None where it is one of those of all types.
    """

    pool: str
    declaration: dict[str, Any] | None = None
    begin: Callable[[], None]
    end: Callable[[], None]


@contextmanager
def silent_disk(root: Path, spares: Spares) -> Iterator[Trouble]:
    """A file system whose device answers nothing, as one whose paths are gone and queued for."""
    cable = Cable(spares, 64 * MIB)
    source = {"device": {"path": str(cable.device)}, "format": "ext4"}

    def begin() -> None:
        run("sync")
        Path("/proc/sys/vm/drop_caches").write_text("3")
        cable.freeze()

    target = root / "silent"
    yield Trouble(
        pool="silent-fs",
        declaration=pool("silent-fs", type="fs", fs=source, target={"path": str(target)}),
        begin=begin,
        end=cable.thaw,
    )
    run("umount", target)


@contextmanager
def stopped_nfs(root: Path, spares: Spares) -> Iterator[Trouble]:
    """The server of the pool of type netfs."""
    server = servers.nfs()
    yield Trouble(pool="netfs", begin=server.stop, end=server.start)


@contextmanager
def silent_target(root: Path, spares: Spares) -> Iterator[Trouble]:
    """An iSCSI target whose network drops what is sent there."""
    name = "iqn.2024-01.org.example:silent"
    disk = Disk(root, "silent-lun0", 4 * MIB)
    with FarNetwork() as network:
        target = Target(name, f"{network.address}:3260", far=network)
        target.give(0, disk)
        source = {"hosts": [{"name": network.address}], "device": {"path": name}}
        where = {"path": "/dev/disk/by-path"}
        yield Trouble(
            pool="silent-iscsi",
            declaration=pool("silent-iscsi", type="iscsi", iscsi=source, target=where),
            begin=network.silence,
            end=network.speak,
        )
        target.remove()
    disk.remove()


@pytest.fixture
def troubles(tmp_path: Path, device: Spares, places: Places) -> Iterator[list[Trouble]]:
    with ExitStack() as stack:
        ways = (silent_disk, stopped_nfs, silent_target)
        yield [stack.enter_context(make(tmp_path, device)) for make in ways]


@contextmanager
def agent(keeper: Keeper) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=Agent(keeper.store, keeper.engine).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        keeper.store.close()


def ready(keeper: Keeper, names: Iterable[str]) -> bool:
    return all(keeper.truth(pool_key(name), "Ready") == "True" for name in names)


def state(keeper: Keeper, name: str) -> str:
    return str(keeper.get(pool_key(name)).status.state)


def wait_until(keeper: Keeper, done: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < PATIENCE, f"the agent hangs: {keeper.told()}"
        time.sleep(0.05)


def reconcile_times(keeper: Keeper, names: Sequence[str], when: str) -> dict[str, float]:
    """The median time in which the agent answers when looks at all these pools are asked for at
    once, in seconds."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(LOOKS):
        stamp, left = f"{when} {turn}", set(names)
        began = time.monotonic()
        for name in names:
            keeper.store.annotate(pool_key(name), REQUESTED_AT, stamp)

        def answered(stamp: str = stamp, left: set[str] = left, began: float = began) -> bool:
            for name in sorted(left):
                if keeper.get(pool_key(name)).status.last_handled_request == stamp:
                    left.remove(name)
                    taken[name].append(time.monotonic() - began)
            return not left

        wait_until(keeper, answered)
    return {name: statistics.median(times) for name, times in taken.items()}


def show(before: Mapping[str, float], during: Mapping[str, Mapping[str, float]]) -> None:
    columns = {"all well": before, **{f"{name} hangs": times for name, times in during.items()}}
    print(f"median seconds of {LOOKS} looks")
    print(" ".join([f"{'pool':12}", *(f"{name:>18}" for name in columns)]))
    for name in before:
        cells = [f"{times[name]:.2f}" if name in times else "-" for times in columns.values()]
        print(" ".join([f"{name:12}", *(f"{cell:>18}" for cell in cells)]))


def test_a_pool_that_hangs_holds_up_none_of_any_type(
    tmp_path: Path, places: Places, troubles: list[Trouble]
) -> None:
    keeper = Keeper(tmp_path / "state")
    keeper.apply(*(place.declaration(name) for name, place in places.items()))
    keeper.apply(*(item.declaration for item in troubles if item.declaration))
    names = sorted({*places, *(item.pool for item in troubles)})
    during = {}
    with agent(keeper), ExitStack() as endings:
        wait_until(keeper, lambda: ready(keeper, names))
        before = reconcile_times(keeper, names, "before")
        assert ready(keeper, names)
        for trouble in troubles:
            others = [name for name in names if name != trouble.pool]
            end = endings.enter_context(ExitStack())
            end.callback(trouble.end)
            trouble.begin()
            keeper.store.annotate(pool_key(trouble.pool), REQUESTED_AT, "in trouble")
            during[trouble.pool] = reconcile_times(keeper, others, f"beside {trouble.pool}")
            wait_until(keeper, lambda: state(keeper, trouble.pool) == "Inaccessible")  # noqa: B023
            assert ready(keeper, others)
            end.close()
            wait_until(keeper, lambda: ready(keeper, names))
            assert state(keeper, trouble.pool) == "Running"
    show(before, during)
    for times in during.values():
        # Those that wait for what hangs take its deadline, which is 30 seconds.
        assert not [name for name in times if times[name] > 3 * before[name] + 3]
