"""Printed results of the verbs, and some JSON objects of `--json`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipeline.cli.reasons import Reason, print_lines, show_alike, show_reasons
from pipeline.errors import counted
from pipeline.files import UNKNOWN_BYTES
from pipeline.store.format.layers import label_layers, label_of, standard_name
from pipeline.store.format.records import AUDIO_FLAGS

if TYPE_CHECKING:
    from pipeline.encoders.selfcheck import SelfCheck
    from pipeline.extract.planning.estimate import Estimate
    from pipeline.extract.relabel import Relabelling
    from pipeline.store.maintain.repair import Repair
    from pipeline.store.maintain.status import Status
    from pipeline.store.maintain.verify import Verification


NumberTable = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Column names and rows."""

MAX_ITEMS = 20
"""Items of a list that `inspect` prints without `--all`."""


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


def hours(seconds: float) -> str:
    """Format a length of audio: 25.3 s, 3.10 min, 960.00 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.2f} min" if seconds < 3600 else f"{seconds / 3600:,.2f} h"


def size(n_bytes: int) -> str:
    """Format a number of bytes: 322.8 kB, 3.3 MB, 3,312.40 GB."""
    if n_bytes < 1e6:
        return f"{n_bytes / 1e3:.1f} kB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.2f} GB"


def _free(n_bytes: int) -> str:
    """Return the free space in words; a bucket, and some file systems, do not tell theirs."""
    return "free space unknown" if n_bytes >= UNKNOWN_BYTES else f"{size(n_bytes)} free"


def show_estimate(console: Console, estimate: Estimate, show_all: bool = False) -> None:
    """Print the size of a plan, and why utterances cannot be read.

    Args:
        console: Where to print.
        estimate: The size.
        show_all: Whether to print every utterance that cannot be read, with its reason.
    """
    console.print(
        f"{counted(estimate.utterances, 'utterance')}, {hours(estimate.hours * 3600)} of audio → "
        f"{counted(estimate.units, 'unit')} of {estimate.frames_per_unit:,} frames, "
        f"{estimate.frames:,} frames, {size(estimate.bytes)} on disk "
        f"({_free(estimate.free_bytes)})"
    )
    if fixed := estimate.fixed_windows:
        print_lines(console, [line for line in [fixed.describe(estimate.hours)] if line])
    if estimate.unchanged is not None:
        from pipeline.extract.planning.changes import KINDS  # imports much, for `plan` alone

        kinds = (*KINDS, "dropped") if estimate.dropped else KINDS
        counts = {kind: getattr(estimate, kind) for kind in kinds}
        shown = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        console.print(f"compared with the store: {shown}")
    if estimate.unreadable:
        console.print(f"{estimate.unreadable:,} cannot be read and will be quarantined:")
    reasons = [Reason(item.reason, item.count, item.ids) for item in estimate.reasons]
    show_reasons(console, reasons, show_all, "strata plan ... --all")
    if show_all:
        print_lines(console, [f"  {name}: skipped" for name in estimate.skipped])


def show_relabelling(console: Console, result: Relabelling) -> None:
    """Print what `relabel` has changed."""
    labels = "nothing changed" if result.generation is None else f"labels={result.generation}"
    console.print(
        f"{labels}: {result.relabelled:,} relabelled, {result.unchanged:,} unchanged; columns: "
        f"{', '.join(result.columns) or 'none'}",
        markup=False,
    )
    if result.not_in_dataset:
        console.print(f"{result.not_in_dataset:,} are not in the dataset; their labels stay")
    if result.not_in_store:
        console.print(
            f"{result.not_in_store:,} rows of the dataset are not in the store; `strata extract` "
            "with this dataset encodes them"
        )


def show_status(
    console: Console, status: Status, show_all: bool = False, store: Path | str = "STORE"
) -> None:
    """Print the progress of a store.

    Args:
        console: Where to print.
        status: The progress.
        show_all: Whether to print every reason of quarantine, instead of the most frequent ones,
            where reasons that differ in names and numbers count as one.
        store: Path of the store, for the command that prints every reason.
    """
    n_dropped = status.utterances_dropped
    dropped = f" {n_dropped:,} dropped," if n_dropped else ""
    console.print(
        f"{status.units_committed:,} of {status.units_total:,} units committed, "
        f"{status.utterances_ok:,} of {status.utterances_total:,} utterances, "
        f"{status.utterances_quarantined:,} quarantined,{dropped} {hours(status.audio_seconds)} of "
        f"audio; all runs took {duration(status.wall_seconds)}"
    )
    if status.realtime_factor and status.last_run_audio_seconds is not None:
        eta = f", {duration(status.eta_seconds)} left" if status.eta_seconds is not None else ""
        console.print(
            f"last run: {hours(status.last_run_audio_seconds)} of audio in "
            f"{duration(status.last_run_wall_seconds)}, {status.realtime_factor:.1f}× real time"
            f"{eta}"
        )
    if status.limited_by:
        console.print(f"last run: {status.limited_by}")
    if status.seconds:
        total = sum(status.seconds.values()) or 1.0
        parts = ", ".join(f"{stage} {spent / total:.0%}" for stage, spent in status.seconds.items())
        console.print(f"workers' time in all runs: {parts}")
    flags = {flag: count for flag, count in status.flags.items() if flag in AUDIO_FLAGS}
    if flags:
        shown = ", ".join(f"{count:,} {flag}" for flag, count in flags.items())
        console.print(f"flagged: {shown}", markup=False)
    if status.utterances_fp32:
        console.print(f"encoded again in fp32: {counted(status.utterances_fp32, 'utterance')}")
    reasons = [Reason(reason, count) for reason, count in status.reasons.items()]
    show_reasons(console, reasons, show_all, f"strata status {store} --all", "quarantined ")
    if reasons:
        console.print(
            f"  `strata inspect {store} --all` names each quarantined utterance; "
            "after fixing files, run `extract` with retry_quarantined=true"
        )
    for tokens in status.tokens:
        what = "a weighted sum"
        if tokens.layer is not None:
            label = label_of(tokens.layer, tokens.layer_name or standard_name(tokens.layer))
            what = f"layer {label}"
        console.print(
            f"tokens {tokens.name}: {what}, k={tokens.k:,}, {tokens.units:,} of "
            f"{counted(tokens.units_total, 'unit')}",
            markup=False,
        )
    if status.log_lines_skipped or status.clock_steps:
        console.print(
            f"log.jsonl: {status.log_lines_skipped:,} damaged lines are skipped and the clock was "
            f"set {status.clock_steps:,} times; only times and speeds depend on it"
        )
    if status.live:
        console.print(f"run {status.run_id} is running")


def show_verification(
    console: Console,
    verification: Verification,
    repair: Repair | None,
    show_all: bool = False,
    store: Path | str = "STORE",
) -> None:
    """Print damaged units, orphans, the verdict, and what was repaired.

    Args:
        console: Where to print.
        verification: The result.
        repair: The repair; None if there was none.
        show_all: Whether to print every problem, instead of the first ones of each kind.
        store: Path of the store, for the command that prints every problem.
    """
    command = f"strata verify {store} --all"
    damages = [(f"unit {damage.unit}", damage.problem) for damage in verification.damages]
    damages += [(f"tokens {damage.name}", damage.problem) for damage in verification.tokens]
    show_alike(console, damages, show_all, command, "red")
    orphans = [(orphan.path, orphan.what) for orphan in verification.orphans]
    show_alike(console, orphans, show_all, command)
    n_damaged = len(verification.damaged_units)
    verdict = f"{counted(n_damaged, 'unit')} DAMAGED" if n_damaged else "sound"
    if verification.tokens:
        verdict = verdict if n_damaged else "features sound"
        verdict += f", TOKENS DAMAGED ({counted(len(verification.tokens), 'problem')})"
    lost = verification.utterances_quarantined
    quarantined = f" and {lost:,} quarantined" if lost else ""
    console.print(
        f"{verification.units_committed:,} of {verification.units_total:,} units checked, "
        f"{verification.utterances_ok:,} utterances{quarantined}, "
        f"{size(verification.n_bytes)}: {verdict}"
    )
    if repair:
        console.print(repair.summary())


def verification_document(verification: Verification, repair: Repair | None) -> dict[str, Any]:
    """Return the JSON object of `verify`."""
    return {
        "ok": verification.ok,
        "damaged_units": verification.damaged_units,
        "problems": [asdict(damage) for damage in verification.damages],
        "tokens": [asdict(damage) for damage in verification.tokens],
        "units_committed": verification.units_committed,
        "units_total": verification.units_total,
        "utterances_ok": verification.utterances_ok,
        "utterances_quarantined": verification.utterances_quarantined,
        "bytes": verification.n_bytes,
        "strays": [asdict(orphan) for orphan in verification.orphans],
        "repaired_units": repair.units if repair else [],
    }


def show_facts(
    console: Console, facts: dict[str, Any], show_all: bool = True, indent: str = ""
) -> None:
    """Print nested facts, one a line.

    Args:
        console: Where to print.
        facts: The facts.
        show_all: Whether to print all items of long lists.
        indent: Text before each line.
    """
    for key, value in facts.items():
        n_items = len(value) if isinstance(value, list) else 0
        items = value if show_all or n_items <= MAX_ITEMS else value[:MAX_ITEMS]
        more = f"... and {n_items - len(items):,} more; --all lists them" if n_items else ""
        if isinstance(value, dict):
            console.print(f"{indent}{key}", style="bold", markup=False)
            show_facts(console, value, show_all, indent + "  ")
        elif n_items and isinstance(value[0], dict):
            console.print(f"{indent}{key}", style="bold", markup=False)
            for item in items:
                line = "  ".join(f"{name} {_cut(part, show_all)}" for name, part in item.items())
                console.print(f"{indent}  {line}", markup=False)
            if len(items) < n_items:
                console.print(f"{indent}  {more}", markup=False)
        else:
            shown = duration(value) if key.endswith("_seconds") else _cut(value, show_all)
            console.print(f"{indent}{key}: {shown}", markup=False)


def show_store(
    console: Console, facts: dict[str, Any], show_all: bool, store: Path | str = "STORE"
) -> None:
    """Print the description of a store; its quarantined utterances come last, by reason."""
    facts = dict(facts)
    lost = facts.pop("quarantined")
    console.print(_summary(facts), style="bold", markup=False)
    show_facts(console, facts, show_all)
    ids_of: defaultdict[str, list[str]] = defaultdict(list)
    for item in lost:
        ids_of[item["reason"]].append(item["id"])
    console.print(f"quarantined: {len(lost):,}")
    reasons = [Reason(reason, len(ids), tuple(ids)) for reason, ids in ids_of.items()]
    show_reasons(console, reasons, show_all, f"strata inspect {store} --all")


def _summary(facts: dict[str, Any]) -> str:
    """Return encoder, layers, size and dtype of a store in one line."""
    storage = facts["storage"]
    kept = "" if "frames" in storage["keep"] else ", pooled, without frames"
    return (
        f"{facts['identity']['encoder'].get('model', 'unknown encoder')}, layers "
        f"{_layers_in_words(facts['layers'], facts['layer_names'])}, dim {facts['feature_dim']:,}, "
        f"{storage['dtype']}{kept}"
    )


def _layers_in_words(layers: Sequence[int], names: Sequence[str]) -> str:
    """Return the labels of layers; runs of numbers are ranges: `conv, 1 to 12`."""
    runs: list[list[str]] = []
    for layer, label in label_layers(layers, names).items():
        if runs and label == str(layer) and runs[-1][-1] == str(layer - 1):
            runs[-1].append(label)
        else:
            runs.append([label])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)


def _cut(value: Any, show_all: bool) -> Any:
    """Return a value with short numbers, and without the end of a long list."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return f"[{', '.join(str(_cut(item, True)) for item in value)}]"
    if show_all or not isinstance(value, list) or len(value) <= MAX_ITEMS:
        return value
    return f"{str(value[:MAX_ITEMS])[:-1]}, ... and {len(value) - MAX_ITEMS:,} more]"


def show_layers(console: Console, tables: Sequence[NumberTable], page: Path) -> None:
    """Print tables of layer statistics and the path of the report.

    Args:
        console: Where to print.
        tables: Column names and rows of each.
        page: The report.
    """
    for head, rows in tables:
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
    others = Table(show_header=False, box=None)
    others.add_row("Hugging Face transformers", "model=hf model.name=ID_OR_DIR")
    others.add_row("files of fairseq, unilm, s3prl", "model=checkpoint model.name=FILE.pt")
    others.add_row(
        "any torch module", "model=module model.target=PACKAGE.MODULE:FACTORY --allow-code"
    )
    console.print("Others, listed in docs/models.md:")
    console.print(others)


def show_selfcheck(console: Console, result: SelfCheck) -> None:
    """Print the largest relative error of each layer, and what was found."""
    from pipeline.encoders.checking.findings import describe_check, error_text, findings

    heads = ("layer", "single vs batch", f"{result.precision} vs fp32", "largest value")
    table = Table(*heads, box=None)
    columns = (result.alone_vs_batch, result.precision_vs_fp32, result.largest)
    for layer, *values in zip(result.layers, *columns, strict=True):
        table.add_row(str(layer), *map(error_text, values))
    console.print(table)
    for line in (*describe_check(result), *findings(result)):
        console.print(line)
