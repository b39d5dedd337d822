"""Utterances as a training gets them: single ones, and batches that are padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data._utils.collate import default_collate_fn_map

NO_FRAME = -1
"""Token after the end of an utterance in a batch; as `ignore_index` of a loss it is left out."""


@dataclass(frozen=True)
class Example:
    """One utterance.

    Attributes:
        features: float16 [n_layers, n_frames, dim].
        id: Id of the utterance.
        start: First frame; 0 unless the utterance is cropped.
        columns: Value of each column of the dataset.
        tokens: Token of each frame, int64 [n_frames], if the dataset has tokens.
    """

    features: Tensor
    id: str
    start: int
    columns: dict[str, Any]
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Several utterances, padded with zeros to the longest.

    Attributes:
        features: float16 [batch, n_layers, n_frames, dim].
        lengths: Valid frames of each utterance, int64 [batch].
        ids: Ids of the utterances, [batch].
        columns: Values of each column: a tensor [batch] of numbers or class numbers, else a list.
        starts: First frame of each utterance, int64 [batch]; 0 unless it is cropped.
        dataset: Number of its dataset, if it is from a mixture (`mix`).
        tokens: Token of each frame, int64 [batch, n_frames], -1 after the end of an utterance; None
            unless the dataset has tokens.
    """

    features: Tensor
    lengths: Tensor
    ids: list[str]
    columns: dict[str, Any]
    starts: Tensor
    dataset: int = 0
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def mask(self) -> Tensor:
        """Mask of the valid frames: bool [batch, n_frames]."""
        frame = torch.arange(self.features.shape[2], device=self.lengths.device)
        return frame < self.lengths[:, None]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self, device: torch.device | str | None = None) -> Self:
        """Return the batch in pinned memory. torch's DataLoader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move: Callable[[Tensor], Tensor]) -> Self:
        moved: dict[str, Any] = {
            item.name: move(value)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        columns = {k: move(v) if isinstance(v, Tensor) else v for k, v in self.columns.items()}
        return replace(self, **moved, columns=columns)


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples to a batch, as `collate_fn` of a DataLoader.

    Args:
        examples: At least one.
    """
    lengths = torch.tensor([example.features.shape[1] for example in examples])
    n_layers, _, dim = examples[0].features.shape
    features = torch.zeros(
        (len(examples), n_layers, int(lengths.max()), dim), dtype=examples[0].features.dtype
    )
    for i, example in enumerate(examples):
        features[i, :, : lengths[i]] = example.features
    columns: dict[str, Any] = {}
    for name in examples[0].columns:
        values = [example.columns[name] for example in examples]
        numbers = all(isinstance(value, bool | int | float) for value in values)
        columns[name] = torch.tensor(values) if numbers else values
    return Batch(
        features=features,
        lengths=lengths,
        ids=[example.id for example in examples],
        columns=columns,
        starts=torch.tensor([example.start for example in examples]),
        tokens=padded_tokens([example.tokens for example in examples]),
    )


def padded_tokens(tokens: Sequence[Tensor | None]) -> Tensor | None:
    """Pad the tokens of utterances with -1, int64 [batch, n_frames]; None if one has none."""
    found = [item for item in tokens if item is not None]
    if len(found) < len(tokens):
        return None
    return pad_sequence(found, batch_first=True, padding_value=NO_FRAME)


def _refuse_default_collate(examples: Sequence[Example], **_: Any) -> None:
    """Raise what a DataLoader without a `collate_fn` ends in."""
    raise TypeError(
        "torch's default_collate cannot pad utterances: give the DataLoader "
        "collate_fn=pipeline.collate, or use pipeline.make_loader"
    )


default_collate_fn_map[Example] = _refuse_default_collate
