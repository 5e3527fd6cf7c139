"""A web server, and a file that takes in what it sends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.base import Work
from backends.host import fetching
from backends.host.fetching import Address
from backends.images import importing
from backends.images.importing import Intake, Room
from tests.importing.servers import Site, make_certificate, serving

MIB = 2**20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between two tries that nobody has to sit through."""
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.001)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as made:
        yield made


@pytest.fixture
def secure_site(tmp_path: Path) -> Iterator[tuple[Site, str]]:
    """The same over https, and the certificates to trust."""
    certificate, pem = make_certificate(tmp_path)
    with serving(Site(), certificate=certificate) as made:
        yield made, pem


class Taken:
    """An empty file that images are fetched into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = Work()
        self.room = Room(contents=64 * MIB, stored=64 * MIB)

    def fetch(
        self, url: str, *, checksum: str | None = None, authorization: str = "", pem: str = ""
    ) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        address = Address(url, authorization, pem)
        try:
            importing.from_web(
                address,
                Intake(
                    name=address.shown, fd=fd, room=self.room, checksum=checksum, work=self.work
                ),
            )
        finally:
            os.close(fd)

    @property
    def contents(self) -> bytes:
        return self.path.read_bytes()


@pytest.fixture
def taken(tmp_path: Path) -> Taken:
    return Taken(tmp_path / "taken")


Fetch = Callable[..., None]
