"""The verb `fidelity`, and its printed result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.cli.options import IMPORTING, AllowCode, AsJson, Debug, Store, layer_list, whole
from pipeline.cli.output import console, reported
from pipeline.cli.progress import FidelityProgress, Notes, SweepProgress
from pipeline.config import check_code, load_config, load_sweep_config, plain_overrides
from pipeline.config.ranges import RANGES, Range
from pipeline.errors import ConfigError, counted
from pipeline.events import announced

if TYPE_CHECKING:
    from pipeline.probing.fidelity.run import Fidelity
    from pipeline.probing.fidelity.sweeps import ScoreDifference, SweepLoss

OWN = ("n_utterances", "seed", "layers")
"""Settings of the verb itself; the others are those of `extract` or `sweep`."""
_EXTRACT = ("dataset", "model", "extract", "engine", "plan", "run")
MAX_LEFT_OUT = 5


def fidelity(
    store: Store,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[dataset=... model=...] [task=...] [n_utterances=40] [seed=0] [layers=[6]]",
            help="Settings of the extraction, to encode a sample again; or with --against a task.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="OTHER", help="A store to compare with, e.g. one of float32."
        ),
    ] = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure what the dtype of a store costs: SNR and cosine per layer, scores of a sweep."""
    with reported(as_json, debug) as answer:
        others_given = [word for word in overrides or [] if "=" not in word]
        if others_given:
            raise ConfigError(
                f"fidelity measures one store, and {others_given[0]!r} is no setting; run it for "
                "each store, or give what to compare with as --against OTHER"
            )
        own, others = _divided(overrides or [])
        given = plain_overrides(own, OWN)
        n_utterances = None
        if "n_utterances" in given:
            n_utterances = whole(given, "n_utterances", 1, Range(1, 10**9))
        seed = whole(given, "seed", 0, RANGES["split.seed"])
        layers = layer_list(given)
        task = [f"layers={given['layers']}"] if "layers" in given else []
        if against is None:
            _check_encoded(others)
            config, sweep_config = load_config(["engine=inline", *_in_process(others)]), None
            check_code(config.model, allow_code)
        else:
            _check_against(others)
            config = None
            sweep_config = load_sweep_config([*others, *task]) if others else None
            if sweep_config is not None and sweep_config.out is not None:
                raise ConfigError(f"out={sweep_config.out}: fidelity writes no files; leave it out")
        with announced(Notes(console), IMPORTING):
            from pipeline.probing.fidelity.against import StoreReference, check_frames, in_common
            from pipeline.probing.fidelity.run import choose_layers, measure
            from pipeline.probing.fidelity.sampling import draw_sample
            from pipeline.probing.fidelity.verdict import verdict
            from pipeline.store.read.opening import open_store

        notes = Notes(console)
        with announced(notes, "reading the index"):
            opened = open_store(store)
            check_frames(opened)
        if against is not None:
            with announced(notes, "reading the index of the reference"):
                other = open_store(against)
                against_store = StoreReference(opened, other)
                view, other, left_out = in_common(opened, other)
            if left_out:
                notes.note(left_out)
            named = opened.named_layers
            choose_layers({layer: named[layer] for layer in against_store.layers}, layers)
            sample = draw_sample(view, n_utterances, seed)
        else:
            choose_layers(opened.named_layers, layers)
            sample = draw_sample(opened, n_utterances, seed)
        if cut := sample.describe_cut():
            notes.note(cut)
        with FidelityProgress(console) as progress:
            if config is None:
                found = measure(opened, against_store, sample.clips, layers, progress)
            else:
                with announced(notes, IMPORTING):
                    from pipeline.encoders.modules.registration import allow_target
                    from pipeline.extract.reference import EncodedReference

                allow_target(config.model)
                names = [clip.name for clip in sample.clips]
                with closing(EncodedReference(opened, config, names, progress)) as encoded:
                    found = measure(opened, encoded, sample.clips, layers, progress)
        loss = None
        if sweep_config is not None:
            from pipeline.probing.fidelity.sweeps import compare_sweeps

            with SweepProgress(console) as heads:
                loss = compare_sweeps(view, other, sweep_config, heads)
        line = verdict(found, loss)
        answer(
            lambda out: show_fidelity(out, found, loss, line),
            document(found, loss, line),
        )


def _divided(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide settings into those of the verb and others."""
    own = [item for item in overrides if item.partition("=")[0] in OWN]
    return own, [item for item in overrides if item not in own]


def _group(override: str) -> str:
    return override.partition("=")[0].partition(".")[0].lstrip("+~")


def _check_encoded(others: Sequence[str]) -> None:
    """Check the settings of a comparison with audio that is encoded again.

    Raises:
        ConfigError: One is of a sweep, or none names a dataset.
    """
    for item in others:
        if _group(item) in ("task", "split", "labels", "seeds", "weighted"):
            raise ConfigError(
                f"{item} needs reference features of all utterances of the task: extract them with "
                "extract.dtype=float32 into another store, and give it as --against OTHER"
            )
        if item.startswith("store="):
            raise ConfigError(f"{item}: the store is the first argument; leave store= out")
    if not others:
        raise ConfigError(
            "nothing to compare with: give the dataset= and model= settings of the extraction, to "
            "encode a sample again in fp32, or --against OTHER, a store of the same encoder"
        )


def _check_against(others: Sequence[str]) -> None:
    """Check the settings of a comparison with another store.

    Raises:
        ConfigError: One is of an extraction, or of a sweep without a task.
    """
    for item in others:
        if _group(item) in _EXTRACT:
            raise ConfigError(
                f"{item} is a setting of an extraction, but --against compares with a store and "
                "encodes nothing; leave one of the two out"
            )


def _in_process(others: Sequence[str]) -> list[str]:
    """Return the settings without those of workers: the sample is encoded in this process."""
    kept = ("engine.threads", "engine.device")
    return [i for i in others if _group(i) != "engine" or i.partition("=")[0] in kept]


def document(found: Fidelity, loss: SweepLoss | None, line: str) -> dict[str, Any]:
    """Return the JSON object of `fidelity`."""
    sweep = None if loss is None else asdict(loss) | {"noticed": bool(loss.noticed)}
    return asdict(found) | {"verdict": line, "sweep": sweep}


def show_fidelity(console: Console, found: Fidelity, loss: SweepLoss | None, line: str) -> None:
    """Print the figures of each layer, the scores of a sweep, and the verdict."""
    console.print(
        f"{found.dtype} against {found.reference}: {counted(found.n_utterances, 'utterance')}, "
        f"{counted(found.n_frames, 'frame')}",
        markup=False,
    )
    console.print(f"features: {found.encoder}", markup=False)
    for warning in (*found.warnings, *(() if loss is None else loss.warnings)):
        console.print(f"WARNING: {warning}", style="bold red", markup=False)
    for item in found.left_out[:MAX_LEFT_OUT]:
        console.print(f"left out: {item.id}: {item.reason}", markup=False)
    if len(found.left_out) > MAX_LEFT_OUT:
        n_more = len(found.left_out) - MAX_LEFT_OUT
        console.print(f"left out: {n_more:,} more; --json has all")
    console.print(
        "SNR in dB: median and lowest utterance; median and lowest thousandth of the features. "
        "Cosine of frames: mean and lowest hundredth."
    )
    console.print(_figures(found))
    if found.includes_precision:
        console.print(
            f"The encoder of the store computed in {found.precision}, that of the reference in "
            f"{found.reference_precision}: the figures include that loss; the column "
            f"{found.dtype} alone does not.",
            markup=False,
        )
    if loss is not None:
        console.print(
            f"{loss.task} on {', '.join(loss.labels)}: {counted(loss.n_train, 'utterance')} to "
            f"train, {loss.n_test:,} test ({loss.split}); {loss.metric}; {loss.test}",
            markup=False,
        )
        console.print(_scores(found, loss))
    console.print(line, style="bold", markup=False)


def _table(names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right")
    return table


def _figures(found: Fidelity) -> Table:
    alone = [f"{found.dtype} alone"] if found.includes_precision else []
    names = ["layer", "SNR", "lowest", *alone, "features", "lowest", "cosine", "lowest"]
    table = _table(names)
    for layer in found.layers:
        ratios = [layer.snr_db, layer.snr_lowest_db]
        ratios += [layer.codec_snr_db] if alone else []
        ratios += [layer.feature_median_db, layer.feature_worst_db]
        cosines = (f"{layer.cosine_mean:.6f}", f"{layer.cosine_worst:.6f}")
        table.add_row(str(layer.layer), *map(_decibels, ratios), *cosines)
    return table


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"


def _scores(found: Fidelity, loss: SweepLoss) -> Table:
    table = _table(
        ("layer", "reference", found.dtype, "difference", "95 % interval", "p", "± seeds")
    )
    for item in (*loss.candidates, loss.mean):
        table.add_row(*_cells(item))
    return table


def _cells(item: ScoreDifference) -> tuple[str, ...]:
    return (
        "mean" if item.layer is None else str(item.layer),
        f"{item.reference:.3f}",
        f"{item.stored:.3f}",
        f"{item.difference:+.3f}",
        f"{item.low:+.3f} to {item.high:+.3f}",
        f"{item.p_value:.3g}",
        f"{item.seed_error:.3f}",
    )
