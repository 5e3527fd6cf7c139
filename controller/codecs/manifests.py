"""Manifests in YAML or JSON: text to declared resources, and back.

Reading is strict. Every problem of a document is reported, with its line and in the words of the
manifest; what kubectl and the API server would refuse is refused here, by the same declaration
(``backends.spec``), and nothing is changed in silence.
"""

from __future__ import annotations

import difflib
import enum
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from backends import errors, schema
from backends.registry import pool_types
from backends.schema import NAME_PART, LabelKey, LabelValue, Model, Namespace, ObjectName
from controller.codecs import documents
from controller.codecs.documents import Mapping, Node, Scalar, Sequence
from controller.resources import (
    API_VERSION,
    DEFAULT_NAMESPACE,
    GROUP,
    Declared,
    Kind,
    Metadata,
    kinds,
)

Loc = tuple[str | int, ...]
M = TypeVar("M", bound=Model)

AnnotationKey = Annotated[
    str,
    Field(
        max_length=317,
        pattern=rf"^([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?/)?{NAME_PART}$",
        description="A key, such as note or example.org/note.",
    ),
]


class ObjectMeta(Model):
    """What a manifest may say under ``metadata``.

    The fields without a word of their own are the server's; they are read past, so that what
    ``get -o yaml`` prints can be applied.
    """

    name: ObjectName = Field(description="Name of the resource.")
    namespace: Namespace | None = Field(None, description="Its namespace.")
    labels: dict[LabelKey, LabelValue] = Field({}, description="Labels: short text by key.")
    annotations: dict[AnnotationKey, str] = Field({}, description="Annotations: text by key.")
    uid: Any = None
    resource_version: Any = None
    generation: Any = None
    creation_timestamp: Any = None
    deletion_timestamp: Any = None
    deletion_grace_period_seconds: Any = None
    managed_fields: Any = None
    owner_references: Any = None
    finalizers: Any = None
    self_link: Any = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file declares, and what is wrong with it, in the order of its lines."""

    declared: tuple[Declared, ...]
    problems: tuple[errors.InvalidManifest, ...]


def load(text: str, *, file: str = "") -> Loaded:
    """Read a file of manifests: YAML documents, JSON, or a List as kubectl prints it.

    :param file: the name that errors give it; empty for standard input.
    :returns: the resources of all sound documents, and every problem of the others. Never raises.
    """
    declared: list[Declared] = []
    problems: list[errors.InvalidManifest] = []
    for document in documents.read(text, file=file):
        reader = _Reader(file, list(document.problems))
        if document.root is not None:
            declared += reader.read(document.root)
        problems += sorted(reader.problems, key=lambda problem: problem.line)
    return Loaded(tuple(declared), tuple(problems))


class _Reader:
    """Reads one document; ``problems`` gathers all that is wrong with it."""

    def __init__(self, file: str, problems: list[errors.InvalidManifest]) -> None:
        self.problems = problems
        self._file = file

    def refuse(self, line: int, message: str, hint: str = "") -> None:
        self.problems.append(errors.InvalidManifest(message, hint=hint, file=self._file, line=line))

    def read(self, root: Node) -> Iterator[Declared]:
        """The document's resource, or those of a List."""
        if not isinstance(root, Mapping):
            self.refuse(
                root.line,
                f"A manifest is a mapping, and this is {_kind_of_value(root)}.",
                "Give apiVersion, kind, metadata and spec.",
            )
            return
        if _text(root.entries.get("kind")) == "List":
            yield from self._list(root)
            return
        before = len(self.problems)
        declared = self._resource(root)
        if declared is not None and not before and not self.problems:
            yield declared

    def _list(self, root: Mapping) -> Iterator[Declared]:
        items = root.entries.get("items")
        if not isinstance(items, Sequence):
            self.refuse(_line(root, "items"), "A List has no items.", "Give a list of resources.")
            return
        sound = not self.problems
        for item in items.items:
            reader = _Reader(self._file, [])
            found = list(reader.read(item))
            self.problems += reader.problems
            if sound:
                yield from found

    def _resource(self, root: Mapping) -> Declared | None:
        if not self._is_ours(root):
            return None
        self._check_fields(root)
        kind = self._kind(root)
        if kind is None:
            return None
        metadata = self._metadata(root, kind)
        spec = self._spec(root, kind)
        if metadata is None or spec is None:
            return None
        return Declared(
            kind=kind, metadata=metadata, spec=spec, file=self._file, line=_first_line(root)
        )

    def _is_ours(self, root: Mapping) -> bool:
        """Whether the group is ours; what else is wrong with a foreign manifest is not ours."""
        node = root.entries.get("apiVersion")
        if node is None or documents.is_empty(node):
            self.refuse(root.line, "apiVersion is missing.", f"Write apiVersion: {API_VERSION}.")
            return True
        ours = (_text(node) or "").partition("/")[0] == GROUP
        if _text(node) != API_VERSION:
            foreign = "" if ours else ", which is not Poolkeeper's"
            self.refuse(
                _line(root, "apiVersion"),
                f"The apiVersion is {_shown(node)}{foreign}.",
                f"Write apiVersion: {API_VERSION}.",
            )
        return ours

    def _check_fields(self, root: Mapping) -> None:
        known = ("apiVersion", "kind", "metadata", "spec", "status")
        for name, line in root.lines.items():
            if name not in known:
                self.refuse(
                    line, f"{_cut(name)} is not a field of a manifest.", _nearest(name, known)
                )

    def _kind(self, root: Mapping) -> Kind | None:
        node = root.entries.get("kind")
        if node is None or documents.is_empty(node):
            self.refuse(root.line, "kind is missing.", f"It is one of {', '.join(kinds())}.")
            return None
        found = kinds().get(_text(node) or "")
        if found is None:
            self.refuse(
                _line(root, "kind"),
                f"There is no kind {_shown(node)}.",
                _nearest(_text(node) or "", tuple(kinds())),
            )
        return found

    def _metadata(self, root: Mapping, kind: Kind) -> Metadata | None:
        node = root.entries.get("metadata", Mapping(_first_line(root), {}, {}))
        place = _Place(root, kind, ("metadata",), ObjectMeta)
        read = self._validated(place, node)
        if not isinstance(read, ObjectMeta):
            return None
        if read.namespace is not None and not kind.namespaced:
            self.refuse(
                _locate(root, ("metadata", "namespace"))[0],
                f"metadata.namespace is {read.namespace}, and a {kind.name} is in no namespace.",
                "Leave it out.",
            )
            return None
        namespace = (read.namespace or DEFAULT_NAMESPACE) if kind.namespaced else ""
        return Metadata(
            name=read.name,
            namespace=namespace,
            labels=read.labels,
            annotations=read.annotations,
        )

    def _spec(self, root: Mapping, kind: Kind) -> Model | None:
        node = root.entries.get("spec")
        if node is None or documents.is_empty(node):
            if kind.needs_spec:
                self.refuse(_line(root, "spec"), "spec is missing.", f"Say which {kind.name}.")
                return None
            node = Mapping(root.line, {}, {})
        spec = self._validated(_Place(root, kind, ("spec",), kind.spec), node)
        for violation in () if spec is None else schema.violations(spec):
            line = _locate(root, _steps(violation.path))[0]
            self.refuse(line, f"{violation.path}: {violation.message}.")
        return spec

    def _validated(self, place: _Place, node: Node) -> Model | None:
        """The node as the place's model; None, and all problems reported, if it is none."""
        before = len(self.problems)
        for loc in _empty_fields(node):
            if loc[-1] not in _names(place.model_at(loc[:-1])):
                self._report(place, _unknown(place, loc), loc)
        try:
            return place.model.model_validate_json(
                json.dumps(documents.plain(node)), strict=True, by_alias=True, by_name=False
            )
        except ValidationError as invalid:
            for problem in invalid.errors(include_url=False, include_input=False):
                loc = tuple(part for part in problem["loc"] if part != "[key]")
                if loc != problem["loc"]:
                    self._report(place, _key_sentence(place, problem, loc), loc)
                else:
                    self._report(place, _sentence(place, problem, loc), loc)
            if len(self.problems) == before:
                self._settle(place, node)
            return None

    def _settle(self, place: _Place, node: Node) -> None:
        """Say something where all that is wrong was left to a problem reported before."""
        if not self.problems:
            self.refuse(node.line, f"{'.'.join(map(str, place.base))} can't be read.")

    def _report(self, place: _Place, sentence: tuple[str, str] | None, loc: Loc) -> None:
        line, node = _locate(place.root, (*place.base, *loc))
        if sentence is None or (isinstance(node, Scalar) and node.problem):
            return
        self.refuse(line, *sentence)


@dataclass(frozen=True, slots=True)
class _Place:
    """A part of a manifest and the model that it follows."""

    root: Mapping
    kind: Kind
    base: Loc
    model: type[Model]

    def name(self, loc: Loc) -> str:
        """The path as people write it: ``spec.rbd.hosts[0].name``."""
        steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
        return _cut(".".join(map(str, self.base)) + "".join(steps))

    def node(self, loc: Loc) -> Node | None:
        return _locate(self.root, (*self.base, *loc))[1]

    def model_at(self, loc: Loc) -> type[Model] | None:
        """The model of the mapping there; None for a mapping of free keys."""
        model: type[Model] | None = self.model
        for part in loc:
            if isinstance(part, str):
                item = _field(model, part)
                model = None if item is None else _model_in(item.annotation)
        return model

    def field(self, loc: Loc) -> FieldInfo | None:
        """The declaration of the field there; a list's for its items."""
        while loc and isinstance(loc[-1], int):
            loc = loc[:-1]
        return _field(self.model_at(loc[:-1]), str(loc[-1])) if loc else None


def _field(model: type[Model] | None, alias: str) -> FieldInfo | None:
    fields = model.model_fields.values() if model is not None else ()
    return next((item for item in fields if item.alias == alias), None)


def _names(model: type[Model] | None) -> tuple[str, ...]:
    fields = model.model_fields.items() if model is not None else ()
    return tuple(item.alias or name for name, item in fields)


def _model_in(annotation: Any) -> type[Model] | None:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    found = (_model_in(item) for item in get_args(annotation))
    return next((item for item in found if item is not None), None)


def _choices(annotation: Any) -> tuple[str, ...]:
    """The values that an enumeration or Literal allows."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return tuple(str(item.value) for item in annotation)
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return next(filter(None, map(_choices, get_args(annotation))), ())


def _locate(root: Node, loc: Loc) -> tuple[int, Node | None]:
    """The line of what is there, or of the nearest thing that holds it; and the node itself."""
    line, node = _first_line(root), root
    for part in loc:
        if isinstance(node, Mapping) and part in node.entries:
            line, node = node.lines[str(part)], node.entries[str(part)]
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            line = node.line
        else:
            return line, None
    return line, node


def _steps(path: str) -> Loc:
    found = re.findall(r"\[([0-9]+)\]|([^.\[\]]+)", path)
    return tuple(int(index) if index else name for index, name in found)


def _first_line(root: Node) -> int:
    return min(root.lines.values(), default=root.line) if isinstance(root, Mapping) else root.line


def _line(root: Mapping, name: str) -> int:
    return root.lines.get(name, _first_line(root))


def _empty_fields(node: Node, loc: Loc = ()) -> Iterator[Loc]:
    """Where fields have no value: the API server takes them as left out, so the model sees none."""
    if isinstance(node, Sequence):
        for index, item in enumerate(node.items):
            yield from _empty_fields(item, (*loc, index))
    elif isinstance(node, Mapping):
        for name, item in node.entries.items():
            if documents.is_empty(item):
                yield (*loc, name)
            else:
                yield from _empty_fields(item, (*loc, name))


def _text(node: Node | None) -> str | None:
    return node.value if isinstance(node, Scalar) and isinstance(node.value, str) else None


def _cut(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


def _shown(node: Node | None) -> str:
    if isinstance(node, Scalar):
        return repr(_cut(node.text)) if isinstance(node.value, str) else _cut(node.text) or "empty"
    return _kind_of_value(node)


_VALUE_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a boolean"),
    ((int, float), "a number"),
    (str, "text"),
)


def _kind_of_value(node: Node | None) -> str:
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    value = node.value if isinstance(node, Scalar) else None
    return next((word for kind, word in _VALUE_KINDS if isinstance(value, kind)), "empty")


def _given(node: Node | None) -> str:
    """What stands there instead: ``0.10, a number``."""
    if isinstance(node, Scalar) and node.value is not None:
        return f"{_shown(node)}, {_kind_of_value(node)}"
    return _kind_of_value(node)


_SENTENCES = {
    "missing": "{where} is missing.",
    "string_type": "{where} has to be text, and this is {given}.",
    "int_type": "{where} has to be a whole number, and this is {given}.",
    "int_from_float": "{where} has to be a whole number, and this is {given}.",
    "int_parsing_size": "{where} is too large a number.",
    "bool_type": "{where} has to be true or false, and this is {given}.",
    "model_type": "{where} has to be a mapping of fields, and this is {given}.",
    "dict_type": "{where} has to be a mapping, and this is {given}.",
    "tuple_type": "{where} has to be a list, and this is {given}.",
    "literal_error": "{where} can't be {shown}.",
    "enum": "{where} can't be {shown}.",
    "string_pattern_mismatch": "{where} can't be {shown}.",
    "string_too_long": "{where} is longer than {max_length} characters.",
    "string_too_short": "{where} is empty.",
    "greater_than_equal": "{where} is {shown}, and the least is {ge}.",
    "less_than_equal": "{where} is {shown}, and the most is {le}.",
    "too_short": "{where} needs {min_length} or more items.",
    "too_long": "{where} has more than {max_length} items.",
    "value_error": "{where}: {error}",
}
"""What is wrong, by pydantic's name for it."""

_FORMS = {
    schema.ObjectName: "A name of a resource has lower-case letters, digits, '-' and '.', and "
    "begins and ends with a letter or digit.",
    schema.Name: "A name has no '/' and no control characters.",
    schema.AbsolutePath: "An absolute path begins with '/'.",
    schema.Duration: "Write a span of time like 30s, 5m or 1h30m.",
    schema.Uuid: "Write a UUID in lower case, like c7a1c6a0-7b0f-4a55-9d32-3f5f3d5a4c11.",
    LabelKey: "A key has letters, digits, '-', '_' and '.', with a domain and '/' before it or "
    "none.",
    AnnotationKey: "A key has letters, digits, '-', '_' and '.', with a domain and '/' before it "
    "or none.",
    LabelValue: "A label has at most 63 letters, digits, '-', '_' and '.', and begins and ends "
    "with a letter or digit.",
    Namespace: "A namespace has at most 63 lower-case letters, digits and '-'.",
}
"""What a pattern asks for; where a field's own type has one, its description says it."""


@cache
def _forms() -> dict[str, str]:
    return {_pattern_of(kind): words for kind, words in _FORMS.items()}


def _pattern_of(kind: Any) -> str:
    declared = (FieldInfo.from_annotation(kind).metadata, get_args(kind)[1:])
    found = (getattr(item, "pattern", None) for group in declared for item in group)
    return str(next(filter(None, found)))


def _key_sentence(place: _Place, problem: Any, loc: Loc) -> tuple[str, str]:
    """The same for a key that may not stand in a mapping of free keys."""
    hint = _forms().get(problem["ctx"].get("pattern"), "It is too long.")
    return f"{place.name(loc[:-1])} can't have the key {_cut(str(loc[-1]))!r}.", hint


def _sentence(place: _Place, problem: Any, loc: Loc) -> tuple[str, str] | None:
    """What is wrong and what to do, for people; None for what follows from another problem."""
    problem_type = problem["type"]
    if problem_type == "extra_forbidden":
        return _unknown(place, loc)
    context = dict(problem.get("ctx", {}))
    node = place.node(loc)
    least = context.get("min_length", 0)
    if problem_type == "too_short" and isinstance(node, Sequence) and len(node.items) >= least:
        return None
    message = _SENTENCES.get(problem_type, "{where} is not what it has to be: {shown}.").format(
        where=place.name(loc), given=_given(node), shown=_shown(node), **context
    )
    message = message if message.endswith(".") else f"{message}."
    return message, _hint(place, problem_type, context, loc)


def _hint(place: _Place, problem_type: str, context: dict[str, Any], loc: Loc) -> str:
    node, item = place.node(loc), place.field(loc)
    description = (item.description if item is not None else None) or ""
    match problem_type:
        case "missing":
            return description
        case "string_type" if isinstance(node, Scalar) and node.value is not None:
            return f'Write it in quotes: "{_cut(node.text)}".'
        case "int_type" | "int_from_float" | "bool_type":
            text = _text(node)
            quoted = text is not None and not documents.is_plain_text(text)
            return "Write it without quotes." if quoted else description
        case "model_type":
            return _fields_hint(place.model_at(loc), _text(node))
        case "tuple_type":
            return "Begin each item with '- '."
        case "literal_error" | "enum":
            choices = _choices(item.annotation if item is not None else None)
            return _nearest(node.text if isinstance(node, Scalar) else "", choices)
        case "string_pattern_mismatch":
            return _forms().get(context["pattern"], description)
    return ""


def _fields_hint(model: type[Model] | None, text: str | None) -> str:
    fields = model.model_fields.values() if model is not None else ()
    required = [item.alias for item in fields if item.is_required()]
    if text is not None and len(required) == 1:
        return f"Write {{{required[0]}: {_cut(text)}}}."
    return f"Its fields are {', '.join(_names(model))}." if fields else "Write {}."


def _folded(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def _close(name: str, known: Iterable[str]) -> str | None:
    by_folded = {_folded(item): item for item in known}
    found = difflib.get_close_matches(_folded(name[:64]), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def _nearest(name: str, known: tuple[str, ...]) -> str:
    """The name that was likely meant, and what there is."""
    close = _close(name, known)
    if not known:
        return "There are no fields here."
    listed = f"{', '.join(known[:-1])} or {known[-1]}" if len(known) > 1 else known[0]
    return f"Did you mean {close}? It is {listed}." if close else f"It is {listed}."


def _unknown(place: _Place, loc: Loc) -> tuple[str, str]:
    """An unknown field: the name that was likely meant, or the place where it belongs."""
    name = str(loc[-1])
    message = f"{place.name(loc)} is not a known field."
    model = place.model_at(loc[:-1])
    fields = model.model_fields.values() if model is not None else ()
    foreign = _foreign_members(place)
    named = (item.alias or "" for item in fields if item.description)
    known = tuple(item for item in named if item not in foreign)
    same = [item for item in known if _folded(item) == _folded(name)]
    elsewhere = [] if same else _elsewhere(place, loc)
    if elsewhere:
        return message, f"It belongs at {' or '.join(elsewhere[:3])}."
    close = _close(name, known)
    return message, f"Did you mean {close}?" if close else _nearest(name, known)


def _elsewhere(place: _Place, loc: Loc) -> list[str]:
    """Where a resource of this kind, and pool type, has a field of that name: not far below."""
    foreign = _foreign_members(place)
    found = [
        path
        for path in _paths(place.kind).get(_folded(str(loc[-1])), ())
        if path.split(".")[1] not in foreign and path.count(".") <= len(place.base) + len(loc)
    ]
    shallow = min((path.count(".") for path in found), default=0)
    return [path for path in found if path.count(".") == shallow]


def _foreign_members(place: _Place) -> frozenset[str]:
    """The members of a pool's spec that belong to other types than its own."""
    if place.kind.name != "StoragePool":
        return frozenset()
    chosen = _text(_locate(place.root, ("spec", "type"))[1])
    return frozenset(item.member for item in pool_types().values() if item.name != chosen)


@cache
def _paths(kind: Kind) -> dict[str, tuple[str, ...]]:
    """Paths of all fields of a kind, by folded name; those in lists are left out."""
    found: dict[str, tuple[str, ...]] = {}
    own = tuple(name for name, item in ObjectMeta.model_fields.items() if item.description)
    listed = [*(f"metadata.{name}" for name in own), *_paths_in(kind.spec, "spec")]
    for path in listed:
        folded = _folded(path.rpartition(".")[2])
        found[folded] = (*found.get(folded, ()), path)
    return found


def _paths_in(model: type[Model], path: str) -> Iterator[str]:
    for name, item in model.model_fields.items():
        below = f"{path}.{item.alias or name}"
        yield below
        inner = _model_in(item.annotation)
        if inner is not None and "tuple" not in str(item.annotation):
            yield from _paths_in(inner, below)


_Dumper: Any = type("_Dumper", (getattr(yaml, "CSafeDumper", yaml.SafeDumper),), {})
_Dumper.ignore_aliases = lambda self, data: True


def _represent_text(dumper: Any, text: str) -> yaml.ScalarNode:
    """Text in double quotes where a reader of YAML 1.1 or 1.2 would take it for something else."""
    style = "|" if "\n" in text else None if documents.is_plain_text(text) else '"'
    node: yaml.ScalarNode = dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)
    return node


_Dumper.add_representer(str, _represent_text)


def dump(objects: Iterable[dict[str, Any]]) -> str:
    """Write objects as YAML documents for people: order kept, no aliases, quotes where needed."""
    return "---\n".join(
        yaml.dump(
            _arranged(item),
            Dumper=_Dumper,
            sort_keys=False,
            default_flow_style=False,
            allow_unicode=True,
            width=4096,
        )
        for item in objects
    )


def _arranged(written: dict[str, Any]) -> dict[str, Any]:
    """A pool's type and what belongs to it first, as people write it."""
    spec = written.get("spec")
    if not isinstance(spec, dict) or "type" not in spec:
        return written
    leading = ("type", *(item.member for item in pool_types().values()))
    return {**written, "spec": {**{key: spec[key] for key in leading if key in spec}, **spec}}
