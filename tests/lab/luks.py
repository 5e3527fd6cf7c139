"""What stands in encrypted volumes on devices, as qemu sees it."""

from __future__ import annotations

import subprocess
from pathlib import Path

LUKS = {"format": "luks", "secretRef": {"name": "key"}}
"""The encryption of a volume, with the secret that ``make_key`` makes."""

MOST_OF_A_HEADER = 2 * 2**20


def make_key(directory: Path) -> Path:
    """A directory of secrets with one key; the key's path."""
    directory.mkdir(mode=0o700)
    made = directory / "key"
    made.touch(mode=0o600)
    made.write_text("the passphrase of a volume")
    return made


def decrypted(key: Path, device: Path, *commands: str) -> bool:
    """Whether all commands of qemu-io succeed on the contents; reading has to find the pattern."""
    node = f"driver=luks,key-secret=k,file.driver=host_device,file.filename={device}"
    words = [word for item in commands for word in ("-c", item)]
    argv = ["qemu-io", "--object", f"secret,id=k,file={key}", *words, "--image-opts", node]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0 or "verification failed" in done.stdout, done
    return done.returncode == 0
