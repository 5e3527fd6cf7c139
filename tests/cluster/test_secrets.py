"""Secrets of a real API server, read with the rights that the installation gives."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends import errors
from backends.base import Secrets
from backends.spec import SecretRef
from controller.cluster.apiserver import ApiServer
from controller.secrets import MAX_BYTES, ClusterSecrets

pytestmark = pytest.mark.cluster

VALUE = b"correct horse\n"


@pytest.fixture
def secrets(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secrets]:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    server = ApiServer()
    yield ClusterSecrets(server)
    server.close()


@pytest.fixture
def name(cluster: Any) -> Iterator[str]:
    """A Secret of that name in the namespace default."""
    made = f"s{uuid.uuid4().hex[:8]}"
    put(cluster, made, {"passphrase": VALUE, "old": b"x", "large": b"x" * (MAX_BYTES + 1)})
    yield made
    cluster.kubectl("delete", "secret", made)


def put(cluster: Any, name: str, values: dict[str, bytes]) -> None:
    data = {key: base64.b64encode(value).decode() for key, value in values.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
    done = cluster.kubectl("apply", "--server-side", "-f", "-", given=json.dumps(secret))
    assert done.returncode == 0, done.stderr


def refused(secrets: Secrets, reference: SecretRef, namespace: str = "default") -> str:
    with pytest.raises(errors.SecretUnavailable) as caught:
        secrets.read(reference, namespace=namespace)
    assert VALUE.decode().strip() not in str(caught.value)
    return str(caught.value)


def test_a_value_counts_to_its_last_byte(secrets: Secrets, name: str) -> None:
    assert secrets.read(SecretRef(name=name), namespace="default") == VALUE
    assert secrets.read(SecretRef(name=name, key="old"), namespace="default") == b"x"
    assert secrets.read(SecretRef(name=name, namespace="default"), namespace="") == VALUE


def test_a_new_value_counts_at_the_next_reading(cluster: Any, secrets: Secrets, name: str) -> None:
    put(cluster, name, {"passphrase": b"new"})
    assert secrets.read(SecretRef(name=name), namespace="default") == b"new"


def test_what_is_not_there_is_named(secrets: Secrets, name: str) -> None:
    assert "default/none" in refused(secrets, SecretRef(name="none"))
    assert "'none'" in refused(secrets, SecretRef(name=name, key="none"))
    assert "64 KiB" in refused(secrets, SecretRef(name=name, key="large"))
    assert "secretRef.namespace" in refused(secrets, SecretRef(name=name), "")
    assert "team-b" in refused(secrets, SecretRef(name=name, namespace="default"), "team-b")


def test_the_agent_reads_secrets_only_where_a_role_is_bound(
    cluster: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cluster.test_install import as_agent
    from tests.installation import AGENT, install, remove, until

    install(cluster, "files")
    try:
        monkeypatch.setenv("KUBECONFIG", str(as_agent(cluster, tmp_path)))
        secrets = ClusterSecrets(ApiServer())
        assert "poolkeeper-secret-reader" in refused(secrets, SecretRef(name=name))
        done = cluster.kubectl(
            "create", "rolebinding", name, "--clusterrole=poolkeeper-secret-reader",
            "--serviceaccount=poolkeeper-system:poolkeeper-agent",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        asked = ("auth", "can-i", "get", "secrets", f"--as={AGENT}")
        until(lambda: cluster.kubectl(*asked).stdout.strip() == "yes", "the role is bound")
        assert secrets.read(SecretRef(name=name), namespace="default") == VALUE
        assert "may not read" in refused(secrets, SecretRef(name=name), "kube-system")
        for verb in ("list", "watch", "update"):
            said = cluster.kubectl("auth", "can-i", verb, "secrets", f"--as={AGENT}")
            assert said.stdout.strip() == "no"
    finally:
        cluster.kubectl("delete", "rolebinding", name)
        remove(cluster, "files")
