"""Shares of train: nested, in proportion from each class, dev and test untouched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import load_sweep_config
from pipeline.errors import ConfigError
from pipeline.probing.labels import Fold, Labels
from pipeline.probing.splits.making import Split
from pipeline.probing.splits.shares import take_share

N = 400
COUNTS = {"a": 200, "b": 120, "c": 60, "d": 16, "e": 4}
WORDS = tuple(word for word, n in COUNTS.items() for _ in range(n))
ORDER = np.random.default_rng(3).permutation(N)
LABELS = Labels(("word",), (tuple(WORDS[i] for i in ORDER),), (None,))
AT = np.arange(N)
SPLIT = Split((Fold(AT[AT % 4 < 2], AT[AT % 4 == 2], AT[AT % 4 == 3]),), "some split", ("w",))
KS = load_sweep_config(["task=ks"]).task


def share(fraction, task=KS, labels=LABELS, seed=0, split=SPLIT):
    """Return the training utterances of a share, and the split."""
    found = take_share(split, task, labels, fraction, seed)
    return found.folds[0].train, found


def test_smaller_shares_are_parts_of_larger_ones():
    """All are sorted, of the asked size, and dev and test stay as they are."""
    previous: set[int] = set()
    for fraction in (0.025, 0.1, 0.3, 0.5, 0.9):
        train, split = share(fraction)
        assert len(train) == round(fraction * 200)
        assert train.tolist() == sorted(set(train.tolist()))
        assert previous < set(train.tolist()) < set(SPLIT.folds[0].train.tolist())
        previous = set(train.tolist())
        assert split.folds[0].dev is SPLIT.folds[0].dev
        assert split.folds[0].test is SPLIT.folds[0].test
    assert share(1.0)[1] is SPLIT


def test_a_share_has_every_class_in_proportion():
    """One of each as soon as there is room, then as the whole: within one utterance."""
    words = np.array(LABELS.texts[0])
    whole = words[SPLIT.folds[0].train]
    for fraction in (0.025, 0.05, 0.2, 0.5):
        train, split = share(fraction)
        assert set(words[train]) == set(COUNTS)
        assert split.warnings == ("w",)
        for word in COUNTS:
            expected = fraction * (whole == word).sum()
            n = (words[train] == word).sum()
            if fraction >= 0.2:
                assert abs(n - expected) <= 1.5, (fraction, word)
    assert (
        "some split; 40 of 200 training utterances, drawn in proportion"
        in share(0.2)[1].description
    )


def test_too_small_a_share_says_what_is_missing():
    """Frequent classes come first; a task that needs all is refused with the least share."""
    train, split = share(0.01)
    assert {LABELS.texts[0][i] for i in train.tolist()} == {"a", "b"}
    assert split.warnings[1] == (
        "fractions: 0.01 of train is 2 utterances, and there are 5 classes, so 3 of them are not "
        "trained on"
    )
    with pytest.raises(ConfigError, match=r"3 of them .* fractions of at least 0\.025$"):
        share(0.01, task=replace(KS, name="sid", speaker_independent=False))
    assert len(share(0.025, task=replace(KS, speaker_independent=False))[0]) == 5


def test_the_draw_depends_on_the_seed_only():
    """Equal for equal seeds, other for another one."""
    assert share(0.3)[0].tolist() == share(0.3)[0].tolist()
    assert share(0.3)[0].tolist() != share(0.3, seed=1)[0].tolist()


def test_transcripts_are_drawn_at_random_and_numbers_by_their_size():
    """Tasks without classes have a share, too."""
    asr, regression = (load_sweep_config([f"task={name}"]).task for name in ("asr", "regression"))
    train, split = share(0.1, task=asr)
    assert len(train) == 20
    assert "drawn at random" in split.description
    numbers = Labels(("score",), (tuple(str(i) for i in ORDER),), (None,))
    train, split = share(0.1, task=regression, labels=numbers)
    assert share(0.01, task=regression, labels=numbers)[1].warnings == ("w",)
    tenths = np.array(ORDER)[train] // 40
    assert set(np.bincount(tenths, minlength=10).tolist()) <= {1, 2, 3}
    assert split.warnings == ("w",)


def test_the_fold_that_lacks_most_is_named():
    """Of a fold of one class and one of five, the second."""
    words = np.array(LABELS.texts[0])
    few = np.flatnonzero(words == "a")[:100]
    split = Split((Fold(few, AT[:2], AT[2:4]), SPLIT.folds[0]), "two folds")
    found = take_share(split, KS, LABELS, 0.01, 0)
    [warning] = found.warnings
    assert warning.startswith("fractions: 0.01 of train is 2 utterances, and there are 5 classes")


def test_every_fold_has_a_share():
    """Of its own train; sizes are means."""
    split = Split((SPLIT.folds[0], Fold(AT[AT % 4 >= 2], AT[:2], AT[2:4])), "two folds")
    found = take_share(split, KS, LABELS, 0.25, 0)
    assert [len(fold.train) for fold in found.folds] == [50, 50]
    assert all(set(a.train) < set(b.train) for a, b in zip(found.folds, split.folds, strict=True))
