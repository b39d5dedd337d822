"""ABX: warping, cells and errors against plain loops."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.probing.abx.cells import ACROSS, WITHIN, Items, plan_blocks, sample_items
from pipeline.probing.abx.errors import MinimalPairs, abx_errors, index_cells, unit_frames
from pipeline.probing.abx.warping import angles, block_distances, warped
from pipeline.probing.significance import interval, resampled_scores


def plain_warped(distances):
    """Return the mean along the best path of a matrix, by a plain recursion and a walk back."""
    n, m = distances.shape
    cost = np.full((n, m), np.inf)
    for i, j in product(range(n), range(m)):
        before = [
            cost[i - di, j - dj] for di, dj in ((1, 0), (0, 1), (1, 1)) if i >= di and j >= dj
        ]
        cost[i, j] = distances[i, j] + (min(before) if before else 0.0)
    i, j, length = n - 1, m - 1, 1
    while i or j:
        if i and j:
            diagonal, left, up = cost[i - 1, j - 1], cost[i, j - 1], cost[i - 1, j]
            step = (1, 1) if diagonal <= min(left, up) else (0, 1) if left <= up else (1, 0)
        else:
            step = (1, 0) if i else (0, 1)
        i, j, length = i - step[0], j - step[1], length + 1
    return cost[-1, -1] / length


def random_items(seed, n=60, n_labels=3, n_contexts=2, n_speakers=3, dim=5):
    """Return items of one to six frames, and their frames."""
    random = np.random.default_rng(seed)
    label, context, speaker = (random.integers(0, k, n) for k in (n_labels, n_contexts, n_speakers))
    lengths = random.integers(1, 7, n)
    bounds = np.append(0, lengths.cumsum())
    frames = random.standard_normal((bounds[-1], dim)) + 2 * np.repeat(
        np.eye(dim)[label], lengths, 0
    )
    return Items(label, context, speaker), unit_frames(frames), bounds


def errors_of(items, blocks, frames, bounds, most_frames=10**9):
    """Return the cells and their errors, with frames in memory."""

    def read(which):
        assert np.array_equal(which, np.unique(which))
        parts = [frames[bounds[i] : bounds[i + 1]] for i in which.tolist()]
        return np.concatenate(parts), np.cumsum([0, *map(len, parts)])

    cells = index_cells(items, blocks)
    return cells, abx_errors(items, blocks, cells, np.diff(bounds), read, most_frames)


def plain_errors(items, frames, bounds, mode):
    """Return the errors in each context, by A and X's class, B's class, and both speakers."""

    def distance(i, j):
        left, right = (frames[bounds[k] : bounds[k + 1]].astype(float) for k in (i, j))
        return plain_warped(np.arccos(np.clip(left @ right.T, -1, 1)) / np.pi)

    n = len(items)
    distances = np.array([[distance(i, j) for j in range(n)] for i in range(n)])
    cells = defaultdict(list)
    for a, b, x in product(range(n), repeat=3):
        same_context = items.context[a] == items.context[b] == items.context[x]
        if not same_context or a == x or items.speaker[a] != items.speaker[b]:
            continue
        if items.label[a] != items.label[x] or items.label[a] == items.label[b]:
            continue
        if (items.speaker[a] == items.speaker[x]) != (mode == WITHIN):
            continue
        key = (items.label[a], items.label[b], items.speaker[a], items.speaker[x])
        gap = distances[a, x] - distances[b, x]
        cells[(*key, items.context[a])].append(0.5 if abs(gap) < 1e-7 else float(gap > 0))
    by_context = defaultdict(list)
    for key, errors in cells.items():
        by_context[key[:4]].append(np.mean(errors))
    return by_context


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_a_warped_distance_is_the_mean_along_the_best_path(shapes, seed, ties):
    """Several pairs at once, of different lengths, at any place, and with equal distances."""
    random = np.random.default_rng(seed)
    whole = random.random((9 * len(shapes), 12))
    whole = (np.round(whole * 4) / 4 if ties else whole).astype(np.float32)
    corners = [(9 * i, int(random.integers(0, 4))) for i in range(len(shapes))]
    base = np.array([row * 12 + column for row, column in corners])
    n_left, n_right = np.array(shapes).T
    found = warped(whole.ravel(), base, np.full(len(base), 12), n_left, n_right)
    expected = [
        plain_warped(whole[row : row + n, column : column + m].astype(float))
        for (row, column), (n, m) in zip(corners, shapes, strict=True)
    ]
    assert found == pytest.approx(expected, rel=1e-5)


def test_angles_are_shares_of_a_half_turn():
    """0 for one direction, a half for a right angle, 1 for opposite ones."""
    left = unit_frames(np.array([[2.0, 0.0], [0.0, 0.0]]))
    right = unit_frames(np.array([[5.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    assert angles(left, right)[0] == pytest.approx([0, 0.5, 1], abs=1e-4)
    assert angles(left, right)[1] == pytest.approx([0.5] * 3)


def test_blocks_are_warped_in_chunks(monkeypatch):
    """The size of a chunk does not change a distance."""
    _, frames, bounds = random_items(0)
    blocks = [(np.arange(5), np.arange(5, 12)), (np.arange(20, 23), np.arange(20, 23))] * 3
    whole = block_distances(frames, bounds, blocks)
    monkeypatch.setattr("pipeline.probing.abx.warping._CELLS_PER_CHUNK", 40)
    for one, other in zip(block_distances(frames, bounds, blocks), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole[1] == pytest.approx(whole[1].T, abs=1e-6)


@pytest.mark.parametrize("mode", [WITHIN, ACROSS])
@pytest.mark.parametrize("seed", [0, 1])
def test_errors_are_those_of_plain_loops_over_triples(mode, seed):
    """Every cell, and the mean over speakers and then over pairs of classes."""
    items, frames, bounds = random_items(seed, n=34)
    blocks = plan_blocks(items, mode, most_others=9, seed=0)
    cells, errors = errors_of(items, blocks, frames, bounds)
    expected = plain_errors(items, frames, bounds, mode)
    assert len(errors) == len(expected) > 4
    means = [np.mean(expected[key]) for key in sorted(expected)]
    assert errors == pytest.approx(means, abs=1e-9)
    in_parts = errors_of(items, blocks, frames, bounds, most_frames=30)[1]
    assert in_parts == pytest.approx(errors, abs=1e-12)
    assert MinimalPairs(cells, errors).score == pytest.approx(plain_score(expected))


def plain_score(expected, times=None):
    """Return the mean over contexts and speakers of X, over speakers, and over pairs.

    A speaker counts as often as `times` says.
    """
    by_speaker = defaultdict(list)
    for (label, other, one, x), values in expected.items():
        n = 1 if times is None or one == x else times[x]
        by_speaker[label, other, one] += values * n
    by_pair = defaultdict(list)
    for (label, other, one), values in by_speaker.items():
        if values:
            by_pair[label, other] += [np.mean(values)] * (1 if times is None else times[one])
    return np.mean([np.mean(values) for values in by_pair.values() if values])


@pytest.mark.parametrize("mode", [WITHIN, ACROSS])
def test_a_speaker_that_is_drawn_twice_counts_twice(mode):
    """Across speakers, a cell weighs as often as both are drawn together."""
    items, frames, bounds = random_items(2, n=40)
    cells, errors = errors_of(items, plan_blocks(items, mode, 9, 0), frames, bounds)
    run = MinimalPairs(cells, errors)
    expected = plain_errors(items, frames, bounds, mode)
    times = [2, 0, 1]
    found = run.scores(np.array([times], float))[0]
    assert found == pytest.approx(plain_score(expected, times))
    assert run.scores(np.zeros((1, 3)))[0] == 0.5
    low, high = interval(resampled_scores([[run]]))[0]
    assert low <= run.score <= high


def test_classes_that_are_apart_have_no_errors_and_noise_has_half():
    """An error of 0 for frames that show the class, of about 0.5 for frames that do not."""
    items, _, bounds = random_items(3, n=200)
    lengths = np.diff(bounds)
    clear = unit_frames(np.repeat(np.eye(5)[items.label], lengths, 0))
    noise = unit_frames(np.random.default_rng(0).standard_normal((bounds[-1], 5)))
    for mode in (WITHIN, ACROSS):
        blocks = plan_blocks(items, mode, 9, 0)
        assert MinimalPairs(*errors_of(items, blocks, clear, bounds)).score == 0.0
        score = MinimalPairs(*errors_of(items, blocks, noise, bounds)).score
        assert score == pytest.approx(0.5, abs=0.05)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_a_sample_has_so_many_tokens_of_each_kind(seed, most):
    """All of a small kind, `most` of a large one, equal for equal seeds."""
    items, _, _ = random_items(seed, n=50, n_contexts=1)
    drawn = sample_items(items, most, seed)
    kinds = list(zip(items.label, items.context, items.speaker, strict=True))
    kept = [kinds[i] for i in drawn]
    for kind in set(kinds):
        assert kept.count(kind) == min(most, kinds.count(kind))
    assert np.array_equal(drawn, sample_items(items, most, seed))
    assert np.array_equal(drawn, np.unique(drawn))


def test_speakers_of_x_are_drawn():
    """At most so many for a context and a speaker of A and B; another seed gives others."""
    items, _, _ = random_items(0, n=400, n_speakers=12, n_contexts=1)
    counts = defaultdict(set)
    for block in plan_blocks(items, ACROSS, 3, 0):
        assert block.speaker != block.other
        counts[block.speaker].add(block.other)
    assert {len(others) for others in counts.values()} == {3}
    other = {(b.speaker, b.other) for b in plan_blocks(items, ACROSS, 3, 1)}
    assert other != {(name, x) for name, others in counts.items() for x in others}
