"""Operations: commands on volumes that are carried out once, and kept as a record.

An operation goes from Pending over Running to one of three ends, and never back from there. What
it came to is written on this host before it is told to the store, so that an end that could not be
told is told later, and nothing is done twice. One that was running when the agent was killed is
begun anew: a wipe from its first pass on, a transfer as soon as its data is sent again.

Pending waits for what goes by itself: the volume is not there yet, its pool does not run, other
work on the volume goes first. What does not go by itself ends the operation.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from backends import errors
from backends.base import Work
from backends.spec import OperationStatus, Progress, Wipe
from controller import contents, summarising
from controller.admitting import Command, Target, Waits, admit
from controller.examining import Examiner, PoolExamination
from controller.jobs import Job, Jobs, Task
from controller.resources import AnyResource, Key, now
from controller.store import EventType, ResourceStore
from controller.summarising import Aspect
from controller.worlds import World, volume_of

log = logging.getLogger(__name__)

Phase = Literal["Pending", "Running", "Succeeded", "Failed", "Cancelled"]
FINISHED = frozenset({"Succeeded", "Failed", "Cancelled"})

KIND = "VolumeOperation"

_OUTCOME = "outcome"
"""Where the node's memory of an operation has what it came to."""

_LONGEST_MESSAGE = 1000
"""Characters of a status's message, some less than its schema takes."""

_EVENTS: Mapping[str, EventType] = {"Succeeded": "Normal", "Failed": "Warning"}


class Operations:
    """Carries out operations in the passes of their volumes' pools. Safe for threads."""

    def __init__(self, store: ResourceStore, examiner: Examiner, jobs: Jobs) -> None:
        self._store = store
        self._examiner = examiner
        self._jobs = jobs

    def carry_on(self, world: World, found: PoolExamination) -> float | None:
        """See to the operations on volumes of a pool that was just examined, oldest first.

        :return: seconds until one wants to be looked at again without anything having changed.
        """
        waits = [self._see_to(operation, found) for operation in world.operations(found.name)]
        return min((item for item in waits if item is not None), default=None)

    def _see_to(self, operation: AnyResource, found: PoolExamination) -> float | None:
        if not self._examiner.mine(operation) or operation.deleting:
            return None
        if operation.status.phase in FINISHED:
            return self._expire(operation)
        outcome = self._store.runtime(operation.metadata.uid).get(_OUTCOME)
        if outcome is not None:
            self._tell_end(operation, outcome)
            return self._expire_after(operation)
        job = self._jobs.of(operation.key)
        if job is not None:
            if operation.spec.cancel:
                job.cancel(f"{operation.key} is cancelled")
            elif _suspended(found, volume_of(operation)):
                job.cancel("its volume is suspended")
        elif operation.spec.cancel:
            self.end(operation, "Cancelled", "It was cancelled before it was done.")
        elif operation.spec.operation == Command.WIPE:
            self._wipe(operation, found)
        else:
            self.wait_for_data(operation)
        return None

    def _wipe(self, operation: AnyResource, found: PoolExamination) -> None:
        """Begin the wipe, or say why not yet."""
        try:
            target = admit(self._examiner, self._jobs, found, volume_of(operation), Command.WIPE)
            algorithm = (operation.spec.wipe or Wipe()).algorithm
            began = self.start(
                operation,
                target,
                found.name,
                lambda work: contents.wipe(target, algorithm, work),
                done=f"Wiped {target.place} ({algorithm}).",
            )
        except Waits as wait:
            self.pend(operation, str(wait))
        except errors.StorageError as error:
            self.end(operation, "Failed", str(error), reason=error.reason)
        else:
            if began is None:
                self.pend(operation, "It waits for other work to be done.")

    def start(
        self,
        operation: AnyResource,
        target: Target,
        pool: str,
        run: Callable[[Work], None],
        *,
        done: str,
        exclusive: bool = True,
    ) -> Job | None:
        """Begin a job that carries the operation out, and records what it came to.

        :param done: what the status says where it went well.
        :param exclusive: whether nothing else may work on the volume meanwhile.
        :return: None where there is no room.
        :raises errors.StorageError: the job can't be begun.
        """
        command = str(operation.spec.operation)
        task = Task(
            owner=operation.key,
            uid=operation.metadata.uid,
            volume=target.resource.key,
            pool=pool,
            verb=command,
            target=target.place,
            exclusive=exclusive,
        )

        def carry_out(work: Work) -> None:
            self._run(operation, command, target, run, work, done=done)

        if self._jobs.room(pool):
            self._write(
                operation,
                phase="Running",
                message=f"{command} of {target.place} is under way.",
                start_time=operation.status.start_time or now(),
            )
        return self._jobs.start(task, carry_out)

    def _run(
        self,
        operation: AnyResource,
        command: str,
        target: Target,
        run: Callable[[Work], None],
        work: Work,
        *,
        done: str,
    ) -> None:
        key, uid = operation.key, operation.metadata.uid
        step = self._store.begin_step(key, uid, command, target.place)
        problem: errors.StorageError | None = None
        try:
            run(work)
        except errors.StorageError as error:
            problem = error
        except OSError as error:
            problem = errors.from_os_error(error, doing=f"{command} {target.place}")
        except Exception as error:
            # A mistake must end the operation: it would be begun anew for ever.
            log.exception("%s on %s broke off", command, target.place)
            problem = errors.SystemFailure(f"{command} of {target.place} broke off: {error}.")
        self._store.end_step(step, str(problem) if problem else "")
        current = self._store.get(key)
        if current is None or current.metadata.uid != uid:
            self.tell_volume(target, command, "its operation was deleted")
        elif isinstance(problem, errors.Interrupted):
            self.tell_volume(target, command, str(problem))
        elif problem is None:
            self.end(current, "Succeeded", done)
            self.tell_volume(target, command, "")
        elif isinstance(problem, errors.Cancelled) and current.spec.cancel:
            self.end(current, "Cancelled", f"It was cancelled. {_what_is_left(command)}")
            self.tell_volume(target, command, "it was cancelled")
        elif not isinstance(problem, errors.Cancelled):
            self.end(current, "Failed", str(problem), reason=problem.reason)
            self.tell_volume(target, command, str(problem))
        if problem is not None:
            raise problem

    def tell_volume(self, target: Target, command: str, why: str) -> None:
        """An event on the volume: the command was carried out, or why it broke off."""
        volume = target.resource
        if why:
            reason = f"{command}Broken"
            message = f"{command} of {target.facts.path} broke off: {why}"
        else:
            reason, message = f"{command}Done", f"{command} of {target.facts.path} is done."
        self._store.record_event(
            volume.key, volume.metadata.uid, "Warning" if why else "Normal", reason, message
        )

    def wait_for_data(self, operation: AnyResource) -> None:
        """Say of a transfer that it waits for its data to be sent, or fetched."""
        key = operation.key
        verb = "PUT" if operation.spec.operation == Command.UPLOAD else "GET"
        path = f"/v1/namespaces/{key.namespace}/volumes/{operation.spec.volume_ref.name}/data"
        told = f"It waits for {verb} {path}?operation={key.name}."
        if operation.status.phase == "Running":
            told = f"It was broken off. {told}"
        elif (operation.status.message or "").endswith(told):
            return  # that it was broken off is as good
        self.pend(operation, told)

    def pend(self, operation: AnyResource, why: str) -> None:
        """Record what the operation waits for."""
        self._write(operation, phase="Pending", message=why)

    def end(self, operation: AnyResource, phase: Phase, message: str, *, reason: str = "") -> None:
        """Record what the operation came to: on this host first, then in the store."""
        outcome = {
            "phase": phase,
            "message": message[:_LONGEST_MESSAGE],
            "reason": reason or phase,
            "completion_time": now(),
        }
        self._store.set_runtime(operation.metadata.uid, {_OUTCOME: outcome})
        self._tell_end(operation, outcome)

    def _tell_end(self, operation: AnyResource, outcome: Mapping[str, Any]) -> None:
        current = self._store.get(operation.key) or operation
        self._write(current, **outcome)
        self._store.record_event(
            operation.key,
            operation.metadata.uid,
            _EVENTS.get(outcome["phase"], "Normal"),
            outcome["reason"],
            outcome["message"],
        )

    def note_progress(self, job: Job) -> None:
        """Show a job's progress in the status of the operation that it carries out."""
        operation = self._store.get(job.task.owner)
        if operation is not None and operation.metadata.uid == job.task.uid:
            progress = summarising.progress_of(job)
            status = operation.status.model_copy(update={"progress": progress})
            self._store.write_status(operation.key, status, uid=operation.metadata.uid)

    def _write(
        self,
        operation: AnyResource,
        *,
        phase: Phase,
        message: str,
        reason: str = "",
        start_time: str | None = None,
        completion_time: str | None = None,
    ) -> None:
        status = status_of(
            operation,
            phase=phase,
            message=message,
            reason=reason,
            start_time=start_time,
            completion_time=completion_time,
        )
        self._store.write_status(operation.key, status, uid=operation.metadata.uid)

    def _expire(self, operation: AnyResource) -> float | None:
        """Remove what was to be kept for a while; the seconds that are left of it."""
        left = self._expire_after(operation)
        if left is not None and left <= 0:
            self._store.request_deletion(operation.key)
            return None
        return left

    def _expire_after(self, operation: AnyResource) -> float | None:
        ttl = operation.spec.ttl_seconds_after_finished
        if ttl is None:
            return None
        ended = operation.status.completion_time or now()
        since = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(ended)
        return float(ttl) - since.total_seconds()


def status_of(
    operation: AnyResource,
    *,
    phase: Phase,
    message: str,
    reason: str = "",
    start_time: str | None = None,
    completion_time: str | None = None,
) -> OperationStatus:
    """The status of an operation that is in a phase now.

    :param reason: of its conditions; the phase if left out.
    """
    former: OperationStatus = operation.status
    clipped = message[:_LONGEST_MESSAGE]
    generation = operation.metadata.generation
    return OperationStatus(
        observed_generation=generation,
        conditions=summarising.conditions(
            former.conditions,
            _aspects(phase, reason or phase, clipped),
            generation=generation,
            now=now(),
        ),
        phase=phase,
        message=clipped,
        progress=_progress(former.progress, phase),
        start_time=start_time or former.start_time,
        completion_time=completion_time,
    )


def _suspended(found: PoolExamination, volume: Key) -> bool:
    return any(item.suspended for item in found.volumes if item.resource.key == volume)


def _what_is_left(command: str) -> str:
    if command == Command.DOWNLOAD:
        return "The volume is as it was."
    return "What was written until then stays written."


def _progress(former: Progress | None, phase: Phase) -> Progress | None:
    if former is None or phase != "Succeeded":
        return former
    return former.model_copy(update={"percent": 100, "bytes_done": former.bytes_total})


def _aspects(phase: Phase, reason: str, message: str) -> list[Aspect]:
    """Ready and Complete say that it is done; Failed, as a Job has it, that it never will be."""
    done: summarising.Truth = "True" if phase == "Succeeded" else "False"
    aspects = [
        Aspect(type=type, status=done, reason=reason, message=message)
        for type in ("Ready", "Complete")
    ]
    if phase in ("Pending", "Running"):
        aspects.append(Aspect(type="Reconciling", status="True", reason=reason, message=message))
    elif phase != "Succeeded":
        aspects += [
            Aspect(type=type, status="True", reason=reason, message=message)
            for type in ("Failed", "Stalled")
        ]
    return aspects
