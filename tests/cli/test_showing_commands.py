"""``get``, ``describe``, ``events`` and ``lookup`` tell what is there, to people and machines."""

import json
import subprocess
import time

import pytest
import yaml

from controller.codecs import libvirtxml
from controller.resources import Key
from controller.store import Store


@pytest.fixture
def filled(poolkeeper, write, pool, volume, images):
    """A pool with a raw volume, an overlay, one in another namespace, and a stranger."""
    images.mkdir()
    (images / "stranger.img").write_bytes(bytes(4096))
    overlay = volume(
        "overlay",
        format="qcow2",
        capacity="4Gi",
        backingStore={"volumeRef": {"name": "disk"}, "format": "raw"},
    )
    elsewhere = volume("disk", namespace="other", volumeName="other-disk")
    manifest = write("all.yaml", pool(), volume(), overlay, elsewhere)
    assert poolkeeper("apply", manifest).code == 0
    return poolkeeper


def stored(poolkeeper, *key):
    store = Store(poolkeeper.state)
    try:
        return store.get(Key(*key)).dump()
    finally:
        store.close()


def test_json_of_one_is_the_object_as_the_store_has_it(filled):
    result = filled("get", "svol", "overlay", "-o", "json")
    assert result.json == stored(filled, "StorageVolume", "default", "overlay")
    assert result.json["apiVersion"] == "poolkeeper.dev/v1alpha1"
    assert result.json["metadata"]["generation"] == 1
    assert result.json["status"]["observedGeneration"] == 1


def test_json_of_a_kind_is_a_list(filled):
    found = filled("get", "storagevolumes", "-A", "-o", "json").json
    assert (found["apiVersion"], found["kind"]) == ("v1", "List")
    assert [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in found["items"]] \
        == [("default", "disk"), ("default", "overlay"), ("other", "disk")]  # fmt: skip


@pytest.mark.parametrize("arguments", [["svol"], ["svol", "disk"], ["all"]])
def test_yaml_says_the_same_as_json(filled, arguments):
    as_yaml = filled("get", *arguments, "-o", "yaml").out
    assert yaml.safe_load(as_yaml) == filled("get", *arguments, "-o", "json").json


def test_what_yaml_prints_can_be_applied(filled, tmp_path):
    printed = tmp_path / "printed.yaml"
    printed.write_text(filled("get", "spool,svol", "-o", "yaml").out)
    result = filled("apply", printed)
    assert result.code == 0
    assert all(line.endswith("unchanged") for line in result.out.splitlines())


def test_xml_is_a_document_that_libvirt_reads(filled, images):
    pool_xml = filled("get", "spool", "images", "-o", "xml").out
    document = libvirtxml.parse(pool_xml.encode())
    assert document.name == "images"
    uuid = stored(filled, "StoragePool", "", "images")["status"]["uuid"]
    assert f"<uuid>{uuid}</uuid>" in pool_xml
    volume_xml = filled("get", "svol", "overlay", "-o", "xml").out
    assert f"<path>{images}/overlay</path>" in volume_xml
    assert "<format type='qcow2'/>" in volume_xml


def test_names_can_be_given_back(filled):
    names = filled("get", "all", "-o", "name").out.split()
    assert names == ["storagepool/images", "storagevolume/disk", "storagevolume/overlay"]
    assert filled("wait", *names).code == 0


@pytest.mark.parametrize("kind", ["StorageVolume", "storagevolume", "storagevolumes", "SVOL"])
def test_a_kind_goes_by_all_its_names(filled, kind):
    result = filled("get", kind, "overlay")
    assert result.code == 0
    assert "overlay" in result.out


def test_the_table_has_the_columns_of_the_kind_and_sizes_for_people(filled):
    header, disk, overlay = filled("get", "svol").out.splitlines()
    assert header.split() == ["NAME", "POOL", "FORMAT", "CAPACITY", "ALLOCATION", "READY", "AGE"]
    assert overlay.split()[:5] == ["overlay", "images", "qcow2", "4", "GiB"]
    assert "True" in disk


def test_the_table_of_pools_tells_how_full_they_are(filled):
    header, line = filled("get", "spool").out.splitlines()
    place = header.index("USED")
    assert line[place : place + 4].strip().removesuffix("%").isdecimal()


def test_wide_shows_paths_and_nothing_is_cut_off_in_a_pipe(filled, images):
    result = filled.process("get", "svol", "-o", "wide", COLUMNS="20")
    assert f"{images}/overlay" in result.out
    assert "NAMESPACE" not in result.out
    assert filled("get", "svol", "-A").out.splitlines()[0].startswith("NAMESPACE")


def test_a_namespace_is_looked_into_when_named(filled):
    assert filled("get", "svol", "-n", "other", "-o", "name").out == "storagevolume/disk\n"
    assert filled("get", "svol", "overlay", "-n", "other").code == 1


def test_what_is_not_there_fails_and_the_rest_is_shown(filled):
    result = filled("get", "svol", "disk", "nobody")
    assert result.code == 1
    assert "nobody" in result.err
    assert "disk" in result.out


def test_looking_at_an_empty_host_makes_nothing(poolkeeper):
    result = poolkeeper("get", "all")
    assert (result.code, result.out) == (0, "")
    assert poolkeeper("get", "spool", "-o", "json").json["items"] == []
    assert not poolkeeper.state.exists()


def test_describe_tells_spec_status_conditions_and_events(filled, images):
    text = filled("describe", "svol", "overlay").out
    for part in ("Spec:", "Status:", "Conditions:", "Backing chain:", "Events:"):
        assert f"\n{part}\n" in text
    assert f"{images}/disk (raw, 1 MiB)" in text
    assert "InSync" in text
    assert "Created" in text
    pool = filled("describe", "spool/images").out
    assert "stranger.img" in pool
    assert filled("describe", "svol", "nobody").code == 1


def test_describe_shows_drift(filled, write, volume, images):
    filled("apply", write("change.yaml", volume(capacity="512Ki")))
    text = filled("describe", "svol", "disk").out
    assert "capacity is 1Mi, declared 512Ki" in text
    assert "ShrinkNotAllowed" in text


def test_events_are_told_in_order_and_by_resource(filled):
    everything = filled("events", "-o", "json").json["items"]
    ids = [int(item["metadata"]["name"].rpartition(".")[2], 16) for item in everything]
    assert ids == sorted(ids)
    own = filled("events", "svol", "overlay", "-o", "json").json["items"]
    assert {item["involvedObject"]["name"] for item in own} == {"overlay"}
    assert [item["reason"] for item in own] == ["Created"]
    assert "storagevolume/overlay" in filled("events").out


def test_watched_events_come_as_they_happen(filled, write, volume):
    watching = subprocess.Popen(
        filled.argv("events", "--watch", "-o", "json", "svol", "new"),
        env=filled.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(0.5)
        filled("apply", write("new.yaml", volume("new")))
        first = json.loads(watching.stdout.readline())
        assert (first["reason"], first["involvedObject"]["name"]) == ("Created", "new")
    finally:
        watching.kill()
        watching.wait()
        watching.stdout.close()


def test_lookup_finds_by_path_key_uuid_and_target(filled, images):
    uuid = stored(filled, "StoragePool", "", "images")["status"]["uuid"]
    crooked = f"{str(images).replace('/', '//', 1)}///overlay/"
    cases = {
        ("--path", f"/{crooked}"): "storagevolume/overlay",
        ("--key", f"{images}/overlay"): "storagevolume/overlay",
        ("--path", f"{images}/other-disk"): "storagevolume/disk -n other",
        ("--uuid", uuid.upper()): "storagepool/images",
        ("--target-path", f"{images}//"): "storagepool/images",
        ("--path", f"{images}/stranger.img"): "storagepool/images stranger.img",
    }
    for arguments, answer in cases.items():
        result = filled("lookup", *arguments)
        assert (result.code, result.out.strip()) == (0, answer), arguments
    found = filled("lookup", "--path", f"{images}/overlay", "-o", "json").json
    assert found == stored(filled, "StorageVolume", "default", "overlay")


@pytest.mark.parametrize(
    "arguments", [["--path", "/nowhere"], ["--uuid", "no"], ["--target-path", "/"], ["--key", "x"]]
)
def test_lookup_fails_where_nothing_matches(filled, arguments):
    assert filled("lookup", *arguments).code == 1


def test_lookup_is_told_one_thing(poolkeeper):
    assert poolkeeper("lookup").code == 64
    assert poolkeeper("lookup", "--path", "/a", "--key", "/a").code == 64


def test_a_resource_that_cannot_be_read_is_named_and_hides_no_other(filled):
    import sqlite3

    with sqlite3.connect(filled.state / "store.db") as connection:
        connection.execute("UPDATE resources SET spec = '[]' WHERE name = 'overlay'")
    result = filled("get", "svol")
    assert "overlay" in result.err
    assert "disk" in result.out


def test_what_others_wrote_cannot_command_the_terminal(filled, write, pool, images):
    (images / "evil\x1b[31m.img").write_bytes(b"")
    painted = pool()
    painted["metadata"]["annotations"] = {"note": "\x1b[31mred"}
    assert filled("apply", write("painted.yaml", painted)).code == 0
    text = filled("describe", "spool", "images").out
    assert "\\x1b[31mred" in text
    assert "\x1b" not in text
