"""A bar on standard error for one transfer or operation, where that is a terminal."""

from __future__ import annotations

import sys
from types import TracebackType

from controller.cli.printing import one_line


class Bar:
    """Shows bytes done of bytes in all; nothing where nobody looks.

    :ivar drawn: whether anything is shown.
    """

    def __init__(self, label: str) -> None:
        self.drawn = sys.stderr.isatty()
        if not self.drawn:
            return
        from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task = self._progress.add_task(one_line(label), total=None)

    def __enter__(self) -> Bar:
        if self.drawn:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.drawn:
            self._progress.stop()

    def show(self, done: int, total: int) -> None:
        """Draw how far it is; ``total`` 0 where that is not known."""
        if self.drawn:
            self._progress.update(self._task, completed=done, total=total or None)
