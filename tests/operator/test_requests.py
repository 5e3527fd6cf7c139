"""What the client of the API server makes of answers that no healthy server gives on demand.

The answers are scripted; everything else about the operator is tested on a real server in
``tests/cluster``.
"""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lightkube.core.resource_registry import resource_registry

from backends import errors
from controller.cluster.apiserver import ApiServer
from controller.resources import Key

KEY = Key("StoragePool", "", "images")
OBJECT = {"apiVersion": "poolkeeper.dev/v1alpha1", "kind": "StoragePool", "metadata": {}}


@dataclass
class Answer:
    """One answer: a status, headers and a body. Status 0 closes the connection without one."""

    status: int = 200
    body: Any = field(default_factory=lambda: dict(OBJECT))
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Script:
    """Answers in turn, the last one again and again; and the tokens that were shown."""

    answers: list[Answer]
    tokens: list[str] = field(default_factory=list)


def _status(code: int, **more: Any) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, **more}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """A server that answers as it is told, and a kubeconfig that names it."""
    told = Script([Answer()])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.tokens.append(self.headers.get("Authorization", ""))
            answer = told.answers.pop(0) if len(told.answers) > 1 else told.answers[0]
            if not answer.status:
                self.close_connection = True
                return
            text = isinstance(answer.body, str)
            body = answer.body.encode() if text else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", "text/plain" if text else "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    _write_kubeconfig(tmp_path, server.server_address[1], "first")
    yield told
    server.shutdown()
    server.server_close()


def _write_kubeconfig(directory: Path, port: int | str, token: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "it", "user": {"token": token}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }
    (directory / "kubeconfig").write_text(json.dumps(config))


def test_it_waits_as_long_as_the_server_asks(script: Script) -> None:
    script.answers[:0] = [Answer(429, _status(429), {"Retry-After": "1"})]
    begun = time.monotonic()
    assert ApiServer().get(KEY) == OBJECT
    assert time.monotonic() - begun >= 1.0


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(0),
        Answer(503, "apiserver is shutting down"),
        Answer(500, _status(500)),
        Answer(404, "404 page not found"),
    ],
    ids=["cut", "stopping", "broken", "starting"],
)
def test_passing_trouble_is_not_noticed(script: Script, trouble: Answer) -> None:
    script.answers[:0] = [trouble]
    assert ApiServer().get(KEY) == OBJECT


def test_a_server_that_does_not_serve_the_kind_never_makes_an_object_absent(script: Script) -> None:
    script.answers[:] = [Answer(404, "404 page not found")]
    with pytest.raises(errors.Inaccessible):
        ApiServer().get(KEY)


def test_an_object_that_is_not_there_is_absent(script: Script) -> None:
    details = {"name": "images", "group": "poolkeeper.dev", "kind": "storagepools"}
    script.answers[:] = [Answer(404, _status(404, reason="NotFound", details=details))]
    assert ApiServer().get(KEY) is None


def test_a_token_that_was_replaced_is_read_anew(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.cluster.apiserver.RENEWED_WITHIN", 0.0)
    server = ApiServer()
    port = json.loads((tmp_path / "kubeconfig").read_text())["clusters"][0]["cluster"]["server"]
    _write_kubeconfig(tmp_path, port.rpartition(":")[2], "second")
    script.answers[:0] = [Answer(401, _status(401, reason="Unauthorized"))]
    assert server.get(KEY) == OBJECT
    assert script.tokens == ["Bearer first", "Bearer second"]


def test_a_refusal_is_told_at_once(script: Script) -> None:
    script.answers[:] = [Answer(403, _status(403, reason="Forbidden", message="not yours"))]
    with pytest.raises(errors.PermissionRefused, match="not yours"):
        ApiServer().get(KEY)
    assert len(script.tokens) == 1


def test_nobody_waits_once_it_is_to_stop(script: Script) -> None:
    script.answers[:] = [Answer(429, _status(429), {"Retry-After": "20"})]
    stop = threading.Event()
    server = ApiServer(stop)
    threading.Timer(0.3, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(errors.Inaccessible):
        server.get(KEY)
    assert time.monotonic() - begun < 15


def test_threads_that_ask_for_the_first_time_at_once_all_get_an_answer(script: Script) -> None:
    from controller.cluster import apiserver

    apiserver._made.cache_clear()
    resource_registry.clear()
    server, answers = ApiServer(), []
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait()
        answers.append(server.get(KEY))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [OBJECT] * 8
