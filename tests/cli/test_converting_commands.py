"""``xml``, ``convert``, ``import-libvirt`` and ``crds`` need no state."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from controller import crds

POOL = """<pool type='dir'>
  <name>scratch</name>
  <target><path>/srv//scratch/</path></target>
</pool>
"""
VOLUME = "<volume><name>a</name><capacity unit='KiB'>1</capacity></volume>\n"
CLONE = "<volume><name>a</name></volume>\n"
DISK_POOL = """<pool type='disk'><name>parts</name>
<source><device path='/dev/sdz'/></source><target><path>/dev</path></target></pool>
"""


@pytest.fixture
def file(tmp_path):
    def written(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


def test_xml_prints_the_normal_form(poolkeeper, file):
    result = poolkeeper("xml", file("pool.xml", POOL))
    root = ElementTree.fromstring(result.out)
    assert result.code == 0
    assert root.findtext("target/path") == "/srv/scratch"
    assert root.find("capacity").attrib == {"unit": "bytes"}
    assert poolkeeper("xml", "-", stdin=result.out).out == result.out


def test_xml_takes_a_volume_without_capacity_as_a_clone_has_it(poolkeeper, file):
    result = poolkeeper("xml", file("clone.xml", CLONE))
    assert result.code == 0
    assert ElementTree.fromstring(result.out).findtext("capacity") == "0"


def test_the_pool_tells_the_formats_of_a_volume(poolkeeper, file):
    pool = file("pool.xml", DISK_POOL)
    text = VOLUME.replace("</volume>", "<target><format type='linux'/></target></volume>")
    volume = file("part.xml", text)
    refused = poolkeeper("xml", volume)
    assert refused.code == 1
    assert f"{volume}:1: " in refused.err
    result = poolkeeper("xml", volume, "--pool", pool)
    assert result.code == 0
    assert "<format type='linux'/>" in result.out
    as_yaml = poolkeeper("convert", volume, "--to", "yaml", "--pool", pool)
    assert yaml.safe_load(as_yaml.out)["spec"]["poolRef"] == {"name": "parts"}


def test_an_error_names_file_and_line(poolkeeper, file):
    broken = file("broken.xml", "<pool type='dir'>\n  <name>a</name>\n  <oops>\n</pool>\n")
    for arguments in (["xml", broken], ["convert", broken, "--to", "yaml"]):
        result = poolkeeper(*arguments)
        assert (result.code, result.out) == (1, "")
        assert f"{broken}:4: " in result.err


def test_a_manifest_comes_back_unchanged_through_xml(poolkeeper, write, pool, volume):
    manifest = write(
        "all.yaml",
        pool(refresh={"interval": "1m"}, discovery="Adopt"),
        volume("a", format="qcow2", deletionPolicy="Delete"),
    )
    there = poolkeeper("convert", manifest, "--to", "xml").out
    pool_xml, end, volume_xml = there.partition("</pool>\n")
    back = [
        yaml.safe_load(poolkeeper("convert", "-", "--to", "yaml", stdin=text).out)
        for text in (pool_xml + end, volume_xml)
    ]
    original = list(yaml.safe_load_all(poolkeeper("convert", manifest, "--to", "yaml").out))
    assert back == original


def test_converting_writes_no_defaults(poolkeeper, file):
    result = poolkeeper("convert", file("pool.xml", POOL), "--to", "yaml")
    assert yaml.safe_load(result.out) == {
        "apiVersion": "poolkeeper.dev/v1alpha1",
        "kind": "StoragePool",
        "metadata": {"name": "scratch"},
        "spec": {"type": "dir", "target": {"path": "/srv/scratch"}},
    }


def test_a_file_that_is_not_there_is_an_error(poolkeeper, tmp_path):
    result = poolkeeper("xml", tmp_path / "no.xml")
    assert result.code == 1
    assert "no.xml" in result.err


def test_libvirts_definitions_become_manifests(poolkeeper, file, tmp_path):
    file("scratch.xml", POOL)
    file("parts.xml", DISK_POOL)
    file("notes.txt", "not one of them")
    (tmp_path / "autostart").mkdir()
    (tmp_path / "autostart" / "parts.xml").symlink_to(tmp_path / "parts.xml")
    result = poolkeeper("import-libvirt", tmp_path)
    found = {item["metadata"]["name"]: item["spec"] for item in yaml.safe_load_all(result.out)}
    assert result.code == 0
    assert found["scratch"]["autostart"] is False
    assert "autostart" not in found["parts"]
    assert poolkeeper("plan", "-", stdin=result.out).err == ""


def test_one_bad_definition_is_named_and_the_others_are_printed(poolkeeper, file, tmp_path):
    file("scratch.xml", POOL)
    broken = file("broken.xml", "<pool type='dir'>")
    result = poolkeeper("import-libvirt", tmp_path)
    assert result.code == 1
    assert f"{broken}:" in result.err
    assert "name: scratch" in result.out


def test_crds_are_printed_or_written(poolkeeper, tmp_path):
    printed = list(yaml.safe_load_all(poolkeeper("crds").out))
    result = poolkeeper("crds", "--output", tmp_path / "crds", "--docs", tmp_path / "docs")
    assert result.code == 0
    *files, reference = [Path(line) for line in result.out.splitlines()]
    assert {path.name: path.read_text() for path in files} == crds.files()
    assert [yaml.safe_load(path.read_text()) for path in files if path.suffix] == printed
    assert reference == tmp_path / "docs" / "reference.md"
