"""A small store that the examples and the pages' code run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers.feature_stores import make_store

LETTERS = "abcd"
N_UTTERANCES = 160


def letters_of(row: int) -> tuple[int, int]:
    """The two letters that an utterance says, which differ and do not depend on its digit."""
    first = row // 4 % 4
    return first, (first + 1 + row // 16 % 3) % 4


def spoken(row, layer, n_frames, dim):
    """Noise with a direction for the digit, and two letters of two frames each.

    All are plain in layer 2 and faint in the others.
    """
    strength = 4.0 if layer == 2 else 0.5
    frames = np.random.default_rng([row, layer]).standard_normal((n_frames, dim))
    frames[:, row % 4] += strength
    for start, letter in zip((n_frames // 3, 2 * n_frames // 3), letters_of(row), strict=True):
        frames[start : start + 2, 4 + letter] += 2 * strength
    return frames.astype(np.float16)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store `features`: 160 utterances, four digits, train and test."""
    path = tmp_path_factory.mktemp("examples")
    rows = range(N_UTTERANCES)
    columns = pa.table(
        {
            "digit": pa.array([row % 4 for row in rows], pa.int64()),
            "word": [("zero", "one", "two", "three")[row % 4] for row in rows],
            "speaker": [("ann", "bob", "cem")[row % 3] for row in rows],
            "text": ["".join(LETTERS[i] for i in letters_of(row)) for row in rows],
            "split": ["test" if row >= 120 else "train" for row in rows],
        }
    )
    make_store(
        path / "features",
        np.random.default_rng(0).integers(10, 60, N_UTTERANCES).tolist(),
        dim=16,
        frames_per_unit=1024,
        features=spoken,
        columns=columns,
    )
    return path
