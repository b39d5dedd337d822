"""The command `strata VERB [overrides]`, and its verbs.

Those that make something from a store are in `verbs/transforms.py`, some in modules beside it.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated

import typer

from pipeline.cli import tables
from pipeline.cli.options import (
    IMPORTING,
    All,
    AllowCode,
    AsJson,
    Debug,
    Overrides,
    Store,
)
from pipeline.cli.output import (
    EXIT_ERROR,
    EXIT_QUARANTINED,
    console,
    reported,
    signals_to,
)
from pipeline.cli.progress import Notes, RunProgress, VerifyProgress
from pipeline.cli.streams import open_standard_streams
from pipeline.cli.usage import Verbs
from pipeline.cli.verbs import transforms
from pipeline.cli.verbs.fidelity import fidelity
from pipeline.cli.verbs.layers import layers
from pipeline.cli.verbs.predict import export_head, predict
from pipeline.cli.verbs.sweeps import report, sweep
from pipeline.config import check_code, load_config
from pipeline.errors import ConfigError
from pipeline.events import announced

app = typer.Typer(
    name="strata",
    cls=Verbs,
    help="Extract all layers of a speech encoder once; read any of them at any time.",
    epilog="Exit codes: 0 done, 1 error, 2 usage, 3 done but too many utterances are quarantined.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the command `strata`."""
    open_standard_streams()
    app()


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"strata {version('strata-speech')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options before the verb."""


@app.command()
def plan(
    overrides: Overrides = None,
    show_all: All = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Scan the dataset and print its size, units and disk space; with store=, write the plan."""
    with reported(as_json, debug) as answer:
        config = load_config(overrides or [])
        check_code(config.model, allow_code)
        with announced(Notes(console), IMPORTING):
            from pipeline.encoders.modules.registration import allow_target
            from pipeline.extract import run

        allow_target(config.model)
        with RunProgress(console) as progress:
            estimate = run.plan(config, progress)
        answer(lambda out: tables.show_estimate(out, estimate, show_all), asdict(estimate))


@app.command()
def extract(
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Extract what is missing; safe to run again at any time."""
    with reported(as_json, debug) as answer:
        config = load_config(overrides or [])
        check_code(config.model, allow_code)
        with announced(Notes(console), IMPORTING):
            from pipeline.encoders.modules.registration import allow_target
            from pipeline.extract import run
            from pipeline.extract.stop import Stop
            from pipeline.store.coordination.run_history import read_history

        allow_target(config.model)
        stop = Stop()
        last = read_history(config.store).last_busy if config.store else None
        progress = RunProgress(console, last.speed if last else None)
        with progress, signals_to(stop.request):
            status = run.extract(config, progress, stop)
        known = status.utterances_ok + status.utterances_quarantined
        limit = config.run.max_quarantined
        is_too_many = status.utterances_quarantined > limit * known
        if is_too_many:
            share = status.utterances_quarantined / known
            progress.note(
                f"{share:.1%} of the utterances are quarantined, more than run.max_quarantined="
                f"{limit:g}; see `strata inspect {config.store}`"
            )
        code = EXIT_QUARANTINED if is_too_many else 0
        answer(
            lambda out: tables.show_status(out, status, store=config.store or "STORE"),
            asdict(status),
            code,
        )


@app.command()
def relabel(
    store: Store,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="dataset=... dataset.KEY=VALUE", help="The dataset."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Renew the columns of a store from a dataset, without audio; ids are matched."""
    with reported(as_json, debug) as answer:
        given = overrides or []
        other = [item for item in given if not re.match(r"dataset[.=]", item)]
        if other:
            raise ConfigError(f"relabel takes settings of the dataset only, not {other[0]}")
        config = load_config(given)
        with announced(Notes(console), IMPORTING):
            from pipeline.extract.relabel import relabel as relabel_store

        with RunProgress(console) as progress:
            result = relabel_store(store, config, progress)
        answer(lambda out: tables.show_relabelling(out, result), asdict(result))


@app.command()
def status(
    store: Store, show_all: All = False, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Print the progress of a store."""
    with reported(as_json, debug) as answer:
        with announced(Notes(console), IMPORTING):
            from pipeline.store.maintain.status import read_status

        with announced(Notes(console), "reading the index"):
            store_status = read_status(store)
        answer(
            lambda out: tables.show_status(out, store_status, show_all, store),
            asdict(store_status),
        )


@app.command()
def verify(
    store: Store,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Revoke the commits of damaged units, so that extract redoes them."
        ),
    ] = False,
    sample: Annotated[
        float | None,
        typer.Option("--sample", help="Share of units to check completely; default: 1."),
    ] = None,
    show_all: All = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check every checksum and count of a store; --repair revokes commits of damaged units."""
    with reported(as_json, debug) as answer:
        if repair and sample is not None:
            raise ConfigError("--repair reads every unit; leave --sample out")
        with announced(Notes(console), IMPORTING):
            from pipeline.store.maintain.repair import repair_store
            from pipeline.store.maintain.verify import verify_store

        share = 1.0 if sample is None else sample
        with VerifyProgress(console) as progress:
            repaired = repair_store(store, progress.unit_checked) if repair else None
            verification = (
                repaired.found if repaired else verify_store(store, progress.unit_checked, share)
            )
        answer(
            lambda out: tables.show_verification(out, verification, repaired, show_all, store),
            tables.verification_document(verification, repaired),
            0 if verification.ok or repaired else EXIT_ERROR,
        )


@app.command()
def inspect(
    store: Store,
    utterance: Annotated[
        str | None, typer.Argument(metavar="ID", help="Id of an utterance.")
    ] = None,
    show_all: All = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Print what a store or one of its utterances contains."""
    with reported(as_json, debug) as answer:
        with announced(Notes(console), IMPORTING):
            from pipeline.store.maintain.inspection import describe_store, describe_utterance
            from pipeline.store.read.opening import open_store

        with announced(Notes(console), "reading the index"):
            opened = open_store(store)
        if utterance is None:
            facts = describe_store(opened)
            answer(lambda out: tables.show_store(out, facts, show_all, store), facts)
        else:
            facts = describe_utterance(opened, utterance)
            answer(lambda out: tables.show_facts(out, facts), facts)


for verb in transforms.VERBS:
    app.command()(verb)


app.command()(layers)
app.command()(sweep)
app.command()(report)
app.command()(fidelity)
app.command()(predict)
app.command()(export_head)


@app.command()
def models(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the encoders that can be chosen by name."""
    with reported(as_json, debug) as answer:
        with announced(Notes(console), IMPORTING):
            rows = tables.model_rows()
        answer(lambda out: tables.show_models(out, rows), {"models": rows})


@app.command()
def selfcheck(
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare clips alone, in batches, encoded again, and in fp32."""
    with reported(as_json, debug) as answer:
        config = load_config(["engine=inline", *(overrides or [])])
        check_code(config.model, allow_code)
        with announced(Notes(console), IMPORTING):
            from pipeline.encoders.modules.registration import allow_target
            from pipeline.extract.resources import find_resources
            from pipeline.extract.selfcheck import full_selfcheck

        allow_target(config.model)
        with announced(Notes(console), "loading the encoder and encoding the clips"):
            result, note = full_selfcheck(config, find_resources(config.engine).device)
        code = 0 if result.ok else EXIT_ERROR
        if note:
            Notes(console).note(note)
        answer(lambda out: tables.show_selfcheck(out, result), asdict(result), code)
