"""Whatever is wrong is named, ends with the right code, and touches nothing else.

Each row of ``ROWS`` is one apply of a folder with bad manifests and a good one, by the command
line as a process. The good one is carried out, and the rest of the host stays as it is, down to
times and attributes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bad_input.conftest import SECRET, Site, snapshot

LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
UUID = "11111111-2222-3333-4444-555555555555"


def volume(name: str = "bad", **spec: str) -> str:
    """A volume of the pool images; values are YAML."""
    fields = {"poolRef": "{name: images}", "capacity": "4Ki", "allocation": "0", **spec}
    return _manifest("StorageVolume", name, fields)


def pool(name: str = "bad", **spec: str) -> str:
    """A dir pool at new, which is not there; values are YAML."""
    fields = {"type": "dir", "target": "{path: @/new}", **spec}
    return _manifest("StoragePool", name, fields)


def _manifest(kind: str, name: str, fields: dict[str, str]) -> str:
    spec = "".join(f"  {key}: {value}\n" for key, value in fields.items() if value)
    head = f"apiVersion: poolkeeper.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\n"
    return f"{head}spec:\n{spec}"


def xml_volume(inner: str, *, name: str = "bad") -> str:
    return f"<volume><name>{name}</name>{inner}</volume>"


def nothing(site: Site) -> None:
    """The host as it is."""


@dataclass(frozen=True)
class Row:
    """Bad input.

    :param files: manifests by file name.
    :param says: words that messages have, in any order.
    :param before: what stands on the host.
    :param tried: whether the pool's directory is entered to do something, which fails; then its
        times may change, and nothing else.
    :param made: what is made all the same: where two claim one thing, the first has it.
    """

    name: str
    files: dict[str, str | bytes]
    says: tuple[str, ...]
    before: Callable[[Site], None] = nothing
    tried: bool = False
    made: tuple[str, ...] = ()
    marks: tuple[pytest.MarkDecorator, ...] = field(default=())


def one(text: str | bytes, name: str = "bad.yaml") -> dict[str, str | bytes]:
    return {name: text}


def xml(text: str | bytes) -> dict[str, str | bytes]:
    """A file of XML in a folder that no pool is named after."""
    return {"bad.xml": text}


def named(name: str) -> dict[str, str | bytes]:
    return one(volume(volumeName=name))


READING = (
    Row("yaml syntax", one("kind: 'Pod\n"), ("bad.yaml:1:", "not YAML", "not closed")),
    Row("a tab", one("kind: StoragePool\nspec:\n\ttype: dir\n"), ("bad.yaml:3:", "tab", "spaces")),
    Row("a key twice", one(volume() + "  capacity: 1Gi\n"), ("capacity is given twice", "line 6")),
    Row("another apiVersion", one("apiVersion: v1\nkind: Pod\n"), ("bad.yaml:1:", "'v1'")),
    Row(
        "another version of ours",
        one(volume().replace("v1alpha1", "v2")),
        ("poolkeeper.dev/v2", "poolkeeper.dev/v1alpha1"),
    ),
    Row("another kind", one(volume().replace("eV", "ev", 1)), ("Storagevolume", "Did you mean")),
    Row("an unknown field", one(volume(sparse="true")), ("bad.yaml:8:", "spec.sparse")),
    Row("an alias bomb", one(LAUGHS), ("bad.yaml:", "alias")),
    Row("not UTF-8", one(b"kind: \xff\n"), ("bad.yaml:1:", "not UTF-8", "0xff")),
    Row("a NUL", one(b"kind: \x00\n"), ("bad.yaml:1:", "U+0000")),
    Row("an empty file", one(""), ("bad.yaml", "empty")),
    Row("a file of text", one("Hello.\n"), ("bad.yaml:1:", "mapping", "text")),
    Row("a deep nest", one("a: " + "[" * 5000), ("bad.yaml:1:", "deep")),
    Row("a file of 5 MiB", one(b"# " + b"x" * 5 * 2**20), ("bad.yaml", "larger than 4 MiB")),
    Row("no name", one(volume().replace("name: bad", "")), ("metadata.name", "missing")),
    Row("a name in capitals", one(volume("Bad")), ("bad.yaml:3:", "metadata.name", "'Bad'")),
    Row("xml syntax", xml("<pool type='dir'>\n<name>"), ("bad.xml:2:", "not well formed")),
    Row("another xml", xml("<domain/>"), ("bad.xml:1:", "<domain>", "<pool> or a <volume>")),
    Row("xml of no pool", xml(xml_volume("<capacity>1</capacity>")), ("which pool", "folder")),
    Row(
        "an external entity",
        xml(
            '<!DOCTYPE pool [<!ENTITY x SYSTEM "file:@/outside/passwd">]>'
            "<pool type='dir'><name>&x;</name></pool>"
        ),
        ("bad.xml:1:", "document type"),
    ),
    Row(
        "an external DTD",
        xml("<!DOCTYPE pool SYSTEM 'file:@/outside/passwd'><pool type='dir'/>"),
        ("bad.xml:1:", "document type"),
    ),
    Row("an entity of nobody", xml("<pool type='dir'><name>&x;</name></pool>"), ("well formed",)),
    Row("a capacity past 2**63", one(volume(capacity="90Ei")), ("90Ei", "larger than")),
    Row("a negative capacity", one(volume(capacity="-1")), ("spec.capacity", "-1")),
    Row("a capacity with a space", one(volume(capacity="10 GiB")), ("10 GiB", "like 20Gi")),
    Row("a capacity of floats", one(volume(capacity="1.5")), ("spec.capacity", "1.5")),
    Row(
        "a fraction in xml",
        xml(xml_volume("<capacity unit='GB'>1.5</capacity>")),
        ("bad.xml:1:", "1.5", "whole number"),
    ),
    Row(
        "an unknown unit",
        xml(xml_volume("<capacity unit='bushel'>1</capacity>")),
        ("bad.xml:1:", "bushel"),
    ),
    Row(
        "an overflow in xml",
        xml(xml_volume("<capacity unit='EiB'>8</capacity>")),
        ("bad.xml:1:", "larger than"),
    ),
    Row("a name with a slash", named("../outside/passwd"), ("spec.volumeName", "outside/passwd")),
    Row("a name of dots", named("'..'"), ("spec.volumeName", "'..'")),
    Row("a name with a bell", named('"a\\ab"'), ("spec.volumeName", "a\\x07b")),
    Row("a name with a line", named('"a\\nb"'), ("spec.volumeName", "a\\nb")),
    Row("a name of 300 bytes", named("ä" * 150), ("spec.volumeName", "300 bytes")),
    Row("a name like an option", named("-rf"), ("spec.volumeName", "'-'")),
    Row("a name of ours", named(".poolkeeper"), ("spec.volumeName", "reserved")),
    Row(
        "a path for an xml name",
        xml(xml_volume("<capacity>1</capacity>", name="../x")),
        ("bad.xml:1:", "'../x'"),
    ),
    Row(
        "a resource twice",
        {"a.yaml": volume("twice"), "b.yaml": "# second\n" + volume("twice", capacity="8Ki")},
        ("b.yaml:2:", "StorageVolume/default/twice", "a.yaml:1"),
        made=("images/twice",),
    ),
    Row("no uuid", one(pool(uuid="1-2-3")), ("spec.uuid", "'1-2-3'")),
    Row("an unknown type", one(pool(type="btrfs")), ("spec.type", "btrfs")),
    Row("the member of another type", one(pool(rbd="{poolName: x}")), ("bad.yaml:", "rbd")),
    Row("no member", one(pool(type="netfs")), ("netfs",)),
    Row("no target", one(pool(target="")), ("target.path is required",)),
    Row("a relative target", one(pool(target="{path: srv}")), ("spec.target.path", "srv")),
    Row("a mode without quotes", one(volume(permissions="{mode: 0640}")), ("0640", "in quotes")),
    Row("a mode in decimal", one(volume(permissions="{mode: 640}")), ("mode", "in quotes")),
    Row("a negative owner", one(volume(permissions="{owner: -1}")), ("owner", "-1")),
    Row("an unknown format", one(volume(format="qcow3")), ("spec.format", "qcow3", "qcow2")),
    Row("no backing format", one(volume(backingStore="{path: x}")), ("format", "missing")),
    Row(
        "two backing images",
        one(volume(backingStore="{path: x, volumeRef: {name: kept}, format: raw}")),
        ("exactly one of volumeRef and path",),
    ),
    Row(
        "a raw overlay",
        one(volume(format="raw", backingStore="{path: x, format: raw}")),
        ("backingStore needs a format",),
    ),
    Row("no capacity", one(volume(capacity="")), ("capacity is required",)),
    Row(
        "an overwrite that is not confirmed",
        one(pool(build="{policy: Overwrite}")),
        ("build.confirm",),
    ),
)


def changed(**spec: str) -> dict[str, str | bytes]:
    return one(volume("kept", **{"capacity": "1Mi", "allocation": "", **spec}))


CHANGING = (
    Row("another pool", changed(poolRef="{name: good}"), ("bad.yaml:1:", "poolRef")),
    Row("another format", changed(format="qcow2"), ("bad.yaml:1:", "format can't be changed")),
    Row("another volume name", changed(volumeName="x"), ("volumeName can't be changed",)),
    Row(
        "another type",
        one(pool("images", type="netfs", netfs="{hosts: [{name: h}], directory: /x, format: nfs}")),
        ("type can't be changed",),
    ),
    Row(
        "another pool name",
        one(pool("images", target="{path: @/images}", poolName="other")),
        ("poolName can't be changed",),
    ),
)


def image(path: Path, *arguments: str) -> None:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", *arguments[:1], path, *arguments[1:]], check=True
    )


def overlay(name: str = "bad", *, on: str, format: str = "raw", **spec: str) -> str:
    return volume(
        name, format="qcow2", allocation="", backingStore=f"{{{on}, format: {format}}}", **spec
    )


def plant_link(site: Site) -> None:
    (site.images / "bad").symlink_to(site.outside / "passwd")


def plant_folder_link(site: Site) -> None:
    (site.images / "bad").symlink_to(site.outside)


def plant_fifo(site: Site) -> None:
    os.mkfifo(site.images / "bad")


def plant_folder(site: Site) -> None:
    (site.images / "bad").mkdir()
    (site.images / "bad" / "inside").write_bytes(b"x")


def plant_file(site: Site) -> None:
    (site.images / "bad").write_bytes(b"x" * 8192)


def plant_copy_of_kept(site: Site) -> None:
    # With its attributes, as a restore from a backup would.
    shutil.copy2(site.images / "kept", site.images / "bad")


def plant_raw_base(site: Site) -> None:
    (site.images / "base").write_bytes(bytes(2**20))


def plant_qcow2_base(site: Site) -> None:
    image(site.images / "base", "qcow2", "1M")


def plant_loop(site: Site) -> None:
    a, b = site.images / "loop-a", site.images / "loop-b"
    image(a, "qcow2", "1M")
    image(b, "qcow2", "-u", "-b", str(a), "-F", "qcow2", "1M")
    subprocess.run(
        ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", str(b), "-F", "qcow2", a], check=True
    )


def file_at_new(site: Site) -> None:
    (site.root / "new").write_bytes(b"a file")


def link_to_images(site: Site) -> None:
    (site.root / "alias").symlink_to(site.images)


def unserved(type: str, member: str = "", *, target: bool = True) -> Row:
    spec = {"type": type, **({} if target else {"target": ""})}
    name = {"iscsi-direct": "iscsiDirect"}.get(type, type)
    text = pool(**spec, **({name: member} if member else {}))
    says = (f"can't serve pools of type {type}", "nothing was changed")
    return Row(f"a pool of type {type}", one(text), says)


REFUSED = (
    Row("a volume name twice", one(volume(volumeName="kept")), ("default/kept", "came first")),
    Row("a pool name twice", one(pool(poolName="images")), ("pool name 'images'", "came first")),
    Row(
        "a uuid twice",
        {"a.yaml": pool("a", uuid=UUID), "b.yaml": pool("b", uuid=UUID, target="{path: @/new2}")},
        (f"uuid {UUID}", "StoragePool/a came first"),
        made=("new",),
    ),
    Row("a target twice", one(pool(target="{path: @/images}")), ("StoragePool/images came first",)),
    Row(
        "a target with a slash",
        one(pool(target="{path: @/outside/..//images/}")),
        ("StoragePool/images came first",),
    ),
    Row(
        "a target by a link",
        one(pool(target="{path: @/alias}")),
        ("StoragePool/images came first",),
        before=link_to_images,
    ),
    unserved("vstorage"),
    unserved("zfs", "{dataset: tank}", target=False),
    Row("a smaller capacity", changed(capacity="512Ki"), ("shrink", "1Mi", "allowShrink")),
    Row("a pool of nobody", one(volume(poolRef="{name: nobody}")), ("'nobody'", "not declared")),
    Row(
        "a missing backing file",
        one(overlay(on="path: @/gone.raw")),
        ("gone.raw", "can't be used", "Bring the backing image"),
        tried=True,
    ),
    Row(
        "a backing file that is not qcow2",
        one(overlay(on="path: @/images/base", format="qcow2")),
        ("images/base", "can't be used"),
        before=plant_raw_base,
        tried=True,
    ),
    Row(
        "a backing loop by reference",
        {
            "a.yaml": overlay("a", on="volumeRef: {name: b}", format="qcow2"),
            "b.yaml": overlay("b", on="volumeRef: {name: a}", format="qcow2"),
        },
        ("default/a stands on StorageVolume/default/b", "on itself", "loop"),
    ),
    Row("a volume on itself", one(overlay(on="path: bad")), ("bad stands on itself",)),
    Row(
        "a backing loop on the host",
        one(overlay(on="path: @/images/loop-b", format="qcow2")),
        ("loop",),
        before=plant_loop,
        tried=True,
    ),
    Row(
        "more than there is room",
        one(volume(capacity="4Ei", allocation="")),
        ("4Ei", "left", "sparse"),
    ),
    Row("a target that is a file", one(pool()), ("new", "Not a directory"), before=file_at_new),
    Row(
        "a target beneath a file",
        one(pool(target="{path: @/new/below/it}")),
        ("new", "Not a directory"),
        before=file_at_new,
    ),
    Row("a link to a file", one(volume()), ("bad is no volume", "link"), before=plant_link),
    Row("a link to a folder", one(volume()), ("is no volume", "link"), before=plant_folder_link),
    Row("a pipe", one(volume()), ("bad is no volume", "FIFO"), before=plant_fifo),
    Row("a folder", one(volume()), ("differs: format is dir",), before=plant_folder),
    Row("a file of another size", one(volume()), ("capacity is 8Ki, declared 4Ki",), plant_file),
    Row(
        "a file that may not be taken",
        one(volume(capacity="8Ki", adoption="Never")),
        ("was not made by Poolkeeper",),
        plant_file,
    ),
    Row(
        "a file of another resource",
        one(volume(capacity="1Mi")),
        ("belongs to StorageVolume/default/kept",),
        plant_copy_of_kept,
    ),
    Row("clusters of 5000", one(volume(format="qcow2", clusterSize="5000")), ("powers of two",)),
    Row(
        "metadata of a raw volume",
        one(volume(preallocation="Metadata")),
        ("'raw'", "preallocation Metadata"),
    ),
    Row(
        "lazy refcounts of an old qcow2",
        one(volume(format="qcow2", compat="'0.10'", features="{lazyRefcounts: true}")),
        ("lazy_refcounts needs compat 1.1",),
    ),
    Row(
        "an encrypted volume without a secret",
        one(volume(encryption="{format: luks}")),
        ("exactly one secret",),
    ),
    Row(
        "a source",
        one(volume(source="{http: {url: 'http://127.0.0.1:9/x', format: dir}}")),
        ("An image of format dir can't be read",),
    ),
    Row("a format of partitions", one(volume(format="linux")), ("no volumes of format 'linux'",)),
    Row("a format that is only read", one(volume(format="bochs")), ("'bochs' can't be made",)),
    Row(
        "a backing path that is an address",
        one(overlay(on="path: 'nbd://localhost/x'", capacity="1Mi")),
        ("nbd:/localhost/x", "can't be used"),
        tried=True,
    ),
)

ROWS = (*READING, *CHANGING, *REFUSED)


def test_the_table_is_long():
    assert len({row.name for row in ROWS}) == len(ROWS) > 80


def listing(site: Site) -> dict[Path, tuple[object, ...]]:
    """The whole host without what the good volume and the state may change."""
    found = snapshot(*site.guarded)
    others = {item for item in site.root.iterdir() if item not in (site.good, site.state)}
    return found | snapshot(*(others - set(site.guarded)))


def without_times(found: tuple[object, ...]) -> tuple[object, ...]:
    return (*found[:7], *found[9:])


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=row.marks) for row in ROWS])
def test_what_is_wrong_is_named_and_touches_nothing_else(site, row):
    row.before(site)
    site.write(row.files)
    before = listing(site)
    ended = site.apply()
    assert ended.code == 1, ended.words
    for words in row.says:
        assert words in ended.err, ended.words
    after = listing(site)
    made = {site.root / name for name in row.made}
    assert after.keys() - before.keys() == made
    entered = {path.parent for path in made} | ({site.images} if row.tried else set())
    for path, was in before.items():
        if path in entered:
            assert without_times(after[path]) == without_times(was)
        else:
            assert after[path] == was, path
    assert os.listdir(site.good) == ["made"], ended.words
    assert (site.outside / "passwd").read_bytes() == SECRET


STRICT = ("yaml syntax", "an external DTD", "a resource twice", "another format")


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name in STRICT], ids=lambda row: row.name
)
def test_with_strict_nothing_is_done_at_all(site, row):
    site.write(row.files)
    before = snapshot(site.good, *site.guarded)
    stored = site.poolkeeper.done("get", "all", "-A", "-o", "json").json
    for command in ("apply", "plan"):
        ended = site.poolkeeper(command, "--strict", "-f", site.manifests)
        assert (ended.code, ended.out) == (1, "")
        assert "with --strict all manifests have to be sound" in ended.err
        assert all(words in ended.err for words in row.says), ended.words
    assert snapshot(site.good, *site.guarded) == before
    assert site.poolkeeper.done("get", "all", "-A", "-o", "json").json == stored


def test_an_overlay_may_be_smaller_than_its_base(site):
    """As qemu-img and libvirt have it: a machine sees the beginning of the base."""
    plant_qcow2_base(site)
    site.write(one(overlay(on="path: base", format="qcow2", capacity="512Ki")))
    ended = site.apply()
    assert ended.code == 0, ended.words
    status = site.poolkeeper.object("svol", "bad")["status"]
    assert (status["capacity"], status["backingChain"][0]["capacity"]) == ("512Ki", "1Mi")


def test_a_declared_raw_base_is_taken_at_its_word(site):
    """What a guest writes into its raw disk must not make a format of it."""
    plant_qcow2_base(site)
    site.write(one(overlay(on="path: base", format="raw", capacity="1Mi")))
    ended = site.apply()
    assert ended.code == 0, ended.words
    (link,) = site.poolkeeper.object("svol", "bad")["status"]["backingChain"]
    assert link["format"] == "raw"
