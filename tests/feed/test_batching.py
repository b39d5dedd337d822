"""Plan of the batches of an epoch, on each rank."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.feed.batching import BatchPolicy, EpochBatches

counts = st.lists(st.integers(1, 300), min_size=1, max_size=200).map(lambda x: np.array(x))


def epochs(lengths, max_frames=None, slots=None, **policy):
    lengths = np.asarray(lengths, np.int64)
    slots = np.arange(len(lengths)) // 10 if slots is None else slots
    policy = BatchPolicy(**({"max_frames_per_batch": 500} | policy))
    return EpochBatches(lengths, slots, policy, max_frames)


def flat(batches):
    return np.concatenate([np.zeros(0, int), *batches]).tolist()


@given(
    lengths=counts,
    shuffle=st.booleans(),
    window_units=st.none() | st.integers(1, 5),
    budget=st.integers(1, 2000),
    epoch=st.integers(0, 5),
)
def test_an_epoch_covers_every_utterance_once_within_the_budget(
    lengths, shuffle, window_units, budget, epoch
):
    """Exact cover, and no batch of several utterances exceeds the limit of padded frames."""
    planned = epochs(
        lengths, shuffle=shuffle, window_units=window_units, max_frames_per_batch=budget
    ).batches(epoch)
    assert sorted(flat(planned)) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= budget for b in planned)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
@given(lengths=counts, epoch=st.integers(0, 3))
def test_ranks_share_an_epoch_evenly(world_size, drop_last, lengths, epoch):
    """Ranks have equally many batches; no utterance is missing, or with drop_last repeated."""
    planned = epochs(lengths, world_size=world_size, drop_last=drop_last)
    n_batches = len(planned.batches(epoch))
    if drop_last and n_batches < world_size:
        with pytest.raises(ConfigError, match="drop_last"):
            planned.rank_batches(epoch, 0)
        return
    shares = [planned.rank_batches(epoch, rank) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    returned = Counter(tuple(batch.tolist()) for share in shares for batch in share)
    seen = Counter(flat([batch for share in shares for batch in share]))
    repeated = sum(returned.values()) - len(returned)
    if drop_last:
        assert repeated == 0
        assert max(seen.values()) == 1
        assert n_batches - len(returned) < world_size
    else:
        assert set(seen) == set(range(len(lengths)))
        assert repeated <= world_size - 1


def test_the_order_is_a_function_of_seed_and_epoch():
    """Equal seeds and epochs give equal orders; different ones give different orders."""
    lengths = np.random.default_rng(0).integers(50, 200, 300)
    orders = {
        (seed, epoch): flat(epochs(lengths, seed=seed).batches(epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert flat(epochs(lengths, seed=1).batches(1)) == orders[1, 1]
    assert len({tuple(order) for order in orders.values()}) == 4


def test_without_shuffling_the_order_is_that_of_the_dataset():
    """Batches are runs of consecutive utterances, equal in every epoch."""
    planned = epochs([100, 200, 300, 50, 50], shuffle=False)
    assert [b.tolist() for b in planned.batches(0)] == [[0, 1], [2], [3, 4]]
    assert flat(planned.batches(7)) == [0, 1, 2, 3, 4]


def test_bucketing_saves_padding():
    """With lengths as in read speech, padding is below 10 %; in random batches above 40 %."""
    lengths = np.random.default_rng(0).integers(50, 850, 5000)
    batches = epochs(lengths, max_frames_per_batch=20_000).batches(0)
    padded = sum(len(b) * int(lengths[b].max()) for b in batches)
    assert padded < 1.1 * lengths.sum()
    order = np.random.default_rng(1).permutation(5000).reshape(-1, 25)
    assert sum(25 * int(lengths[b].max()) for b in order) > 1.4 * lengths.sum()


def test_windowed_shuffling_uses_few_slots_at_a_time():
    """With shuffle windows of four slots, at most four slots are in use at a time.

    Two utterances of a batch are in the same unit with a probability of about 1/4, and two epochs
    have different windows.
    """
    lengths, slots = np.full(4000, 100), np.arange(4000) // 100
    planned = epochs(lengths, slots=slots, window_units=4, max_frames_per_batch=2000)
    windows = []
    for epoch in (0, 1):
        order = flat(planned.batches(epoch))
        windows.append([frozenset(slots[order[i : i + 400]]) for i in range(0, 4000, 400)])
        assert all(len(window) == 4 for window in windows[-1])
    assert len(set(windows[0]) & set(windows[1])) < 3
    same = [
        np.mean(np.equal.outer(slots[b], slots[b])[np.triu_indices(len(b), 1)])
        for b in planned.batches(0)
    ]
    assert 0.2 < np.mean(same) < 0.28
    everywhere = epochs(lengths, slots=slots, max_frames_per_batch=2000).batches(0)
    assert np.mean([len(set(slots[b])) for b in everywhere]) > 14


def test_crops_are_uniform_and_change_with_the_epoch():
    """Crops cover the whole utterance, and differ between epochs."""
    planned = epochs([1000] * 400 + [30], max_frames=100)
    crops = {}
    for epoch in (0, 1):
        for spec in planned.specs(epoch, 0):
            assert (spec.lengths <= 100).all()
            assert spec.padded_frames <= 500
            crops |= {
                (epoch, p): s for p, s in zip(spec.positions.tolist(), spec.starts, strict=True)
            }
    first = np.array([crops[0, p] for p in range(400)])
    assert first.min() < 50
    assert first.max() > 850
    assert crops[0, 400] == 0
    assert sum(crops[1, p] != first[p] for p in range(400)) > 350


def test_the_remaining_specs_are_those_of_the_whole_epoch():
    """From batch `first` on, batches and crops are those of the whole epoch."""
    planned = epochs([400] * 50, max_frames=100, world_size=2)
    whole = list(planned.specs(3, 1))
    rest = list(planned.specs(3, 1, first=2))
    assert len(rest) == len(whole) - 2
    for a, b in zip(rest, whole[2:], strict=True):
        assert np.array_equal(a.positions, b.positions)
        assert np.array_equal(a.starts, b.starts)


@pytest.mark.parametrize(
    "wrong", [{"max_frames_per_batch": 0}, {"world_size": 0}, {"window_units": 0}, {"seed": -1}]
)
def test_numbers_out_of_range_are_refused(wrong):
    """The message names the setting."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        epochs([1], **wrong)
