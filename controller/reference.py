"""The reference of all fields, as Markdown, from the models.

One table for each part of a kind: what every resource has, and what each pool type adds.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from backends import schema
from backends.base import PoolType, TargetUse
from backends.registry import pool_types
from backends.schema import Model, Rule, TransitionRule, xml_of
from backends.spec import PoolSpecBase
from controller.resources import API_VERSION, Kind, kinds

FILE = "reference.md"

_NAMED = {
    schema.Quantity: "quantity",
    schema.Mode: "octal mode",
    schema.Name: "name",
    schema.ObjectName: "resource name",
    schema.Namespace: "namespace name",
    schema.AbsolutePath: "absolute path",
    schema.Duration: "duration",
    schema.Uuid: "UUID",
}
"""What the shared field types are called."""

_PLAIN = {str: "text", int: "integer", bool: "boolean"}

_INTRODUCTION = f"""# Reference

Every field of every kind of `{API_VERSION}`, as `poolkeeper crds` writes it from the models.

| Type | Written as |
|---|---|
| quantity | bytes, or a number with `Ki`, `Mi`, `Gi`, `Ti`, `Pi`, `Ei` (powers of 1024) or `k`, \
`M`, `G`, `T`, `P`, `E` (powers of 1000): `20Gi` |
| octal mode | permission bits in quotes: `"0640"` |
| duration | `30s`, `5m`, `1h30m` |
| name | a name on the host: no `/`, no control character, no `-` at the beginning, at most 255 \
bytes |
| resource name | lower-case letters, digits, `-` and `.` |
| namespace name | lower-case letters, digits and `-`, at most 63 |

The last column is the field's place in libvirt's XML, below `<pool>` or `<volume>`; an attribute \
begins with `@`. **Required** fields have no default. A field that is given without a value counts \
as left out.
"""


def generate() -> str:
    """The whole reference as Markdown."""
    parts = [_INTRODUCTION]
    for kind in kinds().values():
        parts += _kind(kind)
    return "\n".join(parts)


def write(directory: Path) -> Path:
    """Write the reference into a directory; returns the file.

    :raises OSError: where the directory can't be made or written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    path.write_text(generate(), encoding="utf-8")
    return path


def _kind(kind: Kind) -> Iterator[str]:
    scope = "namespaced" if kind.namespaced else "cluster-scoped"
    yield f"## {kind.name}\n"
    yield f"{kind.description} Short name `{kind.short}`, {scope}.\n"
    pools = kind.name == "StoragePool"
    members = {item.member for item in pool_types().values()} if pools else set()
    yield f"### {kind.name} spec\n"
    rows = [row for row in _rows(kind.spec, "spec") if _member(row) not in members]
    yield _table(sorted(rows, key=lambda row: row.path != "spec.type"))
    yield from _rules(PoolSpecBase if pools else kind.spec, "spec")
    for pool_type in pool_types().values() if pools else ():
        yield from _pool_type(pool_type)
    yield f"### {kind.name} status\n"
    yield _table(_rows(kind.status, "status"))


def _member(row: Row) -> str:
    return row.path.split(".")[1].removesuffix("[]")


def _pool_type(pool_type: PoolType) -> Iterator[str]:
    yield f"### Pool type {pool_type.name}\n"
    yield " ".join(_facts(pool_type)) + "\n"
    path = f"spec.{pool_type.member}"
    rows = list(_rows(pool_type.source, path))
    yield _table(rows) if rows else f"`{path}` has no fields.\n"
    yield from _rules(pool_type.source, path)


def _facts(pool_type: PoolType) -> Iterator[str]:
    yield pool_type.description
    needed = [f"`spec.{pool_type.member}`"] if pool_type.member_required else []
    needed += ["`spec.target.path`"] if pool_type.target is TargetUse.REQUIRED else []
    if needed:
        yield f"It needs {' and '.join(needed)}."
    if pool_type.target is TargetUse.DERIVED:
        derived = pool_type.target_template.format(source="SOURCE")
        yield f"Its target is `{derived}`, with the source's name for `SOURCE`."
    if pool_type.target is TargetUse.NONE:
        yield "It has no `spec.target`."
    if pool_type.volume_formats:
        formats = ", ".join(f"`{item}`" for item in pool_type.volume_formats)
        yield f"Formats of volumes: {formats}; `{pool_type.default_volume_format}` if left out."
    if pool_type.backend is None:
        yield "This release reads and writes its manifests and XML, and doesn't serve it."


def _rules(model: type[Model], path: str) -> Iterator[str]:
    """The rules between fields, as sentences."""
    sentences = list(_sentences(model, path))
    if sentences:
        yield "Rules:\n"
        yield "\n".join(f"- {sentence}" for sentence in sentences) + "\n"


def _sentences(model: type[Model], path: str) -> Iterator[str]:
    rules: tuple[Rule | TransitionRule, ...] = (*model.rules, *model.transitions)
    yield from (f"`{path}`: {rule.message}." for rule in rules)
    for name, field in model.model_fields.items():
        inner, repeated = _inner(field.annotation)
        if inner is not None:
            below = f"{path}.{field.alias or name}" + ("[]" if repeated else "")
            yield from _sentences(inner, below)


@dataclass(frozen=True, slots=True)
class Row:
    """One field of a table."""

    path: str
    type: str
    default: str
    description: str
    xml: str


def _table(rows: Iterator[Row] | list[Row]) -> str:
    lines = ["| Field | Type | Default | What it is | libvirt XML |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (f"`{row.path}`", row.type, row.default, row.description, row.xml)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _rows(model: type[Model], path: str, xml: str | None = ".") -> Iterator[Row]:
    """The fields of a model and of all in it.

    :param xml: the model's element in libvirt's XML; None where it has none.
    """
    for name, field in model.model_fields.items():
        place = xml_of(field)
        here = _below(xml, place.path) if place is not None and xml is not None else None
        inner, repeated = _inner(field.annotation)
        below = f"{path}.{field.alias or name}" + ("[]" if repeated else "")
        yield Row(
            path=below,
            type=_type(_declared(field)),
            default=_default(field),
            description=field.description or "",
            xml="" if here in (None, ".") else f"`{here}`",
        )
        if inner is not None:
            yield from _rows(inner, below, here)


def _below(outer: str, inner: str) -> str:
    return inner if outer == "." else outer if inner == "." else f"{outer}/{inner}"


def _declared(field: FieldInfo) -> Any:
    """The annotation with what pydantic moved from it to the field's metadata."""
    found = set(map(repr, field.metadata))
    for named in _NAMED:
        moved = set(map(repr, FieldInfo.from_annotation(named).metadata))
        if get_args(named)[0] is field.annotation and moved <= found:
            return named
    return field.annotation


def _inner(annotation: Any) -> tuple[type[Model] | None, bool]:
    """The model that a field holds, if any, and whether it holds a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation if issubclass(annotation, Model) else None), False
    repeated = get_origin(annotation) is tuple
    for item in get_args(annotation):
        found, below = _inner(item)
        if found is not None or below:
            return found, repeated or below
    return None, repeated


def _type(annotation: Any) -> str:
    named = next((words for kind, words in _NAMED.items() if kind == annotation), None)
    if named is not None:
        return named
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{item}`" for item in arguments)
    if origin in (Union, types.UnionType):
        return _type(next(item for item in arguments if item is not type(None)))
    if origin is dict:
        return f"{_type(arguments[1])} by key"
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"`{item.value}`" for item in annotation)
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return "object"
    return _PLAIN[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value is None or value == () or isinstance(value, Model):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, enum.Enum) else value}`"
