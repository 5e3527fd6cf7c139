"""Commands that can't mean anything, or name what is not there: the exit code says which."""

import json
import os

import pytest

from tests.bad_input.conftest import snapshot
from tests.processes import Poolkeeper

USAGE, FAILED, LATE = 64, 1, 3


@pytest.fixture
def poolkeeper(tmp_path):
    return Poolkeeper(tmp_path / "state", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["aplly"], USAGE, "aplly"),
        (["get", "volumes"], USAGE, "volumes"),
        (["delete", "pod", "x"], USAGE, "pod"),
        (["get", "spool", "--colour"], USAGE, "--colour"),
        (["apply"], USAGE, "-f"),
        (["apply", "-f"], USAGE, "-f"),
        (["delete"], USAGE, "KIND NAME"),
        (["wait", "spool", "x", "--timeout", "soon"], USAGE, "soon"),
        (["run", "--prune-percent", "200", "--prune"], USAGE, "--prune-percent"),
        (["run", "--git", "ext::sh -c id"], FAILED, "git URL"),
        (["run", "--git", "https://example.org/x", "--path", "../.."], FAILED, "../.."),
        (
            ["run", "--git", "https://example.org/x", "--branch", "--upload-pack=x"],
            FAILED,
            "branch",
        ),
        (["apply", "-f", "missing.yaml"], FAILED, "missing.yaml"),
        (["apply", "-f", "empty"], FAILED, "no manifest in it"),
        (["apply", "-f", "comments.yaml"], FAILED, "No resource is declared in comments.yaml"),
        (["apply", "-f", "pipe.yaml"], FAILED, "not a regular file"),
        (["apply", "-f", "notes.txt"], FAILED, "its name does not tell what it is"),
        (["plan", "-f", "missing.yaml"], FAILED, "missing.yaml"),
        (["delete", "spool", "x"], FAILED, "There is no StoragePool 'x'"),
        (["delete", "-f", "missing.yaml"], FAILED, "missing.yaml"),
        (["describe", "svol", "x"], FAILED, "There is no StorageVolume 'x'"),
        (["wait", "svol", "x"], FAILED, "There is no StorageVolume 'x'"),
        (["lookup", "--path", "/nowhere"], FAILED, "Nothing that is declared"),
        (["xml", "missing.xml"], FAILED, "missing.xml"),
        (["convert", "missing.xml", "--to", "yaml"], FAILED, "missing.xml"),
        (["import-libvirt", "missing"], FAILED, "missing"),
        (["apply", "-f", "x.yaml", "--pool", "nobody"], FAILED, "nobody"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, list) else "",
)
def test_a_mistake_is_told_with_its_exit_code(poolkeeper, tmp_path, arguments, code, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "comments.yaml").write_text("# nothing yet\n---\n")
    (tmp_path / "notes.txt").write_text("kind: StoragePool\n")
    os.mkfifo(tmp_path / "pipe.yaml")
    before = snapshot(tmp_path)
    ended = poolkeeper(*arguments)
    assert ended.code == code, ended.words
    assert says in ended.err, ended.words
    assert ended.out == "" or arguments[0] == "plan"
    assert "state" not in os.listdir(tmp_path) or arguments[0] == "run"
    assert {path: found for path, found in snapshot(tmp_path).items() if path in before} == before


def test_waiting_for_what_does_not_come_ends_with_3(poolkeeper, tmp_path):
    store = {"path": str(tmp_path / "later.raw"), "format": "raw"}
    spec = {"poolRef": {"name": "images"}, "format": "qcow2", "backingStore": store}
    documents = [
        {"kind": "StoragePool", "metadata": {"name": "images"}}
        | {"spec": {"type": "dir", "target": {"path": str(tmp_path / "images")}}},
        {"kind": "StorageVolume", "metadata": {"name": "disk"}, "spec": spec},
    ]
    version = {"apiVersion": "poolkeeper.dev/v1alpha1"}
    items = [version | item for item in documents]
    manifest = tmp_path / "all.json"
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    late = poolkeeper("apply", "-f", manifest, "--wait", "--timeout", "1s")
    assert late.code == LATE
    assert "later.raw" in late.err
    still = poolkeeper("wait", "svol", "disk", "--timeout", "300ms")
    assert still.code == LATE
    assert "later.raw" in still.err
    assert os.listdir(tmp_path / "images") == []
