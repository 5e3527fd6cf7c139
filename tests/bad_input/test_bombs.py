"""Documents made to take all memory or time, or to fetch: refused for about what a refusal costs.

Time and memory are measured in the command's own process, and held against those of a command
that refuses a manifest of one line.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.processes import PATIENCE, Poolkeeper

MEASURED = """
import json, sys, time
from controller.cli.main import main
code = main()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"code": code, "seconds": time.process_time(), "peak": peak}))
"""

MEMORY = 96 * 2**20
"""Bytes that a document of a MiB may take beside what the program takes anyway."""

TIMES = 10
"""How many times as long as the smallest refusal, all of start-up included."""

SECRET = "a line that must not be read"

POOL = "<pool type='dir'><name>{name}</name><target><path>/nowhere</path></target></pool>"


def laughs(*, parameter=False):
    mark = "% " if parameter else ""
    sign = "%" if parameter else "&"
    entities = [f"<!ENTITY {mark}a0 'ha'>"]
    for n in range(1, 12):
        tenfold = f"{sign}a{n - 1};" * 10
        entities.append(f"<!ENTITY {mark}a{n} '{tenfold}'>")
    return f"<!DOCTYPE pool [{''.join(entities)}]>{POOL.format(name='&a11;')}"


def with_entity(reference):
    return f"<!DOCTYPE pool [<!ENTITY x {reference}>]>{POOL.format(name='&x;')}"


XML = {
    "laughs": laughs(),
    "parameter laughs": laughs(parameter=True),
    "one long entity many times": (
        f'<!DOCTYPE pool [<!ENTITY x "{"x" * 100_000}">]>{POOL.format(name="&x;" * 100_000)}'
    ),
    "an entity of itself": with_entity('"&x;"'),
    "an endless file": with_entity("SYSTEM 'file:///dev/zero'"),
    "a secret file": with_entity("SYSTEM 'file://{secret}'"),
    "a server": with_entity("SYSTEM 'http://127.0.0.1:{port}/x'"),
    "a parameter from a server": (
        "<!DOCTYPE pool [<!ENTITY % x SYSTEM 'http://127.0.0.1:{port}/x'> %x;]>"
        + POOL.format(name="x")
    ),
    "a DTD from a server": (
        "<!DOCTYPE pool SYSTEM 'http://127.0.0.1:{port}/x.dtd'>" + POOL.format(name="x")
    ),
    "a DTD behind comments": f"<?xml version='1.0'?><!-- <pool> --><?x y?>\n<!-- -->{laughs()}",
    "a deep nest": "<pool>" + "<a>" * 200_000,
    "a deep nest that is closed": "<pool>" + "<a>" * 100_000 + "</a>" * 100_000 + "</pool>",
    "very many attributes": "<pool " + " ".join(f"a{n}=''" for n in range(100_000)) + "/>",
    "a long name": POOL.format(name="x" * 900_000),
    "very many elements": f"<pool type='dir'>{'<a/>' * 200_000}</pool>",
    "an endless comment": "<!--" + "-x" * 450_000,
    "5 MiB": "<pool>" + " " * 5 * 2**20 + "</pool>",
    "a stylesheet": "<?xml-stylesheet href='http://127.0.0.1:{port}/x'?><pool/>",
}

YAML = {
    "laughs": "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "merges": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 50)}]\n" for n in range(1, 12)),
    "a deep list": "a: " + "[" * 500_000,
    "a deep mapping": "{a: " * 300_000,
    "deep dashes": "- " * 500_000,
    "a long key": f"{'k' * 2_000_000}: 1\n",
    "a long number": f"kind: {'9' * 2_000_000}\n",
    "very many fields": "".join(f"a{n}: 1\n" for n in range(300_000)),
    "very many documents": "---\n" * 200_000,
    "very many broken documents": "--- [\n" * 300_000,
    "an open quote": "kind: '" + "x\n" * 1_000_000,
    "a python object": "kind: !!python/object/apply:os.system ['touch {secret}.run']\n",
}


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """Apply one file in a process that tells what it took."""
    root = tmp_path_factory.mktemp("bombs")
    keeper = Poolkeeper(root / "state", root)

    def run(name, text):
        file = root / name
        file.write_text(text)
        ended = subprocess.run(
            [sys.executable, "-c", MEASURED, "apply", "-f", str(file)],
            env=keeper.environment(), cwd=root, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        assert not keeper.state.exists()
        return json.loads(ended.stdout), ended.stderr

    return run


@pytest.fixture(scope="module")
def smallest(measure):
    return max((measure("bad.xml", "<pool/>")[0] for _ in range(3)), key=lambda item: item["peak"])


@pytest.fixture
def server():
    """A port on which nobody may come by."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize(
    ("file", "name"),
    [*(("bomb.xml", name) for name in XML), *(("bomb.yaml", name) for name in YAML)],
)
def test_a_bomb_costs_about_what_a_refusal_costs(measure, smallest, server, tmp_path, file, name):
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    text = (XML if file == "bomb.xml" else YAML)[name]
    text = text.replace("{secret}", str(secret)).replace("{port}", str(server.getsockname()[1]))
    took, said = measure(file, text)
    assert took["code"] == 1, said
    assert file in said
    assert "Traceback" not in said
    assert SECRET not in said
    assert len(said) < 2**20
    assert os.listdir(tmp_path) == ["secret"]
    assert took["peak"] < smallest["peak"] + MEMORY
    print(f"{name}: {took['seconds']:.2f} s, {(took['peak'] - smallest['peak']) / 2**20:.0f} MiB")
    assert took["seconds"] < TIMES * smallest["seconds"]
