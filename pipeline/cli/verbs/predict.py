"""The verbs `predict` and `export-head`: their arguments and settings."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from pipeline.cli.options import IMPORTING, AllowCode, AsJson, Debug, paths_and_settings
from pipeline.cli.output import EXIT_QUARANTINED, console, reported
from pipeline.cli.progress import Notes, PredictProgress
from pipeline.cli.verbs import predictions as answers
from pipeline.cli.verbs.prediction_files import check_nist, check_out
from pipeline.cli.verbs.span_settings import SPANS, check_alone, read_given_spans
from pipeline.config import plain_overrides
from pipeline.errors import ConfigError, RunError
from pipeline.events import announced
from pipeline.files import is_uri
from pipeline.store.format.layout import GROUP

_OWN = ("layer", "trials", "where", "spans", *SPANS)
"""Settings of the verb itself; the others are those of the encoder."""


def predict(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP_DIR FILES_OR_DIRS... [layer=best|weighted|N] [trials=FILE] "
            "[spans=FILE] [model.weights=PATH]",
            help="The folder of a sweep, and audio files, folders of them, or a store. trials= "
            "lists pairs to verify, spans= the spans to label (spans.tier=, spans.id_form=, ...); "
            "where= selects utterances of a store.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Also write the predictions: .csv or .jsonl; parts of recordings also as .ctm, "
            ".rttm.",
        ),
    ] = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Label recordings with a trained head of a sweep.

    It predicts a class, a transcript, a number, the score of a trial, or the classes of spans.
    """
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
        check_out(out)
        check_alone(given)
        is_store = _are_stores(paths[1:])
        if not is_store and "where" in given:
            raise ConfigError("where= selects utterances of a store; give files instead")
        if is_store and settings:
            raise ConfigError(f"{settings[0]}: a store is predicted without the encoder")
        with announced(Notes(console), IMPORTING):
            from pipeline.predict.given_spans import GivenSpans, check_spans
            from pipeline.predict.pairs import choose_pairs
            from pipeline.predict.predictor import Predictor, score_pairs
            from pipeline.predict.recordings import find_recordings
            from pipeline.store.read.opening import open_store

        with PredictProgress(console) as progress, _ended_by_signals():
            predictor = Predictor(
                paths[0],
                _layer(given),
                overrides=settings,
                observer=progress,
                allow_code=allow_code,
            )
            facts = predictor.head.facts
            verifies = facts.kind == "verification"
            if not verifies and "trials" in given:
                raise ConfigError(
                    f"trials= is for the heads of sv, and {paths[0]} has heads of {facts.task}"
                )
            check_spans(facts, "spans" in given)
            spans = None
            if "spans" in given:
                spans = GivenSpans(*read_given_spans(given))
                for note in spans.spans.notes:
                    progress.note(note)
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
            check_nist(out, facts.kind, names, [c for some in facts.classes for c in some])
            predicted = (
                predictor.predict_store(store, names, spans)
                if is_store
                else predictor.predict_files(names, spans)
            )
        scores = score_pairs(predicted, pairs)
        result = answers.Answers(facts, predicted, pairs, scores, is_store)
        if out is not None:
            result.write(out)
        code = EXIT_QUARANTINED if result.errors() else 0
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


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the block by an error on Ctrl-C and SIGTERM, so that it removes its temporary files.

    Raises:
        RunError: A signal has come.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except KeyboardInterrupt as error:
        raise RunError(
            f"interrupted by {error}: no predictions are written; run the same command again"
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _layer(given: dict[str, str]) -> int | str:
    """Return the setting `layer`: best, weighted, or a layer by number or name."""
    text = given.get("layer", "best")
    if re.fullmatch(r"-?\d{1,6}", text, re.ASCII):
        return int(text)
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", text, re.ASCII):
        raise ConfigError(f"layer is {text!r:.40}; expected best, weighted or a layer")
    return text


def _are_stores(paths: Sequence[str]) -> bool:
    """Return whether all paths are stores.

    Raises:
        ConfigError: Some are, and some are not.
    """
    are = [is_uri(path) or (Path(path) / GROUP).is_dir() for path in paths]
    if any(are) and not all(are):
        raise ConfigError(
            f"{paths[are.index(True)]} is a store and {paths[are.index(False)]} is not; predict "
            "stores and recordings in separate runs"
        )
    return all(are)
