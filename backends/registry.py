"""All pool types, found by looking: a module of this package with a ``POOL_TYPE`` is one."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

import backends
from backends import errors
from backends.base import PoolType, TargetUse
from backends.schema import Rule, Xml
from backends.spec import PoolSpecBase


@cache
def pool_types() -> dict[str, PoolType]:
    """Pool types by name, in libvirt's order."""
    found = []
    for module in pkgutil.iter_modules(backends.__path__):
        if module.ispkg:
            continue
        candidate = getattr(importlib.import_module(f"backends.{module.name}"), "POOL_TYPE", None)
        if isinstance(candidate, PoolType):
            found.append(candidate)
    return {item.name: item for item in sorted(found, key=lambda item: (item.order, item.name))}


def pool_type(name: str) -> PoolType:
    """The pool type of that name.

    :raises errors.UnsupportedConfiguration: where there is none.
    """
    try:
        return pool_types()[name]
    except KeyError:
        raise errors.UnsupportedConfiguration(
            f"There is no pool type {name!r}.", hint=f"Use one of {', '.join(pool_types())}."
        ) from None


@cache
def pool_spec() -> type[PoolSpecBase]:
    """The whole ``StoragePoolSpec``: what every pool has, and a member for each pool type."""
    types = pool_types()
    fields: dict[str, Any] = {
        "type": (
            Annotated[Literal[tuple(types)], Xml("@type")],
            Field(description="Pool type; the member of that name says more."),
        ),
    }
    for item in types.values():
        fields[item.attribute] = (
            Annotated[item.source | None, Xml(".")],
            Field(None, alias=item.member, description=item.description),
        )
    model = create_model(
        "StoragePoolSpec", __base__=PoolSpecBase, __doc__="A pool as it is declared.", **fields
    )
    model.rules = (*PoolSpecBase.rules, *(_member_rules(types)), *_target_rules(types))
    return model


def _member_rules(types: dict[str, PoolType]) -> list[Rule]:
    rules = [_member_only(item) for item in types.values()]
    return rules + [_member_needed(item) for item in types.values() if item.member_required]


def _member_only(item: PoolType) -> Rule:
    def holds(spec: Any) -> bool:
        return getattr(spec, item.attribute) is None or spec.type == item.name

    return Rule(
        cel=f"!has(self.{item.member}) || self.type == '{item.name}'",
        message=f"{item.member} is only for type {item.name}",
        holds=holds,
    )


def _member_needed(item: PoolType) -> Rule:
    def holds(spec: Any) -> bool:
        return spec.type != item.name or getattr(spec, item.attribute) is not None

    return Rule(
        cel=f"self.type != '{item.name}' || has(self.{item.member})",
        message=f"type {item.name} needs {item.member}",
        holds=holds,
    )


def _target_rules(types: dict[str, PoolType]) -> list[Rule]:
    required = [item.name for item in types.values() if item.target is TargetUse.REQUIRED]
    without = [item.name for item in types.values() if item.target is TargetUse.NONE]
    return [
        Rule(
            cel=f"!(self.type in {required}) || (has(self.target) && has(self.target.path))",
            message="target.path is required for this pool type",
            holds=lambda self: (
                self.type not in required
                or (self.target is not None and self.target.path is not None)
            ),
        ),
        Rule(
            cel=f"!(self.type in {without}) || !has(self.target)",
            message="this pool type has no target",
            holds=lambda self: self.type not in without or self.target is None,
        ),
    ]
