"""What `predict` and `export-head` print and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.verbs.prediction_files import (
    NIST,
    OF_PARTS,
    ctm_line,
    rttm_line,
    table_text,
)
from pipeline.errors import counted
from pipeline.files import write_atomic

if TYPE_CHECKING:
    from pipeline.heads.facts import HeadFacts
    from pipeline.heads.prediction import Prediction
    from pipeline.predict.pairs import Pair
    from pipeline.predict.predictor import Predicted

_NO_FRAME = "no frame's centre is in it"


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
        if self.facts.kind in OF_PARTS:
            return [
                {
                    self.noun: item.name,
                    "start_s": span.start_s,
                    "stop_s": span.stop_s,
                    "label": span.label,
                    "score": span.score,
                }
                for item in self.predicted
                for span in (item.prediction.spans if item.prediction else ())
            ]
        return [
            {self.noun: item.name, **_columns(self.facts, item.prediction)}
            for item in self.predicted
            if item.prediction is not None
        ]

    def errors(self) -> list[dict[str, Any]]:
        """Return the recordings that could not be predicted, and the spans without a frame."""
        return [
            {self.noun: item.name, "error": item.error} for item in self.predicted if item.error
        ] + [
            {self.noun: item.name, "start_s": start_s, "stop_s": stop_s, "error": _NO_FRAME}
            for item in self.predicted
            for start_s, stop_s in item.without_frames
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

        A CTM and an RTTM have no errors, and no parts of the class that stands for no span.

        Raises:
            StoreError: The file cannot be written.
        """
        rows = self.rows()
        if path.suffix in NIST:
            kept = [row for row in rows if row["label"] != self.facts.unlabelled]
            of = ctm_line if path.suffix == ".ctm" else rttm_line
            text = "".join(of(row[self.noun], row) for row in kept)
        else:
            text = table_text([*rows, *self.errors()], is_csv=path.suffix == ".csv")
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
        "layer_names": list(facts.layer_names),
        "head": facts.head,
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
            table.add_row(*(Text(_cell(*item)) for item in row.items()))
        console.print(table)
    for error in errors:
        part = f", {error['start_s']:g} to {error['stop_s']:g} s" if "start_s" in error else ""
        name = f"{error[result.noun]}{part}"
        console.print(f"not predicted: {name}: {error['error']}", markup=False)
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
    from pipeline.predict.heads import input_text  # imports torch

    what = f"the {facts.layer} sum" if isinstance(facts.layer, str) else input_text(facts)
    return (
        f"{facts.task} on {', '.join(facts.labels)}: the head on {what} of "
        f"{facts.identity['encoder'].get('model')}, {facts.metric} {facts.dev:.3f} on dev, "
        f"{facts.test:.3f} on test"
    )


def _cell(name: str, value: Any) -> str:
    """Return a value as the table has it. Times of spans are multiples of 0.0025 s."""
    n_digits = 4 if name in ("start_s", "stop_s") else 3
    return f"{value:.{n_digits}f}" if isinstance(value, float) else str(value)
