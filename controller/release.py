"""The release that runs."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def release() -> str | None:
    """The release of this installation; None where it is not installed."""
    try:
        return version("poolkeeper")
    except PackageNotFoundError:
        return None
