"""Times of several ways to do one thing, taken in turn in one run, and their ratios."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

ROUNDS = 3


def compare(
    title: str,
    ways: Mapping[str, Callable[[], object]],
    *,
    unit: str,
    amount: float,
    before: Callable[[], object] = lambda: None,
    rounds: int = ROUNDS,
) -> dict[str, float]:
    """Print the best of the rounds of each way, with its ratio to the fastest.

    Each round takes all ways in turn, so that what else the machine does meets them all.

    :param before: called before each measurement, such as to remove what the last one made.
    :param amount: how many of ``unit`` each way does.
    :return: seconds by way.
    """
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, act in ways.items():
            before()
            os.sync()
            started = time.perf_counter()
            act()
            best[name] = min(best[name], time.perf_counter() - started)
    fastest = min(best.values())
    print(title)
    for name, taken in best.items():
        print(f"  {name:42} {amount / taken:9.0f} {unit}/s, {taken / fastest:6.2f} of the fastest")
    return best
