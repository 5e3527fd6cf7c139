"""What the reader of manifests says to the rule table. tests/cluster asks an API server."""

from __future__ import annotations

import pytest

from backends.registry import pool_types
from backends.schema import violations
from controller.codecs import manifests
from controller.resources import Declared
from tests import rule_table


def declared(text: str) -> Declared:
    loaded = manifests.load(text)
    assert not loaded.problems, [str(problem) for problem in loaded.problems]
    (found,) = loaded.declared
    return found


@pytest.mark.parametrize("case", rule_table.CASES, ids=lambda case: str(case.name))
def test_the_reader_accepts_and_refuses_as_the_table_says(case: rule_table.Case) -> None:
    loaded = manifests.load(case.manifest)
    said = " ".join(map(str, loaded.problems))
    assert bool(said) is bool(case.refused), said
    assert len(loaded.declared) == (0 if case.refused else 1)
    assert all(word in said for word in case.refused), said


@pytest.mark.parametrize("change", rule_table.CHANGES, ids=lambda change: str(change.name))
def test_changes_are_accepted_and_refused_as_the_table_says(change: rule_table.Change) -> None:
    old, new = declared(change.before), declared(change.after)
    said = " ".join(found.message for found in violations(new.spec, old.spec))
    assert bool(said) is bool(change.refused), said
    assert all(word in said for word in change.refused), said


def test_the_table_has_a_good_pool_of_every_type() -> None:
    good = [declared(case.manifest).spec for case in rule_table.GOOD_POOLS]
    assert {getattr(spec, "type", None) for spec in good} == set(pool_types())
