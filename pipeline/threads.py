"""Threads that compute with torch, each alone, and give their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")


@contextmanager
def single_threaded(n: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of `n` threads in each of which torch computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def in_order(
    pool: ThreadPoolExecutor, calls: Sequence[Callable[[], Result]], n_ahead: int
) -> Iterator[Result]:
    """Yield the results of calls, in their order; only `n_ahead` run or wait at a time."""
    waiting: deque[Future[Result]] = deque()
    try:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > n_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
