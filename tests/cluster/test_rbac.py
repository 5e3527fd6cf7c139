"""Roles and admission policies: what ``docs/rbac.md`` says, asked of a real API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import yaml

from controller.resources import API_VERSION, GROUP
from tests.installation import AGENT, INSTALL, REPOSITORY, install, remove, until

pytestmark = pytest.mark.cluster

ROLES = ("viewer", "editor", "data-reader", "admin")
OVERLAY = "files"
POOLS, VOLUMES, OPERATIONS, NODES = (
    f"{plural}.{GROUP}"
    for plural in ("storagepools", "storagevolumes", "volumeoperations", "storagenodes")
)
PLAIN = ("get", "list", "watch", "create", "patch", "delete")
"""Verbs of the API, but for ``update``, which the policies look at."""

LIBVIRT = {
    "connect": ("detect-storage-pools", "search-storage-pools"),
    "storage-pool": (
        "getattr", "read", "write", "save", "start", "stop", "refresh", "format", "delete",
        "search-storage-vols",
    ),
    "storage-vol": (
        "getattr", "read", "create", "delete", "resize", "format", "data-read", "data-write",
    ),
}  # fmt: skip
"""The permissions of libvirt's access control on storage."""


@dataclass(frozen=True, slots=True)
class Row:
    """A permission of the page's tables, and which roles are said to have it.

    :param needs: all verbs and plurals that it takes.
    """

    permission: str
    needs: tuple[tuple[str, str], ...]
    roles: dict[str, bool]


def tables() -> list[list[dict[str, str]]]:
    """The tables of the page: rows by the heads of their columns."""
    found: list[list[dict[str, str]]] = []
    heads: list[str] = []
    for line in (REPOSITORY / "docs" / "rbac.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells
            found.append([])
        elif set(line) - set("|-"):
            found[-1].append(dict(zip(heads, cells, strict=True)))
    return found


def rows() -> list[Row]:
    listed = [row for table in tables() for row in table if "admin" in row]
    return [
        Row(
            permission=next(iter(row.values())),
            needs=tuple(
                (verb, plural)
                for need in row["Verbs and resources"].split(", ")
                for verb, plural in [need.strip("`").split()]
            ),
            roles={role: {"yes": True, "no": False}[row[role]] for role in ROLES},
        )
        for row in listed
    ]


def bind(cluster: Any, name: str, rules: list[dict[str, Any]] | str, namespace: str = "") -> str:
    """A user of that name with a role of that name, or with the named one; the user."""
    role = rules if isinstance(rules, str) else name
    api = "rbac.authorization.k8s.io"
    items: list[dict[str, Any]] = [
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
            "metadata": {"name": name} | ({"namespace": namespace} if namespace else {}),
            "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": api, "kind": "User", "name": name}],
        }
    ]
    if not isinstance(rules, str):
        made = {"apiVersion": f"{api}/v1", "kind": "ClusterRole", "metadata": {"name": name}}
        items.append({**made, "rules": rules})
    applied(cluster, *items)
    return name


def rule(verbs: tuple[str, ...], *resources: str, names: tuple[str, ...] = ()) -> dict[str, Any]:
    made: dict[str, Any] = {
        "apiGroups": [GROUP],
        "resources": [item.removesuffix(f".{GROUP}") for item in resources],
        "verbs": list(verbs),
    }
    return made | ({"resourceNames": list(names)} if names else {})


def applied(cluster: Any, *items: dict[str, Any]) -> None:
    given = yaml.safe_dump_all(items)
    done = cluster.kubectl("apply", "--server-side", "--filename", "-", given=given)
    assert done.returncode == 0, done.stderr


def pool(name: str, **spec: Any) -> dict[str, Any]:
    target = {"path": f"/srv/{name}"}
    spec = {"type": "dir", "target": target, "build": {"policy": "Never"}, **spec}
    return {
        "apiVersion": API_VERSION, "kind": "StoragePool", "metadata": {"name": name}, "spec": spec,
    }  # fmt: skip


def volume(name: str, namespace: str = "tenant-a", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "StorageVolume",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"poolRef": {"name": "images"}, "capacity": "1Gi", **spec},
    }


def asking(name: str, **spec: Any) -> dict[str, Any]:
    """A volume of a pool that is to be chosen."""
    made = volume(name, poolSelector={"matchLabels": {"app": "db"}}, **spec)
    del made["spec"]["poolRef"]
    return made


def operation(kind: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "VolumeOperation",
        "metadata": {"name": "once", "namespace": "tenant-a"},
        "spec": {"volumeRef": {"name": "disk"}, "operation": kind},
    }


GOLDEN = {"name": "golden", "namespace": "tenant-b"}


@pytest.fixture(scope="module")
def installed(cluster: Any) -> Iterator[Any]:
    """A cluster with the roles, the policies, some pools and volumes, and users."""
    install(cluster, OVERLAY)
    for name in ("tenant-a", "tenant-b"):
        applied(cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    declared = (
        pool("images"),
        pool("idle", state="Inactive"),
        pool("forced", build={"policy": "Overwrite", "confirm": "forced"}),
        pool("doomed", deletionPolicy="Delete"),
        volume("disk"),
        asking("waiting"),
        volume("other", "tenant-b"),
        volume("golden", "tenant-b", format="qcow2"),
    )
    applied(cluster, *declared)
    everything = (POOLS, VOLUMES, OPERATIONS)
    users = [bind(cluster, f"test-{role}", f"poolkeeper-{role}") for role in ROLES]
    users.append(bind(cluster, "test-bare", [rule((*PLAIN, "update"), *everything)]))
    users.append(
        bind(
            cluster,
            "test-patch",
            [rule(PLAIN, *everything), rule(("start", "stop"), POOLS), rule(("resize",), VOLUMES)],
        )
    )
    for verb, plural in {(case.verb, case.plural) for case in GUARDED}:
        rules = [rule((*PLAIN, "update"), *everything), rule((verb,), plural)]
        users.append(bind(cluster, with_verb(verb, plural), rules))
    tenants = [
        bind(cluster, "test-tenant", "poolkeeper-editor", "tenant-a"),
        bind(cluster, "test-tenant-reader", "poolkeeper-editor", "tenant-a"),
    ]
    reading = rule(("data-read",), VOLUMES, names=("golden",))
    applied(cluster, *golden_readers(tenants[1], reading))
    until(lambda: all(may(cluster, user, "list", VOLUMES) for user in users), "users have roles")
    until(lambda: all(may(cluster, user, "list", VOLUMES, "tenant-a") for user in tenants), "roles")
    until(lambda: may(cluster, tenants[1], "data-read", f"{VOLUMES}/golden", "tenant-b"), "a role")
    until(lambda: in_force(cluster), "the policies are in force")
    yield cluster
    may_as_before.cache_clear()
    done = cluster.kubectl("delete", "--filename", "-", given=yaml.safe_dump_all(declared))
    assert done.returncode == 0, done.stderr
    for user in users:
        cluster.kubectl("delete", "clusterrolebinding,clusterrole", user, "--ignore-not-found")
    cluster.kubectl("delete", "namespace", "tenant-a", "tenant-b", "--wait=false")
    remove(cluster, OVERLAY)


def golden_readers(user: str, reading: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """A role and its binding: to read one volume of another namespace."""
    api = "rbac.authorization.k8s.io"
    metadata = {"name": "golden-readers", "namespace": "tenant-b"}
    return (
        {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": metadata, "rules": [reading]},
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": api, "kind": "Role", "name": "golden-readers"},
            "subjects": [{"apiGroup": api, "kind": "User", "name": user}],
        },
    )


def with_verb(verb: str, plural: str) -> str:
    return f"test-{verb}-{plural.partition('.')[0]}"


def may(cluster: Any, user: str, verb: str, what: str, namespace: str = "") -> bool:
    """What ``kubectl auth can-i`` says."""
    arguments = [f"--namespace={namespace}"] if namespace else ["--all-namespaces"]
    done = cluster.kubectl("auth", "can-i", verb, what, f"--as={user}", *arguments)
    assert done.stdout.strip() in ("yes", "no"), done.stderr
    return str(done.stdout).strip() == "yes"


may_as_before = cache(may)
"""The same, asked once."""


def in_force(cluster: Any) -> bool:
    tried = (GUARDED[0], *(case for case in GUARDED if case.plural != GUARDED[0].plural))
    return all(attempt(cluster, "test-bare", case.arguments, case.given) for case in tried)


def attempt(
    cluster: Any, user: str, arguments: tuple[str, ...], given: dict[str, Any] | None = None
) -> str:
    """Try something as a user, without effect; what the server refused it with, or nothing."""
    done = cluster.kubectl(
        *arguments, f"--as={user}", "--dry-run=server", given=json.dumps(given) if given else ""
    )
    assert done.returncode == 0 or done.stderr, done
    refusal: str = done.stderr if done.returncode else ""
    return refusal


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row.permission))
def test_a_role_has_a_permission_where_the_page_says_so(
    installed: Any, row: Row, role: str
) -> None:
    has = {
        f"{verb} {plural}": may_as_before(installed, f"test-{role}", verb, f"{plural}.{GROUP}")
        for verb, plural in row.needs
    }
    assert all(has.values()) is row.roles[role], has


def test_the_page_maps_every_permission_of_libvirt() -> None:
    mapped = {row.permission for row in rows()}
    for kind, permissions in LIBVIRT.items():
        for permission in permissions:
            assert any(item.startswith(f"{kind}: {permission}") for item in mapped), permission


@dataclass(frozen=True, slots=True)
class Guarded:
    """Something that the verbs of the API allow, and a policy only with a verb of its own."""

    name: str
    verb: str
    plural: str
    arguments: tuple[str, ...]
    given: dict[str, Any] | None = None


def patch(plural: str, name: str, spec: dict[str, Any]) -> tuple[str, ...]:
    place = ("--namespace=tenant-a",) if plural == VOLUMES else ()
    return ("patch", plural, name, *place, "--type=merge", "--patch", json.dumps({"spec": spec}))


CREATE = ("create", "--filename", "-")

GUARDED = (
    Guarded("stop a pool", "stop", POOLS, patch(POOLS, "images", {"state": "Inactive"})),
    Guarded("start a pool", "start", POOLS, patch(POOLS, "idle", {"state": "Active"})),
    Guarded("start a pool by the default", "start", POOLS, patch(POOLS, "idle", {"state": None})),
    Guarded("declare a pool that is to run", "start", POOLS, CREATE, pool("new")),
    Guarded("ask for a refresh", "refresh", POOLS,
            ("annotate", POOLS, "images", "poolkeeper.dev/requested-at=now")),
    Guarded("have a pool built", "format", POOLS,
            patch(POOLS, "images", {"build": {"policy": "IfEmpty"}})),
    Guarded("have a pool built by the default", "format", POOLS,
            patch(POOLS, "images", {"build": None})),
    Guarded("declare a pool that is to be built", "format", POOLS, CREATE,
            pool("new", state="Inactive", build={"policy": "IfEmpty"})),
    Guarded("have a pool deleted with its resource", "format", POOLS,
            patch(POOLS, "images", {"deletionPolicy": "Delete"})),
    Guarded("delete a pool and what backs it", "format", POOLS, ("delete", POOLS, "doomed")),
    Guarded("change what is to be overwritten", "overwrite", POOLS,
            patch(POOLS, "forced", {"target": {"path": "/srv/elsewhere"}})),
    Guarded("have a pool overwritten again", "overwrite", POOLS,
            patch(POOLS, "forced", {"autostart": False})),
    Guarded("grow a volume", "resize", VOLUMES, patch(VOLUMES, "disk", {"capacity": "2Gi"})),
    Guarded("allow a volume to shrink", "resize", VOLUMES,
            patch(VOLUMES, "disk", {"resize": {"allowShrink": True}})),
    Guarded("clone a volume of another namespace", "data-read", VOLUMES, CREATE,
            volume("new", source={"clone": {"volumeRef": GOLDEN}})),
    Guarded("stand on a volume of another namespace", "data-read", VOLUMES, CREATE,
            volume("new", format="qcow2", backingStore={"volumeRef": GOLDEN, "format": "qcow2"})),
    Guarded("fill a volume from a file of the host", "read-host-files", POOLS, CREATE,
            volume("new", source={"file": {"path": "/etc/shadow"}})),
    Guarded("fill a volume of some pool from a file of the host", "read-host-files", POOLS, CREATE,
            asking("new", source={"file": {"path": "/etc/shadow"}})),
    Guarded("stand on a file of the host", "read-host-files", POOLS, CREATE,
            volume("new", format="qcow2", backingStore={"path": "/etc/shadow", "format": "raw"})),
    Guarded("wipe a volume", "format", VOLUMES, CREATE, operation("Wipe")),
    Guarded("upload to a volume", "data-write", VOLUMES, CREATE, operation("Upload")),
    Guarded("download a volume", "data-read", VOLUMES, CREATE, operation("Download")),
)  # fmt: skip

each_guarded = pytest.mark.parametrize("case", GUARDED, ids=lambda case: str(case.name))


@each_guarded
def test_a_policy_refuses_who_has_only_the_verbs_of_the_api(installed: Any, case: Guarded) -> None:
    refusal = attempt(installed, "test-bare", case.arguments, case.given)
    assert "ValidatingAdmissionPolicy" in refusal
    assert case.verb in refusal


@each_guarded
def test_a_policy_lets_pass_who_has_its_verb(installed: Any, case: Guarded) -> None:
    user = with_verb(case.verb, case.plural)
    assert attempt(installed, user, case.arguments, case.given) == ""


@each_guarded
def test_an_admin_may_do_all_of_it(installed: Any, case: Guarded) -> None:
    assert attempt(installed, "test-admin", case.arguments, case.given) == ""


def test_to_overwrite_takes_more_than_to_build(installed: Any) -> None:
    change = patch(POOLS, "images", {"build": {"policy": "Overwrite", "confirm": "images"}})
    refusal = attempt(installed, with_verb("format", POOLS), change)
    assert "overwrite" in refusal


UNGUARDED = {
    "a label": ("label", POOLS, "images", "a=b"),
    "a setting of a pool": patch(POOLS, "images", {"autostart": False}),
    "a state that it has": patch(POOLS, "images", {"state": "Active"}),
    "a policy of a volume": patch(VOLUMES, "disk", {"deletionPolicy": "Delete"}),
    "a capacity that it has": patch(VOLUMES, "disk", {"capacity": "1Gi"}),
    "a pool that keeps its data": ("delete", POOLS, "images"),
    "a volume": ("delete", VOLUMES, "disk", "--namespace=tenant-a"),
}


@pytest.mark.parametrize("arguments", UNGUARDED.values(), ids=UNGUARDED)
def test_the_policies_leave_other_changes_alone(installed: Any, arguments: tuple[str, ...]) -> None:
    assert attempt(installed, "test-bare", arguments) == ""


DECLARED = {
    "a pool that is only declared": pool("new", state="Inactive"),
    "a volume": volume("new"),
    "a clone within a namespace": volume("new", source={"clone": {"volumeRef": {"name": "disk"}}}),
    "a clone of its own namespace by name": volume(
        "new", source={"clone": {"volumeRef": {"name": "disk", "namespace": "tenant-a"}}}
    ),
}


@pytest.mark.parametrize("declared", DECLARED.values(), ids=DECLARED)
def test_the_policies_leave_other_new_ones_alone(installed: Any, declared: dict[str, Any]) -> None:
    assert attempt(installed, "test-bare", CREATE, declared) == ""


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (patch(POOLS, "images", {"state": "Inactive"}), False),
        (patch(POOLS, "images", {"autostart": False}), True),
        (patch(POOLS, "images", {"state": "Inactive", "autostart": False}), True),
        (patch(POOLS, "images", {"suspend": None, "target": {"path": "/etc"}}), True),
        (patch(VOLUMES, "disk", {"capacity": "2Gi"}), False),
        (patch(VOLUMES, "disk", {"deletionPolicy": "Delete"}), True),
    ],
)
def test_a_patch_without_update_reaches_the_state_and_the_capacity(
    installed: Any, arguments: tuple[str, ...], refused: bool
) -> None:
    refusal = attempt(installed, "test-patch", arguments)
    assert ("needs the verb update" in refusal) is refused, refusal
    assert refused or not refusal


def test_an_editor_of_one_namespace_has_nothing_in_another(installed: Any) -> None:
    change = ("--type=merge", "--patch", '{"spec":{"capacity":"2Gi"}}')
    own = ("patch", VOLUMES, "disk", "--namespace=tenant-a", *change)
    foreign = ("patch", VOLUMES, "other", "--namespace=tenant-b", *change)
    assert attempt(installed, "test-tenant", own) == ""
    assert "cannot get" in attempt(installed, "test-tenant", foreign)
    assert not may(installed, "test-tenant", "list", VOLUMES, "tenant-b")
    assert not may(installed, "test-tenant", "patch", POOLS)


@pytest.mark.parametrize(
    ("user", "name", "refused"),
    [
        ("test-tenant", "golden", True),
        ("test-tenant-reader", "golden", False),
        ("test-tenant-reader", "other", True),
    ],
)
def test_a_tenant_clones_from_another_namespace_what_was_opened_to_it(
    installed: Any, user: str, name: str, refused: bool
) -> None:
    clone = {"clone": {"volumeRef": {"name": name, "namespace": "tenant-b"}}}
    refusal = attempt(installed, user, CREATE, volume("new", source=clone))
    assert ("data-read" in refusal) is refused, refusal
    assert refused or not refusal


def test_built_in_roles_take_in_what_the_page_says() -> None:
    text = (INSTALL / "base" / "roles.yaml").read_text("utf-8")
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    found = {
        item["metadata"]["name"].removeprefix("poolkeeper-"): {
            label.removeprefix(prefix) for label in item["metadata"].get("labels", {})
        }
        for item in yaml.safe_load_all(text)
    }
    assert found == {
        "viewer": {"view", "edit", "admin"},
        "editor": {"edit", "admin"},
        "data-reader": set(),
        "admin": set(),
    }


AGENT_MAY = [
    ("get", POOLS), ("list", POOLS), ("watch", POOLS), ("patch", POOLS), ("delete", POOLS),
    ("get", VOLUMES), ("list", VOLUMES), ("watch", VOLUMES), ("patch", VOLUMES),
    ("get", NODES), ("list", NODES), ("create", NODES),
    ("create", VOLUMES), ("create", "events"), ("patch", "events"), ("get", "events"),
]  # fmt: skip
AGENT_MAY_NOT = [
    ("list", "secrets"), ("get", "secrets"), ("watch", "secrets"), ("create", "pods"),
    ("list", "pods"), ("get", "configmaps"), ("patch", "nodes"), ("list", "namespaces"),
    ("create", POOLS), ("update", POOLS), ("update", VOLUMES), ("delete", VOLUMES),
    ("patch", NODES), ("update", NODES), ("delete", NODES), ("watch", NODES),
    ("start", POOLS), ("stop", POOLS), ("overwrite", POOLS), ("resize", VOLUMES),
    ("data-read", VOLUMES), ("create", OPERATIONS), ("list", "events"), ("delete", "events"),
    ("impersonate", "users"), ("create", "serviceaccounts/token"), ("escalate", "clusterroles"),
    ("patch", "customresourcedefinitions"), ("*", "*"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "what"), AGENT_MAY)
def test_the_agent_may_do_what_its_work_needs(installed: Any, verb: str, what: str) -> None:
    assert may(installed, AGENT, verb, what)


@pytest.mark.parametrize(("verb", "what"), AGENT_MAY_NOT)
def test_the_agent_may_not_do_more(installed: Any, verb: str, what: str) -> None:
    assert not may(installed, AGENT, verb, what)


@pytest.mark.parametrize("plural", [POOLS, VOLUMES, NODES])
def test_the_agent_writes_a_status_by_patch_alone(installed: Any, plural: str) -> None:
    for verb, expected in (("patch", "yes"), ("update", "no")):
        done = installed.kubectl(
            "auth", "can-i", verb, plural, "--subresource=status", f"--as={AGENT}", "-A"
        )
        assert done.stdout.strip() == expected


def test_the_page_tells_all_of_the_agents_role() -> None:
    (role,) = [
        item
        for item in yaml.safe_load_all((INSTALL / "base" / "agent-rbac.yaml").read_text("utf-8"))
        if item["kind"] == "ClusterRole"
    ]
    given = {
        (verb, plural)
        for item in role["rules"]
        for verb in item["verbs"]
        for plural in item["resources"]
    }
    (table,) = [table for table in tables() if "For" in table[0] and "Verbs" in table[0]]
    told = {
        (verb.strip("`"), plural.strip("`"))
        for row in table
        for verb in row["Verbs"].split(", ")
        for plural in row["Resources"].split(", ")
    }
    assert told == given


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (patch(VOLUMES, "disk", {"nodeName": "hv-01"}), False),
        (patch(VOLUMES, "waiting", {"nodeName": "hv-01", "poolRef": {"name": "images"}}), False),
        (patch(VOLUMES, "waiting", {"poolSelector": {"matchLabels": {"app": "web"}}}), True),
        (patch(VOLUMES, "disk", {"poolRef": {"name": "idle"}}), True),
        (patch(VOLUMES, "disk", {"capacity": "2Gi"}), True),
        (patch(VOLUMES, "disk", {"deletionPolicy": "Delete"}), True),
        (patch(POOLS, "images", {"state": "Inactive"}), True),
        (patch(POOLS, "images", {"target": {"path": "/etc"}}), True),
        (("delete", POOLS, "doomed"), False),
        (("delete", VOLUMES, "disk", "--namespace=tenant-a"), True),
    ],
)
def test_the_agent_binds_a_volume_and_changes_no_spec(
    installed: Any, arguments: tuple[str, ...], refused: bool
) -> None:
    assert bool(attempt(installed, AGENT, arguments)) is refused


def test_to_publish_a_volume_takes_the_right_to_make_a_persistent_volume(installed: Any) -> None:
    given = volume("new", format="dir", publish={"persistentVolume": {}})
    refusal = attempt(installed, "test-bare", CREATE, given)
    assert "persistentvolumes" in refusal
    assert "persistentvolumes" in attempt(installed, "test-admin", CREATE, given)
    own = {"apiGroups": [""], "resources": ["persistentvolumes"], "verbs": ["create"]}
    user = bind(installed, "test-publisher", [rule(PLAIN, VOLUMES), own])
    try:
        until(lambda: attempt(installed, user, CREATE, given) == "", "the role counts")
    finally:
        for kind in ("clusterrole", "clusterrolebinding"):
            installed.kubectl("delete", kind, user)
