"""A kill -9 of the agent between any two steps of an operation loses nothing else and ends well."""

import os
import subprocess

import pytest

from controller.resources import Key
from tests.crash.test_kill_between_steps import Host, every_kill, manifest, ready_with

OPERATION = Key("VolumeOperation", "default", "gone")
SIZE = 8 * 2**20


def succeeded(store):
    found = store.get(OPERATION)
    return found.status.phase in ("Succeeded", "Failed") and ready_with(SIZE)(store)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_wiping_a_volume_survives_a_kill_between_any_two_steps(tmp_path, format):
    host = Host(tmp_path)
    disk = host.pool / "disk"
    host.apply(manifest(host.pool, format=format, capacity="8Mi"))
    assert host.run_agent(ready_with(SIZE)) == 0
    write = ["qemu-io", "-f", format, "-c", "write -P 0x5a 1M 64k", str(disk)]
    subprocess.run(write, check=True, capture_output=True)
    mode, mark = disk.stat().st_mode, os.getxattr(disk, "user.poolkeeper.uid")
    host.apply(f"""
apiVersion: poolkeeper.dev/v1alpha1
kind: VolumeOperation
metadata: {{name: {OPERATION.name}}}
spec:
  volumeRef: {{name: disk}}
  operation: Wipe
""")

    def killed():
        assert set(host.names()) <= {"disk", ".poolkeeper"}
        assert disk.stat().st_mode == mode
        assert os.getxattr(disk, "user.poolkeeper.uid") == mark

    def converged():
        assert host.names() == ["disk"]
        assert disk.stat().st_mode == mode
        assert os.getxattr(disk, "user.poolkeeper.uid") == mark
        read = ["qemu-io", "-r", "-f", format, "-c", "read -P 0 0 8M", str(disk)]
        shown = subprocess.run(read, check=True, capture_output=True, text=True).stdout
        assert "verification failed" not in shown
        store = host.store()
        assert store.get(OPERATION).status.phase == "Succeeded"
        store.close()

    assert every_kill(host, succeeded, killed, converged) > 3
