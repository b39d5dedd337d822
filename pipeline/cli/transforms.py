"""The verbs that make something from a store, without the encoder.

A new one is a function here, and a name in `VERBS`; `app.py` needs no change.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import tables
from pipeline.cli.options import IMPORTING, AsJson, Debug, Store, flag
from pipeline.cli.output import console, reported
from pipeline.cli.progress import Notes, RunProgress
from pipeline.config import plain_overrides
from pipeline.errors import ConfigError
from pipeline.events import announced


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
    """Write the weighted sum of a store's layers as a store with one layer."""
    with reported(as_json, debug) as answer:
        with announced(Notes(console), IMPORTING):
            from pipeline.transforms.collapse import collapse as collapse_store

        given = plain_overrides(overrides or [], {"weights", "softmax"})
        if "weights" not in given:
            raise ConfigError("no weights are given; set weights=average, weights=FILE or a list")
        softmax = flag(given, "softmax")
        with RunProgress(console) as progress:
            result = collapse_store(
                store, out, given["weights"], softmax=softmax, observer=progress
            )
        answer(lambda out: tables.show_facts(out, asdict(result)), asdict(result))


VERBS = (collapse,)
"""In the order of `strata --help`."""
