"""A directory that an NFS server in the lab exports, mounted by NFS 4.2, which keeps marks."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from backends import mountedvolumes
from backends.registry import pool_type
from tests.contract.candidates.dir import Candidate as Dir
from tests.keeper import pool, tree
from tests.lab import servers
from tests.lab.spare import Spares, run
from tests.lab.targets import wait_until

_numbers = itertools.count()


def hanging() -> list[str]:
    """Looks of this process that a server has not answered yet."""
    return [item.name for item in threading.enumerate() if item.name.startswith("bounded pool")]


class Candidate(Dir):
    type = pool_type("netfs")
    held_while_lost = True
    lab = True
    guest = True

    def __init__(self, root: Path, spares: Spares) -> None:
        super().__init__(root, spares)
        self._path = root / "srv" / "images"
        self._server = servers.nfs()
        self._exported = self._server.directory(f"{os.getpid()}-{next(_numbers)}")

    def close(self) -> None:
        if not self._server.running:
            self.bring_back()
        if os.path.ismount(self._path):
            run("umount", self._path)

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        target = {"path": str(self._path), **spec.pop("target", {})}
        source = {
            "hosts": [{"name": "127.0.0.1"}],
            "directory": f"/{self._exported.name}",
            "format": "nfs",
            "protocolVersion": "4.2",
            "mountOptions": ["actimeo=0"],  # what strangers do on the server is seen at once
        }
        return pool(name, type="netfs", netfs=source, target=target, **spec)

    def plant_volume(self, name: str, size: int) -> str:
        with (self._exported / name).open("xb") as file:
            file.truncate(size)
        return name

    def remove_volume(self, name: str) -> None:
        (self._exported / name).unlink()

    def hide(self) -> None:
        self._server.stop()

    def bring_back(self) -> None:
        """Start the server, and wait until clients that hung on it have gone on."""
        self._server.start()
        wait_until(lambda: not hanging())

    def exists(self) -> bool:
        return self._server.running

    def owner(self) -> dict[str, str]:
        return {}

    def names(self) -> list[str]:
        return sorted(os.listdir(self._exported))

    def evidence(self, name: str | None = None) -> object:
        return tree(self._exported / name if name else self._exported)

    def hold_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody else uses the server; and a test does not wait long for one that is down."""
        monkeypatch.setattr(mountedvolumes, "LOOK_SECONDS", 3.0)
