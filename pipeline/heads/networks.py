"""Heads beyond linear: attentive statistics pooling, a hidden layer per frame, a recurrent network.

Rankings of encoders and of their layers depend on the head (Zaiem et al., "Speech self-supervised
representations benchmarking: a case for larger probing heads", 2023, arXiv 2308.14456), so a sweep
can be repeated with these. They are initialised as torch's layers are.

A head gets the frames of a batch of utterances in one of two forms: padded, with `forward`, or
without padding, one utterance after the other, with `of_frames`. Padding changes no result.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pipeline.heads.modules import PROJECTION_DIM, valid_frames

ATTENTION_DIM = 128
"""Width of the hidden layer of the attention."""
LSTM_UNITS, LSTM_LAYERS = 256, 2
"""Units of each direction and layer, and layers. SUPERB's speech recognition has 1024 units."""
_VARIANCE_FLOOR = 1e-5  # so that the deviation has a gradient
_FLOAT_BYTES = 4


class FrameHead(nn.Module, ABC):
    """A head on the frames of utterances. An implementation must implement the methods below."""

    @abstractmethod
    def of_frames(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Score frames without padding.

        Args:
            frames: Frames of all utterances, one utterance after the other, [n_frames, dim].
            lengths: Frames of each utterance, at least 1, int64 [batch].

        Returns:
            Logits, [batch, n_outputs], or of a head on every frame [n_frames, n_outputs].
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters, by the names that files of trained heads have."""

    @property
    @abstractmethod
    def frame_bytes(self) -> int:
        """Estimate of the memory of a training step, per frame, without the frames themselves."""


class AttentiveStatistics(nn.Module):
    """Attentive statistics pooling: a weighted mean and deviation over the frames of an utterance.

    A frame x has the energy v · tanh(W x + b); the weights of the frames are the softmax of their
    energies (Okabe et al., "Attentive statistics pooling for deep speaker embedding", Interspeech
    2018). Their second bias, of the energy, has no effect on a softmax.
    """

    def __init__(self, dim: int, hidden: int = ATTENTION_DIM) -> None:
        """Initialise as torch's linear layers.

        Args:
            dim: Features per frame.
            hidden: Width of the hidden layer of the attention.
        """
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.energy = nn.Linear(hidden, 1, bias=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pool frames without padding.

        Args:
            frames: Frames of all utterances, one utterance after the other, [n_frames, dim].
            lengths: Frames of each utterance, int64 [batch].

        Returns:
            Mean and standard deviation of each utterance, [batch, 2 * dim].
        """
        vector = self.energy.weight[0]
        return attentive_statistics(frames, lengths, self.hidden.weight, self.hidden.bias, vector)


class PooledAttentive(FrameHead):
    """Scores of an utterance by attentive statistics pooling of its projected frames.

    A linear projection of each frame, `AttentiveStatistics`, and a linear layer.

    Example:
        >>> head = PooledAttentive(dim=768, classes=10)
        >>> head(batch.features[:, 0], batch.lengths)  # [batch, 10]  # doctest: +SKIP
    """

    def __init__(self, dim: int, classes: int, projection: int = PROJECTION_DIM) -> None:
        """Initialise as torch's linear layers.

        Args:
            dim: Features per frame.
            classes: Number of classes.
            projection: Width of the linear projection of the frames.
        """
        super().__init__()
        self.projector = nn.Linear(dim, projection)
        self.pooling = AttentiveStatistics(projection)
        self.output = nn.Linear(2 * projection, classes)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Score utterances.

        Args:
            features: [batch, n_frames, dim].
            lengths: Valid frames of each utterance, [batch]; None if all frames are valid.

        Returns:
            Logits, [batch, classes].
        """
        return self.of_frames(*_without_padding(features, lengths))

    def of_frames(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Score utterances without padding: [n_frames, dim] to [batch, classes]."""
        projected = self.projector(frames.to(self.output.weight.dtype))
        scores: Tensor = self.output(self.pooling(projected, lengths))
        return scores

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters, by the names that files of trained heads have."""
        return {
            "projection_weight": self.projector.weight,
            "projection_bias": self.projector.bias,
            "attention_weight": self.pooling.hidden.weight,
            "attention_bias": self.pooling.hidden.bias,
            "attention_vector": self.pooling.energy.weight[0],
            "weight": self.output.weight,
            "bias": self.output.bias,
        }

    @property
    def frame_bytes(self) -> int:
        """Estimate of the memory of a training step, per frame, without the frames themselves."""
        n_values = 8 * self.projector.out_features + 4 * self.pooling.hidden.out_features
        return n_values * _FLOAT_BYTES


class _Framewise(FrameHead):
    """A head that scores every frame."""

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Score frames.

        Args:
            features: [batch, n_frames, dim].
            lengths: Valid frames of each utterance, [batch]; None if all frames are valid.

        Returns:
            Logits, [batch, n_frames, vocab]; zero for padding. Apply `log_softmax(-1)` for CTC.
        """
        frames, sizes = _without_padding(features, lengths)
        scores = self.of_frames(frames, sizes)
        places = _places(sizes.to(scores.device), features.shape[1])
        return _moved(scores, places, (*features.shape[:2], scores.shape[1]), 0.0)


class FramewiseMLP(_Framewise):
    """Scores of every frame by a network with one hidden layer: linear, ReLU, linear.

    Example:
        >>> head = FramewiseMLP(dim=768, vocab=29)
        >>> head(batch.features[:, 0], batch.lengths)  # [batch, n_frames, 29]  # doctest: +SKIP
    """

    def __init__(self, dim: int, vocab: int, projection: int = PROJECTION_DIM) -> None:
        """Initialise as torch's linear layers.

        Args:
            dim: Features per frame.
            vocab: Number of symbols, including the blank, or of classes.
            projection: Width of the hidden layer.
        """
        super().__init__()
        self.hidden = nn.Linear(dim, projection)
        self.output = nn.Linear(projection, vocab)

    def of_frames(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Score frames without padding: [n_frames, dim] to [n_frames, vocab]."""
        scores: Tensor = self.output(self.hidden(frames.to(self.output.weight.dtype)).relu())
        return scores

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters, by the names that files of trained heads have."""
        return {
            "hidden_weight": self.hidden.weight,
            "hidden_bias": self.hidden.bias,
            "weight": self.output.weight,
            "bias": self.output.bias,
        }

    @property
    def frame_bytes(self) -> int:
        """Estimate of the memory of a training step, per frame, without the frames themselves."""
        return (4 * self.hidden.out_features + 6 * self.output.out_features) * _FLOAT_BYTES


class FramewiseLSTM(_Framewise):
    """Scores of every frame by a bidirectional LSTM: SUPERB's kind of head for speech recognition.

    A linear projection of each frame, two bidirectional LSTM layers, and a linear layer. SUPERB's
    head has a projection to 1024, layers of 1024 units and a dropout of 0.2
    (`s3prl/downstream/asr/config.yaml`).

    Example:
        >>> head = FramewiseLSTM(dim=768, vocab=29)
        >>> head(batch.features[:, 0], batch.lengths)  # [batch, n_frames, 29]  # doctest: +SKIP
    """

    def __init__(
        self, dim: int, vocab: int, projection: int = PROJECTION_DIM, units: int = LSTM_UNITS
    ) -> None:
        """Initialise as torch's layers.

        Args:
            dim: Features per frame.
            vocab: Number of symbols, including the blank, or of classes.
            projection: Width of the linear projection of the frames.
            units: Units of each direction of each LSTM layer.
        """
        super().__init__()
        self.projector = nn.Linear(dim, projection)
        self.lstm = nn.LSTM(projection, units, LSTM_LAYERS, bidirectional=True)
        self.output = nn.Linear(2 * units, vocab)

    def of_frames(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Score frames without padding: [n_frames, dim] to [n_frames, vocab]."""
        projected = self.projector(frames.to(self.output.weight.dtype))
        places, batch_sizes = _packing(lengths.cpu())
        places = places.to(frames.device)
        packed = _moved(projected, places, projected.shape, 0.0)
        found, _ = self.lstm(PackedSequence(packed, batch_sizes))
        scores = self.output(found.data)
        return _moved(scores, places.argsort(), scores.shape, 0.0)

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters, by the names that files of trained heads have."""
        return {
            "projection_weight": self.projector.weight,
            "projection_bias": self.projector.bias,
            **{f"lstm.{name}": value for name, value in self.lstm.named_parameters()},
            "weight": self.output.weight,
            "bias": self.output.bias,
        }

    @property
    def frame_bytes(self) -> int:
        """Estimate of the memory of a training step, per frame, without the frames themselves."""
        n_directions = 2 * LSTM_LAYERS
        n_values = 4 * self.projector.out_features + 6 * self.output.out_features
        return (n_values + n_directions * 10 * self.lstm.hidden_size) * _FLOAT_BYTES


def attentive_statistics(
    frames: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, vector: Tensor
) -> Tensor:
    """Compute `AttentiveStatistics` with given parameters.

    Args:
        frames: Frames of all utterances, one utterance after the other, [n_frames, dim].
        lengths: Frames of each utterance, int64 [batch].
        weight: W, [hidden, dim].
        bias: b, [hidden].
        vector: v, [hidden].

    Returns:
        Mean and standard deviation of each utterance, [batch, 2 * dim].
    """
    shape = len(lengths), int(lengths.max())
    places = _places(lengths.to(frames.device), shape[1])
    energies = nn.functional.linear(frames, weight, bias).tanh() @ vector
    padded = _moved(energies, places, shape, -math.inf)
    weights = padded.softmax(1).unsqueeze(1)  # [batch, 1, longest]
    values = _moved(frames, places, (*shape, frames.shape[1]), 0.0)
    mean = torch.bmm(weights, values)  # [batch, 1, dim]
    variance = torch.bmm(weights, (values - mean).square())
    return torch.cat([mean, variance.clamp_min(_VARIANCE_FLOOR).sqrt()], dim=2)[:, 0]


def _without_padding(features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the valid frames of a padded batch, and the lengths of its utterances.

    Args:
        features: [batch, n_frames, dim].
        lengths: Valid frames of each utterance, [batch]; None if all frames are valid.

    Returns:
        [n_valid, dim] and int64 [batch].
    """
    if lengths is None:
        n, longest = features.shape[:2]
        return features.flatten(0, 1), torch.full((n,), longest, device=features.device)
    return features[valid_frames(features, lengths)], lengths


def _places(lengths: Tensor, longest: int) -> Tensor:
    """Return the place of each frame among padded ones, int64 [n_frames]."""
    owner, time = _owner_and_time(lengths)
    return owner * longest + time


def _owner_and_time(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of the utterance of each frame, and its number there: int64 [n_frames]."""
    owner = torch.repeat_interleave(lengths)
    time = torch.arange(len(owner), device=lengths.device) - (lengths.cumsum(0) - lengths)[owner]
    return owner, time


def _packing(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place of each frame in a `PackedSequence`: by time, then the longest first.

    Args:
        lengths: Frames of each utterance, int64 [batch], on the CPU.

    Returns:
        Places, int64 [n_frames], and the utterances at each time, int64 [longest].
    """
    rank = torch.empty_like(lengths)
    rank[lengths.argsort(descending=True, stable=True)] = torch.arange(len(lengths))
    owner, time = _owner_and_time(lengths)
    batch_sizes = torch.bincount(time)
    return (batch_sizes.cumsum(0) - batch_sizes)[time] + rank[owner], batch_sizes


def _moved(rows: Tensor, places: Tensor, shape: Sequence[int], fill: float) -> Tensor:
    """Move rows to places of a tensor, whose first two axes are flattened if they are padded.

    Unlike indexing and `pad_sequence`, whose gradients are slow on a CPU.

    Args:
        rows: [n] or [n, dim].
        places: Place of each row, int64 [n].
        shape: Shape of the result.
        fill: Value of the other places.
    """
    out = rows.new_full((math.prod(shape) // math.prod(rows.shape[1:]), *rows.shape[1:]), fill)
    return out.index_copy(0, places, rows).view(*shape)
