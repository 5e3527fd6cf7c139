"""A StorageVolume: its spec and its status."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from pydantic import Field

from backends.schema import (
    Form,
    Model,
    Name,
    ObjectName,
    Quantity,
    Rule,
    Text,
    TransitionRule,
    Xml,
    immutable,
)
from backends.spec.common import (
    Adoption,
    LabelSelector,
    Permissions,
    ResourceRef,
    SecretRef,
    VolumeRef,
)
from backends.spec.formats import FileFormat, VolumeFormat
from backends.spec.sources import VolumeSource
from backends.spec.statuses import Progress, StatusBase


class Recreation(enum.StrEnum):
    NEVER = "Never"
    IF_MISSING = "IfMissing"


class VolumeDeletion(enum.StrEnum):
    RETAIN = "Retain"
    DELETE = "Delete"


class BackingStore(Model):
    """The image that a volume is a difference to."""

    rules = (
        Rule(
            cel="has(self.volumeRef) != has(self.path)",
            message="give exactly one of volumeRef and path",
            holds=lambda self: (self.volume_ref is None) != (self.path is None),
        ),
    )

    volume_ref: VolumeRef | None = Field(None, description="A declared volume.")
    path: Annotated[Text | None, Xml("path")] = Field(
        None, description="Path of an image; a relative one starts at the pool's directory."
    )
    format: Annotated[FileFormat, Xml("format/@type")] = Field(
        description="Format of the backing image. It is never guessed."
    )
    permissions: Annotated[Permissions | None, Xml("permissions")] = Field(
        None, description="Permissions of the backing image as libvirt reports them; not applied."
    )


class Cipher(Model):
    """The cipher of an encrypted volume."""

    name: Annotated[Text, Xml("@name")] = Field(description="Cipher, such as aes.")
    size: Annotated[int, Xml("@size")] = Field(ge=1, le=65536, description="Key size in bits.")
    mode: Annotated[Text | None, Xml("@mode")] = Field(None, description="Mode, such as xts.")
    hash: Annotated[Text | None, Xml("@hash")] = Field(None, description="Hash, such as sha256.")


class IvGenerator(Model):
    """How initialisation vectors are made."""

    name: Annotated[Text, Xml("@name")] = Field(description="Generator, such as plain64.")
    hash: Annotated[Text | None, Xml("@hash")] = Field(None, description="Hash of the generator.")


class Encryption(Model):
    """Encryption of a volume's contents."""

    rules = (
        Rule(
            cel="!has(self.ivgen) || has(self.cipher)",
            message="ivgen needs cipher",
            holds=lambda self: self.ivgen is None or self.cipher is not None,
        ),
        Rule(
            cel="(!has(self.secretRef) || !has(self.secretRef.namespace)) "
            "&& (!has(self.furtherSecretRefs) "
            "|| self.furtherSecretRefs.all(item, !has(item.namespace)))",
            message="the passphrase of a volume is in the volume's own namespace, so a "
            "secretRef.namespace can't be given",
            holds=lambda self: all(
                item is None or item.namespace is None
                for item in (self.secret_ref, *self.further_secret_refs)
            ),
        ),
    )

    format: Annotated[Literal["luks", "luks2", "luks-any", "qcow", "default"], Xml("@format")] = (
        Field("luks", description="Only luks can be made; the others are read from libvirt's XML.")
    )
    engine: Annotated[Literal["qemu", "librbd"] | None, Xml("@engine")] = Field(
        None, description="Who decrypts; kept for libvirt."
    )
    secret_ref: Annotated[SecretRef | None, Xml("secret")] = Field(
        None, description="The passphrase."
    )
    further_secret_refs: Annotated[tuple[SecretRef, ...], Xml("secret")] = Field(
        (), max_length=8, description="Passphrases of further layers; kept for libvirt."
    )
    cipher: Annotated[Cipher | None, Xml("cipher")] = Field(None, description="The cipher.")
    ivgen: Annotated[IvGenerator | None, Xml("ivgen")] = Field(
        None, description="How initialisation vectors are made."
    )


class ImageFeatures(Model):
    """Features of a qcow2 image."""

    lazy_refcounts: Annotated[bool | None, Xml("lazy_refcounts", Form.PRESENCE)] = Field(
        None, description="Postpone reference count updates; needs compat 1.1."
    )
    extended_l2: Annotated[bool | None, Xml("extended_l2", Form.PRESENCE)] = Field(
        None, alias="extendedL2", description="Subclusters; needs compat 1.1."
    )


class Resize(Model):
    """How a change of capacity is carried out."""

    rules = (
        Rule(
            cel="!has(self.allowDataLoss) || !self.allowDataLoss "
            "|| (has(self.allowShrink) && self.allowShrink)",
            message="resize.allowDataLoss needs resize.allowShrink",
            holds=lambda self: not self.allow_data_loss or self.allow_shrink,
        ),
    )

    allow_shrink: bool = Field(
        False,
        description="Allow a capacity below the present one, as long as no data lies past it and "
        "no less than the allocation is left.",
    )
    allow_data_loss: bool = Field(
        False, description="Allow it in any case. The data that lies past the capacity is lost."
    )
    allocate: bool = Field(False, description="Allocate the space that is added.")


class Wipe(Model):
    """How contents are overwritten."""

    algorithm: Literal[
        "zero", "nnsa", "dod", "bsi", "gutmann", "schneier", "pfitzner7", "pfitzner33", "random",
        "trim",
    ] = Field("zero", description="Patterns to write.")  # fmt: skip


class PersistentVolume(Model):
    """How a volume is offered to the pods of its cluster."""

    storage_class_name: ObjectName | None = Field(
        None, description="Class by which claims find it; none if left out."
    )
    volume_mode: Literal["Block", "Filesystem"] | None = Field(
        None,
        description="Block: pods get the device. Filesystem: they get a directory; kubelet makes a "
        "file system on an empty device. Left out: Block for devices, Filesystem for directories.",
    )
    access_modes: Annotated[
        tuple[Literal["ReadWriteOnce", "ReadWriteOncePod"], ...], Field(min_length=1, max_length=2)
    ] = Field(("ReadWriteOnce",), description="What a claim may ask for.")
    claim_name: ObjectName | None = Field(
        None,
        description="The one claim that may have it, in the volume's namespace; any claim of any "
        "namespace if left out.",
    )


class Publish(Model):
    """What makes a volume known beyond its host."""

    persistent_volume: PersistentVolume = Field(
        description="Keep a PersistentVolume of the type local for a volume that is a directory or "
        "a block device. Only in a cluster."
    )


class VolumeSpec(Model):
    """A volume as it is declared."""

    transitions = (
        TransitionRule(
            cel="!has(oldSelf.poolRef) || (has(self.poolRef) && self.poolRef == oldSelf.poolRef)",
            message="poolRef can't be changed; delete the resource and make a new one",
            holds=lambda old, new: old.pool_ref is None or new.pool_ref == old.pool_ref,
        ),
        TransitionRule(
            cel="!has(oldSelf.poolRef) || !has(self.poolSelector) "
            "|| (has(oldSelf.poolSelector) && self.poolSelector == oldSelf.poolSelector)",
            message="poolSelector can't be changed once a pool was chosen",
            holds=lambda old, new: (
                old.pool_ref is None or new.pool_selector in (None, old.pool_selector)
            ),
        ),
        immutable("volumeName"),
        immutable("format"),
        immutable("source"),
        immutable("encryption"),
        TransitionRule(
            cel="!has(oldSelf.nodeName) || (has(self.nodeName) "
            "&& self.nodeName == oldSelf.nodeName)",
            message="nodeName can't be changed once it is set",
            holds=lambda old, new: old.node_name is None or new.node_name == old.node_name,
        ),
    )
    rules = (
        Rule(
            cel="has(self.poolRef) ? !has(self.poolSelector) || has(self.nodeName) "
            ": has(self.poolSelector)",
            message="give either poolRef or poolSelector; one that was chosen has nodeName, too",
            holds=lambda self: (
                self.pool_selector is not None
                if self.pool_ref is None
                else self.pool_selector is None or self.node_name is not None
            ),
        ),
        Rule(
            cel="has(self.capacity) || has(self.backingStore) || has(self.source) "
            "|| (has(self.format) && self.format == 'dir') "
            "|| (has(self.adoption) && self.adoption == 'Observe')",
            message="capacity is required for a new volume without backingStore or source",
            holds=lambda self: (
                self.capacity is not None
                or self.backing_store is not None
                or self.source is not None
                or self.format == "dir"
                or self.adoption is Adoption.OBSERVE
            ),
        ),
        Rule(
            cel="!has(self.backingStore) || !has(self.format) || self.format in "
            "['qcow', 'qcow2', 'qed', 'vmdk', 'none']",
            message="backingStore needs a format that can stand on another image: qcow2, qed, "
            "qcow or vmdk",
            holds=lambda self: (
                self.backing_store is None
                or self.format in (None, "qcow", "qcow2", "qed", "vmdk", "none")
            ),
        ),
        Rule(
            cel="!has(self.source) || !has(self.backingStore)",
            message="source and backingStore exclude each other",
            holds=lambda self: self.source is None or self.backing_store is None,
        ),
        Rule(
            cel="!has(self.adoption) || self.adoption != 'Observe' || !has(self.deletionPolicy) "
            "|| self.deletionPolicy != 'Delete'",
            message="a volume with adoption Observe is never changed, so its deletionPolicy "
            "can't be Delete",
            holds=lambda self: (
                not (
                    self.adoption is Adoption.OBSERVE
                    and self.deletion_policy is VolumeDeletion.DELETE
                )
            ),
        ),
    )

    pool_ref: ResourceRef | None = Field(
        None,
        description="The StoragePool that holds the volume; with poolSelector it is filled in.",
    )
    pool_selector: LabelSelector | None = Field(
        None,
        description="Labels of the pools to choose from: the one with most space available is "
        "taken, once and for all.",
    )
    node_name: ObjectName | None = Field(
        None, description="Node of the pool; filled in when it is known."
    )
    volume_name: Annotated[Name | None, Xml("name")] = Field(
        None, description="Name of the volume in the pool; default: the resource's name."
    )
    capacity: Annotated[Quantity | None, Xml("capacity", Form.BYTES)] = Field(
        None, description="Size that a user of the volume sees. It grows freely."
    )
    allocation: Annotated[Quantity | None, Xml("allocation", Form.BYTES)] = Field(
        None,
        description="Space set aside when the volume is made: 0 for none (sparse); left out: all "
        "of it for raw volumes, as in libvirt.",
    )
    preallocation: Literal["Off", "Metadata", "Falloc", "Full"] | None = Field(
        None, description="How that space is set aside."
    )
    format: Annotated[VolumeFormat | None, Xml("target/format/@type")] = Field(
        None, description="Format of the volume; default: the pool type's own (raw for files)."
    )
    compat: Annotated[
        Annotated[str, Field(max_length=16, pattern=r"^[0-9]+\.[0-9]+$")] | None,
        Xml("target/compat"),
    ] = Field(None, description="qcow2 version: 0.10 or 1.1.")
    nocow: Annotated[bool | None, Xml("target/nocow", Form.PRESENCE, printed=False)] = Field(
        None, description="Turn copy-on-write off for the file, where the file system has it."
    )
    cluster_size: Annotated[Quantity | None, Xml("target/clusterSize", Form.CLUSTER)] = Field(
        None, description="Cluster size of a qcow2 image, a power of two."
    )
    features: Annotated[ImageFeatures | None, Xml("target/features")] = Field(
        None, description="Features of a qcow2 image."
    )
    permissions: Annotated[Permissions | None, Xml("target/permissions")] = Field(
        None, description="Permissions of the volume; default: the pool's volumeDefaults."
    )
    encryption: Annotated[Encryption | None, Xml("target/encryption")] = Field(
        None, description="Encryption of the contents."
    )
    backing_store: Annotated[BackingStore | None, Xml("backingStore")] = Field(
        None, description="The image that this volume is a difference to."
    )
    source: VolumeSource | None = Field(None, description="Where the contents come from.")
    resize: Resize = Field(Resize(), description="How a change of capacity is carried out.")
    adoption: Adoption = Field(
        Adoption.IF_MATCHES,
        description="What to do with a volume of this name that is there and was not made by us: "
        "Never take it, take it IfMatches, or Observe it and never change anything.",
    )
    recreation: Recreation = Field(
        Recreation.NEVER,
        description="What to do when the volume has gone from a pool that can be read: Never make "
        "it anew (its data is lost, somebody has to know), or IfMissing make a new one.",
    )
    deletion_policy: VolumeDeletion = Field(
        VolumeDeletion.RETAIN,
        description="When the resource goes: Retain leaves the volume, Delete deletes it.",
    )
    wipe_on_delete: Wipe | None = Field(
        None, description="Overwrite the contents before the volume is deleted."
    )
    publish: Publish | None = Field(None, description="What makes it known beyond its host.")
    suspend: bool = Field(False, description="True: report, and change nothing.")

    def bound_as(self, former: VolumeSpec) -> VolumeSpec:
        """This spec with the pool that was chosen before, which a manifest does not know of."""
        if self.pool_selector is None or self.pool_ref is not None or former.pool_ref is None:
            return self
        node = self.node_name or former.node_name
        return self.model_copy(update={"pool_ref": former.pool_ref, "node_name": node})


class BackingLink(Model):
    """One image of a backing chain."""

    path: Text = Field(description="Path as resolved from the image that names it.")
    format: Text | None = Field(None, description="Format that the image above declares.")
    present: bool | None = Field(None, description="Whether it can be read; unset if not a file.")
    capacity: Quantity | None = Field(None, description="Its virtual size.")


class SourceExtent(Model):
    """A stretch of a device that a volume takes, in bytes."""

    start: Annotated[int, Xml("@start")] = Field(ge=0, description="Its first byte.")
    end: Annotated[int, Xml("@end")] = Field(ge=0, description="The first byte past it.")


class SourceDevice(Model):
    """A device that a volume stands on."""

    path: Annotated[Text, Xml("@path")] = Field(description="The device.")
    extents: Annotated[tuple[SourceExtent, ...], Xml("extent")] = Field(
        (),
        max_length=64,
        description="Where on it; on a physical volume of LVM, counted from its first extent on.",
    )


class VolumeStatus(StatusBase):
    """What was observed of a volume."""

    type: Annotated[
        Literal["file", "block", "dir", "network", "netdir", "ploop"] | None, Xml("@type")
    ] = Field(None, description="Kind of volume in libvirt's words.")
    key: Annotated[Annotated[str, Field(max_length=4096)] | None, Xml("key")] = Field(
        None, description="What identifies the volume on its host."
    )
    source_devices: Annotated[tuple[SourceDevice, ...], Xml("source/device")] = Field(
        (),
        max_length=64,
        description="What a partition or logical volume stands on, in the order of its contents; "
        "of many extents the first 64.",
    )
    path: Annotated[Annotated[str, Field(max_length=4096)] | None, Xml("target/path")] = Field(
        None, description="Where the volume is."
    )
    capacity: Annotated[Quantity | None, Xml("capacity", Form.BYTES)] = Field(
        None, description="Size that a user of the volume sees."
    )
    allocation: Annotated[Quantity | None, Xml("allocation", Form.BYTES)] = Field(
        None, description="Space that it takes."
    )
    physical: Annotated[Quantity | None, Xml("physical", Form.BYTES)] = Field(
        None, description="Size of the file or device itself."
    )
    format: Text | None = Field(None, description="Format that the header shows.")
    compat: Text | None = Field(None, description="qcow2 version that the header shows.")
    cluster_size: Quantity | None = Field(None, description="Cluster size that the header shows.")
    encryption: Text | None = Field(None, description="Encryption that the header shows.")
    permissions: Annotated[Permissions | None, Xml("target/permissions")] = Field(
        None, description="Permissions as they are."
    )
    origin: Literal["Created", "Adopted"] | None = Field(
        None, description="Whether we made the volume or took it over."
    )
    backing_chain: tuple[BackingLink, ...] = Field(
        (), max_length=200, description="The images that the volume stands on, nearest first."
    )
    persistent_volume: Text | None = Field(
        None, description="Name of the PersistentVolume that stands for the volume."
    )
    progress: Progress | None = Field(None, description="The operation that is under way.")
