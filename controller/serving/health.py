"""Whether the agent is alive and ready, as those ask who run it.

Alive means that its loops move: a loop that stands still is mended by a new start, and by nothing
else. Ready means that it knows what is declared. A server or a disk that is away makes the agent
unready at most, for a new start would not bring it back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

Check = Callable[[], str]
"""What is wrong, in words; empty where all is well. Called from any thread; it must not block."""

STILL_WITHIN = 600.0
"""Seconds that a loop may take for one turn. A list that is tried again and again at a server that
asks for patience is the longest; it is bounded by ``apiserver.ATTEMPTS`` and ``LONGEST_WAIT``."""


class Pulse:
    """Shows that a loop moves."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def beat(self) -> None:
        """To be called in each turn of the loop."""
        self._last = time.monotonic()

    def check(self) -> str:
        since = time.monotonic() - self._last
        return f"has not moved for {since:.0f} s" if since > STILL_WITHIN else ""


class Health:
    """The checks of one agent. Safe for threads."""

    def __init__(self) -> None:
        self._alive: dict[str, Check] = {}
        self._ready: dict[str, Check] = {}
        self._lock = threading.Lock()

    def pulse(self, name: str) -> Pulse:
        """Watch over a loop, from now on."""
        made = Pulse()
        self.alive_while(name, made.check)
        return made

    def threads(self, *threads: threading.Thread) -> None:
        """Watch over threads that were started and are not to end."""
        for thread in threads:
            self.alive_while(thread.name, _lives(thread))

    def alive_while(self, name: str, check: Check) -> None:
        with self._lock:
            self._alive[name] = check

    def ready_while(self, name: str, check: Check) -> None:
        with self._lock:
            self._ready[name] = check

    def alive(self) -> Mapping[str, str]:
        """What each check of being alive found wrong; empty words where all is well."""
        return self._found(self._alive)

    def ready(self) -> Mapping[str, str]:
        """The same for being ready."""
        return self._found(self._ready)

    def is_ready(self) -> bool:
        return not any(self.ready().values())

    def _found(self, checks: dict[str, Check]) -> Mapping[str, str]:
        with self._lock:
            current = dict(checks)
        return {name: check() for name, check in current.items()}


def _lives(thread: threading.Thread) -> Check:
    return lambda: "" if thread.is_alive() else "its thread has ended"
