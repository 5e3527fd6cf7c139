"""CustomResourceDefinitions from the models: schema, rules, defaults, columns.

What a manifest's reader checks in Python, the API server checks from what is written here: the
types and bounds, and the rules as CEL. A status is written by the controller alone, so its schema
has no rules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from backends.schema import Model, Rule, TransitionRule
from controller.codecs import manifests
from controller.resources import GROUP, VERSION, Kind, kinds

Schema = dict[str, Any]

HEADER = "# Generated from the models in backends/ by `poolkeeper crds`.\n"
CATEGORY = "poolkeeper"

KUSTOMIZATION = "Kustomization"
"""A file that makes the directory a base of kustomize. It has no suffix, so that ``kubectl apply
--filename`` of the directory, which reads ``.yaml`` alone, leaves it out."""

_RULES = "x-kubernetes-validations"
_KEPT = (
    "type", "enum", "format", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "x-kubernetes-int-or-string", _RULES,
)  # fmt: skip
"""What a value keeps of pydantic's schema. The rest is restated, or has no place in a CRD."""


def generate() -> dict[str, str]:
    """The CRDs as YAML, by file name."""
    return {
        f"{GROUP}_{kind.plural}.yaml": HEADER + manifests.dump([definition(kind)])
        for kind in kinds().values()
    }


def files() -> dict[str, str]:
    """What a directory of CRDs holds, by file name: the CRDs, and the kustomization of them."""
    definitions = generate()
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(definitions),
    }
    return {**definitions, KUSTOMIZATION: HEADER + manifests.dump([kustomization])}


def write(directory: Path) -> tuple[Path, ...]:
    """Write the CRDs and their kustomization into a directory; returns what was written.

    :raises OSError: where the directory can't be made or written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    contents = files()
    for name, text in contents.items():
        (directory / name).write_text(text, encoding="utf-8")
    return tuple(directory / name for name in contents)


def definition(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind (apiextensions.k8s.io/v1)."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
                "categories": [CATEGORY],
            },
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [_version(kind)],
        },
    }


def _version(kind: Kind) -> Schema:
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": column.name, "type": column.type, "jsonPath": column.path}
            | ({"priority": 1} if column.wide else {})
            for column in kind.columns
        ],
    }
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    version["schema"] = {"openAPIV3Schema": resource_schema(kind)}
    return version


def resource_schema(kind: Kind) -> Schema:
    """The structural schema of a kind's objects."""
    spec = model_schema(kind.spec)
    status = _without_rules(model_schema(kind.status))
    schema: Schema = {
        "type": "object",
        "description": kind.description,
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this kind of object."},
            "kind": {"type": "string", "description": "Kind of this object."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": {**status, "default": {"observedGeneration": -1}},
        },
    }
    if kind.needs_spec:
        schema["required"] = ["spec"]
    return schema


def model_schema(model: type[Model]) -> Schema:
    """The structural schema of a model: no references, nothing nullable, bounds everywhere."""
    written = model.model_json_schema(by_alias=True, schema_generator=_WithRules)
    return _structural(written, written.get("$defs", {}))


class _WithRules(GenerateJsonSchema):
    """pydantic's schema with each model's rules beside its fields."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        written: Schema = super().model_schema(schema)
        model = schema["cls"]
        if issubclass(model, Model):
            rules: tuple[Rule | TransitionRule, ...] = (*model.rules, *model.transitions)
            if rules:
                written[_RULES] = [{"rule": rule.cel, "message": rule.message} for rule in rules]
        return written


def _structural(written: Schema, definitions: Schema) -> Schema:
    """One value's schema as a CRD may have it (structural schemas, apiextensions v1)."""
    merged = _merged(written, definitions)
    schema: Schema = {}
    for key in ("type", "description"):
        if key in merged:
            schema[key] = merged[key]
    schema |= {key: merged[key] for key in _KEPT if key in merged and key not in schema}
    if "default" in merged:
        schema["default"] = merged["default"]
    if merged.get("type") == "integer":
        schema.setdefault("format", "int64")
    if merged.get("type") == "array":
        schema |= _list_type(merged, definitions)
    if merged.get("type") == "object":
        schema |= _members(merged, definitions)
    return schema


def _merged(written: Schema, definitions: Schema) -> Schema:
    """References and ``anyOf`` with null resolved; what stands at the field wins."""
    if "$ref" in written:
        inner = _merged(definitions[written["$ref"].rpartition("/")[2]], definitions)
    elif "anyOf" in written:
        (inner,) = (
            _merged(item, definitions) for item in written["anyOf"] if item.get("type") != "null"
        )
    else:
        inner = {}
    merged = {**inner, **{key: item for key, item in written.items() if key not in _RESOLVED}}
    if "const" in merged:
        merged["enum"] = [merged["const"]]
    if "default" in merged:
        merged["default"] = _without_nothing(merged["default"])
        if merged["default"] in (None, []):
            del merged["default"]
        elif "x-kubernetes-int-or-string" in merged:
            merged["default"] = str(merged["default"])
    return merged


_RESOLVED = ("$ref", "anyOf", "$defs")


def _without_nothing(value: Any) -> Any:
    """A default as the model dumps it: without what is not set."""
    if not isinstance(value, dict):
        return value
    kept = {key: _without_nothing(item) for key, item in value.items()}
    return {key: item for key, item in kept.items() if item not in (None, [])}


def _list_type(merged: Schema, definitions: Schema) -> Schema:
    items = _structural(merged["items"], definitions)
    schema: Schema = {"items": items, "x-kubernetes-list-type": "atomic"}
    if {"type", "status", "lastTransitionTime"} <= set(items.get("properties", {})):
        schema["x-kubernetes-list-type"] = "map"
        schema["x-kubernetes-list-map-keys"] = ["type"]
    return schema


def _members(merged: Schema, definitions: Schema) -> Schema:
    schema: Schema = {}
    if merged.get("properties"):
        schema["properties"] = {
            name: _structural(item, definitions) for name, item in merged["properties"].items()
        }
    if "patternProperties" in merged:
        (values,) = merged["patternProperties"].values()  # a rule says the pattern of the keys
        schema["additionalProperties"] = _structural(values, definitions)
        schema["maxProperties"] = merged["maxProperties"]
    if merged.get("required"):
        schema["required"] = sorted(merged["required"])
    return schema


def _without_rules(schema: Schema) -> Schema:
    return {key: _stripped(item) for key, item in schema.items() if key != _RULES}


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return _without_rules(value)
    return [_stripped(item) for item in value] if isinstance(value, list) else value
