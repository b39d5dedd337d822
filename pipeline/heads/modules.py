"""Linear heads of SUPERB for frozen features.

Names, sizes and initialisation follow s3prl, the code of SUPERB (Yang et al., "SUPERB: Speech
processing Universal PERformance Benchmark", Interspeech 2021): a featurizer with a softmax over one
scalar per layer (`s3prl/upstream/interfaces.py::Featurizer`), and linear probes with a projection
to 256 (`s3prl/downstream/model.py`).

Heads accept features in the stored dtype and compute in the dtype of their parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PROJECTION_DIM = 256
"""Width of the projection of SUPERB's linear probes."""


class WeightedSum(nn.Module):
    """Learned weighted sum over layers: softmax over one scalar per layer, initially zero.

    The weighted sum and the mean over frames commute, so training on pooled features is equivalent
    to training on frames, except with `normalize`.
    """

    def __init__(self, n_layers: int, normalize: bool = False) -> None:
        """Initialise with equal weights.

        Args:
            n_layers: Number of layers of the features.
            normalize: Apply a LayerNorm without parameters to each layer first.
        """
        super().__init__()
        self.normalize = normalize
        self.scalars = nn.Parameter(torch.zeros(n_layers))

    def weights(self) -> Tensor:
        """Return the weights, float32 [n_layers]; they sum to one."""
        return self.scalars.softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        """Sum over layers.

        Args:
            features: [batch, n_layers, n_frames, dim], or pooled [batch, n_layers, dim].

        Returns:
            [batch, n_frames, dim], or [batch, dim].
        """
        layers = features.to(self.scalars.dtype)
        if self.normalize:
            layers = nn.functional.layer_norm(layers, [layers.shape[-1]])
        summed = torch.matmul(self.weights(), layers.flatten(2))  # [batch, n_frames * dim]
        return summed.view(features.shape[:1] + features.shape[2:])


class FramewiseLinear(nn.Module):
    """Linear scores of every frame, for CTC: SUPERB's head for phone recognition.

    SUPERB's head for speech recognition is larger (two bidirectional LSTMs of 1024 units).
    """

    def __init__(self, dim: int, vocab: int, projection: int | None = PROJECTION_DIM) -> None:
        """Initialise as torch's linear layers, as s3prl does.

        Args:
            dim: Features per frame.
            vocab: Number of symbols, including the blank.
            projection: Width of the linear projection; None for no projection.
        """
        super().__init__()
        width = dim if projection is None else projection
        self.projector = nn.Identity() if projection is None else nn.Linear(dim, width)
        self.output = nn.Linear(width, vocab)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Score frames.

        Args:
            features: [batch, n_frames, dim].
            lengths: Valid frames of each utterance, [batch]. If given, scores of padding are zero.

        Returns:
            Logits, [batch, n_frames, vocab]; apply `log_softmax(-1)` for CTC.
        """
        scores: Tensor = self.output(self.projector(features.to(self.output.weight.dtype)))
        if lengths is None:
            return scores
        return scores.masked_fill(~valid_frames(scores, lengths).unsqueeze(-1), 0.0)


class PooledLinear(nn.Module):
    """Linear scores of the mean over frames: SUPERB's head for KS, SID, IC and ER.

    s3prl projects the frames and then averages them. Averaging first is equal by linearity, and
    cheaper. So training on `FeatureStore.pooled` is equivalent to training on frames. Several
    statistics are concatenated: `torch.cat([mean, std], -1)`, with `dim` twice that of a frame.
    """

    def __init__(self, dim: int, classes: int, projection: int | None = PROJECTION_DIM) -> None:
        """Initialise as torch's linear layers, as s3prl does.

        Args:
            dim: Features per frame.
            classes: Number of classes.
            projection: Width of the linear projection; None for no projection.
        """
        super().__init__()
        width = dim if projection is None else projection
        self.projector = nn.Identity() if projection is None else nn.Linear(dim, width)
        self.output = nn.Linear(width, classes)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Score utterances.

        Args:
            features: [batch, n_frames, dim], or pooled [batch, dim].
            lengths: Valid frames of each utterance, [batch]; None if all frames are valid.

        Returns:
            Logits, [batch, classes].
        """
        pooled = features.to(self.output.weight.dtype)
        if pooled.dim() == 3:
            pooled = masked_mean(pooled, lengths)
        scores: Tensor = self.output(self.projector(pooled))
        return scores


def masked_mean(frames: Tensor, lengths: Tensor | None) -> Tensor:
    """Average the valid frames. Padding is ignored, even NaN.

    Args:
        frames: [batch, n_frames, dim].
        lengths: Valid frames of each utterance, [batch]; None if all frames are valid.

    Returns:
        [batch, dim].
    """
    if lengths is None:
        return frames.mean(1)
    valid = valid_frames(frames, lengths).unsqueeze(-1)
    return frames.masked_fill(~valid, 0.0).sum(1) / lengths.to(frames.dtype).unsqueeze(-1)


def valid_frames(frames: Tensor, lengths: Tensor) -> Tensor:
    """Return the mask of frames that are not padding: bool [batch, n_frames]."""
    return torch.arange(frames.shape[1], device=frames.device) < lengths.unsqueeze(-1)
