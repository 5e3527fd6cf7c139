"""Hypothesis strategies for specs, drawn from the models themselves.

Values come from the models' JSON schema, so a new field is drawn without a word here. What a schema
can't say, the rules between fields, is in ``_REPAIRS``: one entry for each model that has any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from hypothesis import assume
from hypothesis import strategies as st
from pydantic import TypeAdapter

from backends.base import PoolType, TargetUse
from backends.registry import pool_spec, pool_types
from backends.schema import Model, ObjectName, violations
from backends.spec import PoolSpecBase, VolumeSpec

Object = dict[str, Any]
Properties = Mapping[str, st.SearchStrategy[Any]]
Repair = Callable[[st.DrawFn, Object, Properties], None]

CHARACTERS = st.characters(exclude_categories=("Cc", "Cs", "Cn", "Co", "Zl", "Zp"))
"""Characters that a manifest and an XML document may hold as they are."""

TRICKY = (
    "yes", "no", "on", "off", "y", "n", "true", "null", "~", "0640", "0o17", "0x10", "1.1", "0.10",
    "1e3", "08", "1_000", "1:30", "2024-01-01", "=", "<<", "- a", "a: b", "a #b", "#", " a", "a ",
    "'", '"', "%a", "@a", "`", "!a", "&a", "*a", "{}", "[]", "|", ">", ".inf", ".nan", "...", "---",
    "\\", "é", "\N{GRINNING FACE}",
)  # fmt: skip
"""Words that a careless reader or writer of YAML turns into something else."""


def texts(minimum: int = 0, maximum: int = 20) -> st.SearchStrategy[str]:
    """Text, with a leaning to what YAML could misread."""
    tricky = [word for word in TRICKY if minimum <= len(word) <= maximum]
    return st.text(CHARACTERS, min_size=minimum, max_size=maximum) | st.sampled_from(tricky)


def quantities() -> st.SearchStrategy[str | int]:
    """Sizes as a manifest may hold them, up to 4 EiB."""
    suffixes = st.sampled_from(["Ki", "Mi", "Gi", "k", "M", "G", "e3", "E3"])
    return st.one_of(
        st.integers(0, 2**62),
        st.integers(0, 2**62).map(str),
        st.builds("{}{}".format, st.integers(0, 2**30), suffixes),
        st.builds("{}.{}{}".format, st.integers(0, 2**20), st.integers(0, 99), suffixes),
    )


def _strings(schema: Object) -> st.SearchStrategy[str]:
    minimum, maximum = schema.get("minLength", 0), schema.get("maxLength", 10_000)
    if "pattern" not in schema:
        return texts(minimum, min(maximum, 20))
    drawn = st.from_regex(schema["pattern"], fullmatch=True, alphabet=CHARACTERS)
    return drawn.filter(lambda text: minimum <= len(text) <= maximum)


def _values(schema: Object, definitions: Object) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return _values(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        (schema,) = (item for item in schema["anyOf"] if item.get("type") != "null")
        return _values(schema, definitions)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return quantities()
    match schema["type"]:
        case "string":
            return _strings(schema)
        case "integer":
            return st.integers(schema.get("minimum", -(2**31)), schema.get("maximum", 2**31))
        case "boolean":
            return st.booleans()
        case "array":
            items, least = _values(schema["items"], definitions), schema.get("minItems", 0)
            return st.lists(items, min_size=least, max_size=min(schema["maxItems"], least + 2))
        case _:
            return _objects(schema, definitions)


def _objects(schema: Object, definitions: Object) -> st.SearchStrategy[Object]:
    properties = {
        name: _values(item, definitions) for name, item in schema.get("properties", {}).items()
    }
    required = set(schema.get("required", ()))
    plain = st.fixed_dictionaries(
        {name: properties[name] for name in required},
        optional={name: item for name, item in properties.items() if name not in required},
    )
    repair = _REPAIRS.get(schema["title"])

    @st.composite
    def repaired(draw: st.DrawFn) -> Object:
        drawn = draw(plain)
        if repair is not None:
            repair(draw, drawn, properties)
        return drawn

    return repaired()


def _exactly_one(*names: str) -> Repair:
    def repair(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
        chosen = draw(st.sampled_from(names))
        for name in names:
            drawn.pop(name, None)
        drawn[chosen] = draw(properties[chosen])

    return repair


def _repair_adapter(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    if drawn.get("type", "scsi_host") == "scsi_host":
        _exactly_one("name", "parentAddress")(draw, drawn, properties)
    needed = ["wwnn", "wwpn"] if drawn.get("type") == "fc_host" else []
    if "parentWwnn" in drawn or "parentWwpn" in drawn:
        needed += ["parentWwnn", "parentWwpn"]
    for name in needed:
        drawn.setdefault(name, draw(properties[name]))


def _repair_netfs(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    if drawn.get("format") not in (None, "auto", "nfs"):
        drawn.pop("protocolVersion", None)


def _repair_encryption(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    if "cipher" not in drawn:
        drawn.pop("ivgen", None)
    for secret in (drawn.get("secretRef", {}), *drawn.get("furtherSecretRefs", ())):
        secret.pop("namespace", None)


def _repair_policies(drawn: Object) -> None:
    if drawn.get("adoption") == "Observe":
        drawn.pop("deletionPolicy", None)


def _repair_pool(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    chosen = pool_types()[drawn["type"]]
    for item in pool_types().values():
        if item is not chosen:
            drawn.pop(item.member, None)
    if chosen.member_required:
        drawn.setdefault(chosen.member, draw(properties[chosen.member]))
    if chosen.target is TargetUse.REQUIRED:
        drawn.setdefault("target", {}).setdefault("path", draw(_paths()))
    if chosen.target is TargetUse.NONE:
        drawn.pop("target", None)
    if drawn.get("build", {}).get("policy") == "Overwrite":
        drawn["build"].setdefault("confirm", "images")
    _repair_policies(drawn)


def _repair_volume(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    if "backingStore" in drawn:
        drawn.pop("source", None)
        drawn["format"] = draw(st.sampled_from(["qcow", "qcow2", "qed", "vmdk"]))
    drawn.setdefault("capacity", draw(properties["capacity"]))
    _repair_policies(drawn)


def _repair_operation(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    drawn.pop("transfer" if drawn["operation"] == "Wipe" else "wipe", None)


_REPAIRS: dict[str, Repair] = {
    "SecretRef": _exactly_one("name", "uuid", "usage"),
    "VolumeSource": _exactly_one("clone", "http", "file", "upload"),
    "BackingStore": _exactly_one("volumeRef", "path"),
    "Adapter": _repair_adapter,
    "NetfsSource": _repair_netfs,
    "Encryption": _repair_encryption,
    "StoragePoolSpec": _repair_pool,
    "VolumeSpec": _repair_volume,
    "OperationSpec": _repair_operation,
}


def _paths() -> st.SearchStrategy[str]:
    names = st.text("abcXYZ019._- é", min_size=1, max_size=12)
    return st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


def objects_of(model: type[Model]) -> st.SearchStrategy[Object]:
    """What a user may write for a model, as plain data in camelCase."""
    schema = model.model_json_schema(by_alias=True)
    return _objects(schema, schema.get("$defs", {}))


def models_of(model: type[Model]) -> st.SearchStrategy[Any]:
    """Instances of a model that keep all rules."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Model:
        made = model.model_validate(draw(objects_of(model)), by_alias=True, by_name=False)
        assume(not list(violations(made)))
        return made

    return drawn()


def pool_objects(kind: PoolType | None = None) -> st.SearchStrategy[Object]:
    """A pool's spec as a user may write it; of one pool type, or of any."""
    schema = pool_spec().model_json_schema(by_alias=True)
    if kind is not None:
        schema["properties"]["type"]["enum"] = [kind.name]
    return _objects(schema, schema["$defs"])


def pools(kind: PoolType | None = None) -> st.SearchStrategy[PoolSpecBase]:
    """Specs of pools; of one pool type, or of any."""

    def read(written: Object) -> PoolSpecBase:
        return pool_spec().model_validate(written, by_alias=True, by_name=False)

    return pool_objects(kind).map(read)


def volumes() -> st.SearchStrategy[VolumeSpec]:
    """Specs of volumes."""
    return cast("st.SearchStrategy[VolumeSpec]", models_of(VolumeSpec))


def object_names() -> st.SearchStrategy[str]:
    """Names of resources."""
    return _strings(TypeAdapter(ObjectName).json_schema()).filter(lambda name: len(name) <= 40)
