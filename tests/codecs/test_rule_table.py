"""What the reader of manifests says to the rule table. tests/cluster asks an API server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from backends.registry import pool_types
from backends.schema import Model, violations
from controller.codecs import manifests
from controller.resources import Declared, Kind, kinds
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


def rules_of(model: type[Model]) -> Iterator[str]:
    """Messages of all rules of a model and of the models in it."""
    yield from (rule.message for rule in (*model.rules, *model.transitions))
    for field in model.model_fields.values():
        yield from rules_in(field.annotation)


def rules_in(annotation: Any) -> Iterator[str]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield from rules_of(annotation)
    for item in getattr(annotation, "__args__", ()):
        yield from rules_in(item)


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: str(kind.name))
def test_every_rule_is_broken_by_some_manifest_of_the_table(kind: Kind) -> None:
    words = [word for item in (*rule_table.CASES, *rule_table.CHANGES) for word in item.refused]
    untried = [
        message for message in rules_of(kind.spec) if not any(word in message for word in words)
    ]
    assert not untried


def test_the_table_has_a_good_pool_of_every_type() -> None:
    good = [declared(case.manifest).spec for case in rule_table.GOOD_POOLS]
    assert {getattr(spec, "type", None) for spec in good} == set(pool_types())
