"""Servers of files inside the guest: NFS by the kernel, CIFS by smbd, GlusterFS by glusterd."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from pathlib import Path

from tests.lab.spare import run
from tests.lab.targets import wait_until

PATIENCE = 120.0
USER, PASSWORD = "keeper", "a secret, with a comma"


def succeeds(*argv: str | Path) -> bool:
    words = [str(word) for word in argv]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


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
        if not succeeds("id", USER):
            run("useradd", "--no-create-home", USER)
        twice = f"{PASSWORD}\n{PASSWORD}\n".encode()
        run("smbpasswd", "-c", self._configuration, "-s", "-a", USER, input=twice)
        run("modprobe", "cifs")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        argv = ["smbd", "--foreground", "--no-process-group", "-s", str(self._configuration)]
        self._process = subprocess.Popen(argv, start_new_session=True)
        asked = ("smbclient", "-s", self._configuration, "-N", "-L", "127.0.0.1")
        wait_until(lambda: succeeds(*asked), PATIENCE)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class GlusterServer:
    """glusterd with one volume of one brick.

    :ivar address: of the server: bricks are refused on 127.0.0.0/8.
    :ivar brick: the directory that the volume's files are in.
    """

    address, volume = "192.0.2.24", "images"

    def __init__(self, root: Path) -> None:
        self.brick = root / "brick"
        run("modprobe", "fuse")
        run("ip", "address", "replace", f"{self.address}/32", "dev", "lo")
        for place in ("/var/log/glusterfs", "/run/gluster"):
            Path(place).mkdir(parents=True, exist_ok=True)
        quiet = subprocess.DEVNULL  # it has logs of its own
        self._daemon = subprocess.Popen(["glusterd", "--no-daemon"], stdout=quiet, stderr=quiet)
        wait_until(lambda: succeeds(*self._command("volume", "list")), PATIENCE)
        brick = f"{self.address}:{self.brick}"
        run(*self._command("volume", "create", self.volume, brick, "force"))
        # As long as a client waits for a server that is silent, before it takes it to be gone.
        run(*self._command("volume", "set", self.volume, "network.ping-timeout", "60"))
        self.start()

    def _command(self, *words: str) -> tuple[str, ...]:
        return ("gluster", "--mode=script", *words)

    def start(self) -> None:
        run(*self._command("volume", "start", self.volume, "force"))

    def stop(self) -> None:
        """As a brick's server that has died: its clients are told by their connection's end."""
        run("killall", "--signal", "KILL", "--wait", "glusterfsd")

    def silence(self) -> None:
        """As a server that hangs: its clients wait."""
        run("killall", "--signal", "STOP", "glusterfsd")

    def speak(self) -> None:
        run("killall", "--signal", "CONT", "glusterfsd")

    def remove(self) -> None:
        self.speak()
        run(*self._command("volume", "stop", self.volume, "force"))
        run(*self._command("volume", "delete", self.volume))
        self._daemon.kill()
        self._daemon.wait()
