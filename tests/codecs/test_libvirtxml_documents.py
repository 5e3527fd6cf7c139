"""Documents of every pool type and kind of volume: what libvirt makes of them.

Whether they are documents that libvirt accepts is checked with its schemas, which are read from
``../shared/libvirt-corpus`` beside the checkout; those tests are skipped where it is absent.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from backends.registry import pool_spec, pool_types
from backends.schema import Model
from backends.spec import PoolStatus, SourceDevice, SourceExtent, VolumeSpec, VolumeStatus
from controller.codecs import libvirtxml
from controller.codecs.xmlfields import shapes

CORPUS = Path(__file__).parents[3] / "shared" / "libvirt-corpus"
NEEDS_SCHEMAS = pytest.mark.skipif(
    not CORPUS.is_dir(), reason=f"libvirt's schemas are not in {CORPUS.parent.name}/{CORPUS.name}"
)
UUID = "0d6b4a7e-9f0c-4a53-8a4e-1f2f3c4d5e6f"
SECRET = "5f1c9d0e-7a6b-4c3d-9e2f-a1b2c3d4e5f6"
FS = "xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'"
RBD = "xmlns:rbd='http://libvirt.org/schemas/storagepool/rbd/1.0'"


def pool(kind: str, source: str, *, target: str = "", before: str = "", after: str = "") -> str:
    """A normalised pool document around what is special to it; parts are indented by four."""
    made = f"""\
<pool type='{kind}'>
  <name>p</name>
  <uuid>{UUID}</uuid>
  <capacity unit='bytes'>0</capacity>
  <allocation unit='bytes'>0</allocation>
  <available unit='bytes'>0</available>
{before}  <source>
{source}  </source>
"""
    made += f"  <target>\n    <path>{target}</path>\n  </target>\n" if target else ""
    return f"{made}{after}</pool>\n"


POOLS = {
    "dir with a name alone": (
        "<pool type='dir'><name>p</name><target><path>/srv//p/</path></target></pool>",
        pool("dir", "", target="/srv/p"),
    ),
    "dir with what is not known or only printed": (
        "<pool type='dir' id='3'><name>p</name><metadata><x>1</x></metadata><uuid/>"
        "<capacity unit='furlong'>much</capacity><available>-1</available>"
        "<source><device path='/dev/x'/><format type='ext9'/><host/></source>"
        "<target><path>/srv/p</path><encryption format='x'/></target></pool>",
        pool("dir", "", target="/srv/p"),
    ),
    "dir on btrfs": (
        "<pool type='dir'><name>p</name><features><cow state='no'/></features>"
        "<target><path>/srv/p</path></target></pool>",
        pool(
            "dir",
            "",
            target="/srv/p",
            before="  <features>\n    <cow state='no'/>\n  </features>\n",
        ),
    ),
    "characters that XML escapes": (
        "<pool type='dir'><name>p</name><source><vendor name='a&lt;b&amp;&quot;c&apos;'/></source>"
        "<target><path>/srv/&lt;p&gt;</path></target></pool>",
        pool(
            "dir",
            "    <vendor name='a&lt;b&amp;&quot;c&apos;'/>\n",
            target="/srv/&lt;p&gt;",
        ),
    ),
    "comments, CDATA and a declaration": (
        "<?xml version='1.0' encoding='UTF-8'?>\n<!-- a --><pool type='dir'><name><!-- b -->p"
        "<!-- c --></name><target><path><![CDATA[/srv/p]]></path></target></pool><!-- d -->",
        pool("dir", "", target="/srv/p"),
    ),
    "fs with mount options": (
        f"<pool type='fs' {FS}><name>p</name><source><format type='xfs'/>"
        "<device path='/dev/disk/by-id/wwn-1' part_separator='yes'/></source>"
        "<target><path>/mnt</path></target>"
        "<fs:mount_opts><fs:option name='noatime'/><fs:option name='discard'/></fs:mount_opts>"
        "</pool>",
        pool(
            "fs",
            "    <device path='/dev/disk/by-id/wwn-1' part_separator='yes'/>\n"
            "    <format type='xfs'/>\n",
            target="/mnt",
            after="  <fs:mount_opts>\n    <fs:option name='noatime'/>\n"
            "    <fs:option name='discard'/>\n  </fs:mount_opts>\n",
        ).replace("type='fs'", f"type='fs' {FS}"),
    ),
    "fs with another prefix": (
        "<pool type='fs' xmlns:x='http://libvirt.org/schemas/storagepool/fs/1.0'><name>p</name>"
        "<source><device path='/dev/sdb1'/></source><target><path>/mnt</path></target>"
        "<x:mount_opts><x:option name='ro'/></x:mount_opts></pool>",
        pool(
            "fs",
            "    <device path='/dev/sdb1'/>\n    <format type='auto'/>\n",
            target="/mnt",
            after="  <fs:mount_opts>\n    <fs:option name='ro'/>\n  </fs:mount_opts>\n",
        ).replace("type='fs'", f"type='fs' {FS}"),
    ),
    "netfs of two hosts": (
        "<pool type='netfs'><name>p</name><source><dir path='/export//a/'/>"
        "<host name='nfs.example' port='2049'/><host name='2001:db8::1' port='0'/>"
        "<protocol ver='4.2'/></source><target><path>/mnt</path></target></pool>",
        pool(
            "netfs",
            "    <host name='nfs.example' port='2049'/>\n    <host name='2001:db8::1'/>\n"
            "    <dir path='/export/a'/>\n    <format type='auto'/>\n    <protocol ver='4.2'/>\n",
            target="/mnt",
        ),
    ),
    "netfs with mount options": (
        f"<pool type='netfs' {FS}><fs:mount_opts><fs:option name='sync'/></fs:mount_opts>"
        "<name>p</name><source><host name='h'/><dir path='/e'/></source>"
        "<target><path>/mnt</path></target></pool>",
        pool(
            "netfs",
            "    <host name='h'/>\n    <dir path='/e'/>\n    <format type='auto'/>\n",
            target="/mnt",
            after="  <fs:mount_opts>\n    <fs:option name='sync'/>\n  </fs:mount_opts>\n",
        ).replace("type='netfs'", f"type='netfs' {FS}"),
    ),
    "netfs with a CIFS share": (
        "<pool type='netfs'><name>p</name><source><host name='cifs.example'/><dir path='share'/>"
        "<format type='cifs'/></source><target><path>/mnt</path></target></pool>",
        pool(
            "netfs",
            "    <host name='cifs.example'/>\n    <dir path='share'/>\n"
            "    <format type='cifs'/>\n",
            target="/mnt",
        ),
    ),
    "logical with nothing but a name": (
        "<pool type='logical'><name>p</name></pool>",
        pool("logical", "    <name>p</name>\n    <format type='lvm2'/>\n", target="/dev/p"),
    ),
    "logical named by its group": (
        "<pool type='logical'><source><name>p</name><format type='unknown'/></source>"
        "<target><path>/dev/other</path></target></pool>",
        pool("logical", "    <name>p</name>\n    <format type='unknown'/>\n", target="/dev/p"),
    ),
    "logical on a device": (
        "<pool type='logical'><name>p</name><source><name>vg</name><device path='/dev/sdb'/>"
        "</source></pool>",
        pool(
            "logical",
            "    <device path='/dev/sdb'/>\n    <name>vg</name>\n    <format type='lvm2'/>\n",
            target="/dev/vg",
        ),
    ),
    "disk": (
        "<pool type='disk'><name>p</name><source><device path='/dev//sdb'>"
        "<freeExtent start='0' end='512'/></device></source>"
        "<target><path>/dev</path></target></pool>",
        pool(
            "disk", "    <device path='/dev//sdb'/>\n    <format type='unknown'/>\n", target="/dev"
        ),
    ),
    "iscsi with all it can have": (
        "<pool type='iscsi'><name>p</name><source><product name='P'/><vendor name='V'/>"
        "<initiator><iqn name='iqn.2026-01.example:me'/></initiator>"
        "<auth username='u' type='chap'><secret usage='chap-p'/></auth>"
        "<device path='iqn.2026-01.example:disks'/><host port='3261' name='192.0.2.1'/></source>"
        "<target><path>/dev/disk/by-path</path></target></pool>",
        pool(
            "iscsi",
            "    <host name='192.0.2.1' port='3261'/>\n"
            "    <device path='iqn.2026-01.example:disks'/>\n"
            "    <initiator>\n      <iqn name='iqn.2026-01.example:me'/>\n    </initiator>\n"
            "    <auth type='chap' username='u'>\n      <secret usage='chap-p'/>\n    </auth>\n"
            "    <vendor name='V'/>\n    <product name='P'/>\n",
            target="/dev/disk/by-path",
        ),
    ),
    "iscsi-direct": (
        "<pool type='iscsi-direct'><name>p</name><source><host name='iscsi.example'/>"
        "<device path='iqn.2026-01.example:disks'/>"
        "<initiator><iqn name='iqn.2026-01.example:me'/></initiator>"
        f"<auth type='chap' username='u'><secret uuid='{SECRET}'/></auth></source></pool>",
        pool(
            "iscsi-direct",
            "    <host name='iscsi.example'/>\n    <device path='iqn.2026-01.example:disks'/>\n"
            "    <initiator>\n      <iqn name='iqn.2026-01.example:me'/>\n    </initiator>\n"
            f"    <auth type='chap' username='u'>\n      <secret uuid='{SECRET}'/>\n    </auth>\n",
        ),
    ),
    "scsi by its old name": (
        "<pool type='scsi'><name>p</name><source><adapter name='host7'/></source>"
        "<target><path>/dev/disk/by-path</path></target></pool>",
        pool(
            "scsi", "    <adapter type='scsi_host' name='host7'/>\n", target="/dev/disk/by-path"
        ),
    ),
    "scsi by its PCI device": (
        "<pool type='scsi'><name>p</name><source><adapter type='scsi_host' wwnn='ignored'>"
        "<parentaddr unique_id='2'><address bus='10' slot='0xA'/></parentaddr></adapter></source>"
        "<target><path>/dev</path></target></pool>",
        pool(
            "scsi",
            "    <adapter type='scsi_host'>\n      <parentaddr unique_id='2'>\n"
            "        <address domain='0x0000' bus='0x0a' slot='0x0a' function='0x0'/>\n"
            "      </parentaddr>\n    </adapter>\n",
            target="/dev",
        ),
    ),
    "scsi by Fibre Channel, with all it can have": (
        "<pool type='scsi'><name>p</name><source><adapter wwpn='0x10000000c9831b4b' managed='yes'"
        " parent_fabric_wwn='2000000000000001' parent_wwpn='1000000000000002'"
        " parent_wwnn='1000000000000001' wwnn='20000000c9831b4b' parent='scsi_host3'"
        " type='fc_host' name='ignored'/></source><target><path>/dev</path></target></pool>",
        pool(
            "scsi",
            "    <adapter type='fc_host' parent='scsi_host3' parent_wwnn='1000000000000001'"
            " parent_wwpn='1000000000000002' parent_fabric_wwn='2000000000000001' managed='yes'"
            " wwnn='20000000c9831b4b' wwpn='0x10000000c9831b4b'/>\n",
            target="/dev",
        ),
    ),
    "mpath": (
        "<pool type='mpath'><name>p</name><target><path>/dev/mapper/</path></target></pool>",
        pool("mpath", "", target="/dev/mapper"),
    ),
    "rbd with client settings": (
        f"<pool type='rbd' {RBD}><source><name>p</name><host name='2001:db8::1' port='6789'/>"
        f"<auth type='ceph' username='u'><secret uuid='{SECRET.upper()}'/></auth></source>"
        "<target><path>/ignored</path></target>"
        "<refresh><volume allocation='default'/></refresh><rbd:config_opts>"
        "<rbd:option name='a' value='1'/><rbd:option value='2' name='b'/></rbd:config_opts></pool>",
        pool(
            "rbd",
            "    <host name='2001:db8::1' port='6789'/>\n    <name>p</name>\n"
            f"    <auth type='ceph' username='u'>\n      <secret uuid='{SECRET}'/>\n    </auth>\n",
            after="  <refresh>\n    <volume allocation='default'/>\n  </refresh>\n"
            "  <rbd:config_opts>\n    <rbd:option name='a' value='1'/>\n"
            "    <rbd:option name='b' value='2'/>\n  </rbd:config_opts>\n",
        ).replace("type='rbd'", f"type='rbd' {RBD}"),
    ),
    "sheepdog": (
        "<pool type='sheepdog'><name>p</name><source><host name='localhost' port='7000'/>"
        "<name>cluster</name></source></pool>",
        pool("sheepdog", "    <host name='localhost' port='7000'/>\n    <name>cluster</name>\n"),
    ),
    "gluster": (
        "<pool type='gluster'><name>p</name><source><host name='g.example'/><name>vol</name>"
        "</source></pool>",
        pool(
            "gluster",
            "    <host name='g.example'/>\n    <dir path='/'/>\n    <name>vol</name>\n",
        ),
    ),
    "gluster in a directory": (
        "<pool type='gluster'><name>p</name><source><host name='g.example'/><dir path='/sub//'/>"
        "</source></pool>",
        pool(
            "gluster",
            "    <host name='g.example'/>\n    <dir path='/sub'/>\n    <name>p</name>\n",
        ),
    ),
    "zfs on a dataset": (
        "<pool type='zfs'><name>p</name><source><name>tank/images</name></source></pool>",
        pool("zfs", "    <name>tank/images</name>\n", target="/dev/zvol/tank/images"),
    ),
    "zfs on devices": (
        "<pool type='zfs'><name>p</name><source><device path='/dev/sdb'/>"
        "<device path='/dev/sdc'/><name>tank</name></source></pool>",
        pool(
            "zfs",
            "    <device path='/dev/sdb'/>\n    <device path='/dev/sdc'/>\n    <name>tank</name>\n",
            target="/dev/zvol/tank",
        ),
    ),
    "vstorage": (
        "<pool type='vstorage'><source><name>p</name></source>"
        "<target><path>/mnt/p</path></target></pool>",
        pool("vstorage", "    <name>p</name>\n", target="/mnt/p"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", POOLS)
def test_pools_are_normalised(case: str) -> None:
    given_text, expected = POOLS[case]
    found = libvirtxml.parse(given_text.encode())
    assert libvirtxml.format(found, uuid=UUID) == expected
    assert libvirtxml.format(libvirtxml.parse(expected.encode())) == expected


def test_every_pool_type_has_a_document_here() -> None:
    written = {libvirtxml.parse(text.encode()).spec.dump()["type"] for text, _ in POOLS.values()}
    assert written == set(pool_types())


@pytest.mark.parametrize(
    ("mode", "expected"), [("0", "00"), ("755", "0755"), ("00644", "0644"), (" 0777 ", "0777")]
)
def test_modes_are_written_with_one_leading_zero(mode: str, expected: str) -> None:
    text = (
        "<pool type='dir'><name>p</name><target><path>/p</path><permissions>"
        f"<owner>4294967295</owner><group>-1</group><mode>{mode}</mode></permissions></target></pool>"
    )
    printed = libvirtxml.format(libvirtxml.parse(text.encode()))
    permissions = f"    <permissions>\n      <mode>{expected}</mode>\n    </permissions>\n"
    assert permissions in printed


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("//", "//"),
        ("///", "/"),
        ("//host/share/", "//host/share"),
        ("///a", "/a"),
        ("/../a///b/", "/../a/b"),
        ("/a/http://x", "/a/http:/x"),
    ],
)
def test_paths_are_sanitised(path: str, expected: str) -> None:
    text = f"<pool type='dir'><name>p</name><target><path>{path}</path></target></pool>"
    assert f"<path>{expected}</path>" in libvirtxml.format(libvirtxml.parse(text.encode()))


def test_a_uri_is_no_path_to_sanitise() -> None:
    text = (
        "<pool type='gluster'><name>p</name><source><host name='h'/>"
        "<dir path='http://a//b/'/></source></pool>"
    )
    assert "<dir path='http://a//b/'/>" in libvirtxml.format(libvirtxml.parse(text.encode()))


@pytest.mark.parametrize(
    "written", [UUID.upper(), UUID.replace("-", ""), f"\n {UUID} ", UUID.replace("-", " ")]
)
def test_uuids_are_written_in_lower_case_with_dashes(written: str) -> None:
    text = (
        f"<pool type='dir'><name>p</name><uuid>{written}</uuid>"
        "<target><path>/p</path></target></pool>"
    )
    assert f"<uuid>{UUID}</uuid>" in libvirtxml.format(libvirtxml.parse(text.encode()))


def volume(target: str, *, size: int = 1024, allocated: int | None = None, after: str = "") -> str:
    allocated = size if allocated is None else allocated
    return f"""\
<volume type='file'>
  <name>v</name>
  <capacity unit='bytes'>{size}</capacity>
  <allocation unit='bytes'>{allocated}</allocation>
  <target>
{target}  </target>
{after}</volume>
"""


QCOW2 = "    <format type='qcow2'/>\n"
PASSPHRASE = f"<secret type='passphrase' uuid='{SECRET}'/>"
KIB = "<name>v</name><capacity unit='KiB'>1</capacity>"

VOLUMES = {
    "the least there is": (
        "dir",
        "<volume><name>v</name><capacity>1024</capacity></volume>",
        volume("    <format type='raw'/>\n"),
    ),
    "what is only printed": (
        "dir",
        f"<volume>{KIB}<physical>7</physical><source><device path='/dev/x'/></source>"
        "<target><timestamps><atime>1.5</atime></timestamps></target></volume>",
        volume("    <format type='raw'/>\n"),
    ),
    "sparse": (
        "dir",
        f"<volume>{KIB}<allocation>0</allocation></volume>",
        volume("    <format type='raw'/>\n", allocated=0),
    ),
    "cluster size": (
        "dir",
        f"<volume>{KIB}<target><clusterSize unit='kib'>128</clusterSize><format type='qcow2'/>"
        "</target></volume>",
        volume(f"{QCOW2}    <clusterSize unit='B'>131072</clusterSize>\n"),
    ),
    "permissions": (
        "dir",
        f"<volume>{KIB}<target><permissions><label>l</label><group>3</group><owner>3000000000"
        "</owner><mode>600</mode></permissions></target></volume>",
        volume(
            "    <format type='raw'/>\n    <permissions>\n      <mode>0600</mode>\n"
            "      <owner>3000000000</owner>\n      <group>3</group>\n      <label>l</label>\n"
            "    </permissions>\n"
        ),
    ),
    "no cluster size": (
        "dir",
        f"<volume>{KIB}<target><clusterSize>0</clusterSize><format type='qcow2'/></target>"
        "</volume>",
        volume(QCOW2),
    ),
    "features make it 1.1": (
        "dir",
        f"<volume>{KIB}<target><features><extended_l2/><lazy_refcounts/></features>"
        "<format type='qcow2'/></target></volume>",
        volume(
            f"{QCOW2}    <compat>1.1</compat>\n    <features>\n      <lazy_refcounts/>\n"
            "      <extended_l2/>\n    </features>\n"
        ),
    ),
    "features without any": (
        "dir",
        f"<volume>{KIB}<target><features/><format type='qcow2'/></target></volume>",
        volume(f"{QCOW2}    <compat>1.1</compat>\n    <features/>\n"),
    ),
    "copy-on-write off": (
        "dir",
        f"<volume>{KIB}<target><nocow/><compat>0.10</compat><format type='qcow2'/></target>"
        "</volume>",
        volume(f"{QCOW2}    <compat>0.10</compat>\n"),
    ),
    "encryption with all it can have": (
        "dir",
        f"<volume>{KIB}<target><encryption engine='qemu' format='luks'>{PASSPHRASE}"
        "<secret type='passphrase' usage='second'/><ivgen hash='sha256' name='essiv'/>"
        "<cipher hash='sha512' mode='xts' size='256' name='aes'/></encryption></target></volume>",
        volume(
            "    <format type='raw'/>\n    <encryption format='luks' engine='qemu'>\n"
            f"      {PASSPHRASE}\n      <secret type='passphrase' usage='second'/>\n"
            "      <cipher name='aes' size='256' mode='xts' hash='sha512'/>\n"
            "      <ivgen name='essiv' hash='sha256'/>\n    </encryption>\n"
        ),
    ),
    "cipher of what is not LUKS": (
        "dir",
        f"<volume>{KIB}<target><encryption format='qcow'><cipher size='x'/><ivgen/></encryption>"
        "</target></volume>",
        volume(
            "    <format type='raw'/>\n    <encryption format='qcow'>\n    </encryption>\n"
        ),
    ),
    "backing store without format": (
        "dir",
        "<volume><name>v</name><target><format type='qcow2'/></target>"
        "<backingStore><path>/srv//base.raw</path></backingStore></volume>",
        volume(
            QCOW2,
            size=0,
            after="  <backingStore>\n    <path>/srv//base.raw</path>\n    <format type='raw'/>\n"
            "  </backingStore>\n",
        ),
    ),
    "backing store without path": (
        "dir",
        f"<volume>{KIB}<backingStore><permissions><mode>9</mode></permissions></backingStore>"
        "</volume>",
        volume("    <format type='raw'/>\n"),
    ),
    "logical": (
        "logical",
        "<volume type='block'><name>v</name><key>r4x-k</key><capacity>1024</capacity>"
        "<target><path>/dev/vg//v</path><format type='qcow2'/></target>"
        "<backingStore><path>/dev/vg/base</path><format type='anything'/></backingStore></volume>",
        volume(
            "    <path>/dev/vg//v</path>\n",
            after="  <backingStore>\n    <path>/dev/vg/base</path>\n  </backingStore>\n",
        )
        .replace("type='file'", "type='block'")
        .replace("</name>\n", "</name>\n  <key>r4x-k</key>\n"),
    ),
    "partition": (
        "disk",
        f"<volume type='block'>{KIB}<target><path>/dev/sdb1</path></target></volume>",
        volume("    <path>/dev/sdb1</path>\n    <format type='none'/>\n").replace("file", "block"),
    ),
    "partition with a format": (
        "disk",
        f"<volume>{KIB}<target><format type='linux-swap'/></target></volume>",
        volume("    <format type='linux-swap'/>\n"),
    ),
    "network": (
        "rbd",
        f"<volume type='network'>{KIB}<target><path>rbd/v</path></target></volume>",
        volume("    <path>rbd/v</path>\n    <format type='raw'/>\n").replace("file", "network"),
    ),
    "sheepdog": (
        "sheepdog",
        f"<volume type='network'>{KIB}<target><path>sheepdog:v</path></target></volume>",
        volume("    <path>sheepdog:v</path>\n").replace("file", "network"),
    ),
}  # fmt: skip


def parse_volume(text: str, kind: str) -> libvirtxml.Document:
    given_text = next(given for given, _ in POOLS.values() if f"<pool type='{kind}'" in given)
    return libvirtxml.parse(text.encode(), pool=libvirtxml.parse(given_text.encode()))


def again_through_xml(read: libvirtxml.Document) -> libvirtxml.Document:
    text = libvirtxml.format(read, extension=True)
    return parse_volume(text, read.pool_type) if read.namespace else libvirtxml.parse(text.encode())


@pytest.mark.parametrize("case", VOLUMES)
def test_volumes_are_normalised(case: str) -> None:
    kind, given_text, expected = VOLUMES[case]
    assert libvirtxml.format(parse_volume(given_text, kind)) == expected
    assert libvirtxml.format(parse_volume(expected, kind)) == expected


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("<capacity unit='B'>5</capacity>", 5),
        ("<capacity unit='bytes'> 5 </capacity>", 5),
        ("<capacity unit='k'>5</capacity>", 5 * 1024),
        ("<capacity unit='KiB'>5</capacity>", 5 * 1024),
        ("<capacity unit='KB'>5</capacity>", 5000),
        ("<capacity unit='gib'>5</capacity>", 5 * 1024**3),
        ("<capacity unit='E'>7</capacity>", 7 * 1024**6),
        ("<capacity>9223372036854775807</capacity>", 2**63 - 1),
        ("<capacity>0</capacity>", 0),
    ],
)
def test_sizes_are_written_in_bytes(text: str, size: int) -> None:
    found = libvirtxml.parse(f"<volume><name>v</name>{text}</volume>".encode())
    assert f"<capacity unit='bytes'>{size}</capacity>" in libvirtxml.format(found)


def test_a_clone_needs_no_capacity() -> None:
    found = libvirtxml.parse(b"<volume><name>v</name></volume>", require_capacity=False)
    assert found.spec.dump().get("capacity") is None


def test_a_volume_belongs_to_the_pool_that_is_given() -> None:
    text = b"<volume><name>v</name><capacity>1</capacity></volume>"
    found = libvirtxml.parse(
        b"<pool type='mpath'><name>A b</name><target><path>/d</path></target></pool>"
    )
    for read in (libvirtxml.parse(text, pool=found), libvirtxml.parse(text, pool_name="other")):
        assert isinstance(read.spec, VolumeSpec)
        assert read.spec.pool_ref.name in (found.resource_name, "other")
    assert libvirtxml.declared(libvirtxml.parse(text)).key.namespace == "default"


def marked(model: type[Model]) -> Iterator[tuple[str, str]]:
    for shape in shapes(model):
        if shape.marker.path != ".":
            yield model.__name__, shape.name
        if shape.member is not None:
            yield from marked(shape.member)


def given_fields(model: Model) -> Iterator[tuple[str, str]]:
    """Fields with a marker that have a value of their own."""
    for shape in shapes(type(model)):
        value = getattr(model, shape.name)
        if value not in (None, ()):
            yield type(model).__name__, shape.name
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Model):
                yield from given_fields(item)


def test_every_field_with_a_place_in_xml_is_in_a_document_here() -> None:
    """A field that is not printed counts where it was read."""
    full = (
        "<pool type='dir'><name>P q</name><uuid>" + UUID + "</uuid>"
        "<target><path>/p</path><permissions><mode>0755</mode><owner>1</owner><group>2</group>"
        "<label>l</label></permissions></target></pool>"
    )
    backing = (
        "<volume type='file'><name>V w</name><key>k</key><capacity>1</capacity>"
        "<target><path>/v</path></target><backingStore><path>/b</path><format type='qcow2'/>"
        "<permissions><mode>0600</mode></permissions></backingStore></volume>"
    )
    inputs = [libvirtxml.parse(text.encode()) for text, _ in POOLS.values()]
    inputs += [parse_volume(text, kind) for kind, text, _ in VOLUMES.values()]
    inputs += [libvirtxml.parse(text.encode()) for text in (full, backing)]
    seen = set()
    for read in inputs:
        again = again_through_xml(read)
        assert (again.spec, again.name) == (read.spec, read.name)
        seen |= {*given_fields(again.spec), *given_fields(again.status)}
    printed_only = {("PoolStatus", s.name) for s in shapes(PoolStatus)}
    printed_only |= {("VolumeStatus", name) for name in libvirtxml.OBSERVED_ONLY}
    printed_only |= {
        (kind.__name__, item.name) for kind in (SourceDevice, SourceExtent) for item in shapes(kind)
    }
    expected = {*marked(pool_spec()), *marked(VolumeSpec), *marked(VolumeStatus)}
    assert expected - printed_only - seen == set()


def test_every_observed_figure_is_printed() -> None:
    read = libvirtxml.parse(POOLS["mpath"][0].encode())
    status = read.status.model_copy(
        update={"uuid": UUID, "capacity": 30, "allocation": 20, "available": 10}
    )
    text = libvirtxml.format(dataclasses.replace(read, status=status))
    assert f"<uuid>{UUID}</uuid>" in text
    for tag, size in (("capacity", 30), ("allocation", 20), ("available", 10)):
        assert f"<{tag} unit='bytes'>{size}</{tag}>" in text


def on_devices() -> str:
    """A volume on two stretches of one device and one of another."""
    first = SourceDevice(
        path="/dev/sda", extents=(SourceExtent(start=0, end=8), SourceExtent(start=16, end=24))
    )
    second = SourceDevice(path="/dev/sdb", extents=(SourceExtent(start=0, end=8),))
    read = parse_volume("<volume><name>v</name><capacity>24</capacity></volume>", "logical")
    status = read.status.model_copy(update={"source_devices": (first, second)})
    return libvirtxml.format(dataclasses.replace(read, status=status))


def test_where_a_volume_stands_is_printed_and_not_read() -> None:
    text = on_devices()
    told = [line.strip() for line in text.splitlines()]
    start = told.index("<source>")
    assert told[start : start + 9] == [
        "<source>",
        "<device path='/dev/sda'>",
        "<extent start='0' end='8'/>",
        "<extent start='16' end='24'/>",
        "</device>",
        "<device path='/dev/sdb'>",
        "<extent start='0' end='8'/>",
        "</device>",
        "</source>",
    ]
    assert parse_volume(text, "logical").status.source_devices == ()


def schema(name: str) -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(str(CORPUS / "schemas" / name)))


SCHEMAS = (
    {name: schema(f"storage{name}.rng") for name in ("pool", "vol", "poolcaps")}
    if CORPUS.is_dir()
    else {}
)


PAST_THE_SCHEMA = {
    "zfs on devices": "it has room for one device, and libvirt's parser for any number",
}


@NEEDS_SCHEMAS
@pytest.mark.parametrize("case", POOLS)
def test_normalised_pools_are_valid_under_libvirts_schema(case: str) -> None:
    document = etree.fromstring(POOLS[case][1].encode())
    assert SCHEMAS["pool"].validate(document) == (case not in PAST_THE_SCHEMA)


@NEEDS_SCHEMAS
@pytest.mark.parametrize("case", VOLUMES)
def test_normalised_volumes_are_valid_under_libvirts_schema(case: str) -> None:
    document = etree.fromstring(VOLUMES[case][2].encode())
    assert SCHEMAS["vol"].validate(document), SCHEMAS["vol"].error_log


@NEEDS_SCHEMAS
def test_where_a_volume_stands_is_valid_under_libvirts_schema() -> None:
    assert SCHEMAS["vol"].validate(etree.fromstring(on_devices().encode()))


@NEEDS_SCHEMAS
def test_capabilities_are_valid_under_libvirts_schema() -> None:
    for supported in (set(), set(pool_types())):
        text = libvirtxml.capabilities(supported)
        assert SCHEMAS["poolcaps"].validate(etree.fromstring(text.encode()))


IQN = "iqn.2026-01.example:disks"
PERMISSIONS = (
    "<permissions/>",
    "<permissions><owner>-1</owner><mode>0711</mode></permissions>",
    "<permissions><label>l</label><group>4294967295</group></permissions>",
)
PATHS = ("<path>/srv/p</path>", "<path>//srv///p//</path>", "<path>/srv/ü p</path>")
HOSTS = ("<host name='a.example'/>", "<host port='1' name='192.0.2.1'/><host name='::1'/>")
DEVICES = ("<device path='/dev/sdb'/>", "<device part_separator='no' path='/dev/x'/>")
AUTHS = (
    "",
    f"<auth type='chap' username='u'><secret uuid='{SECRET}'/></auth>",
    "<auth username='u' type='ceph'><secret usage='a &amp; b'/></auth>",
)
VENDORS = ("", "<vendor name='V'/>", "<product name='P'/>", "<product name=''/><vendor name='V'/>")
NAMES = ("<name>src</name>", "<name/>")
FREE_EXTENTS = "<device path='/dev/sdb'><freeExtent start='0' end='9'/></device>"


def formats(kind: str) -> tuple[str, ...]:
    return ("", *(f"<format type='{item}'/>" for item in pool_types()[kind].source_formats))


SOURCES: dict[str, tuple[tuple[str, ...], ...]] = {
    "dir": (),
    "fs": (DEVICES, formats("fs"), VENDORS),
    "netfs": (
        HOSTS,
        ("<dir path='/e'/>", "<dir path='//e//'/>"),
        ("", "<format type='auto'/>", "<format type='nfs'/>"),
        ("", "<protocol ver='4.1'/>", "<protocol ver='3'/>"),
        VENDORS,
    ),
    "logical": (("<name>src</name>",), ("", *DEVICES), formats("logical"), VENDORS),
    "disk": ((*DEVICES, FREE_EXTENTS), formats("disk"), VENDORS),
    "iscsi": (
        HOSTS,
        (f"<device path='{IQN}'/>", "<device path='target-1'/>"),
        ("", "<initiator><iqn name='me'/></initiator>"),
        AUTHS,
        VENDORS,
    ),
    "iscsi-direct": (
        HOSTS,
        (f"<device path='{IQN}'/>",),
        ("<initiator><iqn name='me'/></initiator>",),
        AUTHS,
    ),
    "scsi": (
        (
            "<adapter name='host1'/>",
            "<adapter type='scsi_host' name='scsi_host1'/>",
            "<adapter type='scsi_host'><parentaddr unique_id='1'><address domain='0x0000' "
            "bus='0x00' slot='0x1f' function='0x2'/></parentaddr></adapter>",
            "<adapter type='fc_host' wwnn='20000000c9831b4b' wwpn='10000000c9831b4b'/>",
            "<adapter type='fc_host' managed='no' parent='scsi_host5' wwnn='20000000C9831B4B' "
            "wwpn='10000000c9831b4b'/>",
        ),
        VENDORS,
    ),
    "mpath": (),
    "rbd": (HOSTS, ("<name>src</name>",), AUTHS),
    "sheepdog": (HOSTS, NAMES),
    "gluster": (HOSTS, NAMES, ("", "<dir path='/d'/>")),
    "zfs": (("<name>src</name>", "<name>tank/a b</name>"), ("", *DEVICES)),
    "vstorage": (NAMES,),
}
SIZES = (
    "",
    "<capacity>0</capacity>",
    "<available unit='GiB'>1</available><allocation>5</allocation>",
)
UUIDS = ("", f"<uuid>{UUID}</uuid>", f"<uuid>{UUID.replace('-', '').upper()}</uuid>")
WITHOUT_TARGET = ("iscsi-direct", "rbd", "sheepdog", "gluster")
OPTIONS = {
    "fs": f"<o:mount_opts {FS.replace(':fs', ':o')}><o:option name='ro'/></o:mount_opts>",
    "netfs": f"<fs:mount_opts {FS}><fs:option name='sync'/></fs:mount_opts>",
    "rbd": f"<rbd:config_opts {RBD}><rbd:option name='a' value='b'/></rbd:config_opts>",
}
BLANKS = st.sampled_from(["", "\n  ", "<!-- x -->", "\t"])


@st.composite
def interleaved(draw: st.DrawFn, parts: tuple[tuple[str, ...], ...]) -> str:
    """One of each group of alternatives, in any order and with blanks and comments between."""
    chosen = [draw(st.sampled_from(group)) for group in parts]
    return "".join(draw(BLANKS) + part for part in draw(st.permutations(chosen)))


@st.composite
def pool_documents(draw: st.DrawFn, kind: str) -> str:
    inside = draw(interleaved(SOURCES[kind]))
    source = "<source/>" if not inside.strip() else f"<source>{inside}</source>"
    if kind in ("dir", "mpath"):
        source = draw(st.sampled_from(["", "<source/>"]))
    target = f"<target>{draw(interleaved((PATHS, PERMISSIONS)))}</target>"
    cow = ("", "<features/>", "<features><cow state='yes'/></features>")
    parts = [
        ("<name>p</name>", "<name>A pool (1)</name>"),
        UUIDS,
        SIZES,
        cow if kind in libvirtxml.COW_TYPES else cow[:2],
        (source,),
    ]
    if kind not in WITHOUT_TARGET:
        parts.append((target,))
    if kind == "rbd":
        allocation = "<refresh><volume allocation='capacity'/></refresh>"
        parts.append(("", "<refresh/>", "<refresh><volume/></refresh>", allocation))
    options = draw(st.sampled_from(["", OPTIONS.get(kind, "")]))
    return f"<pool type='{kind}'>{draw(interleaved(tuple(parts)))}{options}</pool>"


FILE_FORMATS = tuple(
    f"<format type='{item}'/>" for item in pool_types()["dir"].volume_formats if item != "none"
)
SECRETS = (f"<secret type='passphrase' uuid='{SECRET}'/>", "<secret usage='u' type='passphrase'/>")
VOLUME_TARGET = (
    ("", "<path>/srv/p/v</path>", "<path>gluster://h/vol/v</path>"),
    ("", *FILE_FORMATS),
    PERMISSIONS,
    ("", "<timestamps><mtime>1.5</mtime></timestamps>"),
    (
        "",
        "<encryption format='default'/>",
        *(f"<encryption format='{item}'>{SECRETS[0]}</encryption>" for item in ("qcow", "luks2")),
        f"<encryption format='luks' engine='librbd'>{SECRETS[1]}<ivgen name='plain64'/>"
        "<cipher size='256' name='aes'/></encryption>",
    ),
    ("", "<compat>1.1</compat>", "<compat>0.10</compat>"),
    ("", "<nocow/>"),
    ("", "<clusterSize unit='KiB'>64</clusterSize>"),
    ("", "<features/>", "<features><extended_l2/></features>"),
)
VOLUME = (
    ("<name>v</name>", "<name>A v&amp;lume</name>"),
    ("", "<key>k</key>"),
    (
        "",
        "<source/>",
        "<source><device path='/dev/x'><extent start='0' end='1'/></device></source>",
    ),
    ("<capacity>1</capacity>", "<capacity unit='kb'>5</capacity>"),
    ("", "<allocation unit='MiB'>0</allocation>"),
    ("", "<physical unit='B'>1</physical>"),
    (
        "",
        "<backingStore><format type='qcow2'/><path>/srv/base</path><permissions><mode>600</mode>"
        "</permissions></backingStore>",
        "<backingStore><path>/srv/base</path></backingStore>",
    ),
)

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@NEEDS_SCHEMAS
@pytest.mark.parametrize("kind", SOURCES)
@given(data=st.data())
@QUICK
def test_pools_that_libvirts_schema_allows_are_read_and_stay(
    kind: str, data: st.DataObject
) -> None:
    text = data.draw(pool_documents(kind))
    assert SCHEMAS["pool"].validate(etree.fromstring(text.encode())), SCHEMAS["pool"].error_log
    read = libvirtxml.parse(text.encode())
    normalised = libvirtxml.format(read, uuid=UUID)
    assert libvirtxml.format(libvirtxml.parse(normalised.encode())) == normalised
    assert SCHEMAS["pool"].validate(etree.fromstring(normalised.encode())), normalised
    manifest = libvirtxml.declared(read)
    assert libvirtxml.format(libvirtxml.document(manifest), uuid=UUID) == normalised


@NEEDS_SCHEMAS
@given(data=st.data())
@settings(QUICK, max_examples=200)
def test_volumes_that_libvirts_schema_allows_are_read_and_stay(data: st.DataObject) -> None:
    target = data.draw(interleaved(VOLUME_TARGET))
    kind = data.draw(st.sampled_from(["", *(f" type='{word}'" for word in ("file", "network"))]))
    parts = data.draw(interleaved((*VOLUME, (f"<target>{target}</target>",))))
    text = f"<volume{kind}>{parts}</volume>"
    assert SCHEMAS["vol"].validate(etree.fromstring(text.encode())), SCHEMAS["vol"].error_log
    read = libvirtxml.parse(text.encode())
    normalised = libvirtxml.format(read)
    assert libvirtxml.format(libvirtxml.parse(normalised.encode())) == normalised
    assert SCHEMAS["vol"].validate(etree.fromstring(normalised.encode())), normalised
