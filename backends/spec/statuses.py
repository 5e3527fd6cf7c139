"""What every status has: conditions, drift, progress."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backends.schema import Model, Quantity, Text


class Condition(Model):
    """One aspect of a resource's state, as in the Kubernetes API conventions."""

    type: Annotated[str, Field(max_length=316)] = Field(description="Which aspect.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[str, Field(max_length=1024)] = Field(
        description="Why, in one CamelCase word."
    )
    message: Annotated[str, Field(max_length=32768)] = Field("", description="Why, for people.")
    observed_generation: int = Field(0, description="Generation of the spec that this is about.")
    last_transition_time: Annotated[str, Field(max_length=32)] = Field(
        description="When status last changed."
    )


Conditions = Annotated[tuple[Condition, ...], Field(max_length=32)]


class Drift(Model):
    """A field whose observed value is not the desired one."""

    field: Text = Field(description="Path of the field below spec.")
    desired: Text = Field(description="What is declared.")
    observed: Text = Field(description="What is there.")


class Progress(Model):
    """How far a long operation has come."""

    operation: Text = Field(description="What is being done.")
    percent: int = Field(ge=0, le=100, description="Part done.")
    bytes_done: Quantity | None = Field(None, description="Bytes done.")
    bytes_total: Quantity | None = Field(None, description="Bytes in all.")


class StatusBase(Model):
    """What every status has."""

    observed_generation: int = Field(
        -1, description="Generation of the spec that this status is about; -1: not looked at yet."
    )
    conditions: Conditions = Field((), description="State by aspect; Ready sums it up.")
    last_handled_request: Text | None = Field(
        None, description="The poolkeeper.dev/requested-at annotation last acted on."
    )
    drift: tuple[Drift, ...] = Field(
        (), max_length=64, description="Fields that differ from what is declared."
    )
