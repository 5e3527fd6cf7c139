"""The certificate of an HTTPS side, taken anew whenever its files change.

What renews certificates, such as cert-manager by way of a Secret, puts other files in their place
and tells nobody. So they are looked at with each handshake, which costs two stat(2) calls.
"""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from backends import errors

log = logging.getLogger(__name__)

Seen = tuple[tuple[int, int, int], ...]


class Certificate:
    """A certificate with its chain, and its key, in PEM files.

    :param key: None where the key is in the certificate's file.
    :raises errors.InvalidSpec: they can't be used.
    """

    def __init__(self, cert: Path, key: Path | None) -> None:
        self._cert = cert
        self._key = key
        self._seen = self._look()
        self._current = self._loaded()
        self.context = self._loaded()
        """For a server: what it shows is the certificate as it is at that moment."""
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called with each handshake, also where the client names no server."""
        connection.context = self._latest()

    def _latest(self) -> ssl.SSLContext:
        try:
            seen = self._look()
            if seen != self._seen:
                self._seen = seen
                self._current = self._loaded()
                log.info("the certificate in %s is taken anew", self._cert)
        except errors.StorageError as error:  # half of a renewal; the other half is seen as well
            log.warning("the former certificate stays in use: %s", error)
        return self._current

    def _look(self) -> Seen:
        try:
            facts = [os.stat(path) for path in (self._cert, self._key or self._cert)]
        except OSError as error:
            raise self._unusable(error) from error
        return tuple((item.st_ino, item.st_size, item.st_mtime_ns) for item in facts)

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._cert, self._key)
        except (OSError, ssl.SSLError) as error:
            raise self._unusable(error) from error
        return context

    def _unusable(self, error: Exception) -> errors.InvalidSpec:
        return errors.InvalidSpec(
            f"The certificate in {self._cert} can't be used: {error}.",
            hint="Give the certificate with its chain and its key, both PEM.",
        )
