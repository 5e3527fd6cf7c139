"""Models to elements and back, by the ``Xml`` markers on their fields alone.

Values read are in the form of a manifest (camelCase names, quantities, quoted modes), not
validated.

The tables below hold what libvirt does with single fields and no marker can say.
"""

from __future__ import annotations

import re
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from backends import errors, sizes
from backends.schema import Form, Model, Uuid, Xml, xml_of
from backends.scsi import Adapter, PciAddress
from backends.spec import BackingStore, Encryption, Host, ImageFeatures, SecretRef
from controller.codecs.xmlnodes import Node, split

ONLY_WHEN: Mapping[tuple[type[Model], str], tuple[str, str]] = {
    (Encryption, "cipher"): ("format", "luks"),
    (Encryption, "ivgen"): ("format", "luks"),
    (Adapter, "name"): ("type", "scsi_host"),
    (Adapter, "parent_address"): ("type", "scsi_host"),
    (Adapter, "parent"): ("type", "fc_host"),
    (Adapter, "parent_wwnn"): ("type", "fc_host"),
    (Adapter, "parent_wwpn"): ("type", "fc_host"),
    (Adapter, "parent_fabric_wwn"): ("type", "fc_host"),
    (Adapter, "managed"): ("type", "fc_host"),
    (Adapter, "wwnn"): ("type", "fc_host"),
    (Adapter, "wwpn"): ("type", "fc_host"),
}
"""Fields that libvirt reads and writes only where another field, declared before, has a value."""

FIXED_ATTRIBUTES: Mapping[tuple[type[Model], str], tuple[str, str]] = {
    (Encryption, "secret_ref"): ("type", "passphrase"),
    (Encryption, "further_secret_refs"): ("type", "passphrase"),
}
"""Attributes of one possible value that libvirt demands and a manifest need not repeat."""

HEX_DIGITS: Mapping[tuple[type[Model], str], tuple[int, int]] = {
    (PciAddress, "domain"): (4, 0xFFFF),
    (PciAddress, "bus"): (2, 0xFF),
    (PciAddress, "slot"): (2, 0x1F),
    (PciAddress, "function"): (1, 0x7),
}
"""Numbers that libvirt writes as hexadecimal: digits and the largest one (PCI addressing)."""

NEEDED_BY_VALUE: Mapping[type[Model], tuple[str, ...]] = {
    BackingStore: ("path",),
    SecretRef: ("uuid", "usage"),
}
"""Elements that are written only with at least one of these; nothing else names the thing."""

KEPT_EMPTY = (ImageFeatures, SecretRef, PciAddress)
"""Members whose element means something, or is an error, without any content."""

ONE_ONLY = ("source/device",)
"""Elements of which libvirt keeps many and some pool types' models hold one."""

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Shape:
    """One marked field of a model, as XML sees it.

    :param member: model of the value; None for a scalar.
    :param words: the possible values of a Literal.
    """

    holder: type[Model]
    name: str
    alias: str
    marker: Xml
    default: Any
    repeated: bool
    member: type[Model] | None
    words: tuple[str, ...]
    is_int: bool
    is_uuid: bool


@cache
def shapes(model: type[Model]) -> tuple[Shape, ...]:
    """The marked fields of a model, in the order they are declared."""
    found = []
    for name, info in model.model_fields.items():
        marker = xml_of(info)
        if marker is not None:
            kinds = list(_unwrapped(info.annotation))
            core = kinds[-1]
            found.append(
                Shape(
                    holder=model,
                    name=name,
                    alias=info.alias or name,
                    marker=marker,
                    default=info.default,
                    repeated=any(get_origin(kind) is tuple for kind in kinds),
                    member=core if isinstance(core, type) and issubclass(core, Model) else None,
                    words=get_args(core) if get_origin(core) is Literal else (),
                    is_int=core is int,
                    is_uuid=any(kind is Uuid for kind in kinds),
                )
            )
    return tuple(found)


def _unwrapped(annotation: Any) -> Iterator[Any]:
    """An annotation and what is inside it, from ``X | None`` down to the type of one value."""
    yield annotation
    origin = get_origin(annotation)
    if origin in (Annotated, tuple, Union, types.UnionType):
        inner = next(part for part in get_args(annotation) if part is not type(None))
        yield from _unwrapped(inner)


def xml_path(model: type[Model], place: tuple[str | int, ...]) -> str:
    """Where a field of a manifest (``("iscsi", "hosts")``) stands in XML: ``source/host``.

    Empty for what libvirt's XML has no place for.
    """
    steps = []
    for part in place:
        if isinstance(part, int):
            continue
        shape = next((item for item in shapes(model) if part in (item.alias, item.name)), None)
        if shape is None:
            break
        steps.extend([shape.marker.path] if shape.marker.path != "." else [])
        model = shape.member or model
    return "/".join(steps)


def clean_path(path: str) -> str:
    """A path as libvirt sanitises it: '/' runs collapsed, none at the end, '//' kept in front.

    A URI is left alone: in one, '//' may be another resource (RFC 3986).
    """
    scheme = path.find("://")
    if scheme >= 0 and path.find("/") > scheme:
        return path
    lead = "//" if path.startswith("//") and not path.startswith("///") else ""
    rest = re.sub("/+", "/", path[len(lead) :])
    return lead + (rest.rstrip("/") if lead or len(rest) > 1 else rest)


def write(model: Model, node: Node, *, left_out: frozenset[str] = frozenset()) -> None:
    """Put the marked fields of ``model`` below ``node``, where nothing stands yet.

    :param left_out: names of fields to pass over.
    """
    for shape in shapes(type(model)):
        value = getattr(model, shape.name)
        condition = ONLY_WHEN.get((type(model), shape.name))
        if value is None or not shape.marker.printed or shape.name in left_out:
            continue
        if condition is None or getattr(model, condition[0]) == condition[1]:
            _write_field(shape, node, value)


def _write_field(shape: Shape, node: Node, value: Any) -> None:
    if shape.marker.path == ".":
        write(value, node)
    elif shape.repeated:
        tags, attribute = split(shape.marker.path)
        above, _, tag = tags.rpartition("/")
        for item in value:
            made = _element(shape, tag, item, attribute)
            if made is not None:
                node.ensure(above).children.append(made)
    else:
        _write_one(shape, node, value)


def _write_one(shape: Shape, node: Node, value: Any) -> None:
    tags, attribute = split(shape.marker.path)
    if attribute:
        text = _printed(shape, value)
        if text:
            node.ensure(tags).attributes.setdefault(attribute, text)
        return
    above, _, tag = tags.rpartition("/")
    made = _element(shape, tag, value)
    if made is not None and node.first(tags) is None:
        node.ensure(above).children.append(made)


def _element(shape: Shape, tag: str, value: Any, attribute: str = "") -> Node | None:
    if shape.member is not None:
        return _member_element(shape, tag, value)
    text = _printed(shape, value)
    if attribute:
        return Node(tag, {attribute: text or ""})
    if not text and shape.marker.form is not Form.PRESENCE:
        return None
    unit = {Form.BYTES: "bytes", Form.CLUSTER: "B"}.get(shape.marker.form)
    return None if text is None else Node(tag, {"unit": unit} if unit else {}, text)


def _member_element(shape: Shape, tag: str, value: Model) -> Node | None:
    fixed = FIXED_ATTRIBUTES.get((shape.holder, shape.name))
    node = Node(tag, dict([fixed]) if fixed else {})
    write(value, node)
    needed = NEEDED_BY_VALUE.get(type(value))
    if needed is not None and not any(getattr(value, name) for name in needed):
        return None
    empty = not (node.attributes or node.children)
    return None if empty and not isinstance(value, KEPT_EMPTY) else node


def _printed(shape: Shape, value: Any) -> str | None:
    """A value as XML holds it; None for one that is not written."""
    match shape.marker.form:
        case Form.PRESENCE:
            return "" if value else None
        case Form.YES_NO:
            return "yes" if value else "no"
        case Form.MODE:
            return f"0{value & 0o777:o}"
        case Form.CLUSTER:
            return str(value) if value else None
        case Form.PATH:
            return clean_path(_NOT_XML.sub("", value))
    if (shape.holder, shape.name) in HEX_DIGITS:
        return _hexadecimal(shape, value)
    text = _NOT_XML.sub("", str(value))
    return text.lower() if shape.words else text


def _hexadecimal(shape: Shape, text: str) -> str | None:
    """The number as libvirt writes it; None for what is none, or past the largest."""
    digits, largest = HEX_DIGITS[shape.holder, shape.name]
    octal = re.fullmatch("0[0-7]{1,10}", text)
    if not octal and not re.fullmatch("0[xX][0-9a-fA-F]{1,8}|0|[1-9][0-9]{0,9}", text):
        return None
    number = int(text, 8 if octal else 0)
    return f"0x{number:0{digits}x}" if number <= largest else None


@dataclass(slots=True)
class Reader:
    """Reads elements of one file, and remembers which line each field came from.

    :param places: line by place in the manifest, such as ``("target", "path")``.
    """

    file: str = ""
    places: dict[tuple[str | int, ...], int] = field(default_factory=dict)

    def line(self, place: tuple[str | int, ...]) -> int:
        """The line of a field, of what is in it, or of what is around it; 0 where none was read."""
        if place in self.places:
            return self.places[place]
        inside = [line for key, line in self.places.items() if key[: len(place)] == place]
        if inside and place:
            return min(inside)
        return self.line(place[:-1]) if place else 0

    def read(
        self,
        model: type[Model],
        node: Node,
        *,
        place: tuple[str | int, ...] = (),
        trail: str = "",
        left_out: frozenset[str] = frozenset(),
    ) -> dict[str, Any]:
        """The marked fields of ``model`` as a manifest holds them, not validated.

        :param trail: path of ``node`` in the document, for messages.
        :raises errors.InvalidXml: for a value of the wrong form, with file and line.
        """
        found: dict[str, Any] = {}
        taken: Counter[str] = Counter()
        for shape in shapes(model):
            if shape.name in left_out or not _wanted(shape, found):
                continue
            value = self._read_field(shape, node, (*place, shape.alias), trail, taken)
            if value is not None:
                found[shape.alias] = value
        return found

    def _read_field(
        self,
        shape: Shape,
        node: Node,
        place: tuple[str | int, ...],
        trail: str,
        taken: Counter[str],
    ) -> Any:
        if shape.marker.path == "." and shape.member is not None:
            return self.read(shape.member, node, place=place, trail=trail) or None
        path = shape.marker.path
        tags, attribute = split(path)
        nodes = node.all(tags) if tags else [node]
        below = f"{trail}/{path}".lstrip("/")
        if shape.repeated:
            rest = enumerate(nodes[taken[path] :])
            values = [self._read_one(shape, n, attribute, (*place, i), below) for i, n in rest]
            return [value for value in values if value is not None] or None
        if path in ONE_ONLY and len(nodes) > 1:
            raise self.failure(f"There are {len(nodes)} <{below}>, and one is used.", nodes[1])
        taken[path] += 1
        return self._read_one(shape, nodes[0], attribute, place, below) if nodes else None

    def _read_one(
        self, shape: Shape, node: Node, attribute: str, place: tuple[str | int, ...], trail: str
    ) -> Any:
        self.places[place] = node.line
        if shape.member is not None:
            return self._read_member(shape, shape.member, node, place, trail)
        text = node.attributes.get(attribute) if attribute else node.text
        if shape.repeated and text is None:
            raise self.failure(f"<{trail}> is missing.", node)
        if shape.marker.form is Form.PRESENCE:
            return True
        if text is None or (not text and shape.marker.form is not Form.ID):
            return text if shape.repeated else None
        try:
            return _understood(shape, text, node.attributes.get("unit"))
        except errors.InvalidManifest as error:
            raise type(error)(
                shortened(f"<{trail}>: {error.message}"),
                hint=error.hint,
                file=self.file,
                line=node.line,
            ) from None

    def _read_member(
        self,
        shape: Shape,
        member: type[Model],
        node: Node,
        place: tuple[str | int, ...],
        trail: str,
    ) -> dict[str, Any] | None:
        fixed = FIXED_ATTRIBUTES.get((shape.holder, shape.name))
        if fixed is not None:
            self._check_fixed(node, trail, *fixed)
        if member is BackingStore and not node.value("path"):
            return None
        content = self.read(member, node, place=place, trail=trail)
        return content if content or issubclass(member, KEPT_EMPTY) else None

    def _check_fixed(self, node: Node, trail: str, name: str, value: str) -> None:
        given = node.attributes.get(name)
        if not given:
            raise self.failure(f"<{trail}/@{name}> is missing.", node, hint=f"Write {value!r}.")
        if given != value:
            raise self.failure(
                f"<{trail}/@{name}> is {given!r}, which is not known.",
                node,
                hint=f"Write {value!r}.",
                error=errors.UnsupportedConfiguration,
            )

    def failure(
        self,
        message: str,
        node: Node,
        *,
        hint: str = "",
        error: type[errors.InvalidXml] = errors.InvalidXml,
    ) -> errors.InvalidXml:
        """An error at an element."""
        return error(shortened(message), hint=hint, file=self.file, line=node.line)


def shortened(message: str) -> str:
    """A message that may quote a document, of no more than a screenful."""
    return message if len(message) <= 300 else f"{message[:200]} ... {message[-60:]}"


def _wanted(shape: Shape, found: Mapping[str, Any]) -> bool:
    condition = ONLY_WHEN.get((shape.holder, shape.name))
    if condition is None:
        return True
    deciding = next(item for item in shapes(shape.holder) if item.name == condition[0])
    return bool(found.get(deciding.alias, deciding.default) == condition[1])


def _understood(shape: Shape, text: str, unit: str | None) -> Any:
    """A value as a manifest holds it."""
    match shape.marker.form:
        case Form.BYTES | Form.CLUSTER:
            return sizes.format_quantity(sizes.parse_scaled(text, unit))
        case Form.TEXT:
            return _understood_text(shape, text)
    return _FORMS[shape.marker.form](text)


def _understood_text(shape: Shape, text: str) -> Any:
    if shape.words:
        return _word(text, shape.words)
    if shape.is_uuid:
        return parse_uuid(text)
    if (shape.holder, shape.name) in HEX_DIGITS:
        return _pci_number(shape, text)
    if not shape.is_int:
        return text
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,10}\s*", text, re.ASCII):
        raise errors.InvalidXml(f"{text!r} is not a whole number.")
    no_port = shape.holder is Host and int(text) == 0
    return None if no_port else int(text)


def _pci_number(shape: Shape, text: str) -> str:
    number = _hexadecimal(shape, text.strip())
    if number is None:
        largest = HEX_DIGITS[shape.holder, shape.name][1]
        raise errors.InvalidXml(f"{text!r} is not a number between 0x0 and {largest:#x}.")
    return number


def _word(text: str, words: tuple[str, ...]) -> str:
    """libvirt writes its words in lower case; a manifest may have them in CamelCase."""
    for word in words:
        if word.lower() == text:
            return word
    raise errors.UnsupportedConfiguration(
        f"{text!r} is not known.", hint=f"Use one of {', '.join(word.lower() for word in words)}."
    )


def parse_uuid(text: str) -> str:
    """A UUID in lower case with dashes; dashes and blanks may stand between any two pairs.

    :raises errors.InvalidXml: for anything but 32 hexadecimal digits.
    """
    if not re.fullmatch(r"\s*(?:[- ]*[0-9a-fA-F]{2}){16}\s*", text, re.ASCII):
        raise errors.InvalidXml(f"{text!r} is not a UUID.")
    digits = re.sub(r"[-\s]", "", text).lower()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _mode(text: str) -> str:
    if not re.fullmatch(r"\s*\+?[0-7]{1,12}\s*", text, re.ASCII) or int(text, 8) > 0o777:
        raise errors.InvalidXml(f"{text!r} is not an octal mode of at most 0777.")
    return f"{int(text, 8):04o}"


def _id(text: str) -> int | None:
    if not re.fullmatch(r"\s*-?[0-9]{1,10}\s*", text, re.ASCII):
        raise errors.InvalidXml(f"{text!r} is not a numeric id.")
    number = int(text)
    if not -1 <= number <= 2**32 - 1:
        raise errors.InvalidXml(f"{text!r} is not between -1 and {2**32 - 1}.")
    return None if number in (-1, 2**32 - 1) else number


def _yes_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise errors.InvalidXml(f"{text!r} is neither 'yes' nor 'no'.")
    return text == "yes"


_FORMS: Mapping[Form, Callable[[str], Any]] = {
    Form.PATH: clean_path,
    Form.YES_NO: _yes_no,
    Form.MODE: _mode,
    Form.ID: _id,
}
