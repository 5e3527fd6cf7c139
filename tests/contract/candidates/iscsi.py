"""A target of this kernel's own, over the loopback."""

from __future__ import annotations

from typing import Any

from backends.host import initiator
from backends.registry import pool_type
from tests.contract.luns import LunsUnderTest
from tests.keeper import pool
from tests.lab import targets
from tests.lab.targets import Target, wait_until

IQN = "iqn.2024-01.org.example:contract"


class Candidate(LunsUnderTest):
    type = pool_type("iscsi")
    prefix = "unit:0:0:"
    given = "unit:0:0:0"

    def make_group(self) -> Target:
        self._daemon = targets.initiator()
        self._daemon.__enter__()
        self._target = Target(IQN, "127.0.0.1:3260")
        return self._target

    def close(self) -> None:
        self._target.up()
        self._daemon.__exit__(None, None, None)
        super().close()

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        source = {"hosts": [{"name": "127.0.0.1"}], "device": {"path": IQN}}
        return pool(name, type="iscsi", iscsi=source, target={"path": "/dev/disk/by-path"}, **spec)

    def hide(self) -> None:
        self._target.down()
        wait_until(lambda: not _logged_in())

    def bring_back(self) -> None:
        self._target.up()
        wait_until(_logged_in)

    def exists(self) -> bool:
        return (self._target.group / "enable").read_text().strip() == "1"


def _logged_in() -> bool:
    return any(item.state == initiator.LOGGED_IN for item in initiator.sessions())
