"""How long to wait before what failed is tried again."""

from __future__ import annotations

FIRST_RETRY = 1.0
"""Seconds until the first further try; doubled with each failure up to ``LAST_RETRY``."""

LAST_RETRY = 60.0


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row, without jitter."""
    return float(min(LAST_RETRY, FIRST_RETRY * 2 ** (max(failures, 1) - 1)))
