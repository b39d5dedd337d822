"""The verbs `predict` and `export-head`: their arguments and settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import IMPORTING, AsJson, Debug, paths_and_settings
from pipeline.cli.output import EXIT_QUARANTINED, console, reported
from pipeline.cli.progress import Notes, PredictProgress
from pipeline.cli.verbs import predictions as answers
from pipeline.config import plain_overrides
from pipeline.errors import ConfigError
from pipeline.events import announced
from pipeline.files import is_uri

_OWN = ("layer", "trials", "where")
"""Settings of the verb itself; the others are those of the encoder."""


def predict(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP_DIR FILES_OR_DIRS... [layer=best|weighted|N] [trials=FILE] "
            "[model.weights=PATH]",
            help="The folder of a sweep, and audio files, folders of them, or a store. trials= "
            "lists pairs to verify; where= selects utterances of a store.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also write the predictions: .csv or .jsonl."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Label recordings with a trained head of a sweep: class, transcript, number or trial score."""
    with reported(as_json, debug) as answer:
        paths, overrides = paths_and_settings(arguments)
        if len(paths) < 2:
            raise ConfigError(
                "give the folder of a sweep, and what to predict: SWEEP_DIR FILES_OR_DIRS..., or "
                "SWEEP_DIR STORE"
            )
        own = [item for item in overrides if item.partition("=")[0] in _OWN]
        given = plain_overrides(own, _OWN)
        settings = [item for item in overrides if item not in own]
        answers.check_out(out)
        is_store = _are_stores(paths[1:])
        if not is_store and "where" in given:
            raise ConfigError("where= selects utterances of a store; give files instead")
        if is_store and settings:
            raise ConfigError(f"{settings[0]}: a store is predicted without the encoder")
        with announced(Notes(console), IMPORTING):
            from pipeline.predict.pairs import choose_pairs
            from pipeline.predict.predictor import Predictor, score_pairs
            from pipeline.predict.recordings import find_recordings
            from pipeline.store.read.opening import open_store

        with PredictProgress(console) as progress:
            predictor = Predictor(paths[0], _layer(given), overrides=settings, observer=progress)
            verifies = predictor.head.facts.kind == "verification"
            if not verifies and "trials" in given:
                raise ConfigError(
                    f"trials= is for the heads of sv, and {paths[0]} has heads of "
                    f"{predictor.head.facts.task}"
                )
            names: Sequence[str]
            if is_store:
                store = open_store(paths[1:])
                store = store.select(given["where"]) if "where" in given else store
                names = store.ids
            else:
                files = find_recordings(paths[1:])
                names = [str(path) for path in files]
            pairs = choose_pairs(given.get("trials"), names) if verifies else []
            if verifies:  # only what the pairs name
                used = {name for pair in pairs for name in pair}
                names = [name for name in names if name in used]
            predicted = (
                predictor.predict_store(store, names)
                if is_store
                else predictor.predict_files(names)
            )
        scores = score_pairs(predicted, pairs)
        result = answers.Answers(predictor.head.facts, predicted, pairs, scores, is_store)
        if out is not None:
            result.write(out)
        n_errors = sum(item.error is not None for item in predicted)
        code = EXIT_QUARANTINED if n_errors else 0
        answer(lambda to: answers.show(to, result, out), result.document(), code)


def export_head(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP_DIR OUT [layer=best|weighted|N]",
            help="The folder of a sweep, and the folder to write.",
        ),
    ],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a trained head of a sweep, with a card, for programs without Strata."""
    with reported(as_json, debug) as answer:
        paths, overrides = paths_and_settings(arguments)
        given = plain_overrides(overrides, ("layer",))
        if len(paths) != 2:
            raise ConfigError("give the folder of a sweep and the folder to write: SWEEP_DIR OUT")
        with announced(Notes(console), IMPORTING):
            from pipeline.predict.export import export_head as export

        head = export(paths[0], paths[1], _layer(given))
        answer(
            lambda to: answers.show_export(to, head.facts, paths[1]),
            {"folder": paths[1], "head": answers.head_document(head.facts)},
        )


def _layer(given: dict[str, str]) -> int | str:
    """Return the setting `layer`: best, weighted, collapsed or a number."""
    text = given.get("layer", "best")
    if re.fullmatch(r"-?\d{1,6}", text, re.ASCII):
        return int(text)
    if text not in ("best", "weighted", "collapsed"):
        raise ConfigError(f"layer is {text!r:.40}; expected best, weighted or a layer")
    return text


def _are_stores(paths: Sequence[str]) -> bool:
    """Return whether all paths are stores.

    Raises:
        ConfigError: Some are, and some are not.
    """
    are = [is_uri(path) or (Path(path) / "features.zarr").is_dir() for path in paths]
    if any(are) and not all(are):
        raise ConfigError(
            f"{paths[are.index(True)]} is a store and {paths[are.index(False)]} is not; predict "
            "stores and recordings in separate runs"
        )
    return all(are)
