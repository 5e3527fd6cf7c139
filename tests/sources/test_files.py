"""Reading files and folders of manifests."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from controller.sources.base import Snapshot
from controller.sources.files import MAX_MANIFEST, list_folder, read_paths
from tests.powers import without_powers

Text = Callable[..., str]


def names(snapshot: Snapshot) -> list[str]:
    return [str(item.key) for item in snapshot.declared]


def problems(snapshot: Snapshot) -> str:
    return "\n".join(str(problem) for problem in snapshot.problems)


def test_every_manifest_below_a_folder_is_read(tmp_path: Path, pool_yaml: Text) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "one.yaml").write_text(pool_yaml("one"))
    (tmp_path / "deep/two.yml").write_text(pool_yaml("two"))
    (tmp_path / "deep/er/three.YAML").write_text(pool_yaml("three"))
    (tmp_path / "four.json").write_text(
        '{"apiVersion": "poolkeeper.dev/v1alpha1", "kind": "StoragePool", '
        '"metadata": {"name": "four"}, "spec": {"type": "dir", "target": {"path": "/srv/4"}}}'
    )

    snapshot = read_paths([str(tmp_path)])

    assert sorted(names(snapshot)) == [
        f"StoragePool/{name}" for name in ("four", "one", "three", "two")
    ]
    assert snapshot.complete
    assert snapshot.problems == ()
    assert {item.file for item in snapshot.declared} >= {f"{tmp_path}/one.yaml"}


@pytest.mark.parametrize(
    "name",
    [
        ".#one.yaml",
        ".one.yaml.swp",
        "one.yaml~",
        "#one.yaml#",
        "one.yaml.swp",
        "one.yaml.orig",
        "README.md",
        "kustomization.yaml",
        ".git/one.yaml",
        "..2024_01_01/one.yaml",
        "..data/one.yaml",
    ],
)
def test_what_is_no_manifest_is_passed_over(tmp_path: Path, name: str, pool_yaml: Text) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("not: [a, manifest")
    (tmp_path / "two.yaml").write_text(pool_yaml("two"))
    snapshot = read_paths([str(tmp_path)])
    assert names(snapshot) == ["StoragePool/two"]
    assert snapshot.complete


def test_a_broken_file_is_named_and_the_others_are_read(tmp_path: Path, pool_yaml: Text) -> None:
    (tmp_path / "a.yaml").write_text("kind: [StoragePool")
    (tmp_path / "b.yaml").write_text(pool_yaml("b"))
    snapshot = read_paths([str(tmp_path)])
    assert names(snapshot) == ["StoragePool/b"]
    assert [problem.file for problem in snapshot.problems] == [f"{tmp_path}/a.yaml"]
    assert not snapshot.complete
    assert "a.yaml" in snapshot.reason


def test_a_resource_declared_twice_is_a_problem_of_the_later_one(
    tmp_path: Path, pool_yaml: Text
) -> None:
    (tmp_path / "a.yaml").write_text(pool_yaml("images", path="/srv/first"))
    (tmp_path / "b.yaml").write_text("---\n" + pool_yaml("images", path="/srv/second"))
    snapshot = read_paths([str(tmp_path)])
    (declared,) = snapshot.declared
    assert declared.spec.model_dump()["target"]["path"] == "/srv/first"
    (problem,) = snapshot.problems
    assert problem.file == f"{tmp_path}/b.yaml"
    assert f"StoragePool/images is declared already in {tmp_path}/a.yaml:1" in str(problem)


def test_a_file_named_twice_is_read_once(tmp_path: Path, pool_yaml: Text) -> None:
    (tmp_path / "a.yaml").write_text(pool_yaml())
    (tmp_path / "link.yaml").symlink_to("a.yaml")
    snapshot = read_paths([str(tmp_path), f"{tmp_path}/a.yaml"])
    assert names(snapshot) == ["StoragePool/images"]
    assert snapshot.complete


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.yaml", "no such file"),
        ("missing", "no such file or folder"),
        ("notes.txt", "its name does not tell what it is"),
        ("empty", "there is no manifest in it"),
    ],
)
def test_a_path_that_gives_nothing_is_a_problem(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    snapshot = read_paths([f"{tmp_path}/{name}"])
    assert problems(snapshot).startswith(f"{tmp_path}/{name}: ")
    assert message in problems(snapshot)
    assert not snapshot.complete


def test_what_can_not_be_read_is_named(tmp_path: Path, pool_yaml: Text) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_MANIFEST + 1))
    (tmp_path / "latin.yaml").write_bytes(b"# plain\n# \xe9\n")
    snapshot = read_paths([str(tmp_path)])
    said = problems(snapshot)
    assert "pipe.yaml: The manifest can't be read: it is not a regular file." in said
    assert "dangling.yaml: The manifest can't be read: no such file" in said
    assert "large.yaml: The manifest can't be read: it is larger than" in said
    assert "latin.yaml:2: The manifest is not UTF-8 (byte 0xe9)." in said


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, pool_yaml: Text) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "a.yaml").write_text(pool_yaml())
    with without_powers():
        snapshot = read_paths([str(tmp_path)])
    assert names(snapshot) == ["StoragePool/images"]
    assert "closed: The folder can't be read: permission denied." in problems(snapshot)
    assert not snapshot.complete


def test_links_round_in_circles_end(tmp_path: Path, pool_yaml: Text) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/one.yaml").write_text(pool_yaml("one"))
    assert names(read_paths([str(tmp_path)])) == ["StoragePool/one"]


def test_links_out_of_a_source_are_refused(tmp_path: Path, pool_yaml: Text) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.yaml").write_text(pool_yaml("secret"))
    (inside / "file.yaml").symlink_to(outside / "secret.yaml")
    (inside / "folder").symlink_to(outside)
    (inside / "own.yaml").write_text(pool_yaml("own"))
    (inside / "again").symlink_to(".")

    listing = list_folder(inside, within=inside)

    assert [path.name for path in listing.files] == ["own.yaml"]
    assert [Path(item.file).name for item in listing.problems] == ["file.yaml", "folder"]
    assert list_folder(inside / "folder", within=inside).files == ()


@pytest.mark.parametrize("form", ["yaml", "xml"])
def test_standard_input_is_read(
    form: str, pool_yaml: Text, pool_xml: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"yaml": pool_yaml("piped"), "xml": "\n" + pool_xml("piped")}[form]
    stream = SimpleNamespace(buffer=io.BytesIO(text.encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    snapshot = read_paths(["-"])
    assert names(snapshot) == ["StoragePool/piped"]
    assert snapshot.declared[0].file == ""


def test_a_volume_in_xml_is_in_the_pool_that_its_folder_is_named_after(
    tmp_path: Path, pool_yaml: Text, volume_xml: Text
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/disk.xml").write_text(volume_xml())
    (tmp_path / "z-pools.yaml").write_text(pool_yaml("images") + "---\n" + pool_yaml("other"))
    snapshot = read_paths([str(tmp_path)])
    volume = next(item for item in snapshot.declared if item.kind.name == "StorageVolume")
    assert volume.spec.dump()["poolRef"] == {"name": "images"}
    assert snapshot.complete


def test_a_volume_in_xml_is_in_the_only_pool_beside_it(
    tmp_path: Path, pool_xml: Text, volume_xml: Text
) -> None:
    (tmp_path / "disk.xml").write_text(volume_xml())
    (tmp_path / "pool.xml").write_text(pool_xml("vault"))
    snapshot = read_paths([str(tmp_path)])
    volume = next(item for item in snapshot.declared if item.kind.name == "StorageVolume")
    assert volume.spec.dump()["poolRef"] == {"name": "vault"}


def test_a_volume_in_xml_that_nothing_places_is_a_problem(
    tmp_path: Path, pool_xml: Text, volume_xml: Text
) -> None:
    (tmp_path / "disk.xml").write_text(volume_xml())
    for name in ("one", "two"):
        (tmp_path / f"{name}.xml").write_text(pool_xml(name))
    snapshot = read_paths([str(tmp_path)])
    assert sorted(names(snapshot)) == ["StoragePool/one", "StoragePool/two"]
    assert "Nothing tells which pool StorageVolume/default/disk is in." in problems(snapshot)

    pool = snapshot.declared[0]
    placed = read_paths([str(tmp_path)], pool=pool)
    assert "StorageVolume/default/disk" in names(placed)


def test_a_volume_in_xml_has_the_formats_of_its_pool(
    tmp_path: Path, volume_xml: Text, pool_yaml: Text
) -> None:
    (tmp_path / "sdb").mkdir()
    (tmp_path / "sdb/part.xml").write_text(volume_xml("sdb1", format="linux-lvm"))
    (tmp_path / "sdb.yaml").write_text(
        "apiVersion: poolkeeper.dev/v1alpha1\nkind: StoragePool\nmetadata: {name: sdb}\n"
        "spec: {type: disk, disk: {device: {path: /dev/sdb}}, target: {path: /dev}}\n"
    )
    snapshot = read_paths([str(tmp_path)])
    volume = next(item for item in snapshot.declared if item.kind.name == "StorageVolume")
    assert volume.spec.dump()["format"] == "linux-lvm"
    assert snapshot.complete

    (tmp_path / "sdb.yaml").write_text(pool_yaml("sdb"))
    assert "linux-lvm" in problems(read_paths([str(tmp_path)]))


def test_broken_xml_is_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "pool.xml").write_text("<pool type='dir'>\n<name>x</nam></pool>")
    snapshot = read_paths([str(tmp_path)])
    assert [(item.file, item.line) for item in snapshot.problems] == [(f"{tmp_path}/pool.xml", 2)]


def test_equal_files_give_an_equal_digest_and_others_do_not(
    tmp_path: Path, pool_yaml: Text
) -> None:
    (tmp_path / "a.yaml").write_text(pool_yaml())
    first = read_paths([str(tmp_path)])
    assert read_paths([str(tmp_path)]).says_the_same(first)
    (tmp_path / "a.yaml").write_text(pool_yaml(state="Inactive"))
    second = read_paths([str(tmp_path)])
    assert not second.says_the_same(first)
    assert second.revision != first.revision
