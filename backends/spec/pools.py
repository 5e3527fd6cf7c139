"""A StoragePool: what all types have in common, and its status."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from backends.schema import (
    AbsolutePath,
    Duration,
    Form,
    Model,
    Name,
    Namespace,
    ObjectName,
    Quantity,
    Rule,
    Text,
    TransitionRule,
    Uuid,
    Xml,
    immutable,
)
from backends.spec.common import Adoption, Permissions, SecretRef
from backends.spec.statuses import StatusBase


class PoolState(enum.StrEnum):
    ACTIVE = "Active"
    INACTIVE = "Inactive"


class BuildPolicy(enum.StrEnum):
    NEVER = "Never"
    IF_EMPTY = "IfEmpty"
    OVERWRITE = "Overwrite"


class PoolDeletion(enum.StrEnum):
    RETAIN = "Retain"
    UNDEFINE = "Undefine"
    DELETE = "Delete"


class Discovery(enum.StrEnum):
    REPORT = "Report"
    ADOPT = "Adopt"


class Host(Model):
    """A server that holds the storage."""

    name: Annotated[Text, Xml("@name")] = Field(
        min_length=1, description="Host name, or IPv4 or IPv6 address."
    )
    port: Annotated[int | None, Xml("@port")] = Field(
        None, ge=1, le=65535, description="TCP port; the protocol's own if left out."
    )


Hosts = Annotated[tuple[Host, ...], Field(min_length=1, max_length=64)]


class Device(Model):
    """A block device, or what stands for one in the protocol (an iSCSI target)."""

    path: Annotated[Text, Xml("@path")] = Field(
        min_length=1,
        description="Path of the device, best one under /dev/disk/by-id; for iSCSI the IQN.",
    )
    part_separator: Annotated[bool | None, Xml("@part_separator", Form.YES_NO)] = Field(
        None,
        description="Whether names of a multipath map's partitions have a 'p' before the number; "
        "as the host names them if left out.",
    )
    identity: Text | None = Field(
        None,
        description="Serial number, world-wide name, by-id link or UUID of contents that the "
        "device has to have; those that were there first if left out.",
    )


Devices = Annotated[tuple[Device, ...], Field(max_length=256)]


class Auth(Model):
    """How the host proves itself to the server of the storage."""

    type: Annotated[Literal["chap", "ceph"], Xml("@type")] = Field(
        description="`chap` for iSCSI, `ceph` for RBD."
    )
    username: Annotated[Text, Xml("@username")] = Field(min_length=1, description="User name.")
    secret_ref: Annotated[SecretRef, Xml("secret")] = Field(description="The password or key.")


class Target(Model):
    """Where a pool stands on the host."""

    path: Annotated[AbsolutePath | None, Xml("path", Form.PATH)] = Field(
        None, description="Directory of the pool; derived for logical and zfs."
    )
    permissions: Annotated[Permissions | None, Xml("permissions")] = Field(
        None, description="Permissions of the target directory; they don't pass on to volumes."
    )


class VolumeDefaults(Model):
    """What volumes of the pool get where their own spec says nothing."""

    permissions: Permissions | None = Field(None, description="Permissions of new volumes.")


class Features(Model):
    """Properties of the pool's directory."""

    copy_on_write: Annotated[bool | None, Xml("cow/@state", Form.YES_NO)] = Field(
        None,
        description="Copy-on-write of new files in a directory on btrfs; off on btrfs if left out.",
    )


class Inventory(Model):
    """What the storage is, for people; nothing acts on it."""

    vendor: Annotated[Text | None, Xml("source/vendor/@name")] = Field(
        None, description="Vendor of the device."
    )
    product: Annotated[Text | None, Xml("source/product/@name")] = Field(
        None, description="Product name of the device."
    )


class Build(Model):
    """Whether the pool's backing may be made: a directory, file system, volume group, label."""

    policy: BuildPolicy = Field(
        BuildPolicy.IF_EMPTY,
        description="Never: it has to be there. IfEmpty: made where a probe finds nothing. "
        "Overwrite: made over what is there, once per generation; needs confirm.",
    )
    confirm: Name | None = Field(
        None, description="The pool's name again, to allow Overwrite to destroy what is there."
    )


class Refresh(Model):
    """How often the pool is looked at, and how closely."""

    interval: Duration = Field("5m", description="Time between two looks at an unchanged pool.")
    volume_allocation: Annotated[
        Literal["Default", "Capacity"] | None, Xml("refresh/volume/@allocation")
    ] = Field(
        None,
        description="Capacity: report a volume's capacity as its allocation, which is cheap; "
        "Default: ask for the true figure.",
    )


class PoolSpecBase(Model):
    """What every pool has; the members of its type stand beside it."""

    transitions: ClassVar[tuple[TransitionRule, ...]] = (
        immutable("type"),
        immutable("poolName"),
        TransitionRule(
            cel="!has(oldSelf.uuid) || (has(self.uuid) && self.uuid == oldSelf.uuid)",
            message="uuid can't be changed once it is set",
            holds=lambda old, new: old.uuid is None or new.uuid == old.uuid,
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.build) || self.build.policy != 'Overwrite' || has(self.build.confirm)",
            message="build.policy Overwrite needs build.confirm with the pool's name",
            holds=lambda self: (
                self.build.policy is not BuildPolicy.OVERWRITE or self.build.confirm is not None
            ),
        ),
        Rule(
            cel="!has(self.adoption) || self.adoption != 'Observe' || !has(self.deletionPolicy) "
            "|| self.deletionPolicy != 'Delete'",
            message="a pool with adoption Observe is never changed, so its deletionPolicy "
            "can't be Delete",
            holds=lambda self: (
                not (
                    self.adoption is Adoption.OBSERVE
                    and self.deletion_policy is PoolDeletion.DELETE
                )
            ),
        ),
    )

    node_name: ObjectName | None = Field(
        None, description="Node whose agent keeps the pool; standalone: this host if left out."
    )
    pool_name: Annotated[Name | None, Xml("name")] = Field(
        None, description="Name of the pool on the host; default: the resource's name."
    )
    uuid: Annotated[Uuid | None, Xml("uuid")] = Field(
        None, description="UUID of the pool; one is made and kept in status if left out."
    )
    features: Annotated[Features | None, Xml("features")] = Field(
        None, description="Properties of the pool's directory."
    )
    inventory: Annotated[Inventory | None, Xml(".")] = Field(
        None, description="What the storage is, for people."
    )
    target: Annotated[Target | None, Xml("target")] = Field(
        None, description="Where the pool stands on the host."
    )
    volume_defaults: VolumeDefaults | None = Field(
        None, description="What volumes get where their own spec says nothing."
    )
    state: PoolState = Field(PoolState.ACTIVE, description="Whether the pool is to run.")
    autostart: bool = Field(
        True,
        description="False: after a reboot of the host the pool stays down until its spec changes "
        "or an operation starts it.",
    )
    transient: bool = Field(
        False, description="True: the resource goes when the pool stops or the host reboots."
    )
    build: Build = Field(Build(), description="Whether the pool's backing may be made.")
    adoption: Adoption = Field(
        Adoption.IF_MATCHES,
        description="What to do with a backing that is there and was not made by us: Never take "
        "it, take it IfMatches, or Observe it and never change anything.",
    )
    deletion_policy: PoolDeletion = Field(
        PoolDeletion.RETAIN,
        description="When the resource goes: Retain leaves everything, Undefine stops the pool "
        "and leaves its data, Delete destroys what backs it.",
    )
    refresh: Annotated[Refresh, Xml(".")] = Field(
        Refresh(), description="How often the pool is looked at."
    )
    allowed_namespaces: (
        Annotated[tuple[Namespace, ...], Field(min_length=1, max_length=64)] | None
    ) = Field(
        None,
        description="Namespaces whose volumes may stand in the pool, or on volumes in it; all if "
        "left out.",
    )
    discovery: Discovery = Field(
        Discovery.REPORT,
        description="Volumes nobody declared: Report counts and a sample, Adopt makes a "
        "StorageVolume for each.",
    )
    suspend: bool = Field(False, description="True: report, and change nothing.")


class VolumeCounts(Model):
    """How many volumes a pool holds."""

    total: int = Field(0, description="All volumes found in the pool.")
    managed: int = Field(0, description="Those that a StorageVolume declares.")
    unmanaged: int = Field(0, description="Those that nobody declares.")


class DiscoveredVolume(Model):
    """A volume in the pool that nobody declares."""

    name: Text = Field(description="Name in the pool.")
    format: Text | None = Field(None, description="Format that its header shows.")
    capacity: Quantity | None = Field(None, description="Size that a user of the volume sees.")
    allocation: Quantity | None = Field(None, description="Space that it takes.")
    encryption: Text | None = Field(None, description="Encryption that its header shows.")
    backing_path: Text | None = Field(None, description="Image that it stands on.")


class PoolDevice(Model):
    """What tells a device of a pool from others."""

    path: Text = Field(description="Path as declared.")
    id: Text | None = Field(None, description="Best link under /dev/disk/by-id.")
    serial: Text | None = Field(None, description="Serial number.")
    wwn: Text | None = Field(None, description="World-wide name.")
    size: Quantity | None = Field(None, description="Size of the device.")
    uuid: Text | None = Field(None, description="UUID of what stands on it.")


class ThinPoolStatus(Model):
    """How full a thin pool is."""

    size: Quantity = Field(description="Its size.")
    data_percent: int | None = Field(None, description="Part of its space that is in use.")
    metadata_percent: int | None = Field(
        None, description="Part of the space for its metadata that is in use."
    )


class FreeExtent(Model):
    """A stretch of a disk that no partition takes, in bytes."""

    start: Annotated[int, Xml("@start")] = Field(ge=0, description="Its first byte.")
    end: Annotated[int, Xml("@end")] = Field(ge=0, description="The first byte past it.")


class PoolStatus(StatusBase):
    """What was observed of a pool."""

    uuid: Annotated[Uuid | None, Xml("uuid")] = Field(None, description="UUID of the pool.")
    state: Literal["Inactive", "Building", "Running", "Degraded", "Inaccessible"] | None = Field(
        None, description="State in libvirt's words."
    )
    built: bool | None = Field(None, description="Whether the backing is there and ours.")
    built_generation: int | None = Field(
        None, description="Generation at which the backing was last built or taken over."
    )
    persistent: bool | None = Field(None, description="False for a transient pool.")
    boot_id: Annotated[str | None, Field(max_length=64)] = Field(
        None, alias="bootID", description="Boot of the host in which the pool was last started."
    )
    capacity: Annotated[Quantity | None, Xml("capacity", Form.BYTES)] = Field(
        None, description="Size of the pool."
    )
    allocation: Annotated[Quantity | None, Xml("allocation", Form.BYTES)] = Field(
        None, description="Space in use."
    )
    available: Annotated[Quantity | None, Xml("available", Form.BYTES)] = Field(
        None, description="Space left."
    )
    thin_pool: ThinPoolStatus | None = Field(
        None, description="How full the thin pool is, where the pool has one."
    )
    volumes: VolumeCounts | None = Field(None, description="How many volumes there are.")
    discovered: tuple[DiscoveredVolume, ...] = Field(
        (), max_length=20, description="A sample of the volumes that nobody declares."
    )
    free_extents: Annotated[tuple[FreeExtent, ...], Xml("source/device/freeExtent")] = Field(
        (), max_length=256, description="Where a disk has room for further partitions."
    )
    devices: tuple[PoolDevice, ...] = Field(
        (), max_length=256, description="Devices that the pool stands on. It stalls on others."
    )
    last_refresh_time: Annotated[str | None, Field(max_length=32)] = Field(
        None, description="When a look at the pool last changed what is reported here."
    )
