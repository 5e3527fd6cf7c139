"""What specs of several kinds have: adoption, permissions, references and selectors."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from backends.schema import (
    LABEL_KEY_PATTERN,
    Form,
    LabelKey,
    LabelValue,
    Mode,
    Model,
    ObjectName,
    Rule,
    Text,
    Uuid,
    Xml,
)


class Adoption(enum.StrEnum):
    NEVER = "Never"
    IF_MATCHES = "IfMatches"
    OBSERVE = "Observe"


class Permissions(Model):
    """Who may use a directory, file or device."""

    mode: Annotated[Mode | None, Xml("mode", Form.MODE)] = Field(
        None, description="Permission bits in octal, quoted."
    )
    owner: Annotated[int | None, Xml("owner", Form.ID)] = Field(
        None, ge=0, le=2**32 - 2, description="Numeric user id of the owner."
    )
    group: Annotated[int | None, Xml("group", Form.ID)] = Field(
        None, ge=0, le=2**32 - 2, description="Numeric group id."
    )
    label: Annotated[Text | None, Xml("label")] = Field(None, description="SELinux label.")


class SecretRef(Model):
    """Where a secret is kept. Its value never stands in a resource."""

    rules = (
        Rule(
            cel="(has(self.name) ? 1 : 0) + (has(self.uuid) ? 1 : 0) + (has(self.usage) ? 1 : 0) "
            "== 1",
            message="give exactly one of name, uuid and usage",
            holds=lambda self: (
                sum(value is not None for value in (self.name, self.uuid, self.usage)) == 1
            ),
        ),
    )

    name: ObjectName | None = Field(
        None, description="Name of a Secret, or of a file in the agent's secrets directory."
    )
    namespace: ObjectName | None = Field(
        None, description="Namespace of the Secret; only for cluster-scoped resources."
    )
    key: Text | None = Field(None, description="Key in the Secret; default `passphrase`.")
    uuid: Annotated[Uuid | None, Xml("@uuid")] = Field(None, description="libvirt secret, by uuid.")
    usage: Annotated[Text | None, Xml("@usage")] = Field(
        None, description="libvirt secret, by its usage string."
    )


class ResourceRef(Model):
    """A reference to another resource by name."""

    name: ObjectName = Field(description="Name of the resource.")


class VolumeRef(Model):
    """A reference to another volume."""

    name: ObjectName = Field(description="Name of the StorageVolume.")
    namespace: ObjectName | None = Field(
        None, description="Its namespace; the same as the referring resource's if left out."
    )


class LabelRequirement(Model):
    """One thing that labels have to be."""

    rules = (
        Rule(
            cel="(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
            message="operators In and NotIn need values, and the others take none",
            holds=lambda self: (self.operator in ("In", "NotIn")) == bool(self.values),
        ),
    )

    key: LabelKey = Field(description="Key of the label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How the label is looked at."
    )
    values: tuple[LabelValue, ...] = Field((), max_length=32, description="For In and NotIn.")

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels are so; NotIn holds where there is no such label, as in Kubernetes."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
        return self.key not in labels


class LabelSelector(Model):
    """Resources by their labels, as elsewhere in Kubernetes; all that is given has to hold."""

    rules = (
        Rule(
            cel="(has(self.matchLabels) && size(self.matchLabels) > 0) "
            "|| (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
            message="give matchLabels or matchExpressions",
            holds=lambda self: bool(self.match_labels or self.match_expressions),
        ),
        Rule(
            cel="!has(self.matchLabels) "
            f"|| self.matchLabels.all(key, key.matches('{LABEL_KEY_PATTERN}'))",
            message="matchLabels can't have the key: labels have no such keys",
            holds=lambda self: True,  # the keys' own type has the pattern
        ),
    )

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = Field(
        None, description="Labels by key, with their values."
    )
    match_expressions: tuple[LabelRequirement, ...] = Field(
        (), max_length=16, description="What else has to hold of the labels."
    )

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels are as the selector wants them."""
        wanted = (self.match_labels or {}).items()
        return wanted <= labels.items() and all(
            item.holds(labels) for item in self.match_expressions
        )
