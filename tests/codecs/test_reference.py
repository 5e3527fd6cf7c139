"""The reference of all fields: complete, and the same as the one checked in."""

from __future__ import annotations

import re
from pathlib import Path

from backends.registry import pool_types
from controller import crds, reference
from controller.resources import kinds

CHECKED_IN = Path(__file__).parents[2] / "docs"


def paths(schema: dict[str, object], path: str) -> set[str]:
    """Paths of all fields of a schema, as the reference writes them."""
    found: set[str] = set()
    properties = schema.get("properties", {})
    assert isinstance(properties, dict)
    for name, item in properties.items():
        inner = item.get("items", item)
        below = f"{path}.{name}" + ("[]" if "items" in item else "")
        found |= {below} | paths(inner, below)
    return found


def test_the_checked_in_file_is_current(tmp_path: Path) -> None:
    written = reference.write(tmp_path)
    current = (CHECKED_IN / written.name).read_text("utf-8")
    assert current == written.read_text("utf-8"), "run `poolkeeper crds`"


def test_every_field_of_every_kind_has_a_row() -> None:
    rows = set(re.findall(r"^\| `((?:spec|status)[^`]*)` \|", reference.generate(), re.MULTILINE))
    expected: set[str] = set()
    for kind in kinds().values():
        schema = crds.resource_schema(kind)["properties"]
        expected |= paths(schema["spec"], "spec") | paths(schema["status"], "status")
    members = {f"spec.{item.member}" for item in pool_types().values()}
    assert rows == expected - members


def test_places_in_xml_are_whole_paths() -> None:
    text = reference.generate()
    assert "`source/auth/secret/@usage`" in text
    assert "`target/permissions/mode`" in text


def test_every_pool_type_has_its_part() -> None:
    text = reference.generate()
    for item in pool_types().values():
        assert f"\n### Pool type {item.name}\n\n{item.description}" in text
