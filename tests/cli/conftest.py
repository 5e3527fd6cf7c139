"""The command line over a state directory and pool directories of the test's own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controller.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    """What a command ended with, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class CommandLine:
    """Calls commands in this process, or starts them."""

    def __init__(
        self,
        state: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.state = state
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str | Path, stdin: str = "") -> Result:
        given = io.TextIOWrapper(io.BytesIO(stdin.encode()))
        self._monkeypatch.setattr(sys, "stdin", given)
        self._capsys.readouterr()
        code = main([str(item) for item in arguments])
        written = self._capsys.readouterr()
        return Result(code, written.out, written.err)

    def argv(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "controller.cli.main", *map(str, arguments)]

    def environment(self, **more: str) -> dict[str, str]:
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}

    def process(self, *arguments: str | Path, **environment: str) -> Result:
        """The same as a process of its own, with its output in pipes."""
        ended = subprocess.run(
            self.argv(*arguments),
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return Result(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def poolkeeper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    state = tmp_path / "state"
    monkeypatch.setenv("POOLKEEPER_STATE_DIR", str(state))
    monkeypatch.delenv("POOLKEEPER_NODE_NAME", raising=False)
    return CommandLine(state, capsys, monkeypatch)


Manifest = Callable[..., Path]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Where the pool of the manifests stands, once it does."""
    return tmp_path / "images"


@pytest.fixture
def write(tmp_path: Path) -> Manifest:
    """Write objects as a manifest, as JSON, which is YAML too."""

    def written(name: str, *objects: dict[str, Any]) -> Path:
        path = tmp_path / "manifests" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("---\n".join(f"{json.dumps(item, indent=1)}\n" for item in objects))
        return path

    return written


def resource(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "poolkeeper.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, **metadata},
        "spec": spec,
    }


@pytest.fixture
def pool(images: Path) -> Callable[..., dict[str, Any]]:
    """A dir pool; keywords are fields of its spec."""

    def made(name: str = "images", *, path: Path = images, **spec: Any) -> dict[str, Any]:
        target = {"type": "dir", "target": {"path": str(path)}}
        return resource("StoragePool", name, {**target, **spec})

    return made


@pytest.fixture
def volume() -> Callable[..., dict[str, Any]]:
    """A sparse volume of 1 MiB; keywords are fields of its spec."""

    def made(name: str = "disk", *, namespace: str = "default", **spec: Any) -> dict[str, Any]:
        usual = {"poolRef": {"name": "images"}, "capacity": "1Mi", "allocation": 0}
        return resource("StorageVolume", name, {**usual, **spec}, namespace=namespace)

    return made


@pytest.fixture
def agent(poolkeeper: CommandLine) -> Any:
    """Start agents as processes; what is left of them ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            poolkeeper.argv("run", *arguments),
            env=poolkeeper.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "keeping the pools" in line:
                return process
        raise AssertionError(f"the agent ended with {process.wait()}")

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
