"""Who works on a state directory: one agent, or one command at a time.

The lock is flock(2) on ``agent.lock``, so it goes with the process that holds it, however that
ends. What the file says of the holder is for people; only the lock itself counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

from backends import errors

FILE_NAME = "agent.lock"

Role = Literal["agent", "command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds the lock.

    :param role: ``agent`` keeps it as long as it runs, ``command`` until its work is done.
    """

    role: Role
    pid: int


class AgentLock:
    """The right to work on what a state directory declares.

    All methods raise ``errors.StorageError`` where the directory can't be used.
    """

    def __init__(self, state_directory: Path) -> None:
        self._path = state_directory / FILE_NAME
        self._fd = -1

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def try_acquire(self, role: Role) -> bool:
        """Take the lock if nobody has it; false, at once, where somebody has."""
        if self.held:
            return True
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise errors.from_os_error(error, doing=f"open {self._path}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps({"role": role, "pid": os.getpid()}).encode(), 0)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError as error:
            os.close(fd)
            raise errors.from_os_error(error, doing=f"lock {self._path}") from error
        self._fd = fd
        return True

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        if not self.held:
            return
        with contextlib.suppress(OSError):  # the content is for people; closing is what counts
            os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = -1

    def holder(self) -> Holder | None:
        """Who wrote itself into the file last and still lives; for after a failed try."""
        try:
            known = json.loads(self._path.read_bytes())
            found = Holder(role=known["role"], pid=int(known["pid"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return found if found.role in get_args(Role) and _lives(found.pid) else None

    def __enter__(self) -> AgentLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
