"""How a spec is declared once: field types, places in libvirt's XML, and rules.

A model's fields carry all that the outputs need. The YAML reader, the CRD generator, the XML
codec and the reference docs each read the same declaration:

- the type and its bounds (pydantic), with a description on every field;
- ``Xml``: where the field stands in libvirt's document;
- ``Rule`` and ``TransitionRule``: a cross-field rule as CEL, and its twin in Python.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from backends import errors, names, sizes


class Form(enum.Enum):
    """How a value is written in libvirt's XML."""

    TEXT = "text"
    PATH = "path"
    """Text with runs of '/' collapsed and a trailing one dropped, as libvirt sanitises paths."""
    BYTES = "bytes"
    """A scaled integer with ``unit``; written as bytes with ``unit='bytes'``."""
    CLUSTER = "cluster"
    """A scaled integer; written as bytes with ``unit='B'``."""
    PRESENCE = "presence"
    """An empty element that is there or not."""
    YES_NO = "yes-no"
    MODE = "mode"
    """Octal, written as ``0%o``; at most 0777."""
    ID = "id"
    """A numeric owner or group; -1 (or 4294967295) stands for none."""


@dataclass(frozen=True, slots=True)
class Xml:
    """Where a field stands, relative to the element of the model that holds it.

    :param path: steps through elements, an attribute last and with ``@``: ``source/format/@type``.
        ``.`` is the element itself (a member model spread over the document). A list repeats the
        last element of its path. Prefixes ``fs:`` and ``rbd:`` are libvirt's pool namespaces.
    :param printed: false for what libvirt reads and does not write again.
    """

    path: str
    form: Form = Form.TEXT
    printed: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule over one object: CEL for the API server, its twin for everyone else.

    :param cel: true where the rule is kept; ``self`` is the model's object.
    :param holds: the same over the model.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class TransitionRule:
    """A rule over a change: CEL with ``oldSelf``, and its twin over (old, new)."""

    cel: str
    message: str
    holds: Callable[[Any, Any], bool]


class Model(BaseModel):
    """The base of every spec and status: camelCase outside, frozen, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        use_enum_values=False,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    transitions: ClassVar[tuple[TransitionRule, ...]] = ()

    def dump(self) -> dict[str, Any]:
        """The object as a manifest holds it: camelCase, sizes as quantities, nothing empty."""
        plain = self.model_dump(by_alias=True, exclude_none=True, mode="json")
        return {key: _without_empty_lists(value) for key, value in plain.items() if value != []}


def _without_empty_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty_lists(item) for key, item in value.items() if item != []}
    return [_without_empty_lists(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule: where (``spec.build``) and what."""

    path: str
    message: str


def violations(new: Model, old: Model | None = None, *, path: str = "spec") -> Iterator[Violation]:
    """Check the rules of a model and of all models in it; transitions where an old one is known."""
    for rule in new.rules:
        if not rule.holds(new):
            yield Violation(path, rule.message)
    for transition in new.transitions if old is not None else ():
        if not transition.holds(old, new):
            yield Violation(path, transition.message)
    for name, field in type(new).model_fields.items():
        former = getattr(old, name, None)
        yield from _violations_below(getattr(new, name), former, f"{path}.{field.alias or name}")


def _violations_below(value: object, former: object, path: str) -> Iterator[Violation]:
    if isinstance(value, Model):
        yield from violations(value, former if isinstance(former, Model) else None, path=path)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _violations_below(item, None, f"{path}[{index}]")


def immutable(name: str, *, message: str = "") -> TransitionRule:
    """A field that keeps what it was created with, also if that was nothing."""
    attribute = re.sub(r"(?<!^)([A-Z]+)", lambda match: "_" + match[1].lower(), name)
    return TransitionRule(
        cel=f"has(self.{name}) == has(oldSelf.{name}) "
        f"&& (!has(self.{name}) || self.{name} == oldSelf.{name})",
        message=message or f"{name} can't be changed; delete the resource and make a new one",
        holds=lambda old, new: getattr(old, attribute) == getattr(new, attribute),
    )


def xml_of(field: FieldInfo) -> Xml | None:
    """Where a field stands in libvirt's XML; None for what libvirt has no place for."""
    return next((item for item in field.metadata if isinstance(item, Xml)), None)


_MODE = re.compile(r"^0?[0-7]{3,4}$")


def _parse_mode(value: object) -> int:
    if isinstance(value, str) and _MODE.fullmatch(value):
        return int(value, 8)
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError('write the mode in quotes, like "0640": without them YAML changes it')
    raise ValueError(f'{value!r} is not an octal mode like "0640"')


def _parse_size(value: object) -> int:
    if not isinstance(value, str | int):
        raise ValueError(f"{value!r} is not a size; write it like 20Gi")
    if isinstance(value, str) and value != value.strip():
        raise ValueError(f"{value!r} is not a size; write it without spaces, like 20Gi")
    try:
        return sizes.parse_quantity(value)
    except errors.InvalidManifest as error:
        raise ValueError(str(error)) from None


Quantity = Annotated[
    int,
    BeforeValidator(_parse_size),
    PlainSerializer(sizes.format_quantity, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "pattern": sizes.QUANTITY_PATTERN,
            "maxLength": 64,
            "x-kubernetes-validations": [
                {
                    "rule": "type(self) == int ? self >= 0 : "
                    f"quantity(self).compareTo(quantity('{sizes.MAX_SIZE}')) < 0",
                    "message": "a size is not negative and smaller than 8Ei",
                }
            ],
        }
    ),
]
"""A size: bytes inside, a Kubernetes quantity outside."""

Mode = Annotated[
    int,
    BeforeValidator(lambda value: value if type(value) is _Mode else _parse_mode(value)),
    PlainSerializer(lambda mode: f"{mode:04o}", return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": _MODE.pattern, "maxLength": 5}),
]
"""Permission bits: an int inside, a quoted octal string outside."""


class _Mode(int):
    """A mode that is an int already, from code and not from a manifest."""


def mode(bits: int) -> int:
    """Permission bits as a value for a ``Mode`` field."""
    return _Mode(bits)


def _check_name(name: str) -> str:
    try:
        return names.check_name(name, what="name")
    except errors.InvalidSpec as error:
        raise ValueError(str(error)) from None


Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=names.MAX_NAME_BYTES,
        pattern=r"^[^/\x00-\x1f\x7f-\x9f]+$",
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!(self in ['.', '..']) && !self.startsWith('-') "
                    f"&& !self.startsWith('{names.RESERVED_PREFIX}') "
                    f"&& size(bytes(self)) <= {names.MAX_NAME_BYTES}",
                    "message": "a name is no path such as '.', does not start with '-' or "
                    f"'{names.RESERVED_PREFIX}', and has at most {names.MAX_NAME_BYTES} bytes",
                }
            ]
        },
    ),
    AfterValidator(_check_name),
]
"""A name on the host: one path component."""

ObjectName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    ),
]
"""The name of another resource: an RFC 1123 subdomain."""

Namespace = Annotated[
    str,
    Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
]
"""The name of a namespace: an RFC 1123 label."""

NAME_PART = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
"""The part of a key of a label or annotation behind the ``/``."""

LABEL_KEY_PATTERN = rf"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{NAME_PART}$"
LabelKey = Annotated[
    str,
    Field(
        max_length=317,
        pattern=LABEL_KEY_PATTERN,
        description="A key, such as app or example.org/app.",
    ),
]
LabelValue = Annotated[str, Field(max_length=63, pattern=rf"^({NAME_PART})?$")]

Text = Annotated[str, Field(max_length=1024)]
AbsolutePath = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")]
DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
Duration = Annotated[str, Field(max_length=32, pattern=DURATION_PATTERN)]
"""A span of time such as ``5m`` or ``1h30m``."""

Uuid = Annotated[
    str,
    Field(
        max_length=36,
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    ),
]


def duration_seconds(text: str) -> float:
    """The span in seconds."""
    scale = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", text)
    return float(sum(float(number) * scale[unit] for number, unit in parts))
