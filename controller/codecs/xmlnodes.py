"""Elements as plain trees, and their text as libvirt would write it. Needs no XML library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

NAMESPACES: Mapping[str, str] = {
    "fs": "http://libvirt.org/schemas/storagepool/fs/1.0",
    "rbd": "http://libvirt.org/schemas/storagepool/rbd/1.0",
    "poolkeeper": "https://poolkeeper.dev/xml/v1alpha1",
}
EXTENSION = "poolkeeper:resource"

ORDER: Mapping[str, tuple[str, ...]] = {
    "pool": (
        "name", "uuid", "capacity", "allocation", "available", "features", "source", "target",
        "refresh", "fs:mount_opts", "rbd:config_opts", EXTENSION,
    ),
    "source": (
        "host", "device", "dir", "adapter", "name", "initiator", "format", "auth", "protocol",
        "vendor", "product",
    ),
    "volume": (
        "name", "key", "source", "capacity", "allocation", "physical", "target", "backingStore",
        EXTENSION,
    ),
    "target": (
        "path", "format", "permissions", "timestamps", "encryption", "compat", "clusterSize",
        "features",
    ),
    "backingStore": ("path", "format", "permissions", "timestamps"),
}  # fmt: skip
"""The order in which libvirt writes elements; others follow as their fields are declared."""

OPEN_TAGS = ("pool", "source", "sources", "target", "encryption", "enum")
"""Elements that libvirt writes with a start and an end tag also where they are empty."""


@dataclass(slots=True)
class Node:
    """An element. Tags of known namespaces have their prefix: ``fs:option``.

    :param line: line in the file it was read from; 0 for one that was made.
    """

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: list[Node] = field(default_factory=list)
    line: int = 0

    def all(self, path: str) -> list[Node]:
        """The elements at a path of tags, below the first one at each step but the last."""
        *steps, last = path.split("/")
        above = self.first("/".join(steps)) if steps else self
        return [child for child in above.children if child.tag == last] if above else []

    def first(self, path: str) -> Node | None:
        """The first element at a path of tags."""
        return next(iter(self.all(path)), None)

    def value(self, path: str) -> str:
        """Text or attribute (``source/format/@type``) at a path; empty where there is none."""
        tags, attribute = split(path)
        node = self.first(tags) if tags else self
        if node is None:
            return ""
        return node.attributes.get(attribute, "") if attribute else node.text

    def ensure(self, path: str) -> Node:
        """The first element at a path, made where it is not there."""
        node = self
        for tag in path.split("/") if path else ():
            below = node.first(tag)
            if below is None:
                below = Node(tag)
                node.children.append(below)
            node = below
        return node

    def remove(self, path: str) -> None:
        """Remove the elements at a path."""
        *steps, last = path.split("/")
        above = self.first("/".join(steps)) if steps else self
        if above is not None:
            above.children = [child for child in above.children if child.tag != last]

    def walk(self) -> Iterator[Node]:
        """The element and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def split(path: str) -> tuple[str, str]:
    """A marker's path as tags and attribute; either may be empty."""
    tags, _, last = path.rpartition("/")
    return (tags, last[1:]) if last.startswith("@") else (path, "")


def short_tag(name: str) -> str:
    """``{address}option`` as ``fs:option`` where the namespace is known."""
    for prefix, address in NAMESPACES.items():
        if name.startswith(f"{{{address}}}"):
            return f"{prefix}:{name.rpartition('}')[2]}"
    return name


def printed(root: Node) -> str:
    """The document's text: libvirt's order, single quotes, two spaces for each level."""
    _sort(root)
    for prefix, address in NAMESPACES.items():
        if any(node.tag.startswith(f"{prefix}:") for node in root.walk()):
            root.attributes[f"xmlns:{prefix}"] = address
    return "".join(_lines(root, ""))


def _sort(node: Node) -> None:
    order = ORDER.get(node.tag, ())
    rank = {tag: place for place, tag in enumerate(order)}
    node.children.sort(key=lambda child: rank.get(child.tag, len(order)))
    for child in node.children:
        _sort(child)


def _lines(node: Node, indent: str) -> list[str]:
    attributes = "".join(
        f" {name}='{_escaped(value, in_attribute=True)}'" for name, value in node.attributes.items()
    )
    start = f"{indent}<{node.tag}{attributes}"
    if node.children or node.tag in OPEN_TAGS:
        below = [line for child in node.children for line in _lines(child, indent + "  ")]
        return [f"{start}>\n", *below, f"{indent}</{node.tag}>\n"]
    if not node.text:
        return [f"{start}/>\n"]
    text = _escaped(node.text, quotes=node.tag != EXTENSION)
    return [f"{start}>{text}</{node.tag}>\n"]


def _escaped(text: str, *, quotes: bool = True, in_attribute: bool = False) -> str:
    """Text as libvirt escapes it, and blanks that an XML reader would change by number."""
    table: dict[str, str | int | None] = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"}
    if quotes or in_attribute:
        table |= {'"': "&quot;", "'": "&apos;"}
    if in_attribute:
        table |= {"\n": "&#10;", "\t": "&#9;"}
    return text.translate(str.maketrans(table))
