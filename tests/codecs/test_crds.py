"""The generated CRDs: complete, bounded, structural, and the same as those checked in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.schema import Model
from backends.spec import NodeSpec, VolumeSpec
from controller import crds
from controller.resources import Kind, kinds

CHECKED_IN = Path(__file__).parents[2] / "crds"

each_kind = pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: str(kind.name))


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every value that a schema describes, with its path."""
    yield path, schema
    for name, item in schema.get("properties", {}).items():
        yield from fields(item, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")


def below_metadata(kind: Kind) -> list[tuple[str, dict[str, Any]]]:
    return [item for item in fields(crds.resource_schema(kind)) if item[0] != ".metadata"]


def test_the_checked_in_files_are_current() -> None:
    found = {path.name: path.read_text("utf-8") for path in CHECKED_IN.iterdir()}
    assert found == crds.files(), "run `poolkeeper crds`"


def test_writing_makes_the_directory_and_says_what_it_wrote(tmp_path: Path) -> None:
    written = crds.write(tmp_path / "new" / "crds")
    assert {path.name: path.read_text("utf-8") for path in written} == crds.files()


@each_kind
def test_every_field_says_what_it_is(kind: Kind) -> None:
    nameless = [path for path, item in below_metadata(kind) if not item.get("description")]
    assert [path for path in nameless if not path.endswith("[]")] == []


@each_kind
def test_every_value_is_bounded_so_that_rules_stay_cheap(kind: Kind) -> None:
    for path, item in below_metadata(kind):
        if path in (".apiVersion", ".kind"):
            continue
        match item.get("type"):
            case "string":
                assert "enum" in item or "maxLength" in item, path
            case "array":
                assert "maxItems" in item, path
            case "object":
                assert "additionalProperties" not in item or "maxProperties" in item, path
            case "integer":
                assert item["format"] == "int64", path
            case None:
                assert item["x-kubernetes-int-or-string"], path
                assert "maxLength" in item, path


@each_kind
def test_schemas_are_structural(kind: Kind) -> None:
    """No references, alternatives, nulls, or objects that are open to all (apiextensions v1)."""
    forbidden = {
        "$ref", "$defs", "anyOf", "allOf", "oneOf", "not", "nullable", "title", "const",
        "x-kubernetes-preserve-unknown-fields",
    }  # fmt: skip
    for path, item in fields(crds.resource_schema(kind)):
        assert forbidden.isdisjoint(item), path
        assert item.get("default", "") is not None, path
        assert isinstance(item.get("additionalProperties", {}), dict), path


@each_kind
def test_conditions_are_a_map_by_type_and_other_lists_are_atomic(kind: Kind) -> None:
    for path, item in below_metadata(kind):
        if path == ".status.conditions":
            assert item["x-kubernetes-list-type"] == "map"
            assert item["x-kubernetes-list-map-keys"] == ["type"]
        elif item.get("type") == "array":
            assert item["x-kubernetes-list-type"] == "atomic", path


def models(model: type[Model]) -> Iterator[type[Model]]:
    yield model
    for item in model.model_fields.values():
        yield from (found for inner in _models_in(item.annotation) for found in models(inner))


def _models_in(annotation: Any) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for item in getattr(annotation, "__args__", ()):
        yield from _models_in(item)


@each_kind
def test_every_rule_of_every_model_is_in_the_schema(kind: Kind) -> None:
    spec = crds.resource_schema(kind)["properties"]["spec"]
    written = [
        (rule["rule"], rule["message"])
        for _, item in fields(spec)
        if item.get("type") == "object"
        for rule in item.get("x-kubernetes-validations", ())
    ]
    declared = [
        (rule.cel, rule.message)
        for model in models(kind.spec)
        for rule in (*model.rules, *model.transitions)
    ]
    assert sorted(written) == sorted(declared)


@each_kind
def test_a_status_has_no_rules_and_begins_unseen(kind: Kind) -> None:
    status = crds.resource_schema(kind)["properties"]["status"]
    assert status["default"] == {"observedGeneration": -1}
    assert not [path for path, item in fields(status) if "x-kubernetes-validations" in item]


def test_a_default_below_stands_at_the_parent_too() -> None:
    spec = crds.model_schema(kinds()["StoragePool"].spec)["properties"]
    assert spec["build"]["default"] == {"policy": "IfEmpty"}
    assert spec["refresh"]["default"] == {"interval": "5m"}
    assert crds.model_schema(VolumeSpec)["properties"]["resize"]["default"] == {
        "allowDataLoss": False, "allowShrink": False, "allocate": False,
    }  # fmt: skip


def test_sizes_are_numbers_or_text() -> None:
    capacity = crds.model_schema(VolumeSpec)["properties"]["capacity"]
    assert capacity["x-kubernetes-int-or-string"] is True
    assert "type" not in capacity
    assert capacity["pattern"].startswith("^")


def test_only_kinds_with_required_fields_need_a_spec() -> None:
    schemas = {name: crds.resource_schema(kind) for name, kind in kinds().items()}
    assert [name for name, item in schemas.items() if "required" not in item] == ["StorageNode"]
    assert "required" not in crds.model_schema(NodeSpec)


@each_kind
def test_names_scope_and_columns_are_those_of_the_kind(kind: Kind) -> None:
    (name,) = (name for name in crds.generate() if f"_{kind.plural}." in name)
    definition = yaml.safe_load(crds.generate()[name])
    assert definition["metadata"]["name"] == f"{kind.plural}.poolkeeper.dev"
    spec = definition["spec"]
    assert spec["scope"] == ("Namespaced" if kind.namespaced else "Cluster")
    assert spec["names"]["shortNames"] == [kind.short]
    assert spec["names"]["categories"] == ["poolkeeper"]
    (version,) = spec["versions"]
    assert version["subresources"] == {"status": {}}
    shown = [
        (column["name"], column["jsonPath"], column.get("priority", 0) == 1)
        for column in version["additionalPrinterColumns"]
    ]
    assert shown == [(column.name, column.path, column.wide) for column in kind.columns]
    selectable = [item["jsonPath"] for item in version.get("selectableFields", ())]
    assert selectable == list(kind.selectable)
