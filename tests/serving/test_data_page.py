"""What docs/data.md shows does what it says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

from tests.serving.test_data import Served
from tests.transferring.streams import MIB

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_curl_commands_of_the_page(tmp_path: Path) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    site = Served(tmp_path)
    try:
        disk = site.declare("web")
        site.tokens.read()
        work = tmp_path / "work"
        work.mkdir()
        (work / "disk.raw").write_bytes(os.urandom(4 * MIB))
        assert not isinstance(site.server.address, Path)
        given = {"STATE": str(site.state), "PORT": str(site.server.address.port)}
        done = subprocess.run(
            ["bash", "-ec", commands], cwd=work, env={**os.environ, **given}, capture_output=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        contents = (work / "disk.raw").read_bytes()
        assert disk.read_bytes() == contents
        assert (work / "copy.raw").read_bytes() == contents
        assert (work / "mbr").read_bytes() == contents[:512]
        told = json.loads(done.stdout[done.stdout.rindex(b"{") :])
        assert told == {"length": 4 * MIB, "sha256": hashlib.sha256(contents).hexdigest()}
    finally:
        site.engine.stop()
        site.server.stop()
        site.rest()
        site.store.close()
