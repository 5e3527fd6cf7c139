"""The command line as an administrator meets it: commands that end, and agents that run on."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).resolve().parents[1]
CALL = "import sys; from controller.cli.main import main; sys.exit(main())"

PATIENCE = 120.0
"""Seconds until a test gives up waiting; no test passes faster for it."""

MEMORY = 4 * 2**30
"""Bytes of address space of a command, so that one that runs wild ends before the host does."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_CAPBSET_DROP = 24

Found = TypeVar("Found")


@dataclass(frozen=True)
class Ended:
    """What a command ended with, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def words(self) -> str:
        """All of its messages, for an assertion to show."""
        return f"exit code {self.code}\n{self.out}\n{self.err}"


class Poolkeeper:
    """Commands over one state directory, from a working directory that is not the checkout."""

    def __init__(self, state: Path, directory: Path) -> None:
        self.state = state
        self.directory = directory

    def argv(self, *arguments: object) -> list[str]:
        return [sys.executable, "-c", CALL, *map(str, arguments)]

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("POOLKEEPER_")
        }
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(paths), "POOLKEEPER_STATE_DIR": str(self.state)}
        return {**inherited, **own, **more}

    def __call__(self, *arguments: object, ordinary: bool = False, **environment: str) -> Ended:
        """Run a command to its end.

        :param ordinary: without the powers of root over others' files, and over its own.
        """

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            if ordinary and os.geteuid() == 0:
                _give_up_powers()

        ended = subprocess.run(
            self.argv(*arguments),
            env=self.environment(**environment),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            preexec_fn=limit,
        )
        return _orderly(Ended(ended.returncode, ended.stdout, ended.stderr))

    def done(self, *arguments: object, **environment: str) -> Ended:
        """Run a command that has to succeed."""
        ended = self(*arguments, **environment)
        assert ended.code == 0, ended.words
        return ended

    def object(self, kind: str, name: str) -> dict[str, Any]:
        """A resource as ``get -o json`` prints it."""
        found: dict[str, Any] = self.done("get", kind, name, "-o", "json").json
        return found

    @contextlib.contextmanager
    def agent(self, *arguments: object, **environment: str) -> Iterator[Agent]:
        """An agent that runs meanwhile, and has to end well when it is told to."""
        with (self.directory / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                self.argv("run", *arguments),
                env=self.environment(**environment),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        agent = Agent(process, self.directory / "agent.log")
        try:
            agent.wait_for(lambda: "keeping the pools" in agent.log)
            yield agent
            assert agent.stop() == 0, agent.log
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Agent:
    """An agent that runs, and the file that its log goes to."""

    process: subprocess.Popen[bytes]
    file: Path

    @property
    def log(self) -> str:
        return self.file.read_text(errors="replace")

    def wait_for(self, found: Callable[[], Found], *, within: float = PATIENCE) -> Found:
        """Poll until something is there or true; what it is."""
        deadline = time.monotonic() + within
        while not (answer := found()):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"waited in vain\n{self.log}"
            time.sleep(0.05)
        return answer

    def stop(self) -> int:
        """End it as a service manager does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def _give_up_powers() -> None:
    """Let the program that is executed next have no capability (capabilities(7))."""
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        if _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def _orderly(ended: Ended) -> Ended:
    assert "Traceback" not in ended.err, ended.words
    return ended


def truth(found: dict[str, Any], type: str = "Ready") -> str | None:
    """Status of a condition of a resource; None where it has none."""
    return str(shown["status"]) if (shown := condition(found, type)) else None


def condition(found: dict[str, Any], type: str = "Ready") -> dict[str, Any]:
    """A condition of a resource; empty where there is none."""
    listed: list[dict[str, Any]] = found["status"].get("conditions", [])
    return next((item for item in listed if item["type"] == type), {})
