"""A state directory, a store and an engine on the real file system, driven pass by pass."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from backends.base import BackendContext, NoSecrets, Secrets
from backends.host.marks import MarkStore
from controller.codecs import manifests
from controller.engine import Engine, Outcome
from controller.examining import PoolExamination
from controller.resources import API_VERSION, REQUESTED_AT, AnyResource, Key
from controller.store import FILE_NAME, Event, Store
from controller.summarising import condition
from tests.images import samples

NODE = "here"
BOOT = "boot-1"
MARKS = tuple(f"user.poolkeeper.{name}" for name in ("uid", "resource", "origin"))


class Keeper:
    """What a user and a host do to each other, without an agent in between."""

    def __init__(
        self, state: Path, *, boot: str = BOOT, node: str = NODE, secrets: Secrets | None = None
    ) -> None:
        self.state = state
        self.secrets = secrets or NoSecrets()
        self.store = Store(state)
        self.engine = self.engine_of_boot(boot, node)

    def engine_of_boot(self, boot: str, node: str = NODE) -> Engine:
        context = BackendContext(marks=MarkStore(self.state), secrets=self.secrets)
        return Engine(self.store, context, node=node, boot=boot)

    def reboot(self, boot: str) -> None:
        """Go on as after a start of the host: same state, another boot id, a new process."""
        self.engine = self.engine_of_boot(boot)

    def apply(self, *documents: dict[str, Any]) -> list[Key]:
        loaded = manifests.load(
            json.dumps({"kind": "List", "apiVersion": "v1", "items": documents})
        )
        assert not loaded.problems, [str(item) for item in loaded.problems]
        for item in loaded.declared:
            self.store.apply(item)
        return [item.key for item in loaded.declared]

    def delete(self, *keys: Key) -> None:
        for key in keys:
            assert self.store.request_deletion(key)

    def edit_as_an_api_server_would(self, key: Key, **spec: Any) -> None:
        """Change members of a stored spec, also of a resource that is being deleted."""
        with sqlite3.connect(self.state / FILE_NAME) as connection:
            where = "kind = ? AND namespace = ? AND name = ?", (key.kind, key.namespace, key.name)
            (text,) = connection.execute(
                f"SELECT spec FROM resources WHERE {where[0]}", where[1]
            ).fetchone()
            connection.execute(
                "UPDATE resources SET spec = ?, generation = generation + 1, version = version "
                f"+ 1000 WHERE {where[0]}",
                (json.dumps({**json.loads(text), **spec}), *where[1]),
            )
        connection.close()

    def annotate(self, key: Key, **annotations: str) -> None:
        for name, value in annotations.items():
            self.store.annotate(key, {"requested_at": REQUESTED_AT}.get(name, name), value)

    def names(self) -> list[str]:
        return sorted(self.engine.world().pool_names())

    def reconcile(self, *names: str) -> list[Outcome]:
        """One pass over each of these pools; over all if none is named."""
        return [self.engine.reconcile(name) for name in names or self.names()]

    def settle(self, passes: int = 8) -> None:
        """Passes over all pools until one finds nothing new; it may still try in vain."""
        for _ in range(passes):
            assert self.engine.jobs.idle(120)
            before, outcome = self.achieved(), self.outcome()
            self.reconcile()
            assert self.engine.jobs.idle(120)
            if self.achieved() == before:
                return
        if self.outcome() == outcome:
            return  # a step that fails after a second or more has its progress written each time
        raise AssertionError(f"no rest after {passes} passes: {self.told()}")

    def plans(self) -> list[PoolExamination]:
        return self.engine.plan(self.engine.world(), self.names())

    def planned(self) -> dict[str, list[str]]:
        """Verbs of all planned actions, by resource."""
        found: dict[str, list[str]] = {}
        for examined in self.plans():
            for item in [*([examined.own] if examined.own else []), *examined.volumes]:
                if item.plan.actions:
                    key = str(item.resource.key)
                    found[key] = [str(action.verb) for action in item.plan.actions]
        return found

    def get(self, key: Key) -> AnyResource:
        found = self.store.get(key)
        assert found is not None, f"{key} is gone"
        return found

    def gone(self, key: Key) -> bool:
        return self.store.get(key) is None

    def truth(self, key: Key, type: str) -> str | None:
        """Status of a condition; None where there is none."""
        found = condition(self.get(key).status, type)
        return found.status if found else None

    def reason(self, key: Key, type: str = "Ready") -> str | None:
        found = condition(self.get(key).status, type)
        return found.reason if found else None

    def message(self, key: Key, type: str = "Ready") -> str:
        found = condition(self.get(key).status, type)
        return found.message if found else ""

    def assert_ready(self, *keys: Key) -> None:
        for key in keys:
            assert self.truth(key, "Ready") == "True", f"{key}: {self.message(key)}"
            assert self.truth(key, "Stalled") is None
            assert self.truth(key, "Reconciling") is None

    def assert_stalled(self, key: Key, reason: str) -> str:
        """Stalled for that reason; the message, to look at further."""
        assert (self.reason(key, "Ready"), self.truth(key, "Ready")) == (reason, "False")
        assert (self.reason(key, "Stalled"), self.truth(key, "Stalled")) == (reason, "True")
        assert self.truth(key, "Reconciling") is None
        return self.message(key)

    def assert_retrying(self, key: Key, reason: str) -> str:
        assert (self.reason(key, "Ready"), self.truth(key, "Ready")) == (reason, "False")
        assert self.truth(key, "Reconciling") == "True"
        assert self.truth(key, "Stalled") is None
        return self.message(key)

    def events(self, key: Key | None = None) -> list[Event]:
        return self.store.events(key=key)

    def reasons(self, key: Key) -> list[str]:
        return [item.reason for item in self.events(key)]

    def recorded(self) -> tuple[object, ...]:
        """All that a pass could write: changes when, and only when, something was written."""
        versions = {str(item.key): item.metadata.resource_version for item in self.store.list()}
        events = [(item.id, item.count) for item in self.store.events()]
        steps = [item.id for item in self.store.finished_steps() + self.store.unfinished_steps()]
        return self.store.revision(), versions, events, steps

    def achieved(self) -> tuple[object, ...]:
        """What was recorded, but for steps that failed."""
        *written, _ = self.recorded()
        return *written, self.done()

    def outcome(self) -> tuple[object, ...]:
        """What came of it all, for people."""
        return self.told(), self.done()

    def done(self) -> list[int]:
        """The steps that did not fail."""
        return [step.id for step in self.store.finished_steps() if not step.error]

    def told(self) -> dict[str, list[str]]:
        """Conditions of everything, for messages of failed assertions."""
        return {
            str(item.key): [f"{c.type}={c.status} {c.reason}: {c.message}" for c in
                            item.status.conditions]
            for item in self.store.list()
        }  # fmt: skip


def pool_key(name: str) -> Key:
    return Key("StoragePool", "", name)


def volume_key(name: str) -> Key:
    return Key("StorageVolume", "default", name)


def pool(name: str, *, annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A pool's manifest; keywords are members of its spec."""
    return _document("StoragePool", name, annotations, spec)


def dir_pool(name: str, path: Path | str, **spec: Any) -> dict[str, Any]:
    target = {"path": str(path), **spec.pop("target", {})}
    return pool(name, type="dir", target=target, **spec)


def volume(
    name: str, pool: str, *, annotations: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    """A volume's manifest; keywords are members of its spec."""
    return _document("StorageVolume", name, annotations, {"poolRef": {"name": pool}, **spec})


def operation_key(name: str) -> Key:
    return Key("VolumeOperation", "default", name)


def operation(name: str, volume: str, command: str, **spec: Any) -> dict[str, Any]:
    """An operation's manifest; keywords are members of its spec."""
    named = {"volumeRef": {"name": volume}, "operation": command}
    return _document("VolumeOperation", name, None, {**named, **spec})


def _document(
    kind: str, name: str, annotations: dict[str, str] | None, spec: dict[str, Any]
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if annotations:
        metadata["annotations"] = annotations
    members = {_camel(key): value for key, value in spec.items() if value is not None}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": members}


def _camel(name: str) -> str:
    return re.sub("_([a-z])", lambda match: match[1].upper(), name)


def image_info(path: Path) -> dict[str, Any]:
    """What qemu-img says of an image, not opening what it stands on."""
    shown = subprocess.run(
        ["qemu-img", "info", "--output=json", str(path)], check=True, capture_output=True
    )
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def make_image(
    path: Path, size: str, *, format: str = "qcow2", options: Iterable[str] = ()
) -> None:
    samples.qemu_img("create", "-q", "-f", format, *options, path, size)


def mark_as_corrupt(path: Path) -> None:
    """Set what qemu sets in a qcow2 whose metadata it found inconsistent (qcow2.txt, bit 1)."""
    with path.open("r+b") as file:
        file.seek(79)
        file.write(b"\x02")
    assert image_info(path)["format-specific"]["data"]["corrupt"]


def marked(path: Path) -> dict[str, str]:
    """The mark on a file or directory, or nothing."""
    there = set(os.listxattr(path, follow_symlinks=False))
    return {
        name.rpartition(".")[2]: os.getxattr(path, name, follow_symlinks=False).decode()
        for name in MARKS
        if name in there
    }


def tree(path: Path) -> dict[str, tuple[object, ...]]:
    """Everything beneath a path with its kind, size, mode, owner, time of change and content."""
    found: dict[str, tuple[object, ...]] = {}
    for item in sorted([path, *path.rglob("*")]):
        facts = item.lstat()
        content = item.read_bytes() if item.is_file() and not item.is_symlink() else b""
        found[str(item)] = (
            facts.st_ino, facts.st_mode, facts.st_uid, facts.st_gid, facts.st_size,
            facts.st_mtime_ns, facts.st_ctime_ns, content,
        )  # fmt: skip
    return found


def run_in_child(work: Callable[[], None], *, uid: int | None = None) -> None:
    """Run in a process of its own, as another user if ``uid`` is given; fails where it fails."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
