"""A virtual SCSI host of this kernel's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backends.registry import pool_type
from tests.contract.luns import LunsUnderTest
from tests.keeper import pool
from tests.lab.targets import LoopHost


class Candidate(LunsUnderTest):
    type = pool_type("scsi")
    prefix = "unit:0:1:"
    given = "unit:0:1:0"
    runs_commands = False

    def make_group(self) -> LoopHost:
        self._host = LoopHost()
        return self._host

    def close(self) -> None:
        self.bring_back()
        super().close()

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        source = {"adapter": {"name": self._host.name}}
        return pool(name, type="scsi", scsi=source, target={"path": "/dev/disk/by-id"}, **spec)

    @property
    def _state(self) -> Path:
        return self._host.sysfs / "state"

    def hide(self) -> None:
        self._state.write_text("recovery\n")

    def bring_back(self) -> None:
        if not self.exists():
            self._state.write_text("running\n")

    def exists(self) -> bool:
        return self._state.read_text().strip() == "running"
