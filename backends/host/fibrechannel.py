"""Fibre Channel ports, and virtual ports on them (NPIV), by the kernel's sysfs."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from backends import errors
from backends.host.scsi import attribute

PORTS = pathlib.Path("/sys/class/fc_host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The port that a virtual port is made on; what is empty is not asked for.

    :param name: ``scsi_host5`` or ``host5``.
    :param wwnn: world-wide name of its node; ``wwpn`` of itself, ``fabric`` of its fabric.
    """

    name: str | None = None
    wwnn: str = ""
    wwpn: str = ""
    fabric: str = ""


def find(wwnn: str, wwpn: str) -> int | None:
    """The number of the SCSI host of a port; None where there is no such port."""
    for port in _ports():
        if _name(port, "node_name") == wwnn and _name(port, "port_name") == wwpn:
            return _number(port)
    return None


def create(wwnn: str, wwpn: str, parent: Parent) -> None:
    """Make a virtual port.

    :raises errors.NotFound: no port fits ``parent`` and has room for one.
    """
    for port in _ports():
        if _fits(port, parent) and _room(port):
            _write(port / "vport_create", f"{wwpn}:{wwnn}")
            return
    raise errors.NotFound(
        f"No Fibre Channel port of this host fits, or has room, to make the port {wwpn} on.",
        hint="See /sys/class/fc_host/*/max_npiv_vports, and the adapter's parent.",
    )


def remove(number: int, wwnn: str, wwpn: str) -> None:
    """Remove a virtual port, with the SCSI host that it is.

    :raises errors.NotFound: the host is no virtual port.
    """
    way = os.path.realpath(PORTS / f"host{number}").split("/")
    for port in _ports():
        if port.name != f"host{number}" and port.name in way:
            _write(port / "vport_delete", f"{wwpn}:{wwnn}")
            return
    raise errors.NotFound(f"host{number} is no virtual port.", hint="Set managed to false.")


def _ports() -> Iterator[pathlib.Path]:
    try:
        names = sorted(os.listdir(PORTS))
    except OSError:
        return
    yield from (PORTS / name for name in names)


def _number(port: pathlib.Path) -> int:
    return int(port.name.removeprefix("host"))


def _name(port: pathlib.Path, which: str) -> str:
    return attribute(port / which).removeprefix("0x")


def _fits(port: pathlib.Path, parent: Parent) -> bool:
    wanted = (
        (re.sub(r"^(scsi_)?", "", parent.name or ""), port.name),
        (parent.wwnn, _name(port, "node_name")),
        (parent.wwpn, _name(port, "port_name")),
        (parent.fabric, _name(port, "fabric_name")),
    )
    return all(not given or given == found for given, found in wanted)


def _room(port: pathlib.Path) -> bool:
    most = attribute(port / "max_npiv_vports")
    taken = attribute(port / "npiv_vports_inuse")
    return most.isdigit() and int(most) > int(taken or 0)


def _write(path: pathlib.Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise errors.from_os_error(error, doing=f"write to {path}") from error
