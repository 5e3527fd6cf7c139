"""Manifests that are good or bad, for every rule.

The same text goes through ``controller.codecs.manifests`` and through a real API server with the
generated CRDs, and the verdict has to be the same: a directory of manifests never meets an API
server, and an API server never runs our Python.
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.base import PoolType, TargetUse
from backends.registry import pool_types
from controller.resources import API_VERSION


@dataclass(frozen=True, slots=True)
class Case:
    """One manifest.

    :param refused: words that the refusal has to hold, on both sides; empty for a good manifest.
    """

    name: str
    manifest: str
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A good manifest, and another of the same name that is to take its place."""

    name: str
    before: str
    after: str
    refused: tuple[str, ...] = ()


def manifest(kind: str, spec: str, *, name: str = "images", metadata: str = "") -> str:
    """One document; ``spec`` is YAML without the braces around it."""
    named = f"{{name: {name}{', ' if metadata else ''}{metadata}}}"
    return f"apiVersion: {API_VERSION}\nkind: {kind}\nmetadata: {named}\nspec: {{{spec}}}\n"


def pool(spec: str, *, name: str = "images", metadata: str = "") -> str:
    return manifest("StoragePool", spec, name=name, metadata=metadata)


def volume(spec: str, *, name: str = "disk1", metadata: str = "") -> str:
    return manifest(
        "StorageVolume", f"poolRef: {{name: images}}, {spec}", name=name, metadata=metadata
    )


def selecting(selector: str, more: str = "") -> str:
    """A volume of a pool that is to be chosen."""
    spec = f"poolSelector: {{{selector}}}, capacity: 1Gi{more}"
    return manifest("StorageVolume", spec, name="disk1")


def operation(spec: str) -> str:
    return manifest("VolumeOperation", f"volumeRef: {{name: disk1}}, {spec}", name="wipe-disk1")


def node(spec: str) -> str:
    return manifest("StorageNode", spec, name="hv-01")


DIR = "type: dir, target: {path: /srv/images}"
UUID = "c7a1c6a0-7b0f-4a55-9d32-3f5f3d5a4c11"
OTHER_UUID = "0d3d2b32-2f9d-4a34-8f4e-54c8b0ff5a10"
HOST = "hosts: [{name: server.example}]"
IQN = "device: {path: 'iqn.2024-01.example:disks'}"
CHAP = "auth: {type: chap, username: u, secretRef: {%s}}"
WWNS = "wwnn: '0x2000000000000001', wwpn: '2000000000000002'"
PCI = "{bus: '0x00', slot: '0x1f', function: '0x2'}"

MEMBERS = {
    "dir": "{}",
    "fs": "{device: {path: /dev/vdb}}",
    "netfs": f"{{{HOST}, directory: /export}}",
    "logical": "{}",
    "disk": "{device: {path: /dev/vdb}}",
    "iscsi": f"{{{HOST}, {IQN}}}",
    "iscsi-direct": f"{{{HOST}, {IQN}, initiator: 'iqn.2024-01.example:us'}}",
    "scsi": "{adapter: {name: host3}}",
    "mpath": "{}",
    "rbd": f"{{{HOST}}}",
    "sheepdog": f"{{{HOST}}}",
    "gluster": f"{{{HOST}}}",
    "zfs": "{}",
    "vstorage": "{}",
}
"""The least that each pool type's member holds."""


def _bare(item: PoolType) -> str:
    """A pool of a type, with a target where there has to be one, and without its member."""
    target = ", target: {path: /mnt/a}" if item.target is TargetUse.REQUIRED else ""
    return f"type: {item.name}{target}"


def _member_cases() -> tuple[Case, ...]:
    """Each pool type with its member, with that of another type, and without one."""
    cases = []
    for item in pool_types().values():
        member = f"{item.member}: {MEMBERS[item.name]}"
        other = pool_types()["mpath" if item.name == "dir" else "dir"]
        cases += [
            Case(f"type {item.name} and its member", pool(f"{_bare(item)}, {member}")),
            Case(
                f"type {other.name} and the member of {item.name}",
                pool(f"{_bare(other)}, {member}"),
                (f"{item.member} is only for type {item.name}",),
            ),
            Case(
                f"type {item.name} alone",
                pool(_bare(item)),
                (f"type {item.name} needs {item.member}",) if item.member_required else (),
            ),
        ]
    return tuple(cases)


GOOD_POOLS = (
    Case("a dir pool", pool(DIR)),
    Case("a dir pool with an empty member", pool(f"{DIR}, dir: {{}}")),
    Case("a dir pool with a member that is null", pool(f"{DIR}, dir: null, features: ")),
    Case(
        "an fs pool",
        pool("type: fs, target: {path: /mnt/a}, fs: {device: {path: /dev/vdb}, format: xfs}"),
    ),
    Case(
        "a netfs pool",
        pool(
            f"type: netfs, target: {{path: /mnt/a}}, netfs: {{{HOST}, directory: /export, "
            "format: nfs, protocolVersion: '4.2', mountOptions: [soft]}"
        ),
    ),
    Case(
        "a share with a user",
        pool(
            f"type: netfs, target: {{path: /mnt/a}}, netfs: {{{HOST}, directory: share, "
            "format: cifs, auth: {username: u, domain: d, secretRef: {name: a}}}"
        ),
    ),
    Case("a logical pool with no word more", pool("type: logical")),
    Case(
        "a logical pool",
        pool("type: logical, logical: {volumeGroup: vg0, devices: [{path: /dev/vdb}]}"),
    ),
    Case(
        "a disk pool",
        pool("type: disk, target: {path: /dev}, disk: {device: {path: /dev/vdb}, format: gpt}"),
    ),
    Case(
        "an iscsi pool",
        pool(
            f"type: iscsi, target: {{path: /dev/disk/by-path}}, iscsi: {{{HOST}, {IQN}, "
            f"{CHAP % 'name: chap'}}}"
        ),
    ),
    Case(
        "an iscsi-direct pool",
        pool(f"type: iscsi-direct, iscsiDirect: {{{HOST}, {IQN}, initiator: 'iqn.2024-01.us:a'}}"),
    ),
    Case(
        "a scsi pool by name",
        pool("type: scsi, target: {path: /dev/disk/by-id}, scsi: {adapter: {name: host3}}"),
    ),
    Case(
        "a scsi pool by address",
        pool(
            "type: scsi, target: {path: /dev}, scsi: {adapter: {parentAddress: {uniqueId: 1, "
            f"address: {PCI}}}}}}}"
        ),
    ),
    Case(
        "a scsi pool by wwn",
        pool(f"type: scsi, target: {{path: /dev}}, scsi: {{adapter: {{type: fc_host, {WWNS}}}}}"),
    ),
    Case("an mpath pool", pool("type: mpath, target: {path: /dev/mapper}")),
    Case(
        "an rbd pool", pool(f"type: rbd, rbd: {{{HOST}, configOptions: [{{name: a, value: b}}]}}")
    ),
    Case("a sheepdog pool", pool(f"type: sheepdog, sheepdog: {{{HOST}}}")),
    Case("a gluster pool", pool(f"type: gluster, gluster: {{{HOST}, volume: vol0}}")),
    Case("a zfs pool", pool("type: zfs, zfs: {dataset: tank/vms}")),
    Case("a vstorage pool", pool("type: vstorage, target: {path: /mnt/vz}")),
    Case(
        "all that a pool may have",
        pool(
            f"{DIR}, nodeName: hv-01, poolName: Images 1, uuid: {UUID}, state: Inactive, "
            "autostart: false, transient: yes, build: {policy: Overwrite, confirm: images}, "
            "adoption: Never, deletionPolicy: Delete, refresh: {interval: 1h30m, "
            "volumeAllocation: Capacity}, discovery: Adopt, suspend: true, features: "
            "{copyOnWrite: no}, inventory: {vendor: V, product: P}, volumeDefaults: "
            "{permissions: {mode: '0640', owner: 107}}, allowedNamespaces: [tenant-a, 9b]"
        ),
    ),
    Case("labels and annotations", pool(DIR, metadata="labels: {a/b: c}, annotations: {d: 'e f'}")),
)

BAD_POOLS = (
    Case("no type", pool("target: {path: /srv}"), ("type",)),
    Case("an unknown type", pool("type: lvm"), ("type", "logical")),
    Case("a type of the wrong case", pool("type: DIR, target: {path: /srv}"), ("type", "dir")),
    Case("no target", pool("type: dir"), ("target.path is required",)),
    Case("a target without a path", pool("type: fs, fs: {device: {path: /dev/vdb}}, target: {}"),
         ("target.path is required",)),
    Case("a target where there can be none",
         pool(f"type: rbd, rbd: {{{HOST}}}, target: {{path: /a}}"),
         ("this pool type has no target",)),
    Case("a relative target", pool("type: dir, target: {path: srv}"), ("spec.target.path",)),
    Case("a member of another type", pool(f"{DIR}, logical: {{}}"), ("logical is only for type",)),
    Case("a member of another type that is spelt otherwise",
         pool(f"{DIR}, iscsiDirect: {{{HOST}, {IQN}, initiator: a}}"),
         ("iscsiDirect is only for type iscsi-direct",)),
    Case("no member", pool("type: netfs, target: {path: /mnt}"), ("type netfs needs netfs",)),
    Case("no member for scsi", pool("type: scsi, target: {path: /dev}"), ("type scsi needs scsi",)),
    Case("a member without its required field",
         pool("type: fs, target: {path: /mnt}, fs: {format: xfs}"), ("spec.fs.device",)),
    Case("no hosts", pool("type: rbd, rbd: {hosts: []}"), ("spec.rbd.hosts",)),
    Case("an unknown format",
         pool("type: fs, target: {path: /mnt}, fs: {device: {path: /dev/vdb}, format: zfs}"),
         ("spec.fs.format", "xfs")),
    Case("Overwrite without confirm", pool(f"{DIR}, build: {{policy: Overwrite}}"),
         ("build.policy Overwrite needs build.confirm",)),
    Case("Observe and Delete", pool(f"{DIR}, adoption: Observe, deletionPolicy: Delete"),
         ("adoption Observe",)),
    Case("a policy of the wrong case", pool(f"{DIR}, deletionPolicy: delete"),
         ("spec.deletionPolicy", "Delete")),
    Case("a port out of range", pool("type: rbd, rbd: {hosts: [{name: a, port: 65536}]}"),
         ("spec.rbd.hosts[0].port", "65535")),
    Case("a port in quotes", pool("type: rbd, rbd: {hosts: [{name: a, port: '6789'}]}"),
         ("spec.rbd.hosts[0].port",)),
    Case("a protocol version of cifs",
         pool(f"type: netfs, target: {{path: /a}}, netfs: {{{HOST}, directory: /b, format: cifs, "
              "protocolVersion: '3'}"),
         ("protocolVersion is only for formats nfs and auto",)),
    Case("a user for NFS",
         pool(f"type: netfs, target: {{path: /a}}, netfs: {{{HOST}, directory: /b, format: nfs, "
              "auth: {username: u, secretRef: {name: a}}}"),
         ("auth is only for format cifs",)),
    Case("a password among mount options",
         pool(f"type: netfs, target: {{path: /a}}, netfs: {{{HOST}, directory: /b, format: cifs, "
              "mountOptions: ['password=s']}"),
         ("a secret never stands in mountOptions",)),
    Case("a password behind another mount option",
         pool(f"type: netfs, target: {{path: /a}}, netfs: {{{HOST}, directory: /b, format: cifs, "
              "mountOptions: ['ro,password=s']}"),
         ("a secret never stands in mountOptions",)),
    Case("a protocol version without quotes",
         pool(f"type: netfs, target: {{path: /a}}, netfs: {{{HOST}, directory: /b, "
              "protocolVersion: 4.2}"),
         ("spec.netfs.protocolVersion",)),
    Case("a secret in two ways",
         pool(f"type: rbd, rbd: {{{HOST}, auth: {{type: ceph, username: u, secretRef: {{name: a, "
              "usage: b}}}"),
         ("give exactly one of name, uuid and usage",)),
    Case("a secret in no way",
         pool(f"type: rbd, rbd: {{{HOST}, auth: {{type: ceph, username: u, secretRef: {{}}}}}}"),
         ("give exactly one of name, uuid and usage",)),
    Case("an adapter by name and address",
         pool("type: scsi, target: {path: /dev}, scsi: {adapter: {name: host3, parentAddress: "
              f"{{uniqueId: 1, address: {PCI}}}}}}}"),
         ("needs either name or parentAddress",)),
    Case("an adapter by nothing", pool("type: scsi, target: {path: /dev}, scsi: {adapter: {}}"),
         ("needs either name or parentAddress",)),
    Case("a port without its names",
         pool("type: scsi, target: {path: /dev}, scsi: {adapter: {type: fc_host}}"),
         ("needs wwnn and wwpn",)),
    Case("a target that proves itself to nobody",
         pool("type: iscsi, target: {path: /dev}, iscsi: {hosts: [{name: h}], device: {path: "
              "'iqn.2024-01.org.example:a'}, mutualAuth: {username: t, secretRef: {name: s}}}"),
         ("mutualAuth needs auth",)),
    Case("half a parent",
         pool(f"type: scsi, target: {{path: /dev}}, scsi: {{adapter: {{type: fc_host, {WWNS}, "
              "parentWwnn: '2000000000000003'}}"),
         ("parentWwnn and parentWwpn go together",)),
    Case("a mode without quotes",
         pool("type: dir, target: {path: /srv, permissions: {mode: 711}}"),
         ("spec.target.permissions.mode",)),
    Case("a mode that is not octal",
         pool("type: dir, target: {path: /srv, permissions: {mode: '0799'}}"),
         ("spec.target.permissions.mode",)),
    Case("no namespaces", pool(f"{DIR}, allowedNamespaces: []"), ("spec.allowedNamespaces",)),
    Case("a namespace that can be none", pool(f"{DIR}, allowedNamespaces: [a.b]"),
         ("spec.allowedNamespaces[0]",)),
    Case("too many namespaces",
         pool(f"{DIR}, allowedNamespaces: [{', '.join(f'n{i}' for i in range(65))}]"),
         ("spec.allowedNamespaces",)),
    Case("a negative owner",
         pool("type: dir, target: {path: /srv, permissions: {owner: -1}}"),
         ("spec.target.permissions.owner",)),
    Case("an owner by name",
         pool("type: dir, target: {path: /srv, permissions: {owner: root}}"),
         ("spec.target.permissions.owner",)),
    Case("a pool name that is a path", pool(f"{DIR}, poolName: a/b"), ("spec.poolName",)),
    Case("a pool name like an option", pool(f"{DIR}, poolName: -rf"), ("spec.poolName",)),
    Case("a pool name of two dots", pool(f"{DIR}, poolName: '..'"), ("spec.poolName",)),
    Case("a pool name that is ours", pool(f"{DIR}, poolName: .poolkeeper-x"), ("spec.poolName",)),
    Case("a pool name with a control character", pool(f'{DIR}, poolName: "a\\u0085b"'),
         ("spec.poolName",)),
    Case("an empty pool name", pool(f"{DIR}, poolName: ''"), ("spec.poolName",)),
    Case("a pool name of too many bytes", pool(f"{DIR}, poolName: {'é' * 128}"),
         ("spec.poolName",)),
    Case("a volume group like an option", pool("type: logical, logical: {volumeGroup: '--yes'}"),
         ("spec.logical.volumeGroup",)),
    Case("a thin pool for thick volumes", pool("type: logical, logical: {thinPool: {}}"),
         ("spec.logical", "thinPool is only for provisioning Thin")),
    Case("a uuid in capitals", pool(f"{DIR}, uuid: {UUID.upper()}"), ("spec.uuid",)),
    Case("a span of time in words", pool(f"{DIR}, refresh: {{interval: 5 minutes}}"),
         ("spec.refresh.interval",)),
    Case("a boolean in quotes", pool(f"{DIR}, suspend: 'true'"), ("spec.suspend",)),
    Case("a list for a mapping", pool(f"{DIR}, build: []"), ("spec.build",)),
    Case("a mapping for a list", pool("type: logical, logical: {devices: {}}"),
         ("spec.logical.devices",)),
    Case("an unknown field", pool(f"{DIR}, path: /srv"), ("spec.path",)),
    Case("an unknown field below", pool(f"{DIR}, refresh: {{period: 5m}}"),
         ("spec.refresh.period",)),
    Case("a field by its name in Python", pool(f"{DIR}, node_name: a"), ("spec.node_name",)),
    Case("a name of the resource in capitals", pool(DIR, name="Images"), ("metadata.name",)),
    Case("a label that is none", pool(DIR, metadata="labels: {a: b c}"), ("metadata.labels",)),
    Case("a label that is a number", pool(DIR, metadata="labels: {a: 1}"), ("labels",)),
)  # fmt: skip

GOOD_VOLUMES = (
    Case("a volume", volume("capacity: 20Gi")),
    Case("a volume of some pool", selecting("matchLabels: {app: db, example.org/tier: ''}")),
    Case("a volume of some pool of a node",
         selecting("matchExpressions: [{key: a, operator: NotIn, values: [b, '']}, "
                   "{key: c, operator: DoesNotExist}]", ", nodeName: hv-01")),
    Case("a volume of the pool that was chosen",
         selecting("matchLabels: {app: db}", ", nodeName: hv-01, poolRef: {name: images}")),
    Case("a volume of bytes", volume("capacity: 1048576, allocation: 0")),
    Case("a volume of 1.5Gi", volume("capacity: 1.5Gi")),
    Case("a volume of an exponent", volume("capacity: '12e6'")),
    Case("a volume on another",
         volume("format: qcow2, backingStore: {path: base.qcow2, format: qcow2}")),
    Case("a clone", volume("source: {clone: {volumeRef: {name: base, namespace: golden}}}")),
    Case("an image from the web",
         volume(f"source: {{http: {{url: 'https://a.example', checksum: 'sha256:{'0' * 64}'}}}}")),
    Case("a web server that asks for a password",
         volume("source: {http: {url: 'https://a/b', auth: {type: Basic, "
                "secretRef: {name: mirror}}, caRef: {name: mirror, key: ca.pem}}}")),
    Case("a web server that asks for a token",
         volume("source: {http: {url: 'https://a/b', auth: {type: Bearer, "
                "secretRef: {name: mirror, key: t}}}}")),
    Case("a shrink that may lose data",
         volume("capacity: 1Gi, resize: {allowShrink: true, allowDataLoss: true}")),
    Case("an image from a file", volume("source: {file: {path: /srv/i.raw, format: raw}}")),
    Case("an upload to come", volume("capacity: 1Gi, source: {upload: {}}")),
    Case("a directory", volume("format: dir")),
    Case("a volume that is observed", volume("adoption: Observe")),
    Case("all that a volume may have",
         volume("capacity: 20G, nodeName: hv-01, volumeName: Disk 1.qcow2, "
                "preallocation: Metadata, format: qcow2, compat: '1.1', nocow: true, "
                "clusterSize: 64Ki, features: {lazyRefcounts: true, extendedL2: false}, "
                "permissions: {mode: '0600', label: a}, "
                "encryption: {secretRef: {name: luks}, cipher: {name: aes, size: 256, mode: xts}, "
                "ivgen: {name: plain64}}, resize: {allowShrink: true}, adoption: Never, "
                "recreation: IfMissing, deletionPolicy: Delete, wipeOnDelete: {algorithm: trim}, "
                "suspend: true")),
    Case("a name with a dot and an umlaut", volume("capacity: 1Gi, volumeName: '.ä b'")),
    Case("a wipe", operation("operation: Wipe, wipe: {algorithm: dod}")),
    Case("a wipe that was cancelled and goes after an hour",
         operation("operation: Wipe, cancel: true, ttlSecondsAfterFinished: 3600")),
    Case("an upload", operation("operation: Upload, transfer: {offset: 1Mi, length: 512}")),
    Case("a node", node("discover: [{type: netfs, host: {name: nas.example}}]")),
)  # fmt: skip

BAD_VOLUMES = (
    Case("no pool", manifest("StorageVolume", "capacity: 1Gi"),
         ("give either poolRef or poolSelector",)),
    Case("a pool and a selector", volume("poolSelector: {matchLabels: {a: b}}, capacity: 1Gi"),
         ("give either poolRef or poolSelector",)),
    Case("a selector of anything", selecting(""), ("give matchLabels or matchExpressions",)),
    Case("a selector of no labels", selecting("matchLabels: {}"),
         ("give matchLabels or matchExpressions",)),
    Case("a selector of a key that is none", selecting("matchLabels: {a/b/c: d}"),
         ("matchLabels can't have the key",)),
    Case("a selector of a value that is none", selecting("matchLabels: {a: b c}"),
         ("spec.poolSelector.matchLabels",)),
    Case("a selector of a number", selecting("matchLabels: {a: 1}"),
         ("spec.poolSelector.matchLabels",)),
    Case("In without values", selecting("matchExpressions: [{key: a, operator: In}]"),
         ("operators In and NotIn need values",)),
    Case("Exists with values",
         selecting("matchExpressions: [{key: a, operator: Exists, values: [b]}]"),
         ("operators In and NotIn need values",)),
    Case("an unknown operator", selecting("matchExpressions: [{key: a, operator: Like}]"),
         ("spec.poolSelector.matchExpressions[0].operator",)),
    Case("a pool as text", manifest("StorageVolume", "poolRef: images, capacity: 1Gi"),
         ("spec.poolRef",)),
    Case("no capacity", volume("format: raw"), ("capacity is required",)),
    Case("a capacity in no unit", volume("capacity: 20GiB"), ("spec.capacity",)),
    Case("a capacity in words", volume("capacity: lots"), ("spec.capacity",)),
    Case("a negative capacity", volume("capacity: -1"), ("spec.capacity",)),
    Case("a negative capacity with a unit", volume("capacity: -1Gi"), ("spec.capacity",)),
    Case("a capacity of a fraction without quotes", volume("capacity: 1.5"), ("spec.capacity",)),
    Case("a capacity past 8Ei", volume("capacity: 8Ei"), ("spec.capacity",)),
    Case("a capacity past all bounds", volume("capacity: '1e40'"), ("spec.capacity",)),
    Case("a capacity with a space", volume("capacity: '20Gi '"), ("spec.capacity",)),
    Case("an empty capacity", volume("capacity: ''"), ("spec.capacity",)),
    Case("a mapping for a capacity", volume("capacity: {value: 1}"), ("spec.capacity",)),
    Case("a boolean for a capacity", volume("capacity: true"), ("spec.capacity",)),
    Case("an unknown format", volume("capacity: 1Gi, format: qcow3"), ("spec.format", "qcow2")),
    Case("a format that YAML reads as a boolean", volume("capacity: 1Gi, format: no"),
         ("spec.format",)),
    Case("a raw volume on another",
         volume("format: raw, backingStore: {path: a, format: raw}"),
         ("backingStore needs a format",)),
    Case("a backing store in two ways",
         volume("backingStore: {path: a, volumeRef: {name: a}, format: raw}"),
         ("give exactly one of volumeRef and path",)),
    Case("a backing store in no way", volume("backingStore: {format: raw}"),
         ("give exactly one of volumeRef and path",)),
    Case("a backing store without a format", volume("backingStore: {path: a}"),
         ("spec.backingStore.format",)),
    Case("a source in two ways",
         volume("source: {upload: {}, file: {path: /a}}, capacity: 1Gi"),
         ("give exactly one of clone, http, file and upload",)),
    Case("a source in no way", volume("source: {}, capacity: 1Gi"),
         ("give exactly one of clone, http, file and upload",)),
    Case("a password in clear",
         volume("source: {http: {url: 'http://a/b', auth: {type: Basic, "
                "secretRef: {name: mirror}}}}"), ("auth and caRef need an https address",)),
    Case("certificates for no certificate",
         volume("source: {http: {url: 'http://a/b', caRef: {name: mirror}}}"),
         ("auth and caRef need an https address",)),
    Case("a key for Basic",
         volume("source: {http: {url: 'https://a/b', auth: {type: Basic, "
                "secretRef: {name: mirror, key: k}}}}"), ("secretRef.key can't be given",)),
    Case("a source's secret of another namespace",
         volume("source: {http: {url: 'https://a/b', auth: {type: Bearer, "
                "secretRef: {name: mirror, namespace: other}}}}"),
         ("a namespace can't be given",)),
    Case("a source's certificates of another namespace",
         volume("source: {http: {url: 'https://a/b', caRef: {name: mirror, namespace: other}}}"),
         ("a namespace can't be given",)),
    Case("data loss without shrinking",
         volume("capacity: 1Gi, resize: {allowDataLoss: true}"),
         ("allowDataLoss needs resize.allowShrink",)),
    Case("a source and a backing store",
         volume("source: {upload: {}}, backingStore: {path: a, format: raw}"),
         ("source and backingStore exclude each other",)),
    Case("an address of another kind", volume("source: {http: {url: 'ftp://a/b'}}"),
         ("spec.source.http.url",)),
    Case("a checksum that is none",
         volume("source: {http: {url: 'http://a/b', checksum: 'md5:00'}}"),
         ("spec.source.http.checksum",)),
    Case("an ivgen without a cipher",
         volume("capacity: 1Gi, encryption: {ivgen: {name: plain64}}"), ("ivgen needs cipher",)),
    Case("Observe and Delete", volume("adoption: Observe, deletionPolicy: Delete"),
         ("adoption Observe",)),
    Case("a compat without quotes", volume("capacity: 1Gi, compat: 1.1"), ("spec.compat",)),
    Case("a volume name that is a path", volume("capacity: 1Gi, volumeName: ../a"),
         ("spec.volumeName",)),
    Case("an unknown field", volume("capacity: 1Gi, size: 1Gi"), ("spec.size",)),
    Case("an unknown algorithm", volume("capacity: 1Gi, wipeOnDelete: {algorithm: ones}"),
         ("spec.wipeOnDelete.algorithm",)),
    Case("a namespace that is none", volume("capacity: 1Gi", metadata="namespace: A_b"),
         ("namespace",)),
    Case("a passphrase of another namespace",
         volume("capacity: 1Gi, encryption: {secretRef: {name: a, namespace: b}}"),
         ("the passphrase of a volume is in the volume's own namespace",)),
    Case("a further passphrase of another namespace",
         volume("capacity: 1Gi, encryption: {furtherSecretRefs: [{name: a, namespace: b}]}"),
         ("the passphrase of a volume is in the volume's own namespace",)),
    Case("a checksum cut short",
         volume("source: {http: {url: 'http://a/b', checksum: 'sha256:00'}}"),
         ("spec.source.http.checksum",)),
    Case("an upload that wipes", operation("operation: Upload, wipe: {}"),
         ("wipe is only for operation Wipe",)),
    Case("a wipe that transfers", operation("operation: Wipe, transfer: {}"),
         ("transfer is only for operations Upload and Download",)),
    Case("an unknown operation", operation("operation: Resize"), ("spec.operation",)),
    Case("a negative time to live", operation("operation: Wipe, ttlSecondsAfterFinished: -1"),
         ("spec.ttlSecondsAfterFinished",)),
    Case("a query of nothing", node("discover: [{host: {name: a.example}}]"),
         ("spec.discover[0].type",)),
)  # fmt: skip

CASES = (*_member_cases(), *GOOD_POOLS, *BAD_POOLS, *GOOD_VOLUMES, *BAD_VOLUMES)

LOGICAL = "type: logical"
LABELS = "matchLabels: {a: b}"
CHOSEN = ", nodeName: hv-01, poolRef: {name: images}"

CHANGES = (
    Change("nothing", pool(DIR), pool(DIR)),
    Change("a policy", pool(DIR), pool(f"{DIR}, deletionPolicy: Delete")),
    Change("the type", pool(LOGICAL), pool("type: zfs"), ("type can't be changed",)),
    Change("the name", pool(f"{LOGICAL}, poolName: a"), pool(f"{LOGICAL}, poolName: b"),
           ("poolName can't be changed",)),
    Change("the name, given later", pool(LOGICAL), pool(f"{LOGICAL}, poolName: b"),
           ("poolName can't be changed",)),
    Change("the name, taken away", pool(f"{LOGICAL}, poolName: a"), pool(LOGICAL),
           ("poolName can't be changed",)),
    Change("the uuid, given later", pool(LOGICAL), pool(f"{LOGICAL}, uuid: {UUID}")),
    Change("the uuid, once it is set", pool(f"{LOGICAL}, uuid: {UUID}"),
           pool(f"{LOGICAL}, uuid: {OTHER_UUID}"), ("uuid can't be changed",)),
    Change("the uuid, taken away", pool(f"{LOGICAL}, uuid: {UUID}"), pool(LOGICAL),
           ("uuid can't be changed",)),
    Change("the capacity", volume("capacity: 1Gi"), volume("capacity: 2Gi")),
    Change("the pool, when it is chosen", selecting(LABELS), selecting(LABELS, CHOSEN)),
    Change("the pool, chosen otherwise", selecting(LABELS, CHOSEN),
           selecting(LABELS, CHOSEN.replace("images", "other")), ("poolRef can't be changed",)),
    Change("the labels, before it is chosen", selecting(LABELS), selecting("matchLabels: {a: c}")),
    Change("the labels, once it is chosen", selecting(LABELS, CHOSEN),
           selecting("matchLabels: {a: c}", CHOSEN), ("poolSelector can't be changed",)),
    Change("the labels, taken away once it is chosen", selecting(LABELS, CHOSEN),
           volume("capacity: 1Gi, nodeName: hv-01")),
    Change("labels, for a pool that was named", volume("capacity: 1Gi, nodeName: hv-01"),
           selecting(LABELS, CHOSEN), ("poolSelector can't be changed",)),
    Change("the pool of a volume", volume("capacity: 1Gi"),
           manifest("StorageVolume", "poolRef: {name: other}, capacity: 1Gi", name="disk1"),
           ("poolRef can't be changed",)),
    Change("the format", volume("capacity: 1Gi, format: raw"),
           volume("capacity: 1Gi, format: qcow2"), ("format can't be changed",)),
    Change("the format, given later", volume("capacity: 1Gi"),
           volume("capacity: 1Gi, format: raw"), ("format can't be changed",)),
    Change("the name of a volume", volume("capacity: 1Gi, volumeName: a"),
           volume("capacity: 1Gi, volumeName: b"), ("volumeName can't be changed",)),
    Change("the source, given later", volume("capacity: 1Gi"),
           volume("capacity: 1Gi, source: {upload: {}}"), ("source can't be changed",)),
    Change("the source, taken away", volume("capacity: 1Gi, source: {upload: {}}"),
           volume("capacity: 1Gi"), ("source can't be changed",)),
    Change("the encryption, given later", volume("capacity: 1Gi"),
           volume("capacity: 1Gi, encryption: {secretRef: {name: a}}"),
           ("encryption can't be changed",)),
    Change("the node, given later", volume("capacity: 1Gi"), volume("capacity: 1Gi, nodeName: a")),
    Change("the node, once it is set", volume("capacity: 1Gi, nodeName: a"),
           volume("capacity: 1Gi, nodeName: b"), ("nodeName can't be changed",)),
    Change("an operation", operation("operation: Wipe"), operation("operation: Upload"),
           ("an operation can't be changed",)),
    Change("an operation's time to live", operation("operation: Wipe"),
           operation("operation: Wipe, ttlSecondsAfterFinished: 5"),
           ("an operation can't be changed",)),
    Change("which bytes an operation moves", operation("operation: Upload, transfer: {offset: 1}"),
           operation("operation: Upload, transfer: {offset: 2}"),
           ("an operation can't be changed",)),
    Change("the node of an operation, given later", operation("operation: Wipe"),
           operation("operation: Wipe, nodeName: a")),
    Change("the node of an operation, once it is set", operation("operation: Wipe, nodeName: a"),
           operation("operation: Wipe, nodeName: b"), ("nodeName can't be changed",)),
    Change("an operation that is cancelled", operation("operation: Wipe"),
           operation("operation: Wipe, cancel: true")),
    Change("an operation that is no longer cancelled", operation("operation: Wipe, cancel: true"),
           operation("operation: Wipe"), ("what was cancelled stays so",)),
)  # fmt: skip
