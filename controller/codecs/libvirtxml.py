"""libvirt's pool and volume XML: manifests from it, and its normalised documents back.

Where a field stands is declared on the models (``backends.schema.Xml``) and read and written by
``controller.codecs.xmlfields``. Here are the documents as a whole: safe parsing, the order of
elements, the names that stand for one another, and what libvirt refuses.

What libvirt's XML has no place for can travel in one element of our own namespace, which libvirt
ignores. It holds, as a JSON merge patch (RFC 7386), what has to be changed in the manifest that
the rest of the document gives.
"""

from __future__ import annotations

import json
import re
import uuid as uuids
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from lxml import etree
from pydantic import ValidationError

from backends import errors
from backends.base import PoolType, TargetUse
from backends.registry import pool_spec, pool_type, pool_types
from backends.schema import Model, ObjectName, Violation, violations
from backends.spec import ImageFeatures, PoolStatus, StatusBase, VolumeSpec, VolumeStatus
from controller.codecs.mergepatch import difference, merge
from controller.codecs.xmlfields import Reader, shapes, shortened, write, xml_path
from controller.codecs.xmlnodes import EXTENSION, Node, printed, short_tag
from controller.resources import (
    DEFAULT_NAMESPACE,
    Declared,
    Kind,
    Metadata,
    Resource,
    kinds,
    object_name,
)

MAX_BYTES = 1024 * 1024
"""The largest document that is read; libvirt's own limit for one is 4 MiB over RPC."""

MAX_DEPTH = 64
"""The deepest nesting that is read; libvirt's documents have 6 levels."""

MAX_ATTRIBUTES = 256
"""The most attributes of an element that are read: libvirt's have 9, and reading is quadratic."""

COW_TYPES = ("dir", "fs")
"""Pool types that libvirt allows features/cow for (virStoragePoolDefParseFeatures)."""

SOURCE_NAME_REQUIRED = ("rbd",)
"""Pool types whose source, where it is given, has to have a name."""

UNLISTED_VOLUME_FORMATS = ("rbd",)
"""Pool types whose volume formats libvirt's capabilities leave out."""

OBSERVED_ONLY = frozenset({"physical", "capacity", "allocation", "permissions", "source_devices"})
"""Fields of a volume's status that libvirt writes; read, they are the spec's or nobody's."""

ERRORS: Mapping[str, type[errors.InvalidXml]] = {
    "iscsiDirect.initiator": errors.UnsupportedConfiguration,
    "iscsi.auth.type": errors.UnsupportedConfiguration,
    "iscsiDirect.auth.type": errors.UnsupportedConfiguration,
    "rbd.auth.type": errors.UnsupportedConfiguration,
    "netfs": errors.UnsupportedConfiguration,
    "netfs.protocolVersion": errors.InvalidXmlDetail,
}
"""Fields whose errors libvirt does not call XML_ERROR. For ``netfs`` it is the rule on
protocol@ver, which stands only beside some formats."""


M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A pool or a volume as a document of libvirt's holds it.

    :param kind: ``StoragePool`` or ``StorageVolume``.
    :param name: name on the host: spec.poolName or spec.volumeName, else the resource's name.
    :param resource_name: metadata.name.
    :param pool_type: for a volume, the type of its pool.
    """

    kind: str
    name: str
    spec: Model
    status: StatusBase
    resource_name: str = ""
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    pool_type: str = "dir"


class _Metadata(Model):
    """What of a resource's metadata travels."""

    name: ObjectName
    namespace: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class _Outline:
    """What is known of a kind beside its fields."""

    kind: str
    host_name: str
    spec: type[Model]
    namespace: str


def _outlines() -> dict[str, _Outline]:
    return {
        "pool": _Outline("StoragePool", "poolName", pool_spec(), ""),
        "volume": _Outline("StorageVolume", "volumeName", VolumeSpec, DEFAULT_NAMESPACE),
    }


def parse(
    data: bytes,
    *,
    file: str = "",
    pool: Document | None = None,
    pool_name: str = "default",
    require_capacity: bool = True,
) -> Document:
    """Read a ``<pool>`` or ``<volume>`` document.

    Elements that are not known are ignored, as libvirt does.

    :param file: the file's path, for messages.
    :param pool: the pool of a volume: its type gives the formats, and its name spec.poolRef.
    :param pool_name: spec.poolRef of a volume where ``pool`` is not given; formats are then those
        of files.
    :param require_capacity: refuse a volume without capacity and backingStore; a clone has none.
    :raises errors.InvalidXml: with file and line; ``InvalidXmlDetail`` and
        ``UnsupportedConfiguration`` (both InvalidXml) where libvirt distinguishes them.
    :raises errors.Overflow: for a size past 2**63 - 1.
    """
    root = _root(data, file)
    reader = Reader(file)
    if root.tag == "pool":
        return _parse_pool(root, reader)
    if root.tag == "volume":
        kind = pool_type(_type_of(pool)) if pool is not None else pool_type("dir")
        _check_capacity(root, reader, required=require_capacity)
        named = (pool.resource_name or object_name(pool.name)) if pool else pool_name
        return _parse_volume(root, reader, kind, named)
    raise reader.failure(
        f"The document's element is <{root.tag}>.", root, hint="Give a <pool> or a <volume>."
    )


def declared(document: Document, file: str = "", line: int = 1) -> Declared:
    """The document as a manifest declares it, ready for a store."""
    return Declared(
        kind=kinds()[document.kind],
        metadata=Metadata(
            name=document.resource_name or object_name(document.name),
            namespace=document.namespace,
            labels=dict(document.labels),
            annotations=dict(document.annotations),
        ),
        spec=document.spec,
        file=file,
        line=line,
    )


def document(
    item: Declared | Resource[Any, Any], *, pool_type: str = "dir", uuid: str | None = None
) -> Document:
    """A declared or stored pool or volume as a document.

    :param pool_type: for a volume, the type of its pool.
    :param uuid: of a pool, where neither spec nor status has one.
    """
    status = item.status if isinstance(item, Resource) else item.kind.status()
    if uuid is not None and isinstance(status, PoolStatus) and status.uuid is None:
        status = status.model_copy(update={"uuid": uuid})
    return Document(
        kind=item.kind.name,
        name=_host_name(item.kind, item.spec) or item.metadata.name,
        spec=item.spec,
        status=status,
        resource_name=item.metadata.name,
        namespace=item.metadata.namespace,
        labels=dict(item.metadata.labels),
        annotations=dict(item.metadata.annotations),
        pool_type=pool_type,
    )


def _host_name(kind: Kind, spec: Model) -> str | None:
    given = getattr(spec, "pool_name" if kind.name == "StoragePool" else "volume_name")
    return None if given is None else str(given)


def _type_of(pool: Document) -> str:
    return str(getattr(pool.spec, "type", "dir"))


def _root(data: bytes, file: str) -> Node:
    """The document's tree. Nothing in a document makes this fetch, expand or recurse deeply."""
    if len(data) > MAX_BYTES:
        raise errors.InvalidXml(
            f"The document has {len(data)} bytes.", hint=f"At most {MAX_BYTES} are read.", file=file
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise errors.InvalidXml(
            "The document is not UTF-8.", hint="Convert it to UTF-8.", file=file, line=line
        ) from None
    _refuse_doctype(text, file)
    # The encoding is given so that a declared one can't make other text of the checked bytes.
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
        encoding="utf-8",
    )
    try:
        root = etree.fromstring(text.encode(), parser)
    except etree.XMLSyntaxError as error:
        raise errors.InvalidXml(
            shortened(f"The document is not well formed: {error.msg}."),
            file=file,
            line=error.lineno or 1,
        ) from None
    return _node(root, file)


_NOT_BLANK = re.compile("[^ \t\r\n]")


def _refuse_doctype(text: str, file: str) -> None:
    """Refuse a document type declaration, which XML allows only before the first element."""
    place = 0
    while True:
        place = len(text) if (found := _NOT_BLANK.search(text, place)) is None else found.start()
        for opening, closing in (("<?", "?>"), ("<!--", "-->")):
            if text.startswith(opening, place):
                end = text.find(closing, place + len(opening))
                place = len(text) if end < 0 else end + len(closing)
                break
        else:
            break
    if text.startswith("<!", place):
        raise errors.InvalidXml(
            "The document has a document type declaration.",
            hint="Remove it: neither DTDs nor entities are read.",
            file=file,
            line=text.count("\n", 0, place) + 1,
        )


def _node(element: Any, file: str, depth: int = 1) -> Node:
    line = element.sourceline or 0
    if depth > MAX_DEPTH:
        raise errors.InvalidXml(
            f"The document is nested more than {MAX_DEPTH} deep.", file=file, line=line
        )
    if len(element.attrib) > MAX_ATTRIBUTES:
        raise errors.InvalidXml(
            f"An element has more than {MAX_ATTRIBUTES} attributes.", file=file, line=line
        )
    return Node(
        tag=short_tag(element.tag),
        attributes={name: value for name, value in element.attrib.items()},
        text=(element.text or "") + "".join(child.tail or "" for child in element),
        children=[_node(child, file, depth + 1) for child in element if isinstance(child.tag, str)],
        line=line,
    )


def _parse_pool(root: Node, reader: Reader) -> Document:
    kind = _pool_type(root, reader)
    name, spec = _read_pool(root, reader, kind)
    if kind.name in SOURCE_NAME_REQUIRED and root.first("source") and not root.value("source/name"):
        raise reader.failure("<source/name> is missing.", root.ensure("source"))
    if not name:
        raise reader.failure("<name> is missing.", root, hint="Give the pool a name.")
    outline = _outlines()["pool"]
    manifest = _manifest(root, reader, outline, name, spec)
    spec_model = _valid(outline.spec, manifest["spec"], root, reader)
    for violation in violations(spec_model):
        _refuse(_place(violation.path), f"{violation.message}.", outline.spec, root, reader)
    metadata = _valid(_Metadata, manifest["metadata"], root, reader)
    return Document(
        kind=outline.kind,
        name=name,
        spec=spec_model,
        status=PoolStatus(),
        resource_name=metadata.name,
        namespace=metadata.namespace,
        labels=metadata.labels,
        annotations=metadata.annotations,
    )


def _pool_type(root: Node, reader: Reader) -> PoolType:
    name = root.attributes.get("type")
    if not name:
        raise reader.failure("<pool/@type> is missing.", root, hint="Give the type of the pool.")
    try:
        return pool_type(name)
    except errors.UnsupportedConfiguration as error:
        raise reader.failure(error.message, root, hint=error.hint, error=type(error)) from None


def _read_pool(root: Node, reader: Reader, kind: PoolType) -> tuple[str, dict[str, Any]]:
    """The name on the host, and the spec as a manifest holds it."""
    _check_adapter(root, reader)
    if kind.name not in COW_TYPES and root.value("features/cow/@state"):
        raise reader.failure(
            f"<features/cow> is not for pools of type {kind.name}.",
            root.ensure("features/cow"),
            hint=f"It is for {' and '.join(COW_TYPES)}.",
            error=errors.UnsupportedConfiguration,
        )
    spec = reader.read(pool_spec(), root, left_out=_of_other_types(kind) | _no_target(kind))
    if kind.member_required:
        spec.setdefault(kind.member, {})
    if kind.target is TargetUse.DERIVED:
        spec.get("target", {}).pop("path", None)
        if not spec.get("target", True):
            del spec["target"]
    name = spec.pop("poolName", "")
    if kind.source_name and not name:
        name = root.value("source/name")
    return name, spec


def _of_other_types(kind: PoolType) -> frozenset[str]:
    return frozenset(item.attribute for item in pool_types().values()) - {kind.attribute}


def _no_target(kind: PoolType) -> frozenset[str]:
    return frozenset({"target"} if kind.target is TargetUse.NONE else ())


def _check_adapter(root: Node, reader: Reader) -> None:
    """Without a type only the name may be given, as before libvirt 1.0.5."""
    adapter = root.first("source/adapter")
    if adapter is None or "type" in adapter.attributes:
        return
    later = [name for name in ("wwnn", "wwpn", "parent") if name in adapter.attributes]
    if later or adapter.first("parentaddr"):
        raise reader.failure(
            f"<source/adapter> has {later[0] if later else 'parentaddr'} and no type.",
            adapter,
            hint="Give type='scsi_host' or type='fc_host'.",
        )


def _check_capacity(root: Node, reader: Reader, *, required: bool) -> None:
    if required and not root.value("capacity") and not root.value("backingStore/path"):
        raise reader.failure("<capacity> is missing.", root, hint="Give the size of the volume.")


def _parse_volume(root: Node, reader: Reader, kind: PoolType, pool_name: str) -> Document:
    name, spec = _read_volume(root, reader, kind)
    if not name:
        raise reader.failure("<name> is missing.", root, hint="Give the volume a name.")
    outline = _outlines()["volume"]
    manifest = _manifest(root, reader, outline, name, spec)
    if "poolSelector" not in manifest["spec"]:
        manifest["spec"].setdefault("poolRef", {"name": pool_name})
    spec_model = _valid(VolumeSpec, manifest["spec"], root, reader)
    for violation in _violations_in_members(spec_model):
        _refuse(_place(violation.path), f"{violation.message}.", VolumeSpec, root, reader)
    metadata = _valid(_Metadata, manifest["metadata"], root, reader)
    seen = reader.read(VolumeStatus, root, left_out=OBSERVED_ONLY)
    return Document(
        kind=outline.kind,
        name=name,
        spec=spec_model,
        status=_valid(VolumeStatus, seen, root, reader),
        resource_name=metadata.name,
        namespace=metadata.namespace,
        labels=metadata.labels,
        annotations=metadata.annotations,
        pool_type=kind.name,
    )


def _violations_in_members(spec: VolumeSpec) -> Iterator[Violation]:
    """The rules on a volume itself are libvirt's backends' and not its parser's: raw with a
    backingStore, say, is what libvirt itself writes of some volumes."""
    for shape in shapes(VolumeSpec):
        member = getattr(spec, shape.name)
        if isinstance(member, Model):
            yield from violations(member, path=f"spec.{shape.alias}")


def _read_volume(root: Node, reader: Reader, kind: PoolType) -> tuple[str, dict[str, Any]]:
    """The name on the host, and the spec as a manifest holds it."""
    for path in ("target/format", "backingStore/format"):
        _check_format(root, path, reader, kind)
    encryption = root.first("target/encryption")
    if encryption is not None and not encryption.attributes.get("format"):
        raise reader.failure("<target/encryption/@format> is missing.", encryption)
    _check_features(root, reader)
    spec = reader.read(VolumeSpec, root)
    if root.first("target/features") is not None:
        spec.setdefault("compat", "1.1")
    if "backingStore" in spec:
        spec["backingStore"].setdefault("format", kind.default_volume_format or "raw")
    return spec.pop("volumeName", ""), spec


def _check_features(root: Node, reader: Reader) -> None:
    known = [item.marker.path for item in shapes(ImageFeatures)]
    features = root.first("target/features")
    for feature in features.children if features else ():
        if feature.tag not in known:
            raise reader.failure(
                f"<target/features/{feature.tag}> is not known.",
                feature,
                hint=f"Use {' or '.join(known)}.",
                error=errors.UnsupportedConfiguration,
            )


def _volume_formats(kind: PoolType) -> tuple[str, ...]:
    """Formats that a document may name: ``none`` only where it is the default."""
    return tuple(
        item
        for item in kind.volume_formats
        if item != "none" or kind.default_volume_format == "none"
    )


def _check_format(root: Node, path: str, reader: Reader, kind: PoolType) -> None:
    """Formats are checked where the pool type has any, and ignored elsewhere."""
    if not kind.volume_formats:
        root.remove(path)
        return
    given = root.value(f"{path}/@type")
    if given and given not in _volume_formats(kind):
        raise reader.failure(
            f"<{path}>: {given!r} is not a format of volumes in pools of type {kind.name}.",
            root.ensure(path),
            hint=f"Use one of {', '.join(_volume_formats(kind))}.",
            error=errors.UnsupportedConfiguration,
        )


def _manifest(
    root: Node, reader: Reader, outline: _Outline, name: str, spec: dict[str, Any]
) -> dict[str, Any]:
    """Metadata and spec of a document, with what travelled beside libvirt's own elements."""
    manifest: dict[str, Any] = merge(_base(outline, name, spec), _travelled(root, reader))
    if not isinstance(manifest.get("spec"), dict) or not isinstance(manifest.get("metadata"), dict):
        raise reader.failure(f"<{EXTENSION}> takes away metadata or spec.", root)
    own_name = manifest["metadata"].get("name")
    if manifest["spec"].get(outline.host_name, own_name) != name:
        manifest["spec"][outline.host_name] = name
    return manifest


def _base(outline: _Outline, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    own_name = object_name(name)
    metadata = {"name": own_name}
    if outline.namespace:
        metadata["namespace"] = outline.namespace
    named = {outline.host_name: name} if own_name != name else {}
    return {"metadata": metadata, "spec": {**spec, **named}}


def _travelled(root: Node, reader: Reader) -> dict[str, Any]:
    node = root.first(EXTENSION)
    if node is None:
        return {}
    try:
        patch = json.loads(node.text)
    except (ValueError, RecursionError) as error:
        raise reader.failure(f"<{EXTENSION}> is not JSON: {error}.", node) from None
    if not isinstance(patch, dict) or not patch.keys() <= {"metadata", "spec"}:
        raise reader.failure(f"<{EXTENSION}> is not an object of metadata and spec.", node)
    return patch


def _valid(model: type[M], values: Any, root: Node, reader: Reader) -> M:
    try:
        return model.model_validate(values, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    said = {
        "missing": "it is missing",
        "string_pattern_mismatch": f"it can't be {first['input']!r}",
    }.get(first["type"], first["msg"])
    said = said.removeprefix("Value error, ").rstrip(".")
    return _refuse(first["loc"], f"{said}.", model, root, reader)


def _refuse(
    place: tuple[str | int, ...], message: str, model: type[Model], root: Node, reader: Reader
) -> NoReturn:
    """Raise the error for a field of a manifest, in the words of the document."""
    path = xml_path(model, place)
    named = path or ".".join(str(part) for part in place) or root.tag
    line = reader.line(place)
    while not line and path:
        path = path.rpartition("/")[0]
        above = root.first(path) if path and "@" not in path else None
        line = above.line if above else 0
    raise ERRORS.get(".".join(str(part) for part in place), errors.InvalidXml)(
        shortened(f"<{named}>: {message}"), file=reader.file, line=line or root.line
    )


def _place(path: str) -> tuple[str | int, ...]:
    """``spec.iscsi.hosts[0].name`` as the parts below spec."""
    parts = re.findall(r"[^.\[\]]+", path.removeprefix("spec"))
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def format(document: Document, *, extension: bool = False, uuid: str = "") -> str:
    """The document as libvirt writes it, in its order and with its defaults made explicit.

    A size that was never observed is 0, and what libvirt would not read is left out.

    :param extension: add one element of our own with what libvirt has no place for, so that
        ``parse`` gives the same resource again.
    :param uuid: of a pool, where neither spec nor status has one; a new one if empty.
    """
    root, base = _WRITERS[document.kind](document, uuid)
    if extension:
        patch = difference(base, _plain_manifest(document))
        if patch:
            text = json.dumps(patch, ensure_ascii=True, sort_keys=True)
            root.children.append(Node(EXTENSION, text=text))
    return printed(root)


def capabilities(supported: set[str]) -> str:
    """What libvirt calls the storage pool capabilities: all pool types and their formats.

    :param supported: names of the pool types that this host can serve.
    """
    root = Node("storagepoolCapabilities")
    for item in pool_types().values():
        answer = "yes" if item.name in supported else "no"
        pool = Node("pool", {"type": item.name, "supported": answer})
        listed = () if item.name in UNLISTED_VOLUME_FORMATS else item.volume_formats
        pool.children = [
            _options("poolOptions", "sourceFormatType", item.default_source_format,
                     item.source_formats),
            _options("volOptions", "targetFormatType", item.default_volume_format, listed),
        ]  # fmt: skip
        pool.children = [node for node in pool.children if node.children]
        root.children.append(pool)
    return printed(root)


def sources(found: Iterable[Model]) -> str:
    """What libvirt calls the sources of pools that were found: a list of pools' source elements."""
    root = Node("sources")
    for item in found:
        pool = Node("pool")
        write(item, pool)
        root.children.append(pool.ensure("source"))
    return printed(root)


def _options(tag: str, name: str, default: str | None, values: tuple[str, ...]) -> Node:
    if default is None:
        return Node(tag)
    listed = Node("enum", {"name": name}, children=[Node("value", text=item) for item in values])
    return Node(tag, children=[Node("defaultFormat", {"type": default}), listed])


def _write_pool(document: Document, uuid: str) -> tuple[Node, dict[str, Any]]:
    """The tree of a pool, and the manifest that it would be read as."""
    kind = pool_type(_type_of(document))
    root = Node("pool")
    root.ensure("name").text = document.name
    write(document.spec, root, left_out=_of_other_types(kind) | _no_target(kind))
    write(document.status, root)
    if getattr(document.spec, kind.attribute) is None and not kind.member_required:
        write(kind.source(), root)
    if not root.value("uuid"):
        root.ensure("uuid").text = uuid or str(uuids.uuid4())
    for tag in ("capacity", "allocation", "available"):
        _default_size(root, tag, 0)
    if kind.name not in COW_TYPES:
        root.remove("features")
    root.ensure("source")
    if kind.source_name:
        name = root.ensure("source/name")
        name.text = name.text or document.name
    if kind.target is TargetUse.DERIVED:
        path = kind.target_template.format(source=root.value("source/name"))
        root.ensure("target/path").text = path
    host_name, spec = _read_pool(root, Reader(), kind)
    return root, _plain(_outlines()["pool"], _base(_outlines()["pool"], host_name, spec))


def _write_volume(document: Document, uuid: str) -> tuple[Node, dict[str, Any]]:
    """The tree of a volume, and the manifest that it would be read as."""
    kind = pool_type(document.pool_type)
    root = Node("volume", {"type": "file"})
    if isinstance(document.status, VolumeStatus) and document.status.type:
        root.attributes["type"] = document.status.type
    root.ensure("name").text = document.name
    write(document.status, root)
    write(document.spec, root)
    _default_size(root, "capacity", 0)
    _default_size(root, "allocation", int(root.value("capacity")))
    if root.value("physical") == "0":
        root.remove("physical")
    for holder in ("target", "backingStore"):
        if holder == "target" or root.first(holder):
            _settle_format(root.ensure(holder), kind)
    if root.first("target/features") and not root.value("target/compat"):
        root.ensure("target/compat").text = "1.1"
    name, spec = _read_volume(root, Reader(), kind)
    return root, _plain(_outlines()["volume"], _base(_outlines()["volume"], name, spec))


_WRITERS = {"StoragePool": _write_pool, "StorageVolume": _write_volume}


def _default_size(root: Node, tag: str, size: int) -> None:
    if root.first(tag) is None:
        root.children.append(Node(tag, {"unit": "bytes"}, str(size)))


def _settle_format(holder: Node, kind: PoolType) -> None:
    """Make the default format explicit; a format that the pool type has not is not written."""
    given = holder.value("format/@type")
    holder.remove("format")
    if kind.default_volume_format is not None:
        chosen = given if given in _volume_formats(kind) else kind.default_volume_format
        holder.ensure("format").attributes["type"] = chosen


def _plain_manifest(document: Document) -> dict[str, Any]:
    metadata = {
        "name": document.resource_name or object_name(document.name),
        "namespace": document.namespace,
        "labels": document.labels,
        "annotations": document.annotations,
    }
    given = {key: value for key, value in metadata.items() if value}
    return {"metadata": given, "spec": _dump(document.spec)}


def _plain(outline: _Outline, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest without defaults; as it is where it is not complete without what travels."""
    spec = dict(manifest["spec"])
    stand_in = {"poolRef": {"name": "x"}} if outline.spec is VolumeSpec else {}
    try:
        whole = {**spec, **stand_in}
        spec = _dump(outline.spec.model_validate(whole, by_alias=True, by_name=False))
    except ValidationError:
        return manifest
    for key in stand_in:
        del spec[key]
    return {**manifest, "spec": spec}


def _dump(spec: Model) -> dict[str, Any]:
    return spec.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True, mode="json")
