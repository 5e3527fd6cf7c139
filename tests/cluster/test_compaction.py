"""etcd forgets its history while an operator does not look; a list tells what no watch can."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from controller.resources import GROUP
from tests.cluster.sites import Site, address

pytestmark = pytest.mark.cluster


def compact(directory: Path) -> int:
    """Have the etcd of a test's API server forget all but its present state; the revision."""
    shown = subprocess.run(["ss", "-tlnpH"], capture_output=True, text=True, check=True).stdout
    for line in shown.splitlines():
        found = re.search(r"127\.0\.0\.1:(\d+)\s.*pid=(\d+)", line)
        if found and str(directory) in Path(f"/proc/{found[2]}/cmdline").read_text():
            try:
                revision = int(_ask(found[1], "range", {"key": "AA=="})["header"]["revision"])
                _ask(found[1], "compaction", {"revision": revision, "physical": True})
            except (OSError, ValueError, KeyError):  # another of the process's ports
                continue
            return revision
    raise AssertionError("etcd was not found")


def _ask(port: str, call: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v3/kv/{call}", data=json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.loads(answer.read()))


def test_what_went_and_came_before_a_compaction_is_caught_up_with(
    own_site: Site, server: Any
) -> None:
    site = own_site
    operator = site.operator()
    pool, gone, kept = site.pool(), site.volume("gone"), site.volume("kept")
    site.apply(pool, gone, kept)
    site.ready(pool, gone, kept)
    assert operator.process is not None
    operator.process.send_signal(signal.SIGSTOP)
    late = site.volume("late")
    site.delete(gone)
    site.apply(late)
    assert compact(server.kubeconfig.parent) > 0
    server.kill()  # its cache of changes goes; what was before the compaction can't be told again
    server.start()
    operator.process.send_signal(signal.SIGCONT)
    site.ready(late)
    site.cluster.kubectl("annotate", *address(pool), f"{GROUP}/requested-at=now")
    site.wait(pool, "--for=jsonpath={.status.volumes.unmanaged}=1")
    site.wait(pool, "--for=jsonpath={.status.volumes.managed}=2")
    assert operator.process.poll() is None
