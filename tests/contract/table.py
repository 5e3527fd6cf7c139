"""The contract's table: what became of each operation, by pool type.

It stands in ``docs/limitations.md`` between two marks. A run of the suite in the lab prints the
table that it saw, and fails where the page says something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "limitations.md"
BEGIN, END = "<!-- contract table -->", "<!-- end of contract table -->"
OPERATIONS = (
    "build", "adopt", "refresh", "create", "grow", "shrink", "wipe", "upload", "download", "clone",
    "delete volume", "stop", "undefine", "delete", "apply twice", "kill -9", "foreign data",
    "full pool", "unreachable", "lost store",
)  # fmt: skip
"""Rows; a test says with its mark ``operation`` which of them it is about."""

WORDS = {"passed": "yes", "refused": "refused", "skipped": "–"}
_RANK = ("skipped", "refused", "passed", "failed")

Outcomes = dict[tuple[str, str], str]
"""The outcome by pool type and operation."""


def merge(outcomes: Outcomes, type: str, operation: str, outcome: str) -> None:
    """Take a test's outcome in: a failure wins over all, and what was done over what was not."""
    assert operation in OPERATIONS, f"{operation} is no row of the contract's table"
    before = outcomes.get((type, operation), "skipped")
    outcomes[type, operation] = max(before, outcome, key=_RANK.index)


def render(outcomes: Outcomes) -> list[str]:
    """The table in Markdown, a column for each type that was tried."""
    types = sorted({type for type, _ in outcomes})
    cells = {key: WORDS.get(outcome, outcome) for key, outcome in outcomes.items()}
    rows = [["operation", *types]]
    rows += [[name, *(cells.get((type, name), "–") for type in types)] for name in OPERATIONS]
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
        if outcome != "failed" and seen != told:
            yield f"{operation} of {type}: seen {seen}, {PAGE.name} says {told}"
