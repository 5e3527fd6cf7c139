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
STORE_WRITES = (
    "begin_step", "end_step", "write_status", "add_finalizer", "remove_finalizer", "record_event",
    "request_deletion",
)  # fmt: skip


def kill_before(number: int) -> None:
    """Have this process killed right before its effect of that number; 1 is the next one."""
    lock = threading.Lock()
    count = 0

    def effect() -> None:
        nonlocal count
        with lock:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
        if event in EFFECTS or writing:
            effect()

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
    undone: Callable[[Keeper], None],
    killed: Callable[[], None] = lambda: None,
) -> int:
    """Kill the work before each of its effects in turn, each time from the beginning.

    After each kill a new process goes on with the same state, as an agent does that is started
    again, and has to come to the end.

    :param finished: asserts that the work is done.
    :param undone: brings the host back to where the work began.
    :param killed: asserts what holds right after a kill.
    :return: how many kills there were before the work came through.
    """
    for number in range(1, 1000):
        signalled = ended_by(lambda: _killed_work(state, work, number))  # noqa: B023
        if signalled:
            assert signalled == signal.SIGKILL
            killed()
        again = Keeper(state)
        try:
            again.engine.recover()
            work(again)
            finished(again)
            undone(again)
        finally:
            again.store.close()
        shutil.rmtree(state)
        if not signalled:
            return number - 1
    raise AssertionError("the work never came through")


def _killed_work(state: Path, work: Callable[[Keeper], None], number: int) -> None:
    keeper = Keeper(state)
    kill_before(number)
    work(keeper)
