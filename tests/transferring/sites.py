"""A pool with volumes, on whose contents commands are tried."""

from __future__ import annotations

from pathlib import Path

from backends.base import Work
from backends.images.transferring import Hole, Piece
from controller import contents
from controller.admitting import Command, Target, admit
from controller.contents import Selection
from tests.keeper import Keeper, dir_pool, volume, volume_key
from tests.transferring.streams import plain


class Site(Keeper):
    """A keeper with one pool, ``images``, and what is done to its volumes on command."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "state")
        self.pool = root / "images"
        self.apply(dir_pool("images", self.pool))

    def settle(self, passes: int = 4) -> None:
        """So many passes: free space, which others change, is no sign of rest."""
        for _ in range(passes):
            self.reconcile()
            assert self.engine.jobs.idle(120)

    def declare(self, name: str, **spec: object) -> Path:
        self.apply(volume(name, "images", **{"capacity": "4Mi", "allocation": 0, **spec}))
        self.settle()
        self.assert_ready(volume_key(name))
        return self.pool / name

    def admit(self, command: Command, name: str = "web") -> Target:
        world = self.engine.world()
        found = self.engine.examiner.examine_pool(world, "images")
        self.engine.examiner.examine_volumes(world, found)
        return admit(self.engine.examiner, self.engine.jobs, found, volume_key(name), command)

    def upload(self, pieces: list[Piece], name: str = "web", **options: object) -> contents.Moved:
        given = {key: options.pop(key) for key in ("announced", "expected") if key in options}
        return contents.write(
            self.admit(Command.UPLOAD, name),
            Selection(**options),  # type: ignore[arg-type]
            pieces,
            Work(),
            **given,  # type: ignore[arg-type]
        )

    def download(self, name: str = "web", **options: object) -> bytes:
        target, selection = self.admit(Command.DOWNLOAD, name), Selection(**options)  # type: ignore[arg-type]
        taken: list[Piece] = []

        def take(piece: Piece) -> None:
            taken.append(piece if isinstance(piece, Hole) else bytes(piece))

        with contents.source(target, selection) as (opened, span):
            contents.read(opened, span, selection, Work(), take)
        return plain(taken)
