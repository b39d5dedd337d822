"""The command line: `strata VERB [overrides]`.

People read stderr, programs read stdout: with `--json` its last line is one JSON object. Exit
codes: 0 done, 1 error, 2 usage, 3 done but too much is quarantined.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.cli.progress import LiveObserver, duration, show_estimate, show_status
from pipeline.cli.tables import SweepProgress, show_sweep
from pipeline.config import load_config, load_sweep_config, plain_overrides
from pipeline.errors import ConfigError, StrataError

EXIT_ERROR, EXIT_USAGE, EXIT_QUARANTINED = 1, 2, 3

app = typer.Typer(
    name="strata",
    help="Extract every layer of a speech encoder once; read any layer for ever.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True, highlight=False, soft_wrap=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. dataset.path=clips store=out."),
]
Store = Annotated[Path, typer.Argument(metavar="STORE", help="Path of a store.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Repair = Annotated[
    bool, typer.Option("--repair", help="Take damaged units back, so that extract redoes them.")
]
Sample = Annotated[
    float, typer.Option("--sample", help="Share of the units whose bytes are read; 1 is all.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Entry point of the command `strata`."""
    app()


@app.command()
def plan(overrides: Overrides = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Scan the dataset and say what extracting it amounts to; writes nothing but the plan."""
    with _reported(as_json, debug):
        from pipeline.extract import run

        config = load_config(overrides or [])
        with LiveObserver(console) as observer:
            found = run.plan(config, observer)
        show_estimate(console, found)
        _print_json(as_json, asdict(found))


@app.command()
def extract(overrides: Overrides = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Extract what is missing; safe to run again, whatever happened before."""
    with _reported(as_json, debug):
        from pipeline.extract import run
        from pipeline.extract.stop import Stop

        config = load_config(overrides or [])
        stop = Stop()
        with LiveObserver(console) as observer, _signals_to(stop.request):
            status = run.extract(config, observer, stop)
        show_status(console, status)
        _print_json(as_json, asdict(status))
    known = status.utterances_ok + status.utterances_quarantined
    if status.utterances_quarantined > config.run.max_quarantined * known:
        share = status.utterances_quarantined / known
        console.print(
            f"{share:.1%} of the utterances are quarantined, more than run.max_quarantined="
            f"{config.run.max_quarantined:g}; see `strata inspect {config.store}`"
        )
        raise typer.Exit(EXIT_QUARANTINED)


@app.command()
def status(store: Store, as_json: AsJson = False, debug: Debug = False) -> None:
    """Say how far a store has come."""
    with _reported(as_json, debug):
        from pipeline.store.maintain.status import read_status

        found = read_status(store)
        show_status(console, found)
        _print_json(as_json, asdict(found))


@app.command()
def verify(
    store: Store,
    repair: Repair = False,
    sample: Sample = 1.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check every checksum and count of a store; with --repair, take back what is damaged."""
    with _reported(as_json, debug):
        from pipeline.store.maintain.repair import repair_store
        from pipeline.store.maintain.verify import verify_store

        fixed = repair_store(store) if repair else None
        found = fixed.found if fixed else verify_store(store, sample=sample)
        for damage in found.damages:
            console.print(f"unit {damage.unit}: {damage.problem}", style="red", markup=False)
        for stray in found.strays:
            console.print(f"{stray.path}: {stray.what}", markup=False)
        verdict = "sound" if found.ok else f"{len(found.damaged_units)} units are DAMAGED"
        console.print(
            f"{found.units_committed} of {found.units_total} units checked, "
            f"{found.utterances_ok} utterances, {found.n_bytes / 1e9:.2f} GB: {verdict}"
        )
        if fixed:
            console.print(fixed.summary())
        _print_json(
            as_json,
            {
                "ok": found.ok,
                "damaged_units": found.damaged_units,
                "problems": [asdict(damage) for damage in found.damages],
                "units_committed": found.units_committed,
                "units_total": found.units_total,
                "utterances_ok": found.utterances_ok,
                "utterances_quarantined": found.utterances_quarantined,
                "bytes": found.n_bytes,
                "strays": [asdict(stray) for stray in found.strays],
                "repaired_units": fixed.units if fixed else [],
            },
        )
    if not found.ok and not fixed:
        raise typer.Exit(EXIT_ERROR)


@app.command()
def inspect(
    store: Store,
    utterance: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what is in a store, or in one utterance of it."""
    with _reported(as_json, debug):
        from pipeline.store.maintain.inspection import describe_store, describe_utterance
        from pipeline.store.read.features import open_store

        opened = open_store(store)
        facts = (
            describe_store(opened) if utterance is None else describe_utterance(opened, utterance)
        )
        _show_facts(facts)
        _print_json(as_json, facts)


@app.command()
def collapse(
    store: Store,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Path of the one-layer store.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="weights=... [softmax=true]", help="average, a file, or [0.1,...]."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the weighted sum of a store's layers as a store of one layer."""
    with _reported(as_json, debug):
        from pipeline.transforms.collapse import collapse as collapse_store

        given = plain_overrides(overrides or [], {"weights", "softmax"})
        if "weights" not in given:
            raise ConfigError("no weights are given; say weights=average, weights=FILE or a list")
        softmax = given.get("softmax", "false")
        if softmax not in ("true", "false"):
            raise ConfigError(f"softmax is {softmax!r}; expected true or false")
        with LiveObserver(console) as observer:
            done = collapse_store(
                store, out, given["weights"], softmax=softmax == "true", observer=observer
            )
        facts = asdict(done)
        _show_facts(facts)
        _print_json(as_json, facts)


@app.command()
def layers(
    store: Store,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[n_frames=20000] [seed=0] [out=DIR]", help="Sample, report."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what the layers look like without labels: sizes, directions, CKA between layers."""
    with _reported(as_json, debug):
        from pipeline.probing.layer_statistics import N_FRAMES, measure_layers
        from pipeline.probing.report.layers_report import HEAD, table_rows, write_layers_report
        from pipeline.store.read.features import open_store

        given = plain_overrides(overrides or [], {"n_frames", "seed", "out"})
        n_frames, seed = _whole(given, "n_frames", N_FRAMES), _whole(given, "seed", 0)
        out = Path(given.get("out") or Path("sweeps", store.resolve().name, "layers"))
        with LiveObserver(console) as observer:
            found = measure_layers(open_store(store), n_frames, seed, observer.note)
            for warning in found.warnings:
                observer.note(f"WARNING: {warning}")
        page = write_layers_report(found, out)
        table = Table(box=None, pad_edge=False)
        for name in HEAD:
            table.add_column(name, justify="right")
        for row in table_rows(found):
            table.add_row(*row)
        console.print(table)
        console.print(f"report: {page}", markup=False)
        _print_json(as_json, asdict(found) | {"report": str(page)})


@app.command()
def sweep(
    store: Store,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="task=... [KEY=VALUE]...", help="Task and settings."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train small heads on every layer and on their weighted sum: which layer is it?"""
    with _reported(as_json, debug):
        config = load_sweep_config(overrides or [])
        from pipeline.probing.report.sweep_report import write_report
        from pipeline.probing.run import summary
        from pipeline.probing.run import sweep as sweep_store

        with SweepProgress(console) as progress:
            found, folder = sweep_store(store, config, progress)
        page = write_report(found, folder)
        show_sweep(console, found, page)
        _print_json(as_json, summary(found) | {"report": str(page)})


@app.command()
def models(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the encoders that are known by name."""
    with _reported(as_json, debug):
        from pipeline.encoders.wav2vec2.bundles import registry

        rows: list[dict[str, Any]] = [
            {
                "name": spec.name,
                "layers": spec.n_layers,
                "dim": spec.dim,
                "parameters": spec.n_parameters(),
                "gb_per_hour": round(spec.bytes_per_hour / 1e9, 3),
            }
            for spec in registry().values()
        ]
        table = Table("model", "layers", "dim", "parameters", "GB per audio hour", box=None)
        for row in rows:
            count = f"{row['parameters'] / 1e6:,.1f} M"
            numbers = (str(row["layers"]), str(row["dim"]), count, f"{row['gb_per_hour']:.2f}")
            table.add_row(str(row["name"]), *numbers)
        console.print(table)
        console.print(
            "and any Hugging Face checkpoint of the family: model=hf model.name=ID_OR_DIR"
        )
        _print_json(as_json, {"models": rows})


@app.command()
def selfcheck(overrides: Overrides = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Encode clips alone, in a batch and in fp32, and show the largest differences."""
    with _reported(as_json, debug):
        from pipeline.extract.encoder_setup import full_selfcheck
        from pipeline.extract.resources import find_resources
        from pipeline.store.format.codecs import DEFAULT_CODEC

        config = load_config(["engine=inline", *(overrides or [])])
        found = full_selfcheck(config, find_resources(config.engine).device)
        table = Table("layer", "alone vs batch", f"{found.precision} vs fp32", box=None)
        for row in zip(found.layers, found.alone_vs_batch, found.precision_vs_fp32, strict=True):
            table.add_row(str(row[0]), f"{row[1]:.1e}", f"{row[2]:.1e}")
        console.print(table)
        verdict = "within" if found.ok else "NOT within"
        console.print(
            f"{found.model} in {found.precision}, {found.n_waveforms} clips, {found.audio_s:.1f} s:"
            f" largest relative errors per layer, {verdict} the {found.tolerance:g} that rounding "
            f"explains; {found.n_misfits} clips do not fit {DEFAULT_CODEC.name}"
        )
        _print_json(as_json, asdict(found))
    if not found.ok:
        raise typer.Exit(EXIT_ERROR)


def _whole(given: dict[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name} is {text!r}; expected a whole number from 0 on")
    return int(text)


@contextmanager
def _reported(as_json: bool, debug: bool) -> Iterator[None]:
    """Turns errors into one clear line and the right exit code."""
    try:
        yield
    except KeyboardInterrupt:
        _fail(
            "interrupted; what was committed is safe, run the same command again to go on", as_json
        )
    except StrataError as error:
        if debug:
            traceback.print_exc()
        code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_ERROR
        _fail(str(error), as_json, code)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001  the outermost boundary: one line, not a traceback
        if debug:
            traceback.print_exc()
        hint = "" if debug else " (--debug shows where)"
        _fail(f"unexpected {type(error).__name__}: {error}{hint}", as_json)


def _fail(message: str, as_json: bool, code: int = EXIT_ERROR) -> None:
    console.print(f"error: {' '.join(message.split())}", style="red", markup=False)
    _print_json(as_json, {"error": message})
    raise typer.Exit(code)


@contextmanager
def _signals_to(request: Callable[[str], None]) -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM ask a run to stop.

    Once it has stopped, a further signal ends the process at once: Ray's own end, which is all that
    is left then, does not survive a KeyboardInterrupt.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        request(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if asked else handler)


def _print_json(as_json: bool, document: dict[str, Any]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


def _show_facts(facts: dict[str, Any], indent: str = "") -> None:
    for key, value in facts.items():
        if isinstance(value, dict):
            console.print(f"{indent}{key}", style="bold", markup=False)
            _show_facts(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            console.print(f"{indent}{key}", style="bold", markup=False)
            for item in value:
                line = "  ".join(f"{name} {shown}" for name, shown in item.items())
                console.print(f"{indent}  {line}", markup=False)
        else:
            shown = duration(value) if key.endswith("_seconds") else value
            console.print(f"{indent}{key}: {shown}", markup=False)
