"""The trained heads that a sweep keeps as files: the best one by dev of each candidate.

While heads are trained, only the parameters of the best head of each candidate and learning rate
are in memory. A head that was trained by an earlier run is taken from the file of that run, or
trained again if there is none: it depends on its settings alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline import files
from pipeline.errors import ConfigError, counted
from pipeline.heads.facts import FRAMEWISE, KINDS, HeadFacts
from pipeline.heads.files import TRAINED, file_of
from pipeline.heads.trained import TrainedHead
from pipeline.probing.encoder_description import encodes_one_by_one, model_settings, weights_source
from pipeline.probing.ranking import Ranking
from pipeline.probing.results import (
    NO_RATE,
    WEIGHTED,
    Candidate,
    HeadResult,
    HeadSpec,
    Note,
    stored_layer,
)
from pipeline.probing.tasks.base import Task, TaskData
from pipeline.store.read.timing import frame_times

Parameters = Mapping[str, Tensor]
_OF_FEATURES = ("format_version", "dtype", "audio", "encoder", "collapse")
"""Parts of a store's identity that describe its features."""


class KeptHeads:
    """Parameters of the best head so far of each candidate and learning rate.

    Args:
        task: The task.
        key_of: Returns the hash of all that a head depends on.
    """

    def __init__(self, task: Task, key_of: Callable[[HeadSpec], str]) -> None:
        self._task, self._key_of = task, key_of
        self._sign = 1.0 if task.higher_is_better else -1.0
        self._best: dict[tuple[Candidate, float], tuple[HeadResult, Parameters]] = {}
        self._has_none = False  # the task gives no parameters

    def add(self, spec: HeadSpec, head: HeadResult, parameters: Parameters | None) -> None:
        """Take a head that has been trained."""
        if parameters is None:
            self._has_none = True
            return
        key = (spec.layer, spec.lr)
        if key not in self._best or self._order(head) < self._order(self._best[key][0]):
            self._best[key] = (head, _copied(parameters))

    def write(self, folder: Path, data: TaskData, ranking: Ranking, note: Note) -> None:
        """Write one file per candidate; files of other candidates are removed.

        It has the head with the best dev score at the candidate's learning rate; the first seed and
        fold win a tie.

        Args:
            folder: Output folder of the sweep.
            data: What the heads were trained on.
            ranking: The chosen heads of each candidate.
            note: Receives a line if heads are trained again.

        Raises:
            StoreError: A file cannot be written.
        """
        best = {
            layer: min((head for heads in by_seed for head in heads), key=self._order)
            for layer, by_seed in ranking.chosen.items()
        }
        found: dict[Candidate, Parameters] = {}
        if data.config.kind in KINDS and not self._has_none:
            found = self._parameters(folder, best, note)
        for layer, parameters in found.items():
            facts = head_facts(data, self._task, best[layer], self._key_of(_spec(best[layer])))
            TrainedHead(facts, parameters).save(file_of(folder, layer))
        wanted = {file_of(folder, layer) for layer in found}
        for path in sorted((folder / TRAINED).glob("*.safetensors")):
            if path not in wanted:
                files.remove(path)

    def _parameters(
        self, folder: Path, best: Mapping[Candidate, HeadResult], note: Note
    ) -> dict[Candidate, Parameters]:
        """Return the parameters of heads: kept, of the file of a run, or trained again."""
        found: dict[Candidate, Parameters] = {}
        for layer, head in best.items():
            kept, parameters = self._best.get((layer, head.lr), (None, None))
            if kept is None or _spec(kept) != _spec(head):
                parameters = _of_files(folder, layer, self._key_of(_spec(head)))
            if parameters is not None:
                found[layer] = parameters
        missing = [_spec(head) for layer, head in best.items() if layer not in found]
        if not missing:
            return found
        is_trained = missing[0].lr != NO_RATE
        if is_trained:
            note(
                f"{counted(len(missing), 'head')} of earlier runs, whose parameters were not kept: "
                "trained again for strata predict"
            )

        def on_head(
            spec: HeadSpec, head: HeadResult, parameters: Parameters | None = None, /
        ) -> None:
            if parameters is not None:
                found[spec.layer] = _copied(parameters)

        self._task.train(missing, on_head, note if is_trained else lambda line: None)
        return found

    def _order(self, head: HeadResult) -> tuple[float, int, int]:
        return -self._sign * head.dev, head.seed, head.fold


def _copied(parameters: Parameters) -> Parameters:
    """Return copies on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in parameters.items()}


def _of_files(folder: Path, layer: Candidate, key: str) -> Parameters | None:
    """Return the parameters of this head in a folder, or in one that `claim_folder` numbered."""
    name = re.sub(r"-\d+$", "", folder.name)
    numbered = re.compile(rf"{re.escape(name)}(-\d+)?")
    others = sorted(path for path in folder.parent.iterdir() if numbered.fullmatch(path.name))
    found = (_of_file(file_of(path, layer), key) for path in [folder, *others])
    return next((parameters for parameters in found if parameters is not None), None)


def _of_file(path: Path, key: str) -> Parameters | None:
    """Return the parameters in a file if they are those of this head."""
    try:
        head = TrainedHead.load(path)
    except ConfigError:  # there is none, or it is damaged
        return None
    return head.tensors if head.facts.key == key else None


def head_facts(data: TaskData, task: Task, head: HeadResult, key: str) -> HeadFacts:
    """Return what is known of a head beside its parameters.

    Args:
        data: What it was trained on.
        task: The task.
        head: Its scores.
        key: Hash of all that it depends on.
    """
    config, store = data.config, data.store
    identity: dict[str, Any] = store.attributes["identity"]
    reads = tuple(data.layers) if head.layer == WEIGHTED else (stored_layer(head.layer),)
    return HeadFacts(
        task=config.name,
        kind=config.kind,
        metric=config.metric,
        labels=data.labels.columns,
        classes=task.classes_of_fold(head.fold),
        tokens=config.tokens,
        pooling=config.pooling,
        normalize=config.normalize,
        layer=head.layer,
        layers=reads,
        dim=store.feature_dim,
        frame_rate_hz=store.frame_rate_hz,
        identity=json.loads(json.dumps({k: identity[k] for k in _OF_FEATURES if k in identity})),
        weights=weights_source(store.attributes),
        model=model_settings(store.attributes),
        dev=head.dev,
        test=head.test,
        lr=head.lr,
        seed=head.seed,
        fold=head.fold,
        key=key,
        strata=version("strata-speech"),
        head=config.head,
        first_centre_s=float(frame_times(store.geometry, 1).centre_s[0]),
        unlabelled=config.unlabelled if config.kind == FRAMEWISE else None,
        one_by_one=encodes_one_by_one(store.attributes),
        layer_names=tuple(store.named_layers[layer] for layer in reads),
    )


def _spec(head: HeadResult) -> HeadSpec:
    return HeadSpec(head.layer, head.lr, head.seed, head.fold)
