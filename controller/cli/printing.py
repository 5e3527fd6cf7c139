"""Where words go: data to standard output, messages to standard error."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TextIO

from backends import errors

_COLOURS: Mapping[str, str] = {
    "red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2",
}  # fmt: skip
"""SGR parameters (ECMA-48)."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def colourful(stream: TextIO) -> bool:
    """Whether to colour what goes there (no-color.org: any non-empty NO_COLOR says no)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def painted(text: str, colour: str, stream: TextIO) -> str:
    """The text in a colour, where the stream takes colours."""
    if not colour or not colourful(stream):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def clean(text: str) -> str:
    """Text that can't command a terminal, whatever a guest or a file name put into it."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The same on one line."""
    return clean(text).replace("\n", " ").replace("\t", " ")


def as_word(value: object) -> str:
    """A value as a manifest writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def put(text: str) -> None:
    """Data: a line, or lines, to standard output."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def say(text: str, colour: str = "") -> None:
    """A message: a line to standard error."""
    sys.stderr.write(f"{painted(one_line(text), colour, sys.stderr)}\n")
    sys.stderr.flush()


def report(error: errors.StorageError, *, about: str = "") -> None:
    """One error on a line of its own: ``file:line: message hint``.

    :param about: what it befell, where the message does not begin with a place.
    """
    prefix = f"{about}: " if about else ""
    say(f"{prefix}{error}", "red")


def report_all(problems: Iterable[errors.StorageError]) -> int:
    """Report each; how many there were."""
    count = 0
    for problem in problems:
        report(problem)
        count += 1
    return count
