"""Trained heads on the disk, so that a changed sweep trains only what is new.

A head's name is a hash of all that determines it: the store's identity, the utterances it trains,
selects and is tested on with their labels and the checksums of their features, the recipe, layer,
learning rate and seed. Nothing is ever compared or invalidated: another setting is another name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config import TaskConfig
from pipeline.probing.labels import Fold, HeadSpec, Labels
from pipeline.probing.results import WEIGHTED, HeadResult
from pipeline.store import index as index_files
from pipeline.store.read.features import FeatureStore

VERSION = 1
"""To be raised when the same settings give other heads."""

_NOT_RECIPE = ("name", "labels", "slots", "speaker_independent", "lrs")
_INDEX = ["id", "row", "unit", "piece", "n_pieces", "status", "crc32c"]


class HeadsCache:
    """The heads of one sweep, in a folder.

    Attributes:
        folder: Where they are.
    """

    def __init__(
        self,
        folder: Path,
        store: FeatureStore,
        task: TaskConfig,
        labels: Labels,
        folds: Sequence[Fold],
        layers: Sequence[int],
    ) -> None:
        """Computes what the heads' names have in common.

        Args:
            folder: Where they are, or are going to be.
            store: The features.
            task: The recipe.
            labels: Of every utterance.
            folds: Who trains, selects and is reported.
            layers: What a weighted sum is over.
        """
        self.folder = folder
        recipe = {key: value for key, value in asdict(task).items() if key not in _NOT_RECIPE}
        self._common = {
            "version": VERSION,
            "identity": store.attributes["identity"],
            "recipe": recipe,
            "columns": labels.columns,
        }
        self._layers = list(layers)
        self._data = _digests(store, labels, folds)

    def load(self, spec: HeadSpec) -> HeadResult | None:
        """A head that was trained before, or None."""
        try:
            found = json.loads(self._path(spec).read_text(encoding="utf-8"))
            return _head(found, spec)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # one that is missing or torn is trained again

    def save(self, spec: HeadSpec, head: HeadResult) -> None:
        """Keeps a head.

        Raises:
            StoreError: It cannot be written.
        """
        text = json.dumps(asdict(head), allow_nan=False)
        files.write_atomic(self._path(spec), [text.encode()])

    def _path(self, spec: HeadSpec) -> Path:
        settings = self._common | {
            "data": self._data[spec.fold],
            "layer": spec.layer,
            "lr": spec.lr,
            "seed": spec.seed,
            "layers": self._layers if spec.layer == WEIGHTED else None,
        }
        text = json.dumps(settings, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _digests(store: FeatureStore, labels: Labels, folds: Sequence[Fold]) -> list[str]:
    """A digest per fold: which utterances with which features and labels, in which part."""
    table = index_files.read_index(store.root, columns=_INDEX)
    pieces, first_piece = index_files.complete_utterances(table)
    checksums = pieces["crc32c"].to_pylist()
    marks = [
        [name, checksums[start:stop], [column[i] for column in labels.texts]]
        for i, (name, start, stop) in enumerate(
            zip(store.ids, first_piece[:-1].tolist(), first_piece[1:].tolist(), strict=True)
        )
    ]
    digests = []
    for fold in folds:
        parts = [[marks[i] for i in part.tolist()] for part in (fold.train, fold.dev, fold.test)]
        digests.append(hashlib.sha256(json.dumps(parts).encode()).hexdigest())
    return digests


def _head(found: dict[str, Any], spec: HeadSpec) -> HeadResult:
    said: list[Any] = found["predictions"]
    texts = bool(said) and isinstance(said[0], str)
    weights = found["layer_weights"]
    return HeadResult(
        layer=spec.layer,
        lr=spec.lr,
        seed=spec.seed,
        fold=spec.fold,
        step=found["step"],
        dev=found["dev"],
        test=found["test"],
        curve=tuple((step, loss, dev) for step, loss, dev in found["curve"]),
        predictions=tuple(said) if texts else tuple(tuple(row) for row in said),
        layer_weights=None if weights is None else tuple(weights),
    )
