"""Cache of trained heads on disk, so that a changed sweep trains only the heads that are new.

The file name is a hash of: trainer version, store identity, label columns, task settings, the
utterances, labels and feature checksums of each part, layer (for a weighted sum: all its layers),
learning rate, seed. Device and library versions are not hashed: they change only rounding. Entries
are never invalidated: a changed setting gives another name. An entry carries the hash of its own
content; one without it, of an earlier version, or with another one is trained again.
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
from pipeline.config.sweep_schema import LINEAR
from pipeline.probing.labels import Fold, Labels
from pipeline.probing.results import WEIGHTED, HeadResult, HeadSpec
from pipeline.store.format.pooling import MEAN
from pipeline.store.read.features import FeatureStore

VERSION = 1
"""Version of the trainers. Increase it when the same settings give different heads."""

_SEAL = "sha256"
_NOT_HASHED = ("name", "labels", "slots", "speaker_independent", "lrs")
"""Task settings without effect, or hashed in another form: label columns, parts, own rate."""

_LATER: dict[str, Any] = {
    "pooling": (MEAN,),
    "loss": None,
    "head": LINEAR,
    "units": 256,
    "trials": None,
    "n_trials": 20_000,
    "sample_seed": 0,
    "skip_missing_trials": False,
    "trial_id_form": None,
    "silence": (),
    "min_count": 1,
    "max_classes": None,
    "unlabelled": None,
    "context": None,
    "speaker_column": None,
    "max_items": 10,
    "max_speakers": 5,
}
"""Task settings that are newer than the first caches, with the value that heads then had."""


class HeadCache:
    """Cached heads of one sweep.

    Attributes:
        folder: Folder of the cache.
    """

    def __init__(
        self,
        folder: Path,
        store: FeatureStore,
        task: TaskConfig,
        labels: Labels,
        folds: Sequence[Fold],
        layers: Sequence[int],
        fingerprint: str = "",
    ) -> None:
        """Compute the part of the hashed settings that all heads share.

        Args:
            folder: Folder of the cache; created when a head is saved.
            store: The features.
            task: Settings of the task.
            labels: Labels of every utterance.
            folds: The folds.
            layers: Layers that the weighted sum combines.
            fingerprint: `Task.fingerprint`.
        """
        self.folder = folder
        settings = {key: value for key, value in asdict(task).items() if key not in _NOT_HASHED}
        for name, default in _LATER.items():
            if settings[name] == default:  # heads of before this setting stay valid
                del settings[name]
        self._common = {
            "version": VERSION,
            "identity": store.attributes["identity"],
            "recipe": settings,
            "columns": labels.columns,
        }
        if fingerprint:
            self._common["fingerprint"] = fingerprint
        self._layers = list(layers)
        self._fold_digests = _fold_digests(store, labels, folds)

    def load(self, spec: HeadSpec) -> HeadResult | None:
        """Return a cached head, or None."""
        try:
            stored = json.loads(self._path(spec).read_text(encoding="utf-8"))
            is_sound = stored.pop(_SEAL) == _digest(stored)
            return _parse_head(stored, spec) if is_sound else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # missing or damaged: train it again

    def save(self, spec: HeadSpec, head: HeadResult) -> None:
        """Write a head to the cache.

        Raises:
            StoreError: The file cannot be written.
        """
        content = asdict(head)
        text = json.dumps(content | {_SEAL: _digest(content)}, allow_nan=False)
        files.write_atomic(self._path(spec), [text.encode()])

    def _path(self, spec: HeadSpec) -> Path:
        return self.folder / f"{self.key(spec)}.json"

    def key(self, spec: HeadSpec) -> str:
        """Return the hash of all that a head depends on: the name of its file."""
        settings = self._common | {
            "data": self._fold_digests[spec.fold],
            "layer": spec.layer,
            "lr": spec.lr,
            "seed": spec.seed,
            "layers": self._layers if spec.layer == WEIGHTED else None,
        }
        return _digest(settings)[:32]


def _digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a document as JSON, independent of spaces and order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _fold_digests(store: FeatureStore, labels: Labels, folds: Sequence[Fold]) -> list[str]:
    """Return a SHA-256 per fold, of its utterances with their feature checksums and labels."""
    utterances = [
        [utterance_id, checksums, [column[i] for column in labels.texts]]
        for i, (utterance_id, checksums) in enumerate(
            zip(store.ids, store.checksums(), strict=True)
        )
    ]
    digests = []
    for fold in folds:
        parts = [
            [utterances[i] for i in part.tolist()] for part in (fold.train, fold.dev, fold.test)
        ]
        digests.append(hashlib.sha256(json.dumps(parts).encode()).hexdigest())
    return digests


def _parse_head(stored: dict[str, Any], spec: HeadSpec) -> HeadResult:
    """Build a head from its JSON."""
    predictions: list[Any] = stored["predictions"]
    are_texts = bool(predictions) and isinstance(predictions[0], str)
    weights = stored["layer_weights"]
    return HeadResult(
        **asdict(spec),
        step=stored["step"],
        dev=stored["dev"],
        test=stored["test"],
        curve=tuple((step, loss, dev) for step, loss, dev in stored["curve"]),
        predictions=tuple(predictions) if are_texts else tuple(tuple(row) for row in predictions),
        layer_weights=None if weights is None else tuple(weights),
    )
