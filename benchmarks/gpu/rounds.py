"""Alternating rounds of methods within a time limit."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


def nothing() -> None:
    """Do nothing."""


@dataclass
class Method:
    """One row of the table.

    Attributes:
        name: Name of the row.
        run: Encodes all clips once.
        warm_up: Encodes a few clips, so that kernels are chosen and memory is allocated.
        prepare: Removes what was written, before and after each run; not timed.
        seconds: Seconds of each run.
    """

    name: str
    run: Callable[[], None]
    warm_up: Callable[[], None] = nothing
    prepare: Callable[[], None] = nothing
    seconds: list[float] = field(default_factory=list)


class Deadline:
    """A point in time after which no further measurement begins."""

    def __init__(self, limit_s: float) -> None:
        self._end_s = time.monotonic() + limit_s

    def left_s(self) -> float:
        """Return the seconds that are left, negative after the deadline."""
        return self._end_s - time.monotonic()


def alternate(
    methods: list[Method],
    n_rounds: int,
    deadline: Deadline,
    before_round: Callable[[], None] = nothing,
) -> None:
    """Run all methods in turn, `n_rounds` times, so that drift affects all of them alike.

    `before_round` is called before each round that begins in time. A run begins only if the last
    run of its method would fit into the time that is left; before a method's first run, that of the
    first method. So a method may have fewer runs than others, or none.
    """
    for method in methods:
        if deadline.left_s() > 0:
            method.prepare()
            method.warm_up()
            method.prepare()
    for number in range(n_rounds):
        if deadline.left_s() > 0:
            before_round()
        for method in methods:
            known = method.seconds or methods[0].seconds
            if (known[-1] if known else 0.0) > deadline.left_s():
                print(f"  no time for {method.name}, round {number + 1}", file=sys.stderr)
                continue
            method.prepare()
            os.sync()  # this run must not wait for what the one before left unwritten
            began = time.perf_counter()
            method.run()
            method.seconds.append(time.perf_counter() - began)
            method.prepare()  # free the space for the next one
            print(f"  {method.name}: {method.seconds[-1]:.2f} s", file=sys.stderr)


def paired(baseline: Method, method: Method) -> float | None:
    """Return the median of baseline / method over their common rounds; None without one."""
    ratios = [a / b for a, b in zip(baseline.seconds, method.seconds, strict=False)]
    return statistics.median(ratios) if ratios else None


def speeds(methods: list[Method], audio_s: float) -> Mapping[str, float]:
    """Return the speed of each method that ran, in times real time."""
    return {m.name: audio_s / statistics.median(m.seconds) for m in methods if m.seconds}
