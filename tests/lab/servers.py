"""Servers of files inside the guest: NFS by the kernel, CIFS by smbd."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.lab.spare import run

PATIENCE = 120.0
USER, PASSWORD = "keeper", "a secret, with a comma"


class NfsServer:
    """The kernel's NFS server, which exports one directory in memory to this host.

    :ivar root: what ``127.0.0.1:/`` is for NFS 4; for NFS 3 it has its full path.
    """

    def __init__(self) -> None:
        self.root = Path("/tmp/exported")
        self.root.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=1g", "exported", self.root)
        run("modprobe", "-a", "nfsd", "nfs", "nfsv3", "nfsv4")
        run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
        Path("/run/rpc_pipefs").mkdir(exist_ok=True)
        run("mount", "-t", "rpc_pipefs", "rpc_pipefs", "/run/rpc_pipefs")
        options = "rw,no_subtree_check,insecure,crossmnt"
        Path("/etc/exports").write_text(f"{self.root} *({options},no_root_squash,fsid=0)\n")
        # Shorter than ten seconds the kernel does not let clients of a former server come back.
        for name in ("nfsv4leasetime", "nfsv4gracetime"):
            Path("/proc/fs/nfsd", name).write_text("10\n")
        for argv in (["rpcbind", "-w"], ["rpc.statd", "--no-notify"]):
            run(*argv)
        self.start()
        run("exportfs", "-ra")
        run("rpc.mountd")
        self.running = True

    def directory(self, name: str, *, mode: int = 0o755) -> Path:
        made = self.root / name
        made.mkdir()
        made.chmod(mode)
        return made

    def export(self, directory: Path, options: str) -> None:
        """Export a directory beside the root, with options of its own."""
        run("exportfs", "-o", f"rw,no_subtree_check,insecure,{options}", f"*:{directory}")

    def start(self) -> None:
        run("rpc.nfsd", "4")
        self.running = True

    def stop(self) -> None:
        """As a server that is down: its clients wait until it is back."""
        run("rpc.nfsd", "0")
        self.running = False


@functools.cache
def nfs() -> NfsServer:
    """The guest's one NFS server, which is started at its first use."""
    return NfsServer()


_SMB = """[global]
workgroup = LAB
server role = standalone server
map to guest = bad user
private dir = {state}
lock directory = {state}
state directory = {state}
cache directory = {state}
pid directory = {state}
ncalrpc dir = {state}/ncalrpc
log file = {state}/log
passdb backend = tdbsam
disable spoolss = yes
load printers = no
bind interfaces only = yes
interfaces = lo
[open]
path = {open}
guest ok = yes
read only = no
force user = root
[closed]
path = {closed}
valid users = {user}
read only = no
force user = root
"""


class CifsServer:
    """smbd with two shares: ``open`` to guests, ``closed`` to one user with a password."""

    def __init__(self, root: Path) -> None:
        state = root / "samba"
        self.open, self.closed = root / "open", root / "closed"
        for directory in (state, self.open, self.closed):
            directory.mkdir()
        self.open.chmod(0o777)
        self._configuration = root / "smb.conf"
        self._configuration.write_text(
            _SMB.format(state=state, open=self.open, closed=self.closed, user=USER)
        )
        if subprocess.run(["id", USER], capture_output=True, check=False).returncode != 0:
            run("useradd", "--no-create-home", USER)
        twice = f"{PASSWORD}\n{PASSWORD}\n".encode()
        run("smbpasswd", "-c", self._configuration, "-s", "-a", USER, input=twice)
        run("modprobe", "cifs")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        argv = ["smbd", "--foreground", "--no-process-group", "-s", str(self._configuration)]
        self._process = subprocess.Popen(argv, start_new_session=True)
        asked = ["smbclient", "-s", str(self._configuration), "-N", "-L", "127.0.0.1"]
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(asked, capture_output=True, check=False).returncode != 0:
            assert time.monotonic() < deadline, "smbd does not answer"
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
