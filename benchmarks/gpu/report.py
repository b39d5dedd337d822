"""The table of the benchmark, with the limit of each row where it is known, and its JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu.rounds import Method, paired, speeds


@dataclass(frozen=True)
class Limit:
    """A limit of the machine.

    Attributes:
        name: Name of the limit.
        realtime_factor: The limit in times real time, for the features of this model.
        detail: The measurement in its own unit.
    """

    name: str
    realtime_factor: float
    detail: str


@dataclass
class Report:
    """Everything that is printed.

    Attributes:
        facts: Machine, clips, model and versions, by name.
        limits: Limits of the machine.
        errors: Relative error of each precision against float64 on the CPU.
        methods: Rows of the table; the first is the baseline.
        limits_of: For each row the names of the limits, or of other rows, that bound it.
        stages: For each row of a worker what limited its last run.
        notes: What was left out, and why.
    """

    facts: dict[str, str] = field(default_factory=dict)
    limits: list[Limit] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    methods: list[Method] = field(default_factory=list)
    limits_of: dict[str, Sequence[str]] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def tightest(report: Report, row: str, found: Mapping[str, float]) -> tuple[str, float] | None:
    """Return the lowest limit of a row and the share of it that the row reaches."""
    known = {limit.name: limit.realtime_factor for limit in report.limits} | dict(found)
    bounds = {name: known[name] for name in report.limits_of.get(row, ()) if name in known}
    if not bounds or row not in found:
        return None
    name = min(bounds, key=lambda key: bounds[key])
    return name, found[row] / bounds[name]


def show(report: Report, audio_s: float) -> None:
    """Print the report."""
    for name, value in report.facts.items():
        print(f"{name + ':':<12}{value}")
    print(f"\n{'limit':<34}{'× real time':>12}")
    for limit in report.limits:
        print(f"{limit.name:<34}{limit.realtime_factor:>12,.0f}  {limit.detail}")
    found = speeds(report.methods, audio_s)
    print(f"\n{'method':<34}{'× real time':>12}{'range':>18}{'× plain':>9}  of its limit")
    for method in report.methods:
        if not method.seconds:
            print(f"{method.name:<34}{'–':>12}  not run: no time was left")
            continue
        low, high = audio_s / max(method.seconds), audio_s / min(method.seconds)
        ratio = paired(report.methods[0], method)
        share = tightest(report, method.name, found)
        print(
            f"{method.name:<34}{found[method.name]:>12,.1f}{f'{low:,.1f}–{high:,.1f}':>18}"
            f"{'–' if ratio is None else f'{ratio:.2f}':>9}  "
            + ("" if share is None else f"{share[1]:.2f} of {share[0]}")
        )
    for name, stages in report.stages.items():
        print(f"{name}: {stages}")
    for precision, error in report.errors.items():
        print(f"error of {precision}, rms relative to float64, worst layer: {error:.1e}")
    for note in report.notes:
        print(note)


def document(report: Report, audio_s: float) -> dict[str, Any]:
    """Return the report for JSON."""
    found = speeds(report.methods, audio_s)
    shares = {name: tightest(report, name, found) for name in found}
    return {
        "facts": report.facts,
        "limits": {
            limit.name: {"realtime_factor": limit.realtime_factor, "detail": limit.detail}
            for limit in report.limits
        },
        "realtime_factor": found,
        "of_plain": {m.name: paired(report.methods[0], m) for m in report.methods if m.seconds},
        "of_limit": {name: share for name, share in shares.items() if share is not None},
        "seconds": {m.name: m.seconds for m in report.methods},
        "median_s": {m.name: statistics.median(m.seconds) for m in report.methods if m.seconds},
        "stages": report.stages,
        "errors": report.errors,
        "notes": report.notes,
    }
