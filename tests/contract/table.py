"""The contract's table: what became of each operation, by pool type.

It stands in ``docs/limitations.md`` between two marks, made from the capability tables of the pool
types (``python -m tests.contract.table``). Each run of the suite compares what it saw with it, and
the lab prints the table that it saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from backends.base import Operation, PoolType
from backends.registry import pool_types

PAGE = Path(__file__).parents[2] / "docs" / "limitations.md"
BEGIN, END = "<!-- contract table -->", "<!-- end of contract table -->"
PROMISES: Mapping[str, tuple[Operation | None, str]] = {
    "build": (Operation.BUILD, "skipped"),
    "adopt": (Operation.BUILD, "skipped"),
    "refresh": (None, ""),
    "create": (Operation.CREATE_VOLUME, "refused"),
    "grow": (Operation.GROW_VOLUME, "refused"),
    "shrink": (Operation.SHRINK_VOLUME, "skipped"),
    "wipe": (Operation.WIPE_VOLUME, "skipped"),
    "upload": (Operation.UPLOAD, "skipped"),
    "download": (Operation.DOWNLOAD, "skipped"),
    "clone": (Operation.CLONE_VOLUME, "skipped"),
    "delete volume": (Operation.DELETE_VOLUME, "skipped"),
    "stop": (None, ""),
    "undefine": (None, ""),
    "delete": (Operation.DELETE, "skipped"),
    "apply twice": (None, ""),
    "kill -9": (None, ""),
    "foreign data": (Operation.BUILD, "skipped"),
    "full pool": (Operation.CREATE_VOLUME, "skipped"),
    "unreachable": (None, ""),
    "lost store": (Operation.CREATE_VOLUME, "skipped"),
}
"""Rows: what a pool type has to promise for each, None for all types, and the outcome for a type
that does not. A test says with its mark ``operation`` which of them it is about."""

WORDS = {"passed": "yes", "refused": "refused", "skipped": "–"}
_RANK = ("skipped", "refused", "passed", "failed")

Outcomes = dict[tuple[str, str], str]
"""The outcome by pool type and operation."""


def merge(outcomes: Outcomes, type: str, operation: str, outcome: str) -> None:
    """Take a test's outcome in: a failure wins over all, and what was done over what was not."""
    assert operation in PROMISES, f"{operation} is no row of the contract's table"
    before = outcomes.get((type, operation), "skipped")
    outcomes[type, operation] = max(before, outcome, key=_RANK.index)


def promised() -> Outcomes:
    """The outcomes that the capability tables of all served pool types promise."""
    return {
        (kind.name, row): _promise(kind, *promise)
        for kind in pool_types().values()
        if kind.backend is not None
        for row, promise in PROMISES.items()
    }


def _promise(kind: PoolType, operation: Operation | None, otherwise: str) -> str:
    return "passed" if operation is None or operation in kind.operations else otherwise


def render(outcomes: Outcomes) -> list[str]:
    """The table in Markdown, a column for each type that was tried."""
    types = list(dict.fromkeys(type for type, _ in outcomes))
    cells = {key: WORDS.get(outcome, outcome) for key, outcome in outcomes.items()}
    rows = [["operation", *types]]
    rows += [[name, *(cells.get((type, name), "–") for type in types)] for name in PROMISES]
    widths = [max(len(row[index]) for row in rows) for index in range(len(types) + 1)]
    rows.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]


def kept(text: str) -> dict[tuple[str, str], str]:
    """The cells of the table on a page, by pool type and operation."""
    lines = [line for line in text.partition(BEGIN)[2].partition(END)[0].splitlines() if line]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    if not table:
        return {}
    types, rows = table[0][1:], table[2:]
    return {(type, row[0]): cell for row in rows for type, cell in zip(types, row[1:], strict=True)}


def differences(outcomes: Outcomes, page: Mapping[tuple[str, str], str]) -> Iterable[str]:
    """Where a page says something else than was seen."""
    for (type, operation), outcome in sorted(outcomes.items()):
        seen, told = WORDS.get(outcome, outcome), page.get((type, operation), "nothing")
        if outcome not in ("failed", "skipped") and seen != told:
            yield f"{operation} of {type}: seen {seen}, {PAGE.name} says {told}"


def block() -> str:
    """The table for the page."""
    return "\n".join([BEGIN, *render(promised()), END])


def main() -> None:
    text = PAGE.read_text()
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    PAGE.write_text(text[:begin] + block() + text[end:])


if __name__ == "__main__":
    main()
