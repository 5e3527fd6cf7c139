"""What a pool, a volume, an operation and a node are: specs and statuses, declared once.

The members of a pool's spec that belong to one pool type (``logical``, ``rbd``) are declared in
the file of that type; ``backends.registry`` puts the whole ``StoragePoolSpec`` together.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from backends.schema import (
    LABEL_KEY_PATTERN,
    AbsolutePath,
    Duration,
    Form,
    LabelKey,
    LabelValue,
    Mode,
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

FileFormat = Literal[
    "none", "raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop",
    "cow", "qcow", "qcow2", "qed", "vmdk",
]  # fmt: skip
"""Formats of volumes that are files (libvirt's virStorageFileFormat)."""

PartitionFormat = Literal[
    "none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm", "linux-raid", "extended"
]
"""Formats of volumes that are partitions (libvirt's virStorageVolFormatDisk)."""


class PoolState(enum.StrEnum):
    ACTIVE = "Active"
    INACTIVE = "Inactive"


class BuildPolicy(enum.StrEnum):
    NEVER = "Never"
    IF_EMPTY = "IfEmpty"
    OVERWRITE = "Overwrite"


class Adoption(enum.StrEnum):
    NEVER = "Never"
    IF_MATCHES = "IfMatches"
    OBSERVE = "Observe"


class Recreation(enum.StrEnum):
    NEVER = "Never"
    IF_MISSING = "IfMissing"


class PoolDeletion(enum.StrEnum):
    RETAIN = "Retain"
    UNDEFINE = "Undefine"
    DELETE = "Delete"


class VolumeDeletion(enum.StrEnum):
    RETAIN = "Retain"
    DELETE = "Delete"


class Discovery(enum.StrEnum):
    REPORT = "Report"
    ADOPT = "Adopt"


class Permissions(Model):
    """Who may use a directory, file or device."""

    mode: Annotated[Mode | None, Xml("mode", Form.MODE)] = Field(
        None, description="Permission bits in octal, quoted."
    )
    owner: Annotated[int | None, Xml("owner", Form.ID)] = Field(
        None, ge=0, le=2**32 - 2, description="Numeric user id of the owner."
    )
    group: Annotated[int | None, Xml("group", Form.ID)] = Field(
        None, ge=0, le=2**32 - 2, description="Numeric group id."
    )
    label: Annotated[Text | None, Xml("label")] = Field(None, description="SELinux label.")


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
        None, description="Whether partition names have a 'p' before the number."
    )
    identity: Text | None = Field(
        None,
        description="Serial number, world-wide name, by-id link or UUID of contents that the "
        "device has to have; those that were there first if left out.",
    )


Devices = Annotated[tuple[Device, ...], Field(max_length=256)]


class SecretRef(Model):
    """Where a secret is kept. Its value never stands in a resource."""

    rules = (
        Rule(
            cel="(has(self.name) ? 1 : 0) + (has(self.uuid) ? 1 : 0) + (has(self.usage) ? 1 : 0) "
            "== 1",
            message="give exactly one of name, uuid and usage",
            holds=lambda self: (
                sum(value is not None for value in (self.name, self.uuid, self.usage)) == 1
            ),
        ),
    )

    name: ObjectName | None = Field(
        None, description="Name of a Secret, or of a file in the agent's secrets directory."
    )
    namespace: ObjectName | None = Field(
        None, description="Namespace of the Secret; only for cluster-scoped resources."
    )
    key: Text | None = Field(None, description="Key in the Secret; default `passphrase`.")
    uuid: Annotated[Uuid | None, Xml("@uuid")] = Field(None, description="libvirt secret, by uuid.")
    usage: Annotated[Text | None, Xml("@usage")] = Field(
        None, description="libvirt secret, by its usage string."
    )


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


class ResourceRef(Model):
    """A reference to another resource by name."""

    name: ObjectName = Field(description="Name of the resource.")


class LabelRequirement(Model):
    """One thing that labels have to be."""

    rules = (
        Rule(
            cel="(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
            message="operators In and NotIn need values, and the others take none",
            holds=lambda self: (self.operator in ("In", "NotIn")) == bool(self.values),
        ),
    )

    key: LabelKey = Field(description="Key of the label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How the label is looked at."
    )
    values: tuple[LabelValue, ...] = Field((), max_length=32, description="For In and NotIn.")

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels are so; NotIn holds where there is no such label, as in Kubernetes."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
        return self.key not in labels


class LabelSelector(Model):
    """Resources by their labels, as elsewhere in Kubernetes; all that is given has to hold."""

    rules = (
        Rule(
            cel="(has(self.matchLabels) && size(self.matchLabels) > 0) "
            "|| (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
            message="give matchLabels or matchExpressions",
            holds=lambda self: bool(self.match_labels or self.match_expressions),
        ),
        Rule(
            cel="!has(self.matchLabels) "
            f"|| self.matchLabels.all(key, key.matches('{LABEL_KEY_PATTERN}'))",
            message="matchLabels can't have the key: labels have no such keys",
            holds=lambda self: True,  # the keys' own type has the pattern
        ),
    )

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = Field(
        None, description="Labels by key, with their values."
    )
    match_expressions: tuple[LabelRequirement, ...] = Field(
        (), max_length=16, description="What else has to hold of the labels."
    )

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels are as the selector wants them."""
        wanted = (self.match_labels or {}).items()
        return wanted <= labels.items() and all(
            item.holds(labels) for item in self.match_expressions
        )


class VolumeRef(Model):
    """A reference to another volume."""

    name: ObjectName = Field(description="Name of the StorageVolume.")
    namespace: ObjectName | None = Field(
        None, description="Its namespace; the same as the referring resource's if left out."
    )


class CloneSource(Model):
    """Contents copied from another volume."""

    volume_ref: VolumeRef = Field(description="The volume to copy.")
    reflink: Literal["Auto", "Always", "Never"] = Field(
        "Auto", description="Whether blocks are shared with the source where the file system can."
    )


_Checksum = Annotated[
    str, Field(max_length=135, pattern=r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")
]


class HttpAuth(Model):
    """How we prove ourselves to a web server."""

    rules = (
        Rule(
            cel="self.type != 'Basic' || !has(self.secretRef.key)",
            message="Basic reads the keys username and password of the secret, so a secretRef.key "
            "can't be given",
            holds=lambda self: self.type != "Basic" or self.secret_ref.key is None,
        ),
    )

    type: Literal["Basic", "Bearer"] = Field(
        description="Basic: user name and password; Bearer: a token."
    )
    secret_ref: SecretRef = Field(
        description="The secret: keys `username` and `password` for Basic, `token` for Bearer."
    )


class HttpSource(Model):
    """Contents fetched over HTTP."""

    rules = (
        Rule(
            cel="(!has(self.auth) && !has(self.caRef)) || self.url.startsWith('https://')",
            message="auth and caRef need an https address",
            holds=lambda self: (
                (self.auth is None and self.ca_ref is None) or self.url.startswith("https://")
            ),
        ),
        Rule(
            cel="(!has(self.auth) || !has(self.auth.secretRef.namespace)) "
            "&& (!has(self.caRef) || !has(self.caRef.namespace))",
            message="secrets of a volume's source are in the volume's own namespace, so a "
            "namespace can't be given",
            holds=lambda self: all(
                item is None or item.namespace is None
                for item in (self.auth and self.auth.secret_ref, self.ca_ref)
            ),
        ),
    )

    url: Text = Field(
        pattern=r"^https?://[^@/?#\s]+([/?][^\s#]*)?$",
        description="Address of the image, http or https, without a user name.",
    )
    checksum: _Checksum | None = Field(
        None, description="`sha256:HEX` or `sha512:HEX` of the bytes as fetched."
    )
    format: FileFormat | None = Field(
        None,
        description="Format of the image, once decompressed; what its header shows if left out.",
    )
    auth: HttpAuth | None = Field(
        None, description="How to prove ourselves; sent to the host of `url` alone."
    )
    ca_ref: SecretRef | None = Field(
        None,
        description="Certificates to trust for this address in place of the host's, as PEM; key "
        "`ca.crt` if none is given.",
    )

    @property
    def shown_url(self) -> str:
        """The address without its query, which may hold a secret."""
        return self.url.partition("?")[0]


class FileSource(Model):
    """Contents read from a file of the host."""

    path: AbsolutePath = Field(description="Path of the file.")
    checksum: _Checksum | None = Field(
        None, description="`sha256:HEX` or `sha512:HEX` of the file's bytes."
    )
    format: FileFormat | None = Field(
        None,
        description="Format of the image, once decompressed; what its header shows if left out.",
    )


class UploadSource(Model):
    """Contents that a later upload brings."""


class VolumeSource(Model):
    """Where a new volume's contents come from; blank if left out."""

    rules = (
        Rule(
            cel="[has(self.clone), has(self.http), has(self.file), has(self.upload)]"
            ".filter(given, given).size() == 1",
            message="give exactly one of clone, http, file and upload",
            holds=lambda self: (
                sum(v is not None for v in (self.clone, self.http, self.file, self.upload)) == 1
            ),
        ),
    )

    clone: CloneSource | None = Field(None, description="Another volume.")
    http: HttpSource | None = Field(None, description="An image on a web server.")
    file: FileSource | None = Field(None, description="A file of the host.")
    upload: UploadSource | None = Field(None, description="An upload that is to come.")


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


VolumeFormat = Literal[
    "raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop", "cow",
    "qcow", "qcow2", "qed", "vmdk", "none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm",
    "linux-raid", "extended",
]  # fmt: skip
"""Formats of volumes, over all pool types."""


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


class Condition(Model):
    """One aspect of a resource's state, as in the Kubernetes API conventions."""

    type: Annotated[str, Field(max_length=316)] = Field(description="Which aspect.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[str, Field(max_length=1024)] = Field(
        description="Why, in one CamelCase word."
    )
    message: Annotated[str, Field(max_length=32768)] = Field("", description="Why, for people.")
    observed_generation: int = Field(0, description="Generation of the spec that this is about.")
    last_transition_time: Annotated[str, Field(max_length=32)] = Field(
        description="When status last changed."
    )


class Drift(Model):
    """A field whose observed value is not the desired one."""

    field: Text = Field(description="Path of the field below spec.")
    desired: Text = Field(description="What is declared.")
    observed: Text = Field(description="What is there.")


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


Conditions = Annotated[tuple[Condition, ...], Field(max_length=32)]


class StatusBase(Model):
    """What every status has."""

    observed_generation: int = Field(
        -1, description="Generation of the spec that this status is about; -1: not looked at yet."
    )
    conditions: Conditions = Field((), description="State by aspect; Ready sums it up.")
    last_handled_request: Text | None = Field(
        None, description="The poolkeeper.dev/requested-at annotation last acted on."
    )
    drift: tuple[Drift, ...] = Field(
        (), max_length=64, description="Fields that differ from what is declared."
    )


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


class BackingLink(Model):
    """One image of a backing chain."""

    path: Text = Field(description="Path as resolved from the image that names it.")
    format: Text | None = Field(None, description="Format that the image above declares.")
    present: bool | None = Field(None, description="Whether it can be read; unset if not a file.")
    capacity: Quantity | None = Field(None, description="Its virtual size.")


class Progress(Model):
    """How far a long operation has come."""

    operation: Text = Field(description="What is being done.")
    percent: int = Field(ge=0, le=100, description="Part done.")
    bytes_done: Quantity | None = Field(None, description="Bytes done.")
    bytes_total: Quantity | None = Field(None, description="Bytes in all.")


class VolumeStatus(StatusBase):
    """What was observed of a volume."""

    type: Annotated[
        Literal["file", "block", "dir", "network", "netdir", "ploop"] | None, Xml("@type")
    ] = Field(None, description="Kind of volume in libvirt's words.")
    key: Annotated[Annotated[str, Field(max_length=4096)] | None, Xml("key")] = Field(
        None, description="What identifies the volume on its host."
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


class Transfer(Model):
    """Which bytes an upload or download moves."""

    offset: Quantity = Field(0, description="First byte.")
    length: Quantity | None = Field(None, description="How many; to the end if left out.")
    sparse: bool = Field(True, description="Neither send nor store holes.")


class OperationSpec(Model):
    """A command on a volume, carried out once."""

    transitions = (
        *(
            immutable(name, message="an operation can't be changed; make a new one")
            for name in ("volumeRef", "operation", "wipe", "transfer", "ttlSecondsAfterFinished")
        ),
        TransitionRule(
            cel="!has(oldSelf.nodeName) || (has(self.nodeName) "
            "&& self.nodeName == oldSelf.nodeName)",
            message="nodeName can't be changed once it is set",
            holds=lambda old, new: old.node_name is None or new.node_name == old.node_name,
        ),
        TransitionRule(
            cel="!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)",
            message="what was cancelled stays so; make a new operation",
            holds=lambda old, new: not old.cancel or new.cancel,
        ),
    )
    rules = (
        Rule(
            cel="!has(self.wipe) || self.operation == 'Wipe'",
            message="wipe is only for operation Wipe",
            holds=lambda self: self.wipe is None or self.operation == "Wipe",
        ),
        Rule(
            cel="!has(self.transfer) || self.operation != 'Wipe'",
            message="transfer is only for operations Upload and Download",
            holds=lambda self: self.transfer is None or self.operation != "Wipe",
        ),
    )

    volume_ref: ResourceRef = Field(description="The StorageVolume to work on.")
    node_name: ObjectName | None = Field(
        None, description="Node of the volume; filled in when it is known."
    )
    operation: Literal["Wipe", "Upload", "Download"] = Field(description="What to do.")
    wipe: Wipe | None = Field(None, description="For Wipe: the patterns.")
    transfer: Transfer | None = Field(None, description="For Upload and Download: which bytes.")
    cancel: bool = Field(
        False,
        description="True: stop it and keep the record. Deleting the operation stops it, too.",
    )
    ttl_seconds_after_finished: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Seconds after which a finished operation is removed."
    )


class OperationStatus(StatusBase):
    """What became of an operation."""

    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Cancelled"] | None = Field(
        None, description="How far the operation is."
    )
    message: Text | None = Field(None, description="What happened, for people.")
    progress: Progress | None = Field(None, description="How far a running operation has come.")
    start_time: Annotated[str | None, Field(max_length=32)] = Field(
        None, description="When it was begun."
    )
    completion_time: Annotated[str | None, Field(max_length=32)] = Field(
        None, description="When it ended."
    )


class SourceQuery(Model):
    """Where to look for storage (libvirt's srcSpec)."""

    type: Annotated[str, Field(max_length=32)] = Field(description="Pool type to look for.")
    host: Host | None = Field(
        None, description="Server to ask; left out for types that are looked for on the node."
    )
    initiator: Text | None = Field(None, description="Initiator IQN to ask as, for iSCSI.")


class NodeSpec(Model):
    """What a node's agent is to look for."""

    discover: tuple[SourceQuery, ...] = Field(
        (), max_length=64, description="Servers and pool types to ask for storage."
    )


class PoolTypeSupport(Model):
    """Whether a host can serve a pool type."""

    type: Text = Field(description="The pool type.")
    supported: bool = Field(description="Whether it can be served.")
    reason: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="What is missing where it can't."
    )
    formats: tuple[Text, ...] = Field((), max_length=64, description="Volume formats it can make.")
    limits: tuple[Text, ...] = Field(
        (), max_length=64, description="What is missing for further formats."
    )


class ToolVersion(Model):
    """A program of the host."""

    name: Text = Field(description="Name of the program.")
    version: Text | None = Field(None, description="Version; unset where it is missing.")


class DiscoveredSource(Model):
    """Storage that a pool could stand on."""

    type: Text = Field(description="Pool type.")
    server: Annotated[str, Field(max_length=1040)] | None = Field(
        None, description="Server that told of it, as NAME or NAME:PORT; unset for the node itself."
    )
    source: Annotated[str, Field(max_length=4096)] = Field(
        description="What a pool's spec has under the type's name, as JSON."
    )


class NodeStatus(StatusBase):
    """What a host can do."""

    boot_id: Annotated[str | None, Field(max_length=64)] = Field(
        None, alias="bootID", description="Boot of the host."
    )
    agent_version: Text | None = Field(None, description="Release of the agent.")
    heartbeat_time: Annotated[str | None, Field(max_length=32)] = Field(
        None, description="When the agent last reported."
    )
    serves: Text | None = Field(None, description="Pool types that can be served, for people.")
    pool_types: tuple[PoolTypeSupport, ...] = Field(
        (), max_length=64, description="Pool types that the host can serve, and why not others."
    )
    tools: tuple[ToolVersion, ...] = Field((), max_length=256, description="Programs of the host.")
    sources: tuple[DiscoveredSource, ...] = Field(
        (),
        max_length=256,
        description="Sources that were found. Those of a server that does not answer stay.",
    )
