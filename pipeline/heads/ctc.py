"""Connectionist temporal classification: size limits, loss, greedy decoding.

Graves et al., "Connectionist temporal classification", ICML 2006. The loss is torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.heads.vocabulary import BLANK

Target = tuple[int, ...]
"""Symbol numbers of an utterance, without blanks."""


def min_frames(target: Target) -> int:
    """Return the least number of frames: one per symbol, and a blank between equal neighbours."""
    return len(target) + sum(first == second for first, second in pairwise(target))


def ctc_bytes(n_frames: int, n_symbols: int) -> int:
    """Return the bytes of the forward and backward tables of one utterance, in float32."""
    return n_frames * (2 * n_symbols + 1) * 4 * 2


def ctc_losses(log_probs: Tensor, mask: Tensor, targets: Sequence[Target]) -> Tensor:
    """Compute the CTC loss of several heads on a batch, in one call.

    Args:
        log_probs: Log-probabilities of the valid frames of all utterances, concatenated:
            [n_heads, n_frames, vocab].
        mask: True for valid frames, [batch, longest].
        targets: Symbols of each utterance, [batch].

    Returns:
        The loss per symbol of each utterance, averaged over utterances: [n_heads].
    """
    n_heads, device = len(log_probs), log_probs.device
    padded = log_probs.new_zeros(n_heads, *mask.shape, log_probs.shape[2])
    padded[:, mask] = log_probs
    n_symbols = torch.tensor([len(item) for item in targets], device=device)
    numbers = [number for item in targets for number in item]
    losses = nn.functional.ctc_loss(
        padded.flatten(0, 1).transpose(0, 1),  # [longest, n_heads * batch, vocab]
        torch.tensor(numbers * n_heads, dtype=torch.int64, device=device),
        mask.sum(1).repeat(n_heads),
        n_symbols.repeat(n_heads),
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )
    return (losses.view(n_heads, -1) / n_symbols.clamp(min=1)).mean(1)


def greedy_symbols(path: npt.NDArray[np.int64]) -> list[int]:
    """Return the symbols of a path: merge runs of equal symbols, then remove blanks.

    Args:
        path: Most probable symbol of each frame, [n_frames].
    """
    starts_run = np.append(True, path[1:] != path[:-1])[: len(path)]
    return [int(number) for number in path[starts_run] if number != BLANK]
