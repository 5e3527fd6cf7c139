"""The entry of ``poolkeeper``: what a command returns or raises becomes an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from backends.errors import StorageError, from_os_error
from controller.cli.printing import report

USAGE = 64
"""EX_USAGE of sysexits.h; apart from 1 for a failure and 2 for a plan with changes."""

INTERRUPTED = 130

COMPLETION = "_POOLKEEPER_COMPLETE"
"""Set where a shell asks for completions (Typer: completion)."""

_UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""Of the click that Typer brings or uses, whichever this Typer does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code.

    :param arguments: without the program's name; those of the process if left out.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name need not be UTF-8; it is shown escaped rather than not at all.
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has enough; the interpreter must not fail on its last flush.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: list[str]) -> int:
    from controller.cli.commands import app  # noqa: PLC0415 - inside what is reported

    command = typer.main.get_command(app)
    if not arguments and COMPLETION not in os.environ:
        with contextlib.redirect_stdout(sys.stderr):
            command.main(["--help"], prog_name="poolkeeper", standalone_mode=False)
        return USAGE
    try:
        answer = command.main(arguments, prog_name="poolkeeper", standalone_mode=False)
        sys.stdout.flush()
    except typer.Abort:
        return INTERRUPTED
    except _UsageError as error:
        error.show()
        return USAGE
    except StorageError as error:
        report(error)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        report(from_os_error(error, doing=f"use {error.filename}" if error.filename else "go on"))
        return 1
    return answer if isinstance(answer, int) else 0


if __name__ == "__main__":
    sys.exit(main())
