"""YAML text as documents of nodes that know their lines.

PyYAML's parser gives events; what stands here makes values of them. Its own loader is not used,
because it follows YAML 1.1 in silence: ``0711`` becomes 457, ``1:30`` becomes 90, the last of two
equal keys wins, and aliases multiply. Plain scalars are read as kubectl reads them (go-yaml 2,
through sigs.k8s.io/yaml); what that would change behind the user's back is an error with a line.
JSON is read as the subset of YAML that it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from backends import errors

MAX_BYTES = 4 * 2**20
"""Size of a manifest file; a List of ten thousand volumes takes about 3 MiB."""

MAX_DEPTH = 32
"""Levels of nesting; what a server prints in a List, managedFields included, has about 14."""
_TOO_DEEP = f"Values are nested more than {MAX_DEPTH} deep."

MAX_NODES = 300_000
"""Values in a file, which bounds the memory that it takes."""

MAX_PROBLEMS = 200
"""Broken documents that are reported before the rest of a file is given up."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUES = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y"})
_FALSES = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N"})
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]{0,29})")
_HEX = re.compile(r"[-+]?0x[0-9a-fA-F_]{1,30}")
_OTHER_BASE = re.compile(r"[-+]?(0[0-9_]+|0[oO][0-7_]+|0[bB][01_]+)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_NO_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_NUMERIC = tuple("+-.0123456789")
"""What a number begins with."""

_HALVES = re.compile("[\ud800-\udfff]")
_MARKER = re.compile(r"^(---|\.\.\.)(?=[ \t\r\n]|\Z)", re.MULTILINE)
_PREAMBLE = re.compile(r"(?:[ \t]*(?:[#%][^\n]*)?(?:\r?\n|\Z))*")
_UNREADABLE = re.compile(
    r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_SURROGATES = re.compile(
    r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
)

_SYNTAX = (
    ("'\\t'", "a tab stands where only spaces may", "Indent with spaces."),
    ("'%'", "text can't begin with '%'", "Put the text in quotes."),
    ("'@'", "text can't begin with '@'", "Put the text in quotes."),
    ("'`'", "text can't begin with '`'", "Put the text in quotes."),
    ("cannot start any token", "text can't begin so", "Put the text in quotes."),
    (
        "mapping values are not allowed",
        "a ':' stands where no key can be",
        "Indent the line like its neighbours, or put text with ': ' in quotes.",
    ),
    ("find expected ':'", "a key has no ':'", "Write it as 'key: value'."),
    (
        "unexpected end of stream",
        "a quote or bracket is not closed",
        "Close it on this line or below.",
    ),
    ("expected ',' or '", "a bracket is not closed, or a ',' is missing in it", "Close it."),
    ("node content", "a value is missing, or a bracket is out of place", "Give the value."),
    (
        "expected",
        "this fits nothing above it",
        "Give entries of one mapping or list the same indentation, and let nothing follow a "
        "closing quote or bracket.",
    ),
    ("escape", "an escape in double quotes is unknown", "Write a backslash as \\\\."),
)
"""What PyYAML and libyaml say, in part, and the same for people."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value.

    :param text: as it was written, without quotes.
    :param problem: why ``value`` is not to be used; the document's problems hold the same.
    """

    line: int
    value: str | int | float | bool | None
    text: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """Fields by name, and the line of each name."""

    line: int
    entries: dict[str, Node]
    lines: dict[str, int]


Node: TypeAlias = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file.

    :param root: None where nothing could be made of it.
    """

    root: Node | None
    problems: tuple[errors.InvalidManifest, ...]


def plain(node: Node) -> Any:
    """The node as plain data. Empty fields are left out, as the API server does."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key: plain(item) for key, item in node.entries.items() if not is_empty(item)}


def is_empty(node: Node) -> bool:
    """Whether a field was given without a value."""
    return isinstance(node, Scalar) and node.value is None and not node.problem


def read(text: str, *, file: str = "") -> Iterator[Document]:
    """The documents of a file, without those that hold nothing. Never raises."""
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_BYTES or len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        yield _refused(
            f"The file is larger than {MAX_BYTES // 2**20} MiB.", "Split it.", file=file, line=0
        )
        return
    budget = _Budget()
    for line, chunk in _chunks(text):
        document = _Composer(chunk, file=file, line=line, budget=budget).compose()
        if document is None:
            continue
        yield document
        budget.problems += bool(document.problems)
        if budget.nodes > MAX_NODES or budget.problems >= MAX_PROBLEMS:
            yield _refused("The rest of the file was not read.", "", file=file, line=line)
            return


@dataclass(slots=True)
class _Budget:
    nodes: int = 0
    problems: int = 0


def _refused(message: str, hint: str, *, file: str, line: int) -> Document:
    return Document(None, (errors.InvalidManifest(message, hint=hint, file=file, line=line),))


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """Documents as text, with the lines before each.

    YAML lets no scalar hold a line that begins with a marker (YAML 1.2.2, c-forbidden), so a cut
    there is never a cut through a document, and one broken document doesn't hide the next.
    """
    start, line = 0, 0
    for marker in _MARKER.finditer(text):
        chunk = text[start : marker.start()]
        yield line, chunk
        line += chunk.count("\n")
        start = marker.start() if marker[1] == "---" else marker.end()
    yield line, text[start:]


class _Broken(Exception):
    """Nothing can be made of a document."""

    def __init__(self, line: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.line, self.message, self.hint = line, message, hint


class _Composer:
    """Makes nodes of one document's events."""

    def __init__(self, text: str, *, file: str, line: int, budget: _Budget) -> None:
        self._text = text
        self._file = file
        self._offset = line + 1
        self._budget = budget
        self._problems: list[errors.InvalidManifest] = []

    def compose(self) -> Document | None:
        """The document; None where there is nothing but comments and directives."""
        if not self._text.startswith("---") and _PREAMBLE.fullmatch(self._text):
            return None
        try:
            root = self._root()
        except _Broken as reason:
            self._refuse(reason.line, reason.message, reason.hint)
            return Document(None, tuple(self._problems))
        except yaml.MarkedYAMLError as error:
            self._refuse(*self._syntax(error))
            return Document(None, tuple(self._problems))
        if is_empty(root) and not self._problems:
            return None
        return Document(root, tuple(self._problems))

    def _root(self) -> Node:
        unreadable = _UNREADABLE.search(self._text)
        if unreadable:
            line = self._offset + self._text.count("\n", 0, unreadable.start())
            raise _Broken(
                line,
                f"The character U+{ord(unreadable[0]):04X} can't stand in YAML.",
                "Remove it, or write it as an escape in double quotes.",
            )
        text = self._text
        if text.lstrip("- \t\r\n").startswith(("{", "[")):
            text = _SURROGATES.sub(_joined, text)
        self._events = yaml.parse(text, Loader=_Loader)
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                root = self._node(next(self._events), 0)
                self._nothing_more()
                return root
        return Scalar(self._offset, None, "")

    def _nothing_more(self) -> None:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise _Broken(self._line(event), "Something follows the end of the document.", "")

    def _refuse(self, line: int, message: str, hint: str = "") -> None:
        self._problems.append(
            errors.InvalidManifest(message, hint=hint, file=self._file, line=line)
        )

    def _line(self, event: Any) -> int:
        return int(event.start_mark.line) + self._offset

    def _node(self, event: Any, depth: int) -> Node:
        self._budget.nodes += 1
        line = self._line(event)
        if self._budget.nodes > MAX_NODES:
            raise _Broken(line, f"The file has more than {MAX_NODES} values.", "Split it.")
        if depth > MAX_DEPTH:
            raise _Broken(line, _TOO_DEEP, "")
        if isinstance(event, yaml.AliasEvent):
            message = f"The alias *{event.anchor} is not supported."
            self._refuse(line, message, "Write out what it stands for.")
            return Scalar(line, None, "", message)
        self._check_tag(event, line)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, line)
        if isinstance(event, yaml.SequenceStartEvent):
            items = self._until(yaml.SequenceEndEvent)
            return Sequence(line, tuple(self._node(item, depth + 1) for item in items))
        return self._mapping(line, depth)

    def _until(self, end: type[yaml.Event]) -> Iterator[Any]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield event

    def _check_tag(self, event: Any, line: int) -> None:
        known = (None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map")
        if event.tag not in (*known, "tag:yaml.org,2002:seq"):
            shown = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(line, f"The tag {shown} is not supported.", "Leave it out.")

    def _mapping(self, line: int, depth: int) -> Mapping:
        entries: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for event in self._until(yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            if not isinstance(key, Scalar) or key.problem or not key.text:
                self._refuse(key.line, "A key is not text.", "Write it as 'key: value'.")
            elif key.text in entries:
                self._refuse(
                    key.line,
                    f"{key.text} is given twice, first in line {lines[key.text]}.",
                    "Keep one of the two.",
                )
            else:
                entries[key.text], lines[key.text] = value, key.line
        return Mapping(line, entries, lines)

    def _scalar(self, event: Any, line: int) -> Scalar:
        text: str = event.value
        if not text.isascii() and _HALVES.search(text):
            message = "A \\u escape is half a character."
            self._refuse(line, message, "Write the character itself.")
            return Scalar(line, None, "", message)
        if not event.implicit[0]:
            return Scalar(line, text, text)
        if text.startswith(_NUMERIC) and _OTHER_BASE.fullmatch(text):
            message = f"{text} is not taken for a number: YAML would read it in another base."
            quoted = f'Write it in quotes, "{text}"; a number without leading zeros.'
            if text.startswith("0") and len(text) <= 5:
                quoted = f'Write a mode in quotes, "{text}"; a number without leading zeros.'
            self._refuse(line, message, quoted)
            return Scalar(line, text, text, message)
        return Scalar(line, resolve(text), text)

    def _syntax(self, error: yaml.MarkedYAMLError) -> tuple[int, str, str]:
        mark = error.problem_mark or error.context_mark
        text = self._text.rstrip()
        if mark is not None and mark.index >= len(text):
            mark = error.context_mark or mark
        line = self._offset + min(mark.line if mark is not None else 0, text.count("\n"))
        said = f"{error.problem or error.context}"
        if mark is not None and self._at(mark) == "\t":
            said = "'\\t'"
        if "nesting depth" in said:  # libyaml has a bound of its own, far beyond ours
            return line, _TOO_DEEP, ""
        for part, message, hint in _SYNTAX:
            if part in said:
                return line, f"This is not YAML: {message}.", hint
        return line, f"This is not YAML: {said}.", ""

    def _at(self, mark: Any) -> str:
        lines = self._text.split("\n", mark.line + 1)
        shown = lines[mark.line] if mark.line < len(lines) else ""
        return shown[mark.column : mark.column + 1]


def _joined(match: re.Match[str]) -> str:
    """A JSON pair of surrogates as the character that it stands for (RFC 8259, section 7)."""
    high, low = int(match[2], 16), int(match[3], 16)
    return match[1] + chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


def resolve(text: str) -> str | int | float | bool | None:
    """What a plain scalar stands for. Times are text, and so are numbers to the base 60."""
    if text in _NULLS:
        return None
    if text in _TRUES or text in _FALSES:
        return text in _TRUES
    if not text.startswith(_NUMERIC):
        return text
    if _DECIMAL.fullmatch(text):
        return int(text.replace("_", ""))
    if _HEX.fullmatch(text):
        return int(text.replace("_", ""), 16)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if _NO_FINITE.fullmatch(text):
        return math.nan if "n" in text.lower()[:2] else math.inf
    return text


def is_plain_text(text: str) -> bool:
    """Whether text, written without quotes, is read as the same text again."""
    return resolve(text) == text and not _OTHER_BASE.fullmatch(text)
