"""Ends a process with SIGKILL right before its Nth effect on the host or the store."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controller.store import Store
from tests.keeper import Keeper

EFFECTS = frozenset(
    {
        "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.setxattr",
        "os.removexattr", "os.chmod", "os.chown", "os.link", "subprocess.Popen",
        "ctypes.call_function",
    }
)  # fmt: skip
LOOKING = ("fullreport", "--no-act", "settle", "--raw", "--json")
"""Words in the arguments of host commands that change nothing."""

MARKS_KEPT = frozenset({"os.rename", "os.remove"})
"""How a mark in the state directory is written, and how it is removed."""

STORE_WRITES = (
    "begin_step", "end_step", "write_status", "add_finalizer", "remove_finalizer", "record_event",
    "request_deletion",
)  # fmt: skip


def kill_before(
    number: int, *, commands_only: bool = False, beside: frozenset[str] = frozenset()
) -> None:
    """Have this process killed right before its effect of that number; 1 is the next one.

    :param commands_only: whether only host commands count that change something.
    :param beside: audit events that count beside these.
    """
    lock = threading.Lock()
    count = 0

    def effect() -> None:
        nonlocal count
        with lock:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def hook_commands(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event == "subprocess.Popen" and not set(LOOKING) & set(map(str, arguments[1]))
        if changes or event in beside:
            effect()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
        if event in EFFECTS or writing:
            effect()

    if commands_only:
        sys.addaudithook(hook_commands)
        return
    for name in STORE_WRITES:
        setattr(Store, name, _before_and_after(getattr(Store, name), effect))
    sys.addaudithook(hook)


def _before_and_after(method: Callable[..., Any], effect: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        effect()
        result = method(*args, **kwargs)
        effect()
        return result

    return wrapped


def ended_by(work: Callable[[], None]) -> int:
    """Run in a child process; the signal that ended it, or 0 for an end without failure."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def at_every_step(
    state: Path,
    work: Callable[[Keeper], None],
    *,
    finished: Callable[[Keeper], None],
    prepared: Callable[[Keeper], None] = lambda keeper: None,
    undone: Callable[[Keeper], None] = lambda keeper: None,
    killed: Callable[[], None] = lambda: None,
    commands_only: bool = False,
    beside: frozenset[str] = frozenset(),
) -> int:
    """Kill the work before each of its effects in turn, each time from the beginning.

    After each kill a new process goes on with the same state, as an agent does that is started
    again, and has to come to the end.

    :param finished: asserts that the work is done.
    :param prepared: what is done before, without a kill.
    :param undone: brings the host back to where the work began.
    :param killed: asserts what holds right after a kill.
    :param commands_only: whether only host commands count as effects, where each takes long.
    :param beside: audit events that count beside these.
    :return: how many kills there were before the work came through.
    """
    for number in range(1, 1000):
        _with_keeper(state, prepared)
        signalled = ended_by(
            lambda: _killed_work(state, work, number, commands_only, beside)  # noqa: B023
        )
        if signalled:
            assert signalled == signal.SIGKILL
            killed()

        def go_on(keeper: Keeper) -> None:
            keeper.engine.recover()
            work(keeper)
            finished(keeper)
            undone(keeper)

        _with_keeper(state, go_on)
        shutil.rmtree(state)
        if not signalled:
            return number - 1
    raise AssertionError("the work never came through")


def _with_keeper(state: Path, work: Callable[[Keeper], None]) -> None:
    keeper = Keeper(state)
    try:
        work(keeper)
    finally:
        keeper.store.close()


def _killed_work(
    state: Path,
    work: Callable[[Keeper], None],
    number: int,
    commands_only: bool,
    beside: frozenset[str],
) -> None:
    keeper = Keeper(state)
    kill_before(number, commands_only=commands_only, beside=beside)
    work(keeper)
