"""Splits: exact cover, whole groups, stratification, leakage, and errors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import chain, combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupShuffleSplit, StratifiedKFold, StratifiedShuffleSplit

from pipeline.config import SplitConfig, load_sweep_config
from pipeline.errors import ConfigError
from pipeline.probing.labels import read_labels
from pipeline.probing.splits import corpus, make_split
from pipeline.probing.splits.speakers import count_speakers
from pipeline.probing.splits.stratified import (
    have_equal_shares,
    stratified_group_split,
    stratified_split,
)
from pipeline.store.documents import read_plan, write_plan
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.opening import open_store
from tests.helpers.planted_stores import planted, write_planted

N = 120


FREE = "split.speaker=none"


def split_of(root, *overrides, task="ks"):
    """Return the split that a sweep of a store uses."""
    config = configured(f"task={task}", *overrides)
    store = open_store(root)
    labels = read_labels(store, config.task, config.labels)
    return make_split(store, config.task, config.split, labels)


@cache
def configured(*overrides):
    """Return a configuration; composing it takes longer than most of these splits."""
    return load_sweep_config(list(overrides))


def store_with(tmp_path, n=N, **columns):
    """Write a store with further columns; return its path."""
    write_planted(tmp_path / "store", n=n, columns=columns)
    return tmp_path / "store"


def speakers_of(n_speakers, n=N):
    """Return the speaker of each utterance, in runs, so that each speaker has all words."""
    return [f"speaker-{row * n_speakers // n}" for row in range(n)]


def in_parts(fold):
    """Return train, dev and test as lists."""
    return [part.tolist() for part in (fold.train, fold.dev, fold.test)]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=80),
    st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5), (0.2,) * 5]),
    st.integers(0, 3),
)
def test_a_stratified_split_keeps_the_shares_of_the_whole_and_of_each_class(classes, shares, seed):
    """A part is within one utterance of its share, and within two in each class."""
    numbers = np.array(classes)
    parts = stratified_split(numbers, shares, seed, keep_first=False)
    for part, share in enumerate(shares):
        assert abs((parts == part).sum() - share * len(classes)) <= 1 + 1e-9
        for number in set(classes):
            mine = numbers == number
            assert abs((parts[mine] == part).sum() - share * mine.sum()) <= 2 + 1e-9


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 3))
def test_the_first_part_has_every_class(classes, seed):
    """A class with one utterance is in train, not in test."""
    numbers = np.array(classes)
    parts = stratified_split(numbers, (0.6, 0.2, 0.2), seed, keep_first=True)
    assert set(numbers[parts == 0]) == set(classes)


@given(st.lists(st.integers(0, 6), min_size=20, max_size=60), st.integers(0, 3))
def test_groups_stay_whole_and_no_part_is_empty(groups, seed):
    """Every group is in one part and every part has a group, for groups of any sizes."""
    numbers = np.unique(groups, return_inverse=True)[1]
    shares = (0.8, 0.1, 0.1)[: numbers.max() + 1]
    parts = stratified_group_split(np.zeros(len(groups), int), numbers, shares, seed)
    assert set(parts) == set(range(len(shares)))
    assert all(len(set(parts[numbers == group])) == 1 for group in set(numbers))


def test_scikit_learn_refuses_small_classes_that_must_be_split():
    """scikit-learn raises for classes with one utterance, and for parts smaller than n_classes."""
    one_alone = np.array([0] * 19 + [1])
    with pytest.raises(ValueError, match="least populated class"):
        next(StratifiedShuffleSplit(1, test_size=0.1).split(one_alone, one_alone))
    parts = stratified_split(one_alone, (0.9, 0.1), seed=0, keep_first=True)
    assert np.bincount(parts).tolist() == [18, 2]
    assert parts[-1] == 0
    speakers = np.repeat(np.arange(40), 3)
    with pytest.raises(ValueError, match="number of classes"):
        next(StratifiedShuffleSplit(1, test_size=12).split(speakers, speakers))
    with pytest.raises(ValueError, match="members in each class"):
        next(StratifiedKFold(4).split(speakers, speakers))
    parts = stratified_split(speakers, (0.8, 0.1, 0.1), seed=0, keep_first=True)
    assert np.bincount(parts).tolist() == [96, 12, 12]
    assert set(speakers[parts == 0]) == set(speakers)
    parts = stratified_split(speakers, (0.25,) * 4, seed=0, keep_first=False)
    assert np.bincount(parts).tolist() == [30] * 4


def test_scikit_learn_divides_groups_where_utterances_must_be_divided():
    """A reason for splits/stratified.py: speakers of unequal size and their classes.

    Over 50 seeds, parts are within 4 % of their shares and train has all classes. GroupShuffleSplit
    misses a share by 20 % or more, and leaves train without a class.
    """
    sizes = [120, 60, 40, 30, 24, 20, 17, 15, 13, 12]
    groups = np.repeat(np.arange(10), sizes)
    is_common = np.random.default_rng(0).random(len(groups)) < 0.5
    classes = np.where(is_common, 0, 1 + groups // 3)
    shares = (0.8, 0.1, 0.1)

    def group_shuffle(seed):
        parts, rest = np.zeros(len(groups), int), np.arange(len(groups))
        for part, share in ((2, 0.1), (1, 1 / 9)):
            splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
            kept, taken = next(splitter.split(rest, groups=groups[rest]))
            parts[rest[taken]], rest = part, rest[kept]
        return parts

    def worst(splits):
        """Return the largest distance from a share, and the most classes that train lacks."""
        distances = [np.abs(np.bincount(parts) / len(groups) - shares).max() for parts in splits]
        return max(distances), max(5 - len(set(classes[parts == 0])) for parts in splits)

    ours = [stratified_group_split(classes, groups, shares, seed) for seed in range(50)]
    distance, n_missing = worst(ours)
    assert distance < 0.04
    assert n_missing == 0
    distance, n_missing = worst([group_shuffle(seed) for seed in range(50)])
    assert distance > 0.2
    assert n_missing > 0


def test_the_column_split_is_used_and_dev_is_taken_from_train(tmp_path):
    """If the corpus has no dev, test is unchanged and dev is a stratified part of train."""
    where = ["test" if row % 6 == 0 else "train" for row in range(N)]
    split = split_of(store_with(tmp_path, split=where))
    train, dev, test = in_parts(split.folds[0])
    assert test == [row for row in range(N) if row % 6 == 0]
    assert sorted(train + dev) == [row for row in range(N) if row % 6]
    assert len(dev) == pytest.approx(100 / 9, abs=1)
    assert Counter(row % 4 for row in dev).keys() == {0, 1, 2, 3}
    assert "column split, dev taken from train stratified by label" in split.description
    assert split.description.endswith("; speakers unknown")
    assert split.warnings == ()


def test_values_of_the_split_column_can_be_configured(tmp_path):
    """Several values may form one part, and common names of dev are recognised."""
    where = [("clean", "other", "valid", "held", "junk")[row % 5] for row in range(N)]
    root = store_with(tmp_path, part=where)
    fold = split_of(
        root, "split.column=part", "split.train=[clean,other]", "split.test=held"
    ).folds[0]
    assert [len(part) for part in in_parts(fold)] == [2 * N // 5, N // 5, N // 5]
    with pytest.raises(
        ConfigError, match=r"no labelled utterance has part = train, training, trn; its values"
    ):
        split_of(root, "split.column=part")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("split", ("Train", "Validation", "Test")),
        ("split", ("TRAIN", "DEV", "EVAL")),
        ("Split", ("training", "development", "testing")),
        ("Split_Set", ("Train", "Development", "Test1")),
        ("partition", ("trn", "devel", "tst")),
        ("subset", ("train", "val", "evaluation")),
    ],
)
def test_the_spellings_of_corpora_are_known(tmp_path, column, values):
    """The column and its values are compared without regard to case."""
    root = store_with(tmp_path, **{column: [values[row % 3] for row in range(N)]})
    split = split_of(root)
    assert [part[0] for part in in_parts(split.folds[0])] == [0, 1, 2]
    assert [len(part) for part in in_parts(split.folds[0])] == [N // 3] * 3
    assert split.description.startswith(
        f"column {column}: train is {values[0]}, dev is {values[1]}"
    )
    assert split.warnings == ()


@pytest.mark.parametrize("column", ["set", "Usage", "phase", "dataset"])
def test_a_column_of_nothing_but_parts_is_the_split(tmp_path, column):
    """Whatever its name; one with other values, too, is not."""
    names = ("Train", "val", "TEST")
    values = [names[row % 3] for row in range(N)]
    others = [*values[:-1], "other"]
    split = split_of(store_with(tmp_path, other=others, **{column: values}))
    assert split.description.startswith(f"column {column}: train is Train, dev is val")
    assert [part[0] for part in in_parts(split.folds[0])] == [0, 1, 2]


def test_all_values_of_a_split_are_those_of_parts(tmp_path, monkeypatch):
    """Not only the first ones, which are looked at before a column is read whole."""
    monkeypatch.setattr(corpus, "_N_LOOKED_AT", 6)
    values = [("train", "dev", "test")[row % 3] for row in range(N)]
    root = store_with(tmp_path, form=[*values[:-1], "other"])
    assert "form" not in split_of(root, FREE).description


def test_names_of_classes_may_be_those_of_parts(tmp_path, monkeypatch):
    """The column holds numbers, as a ClassLabel of datasets does."""
    names = {"fold": ["train", "validation", "test"]}
    monkeypatch.setattr(FeatureStore, "class_names", property(lambda store: names))
    split = split_of(store_with(tmp_path, fold=[row % 3 for row in range(N)]))
    assert split.description.startswith("column fold: train is train, dev is validation")


def test_values_of_no_part_give_a_warning(tmp_path):
    """Those utterances would be left out with a word in brackets only."""
    names = ("Training", "Validierung", "Test", "Training")
    root = store_with(tmp_path, split=[None, *(names[row % 4] for row in range(1, N))])
    (warning,) = split_of(root).warnings  # the first one has no value
    assert warning == (
        f"{N // 4} utterances whose split is Validierung are in no part; split.dev names the "
        "values of a part"
    )
    assert split_of(root, "split.dev=[Validierung]").warnings == ()


def test_a_partition_with_one_known_part_is_missed(tmp_path):
    """Its other values are not known; the refusal about speakers says so, too."""
    names = ("Train", "Development", "Test2")
    root = store_with(tmp_path, Partition=[names[row % 3] for row in range(N)])
    words = "column 'Partition' is not used, because none of its values"
    (warning,) = split_of(root, FREE).warnings
    assert warning.startswith(words)
    with pytest.raises(ConfigError, match=f"{words}.*no column of the store is known to hold the"):
        split_of(root)


def test_classes_that_are_spelt_alike_give_a_warning(tmp_path):
    """A space at the end of a cell makes a class of its own; transcripts have no classes."""
    words = [("yes", "no", "yes ", "left")[row % 4] for row in range(N)]
    root = store_with(tmp_path, word=words)
    (warning,) = split_of(root, FREE, "labels=[word]").warnings
    assert warning.startswith("'yes', 'yes ' of column 'word' are different classes")
    alike = [word.replace("yes ", "YES") for word in words]
    (tmp_path / "case").mkdir()
    (warning,) = split_of(store_with(tmp_path / "case", word=alike), FREE, "labels=[word]").warnings
    assert warning.startswith("'YES', 'yes' of")
    settings = FREE, "labels=[word]", "split.folds=3"
    assert len(split_of(root, *settings).warnings) == 1
    assert split_of(root, *settings, task="asr").warnings == ()


def test_a_split_column_that_is_not_used_gives_a_warning(tmp_path):
    """Its values are no known names: the scores are not those of the corpus's own split."""
    names = ("fold-a", "fold-b", "test")
    root = store_with(tmp_path, split=[names[row % 3] for row in range(N)], partition=["x"] * N)
    split = split_of(root, FREE)
    assert split.description.startswith("new split")
    (warning,) = split.warnings
    assert warning.startswith(
        "column 'split' is not used, because none of its values (fold-a, fold"
    )
    assert "is known to be train: a split is made here" in warning
    assert "Set split.train=[VALUE], or split.column=null" in warning
    assert split_of(root, FREE, "split.column=null").warnings == ()
    chosen = split_of(root, "split.train=[Fold-A,fold_b]")
    assert "train is fold-a and fold-b, test is test" in chosen.description
    with pytest.raises(ConfigError, match=r"'test' of column 'split' is in two of split\.train"):
        split_of(root, "split.train=[fold-a,test]")


def test_speakers_that_are_learned_are_in_every_part(tmp_path):
    """Also in a task that should be independent of the speaker: its labels are what it learns."""
    split = split_of(store_with(tmp_path, speaker=speakers_of(4)), "labels=[speaker]")
    assert split.warnings == ()
    assert all(len({row * 4 // N for row in part}) == 4 for part in in_parts(split.folds[0]))


def test_folds_are_made_whatever_the_split_column_says(tmp_path):
    """Cross-validation is asked for, so the corpus's own split is not used and not missed."""
    where = ["train" if row % 4 else "test" for row in range(N)]
    split = split_of(store_with(tmp_path, split=where), FREE, "split.folds=3")
    assert len(split.folds) == 3
    assert split.warnings == ()


def test_other_columns_of_parts_may_have_any_values(tmp_path):
    """Only a column that is called split is missed; a subset may be something else."""
    root = store_with(tmp_path, subset=[f"s{row % 3}" for row in range(N)])
    assert split_of(root, FREE).warnings == ()


def test_a_value_that_is_spelt_so_is_preferred(tmp_path):
    """Of Test and test, `split.test=Test` takes the first only; a list takes both spellings."""
    where = [("train", "Test", "test", "dev")[row % 4] for row in range(N)]
    root = store_with(tmp_path, split=where)
    for setting, share in (("split.test=Test", 1), ("split.test=[Test]", 2)):
        assert len(split_of(root, setting).folds[0].test) == share * N // 4


def test_numbers_are_stratified_by_tenths(tmp_path):
    """Each part of a random split for a regression has low and high numbers."""
    ages = [str(20 + row / 2) for row in range(N)]
    root = store_with(tmp_path, age=ages)
    store = open_store(root)
    config = load_sweep_config(["task=regression", FREE])
    labels = read_labels(store, config.task, config.labels)
    split = make_split(store, config.task, config.split, labels)
    for part in in_parts(split.folds[0]):
        tenths = np.bincount(np.array(part) * 10 // N, minlength=10)
        assert tenths.max() - tenths.min() <= 1


def test_a_split_column_with_one_value_is_not_used(tmp_path):
    """A store of one split of a hub dataset gets a random split with the configured ratios."""
    root = store_with(tmp_path, split=["train"] * N)
    split = split_of(root, FREE, "split.ratios=[0.5,0.25,0.25]")
    assert [len(part) for part in in_parts(split.folds[0])] == [60, 30, 30]
    assert split.description.startswith("new split")


def test_a_new_split_covers_all_utterances_and_depends_on_the_seed(tmp_path):
    """Every utterance is in one part; another seed gives another split of equal sizes."""
    root = store_with(tmp_path)
    first, again, other = (split_of(root, FREE, f"split.seed={seed}") for seed in (1, 1, 2))
    parts = in_parts(first.folds[0])
    assert sorted(chain(*parts)) == list(range(N))
    assert in_parts(again.folds[0]) == parts
    assert in_parts(other.folds[0]) != parts
    assert list(map(len, in_parts(other.folds[0]))) == list(map(len, parts)) == [96, 12, 12]


def test_a_random_split_with_known_speakers_is_refused(tmp_path):
    """The message names the speakers and both solutions."""
    root = store_with(tmp_path, speaker_name=speakers_of(6))
    with pytest.raises(ConfigError) as caught:
        split_of(root)
    message = str(caught.value)
    assert "speaker-0" in message
    assert "split.speaker=speaker_name" in message
    assert "task.speaker_independent=false" in message
    assert "split.speaker=none" in message
    for allowed in ("task.speaker_independent=false", FREE):
        assert split_of(root, allowed).warnings == ()
    with pytest.raises(ConfigError, match="into several parts"):
        split_of(root, "split.folds=3")


@pytest.mark.parametrize(
    "name",
    [
        *("actor", "Actor_ID", "subject", "talker", "participant", "session", "client_id"),
        *("spk_id", "spkID", "spkid", "SpeakerName", "speakers", "reader", "SPEAKER", "speaker.no"),
    ],
)
def test_usual_names_of_the_speaker_column_are_known(tmp_path, name):
    """A random split that mixes the speakers is refused, whatever their column is called."""
    root = store_with(tmp_path, **{name: speakers_of(6)})
    with pytest.raises(ConfigError, match="6 speakers") as caught:
        split_of(root)
    assert f"split.speaker={name}" in str(caught.value)
    [warning] = split_of(root, f"split.speaker={name}").warnings
    assert f"only 1 test speaker (column {name})" in warning


def test_few_test_speakers_give_a_warning(tmp_path):
    """Intervals are over utterances; folds test every speaker. Ten speakers are enough."""
    warning = "only {} (column speaker): intervals over utterances say nothing about other speakers"
    root = store_with(tmp_path / "six", speaker=speakers_of(6))
    remedy = "; split.column=null split.speaker=speaker split.folds=groups tests each of the 6 "
    [found] = split_of(root, "split.speaker=speaker").warnings
    assert found == warning.format("1 test speaker") + remedy + "speakers once"
    folds = split_of(root, "split.speaker=speaker", "split.folds=groups")
    assert folds.warnings == (warning.format("6 test speakers"),)
    assert split_of(root, FREE).warnings == ()
    root = store_with(tmp_path / "many", speaker=speakers_of(40))
    few = split_of(root, "split.speaker=speaker")
    assert "split.folds=5 tests each of the 40 speakers once" in few.warnings[0]
    assert split_of(root, "split.speaker=speaker", "split.ratios=[0.5,0.1,0.4]").warnings == ()
    root = store_with(tmp_path / "ten", speaker=speakers_of(10))
    assert split_of(root, "split.speaker=speaker", "split.folds=groups").warnings == ()
    where = ["test" if row < N // 40 else "train" for row in range(N)]
    root = store_with(tmp_path / "own", speaker=speakers_of(40), split=where)
    assert "only 1 test speaker" in split_of(root).warnings[0]


def test_few_speakers_are_warned_of_once(tmp_path):
    """Tasks with intervals over speakers have a warning of their own."""
    root = store_with(tmp_path, speaker=speakers_of(6))
    found = split_of(root, "split.ratios=[0.4,0.3,0.3]", task="sv")
    assert found.warnings == ()


def test_a_split_is_called_stratified_only_if_it_is(tmp_path):
    """A class that is a property of the speaker is not in equal shares in parts of few speakers."""
    gender = ["fm"[row * 6 // N % 2] for row in range(N)]
    root = store_with(tmp_path, speaker=speakers_of(6), gender=gender)
    settings = ["split.speaker=speaker", "labels=[gender]"]
    assert split_of(root, *settings).description.startswith(
        "new split with unequal shares of the labels, no speaker in two parts"
    )
    folds = split_of(root, *settings, "split.folds=groups").description
    assert "dev taken from train with unequal shares of the labels" in folds
    assert "3 folds stratified by label" in split_of(root, *settings, "split.folds=3").description
    words = split_of(root, "split.speaker=speaker").description
    assert words.startswith("new split stratified by label")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([[0, 1] * 10, [0, 1]], True),
        ([[0, 1] * 10, [1]], True),  # one utterance cannot be half of each class
        ([[0, 1] * 10, [1] * 4], False),
        ([[0, 1] * 10, []], True),
        ([[0, 1] * 10, [0] * 12 + [1] * 8], True),
        ([[0, 1] * 10, [0] * 18 + [1] * 2], False),
    ],
)
def test_shares_of_classes_are_equal_up_to_a_tenth_and_rounding(parts, expected):
    """In total variation from all parts together."""
    assert have_equal_shares([np.array(part, int) for part in parts]) is expected


@pytest.mark.parametrize(
    "name", ["speaker_gender", "spk_age", "reading", "actors_guild", "userland"]
)
def test_other_columns_are_not_taken_for_the_speaker(tmp_path, name):
    """A property of the speaker is not the speaker."""
    root = store_with(tmp_path, **{name: speakers_of(6)})
    with pytest.raises(ConfigError, match="no column of the store is known to hold the speaker"):
        split_of(root)


def test_the_best_known_name_is_the_speaker(tmp_path):
    """A session or a voice may have several speakers."""
    root = store_with(tmp_path, session=["a"] * N, voice=["b"] * N, speaker_id=speakers_of(6))
    with pytest.raises(ConfigError, match=r"split\.speaker=speaker_id"):
        split_of(root)


def test_a_random_split_without_a_known_speaker_column_asks(tmp_path):
    """The message lists the columns that group utterances as speakers do, and both answers."""
    root = store_with(
        tmp_path,
        who=speakers_of(6),
        room=[None, *(row % 2 for row in range(1, N))],  # an empty cell is no value
        group_of_word=[row % 4 // 2 for row in range(N)],
        take=[f"t{row}" for row in range(N)],
        level=[row / 7 for row in range(N)],
        constant=["x"] * N,
        split=["train"] * N,
    )
    for settings in ([], ["split.folds=3"], ["split.column=null"]):
        with pytest.raises(ConfigError) as caught:
            split_of(root, *settings)
        message = str(caught.value)
        assert "as speakers do: who with 6 values, room with 2 values, group_of_word" in message
        assert not any(name in message for name in ("take", "level", "constant"))
        assert "split.speaker=COLUMN" in message
        assert "split.speaker=none" in message
    assert split_of(root, FREE).warnings == ()
    assert "only 1 test speaker (column who)" in split_of(root, "split.speaker=who").warnings[0]
    assert split_of(root, "task.speaker_independent=false").warnings == ()


def test_a_named_speaker_column_keeps_speakers_apart(tmp_path):
    """A speaker is in one part, in a single split and in every fold."""
    speakers = speakers_of(6)
    root = store_with(tmp_path, who=speakers)
    for settings in ([], ["split.folds=3"], ["split.folds=groups"]):
        split = split_of(root, "split.speaker=who", *settings)
        assert not any("LEAKAGE" in line for line in split.warnings)
        for fold in split.folds:
            sides = [{speakers[row] for row in part} for part in in_parts(fold)]
            assert all(sides)
            assert not any(one & other for one, other in combinations(sides, 2))


def test_hints_can_be_given_to_a_shell(tmp_path):
    """The names of columns may have spaces and brackets."""
    root = store_with(tmp_path, **{"Speaker (name)": speakers_of(6)})
    with pytest.raises(ConfigError, match=r"Set 'split.speaker=Speaker \(name\)' to keep"):
        split_of(root)
    [warning] = split_of(root, "split.speaker=Speaker (name)").warnings
    assert "split.column=null 'split.speaker=Speaker (name)' split.folds=groups" in warning


@pytest.mark.parametrize("nothing", [None, " "])
def test_an_empty_column_is_not_the_speaker(tmp_path, nothing):
    """Its name says speaker, but another column has the speakers."""
    root = store_with(tmp_path, speaker=pa.array([nothing] * N, pa.string()), actor=speakers_of(6))
    with pytest.raises(ConfigError, match=r"Set split.speaker=actor to keep each in one part"):
        split_of(root)
    with pytest.raises(ConfigError, match=r"no utterance .* has a value in split.speaker=speaker"):
        split_of(root, "split.speaker=speaker")


@pytest.mark.parametrize("settings", [[], ["split.folds=groups"], ["split.folds=3"]])
def test_utterances_of_unknown_speakers_are_left_out_and_counted(tmp_path, settings):
    """They may be of a speaker of any part; none is tested, and no speaker is called None."""
    speakers = [name if row % 4 else "" for row, name in enumerate(speakers_of(6))]
    split = split_of(store_with(tmp_path, who=speakers), "split.speaker=who", *settings)
    assert "30 utterances without a value in 'who' left out" in split.warnings
    used = {row for fold in split.folds for part in in_parts(fold) for row in part}
    assert used == {row for row in range(N) if row % 4}
    assert "7 values" not in split.description


@pytest.mark.parametrize("nothing", [None, " "])
def test_unknown_speakers_of_the_corpus_split_are_warned_of(tmp_path, nothing):
    """The corpus's own split is used as it is. They are not counted as a speaker."""
    parts = [("train", "dev", "test")[row * 3 // N] for row in range(N)]
    root = store_with(tmp_path, split=parts, speaker=[*speakers_of(6)[:-1], nothing])
    split = split_of(root)
    assert sum(map(len, in_parts(split.folds[0]))) == N
    warning = "1 utterance without a value in 'speaker' may be of a speaker of another part"
    assert warning in split.warnings
    assert any(text.startswith("only 2 test speakers (column speaker)") for text in split.warnings)
    assert count_speakers(open_store(root), "speaker", split.folds)["test"] == 2


def test_folds_test_every_utterance_once(tmp_path):
    """Leave-one-group-out has a fold per group, with the group as its test set."""
    speakers = speakers_of(5)
    root = store_with(tmp_path, session=speakers)
    five = split_of(root, FREE, "split.folds=5")
    assert sorted(row for fold in five.folds for row in fold.test.tolist()) == list(range(N))
    assert [len(fold.test) for fold in five.folds] == [24] * 5
    groups = split_of(root, "split.folds=groups", "split.speaker=session")
    tested = [{speakers[row] for row in fold.test.tolist()} for fold in groups.folds]
    assert tested == [{f"speaker-{i}"} for i in range(5)]


def test_shared_speakers_of_the_corpus_are_warned_of(tmp_path):
    """The corpus's own split is used, and a warning names the shared speakers."""
    where = ["test" if row % 6 == 0 else "train" for row in range(N)]
    root = store_with(tmp_path, split=where, speaker=speakers_of(4))
    (warning,) = split_of(root).warnings
    assert warning.startswith("LEAKAGE: 4 of 4 values of 'speaker' (speaker-0, speaker-1")
    assert warning.endswith("do not hold for new speakers")
    assert split_of(root, FREE).warnings == ()
    assert split_of(root, "task.speaker_independent=false").warnings == ()


def test_a_column_that_may_not_hold_speakers_is_doubted(tmp_path):
    """The warning names the settings, unless the column was set."""
    where = ["test" if row % 6 == 0 else "train" for row in range(N)]
    root = store_with(tmp_path, split=where, session=speakers_of(4))
    (warning,) = split_of(root).warnings
    assert warning.endswith("If 'session' is not the speaker: split.speaker=COLUMN or none")
    (warning,) = split_of(root, "split.speaker=session").warnings
    assert warning.endswith("do not hold for new speakers")


def test_dev_is_speaker_independent_where_the_corpus_is(tmp_path):
    """A random dev set would select heads for known speakers."""
    speakers = speakers_of(6)
    where = ["test" if row >= 100 else "train" for row in range(N)]
    split = split_of(store_with(tmp_path, split=where, speaker=speakers))
    sides = [{speakers[row] for row in part} for part in in_parts(split.folds[0])]
    assert not sides[0] & sides[1]
    assert not any("LEAKAGE" in line for line in split.warnings)


def test_speakers_that_are_classes_are_in_every_part(tmp_path):
    """In speaker identification, parts must share the speakers."""
    root = store_with(tmp_path, speaker=speakers_of(4))
    split = split_of(root, task="sid")
    assert split.warnings == ()
    with pytest.raises(ConfigError, match="is what task sid learns"):
        split_of(root, "split.speaker=speaker", task="sid")


def test_one_shared_recording_is_named(tmp_path):
    """In the singular."""
    where = ["test" if row % 6 == 0 else "dev" if row % 6 == 1 else "train" for row in range(N)]
    (warning,) = split_of(store_with(tmp_path, split=where, recording_id=["mix"] * N)).warnings
    assert warning.startswith("LEAKAGE: 1 value of 'recording_id' (mix) in more than one part")


def test_shared_recordings_are_warned_of(tmp_path):
    """Warnings name shared recordings, and identical audio under different ids."""
    where = ["test" if row % 6 == 0 else "dev" if row % 6 == 1 else "train" for row in range(N)]
    recordings = [f"tape-{row // 3}" for row in range(N)]
    original = planted([row % 4 for row in range(N)])
    twins = {8: 6}  # row 8 holds the audio of row 6
    root = tmp_path / "store"
    write_planted(
        root,
        n=N,
        columns={"split": where, "recording_id": recordings},
        features=lambda row, *place: original(twins.get(row, row), *place),
    )
    (warning,) = split_of(root).warnings
    assert "20 values of 'recording_id' (tape-0, tape-10" in warning
    plan = read_plan(root)
    marks = pa.array([7 if row in (6, 8, 9) else row for row in range(N)], pa.uint32())
    at = plan.table.schema.get_field_index("fingerprint")
    write_plan(root, replace(plan, table=plan.table.set_column(at, "fingerprint", marks)))
    warning = split_of(root).warnings[1]
    assert "1 audio clip in more than one part" in warning
    assert "(e.g. utt-0006)" in warning


def test_different_audio_with_equal_ends_is_not_warned_of(tmp_path):
    """A fingerprint covers the ends of a file, which may be the same silence."""
    where = ["test" if row % 6 == 0 else "dev" if row % 6 == 1 else "train" for row in range(N)]
    root = store_with(tmp_path, split=where)
    plan = read_plan(root)
    alike = pa.array([7] * N, pa.uint32())
    at = plan.table.schema.get_field_index("fingerprint")
    write_plan(root, replace(plan, table=plan.table.set_column(at, "fingerprint", alike)))
    assert split_of(root).warnings == ()


def test_equal_audio_in_two_stores_is_warned_of(tmp_path):
    """One store trains and the other one tests, and both have the audio of one clip."""
    original, other = (planted([row % 4 for row in range(N)], seed=seed) for seed in (0, 1))
    parts = {"a": ["dev" if row % 6 == 1 else "train" for row in range(N)], "b": ["test"] * N}
    for name, where in parts.items():
        write_planted(
            tmp_path / name,
            n=N,
            columns={"split": where},
            features=lambda row, *place, name=name: (
                original if name == "a" or row == 6 else other
            )(row, *place),
        )
    store = open_store([tmp_path / "a", tmp_path / "b"], prefix=True)
    config = configured("task=ks")
    split = make_split(store, config.task, config.split, read_labels(store, config.task))
    (warning,) = split.warnings
    assert "1 audio clip in more than one part" in warning
    assert "(e.g. a/utt-0006)" in warning


def test_unlabelled_utterances_are_left_out_and_counted(tmp_path):
    """Neither null nor an empty cell is a class."""
    words = [[None, ""][row % 20 // 10] if row % 10 == 0 else f"w{row % 2}" for row in range(N)]
    root = store_with(tmp_path, word=words)
    split = split_of(root, FREE)
    assert "12 utterances without a label left out" in split.warnings
    assert not any(row % 10 == 0 for part in in_parts(split.folds[0]) for row in part)
    with pytest.raises(ConfigError, match="no utterance has a label in word"):
        split_of(store_with(tmp_path / "none", word=[None] * N))


def test_too_few_groups_or_utterances_are_refused(tmp_path):
    """The message says what to change."""
    root = store_with(tmp_path, who=["a", "b"] * (N // 2))
    with pytest.raises(ConfigError, match=r"who has 2 values \(a, b\), too few for 3 parts"):
        split_of(root, "split.speaker=who")
    with pytest.raises(ConfigError, match="no utterance is left for dev"):
        split_of(store_with(tmp_path / "tiny", n=3), FREE)
    with pytest.raises(ConfigError, match="the store has no column 'speker'; did you mean"):
        split_of(store_with(tmp_path / "near", speaker=speakers_of(3)), "split.speaker=speker")


def test_messages_about_folds_speak_of_the_corpus(tmp_path):
    """Not of the part of it that one fold trains on."""
    root = store_with(tmp_path, who=["a", "b"] * (N // 2))
    for folds in ("2", "groups"):
        with pytest.raises(ConfigError) as caught:
            split_of(root, "split.speaker=who", f"split.folds={folds}")
        assert "who has 2 values (a, b), of which 1 is outside the test set" in str(caught.value)
    where = ["train" if row % 2 else "test" for row in range(N)]
    own = store_with(tmp_path / "own", who=["a", "b"] * (N // 2), split=where)
    with pytest.raises(ConfigError, match=r"who has 2 values \(a, b\), of which 1 is in train"):
        split_of(own, "split.speaker=who")
    with pytest.raises(ConfigError, match="no utterance is left for dev in 2 of 2 folds"):
        split_of(store_with(tmp_path / "tiny", n=4), FREE, "split.folds=2")


def test_the_defaults_are_documented():
    """conf/sweep.yaml has the defaults of the dataclass."""
    assert load_sweep_config(["task=ks"]).split == SplitConfig()
