"""A volume group on two devices, of which the first can be cut off."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from backends.registry import pool_type
from tests.contract.candidate import PoolUnderTest
from tests.keeper import pool
from tests.lab.cable import Cable
from tests.lab.spare import MIB, Spares, run

GROUP = "vg-contract"


class Candidate(PoolUnderTest):
    type = pool_type("logical")
    makeable = {None: None}
    planted_format = None
    shrinking = {"allowShrink": True, "allowDataLoss": True}  # all of it is allocated
    commands_per_look = 1
    commands_to_plan = 3  # its report, and a probe of each device
    has_stand_in = False  # LVM makes no second group of a name whose volumes are active

    def __init__(self, root: Path, spares: Spares) -> None:
        super().__init__(root, spares)
        self._cables = [Cable(spares, 64 * MIB), Cable(spares, 64 * MIB)]

    def declaration(self, name: str, **spec: Any) -> dict[str, Any]:
        devices = [{"path": str(item.device)} for item in self._cables]
        source = {"volumeGroup": GROUP, "devices": devices}
        return pool(name, type="logical", logical=source, **spec)

    def close(self) -> None:
        self.bring_back()
        if self.exists():
            run("vgchange", "-q", "-an", GROUP)
            run("vgremove", "-q", "-ff", "--yes", GROUP)

    def plant_backing(self) -> None:
        run("vgcreate", "-q", GROUP, *self._devices())

    def _devices(self) -> list[Path]:
        return [item.device for item in self._cables]

    def plant_volume(self, name: str, size: int) -> str:
        run("lvcreate", "-q", "--yes", "--name", name, "--size", f"{size}b", GROUP)
        return name

    def remove_volume(self, name: str) -> None:
        run("lvremove", "-q", "--yes", f"{GROUP}/{name}")

    def plant_obstacle(self) -> None:
        if not self._cables[0].is_cut:
            run("mkfs.ext4", "-q", self._cables[0].device)
            run("mkswap", self._cables[1].device)

    def remove_obstacle(self) -> None:
        if not self._cables[0].is_cut:
            run("fsck.ext4", "-n", "-f", self._cables[0].device)
            for device in self._devices():
                run("wipefs", "-q", "--all", device)

    def hide(self) -> None:
        for cable in self._cables:
            cable.cut()

    def bring_back(self) -> None:
        for cable in self._cables:
            cable.mend()

    def exists(self) -> bool:
        return GROUP in run("vgs", "-q", "--noheadings", "-o", "vg_name").split()

    def owner(self) -> dict[str, str]:
        return _mark(run("vgs", "-q", "--noheadings", "-o", "vg_tags", GROUP))

    def _reported(self) -> dict[str, dict[str, str]]:
        fields = "lv_name,lv_uuid,lv_size,lv_tags"
        told = run(
            "lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, GROUP
        )
        return {item["lv_name"]: item for item in json.loads(told)["report"][0]["lv"]}

    def names(self) -> list[str]:
        return sorted(self._reported())

    def size_of(self, name: str) -> int:
        return int(run("blockdev", "--getsize64", f"/dev/{GROUP}/{name}"))

    def evidence(self, name: str | None = None) -> object:
        run("vgchange", "-q", "-ay", GROUP)
        found = []
        for volume, facts in self._reported().items():
            if name in (None, volume):
                content = Path(f"/dev/{GROUP}", volume)
                facts["content"] = hashlib.sha256(content.read_bytes()).hexdigest()
                found.append(facts)
        return found

    def lasting(self, evidence: object) -> object:
        return [{**facts, "lv_tags": ""} for facts in evidence]

    def figures(self) -> tuple[int, int, int]:
        options = ["--noheadings", "--units", "b", "--nosuffix", "-o", "vg_size,vg_free"]
        size, free = map(int, run("vgs", *options, GROUP).split())
        return size, size - free, free


def _mark(tags: str) -> dict[str, str]:
    ours = [tag for tag in tags.strip().split(",") if tag.startswith("poolkeeper.")]
    return dict(tag.removeprefix("poolkeeper.").split("=", 1) for tag in ours)
