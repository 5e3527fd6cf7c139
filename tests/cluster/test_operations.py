"""Operations and contents of volumes on an API server: who carries them out, and who may."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.sites import Site, until

pytestmark = pytest.mark.cluster

MIB = 2**20
GROUP = "rbac.authorization.k8s.io"


def role(name: str, user: str, *rules: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """A role of the namespace, and its binding to a user."""
    metadata = {"name": name, "namespace": "default"}
    return (
        {"apiVersion": f"{GROUP}/v1", "kind": "Role", "metadata": metadata, "rules": [*rules]},
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": name},
            "subjects": [{"apiGroup": GROUP, "kind": "User", "name": user}],
        },
    )


def on_volume(volume: str, *verbs: str) -> dict[str, Any]:
    return {
        "apiGroups": ["poolkeeper.dev"],
        "resources": ["storagevolumes"],
        "resourceNames": [volume],
        "verbs": [*verbs],
    }


class TestWipe:
    def test_the_node_of_the_volume_carries_it_out(self, site: Site) -> None:
        pool, disk = site.pool(), site.volume("disk")
        other = site.operator("n2")
        site.operator("n1")
        site.apply(pool, disk)
        site.ready(disk)
        path = site.directory("images") / "disk"
        path.write_bytes(os.urandom(MIB))
        wipe = site.operation("gone", "disk")
        site.apply(wipe)
        site.wait(wipe, "--for=condition=Complete")
        assert path.read_bytes() == bytes(MIB)
        found = site.read(wipe)
        assert found["spec"]["nodeName"] == site.node("n1")
        assert found["status"]["phase"] == "Succeeded"
        reasons = {item["reason"] for item in site.events(wipe)}
        until(lambda: "Succeeded" in {item["reason"] for item in site.events(wipe)})
        assert "Failed" not in reasons
        assert "gone" not in other.log

    def test_one_that_is_declared_first_waits_for_its_volume(self, site: Site) -> None:
        site.operator("n1")
        pool, disk, wipe = site.pool(), site.volume("disk"), site.operation("gone", "disk")
        site.apply(wipe)
        site.apply(pool, disk)
        site.wait(wipe, "--for=condition=Complete")

    def test_a_finished_one_goes_after_its_time(self, site: Site) -> None:
        site.operator("n1")
        wipe = site.operation("gone", "disk", ttlSecondsAfterFinished=1)
        site.apply(site.pool(), site.volume("disk"), wipe)
        site.wait(wipe, "--for=delete")

    def test_a_kill_in_the_middle_ends_well(self, site: Site) -> None:
        disk = site.volume("disk", capacity="256Mi")
        operator = site.operator("n1")
        site.apply(site.pool(), disk)
        site.ready(disk)
        # What was never written need not be wiped, and is done with at once.
        (site.directory("images") / "disk").write_bytes(os.urandom(256 * MIB))
        wipe = site.operation("gone", "disk", wipe={"algorithm": "gutmann"})
        site.apply(wipe)
        until(lambda: site.read(wipe)["status"].get("phase") == "Running", told=site.said)
        operator.kill()
        operator.start()
        site.apply({**wipe, "spec": {**wipe["spec"], "cancel": True}})
        site.wait(wipe, "--for=condition=Failed")
        assert site.read(wipe)["status"]["phase"] == "Cancelled"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "data.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(path),
         "-out", str(path.with_suffix(".crt"))],
        check=True, capture_output=True,
    )  # fmt: skip
    with path.open("a") as file:
        file.write(path.with_suffix(".crt").read_text())
    return path


class Served:
    """A volume whose contents a node serves, and users with and without a say."""

    def __init__(self, site: Site, certificate: Path) -> None:
        self.site = site
        self.disk = site.volume("disk")
        self.operator = site.operator(
            POOLKEEPER_DATA_LISTEN="0.0.0.0:0", POOLKEEPER_TLS_CERT=str(certificate)
        )
        site.apply(site.pool(), self.disk)
        site.ready(self.disk)
        said = next(line for line in self.operator.log.splitlines() if "listening at https" in line)
        self.port = int(said.rsplit(":", 1)[1])
        self.context = ssl.create_default_context(cafile=str(certificate))
        self.name = self.disk["metadata"]["name"]
        self.path = f"/v1/namespaces/default/volumes/{self.name}/data"
        self.user = f"{site.name}-user"
        self.bindings: list[tuple[dict[str, Any], ...]] = []

    def grant(self, *verbs: str) -> None:
        granted = role(f"{self.user}-data", self.user, on_volume(self.name, *verbs))
        self.bindings.append(granted)
        self.site.apply(*granted)

    @property
    def account(self) -> str:
        """The token of a service account, as the server of the tests believes it."""
        return f"sa:default:{self.site.name}"

    def grant_account(self, *verbs: str) -> None:
        """The same for the service account."""
        account = {"kind": "ServiceAccount", "name": self.site.name, "namespace": "default"}
        made, binding = role(f"{self.site.name}-data", "", on_volume(self.name, *verbs))
        granted = (made, {**binding, "subjects": [account]})
        self.bindings.append(granted)
        self.site.apply(*granted)

    def ask(self, method: str, token: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection("localhost", self.port, context=self.context)
        try:
            connection.request(method, self.path, body, {"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def status(self, method: str, body: bytes | None = None) -> int:
        return self.ask(method, f"user:{self.user}", body)[0]


@pytest.fixture
def served(site: Site, certificate: Path) -> Iterator[Served]:
    if os.environ.get("KUBECONFIG"):
        pytest.skip("only the server of the tests believes the names in such tokens")
    made = Served(site, certificate)
    yield made
    for granted in made.bindings:
        for item in granted:
            site.cluster.kubectl("delete", item["kind"], item["metadata"]["name"])


class TestAccess:
    def test_only_who_may_read_or_write_does(self, served: Served) -> None:
        assert served.status("GET") == 403
        assert served.status("PUT", b"x") == 403
        served.grant("data-read")
        until(lambda: served.status("GET") == 200, told=served.site.said)
        assert served.status("PUT", b"x") == 403
        served.grant("data-read", "data-write")
        until(lambda: served.status("PUT", b"new") == 200, told=served.site.said)
        assert served.ask("GET", f"user:{served.user}")[1][:3] == b"new"

    def test_a_token_of_nobody_is_told_nothing(self, served: Served) -> None:
        for token in ("nobody", "sa:x"):
            status, body = served.ask("GET", token)
            assert status == 401, body
            assert json.loads(body)["reason"] == "Unauthenticated"

    def test_the_agent_asks_with_the_callers_token_and_shows_it_nowhere(
        self, served: Served
    ) -> None:
        served.grant("data-read")
        until(lambda: served.status("GET") == 200, told=served.site.said)
        served.ask("PUT", "a-secret-of-somebody")
        seen = served.operator.log
        state = served.operator.state
        for path in state.rglob("*"):
            if path.is_file():
                seen += path.read_bytes().decode(errors="replace")
        seen += json.dumps(served.site.read(served.disk)) + json.dumps(
            served.site.events(served.disk)
        )
        assert "a-secret-of-somebody" not in seen
        assert f"user:{served.user}" not in seen

    def test_another_volume_is_another_matter(self, served: Served) -> None:
        served.grant("data-read")
        until(lambda: served.status("GET") == 200, told=served.site.said)
        other = served.site.volume("other")
        served.site.apply(other)
        served.site.ready(other)
        served.path = served.path.replace(served.name, other["metadata"]["name"])
        assert served.status("GET") == 403
        served.path = served.path.replace("other", "none")
        assert served.status("GET") == 403


class TestCommandLine:
    """``poolkeeper volume upload|download --server`` with a service account's token."""

    def command(
        self, served: Served, tmp_path: Path, command: str, file: Path, *, token: str = ""
    ) -> tuple[int, str]:
        secret, kept = token or served.account, tmp_path / "token"
        kept.write_text(f"{secret}\n")
        argv = [sys.executable, "-m", "controller.cli.main", "volume", command, served.name]
        named = ["--server", f"https://localhost:{served.port}", "--token-file", str(kept)]
        done = subprocess.run(
            [*argv, str(file), *named, "--ca", str(tmp_path / "data.crt"), "-n", "default",
             "--state-dir", str(tmp_path / "elsewhere")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert secret not in done.stdout + done.stderr
        return done.returncode, done.stderr

    def test_an_account_reads_and_writes_what_its_role_lets_it(
        self, served: Served, tmp_path: Path
    ) -> None:
        sent, got = tmp_path / "sent", tmp_path / "got"
        sent.write_bytes(os.urandom(MIB))
        for command, file in (("upload", sent), ("download", got)):
            code, said = self.command(served, tmp_path, command, file)
            assert code == 1
            assert f"needs the verb data-{'write' if file == sent else 'read'}" in said
        served.grant_account("data-read")
        until(lambda: self.command(served, tmp_path, "download", got)[0] == 0)
        assert got.read_bytes() == bytes(MIB)
        assert self.command(served, tmp_path, "upload", sent)[0] == 1
        served.grant_account("data-write")
        until(lambda: self.command(served, tmp_path, "upload", sent)[0] == 0, told=served.site.said)
        assert (served.site.directory("images") / "disk").read_bytes() == sent.read_bytes()
        code, said = self.command(served, tmp_path, "download", tmp_path / "again")
        assert (code, "needs the verb data-read" in said) == (1, True)

    def test_a_token_of_nobody_moves_nothing(self, served: Served, tmp_path: Path) -> None:
        sent, got = tmp_path / "sent", tmp_path / "got"
        sent.write_bytes(b"x")
        for command, file in (("upload", sent), ("download", got)):
            code, said = self.command(served, tmp_path, command, file, token="of-nobody-at-all")
            assert code == 1
            assert "token" in said
        assert not got.exists()


def test_the_node_tells_where_its_contents_are_served(site: Site, certificate: Path) -> None:
    operator = site.operator(
        POOLKEEPER_DATA_LISTEN="127.0.0.1:0",
        POOLKEEPER_TLS_CERT=str(certificate),
        POOLKEEPER_DATA_URL="https://hv-01:8443",
    )
    node = {"kind": "StorageNode", "metadata": {"name": operator.node}}
    until(lambda: site.read(node)["status"].get("dataURL") == "https://hv-01:8443")
