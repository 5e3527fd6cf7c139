"""Hypothesis strategies for specs, drawn from the models themselves.

Values come from the models' JSON schema, so a new field is drawn without a word here. What a schema
can't say, the rules between fields, is in ``_REPAIRS``: one entry for each model that has any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

from hypothesis import assume
from hypothesis import strategies as st
from pydantic import TypeAdapter

from backends import errors, schema
from backends.base import PoolType, TargetUse
from backends.names import check_name
from backends.registry import pool_spec, pool_types
from backends.schema import Model, violations
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


_ALPHANUMERIC = "abcxyz019"


def _labels() -> st.SearchStrategy[str]:
    """Parts of DNS names (RFC 1123)."""
    inner = st.text(_ALPHANUMERIC + "-", max_size=6)
    return st.builds("{}{}{}".format, st.sampled_from("abz09"), inner, st.sampled_from("abz09"))


def object_names() -> st.SearchStrategy[str]:
    """Names of resources."""
    return st.lists(_labels(), min_size=1, max_size=3).map(".".join)


def names() -> st.SearchStrategy[str]:
    """Names on the host."""
    free = st.text(CHARACTERS, min_size=1, max_size=20).filter(_may_be_a_name)
    return free | object_names() | st.sampled_from(list(filter(_may_be_a_name, TRICKY)))


def _may_be_a_name(text: str) -> bool:
    try:
        check_name(text, what="name")
    except errors.InvalidSpec:
        return False
    return True


def absolute_paths() -> st.SearchStrategy[str]:
    """Paths as a user may write them, some with doubled or trailing slashes."""
    parts = st.text("abcXYZ019._- é/", min_size=1, max_size=12)
    return st.lists(parts, min_size=1, max_size=4).map(lambda names: "/" + "/".join(names))


def durations() -> st.SearchStrategy[str]:
    """Spans of time."""
    part = st.builds("{}{}".format, st.integers(0, 999), st.sampled_from(["ms", "s", "m", "h"]))
    return st.lists(part, min_size=1, max_size=3).map("".join)


def _pattern_of(kind: Any) -> str:
    return str(TypeAdapter(kind).json_schema()["pattern"])


_BY_PATTERN: dict[str, st.SearchStrategy[str]] = {
    _pattern_of(schema.ObjectName): object_names(),
    _pattern_of(schema.Name): names(),
    _pattern_of(schema.AbsolutePath): absolute_paths(),
    _pattern_of(schema.Duration): durations(),
    _pattern_of(schema.Uuid): st.uuids().map(str),
}


def _strings(written: Object) -> st.SearchStrategy[str]:
    minimum, maximum = written.get("minLength", 0), written.get("maxLength", 10_000)
    pattern = written.get("pattern")
    if pattern is None:
        return texts(minimum, min(maximum, 20))
    if pattern in _BY_PATTERN:
        return _BY_PATTERN[pattern]
    drawn = st.from_regex(pattern, fullmatch=True, alphabet=CHARACTERS)
    return drawn.filter(lambda text: minimum <= len(text) <= maximum)


def _values(written: Object, definitions: Object) -> st.SearchStrategy[Any]:
    if "$ref" in written:
        return _values(definitions[written["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in written:
        (written,) = (item for item in written["anyOf"] if item.get("type") != "null")
        return _values(written, definitions)
    if "enum" in written:
        return st.sampled_from(written["enum"])
    if written.get("x-kubernetes-int-or-string"):
        return quantities()
    match written["type"]:
        case "string":
            return _strings(written)
        case "integer":
            return st.integers(written.get("minimum", -(2**31)), written.get("maximum", 2**31))
        case "boolean":
            return st.booleans()
        case "array":
            items, least = _values(written["items"], definitions), written.get("minItems", 0)
            return st.lists(items, min_size=least, max_size=min(written["maxItems"], least + 2))
        case "object" if "patternProperties" in written:
            ((pattern, values),) = written["patternProperties"].items()
            keys = _strings({**written["propertyNames"], "pattern": pattern})
            return st.dictionaries(keys, _values(values, definitions), min_size=1, max_size=3)
        case _:
            return _objects(written, definitions)


def _objects(written: Object, definitions: Object) -> st.SearchStrategy[Object]:
    properties = {
        name: _values(item, definitions) for name, item in written.get("properties", {}).items()
    }
    required = set(written.get("required", ()))
    plain = st.fixed_dictionaries(
        {name: properties[name] for name in required},
        optional={name: item for name, item in properties.items() if name not in required},
    )
    repair = _REPAIRS.get(written["title"])

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


def _repair_iscsi(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    if "auth" not in drawn:
        drawn.pop("mutualAuth", None)


def _repair_logical(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    if drawn.get("provisioning") != "Thin":
        drawn.pop("thinPool", None)


def _repair_netfs(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    if drawn.get("format") not in (None, "auto", "nfs"):
        drawn.pop("protocolVersion", None)
    if drawn.get("format") != "cifs":
        drawn.pop("auth", None)
    options = drawn.get("mountOptions")
    if isinstance(options, list):
        drawn["mountOptions"] = [
            item
            for item in options
            if not any(part.startswith(("pass", "cred")) for part in item.split(","))
        ]


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
        drawn.setdefault("target", {}).setdefault("path", draw(absolute_paths()))
    if chosen.target is TargetUse.NONE:
        drawn.pop("target", None)
    if drawn.get("build", {}).get("policy") == "Overwrite":
        drawn["build"].setdefault("confirm", "images")
    _repair_policies(drawn)


def _repair_requirement(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    drawn.pop("values", None)
    if drawn["operator"] in ("In", "NotIn"):
        drawn["values"] = ["a", "b"]


def _repair_selector(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    if not drawn.get("matchExpressions"):
        drawn.setdefault("matchLabels", draw(properties["matchLabels"]))


def _repair_volume(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    if "nodeName" not in drawn or not {"poolRef", "poolSelector"} <= drawn.keys():
        _exactly_one("poolRef", "poolSelector")(draw, drawn, properties)
    if "backingStore" in drawn:
        drawn.pop("source", None)
        drawn["format"] = draw(st.sampled_from(["qcow", "qcow2", "qed", "vmdk"]))
    drawn.setdefault("capacity", draw(properties["capacity"]))
    _repair_policies(drawn)


def _repair_operation(draw: st.DrawFn, drawn: Object, properties: Properties) -> None:
    drawn.pop("transfer" if drawn["operation"] == "Wipe" else "wipe", None)


_REPAIRS: dict[str, Repair] = {
    "SecretRef": _exactly_one("name", "uuid", "usage"),
    "LabelRequirement": _repair_requirement,
    "LabelSelector": _repair_selector,
    "VolumeSource": _exactly_one("clone", "http", "file", "upload"),
    "BackingStore": _exactly_one("volumeRef", "path"),
    "Adapter": _repair_adapter,
    "IscsiSource": _repair_iscsi,
    "LogicalSource": _repair_logical,
    "NetfsSource": _repair_netfs,
    "Encryption": _repair_encryption,
    "StoragePoolSpec": _repair_pool,
    "VolumeSpec": _repair_volume,
    "OperationSpec": _repair_operation,
}


@cache
def objects_of(model: type[Model]) -> st.SearchStrategy[Object]:
    """What a user may write for a model, as plain data in camelCase."""
    written = model.model_json_schema(by_alias=True)
    return _objects(written, written.get("$defs", {}))


def models_of(model: type[Model]) -> st.SearchStrategy[Any]:
    """Instances of a model that keep all rules."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Model:
        made = model.model_validate(draw(objects_of(model)), by_alias=True, by_name=False)
        assume(not list(violations(made)))
        return made

    return drawn()


@cache
def pool_objects(kind: PoolType | None = None) -> st.SearchStrategy[Object]:
    """A pool's spec as a user may write it; of one pool type, or of any."""
    written = pool_spec().model_json_schema(by_alias=True)
    if kind is not None:
        written["properties"]["type"] = {"type": "string", "enum": [kind.name]}
    return _objects(written, written["$defs"])


def pools(kind: PoolType | None = None) -> st.SearchStrategy[PoolSpecBase]:
    """Specs of pools; of one pool type, or of any."""

    def read(written: Object) -> PoolSpecBase:
        return pool_spec().model_validate(written, by_alias=True, by_name=False)

    return pool_objects(kind).map(read)


def volumes() -> st.SearchStrategy[VolumeSpec]:
    """Specs of volumes."""
    return cast("st.SearchStrategy[VolumeSpec]", models_of(VolumeSpec))
