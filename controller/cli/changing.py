"""``volume resize``, ``clone`` and ``wipe``: what is written to the store and then carried out."""

from __future__ import annotations

import secrets
from pathlib import PurePath
from typing import Any

import typer

from backends import errors, sizes
from backends.schema import Model
from backends.spec import (
    CloneSource,
    OperationSpec,
    Resize,
    ResourceRef,
    VolumeRef,
    VolumeSource,
    VolumeSpec,
    Wipe,
)
from controller.cli.applying import Written, foreground, see_to
from controller.cli.objects import missing, reference
from controller.cli.printing import put, say
from controller.cli.session import Session
from controller.cli.working import Deadline, pool_of
from controller.locking import AgentLock
from controller.resources import AnyResource, Declared, Key, Metadata, kinds
from controller.store import Store
from controller.worlds import volume_name

RECORD_SECONDS = 3600
"""How long the record of a wipe is kept after its end."""


def volume_key(name: str, namespace: str) -> Key:
    return Key("StorageVolume", namespace, name)


def resize(
    session: Session,
    name: str,
    size: str,
    *,
    namespace: str,
    allow_shrink: bool,
    allow_data_loss: bool,
    allocate: bool,
    timeout: float,
) -> int:
    """Change the declared capacity, and wait for it."""
    with session.store() as store:
        volume = _volume(store, volume_key(name, namespace))
        current = volume.spec.capacity or volume.status.capacity or 0
        capacity = _new_size(size, current)
        if capacity < current and not allow_shrink:
            raise errors.ShrinkNotAllowed(
                f"{volume.key} has {sizes.format_quantity(current)}; "
                f"{sizes.format_quantity(capacity)} would cut off its end.",
                hint="Give --allow-shrink if what stands there may go.",
            )
        _warn_of_source(store, volume)
        how = Resize(allow_shrink=allow_shrink, allow_data_loss=allow_data_loss, allocate=allocate)
        code = _respecify(session, store, volume, Deadline(timeout), capacity=capacity, resize=how)
        if code == 0 and how != volume.spec.resize:
            # What was allowed once is not allowed for good.
            changed = store.get(volume.key) or volume
            kept = changed.spec.model_copy(update={"resize": volume.spec.resize})
            store.apply(_redeclared(changed, kept))
        return code


def _volume(store: Store, key: Key) -> AnyResource:
    """The volume that is to be changed.

    :raises errors.NotFound: there is none.
    """
    found = store.get(key)
    if found is None:
        raise missing(key)
    return found


def _new_size(text: str, current: int) -> int:
    """What a size, or a change of it with a sign, comes to; never below nothing."""
    sign, number = (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
    try:
        given = sizes.parse_quantity(number)
    except errors.StorageError as error:
        raise typer.BadParameter(str(error)) from None
    return {"": given, "+": current + given, "-": max(0, current - given)}[sign]


def _warn_of_source(store: Store, volume: AnyResource) -> None:
    source = store.source_of(volume.key)
    if source:
        say(
            f"{reference(volume.key)} is declared by {source} too. Change it there as well: as "
            "soon as that is applied again, its capacity counts.",
            "yellow",
        )


def _respecify(
    session: Session, store: Store, volume: AnyResource, deadline: Deadline, **changes: Any
) -> int:
    spec = volume.spec.model_copy(update=changes)
    applied = store.apply(_redeclared(volume, spec))
    put(f"{reference(volume.key)} {applied.outcome}")
    unchanged = [volume.key] if applied.outcome == "unchanged" else []
    written = Written(keys=[volume.key], pools={pool_of(volume)}, unchanged=unchanged)
    return see_to(session, store, written, wait=True, deadline=deadline)


def _redeclared(resource: AnyResource, spec: Model) -> Declared:
    """A resource as it is declared, with another spec."""
    metadata = resource.metadata
    kept = Metadata(
        name=metadata.name,
        namespace=metadata.namespace,
        labels=metadata.labels,
        annotations=metadata.annotations,
    )
    return Declared(kind=resource.kind, metadata=kept, spec=spec)


def clone(
    session: Session,
    source: str,
    new: str,
    *,
    pool: str,
    volume_name: str,
    reflink: str,
    namespace: str,
    wait: bool,
    timeout: float,
) -> int:
    """Declare a volume with the contents of another."""
    if reflink not in ("Auto", "Always", "Never"):
        raise typer.BadParameter("--reflink is Auto, Always or Never.")
    with session.store() as store:
        found = _volume(store, volume_key(source, namespace))
        if store.get(volume_key(new, namespace)) is not None:
            raise errors.AlreadyExists(
                f"There is a StorageVolume {new!r}.", hint="Use another name."
            )
        taken = found.spec.pool_ref
        chosen = ResourceRef(name=pool) if pool else taken
        spec = VolumeSpec(
            pool_ref=chosen,
            volume_name=volume_name or _name_of_clone(found, new),
            format=found.spec.format,
            permissions=found.spec.permissions,
            source=VolumeSource(
                clone=CloneSource(volume_ref=VolumeRef(name=source), reflink=reflink)
            ),
        )
        key = volume_key(new, namespace)
        declared = Declared(
            kind=kinds()[key.kind], metadata=Metadata(name=new, namespace=namespace), spec=spec
        )
        applied = store.apply(declared)
        put(f"{reference(key)} {applied.outcome}")
        written = Written(keys=[key], pools={pool_of(applied.resource)})
        return see_to(session, store, written, wait=wait, deadline=Deadline(timeout))


def _name_of_clone(source: AnyResource, new: str) -> str:
    """The new name with the suffix of the source's: ``web-2.qcow2`` for ``web-1.qcow2``."""
    return new + PurePath(volume_name(source)).suffix


def wipe(
    session: Session, name: str, *, algorithm: str, namespace: str, wait: bool, timeout: float
) -> int:
    """Declare a wipe, and wait for its end."""
    with session.store() as store:
        volume = _volume(store, volume_key(name, namespace))
        spec = OperationSpec(
            volume_ref=ResourceRef(name=name),
            operation="Wipe",
            wipe=Wipe(algorithm=algorithm),
            ttl_seconds_after_finished=RECORD_SECONDS,
        )
        metadata = Metadata(name=f"{name[:240]}-wipe-{secrets.token_hex(3)}", namespace=namespace)
        declared = Declared(kind=kinds()["VolumeOperation"], metadata=metadata, spec=spec)
        applied = store.apply(declared)
        put(f"{reference(declared.key)} created")
        written = Written(keys=[declared.key], pools={pool_of(volume)})
        try:
            return see_to(session, store, written, wait=wait, deadline=Deadline(timeout))
        except KeyboardInterrupt:
            _cancel(session, store, applied.resource, pool_of(volume))
            raise


def _cancel(session: Session, store: Store, operation: AnyResource, pool: str) -> None:
    """End what nobody waits for any more; where an agent carries it out, have it do so."""
    current = store.get(operation.key)
    if current is None:
        return
    spec = current.spec.model_copy(update={"cancel": True})
    store.apply(_redeclared(current, spec))
    say(f"{reference(operation.key)} is cancelled.")
    with AgentLock(session.state) as lock:
        if lock.try_acquire("command"):
            with foreground(session, store) as worker:
                worker.engine.reconcile(pool)
