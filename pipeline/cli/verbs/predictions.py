"""What `predict` and `export-head` print and write: tables, JSON, csv and jsonl."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.errors import ConfigError, counted
from pipeline.files import is_uri, write_atomic

if TYPE_CHECKING:
    from pipeline.heads.facts import HeadFacts
    from pipeline.heads.prediction import Prediction
    from pipeline.predict.pairs import Pair
    from pipeline.predict.predictor import Predicted

_SUFFIXES = (".csv", ".jsonl")


def check_out(out: Path | None) -> None:
    """Check where predictions are to be written, before the work.

    Raises:
        ConfigError: It is a URI, a folder, or no csv or jsonl.
    """
    if out is None:
        return
    if is_uri(out):
        raise ConfigError(f"--out {out}: expected a file of this machine")
    if out.suffix not in _SUFFIXES or out.is_dir():
        raise ConfigError(f"--out {out}: expected a file with the suffix {' or '.join(_SUFFIXES)}")


@dataclass(frozen=True)
class Answers:
    """The predictions of a run.

    Attributes:
        facts: The head.
        predicted: One per recording or utterance.
        pairs: Pairs, of a verification.
        scores: Score of each pair; None if one of its recordings has an error.
        is_store: Whether names are ids of utterances, not files.
    """

    facts: HeadFacts
    predicted: Sequence[Predicted]
    pairs: Sequence[Pair]
    scores: Sequence[float | None]
    is_store: bool

    @property
    def noun(self) -> str:
        """What a name is."""
        return "id" if self.is_store else "file"

    def rows(self) -> list[dict[str, Any]]:
        """Return what was predicted, a flat object each: of recordings, or of pairs."""
        if self.facts.kind == "verification":
            return [
                {"first": first, "second": second, "score": score}
                for (first, second), score in zip(self.pairs, self.scores, strict=True)
                if score is not None
            ]
        return [
            {self.noun: item.name, **_columns(self.facts, item.prediction)}
            for item in self.predicted
            if item.prediction is not None
        ]

    def errors(self) -> list[dict[str, str]]:
        """Return the recordings that could not be predicted."""
        return [
            {self.noun: item.name, "error": item.error} for item in self.predicted if item.error
        ]

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the verb."""
        return {
            "predictions": self.rows(),
            "errors": self.errors(),
            "head": head_document(self.facts),
        }

    def write(self, path: Path) -> None:
        """Write the predictions and then the errors, atomically.

        Raises:
            StoreError: The file cannot be written.
        """
        rows = [*self.rows(), *self.errors()]
        if path.suffix == ".jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            names = list(dict.fromkeys(name for row in rows for name in row))
            file = io.StringIO()
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            text = file.getvalue()
        write_atomic(path, [text.encode("utf-8", "surrogateescape")])


def _columns(facts: HeadFacts, prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as flat values; names of label columns only if there are several."""
    if facts.kind == "frames":
        return {"transcript": prediction.transcript}
    if facts.kind == "regression":
        if len(facts.labels) == 1:
            return {"value": prediction.values[0]}
        return dict(zip(facts.labels, prediction.values, strict=True))
    if len(facts.labels) == 1:
        return {"label": prediction.labels[0], "score": prediction.scores[0]}
    pairs = zip(facts.labels, prediction.labels, prediction.scores, strict=True)
    return {
        key: value
        for column, label, score in pairs
        for key, value in ((column, label), (f"{column}_score", score))
    }


def head_document(facts: HeadFacts) -> dict[str, Any]:
    """Return the description of a head for JSON answers."""
    encoder = facts.identity["encoder"]
    return {
        "task": facts.task,
        "kind": facts.kind,
        "labels": list(facts.labels),
        "layer": facts.layer,
        "layers": list(facts.layers),
        "metric": facts.metric,
        "dev": facts.dev,
        "test": facts.test,
        "lr": facts.lr,
        "seed": facts.seed,
        "fold": facts.fold,
        "encoder": encoder.get("model"),
        "weights": facts.weights,
        "weights_sha256": encoder.get("weights", {}).get("sha256"),
    }


def show(console: Console, result: Answers, out: Path | None) -> None:
    """Print the predictions as a table, then the recordings with errors."""
    console.print(_headline(result.facts), markup=False)
    if result.facts.weights == "random":
        console.print(
            "WARNING: the encoder's weights are RANDOM: the predictions mean nothing",
            style="bold red",
            markup=False,
        )
    rows, errors = result.rows(), result.errors()
    if rows:
        table = Table(box=None, pad_edge=False)
        for name, value in rows[0].items():
            is_number = isinstance(value, float)
            table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row.values()))
        console.print(table)
    for error in errors:
        console.print(f"not predicted: {error[result.noun]}: {error['error']}", markup=False)
    unscored = sum(score is None for score in result.scores)
    if unscored:
        console.print(f"{counted(unscored, 'trial')} not scored, because of these errors")
    if out is not None:
        console.print(f"written: {out}", markup=False)


def show_export(console: Console, facts: HeadFacts, folder: str) -> None:
    """Print what was written."""
    console.print(_headline(facts), markup=False)
    console.print(f"written: {folder}/head.safetensors, {folder}/README.md", markup=False)


def _headline(facts: HeadFacts) -> str:
    layer = f"layer {facts.layer}" if isinstance(facts.layer, int) else f"the {facts.layer} sum"
    return (
        f"{facts.task} on {', '.join(facts.labels)}: the head on {layer} of "
        f"{facts.identity['encoder'].get('model')}, {facts.metric} {facts.dev:.3f} on dev, "
        f"{facts.test:.3f} on test"
    )


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
