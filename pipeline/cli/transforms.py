"""The verbs that make something from a store, without the encoder.

A new one is a function here, and a name in `VERBS`; `app.py` needs no change.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli import tables
from pipeline.cli.options import IMPORTING, AsJson, Debug, Store, flag, layer_list, whole
from pipeline.cli.output import console, reported
from pipeline.cli.progress import ExportProgress, Notes, RunProgress
from pipeline.config import plain_overrides
from pipeline.config.ranges import Range
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


def export(
    store: Store,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Path of the folder to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="format=... [layers=[6]] [where=...] [pooled=true] [dtype=...] [shard_mb=512]",
            help="npy, safetensors, kaldi, webdataset or hf; which layers and utterances.",
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write features as files for other tools: NumPy, safetensors, Kaldi, WebDataset, datasets."""
    with reported(as_json, debug) as answer:
        with announced(Notes(console), IMPORTING):
            from pipeline.transforms.export.run import FORMATS, SHARD_MB
            from pipeline.transforms.export.run import export as export_store

        known = {"format", "layers", "where", "pooled", "dtype", "shard_mb"}
        given = plain_overrides(overrides or [], known)
        if "format" not in given:
            raise ConfigError(f"no format is given; set format={'|'.join(FORMATS)}")
        settings: dict[str, Any] = {
            "layers": layer_list(given),
            "where": given.get("where"),
            "pooled": flag(given, "pooled"),
            "dtype": given.get("dtype"),
            "shard_mb": whole(given, "shard_mb", SHARD_MB, Range(1, 1 << 20)),
        }
        with ExportProgress(console) as progress:
            result = export_store(store, out, given["format"], observer=progress, **settings)
        answer(lambda out: tables.show_facts(out, asdict(result)), asdict(result))


VERBS = (collapse, export)
"""In the order of `strata --help`."""
