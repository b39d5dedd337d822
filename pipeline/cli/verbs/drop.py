"""The verb `drop`: its settings, and what it prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pipeline.cli.options import IMPORTING, AsJson, Debug, Store, flag, layer_list
from pipeline.cli.output import console, reported
from pipeline.cli.progress import DropProgress, Notes
from pipeline.cli.tables import MAX_ITEMS, hours, size
from pipeline.config import plain_overrides
from pipeline.errors import ConfigError, counted
from pipeline.events import announced

if TYPE_CHECKING:
    from pipeline.transforms.drop import Drop


def drop(
    store: Store,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="ids=FILE where=\"speaker = 'ann'\" layers=[1,2] or tokens=NAME; confirm=true "
            "drops, without it nothing is changed.",
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Remove utterances, layers or tokens; prints what would go, unless confirm=true."""
    with reported(as_json, debug) as answer:
        given = plain_overrides(overrides or [], {"ids", "where", "layers", "tokens", "confirm"})
        confirm = flag(given, "confirm")
        if given.get("layers") == "all":
            raise ConfigError("layers=all would leave nothing; give the layers to drop")
        with announced(Notes(console), IMPORTING):
            from pipeline.transforms.drop import drop as drop_from_store

        with DropProgress(console) as progress:
            result = drop_from_store(
                store,
                ids=given.get("ids"),
                where=given.get("where"),
                layers=layer_list(given),
                tokens=given.get("tokens"),
                confirm=confirm,
                observer=progress,
            )
        answer(lambda out: show_drop(out, result), asdict(result))


def show_drop(out: Console, result: Drop) -> None:
    """Print what was dropped, or what would be."""
    done = "dropped" if result.confirmed else "would be dropped"
    if result.completed:
        out.print("completed the drop that was interrupted")
    if result.dropped_before:
        out.print(f"{counted(result.dropped_before, 'id')} dropped before")
    if result.layers:
        out.print(f"{done}: layers {list(result.layers)}, {size(result.bytes)}", markup=False)
    if result.tokens:
        where = counted(result.units, "unit")
        out.print(f"{done}: tokens {result.tokens} of {where}, {size(result.bytes)}", markup=False)
    n_utterances = result.utterances + result.without_features
    if n_utterances:
        parts = [f"{counted(n_utterances, 'utterance')} in {counted(result.units, 'unit')}"]
        if result.without_features:
            parts.append(f"{result.without_features:,} of them without features")
        if result.hidden:
            parts.append(f"{result.hidden:,} not shown to readers")
        parts += [f"{hours(result.audio_seconds)} of audio", size(result.bytes)]
        out.print(f"{done}: {', '.join(parts)}", markup=False)
        for name, values in result.values.items():
            shown = [f"{value} {count:,}" for value, count in list(values.items())[:MAX_ITEMS]]
            more = f", ... and {len(values) - MAX_ITEMS:,} more" if len(values) > MAX_ITEMS else ""
            out.print(f"  {name}: {', '.join(shown)}{more}", markup=False)
        if not result.confirmed:
            rest = ", ..." if n_utterances > len(result.examples) else ""
            out.print(f"  ids: {', '.join(result.examples)}{rest}", markup=False)
    if not (result.layers or result.tokens or n_utterances or result.completed):
        out.print("nothing is left to drop")
    elif not result.confirmed:
        out.print("nothing was changed; the same command with confirm=true drops them for good")
