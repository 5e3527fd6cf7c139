"""A libvirtd of the test's own, in a mount namespace where it finds none of the host's files."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends.host import machines

PATIENCE = 60.0

_CONFIGURATION = {
    "libvirtd.conf": """
unix_sock_dir = "{sockets}"
auth_unix_ro = "none"
auth_unix_rw = "none"
""",
    "qemu.conf": """
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
""",
    "passwd": "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\n",
    "group": "root:x:0:\nlibvirt-qemu:x:64055:\nkvm:x:64056:\n",
}

_START = """
set -e
for part in /run /etc /var/lib /var/log /var/cache; do
    mkdir -p $part/libvirt
    mount -t tmpfs poolkeeper-test $part/libvirt
done
cp {root}/qemu.conf /etc/libvirt/
for file in passwd group; do mount --bind {root}/$file /etc/$file; done
exec libvirtd -f {root}/libvirtd.conf -p {root}/pid
"""


@dataclass(frozen=True)
class Libvirt:
    """A daemon with real domains, whose machines run no program: they have nothing to boot."""

    root: Path
    daemon: subprocess.Popen[bytes]

    @property
    def sockets(self) -> Path:
        return self.root / "sockets"

    def virsh(self, *arguments: str) -> str:
        uri = f"qemu+unix:///system?socket={self.sockets}/libvirt-sock"
        done = subprocess.run(
            ["virsh", "-q", "-c", uri, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, name: str, disk: Path, format: str, *, paused: bool = False) -> None:
        kind, source = ("block", "dev") if disk.is_block_device() else ("file", "file")
        definition = self.root / f"{name}.xml"
        definition.write_text(f"""
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='{kind}' device='disk'>
      <driver name='qemu' type='{format}'/>
      <source {source}='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
  </devices>
</domain>
""")
        self.virsh("define", str(definition))
        self.virsh("start", name, *(["--paused"] if paused else []))

    def stop(self, name: str) -> None:
        self.virsh("destroy", name)


@pytest.fixture(scope="module")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    root = tmp_path_factory.mktemp("libvirt")
    for name, text in _CONFIGURATION.items():
        (root / name).write_text(text.replace("{sockets}", str(root / "sockets")))
    (root / "sockets").mkdir()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    with (root / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [*command, _START.replace("{root}", str(root))], stdout=log, stderr=log
        )
    made = Libvirt(root, daemon)
    deadline = time.monotonic() + PATIENCE
    while not (made.sockets / "libvirt-sock-ro").exists():
        assert daemon.poll() is None, (root / "log").read_text()
        assert time.monotonic() < deadline, (root / "log").read_text()
        time.sleep(0.1)
    yield made
    for name in made.virsh("list", "--name").split():
        made.stop(name)
    daemon.terminate()
    daemon.wait()


@pytest.fixture
def asked(libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    """The daemon, as the one of this host."""
    monkeypatch.setattr(machines, "DIRECTORY", str(libvirt.sockets))
    return libvirt
