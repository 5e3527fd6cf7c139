"""A VolumeOperation: something that is done once to a volume."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backends.schema import Model, ObjectName, Quantity, Rule, Text, TransitionRule, immutable
from backends.spec.common import ResourceRef
from backends.spec.statuses import Progress, StatusBase
from backends.spec.volumes import Wipe


class Transfer(Model):
    """Which bytes an upload or download moves."""

    offset: Quantity = Field(0, description="First byte.")
    length: Quantity | None = Field(None, description="How many; to the end if left out.")
    sparse: bool = Field(True, description="Neither send nor store holes.")


class OperationSpec(Model):
    """A command on a volume, carried out once."""

    transitions = (
        *(
            immutable(name, message="an operation can't be changed; make a new one")
            for name in ("volumeRef", "operation", "wipe", "transfer", "ttlSecondsAfterFinished")
        ),
        TransitionRule(
            cel="!has(oldSelf.nodeName) || (has(self.nodeName) "
            "&& self.nodeName == oldSelf.nodeName)",
            message="nodeName can't be changed once it is set",
            holds=lambda old, new: old.node_name is None or new.node_name == old.node_name,
        ),
        TransitionRule(
            cel="!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)",
            message="what was cancelled stays so; make a new operation",
            holds=lambda old, new: not old.cancel or new.cancel,
        ),
    )
    rules = (
        Rule(
            cel="!has(self.wipe) || self.operation == 'Wipe'",
            message="wipe is only for operation Wipe",
            holds=lambda self: self.wipe is None or self.operation == "Wipe",
        ),
        Rule(
            cel="!has(self.transfer) || self.operation != 'Wipe'",
            message="transfer is only for operations Upload and Download",
            holds=lambda self: self.transfer is None or self.operation != "Wipe",
        ),
    )

    volume_ref: ResourceRef = Field(description="The StorageVolume to work on.")
    node_name: ObjectName | None = Field(
        None, description="Node of the volume; filled in when it is known."
    )
    operation: Literal["Wipe", "Upload", "Download"] = Field(description="What to do.")
    wipe: Wipe | None = Field(None, description="For Wipe: the patterns.")
    transfer: Transfer | None = Field(None, description="For Upload and Download: which bytes.")
    cancel: bool = Field(
        False,
        description="True: stop it and keep the record. Deleting the operation stops it, too.",
    )
    ttl_seconds_after_finished: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Seconds after which a finished operation is removed."
    )


class OperationStatus(StatusBase):
    """What became of an operation."""

    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Cancelled"] | None = Field(
        None, description="How far the operation is."
    )
    message: Text | None = Field(None, description="What happened, for people.")
    progress: Progress | None = Field(None, description="How far a running operation has come.")
    start_time: Annotated[str | None, Field(max_length=32)] = Field(
        None, description="When it was begun."
    )
    completion_time: Annotated[str | None, Field(max_length=32)] = Field(
        None, description="When it ended."
    )
