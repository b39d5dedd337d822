"""Calls in several threads, also while the process ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], n_threads: int
) -> list[Result]:
    """Call a function with each item, several at a time; return the results in their order.

    A process that ends starts no threads any more, but `cached` commits its last unit then: the
    calls are made one after the other.
    """
    todo = list(items)
    if len(todo) > 1:
        with ThreadPoolExecutor(min(n_threads, len(todo)), "strata-parallel") as pool:
            try:
                calls = [pool.submit(function, item) for item in todo]
            except RuntimeError:  # after the interpreter's shutdown
                calls = []
            if calls:
                return [call.result() for call in calls]
    return [function(item) for item in todo]
