"""The sample of utterances of which stored and reference features are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError, counted
from pipeline.store.read.catalogue import Piece
from pipeline.store.read.features import FeatureStore

N_UTTERANCES = 40
"""Utterances of a sample whose size is not given."""
MAX_AUDIO_S = 300.0
"""Audio of such a sample. Two cores encode it with a base model in about a minute."""


@dataclass(frozen=True)
class Clip:
    """An utterance of a sample, or the piece of a long recording that stands for it.

    Attributes:
        name: Id of the utterance.
        piece: The piece: an utterance in several pieces is represented by a random one.
    """

    name: str
    piece: Piece

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return self.piece.stop - self.piece.start


@dataclass(frozen=True)
class Sample:
    """A random sample of the utterances of a store.

    Attributes:
        clips: Its utterances, in the order of the store.
        n_drawn: Utterances that were asked for; more than there are clips if the sample was cut.
    """

    clips: tuple[Clip, ...]
    n_drawn: int

    def describe_cut(self) -> str | None:
        """Describe in one line why the sample is smaller than asked for; None if it is not."""
        if len(self.clips) == self.n_drawn:
            return None
        return (
            f"the sample has {len(self.clips)} of {counted(self.n_drawn, 'utterance')}: they are "
            f"long, and {MAX_AUDIO_S / 60:.0f} min of audio are enough. "
            f"n_utterances={self.n_drawn} takes all"
        )


def draw_sample(store: FeatureStore, n_utterances: int | None = None, seed: int = 0) -> Sample:
    """Draw utterances at random, each with the same probability.

    Args:
        store: The utterances to draw from.
        n_utterances: Their number; all if there are fewer. None draws `N_UTTERANCES`, or as many as
            come to `MAX_AUDIO_S` of audio.
        seed: Seed of the draw.

    Raises:
        StoreError: There are none.
    """
    if not len(store):
        raise StoreError(f"{store.backend} has no complete utterances yet; run `strata extract`")
    random = np.random.default_rng(seed)
    n_drawn = min(len(store), N_UTTERANCES if n_utterances is None else n_utterances)
    drawn: npt.NDArray[np.int64] = random.permutation(len(store))[:n_drawn]
    limit = MAX_AUDIO_S * store.frame_rate_hz if n_utterances is None else np.inf
    chosen: dict[int, Piece] = {}
    n_frames = 0
    for position in drawn.tolist():
        pieces = store.pieces(position)
        piece = pieces[int(random.integers(len(pieces)))]
        n_frames += piece.stop - piece.start
        if chosen and n_frames > limit:
            break
        chosen[position] = piece
    order = sorted(chosen)
    names = store.take(order).ids
    clips = tuple(Clip(name, chosen[at]) for name, at in zip(names, order, strict=True))
    return Sample(clips, n_drawn)
