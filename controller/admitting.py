"""Whether something may be done to a volume's contents now.

What stands in the way either goes by itself, and is waited for, or has to be seen to by somebody.
To wait for a virtual machine to let go of its disk, and to wipe it in that moment, would surprise
whoever asked for it days ago: who uses a volume is therefore no reason to wait but one to refuse.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from backends import errors
from backends.base import Backend, Operation, Pool, Volume, VolumeFacts
from controller.examining import Examination, Examiner, PoolExamination
from controller.jobs import Jobs, busy
from controller.resources import AnyResource, Key


class Command(enum.StrEnum):
    """What can be done to a volume's contents."""

    WIPE = "Wipe"
    UPLOAD = "Upload"
    DOWNLOAD = "Download"

    @property
    def writes(self) -> bool:
        return self is not Command.DOWNLOAD


_NEEDS = {
    Command.WIPE: Operation.WIPE_VOLUME,
    Command.UPLOAD: Operation.UPLOAD,
    Command.DOWNLOAD: Operation.DOWNLOAD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A volume that may be worked on.

    :param place: where it is, for people.
    """

    resource: AnyResource
    pool: Pool
    volume: Volume
    facts: VolumeFacts
    backend: Backend

    @property
    def place(self) -> str:
        return f"{self.resource.key} ({self.facts.path})"


class Waits(Exception):
    """What has to be waited for, in words."""


def admit(
    examiner: Examiner, jobs: Jobs, found: PoolExamination, key: Key, command: Command
) -> Target:
    """The volume, where the command may be carried out on it now.

    :param found: its pool and all volumes in it, as just examined.
    :raises Waits: something is in the way that goes by itself.
    :raises errors.StorageError: it may not.
    """
    examined = next((item for item in found.volumes if item.resource.key == key), None)
    if examined is None:
        raise Waits(f"{key} is not declared on this node.")
    if examined.suspended:
        raise Waits(f"{key} or its pool is suspended.")
    if not examiner.serves(found):
        raise Waits(f"Pool {found.name!r} is not running.")
    _wait_for_jobs(jobs, key, command)
    target = _target(found, examined, command)
    if command.writes:
        _refuse_users(target, examined)
    return target


def _wait_for_jobs(jobs: Jobs, key: Key, command: Command) -> None:
    job = jobs.on(key) or (jobs.reading(key) if command.writes else None)
    if job is not None:
        raise Waits(str(busy(job)))


def _target(found: PoolExamination, examined: Examination, command: Command) -> Target:
    key, plan, volume = examined.resource.key, examined.plan, examined.volume
    if examined.resource.deleting:
        raise errors.Conflict(f"{key} is being deleted.")
    for refusal in plan.refusals:
        # Both are the way out where something else was written over an image.
        if not (command.writes and isinstance(refusal, errors.FormatChanged)):
            raise refusal if refusal.terminal else Waits(str(refusal))
    if plan.actions:
        raise Waits(f"{plan.actions[0].verb} goes first: {plan.actions[0].reason}")
    if volume is None or found.facts is None or found.pool is None or found.backend is None:
        raise Waits(f"{key} is not there yet.")
    facts = found.facts.volumes.get(volume.name)
    if facts is None:
        raise Waits(f"{key} is not there yet.")
    if _NEEDS[command] not in found.pool.type.operations:
        raise errors.Unsupported(
            f"{command} of volumes in pools of type {found.pool.type.name} is not to be had."
        )
    if command.writes and (facts.mark is None or facts.mark.resource != str(key)):
        raise errors.OwnedByOther(
            f"{facts.path} does not carry the mark of {key}.", hint="It is not this volume's."
        )
    return Target(
        resource=examined.resource,
        pool=found.pool,
        volume=volume,
        facts=facts,
        backend=found.backend,
    )


def _refuse_users(target: Target, examined: Examination) -> None:
    if examined.dependents:
        raise errors.InUse(
            f"{target.place} is what others stand on: {', '.join(examined.dependents)}.",
            hint="Their contents would be lost with it; delete or rebase them first.",
        )
    users = target.backend.users(target.pool, target.volume)
    if users:
        raise errors.InUse(
            f"{target.place} is in use: {'; '.join(users)}.", hint="Stop what uses it."
        )
