"""The linear heads that SUPERB puts on frozen features.

Names, sizes and initialisation follow s3prl, the code behind SUPERB (Yang et al., "SUPERB: Speech
processing Universal PERformance Benchmark", Interspeech 2021): a featurizer that takes a softmax
over one scalar per layer, `s3prl/upstream/interfaces.py::Featurizer`; and linear probes with a
projection to 256, `s3prl/downstream/model.py`.

Features come as stored, float16; heads compute in the precision of their parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PROJECTION_DIM = 256
"""Width of the projection in front of SUPERB's linear probes."""


class WeightedSum(nn.Module):
    """A learned weighted sum over layers: softmax over one scalar per layer, all zero at first.

    Weighted sum and mean over frames commute, so it trains on pooled features exactly as on frames;
    with `normalize` they do not.
    """

    def __init__(self, n_layers: int, normalize: bool = False) -> None:
        """Starts with equal weights.

        Args:
            n_layers: Layers of the features.
            normalize: Put each layer through a LayerNorm without parameters first.
        """
        super().__init__()
        self.normalize = normalize
        self.scalars = nn.Parameter(torch.zeros(n_layers))

    def weights(self) -> Tensor:
        """The weights, float32 [n_layers]; they sum to one."""
        return self.scalars.softmax(0)

    def forward(self, features: Tensor) -> Tensor:
        """Sums over layers.

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
    """Scores of every frame, for CTC: SUPERB's phone recognition head.

    SUPERB's own speech recognition head is larger (two bidirectional LSTMs of 1024).
    """

    def __init__(self, dim: int, vocab: int, projection: int | None = PROJECTION_DIM) -> None:
        """Starts as torch's linear layers do, as s3prl.

        Args:
            dim: Features per frame.
            vocab: Symbols, the blank included.
            projection: Width of the linear projection in front; None leaves it out.
        """
        super().__init__()
        width = dim if projection is None else projection
        self.projector = nn.Identity() if projection is None else nn.Linear(dim, width)
        self.output = nn.Linear(width, vocab)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scores frames.

        Args:
            features: [batch, n_frames, dim].
            lengths: Valid frames, [batch]. If given, the scores of the others are zero.

        Returns:
            [batch, n_frames, vocab], unnormalised: take `log_softmax(-1)` for CTC.
        """
        scores: Tensor = self.output(self.projector(features.to(self.output.weight.dtype)))
        if lengths is None:
            return scores
        return scores.masked_fill(~valid_frames(scores, lengths).unsqueeze(-1), 0.0)


class PooledLinear(nn.Module):
    """Scores of an utterance from the mean over its frames: SUPERB's KS, SID, IC and ER head.

    s3prl projects the frames and then takes their mean; here the mean comes first, which is the
    same by linearity and cheaper. So it trains on `FeatureStore.pooled` as on frames.
    """

    def __init__(self, dim: int, classes: int, projection: int | None = PROJECTION_DIM) -> None:
        """Starts as torch's linear layers do, as s3prl.

        Args:
            dim: Features per frame.
            classes: Classes.
            projection: Width of the linear projection in front; None leaves it out.
        """
        super().__init__()
        width = dim if projection is None else projection
        self.projector = nn.Identity() if projection is None else nn.Linear(dim, width)
        self.output = nn.Linear(width, classes)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scores utterances.

        Args:
            features: [batch, n_frames, dim], or pooled [batch, dim].
            lengths: Valid frames, [batch]; without it all frames are.

        Returns:
            [batch, classes], unnormalised.
        """
        pooled = features.to(self.output.weight.dtype)
        if pooled.dim() == 3:
            pooled = masked_mean(pooled, lengths)
        scores: Tensor = self.output(self.projector(pooled))
        return scores


def masked_mean(frames: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean over the valid frames; what lies beyond them does not matter, be it NaN.

    Args:
        frames: [batch, n_frames, dim].
        lengths: Valid frames, [batch]; None means all.

    Returns:
        [batch, dim].
    """
    if lengths is None:
        return frames.mean(1)
    valid = valid_frames(frames, lengths).unsqueeze(-1)
    return frames.masked_fill(~valid, 0.0).sum(1) / lengths.to(frames.dtype).unsqueeze(-1)


def valid_frames(frames: Tensor, lengths: Tensor) -> Tensor:
    """True where frames are not padding: bool [batch, n_frames]."""
    return torch.arange(frames.shape[1], device=frames.device) < lengths.unsqueeze(-1)
