"""Pools on the LUNs behind a SCSI host (libvirt's scsi)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backends.base import PoolType
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


POOL_TYPE = PoolType(
    name="scsi",
    order=8,
    description="The LUNs behind a SCSI host or Fibre Channel port.",
    source=ScsiSource,
)
