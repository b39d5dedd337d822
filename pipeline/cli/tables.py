"""Printed results of the verbs, and some JSON objects of `--json`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.store.format.records import AUDIO_FLAGS

if TYPE_CHECKING:
    from pipeline.encoders.selfcheck import SelfCheck
    from pipeline.extract.planning.estimate import Estimate
    from pipeline.probing.results import CandidateScore, Sweep
    from pipeline.store.maintain.repair import Repair
    from pipeline.store.maintain.status import Status
    from pipeline.store.maintain.verify import Verification


MAX_REASONS = 10
"""Reasons of quarantine that `plan` prints, and `status` without `--all`."""
MAX_LINES = 50
"""Damaged units, and files that belong to none, that `verify` prints without `--json`."""
_DIFFERS = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,._]*")


def duration(seconds: float | None) -> str:
    """Format seconds for people: 48.0 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def show_estimate(console: Console, estimate: Estimate) -> None:
    """Print the size of a plan."""
    console.print(
        f"{estimate.utterances:,} utterances, {estimate.hours:.2f} h of audio → "
        f"{estimate.units:,} units of {estimate.frames_per_unit:,} frames, "
        f"{estimate.frames:,} frames, {estimate.bytes / 1e9:.2f} GB on disk "
        f"({estimate.free_bytes / 1e9:.1f} GB free)"
    )
    if estimate.unreadable:
        console.print(f"{estimate.unreadable:,} cannot be read and will be quarantined:")
    for group in estimate.reasons[:MAX_REASONS]:
        names = ", ".join(group.ids) + (", …" if group.count > len(group.ids) else "")
        console.print(f"  {group.count:,}: {group.reason} ({names})", markup=False)
    n_more = len(estimate.reasons) - MAX_REASONS
    if n_more > 0:
        console.print(f"  and {n_more} other reasons")


def show_status(console: Console, status: Status, all_reasons: bool = False) -> None:
    """Print the progress of a store.

    Args:
        console: Where to print.
        status: The progress.
        all_reasons: Whether to print every reason of quarantine, instead of the most frequent ones,
            where reasons that differ in names and numbers count as one.
    """
    console.print(
        f"{status.units_committed:,} of {status.units_total:,} units committed, "
        f"{status.utterances_ok:,} of {status.utterances_total:,} utterances, "
        f"{status.utterances_quarantined:,} quarantined, {status.audio_seconds / 3600:.3f} h of "
        f"audio; all runs took {duration(status.wall_seconds)}"
    )
    if status.realtime_factor and status.last_run_audio_seconds is not None:
        eta = f", {duration(status.eta_seconds)} left" if status.eta_seconds is not None else ""
        console.print(
            f"last run: {status.last_run_audio_seconds / 3600:.3f} h of audio in "
            f"{duration(status.last_run_wall_seconds)}, {status.realtime_factor:.1f}× real time"
            f"{eta}"
        )
    if status.seconds:
        total = sum(status.seconds.values()) or 1.0
        parts = ", ".join(f"{stage} {spent / total:.0%}" for stage, spent in status.seconds.items())
        console.print(f"workers' time: {parts}")
    if status.limited_by:
        console.print(status.limited_by)
    flags = {flag: count for flag, count in status.flags.items() if flag in AUDIO_FLAGS}
    if flags:
        shown = ", ".join(f"{count:,} {flag}" for flag, count in flags.items())
        console.print(f"flagged: {shown}", markup=False)
    if status.utterances_fp32:
        console.print(f"{status.utterances_fp32} utterances were encoded again in fp32")
    reasons = list(status.reasons.items()) if all_reasons else grouped_reasons(status.reasons)
    listed = reasons if all_reasons else reasons[:MAX_REASONS]
    for reason, count in listed:
        console.print(f"  quarantined {count:,}: {reason}", markup=False)
    if len(listed) < len(reasons):
        rest = sum(count for _, count in reasons[MAX_REASONS:])
        console.print(f"  quarantined {rest:,}: for {len(reasons) - len(listed):,} other reasons")
    if len(listed) < len(status.reasons):
        console.print(f"  `strata status STORE --all` lists all {len(status.reasons):,} reasons")
    if status.log_lines_skipped or status.clock_steps:
        console.print(
            f"log.jsonl: {status.log_lines_skipped:,} damaged lines are skipped and the clock was "
            f"set {status.clock_steps:,} times; only times and speeds depend on it"
        )
    if status.live:
        console.print(f"run {status.run_id} is running")


def grouped_reasons(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Group reasons that differ only in numbers and quoted names; the most frequent come first.

    Args:
        reasons: Number of utterances with each reason.

    Returns:
        Each reason and its number of utterances. What differs within a group is shown as an
        ellipsis.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for reason in reasons:
        groups[_DIFFERS.sub("…", reason)].append(reason)
    counts = [
        (members[0] if len(members) == 1 else pattern, sum(reasons[item] for item in members))
        for pattern, members in groups.items()
    ]
    return sorted(counts, key=lambda item: -item[1])


def show_verification(console: Console, verification: Verification, repair: Repair | None) -> None:
    """Print damaged units, orphans, the verdict, and what was repaired."""
    damages = [f"unit {damage.unit}: {damage.problem}" for damage in verification.damages]
    orphans = [f"{orphan.path}: {orphan.what}" for orphan in verification.orphans]
    for lines, style in ((damages, "red"), (orphans, None)):
        for line in lines[:MAX_LINES]:
            console.print(line, style=style, markup=False)
        if len(lines) > MAX_LINES:
            console.print(f"... and {len(lines) - MAX_LINES:,} more; `--json` lists all")
    verdict = "sound" if verification.ok else f"{len(verification.damaged_units)} units are DAMAGED"
    console.print(
        f"{verification.units_committed} of {verification.units_total} units checked, "
        f"{verification.utterances_ok} utterances, {verification.n_bytes / 1e9:.2f} GB: {verdict}"
    )
    if repair:
        console.print(repair.summary())


def verification_document(verification: Verification, repair: Repair | None) -> dict[str, Any]:
    """Return the JSON object of `verify`."""
    return {
        "ok": verification.ok,
        "damaged_units": verification.damaged_units,
        "problems": [asdict(damage) for damage in verification.damages],
        "units_committed": verification.units_committed,
        "units_total": verification.units_total,
        "utterances_ok": verification.utterances_ok,
        "utterances_quarantined": verification.utterances_quarantined,
        "bytes": verification.n_bytes,
        "strays": [asdict(orphan) for orphan in verification.orphans],
        "repaired_units": repair.units if repair else [],
    }


def show_facts(console: Console, facts: dict[str, Any], indent: str = "") -> None:
    """Print nested facts, one a line."""
    for key, value in facts.items():
        if isinstance(value, dict):
            console.print(f"{indent}{key}", style="bold", markup=False)
            show_facts(console, value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            console.print(f"{indent}{key}", style="bold", markup=False)
            for item in value:
                line = "  ".join(f"{name} {shown}" for name, shown in item.items())
                console.print(f"{indent}  {line}", markup=False)
        else:
            shown = duration(value) if key.endswith("_seconds") else value
            console.print(f"{indent}{key}: {shown}", markup=False)


def show_layers(
    console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], page: Path
) -> None:
    """Print the table of layer statistics and the path of the report."""
    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"report: {page}", markup=False)


def model_rows() -> list[dict[str, Any]]:
    """Return name, size and storage of the encoders that have a short name."""
    from pipeline.encoders.wav2vec2.bundles import registry

    return [
        {
            "name": spec.name,
            "layers": spec.n_layers,
            "dim": spec.dim,
            "parameters": spec.n_parameters(),
            "gb_per_hour": round(spec.bytes_per_hour / 1e9, 3),
        }
        for spec in registry().values()
    ]


def show_models(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print the encoders that have a short name."""
    table = Table("model", "layers", "dim", "parameters", "GB per audio hour", box=None)
    for row in rows:
        count = f"{row['parameters'] / 1e6:,.1f} M"
        numbers = (str(row["layers"]), str(row["dim"]), count, f"{row['gb_per_hour']:.2f}")
        table.add_row(str(row["name"]), *numbers)
    console.print(table)
    console.print("and any Hugging Face checkpoint of the family: model=hf model.name=ID_OR_DIR")


def show_selfcheck(console: Console, result: SelfCheck) -> None:
    """Print the largest relative error of each layer and the verdict."""
    from pipeline.store.format.codecs import DEFAULT_CODEC

    table = Table("layer", "single vs batch", f"{result.precision} vs fp32", box=None)
    for row in zip(result.layers, result.alone_vs_batch, result.precision_vs_fp32, strict=True):
        table.add_row(str(row[0]), f"{row[1]:.1e}", f"{row[2]:.1e}")
    console.print(table)
    verdict = "within" if result.ok else "NOT within"
    console.print(
        f"{result.model} in {result.precision}, {result.n_waveforms} clips, "
        f"{result.audio_s:.1f} s: largest relative errors per layer, {verdict} the "
        f"{result.tolerance:g} that rounding explains; {result.n_misfits} clips do not fit "
        f"{DEFAULT_CODEC.name}"
    )


def show_sweep(console: Console, sweep: Sweep, page: Path) -> None:
    """Print the scores, their uncertainty and baselines, and the path of the report."""
    folds = f", {len(sweep.test_ids)} folds" if len(sweep.test_ids) > 1 else ""
    console.print(
        f"{sweep.task} on {', '.join(sweep.labels)}: {sweep.n_train:,} utterances to train, "
        f"{sweep.n_dev:,} dev, {sweep.n_test:,} test{folds} ({sweep.split})",
        markup=False,
    )
    console.print(f"features: {sweep.encoder}; scores: {sweep.metric}, dev chooses", markup=False)
    console.print(_table(sweep))
    console.print(_comparison(sweep), markup=False)
    for name, value in sweep.baselines.items():
        console.print(f"  {name}: {value:.3f}", markup=False)
    for warning in sweep.warnings:
        console.print(f"WARNING: {warning}", style="bold red", markup=False)
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in sweep.seconds.items())
    console.print(f"{sweep.trained} heads trained, {sweep.reused} reused; {stages}")
    console.print(f"report: {page}", markup=False)


def _table(sweep: Sweep) -> Table:
    extras = list(sweep.scores[0].extra)
    table = Table(box=None, pad_edge=False)
    names = ("layer", "lr", "dev", "test", "95 % interval", "± seeds")
    for name in (*names, *(extra.replace("_", "-") for extra in extras), ""):
        table.add_column(name, justify="right", no_wrap=True)
    for score in sweep.scores:
        best = score.layer == sweep.best
        cells = [*_cells(score, extras), "best" if best else ""]
        table.add_row(*(Text(cell, style="bold" if best else "") for cell in cells))
    return table


def _cells(score: CandidateScore, extras: list[str]) -> list[str]:
    return [
        str(score.layer),
        f"{score.lr:g}",
        f"{score.dev:.3f}",
        f"{score.test:.3f}",
        f"{score.low:.3f}–{score.high:.3f}",
        f"{score.seed_sd:.3f}",
        *(f"{score.extra[name]:.3f}" for name in extras),
    ]


def _comparison(sweep: Sweep) -> str:
    if sweep.comparison is None:
        return "One candidate only: nothing to compare."
    best, second = (
        "the weighted sum" if layer == "weighted" else f"layer {layer}"
        for layer in (sweep.comparison.best, sweep.comparison.second)
    )
    sure = "a real difference" if sweep.comparison.p_value < 0.05 else "no clear difference"
    return (
        f"{best} against {second}, the best two on dev: test {sweep.metric} differs by "
        f"{sweep.comparison.difference:+.3f}, p = {sweep.comparison.p_value:.3g} "
        f"({sweep.comparison.test}): {sure}"
    )
