"""The verbs that make something from a store, without the encoder.

`drop` and `tokenize` have modules of their own. A new one is a function here, and a name in
`VERBS`; `app.py` needs no change.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli import tables
from pipeline.cli.options import (
    IMPORTING,
    AsJson,
    Debug,
    Store,
    flag,
    items,
    layer_list,
    paths_and_settings,
    whole,
)
from pipeline.cli.output import console, reported
from pipeline.cli.progress import ExportProgress, Notes, PushProgress, RunProgress
from pipeline.cli.verbs.drop import drop
from pipeline.cli.verbs.tokenize import tokenize
from pipeline.config import plain_overrides
from pipeline.config.ranges import RANGES, Range
from pipeline.errors import ConfigError
from pipeline.events import announced
from pipeline.files import local_folder


def collapse(
    store: Store,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Path or URI of the one-layer store.")],
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


COPY_SETTINGS = (
    *("layers", "where", "ids", "dtype", "keep", "pooling", "frames_per_unit", "prefix", "tokens"),
)


def copy(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC... DST [KEY=VALUE...]",
            help="One or several stores, the new store, and layers=[6,12] ids=FILE dtype=int8 "
            "where=\"split = 'train'\" keep=[pooled] pooling=[mean,std] frames_per_unit=N "
            "prefix=true tokens=all|none|[NAME].",
        ),
    ],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Copy layers and utterances of one or several stores into a new one, in another form."""
    with reported(as_json, debug) as answer:
        paths, overrides = paths_and_settings(arguments)
        given = plain_overrides(overrides, COPY_SETTINGS)
        if len(paths) < 2:
            raise ConfigError("give the stores to copy and the path of the new one: SRC... DST")
        with announced(Notes(console), IMPORTING):
            from pipeline.transforms.copy import CopySettings, copy_stores

        capacity = None
        if "frames_per_unit" in given:
            capacity = whole(given, "frames_per_unit", 0, RANGES["plan.frames_per_unit"])
        settings = CopySettings(
            layers=layer_list(given),
            where=given.get("where"),
            ids=given.get("ids"),
            dtype=given.get("dtype"),
            keep=items(given, "keep"),
            pooling=items(given, "pooling"),
            frames_per_unit=capacity,
            prefix=flag(given, "prefix"),
            tokens=items(given, "tokens"),
        )
        with RunProgress(console) as progress:
            result = copy_stores(paths[:-1], paths[-1], settings, progress)
        answer(lambda out: tables.show_facts(out, asdict(result)), asdict(result))


def export(
    store: Store,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Path of the folder to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="format=... [layers=[6]] [where=...] [pooled=true] [pooling=[mean,std]] "
            "[dtype=...] [shard_mb=512] [name=...] [dedup=true]",
            help="npy, safetensors, kaldi, webdataset or hf, which layers and utterances; or "
            "units, which tokens.",
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
            from pipeline.transforms.export.units import FORMAT as UNITS

        known = {"format", "layers", "where", "pooled", "pooling", "dtype", "shard_mb"}
        known |= {"name", "dedup"}
        given = plain_overrides(overrides or [], known)
        if "format" not in given:
            raise ConfigError(f"no format is given; set format={'|'.join([*FORMATS, UNITS])}")
        settings: dict[str, Any] = {
            "layers": layer_list(given),
            "where": given.get("where"),
            "pooled": flag(given, "pooled"),
            "pooling": items(given, "pooling"),
            "dtype": given.get("dtype"),
            "tokens": given.get("name"),
            "dedup": flag(given, "dedup"),
            "shard_mb": whole(given, "shard_mb", SHARD_MB, Range(1, 1 << 20)),
        }
        with ExportProgress(console) as progress:
            target = local_folder("OUT", out)
            result = export_store(store, target, given["format"], observer=progress, **settings)
        answer(lambda out: tables.show_facts(out, asdict(result)), asdict(result))


def push(
    store: Store,
    uri: Annotated[str, typer.Argument(metavar="hf://datasets/USER/NAME", help="The repository.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[private=true] [license=...]",
            help="For a new repository and its card; private unless private=false.",
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Send a store to the Hugging Face hub, where it can be read by range; safe to run again."""
    with reported(as_json, debug) as answer:
        given = plain_overrides(overrides or [], {"private", "license"})
        private = flag(given, "private", default=True)
        with announced(Notes(console), IMPORTING):
            from pipeline.transforms.push import push as push_store

        with PushProgress(console) as progress:
            result = push_store(
                store, uri, private=private, license=given.get("license"), observer=progress
            )
        answer(lambda out: tables.show_facts(out, asdict(result)), asdict(result))


VERBS = (collapse, copy, drop, export, push, tokenize)
"""In the order of `strata --help`."""
