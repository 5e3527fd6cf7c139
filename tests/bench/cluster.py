"""What operators cost an API server and their host; run by hand.

    POOLKEEPER_TESTAPI=./testapi .venv/bin/python -m tests.bench.cluster --minutes 10

It starts the API server that ``POOLKEEPER_TESTAPI`` names, with operators for as many nodes as
asked for, all on this machine. Requests are counted by the server (``apiserver_request_total``):
those of kubectl and of the watch of this script are among them. Times are from the server's first
word of a volume, over that watch, to its first word of it being Ready.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from backends import errors
from controller.cluster.apiserver import ApiServer
from controller.resources import GROUP, kinds
from tests.cluster.conftest import Cluster, Server, install
from tests.cluster.sites import Operator, Site

Counts = Counter[tuple[str, str]]
TICKS = os.sysconf("SC_CLK_TCK")
POLL = 0.2


def requests(cluster: Cluster) -> Counts:
    """Requests so far about our kinds and events, by verb and resource."""
    text = cluster.kubectl("get", "--raw", "/metrics").stdout
    found: Counts = Counter()
    for family in text_string_to_metric_families(text):
        if family.name != "apiserver_request":
            continue
        for sample in family.samples:
            labels = sample.labels
            if labels.get("group") == GROUP or labels.get("resource") == "events":
                what = "/".join(filter(None, (labels["resource"], labels["subresource"])))
                found[labels["verb"], what] += int(sample.value)
    return found


def shown(counts: Counts) -> dict[str, int]:
    """The same for people."""
    return {f"{verb} {what}": number for (verb, what), number in sorted(counts.items()) if number}


def used(operator: Operator) -> tuple[float, float]:
    """Seconds of CPU so far and MiB in memory (proc(5))."""
    assert operator.process is not None
    proc = Path("/proc") / str(operator.process.pid)
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / TICKS
    resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return cpu, resident / 2**20


class Clock:
    """When each volume was first heard of, and first heard of as Ready."""

    def __init__(self, server: ApiServer) -> None:
        self.created: dict[str, float] = {}
        self.ready: dict[str, float] = {}
        self._server = server
        self.stop = threading.Event()
        version = server.list(kinds()["StorageVolume"], {}).version
        threading.Thread(target=self._follow, args=(version,), daemon=True).start()

    def _follow(self, version: str) -> None:
        try:
            for _, found in self._server.watch(kinds()["StorageVolume"], {}, version):
                moment, uid = time.monotonic(), found["metadata"]["uid"]
                self.created.setdefault(uid, moment)
                if _ready(found):
                    self.ready.setdefault(uid, moment)
        except errors.StorageError:
            if not self.stop.is_set():
                raise

    def times(self) -> list[float]:
        return sorted(self.ready[uid] - self.created[uid] for uid in self.ready)


def _ready(found: dict[str, Any]) -> bool:
    conditions = found.get("status", {}).get("conditions", ())
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def create(site: Site, *manifests: dict[str, Any]) -> None:
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
    done = site.cluster.kubectl("create", "--filename", "-", given=given)
    assert done.returncode == 0, done.stderr


def settled(site: Site) -> Counts:
    """Wait until the server is asked for nothing; its counts then."""
    before = requests(site.cluster)
    while True:
        time.sleep(3)
        present = requests(site.cluster)
        if not _writes(present - before):
            return present
        before = present


def _writes(counts: Counts) -> int:
    return sum(
        number
        for (verb, what), number in counts.items()
        if verb in ("PATCH", "APPLY", "PUT", "POST", "DELETE") and "storagenodes" not in what
    )


def measure(site: Site, arguments: argparse.Namespace) -> None:
    agents = [site.operator(f"n{place}") for place in range(arguments.agents)]
    pools = [site.pool(f"pool{place}", f"n{place}") for place in range(arguments.agents)]
    site.apply(*pools)
    site.ready(*pools)
    before = settled(site)
    create(site, site.volume("one", "pool0"))
    site.ready(site.volume("one", "pool0"))
    print("requests for one new volume:", shown(settled(site) - before), flush=True)

    clock = Clock(ApiServer())
    before, cpu = settled(site), [used(item)[0] for item in agents]
    volumes = [
        site.volume(f"v{number}", f"pool{number % arguments.agents}")
        for number in range(arguments.volumes)
    ]
    began = time.monotonic()
    create(site, *volumes)
    print(f"kubectl create of {len(volumes)} volumes: {time.monotonic() - began:.1f} s", flush=True)
    while len(clock.ready) < len(volumes):
        time.sleep(POLL)
    times = clock.times()
    took = max(clock.ready.values()) - min(clock.created.values())
    middle, late = times[len(times) // 2], times[len(times) * 99 // 100]
    print(f"apply to Ready: p50 {middle:.2f} s, p99 {late:.2f} s")
    print(f"volumes per second: {len(times) / took:.1f}", flush=True)
    print(f"requests for {len(volumes)} new volumes:", shown(settled(site) - before))
    for item, spent in zip(agents, cpu, strict=True):
        now, memory = used(item)
        print(f"agent {item.node}: {now - spent:.1f} s of CPU, {memory:.0f} MiB", flush=True)
    clock.stop.set()

    before, cpu = settled(site), [used(item)[0] for item in agents]
    time.sleep(arguments.minutes * 60)
    counted = requests(site.cluster) - before
    print(f"requests in {arguments.minutes:g} min of rest:", shown(counted))
    print("writes but for heartbeats:", _writes(counted))
    for item, spent in zip(agents, cpu, strict=True):
        now, memory = used(item)
        print(f"agent {item.node}: {now - spent:.2f} s of CPU, {memory:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--volumes", type=int, default=1000)
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="poolkeeper-bench-") as made:
        root = Path(made)
        (root / "api").mkdir()
        (root / "crds").mkdir()
        server = Server(os.environ["POOLKEEPER_TESTAPI"], root / "api")
        try:
            server.start()
            install(server.cluster, root / "crds")
            os.environ["KUBECONFIG"] = str(server.kubeconfig)
            site = Site(server.cluster, root)
            try:
                measure(site, arguments)
            finally:
                for item in site.operators:
                    item.kill()
        finally:
            server.kill()


if __name__ == "__main__":
    main()
