"""Private authorities and the certificates that they give, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """An authority of its own, with its files in a directory."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.certificate = directory / f"{name}.crt"
        self._key = directory / f"{name}.key"
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign",
            "-keyout", str(self._key), "-out", str(self.certificate),
        )  # fmt: skip

    def give(self, cert: Path, key: Path, *names: str) -> None:
        """Make a certificate for DNS names, and put both files in their place."""
        asked, extensions = self._directory / "asked.csr", self._directory / "extensions"
        extensions.write_text(f"subjectAltName={','.join(f'DNS:{name}' for name in names)}\n")
        made = {cert: self._directory / "made.crt", key: self._directory / "made.key"}
        self._openssl(
            "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={names[0]}",
            "-keyout", str(made[key]), "-out", str(asked),
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", str(asked), "-CA", str(self.certificate), "-CAkey",
            str(self._key), "-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out",
            str(made[cert]),
        )  # fmt: skip
        for path, new in made.items():
            new.replace(path)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
