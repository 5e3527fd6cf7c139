"""Pools on the LUNs behind a SCSI host (libvirt's scsi)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from backends import errors
from backends.base import Operation, Pool, PoolFacts, PoolType, Presence
from backends.foundvolumes import CONTENTS, FoundDevice, FoundVolumes, found_luns
from backends.host import devices, fibrechannel, scsi
from backends.host.fibrechannel import Parent
from backends.host.needs import Needs
from backends.schema import Form, Model, Rule, Text, Xml

Wwn = Annotated[str, Field(max_length=18, pattern=r"^(0x)?[0-9a-fA-F]{16}$")]
HexNumber = Annotated[str, Field(max_length=10, pattern=r"^(0x[0-9a-fA-F]{1,8}|[0-9]{1,9})$")]


class PciAddress(Model):
    """Address of a PCI device."""

    domain: Annotated[HexNumber, Xml("@domain")] = Field("0x0000", description="PCI domain.")
    bus: Annotated[HexNumber, Xml("@bus")] = Field("0x00", description="PCI bus.")
    slot: Annotated[HexNumber, Xml("@slot")] = Field("0x00", description="PCI slot.")
    function: Annotated[HexNumber, Xml("@function")] = Field("0x0", description="PCI function.")


class ParentAddress(Model):
    """A SCSI host by the PCI device it belongs to; this survives renumbering."""

    unique_id: Annotated[int, Xml("@unique_id")] = Field(
        ge=0, le=2**32 - 1, description="The host's unique_id in sysfs."
    )
    address: Annotated[PciAddress, Xml("address")] = Field(description="The PCI device.")


class Adapter(Model):
    """A SCSI host or a Fibre Channel port."""

    rules = (
        Rule(
            cel="self.type != 'scsi_host' || has(self.name) != has(self.parentAddress)",
            message="adapter type scsi_host needs either name or parentAddress",
            holds=lambda self: (
                self.type != "scsi_host" or (self.name is None) != (self.parent_address is None)
            ),
        ),
        Rule(
            cel="self.type != 'fc_host' || (has(self.wwnn) && has(self.wwpn))",
            message="adapter type fc_host needs wwnn and wwpn",
            holds=lambda self: (
                self.type != "fc_host" or (self.wwnn is not None and self.wwpn is not None)
            ),
        ),
        Rule(
            cel="has(self.parentWwnn) == has(self.parentWwpn)",
            message="parentWwnn and parentWwpn go together",
            holds=lambda self: (self.parent_wwnn is None) == (self.parent_wwpn is None),
        ),
    )

    type: Annotated[Literal["scsi_host", "fc_host"], Xml("@type")] = Field(
        "scsi_host", description="Kind of adapter."
    )
    name: Annotated[Text | None, Xml("@name")] = Field(None, description="Such as host3.")
    parent_address: Annotated[ParentAddress | None, Xml("parentaddr")] = Field(
        None, description="The adapter by its PCI device."
    )
    parent: Annotated[Text | None, Xml("@parent")] = Field(
        None, description="Parent of an fc_host, such as scsi_host5."
    )
    parent_wwnn: Annotated[Wwn | None, Xml("@parent_wwnn")] = Field(
        None, description="Node name of the parent."
    )
    parent_wwpn: Annotated[Wwn | None, Xml("@parent_wwpn")] = Field(
        None, description="Port name of the parent."
    )
    parent_fabric_wwn: Annotated[Wwn | None, Xml("@parent_fabric_wwn")] = Field(
        None, description="Fabric name of the parent."
    )
    managed: Annotated[bool | None, Xml("@managed", Form.YES_NO)] = Field(
        None, description="Whether the vHBA goes with the pool."
    )
    wwnn: Annotated[Wwn | None, Xml("@wwnn")] = Field(None, description="World wide node name.")
    wwpn: Annotated[Wwn | None, Xml("@wwpn")] = Field(None, description="World wide port name.")


class ScsiSource(Model):
    """An adapter whose LUNs are the volumes."""

    adapter: Annotated[Adapter, Xml("source/adapter")] = Field(description="The adapter.")


class ScsiBackend(FoundVolumes):
    """The disks behind one adapter of the host."""

    what = "LUN"
    giver = "the storage behind the SCSI host"

    def claims(self, pool: Pool) -> frozenset[str]:
        adapter = _adapter(pool)
        try:
            number = _host(adapter)
        except errors.StorageError:
            number = None
        # A virtual port's LUNs are its parent's in another view, so they are claimed by name, too.
        return frozenset({_words(adapter) if number is None else f"SCSI host host{number}"})

    def place(self, pool: Pool) -> str:
        return _words(_adapter(pool))

    def observe(self, pool: Pool) -> PoolFacts:
        adapter = _adapter(pool)
        try:
            number = _host(adapter)
            if number is None:
                return PoolFacts(presence=Presence.PRESENT, active=False, listed=False)
            state = scsi.host_state(number)
            if state != "running":
                detail = f"the SCSI host host{number} is {state}"
                return PoolFacts(presence=Presence.UNREACHABLE, detail=detail)
            directory = scsi.host_directory(number)
            scsi.rescan(directory, number)
            return self.observe_found(pool)
        except errors.StorageError as error:
            return PoolFacts(presence=Presence.UNREACHABLE, detail=error.message.rstrip("."))

    def devices_of(self, pool: Pool) -> Sequence[FoundDevice]:
        number = _host(_adapter(pool))
        if number is None:
            raise errors.Inaccessible(f"{self.place(pool)} is not there.", hint="Start the pool.")
        return found_luns(scsi.luns(scsi.host_directory(number)), giver=self.giver)

    def start(self, pool: Pool) -> None:
        """Make the virtual port of an fc_host that is not there yet."""
        adapter = _adapter(pool)
        if adapter.type == "fc_host" and _host(adapter) is None:
            fibrechannel.create(_name(adapter.wwnn), _name(adapter.wwpn), _parent(adapter))
            devices.settle()

    def stop(self, pool: Pool) -> None:
        """Remove the virtual port of an fc_host that is declared to be managed."""
        adapter = _adapter(pool)
        number = _host(adapter)
        if adapter.type != "fc_host" or not adapter.managed or number is None:
            return
        self.require_unused(pool)
        fibrechannel.remove(number, _name(adapter.wwnn), _name(adapter.wwpn))


def _adapter(pool: Pool) -> Adapter:
    if not isinstance(pool.source, ScsiSource):
        raise errors.InvalidSpec(f"Pool {pool.name!r} names no adapter.")
    return pool.source.adapter


def _host(adapter: Adapter) -> int | None:
    """The number of the SCSI host; None for a virtual port that can be made.

    :raises errors.NotFound: it is not there.
    """
    if adapter.type == "fc_host":
        return fibrechannel.find(_name(adapter.wwnn), _name(adapter.wwpn))
    if adapter.parent_address is not None:
        given = adapter.parent_address
        return scsi.host_behind(_pci_address(given.address), given.unique_id)
    match = re.fullmatch(r"(?:scsi_)?host(\d+)", adapter.name or "")
    if match is None:
        raise errors.InvalidSpec(
            f"{adapter.name!r} is no name of a SCSI host.", hint="Give it as host3."
        )
    scsi.host_directory(int(match[1]))
    return int(match[1])


def _pci_address(address: PciAddress) -> str:
    domain, bus, slot, function = (
        int(part, 0) for part in (address.domain, address.bus, address.slot, address.function)
    )
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def _name(wwn: str | None) -> str:
    return (wwn or "").lower().removeprefix("0x")


def _parent(adapter: Adapter) -> Parent:
    return Parent(
        name=adapter.parent,
        wwnn=_name(adapter.parent_wwnn),
        wwpn=_name(adapter.parent_wwpn),
        fabric=_name(adapter.parent_fabric_wwn),
    )


def _words(adapter: Adapter) -> str:
    if adapter.type == "fc_host":
        return f"Fibre Channel port {_name(adapter.wwpn)}"
    if adapter.parent_address is not None:
        given = adapter.parent_address
        return f"SCSI host {given.unique_id} of PCI device {_pci_address(given.address)}"
    return f"SCSI host {adapter.name}"


POOL_TYPE = PoolType(
    name="scsi",
    order=8,
    description="The LUNs behind a SCSI host or Fibre Channel port.",
    source=ScsiSource,
    operations=frozenset({Operation.START, Operation.STOP}) | CONTENTS,
    needs=Needs(modules=("scsi_mod",)),
    backend=ScsiBackend,
)
