"""Fibre Channel ports, on a directory that stands in for sysfs: no machine of ours has any."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends import errors
from backends.host import fibrechannel
from backends.host.fibrechannel import Parent

NODE, PORT = "20000000c9831b4b", "10000000c9831b4b"
NEW_NODE, NEW_PORT = "2001001b32a9da4e", "2101001b32a9da4e"


class StandIn:
    """``/sys/class/fc_host`` with ports in it."""

    def __init__(self, root: Path) -> None:
        self.ports = root / "class"
        self.ports.mkdir()
        self._devices = root / "devices"

    def port(self, number: int, node: str, port: str, *, room: int = 2, inside: str = "") -> Path:
        place = self._devices / inside / f"host{number}" / "fc_host" / f"host{number}"
        place.mkdir(parents=True)
        values = {
            "node_name": f"0x{node}", "port_name": f"0x{port}", "fabric_name": "0x1000000000000099",
            "max_npiv_vports": str(room), "npiv_vports_inuse": "1", "vport_create": "",
            "vport_delete": "",
        }  # fmt: skip
        for name, value in values.items():
            (place / name).write_text(value)
        (self.ports / f"host{number}").symlink_to(place)
        return place


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn(tmp_path)
    monkeypatch.setattr(fibrechannel, "PORTS", made.ports)
    return made


def test_a_port_is_found_by_both_of_its_names(sysfs: StandIn) -> None:
    sysfs.port(5, NODE, PORT)
    assert fibrechannel.find(NODE, PORT) == 5
    assert fibrechannel.find(NODE, NEW_PORT) is None


def test_a_machine_without_ports_has_none(sysfs: StandIn) -> None:
    assert fibrechannel.find(NODE, PORT) is None
    with pytest.raises(errors.NotFound):
        fibrechannel.create(NEW_NODE, NEW_PORT, Parent())


@pytest.mark.parametrize(
    "parent",
    [
        Parent(name="scsi_host6"),
        Parent(name="host6"),
        Parent(wwnn="2000000000000006", wwpn="1000000000000006"),
        Parent(),
    ],
)
def test_a_virtual_port_is_made_on_the_parent_that_is_asked_for(
    sysfs: StandIn, parent: Parent
) -> None:
    full = sysfs.port(5, NODE, PORT, room=1)
    free = sysfs.port(6, "2000000000000006", "1000000000000006")
    fibrechannel.create(NEW_NODE, NEW_PORT, parent)
    assert (free / "vport_create").read_text() == f"{NEW_PORT}:{NEW_NODE}"
    assert (full / "vport_create").read_text() == ""


def test_no_port_is_made_on_a_fabric_that_is_not_there(sysfs: StandIn) -> None:
    sysfs.port(5, NODE, PORT)
    with pytest.raises(errors.NotFound):
        fibrechannel.create(NEW_NODE, NEW_PORT, Parent(fabric="1000000000000001"))


def test_a_virtual_port_is_removed_by_its_parent_and_a_real_one_is_not(sysfs: StandIn) -> None:
    parent = sysfs.port(5, NODE, PORT)
    sysfs.port(7, NEW_NODE, NEW_PORT, inside="host5/vport-5:0-0")
    fibrechannel.remove(7, NEW_NODE, NEW_PORT)
    assert (parent / "vport_delete").read_text() == f"{NEW_PORT}:{NEW_NODE}"
    with pytest.raises(errors.NotFound):
        fibrechannel.remove(5, NODE, PORT)
