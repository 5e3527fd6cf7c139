"""Documents that are refused: which error, where it points, and that a hostile one costs little."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import errors
from controller.codecs import libvirtxml

XML, DETAIL = errors.InvalidXml, errors.InvalidXmlDetail
UNSUPPORTED, OVERFLOW = errors.UnsupportedConfiguration, errors.Overflow


def pool(kind: str, source: str = "", *, rest: str = "<target><path>/p</path></target>") -> str:
    """A pool whose source begins on line 3 and whose rest begins on line 5."""
    return f"<pool type='{kind}'>\n<name>p</name>\n<source>{source}\n</source>\n{rest}\n</pool>"


def volume(target: str = "", *, rest: str = "<capacity>1</capacity>") -> str:
    """A volume whose target begins on line 3."""
    return f"<volume>\n<name>v</name>\n<target>{target}\n</target>\n{rest}\n</volume>"


HOST, DIR, DEVICE = "<host name='h'/>", "<dir path='/e'/>", "<device path='/dev/sdb'/>"
INITIATOR = "<initiator><iqn name='me'/></initiator>"
SECRET = "<secret usage='s'/>"
PASSPHRASE = "<secret type='passphrase' usage='s'/>"


def auth(inside: str, attributes: str = "type='chap' username='u'") -> str:
    return pool("iscsi", f"{HOST}{DEVICE}\n<auth {attributes}>{inside}</auth>")


def adapter(attributes: str, inside: str = "") -> str:
    return pool("scsi", f"\n<adapter {attributes}>{inside}</adapter>")


def permissions(inside: str) -> str:
    return pool(
        "dir", rest=f"<target><path>/p</path><permissions>\n{inside}</permissions></target>"
    )


def encryption(inside: str, attributes: str = "format='luks'") -> str:
    return volume(f"\n<encryption {attributes}>{inside}</encryption>")


ID = "<address domain='0' bus='0' slot='1' function='0'/>"

REFUSED = [
    ("", XML, "not well formed", 1),
    ("<pool", XML, "not well formed", 1),
    ("<pool type='dir'>\n<name>p</pool>", XML, "not well formed", 2),
    ("<pool type='dir'>\n<fs:mount_opts/></pool>", XML, "not well formed", 2),
    ("<pool type='dir'>\n&x;</pool>", XML, "not well formed", 2),
    ("\n<pools/>", XML, "<pools>", 2),
    ("<pool xmlns='urn:x' type='dir'/>", XML, "{urn:x}pool", 1),
    ("<pool><name>p</name></pool>", XML, "<pool/@type> is missing", 1),
    (pool("tape"), UNSUPPORTED, "'tape'", 1),
    ("<pool type='dir'><target><path>/p</path></target></pool>", XML, "<name> is missing", 1),
    (pool("dir").replace("p</name>", "a/b</name>"), XML, "<name>: ", 2),
    (pool("dir").replace("p</name>", "a\nb</name>"), XML, "<name>: ", 2),
    (pool("dir").replace("p</name>", "-p</name>"), XML, "<name>: ", 2),
    (pool("dir").replace("p</name>", "p" * 256 + "</name>"), XML, "<name>: ", 2),
    (pool("dir", rest="<uuid>0d6b</uuid>"), XML, "<uuid>: '0d6b' is not a UUID", 5),
    (pool("dir", rest=""), XML, "target.path is required", 1),
    (pool("dir", rest="<target/>"), XML, "target.path is required", 1),
    (pool("dir", rest="<target>\n<path>p</path></target>"), XML, "<target/path>: ", 6),
    (permissions("<mode>rwx</mode>"), XML, "<target/permissions/mode>: 'rwx'", 6),
    (permissions("<mode>0888</mode>"), XML, "<target/permissions/mode>: ", 6),
    (permissions("<mode>01777</mode>"), XML, "at most 0777", 6),
    (permissions("<mode>-1</mode>"), XML, "<target/permissions/mode>: ", 6),
    (permissions("<owner>root</owner>"), XML, "<target/permissions/owner>: 'root'", 6),
    (permissions("<owner/>"), XML, "<target/permissions/owner>: ''", 6),
    (permissions("<group>-2</group>"), XML, "<target/permissions/group>: ", 6),
    (permissions("<group>4294967296</group>"), XML, "<target/permissions/group>: ", 6),
    (pool("dir", rest="<features><cow state='maybe'/></features>"), XML, "'maybe'", 5),
    (pool("netfs", rest="<features><cow state='yes'/></features>"), UNSUPPORTED, "cow", 5),
    (pool("dir", rest="<refresh><volume allocation='x'/></refresh>"), UNSUPPORTED, "'x'", 5),
    (pool("fs"), XML, "<source/device>: it is missing", 3),
    (pool("fs", "\n<device/>"), XML, "<source/device", 4),
    (pool("fs", f"{DEVICE}\n{DEVICE}"), XML, "There are 2 <source/device>", 4),
    (pool("fs", f"{DEVICE}\n<device path='/x' part_separator='1'/>"), XML, "2 <source", 4),
    (pool("fs", f"{DEVICE}\n<format type='ext5'/>"), UNSUPPORTED, "'ext5' is not known", 4),
    (pool("disk", "<device path='/x'\npart_separator='1'/>"), XML, "part_separator>: '1'", 4),
    (pool("netfs", DIR), XML, "<source/host>: it is missing", 3),
    (pool("netfs", HOST), XML, "<source/dir/@path>: it is missing", 3),
    (pool("netfs", f"{DIR}\n<host/>"), XML, "<source/host", 4),
    (pool("netfs", f"{DIR}\n<host port='2049'/>"), XML, "<source/host/@name>: ", 4),
    (pool("netfs", f"{DIR}\n<host name='h' port='nfs'/>"), XML, "port>: 'nfs'", 4),
    (pool("netfs", f"{DIR}\n<host name='h' port='65536'/>"), XML, "<source/host/@port>", 4),
    (pool("netfs", f"{DIR}{HOST}\n<protocol ver='4,ro'/>"), DETAIL, "<source/protocol/@ver>", 4),
    (
        pool("netfs", f"{DIR}{HOST}<format type='cifs'/>\n<protocol ver='4'/>"),
        UNSUPPORTED,
        "only for formats nfs and auto",
        3,
    ),
    (pool("iscsi", HOST), XML, "<source/device>: it is missing", 3),
    (pool("iscsi-direct", f"{HOST}{DEVICE}"), UNSUPPORTED, "<source/initiator/iqn/@name>", 3),
    (pool("iscsi-direct", f"{DEVICE}{INITIATOR}"), XML, "<source/host>: it is missing", 3),
    (auth(SECRET, "type='kerberos' username='u'"), UNSUPPORTED, "'kerberos'", 4),
    (auth(SECRET, "username='u'"), UNSUPPORTED, "<source/auth/@type>: it is missing", 4),
    (auth(SECRET, "type='chap'"), XML, "<source/auth/@username>: it is missing", 4),
    (auth(SECRET, "type='chap' username=''"), XML, "<source/auth/@username>", 4),
    (auth(""), XML, "<source/auth/secret>: it is missing", 4),
    (auth("\n<secret/>"), XML, "exactly one of name, uuid and usage", 5),
    (auth("\n<secret uuid='x'/>"), XML, "<source/auth/secret/@uuid>: 'x'", 5),
    (
        auth("\n<secret usage='s' uuid='0d6b4a7e-9f0c-4a53-8a4e-1f2f3c4d5e6f'/>"),
        XML,
        "exactly one of name, uuid and usage",
        5,
    ),
    (pool("scsi"), XML, "<source/adapter>: it is missing", 3),
    (adapter(""), XML, "<source/adapter>", 4),
    (adapter("type='usb'"), UNSUPPORTED, "'usb'", 4),
    (adapter("type='scsi_host'"), XML, "needs either name or parentAddress", 4),
    (adapter("wwnn='2000000000000001' name='host1'"), XML, "has wwnn and no type", 4),
    (adapter("name='host1'", f"<parentaddr unique_id='1'>{ID}</parentaddr>"), XML, "no type", 4),
    (
        adapter("type='scsi_host' name='h'", f"<parentaddr unique_id='1'>{ID}</parentaddr>"),
        XML,
        "either name or parentAddress",
        4,
    ),
    (adapter("type='scsi_host'", "\n<parentaddr unique_id='1'/>"), XML, "parentaddr/address>", 5),
    (adapter("type='scsi_host'", f"\n<parentaddr>{ID}</parentaddr>"), XML, "@unique_id>", 5),
    (
        adapter("type='scsi_host'", f"\n<parentaddr unique_id='-1'>{ID}</parentaddr>"),
        XML,
        "@unique_id>",
        5,
    ),
    (
        adapter(
            "type='scsi_host'",
            "<parentaddr unique_id='1'>\n<address slot='0x20'/></parentaddr>",
        ),
        XML,
        "'0x20' is not a number between 0x0 and 0x1f",
        5,
    ),
    (adapter("type='fc_host' wwnn='2000000000000001'"), XML, "needs wwnn and wwpn", 4),
    (adapter("type='fc_host' wwnn='1' wwpn='2000000000000001'"), XML, "<source/adapter/@wwnn>", 4),
    (
        adapter(
            "type='fc_host' wwnn='2000000000000001' wwpn='2000000000000001' "
            "parent_wwnn='2000000000000001'"
        ),
        XML,
        "parentWwnn and parentWwpn go together",
        4,
    ),
    (
        adapter("type='fc_host' wwnn='2000000000000001' wwpn='2000000000000001' managed='1'"),
        XML,
        "managed>: '1'",
        4,
    ),
    (pool("rbd", HOST), XML, "<source/name> is missing", 3),
    ("<pool type='rbd'><name>p</name></pool>", XML, "<source/host>: it is missing", 1),
    ("<pool type='logical'/>", XML, "<name> is missing", 1),
    ("<pool type='zfs'><source><name>a/b</name></source></pool>", XML, "<name>: ", 1),
    ("<volume><capacity>1</capacity></volume>", XML, "<name> is missing", 1),
    (volume(rest=""), XML, "<capacity> is missing", 1),
    (volume(rest="<capacity/>"), XML, "<capacity> is missing", 1),
    (volume(rest="<capacity>1.5</capacity>"), XML, "<capacity>: '1.5'", 5),
    (volume(rest="<capacity>-1</capacity>"), XML, "<capacity>: '-1'", 5),
    (volume(rest="<capacity unit='furlong'>1</capacity>"), XML, "'furlong' is not a unit", 5),
    (volume(rest="<capacity unit='E'>8</capacity>"), OVERFLOW, "<capacity>: ", 5),
    (volume(rest="<capacity>9223372036854775808</capacity>"), OVERFLOW, "<capacity>: ", 5),
    (volume(rest=f"<capacity>{'9' * 5000}</capacity>"), OVERFLOW, "<capacity>: ", 5),
    (volume(rest="<capacity>1</capacity>\n<allocation>x</allocation>"), XML, "<allocation>", 6),
    (volume().replace("<volume", "<volume type='tape'"), UNSUPPORTED, "'tape'", 1),
    (volume().replace("v</name>", "a/b</name>"), XML, "<name>: ", 2),
    (volume("\n<format type='ext4'/>"), UNSUPPORTED, "<target/format>: 'ext4'", 4),
    (volume("\n<format type='none'/>"), UNSUPPORTED, "<target/format>: 'none'", 4),
    (volume("\n<format type='linux'/>"), UNSUPPORTED, "<target/format>: 'linux'", 4),
    (
        volume(rest="<backingStore><path>/b</path><format type='x'/></backingStore>"),
        UNSUPPORTED,
        "<backingStore/format>: 'x'",
        5,
    ),
    (volume("\n<compat>1</compat>"), XML, "<target/compat>", 4),
    (volume("\n<compat>1.x</compat>"), XML, "<target/compat>", 4),
    (volume("\n<clusterSize unit='x'>1</clusterSize>"), XML, "<target/clusterSize>", 4),
    (volume("\n<clusterSize unit='EiB'>16</clusterSize>"), OVERFLOW, "<target/clusterSize>", 4),
    (volume("<features>\n<zoom/></features>"), UNSUPPORTED, "<target/features/zoom>", 4),
    (encryption("", ""), XML, "<target/encryption/@format> is missing", 4),
    (encryption("", "format='rot13'"), UNSUPPORTED, "'rot13'", 4),
    (encryption("", "format='luks' engine='x'"), UNSUPPORTED, "'x'", 4),
    (encryption("\n<secret usage='s'/>"), XML, "<target/encryption/secret/@type> is missing", 5),
    (encryption("\n<secret type='x' usage='s'/>"), UNSUPPORTED, "secret/@type> is 'x'", 5),
    (encryption("\n<secret type='passphrase'/>"), XML, "exactly one of name, uuid and usage", 5),
    (encryption(f"{PASSPHRASE}\n<secret type='passphrase'/>"), XML, "exactly one of", 5),
    (encryption("\n<secret type='passphrase' uuid='7'/>"), XML, "secret/@uuid>: '7'", 5),
    (encryption("\n<cipher size='256'/>"), XML, "<target/encryption/cipher/@name>", 5),
    (encryption("\n<cipher name='aes'/>"), XML, "<target/encryption/cipher/@size>", 5),
    (encryption("\n<cipher name='aes' size='big'/>"), XML, "size>: 'big'", 5),
    (encryption("\n<ivgen name='plain64'/>"), XML, "ivgen needs cipher", 4),
]


@pytest.mark.parametrize(("text", "error", "message", "line"), REFUSED)
def test_a_wrong_document_is_refused_where_it_is_wrong(
    text: str, error: type[errors.InvalidManifest], message: str, line: int
) -> None:
    with pytest.raises(errors.InvalidManifest) as caught:
        libvirtxml.parse(text.encode(), file="a.xml")
    assert type(caught.value) is error
    assert message in caught.value.message
    assert (caught.value.file, caught.value.line) == ("a.xml", line)
    assert len(str(caught.value)) < 1000


OPTION = "<pool type='{0}' xmlns:{1}='http://libvirt.org/schemas/storagepool/{1}/1.0'>\n"


@pytest.mark.parametrize(
    ("kind", "prefix", "source", "options"),
    [
        ("fs", "fs", DEVICE, "<fs:mount_opts>\n<fs:option/></fs:mount_opts>"),
        ("rbd", "rbd", f"{HOST}<name>n</name>", "<rbd:config_opts>\n<rbd:option value='1'/>"
         "</rbd:config_opts>"),
        ("rbd", "rbd", f"{HOST}<name>n</name>", "<rbd:config_opts>\n<rbd:option name='' value='1'/>"
         "</rbd:config_opts>"),
        ("rbd", "rbd", f"{HOST}<name>n</name>", "<rbd:config_opts>\n<rbd:option name='a' value=''/>"
         "</rbd:config_opts>"),
    ],
)  # fmt: skip
def test_options_need_names_and_values(kind: str, prefix: str, source: str, options: str) -> None:
    head = OPTION.format(kind, prefix)
    text = f"{head}<name>p</name><source>{source}</source><target><path>/p</path></target>{options}"
    with pytest.raises(XML, match=rf"{prefix}:option/@") as caught:
        libvirtxml.parse(f"{text}</pool>".encode())
    assert caught.value.line == 3


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '"a"', '{"status": {}}', '{"spec": null}', '{"metadata": 3}', "[" * 100_000],
)
def test_an_extension_that_is_no_patch_is_refused(text: str) -> None:
    document = (
        "<pool type='dir' xmlns:k='https://poolkeeper.dev/xml/v1alpha1'><name>p</name>"
        f"<target><path>/p</path></target>\n<k:resource>{text}</k:resource></pool>"
    )
    with pytest.raises(XML, match=r"poolkeeper:resource|spec|metadata"):
        libvirtxml.parse(document.encode())


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ('{"spec": {"colour": "red"}}', "colour"),
        ('{"spec": {"deletionPolicy": "Burn"}}', "deletionPolicy"),
        ('{"metadata": {"name": "A B"}}', "name"),
        ('{"metadata": {"uid": "1"}}', "uid"),
        ('{"metadata": {"labels": {"a": 1}}}', "labels"),
        ('{"spec": {"build": {"policy": "Overwrite"}}}', "confirm"),
    ],
)
def test_what_travels_is_checked_like_a_manifest(patch: str, message: str) -> None:
    document = (
        "<pool type='dir' xmlns:k='https://poolkeeper.dev/xml/v1alpha1'><name>p</name>"
        f"<target><path>/p</path></target><k:resource>{patch}</k:resource></pool>"
    )
    with pytest.raises(XML, match=message):
        libvirtxml.parse(document.encode())


LAUGHS = "<!DOCTYPE pool [<!ENTITY a0 'ha'>{}]><pool type='dir'><name>&a20;</name></pool>".format(
    "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 21))
)
QUADRATIC = f"<!DOCTYPE pool [<!ENTITY a '{'x' * 100_000}'>]><pool type='{'&a;' * 50_000}'/>"
EXTERNAL = "<!DOCTYPE pool [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><pool type='dir'>&a;</pool>"
DTD = "<!DOCTYPE pool SYSTEM 'http://127.0.0.1:9/pool.dtd'><pool type='dir'/>"
PARAMETER = "<!DOCTYPE pool [<!ENTITY % a SYSTEM 'file:///etc/passwd'>%a;]><pool type='dir'/>"


@pytest.mark.parametrize("text", [LAUGHS, QUADRATIC, EXTERNAL, DTD, PARAMETER, "<!DOCTYPE pool>"])
@pytest.mark.parametrize(
    "before", ["", "\n\n", "<?xml version='1.0'?>\n<!-- < --><?a b?>", "\ufeff"]
)
def test_a_document_type_is_refused_before_anything_is_expanded(text: str, before: str) -> None:
    with pytest.raises(XML, match="document type declaration") as caught:
        libvirtxml.parse((before + text).encode())
    assert caught.value.line == before.count("\n") + 1


@pytest.mark.parametrize(
    ("encoding", "declared"), [("utf-16", "utf-16"), ("utf-32", "utf-32"), ("utf-7", "utf-7")]
)
def test_another_encoding_hides_nothing(encoding: str, declared: str) -> None:
    text = f"<?xml version='1.0' encoding='{declared}'?>{EXTERNAL}"
    with pytest.raises(XML):
        libvirtxml.parse(text.encode(encoding))


def test_a_declared_encoding_does_not_change_what_was_checked() -> None:
    hidden = "+ADwAIQ-DOCTYPE pool+AD4-"
    text = f"<?xml version='1.0' encoding='utf-7'?>{hidden}<pool type='dir'/>"
    with pytest.raises(XML, match="not well formed"):
        libvirtxml.parse(text.encode())


def test_what_is_not_utf8_is_named_with_its_line() -> None:
    with pytest.raises(XML, match="not UTF-8") as caught:
        libvirtxml.parse(b"<pool>\n\xff</pool>")
    assert caught.value.line == 2


def test_a_large_document_is_refused_unread() -> None:
    with pytest.raises(XML, match="bytes"):
        libvirtxml.parse(b"<pool>" + b" " * libvirtxml.MAX_BYTES)


@pytest.mark.parametrize("depth", [100, 300, 80_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    with pytest.raises(XML, match=r"deep|well formed|depth"):
        libvirtxml.parse(b"<pool type='dir'>" + b"<a>" * depth + b"</a>" * depth + b"</pool>")


HOSTILE = {
    "entities that grow by ten": LAUGHS,
    "one entity many times": QUADRATIC,
    "instructions before the document": "<?a?>" * 200_000,
    "comments before the document": "<!---->" * 140_000,
    "many attributes": "<pool " + " ".join(f"a{n}=''" for n in range(90_000)) + "/>",
    "many elements": "<pool type='dir'>" + "<a/>" * 240_000 + "</pool>",
    "many hosts": "<pool type='netfs'><source>" + "<host/>" * 140_000 + "</source></pool>",
    "many namespaces": "<pool " + " ".join(f"xmlns:a{n}='u{n}'" for n in range(40_000)) + "/>",
    "many attributes on many elements": "<pool>"
    + ("<a " + " ".join(f"a{n}=''" for n in range(250)) + "/>") * 400
    + "</pool>",
    "a long word": "<pool type='dir'><uuid>" + "ab " * 300_000 + "</uuid></pool>",
    "a long number": "<volume><name>v</name><capacity>" + "9" * 1_000_000 + "</capacity></volume>",
    "deep nesting": "<pool>" + "<a>" * 300_000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_document_costs_little(case: str, tmp_path: Path) -> None:
    """In a process of its own, which may take 30 s of processor time and 300 MiB more memory."""
    document = tmp_path / "hostile.xml"
    document.write_text(HOSTILE[case])
    script = textwrap.dedent(
        """
        import resource, sys
        from backends import errors
        from controller.codecs import libvirtxml

        libvirtxml.parse(b"<pool type='dir'><name>p</name><target><path>/p</path></target></pool>")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
        try:
            libvirtxml.parse(open(sys.argv[1], "rb").read())
        except errors.InvalidManifest:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
        """
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", script, str(document)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 300 * 1024


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_anything_else_is_refused_with_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(errors.InvalidManifest):
        libvirtxml.parse(data)


TAGS = st.sampled_from(
    ["pool", "volume", "name", "source", "target", "host", "device", "path", "permissions", "mode",
     "auth", "secret", "adapter", "parentaddr", "address", "format", "encryption", "features",
     "capacity", "backingStore", "cipher", "uuid", "refresh", "lazy_refcounts"]
)  # fmt: skip
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["type", "name", "path", "unit", "uuid", "usage", "username", "unique_id"]),
    st.sampled_from(["dir", "scsi", "netfs", "luks", "x", "1", "", "passphrase", "fc_host"]),
    max_size=3,
)


def element(tag: str, attributes: dict[str, str], inside: str) -> str:
    written = "".join(f" {name}='{value}'" for name, value in attributes.items())
    return f"<{tag}{written}>{inside}</{tag}>"


ELEMENTS = st.recursive(
    st.sampled_from(["", "p", "/p", "-1", "0600", "7"]),
    lambda below: st.builds(element, TAGS, ATTRIBUTES, st.lists(below, max_size=4).map("".join)),
    max_leaves=20,
)


@given(st.sampled_from(["pool", "volume"]), ATTRIBUTES, st.lists(ELEMENTS, max_size=5))
def test_any_well_formed_document_is_read_or_refused_with_an_error_of_ours(
    tag: str, attributes: dict[str, str], inside: list[str]
) -> None:
    text = element(tag, attributes, "".join(inside))
    try:
        read = libvirtxml.parse(text.encode())
    except errors.InvalidManifest:
        return
    once = libvirtxml.format(read, uuid="0d6b4a7e-9f0c-4a53-8a4e-1f2f3c4d5e6f")
    assert libvirtxml.format(libvirtxml.parse(once.encode())) == once
