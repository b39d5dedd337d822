"""Arithmetic of layer statistics with labels: canonical correlations, mutual information."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.cluster import KMeans
from sklearn.cross_decomposition import CCA
from sklearn.metrics import mutual_info_score

from pipeline.feed.frames.sample import FrameSample
from pipeline.probing.layers.cca import RIDGES, Fit, Moments, Spectrum, held_out
from pipeline.probing.layers.information import divide, pnmi

N_CLASSES = 5


def items(n=900, dim=12, seed=0, strength=1.0):
    """Return features whose first dimensions depend on the class, and the classes."""
    random = np.random.default_rng(seed)
    classes = random.integers(N_CLASSES, size=n)
    x = random.standard_normal((n, dim)) @ random.standard_normal((dim, dim))
    x[:, :4] += strength * np.random.default_rng(99).standard_normal((N_CLASSES, 4))[classes]
    return x + 3, classes


def moments(x, classes):
    return Moments.of(torch.from_numpy(x), torch.from_numpy(classes), N_CLASSES)


def fitted(x, classes):
    sums = moments(x, classes)
    return Fit(sums, Spectrum.of(sums.covariances()[0]))


def scored(x, classes, parts=3):
    """Return the correlations of thirds: to fit, to choose and to score."""
    own = x - x.mean(0)
    sums = [moments(own[i::parts], classes[i::parts]) for i in range(parts)]
    return held_out(sums[0], Spectrum.of(sums[0].covariances()[0]), *sums[1:])


def test_canonical_correlations_equal_the_textbook_and_scikit_learn():
    """Those of the fit are the singular values of QᵀxQy, and what scikit-learn iterates to."""
    x, classes = items(300)
    one_hot = np.eye(N_CLASSES)[classes]
    found = fitted(x, classes).regularised(0.0).correlations.numpy()
    bases = [np.linalg.qr(z - z.mean(0))[0] for z in (x, one_hot[:, :-1])]
    assert found == pytest.approx(np.linalg.svd(bases[0].T @ bases[1])[1], rel=1e-9)
    model = CCA(2, max_iter=5000, tol=1e-12).fit(x, one_hot[:, :-1])
    pairs = zip(*(z.T for z in model.transform(x, one_hot[:, :-1])), strict=True)
    theirs = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
    assert found[:2] == pytest.approx(theirs, abs=1e-5)


def test_the_correlation_of_two_classes_has_its_closed_form():
    """Two classes at ±m of unit variance: m / sqrt(1 + m²), on other items as well."""
    random = np.random.default_rng(0)
    classes = np.arange(30_000) // 3 % 2
    x = random.standard_normal((30_000, 3))
    x[:, 1] += 2 * classes - 1
    found = scored(x, classes)
    assert found.pwcca == pytest.approx(np.sqrt(0.5), abs=0.01)
    assert found.cca == found.pwcca  # there is one direction


def by_definition(x, classes, ridge):
    """Return PWCCA and CCA on the last third, from the items themselves.

    Weights are those of Morcos et al. 2018, equation 2, for the smaller side.
    """
    one_hot = np.eye(N_CLASSES)[classes]
    (x, y), (other_x, other_y) = ([z[i::3] - z[i::3].mean(0) for z in (x, one_hot)] for i in (0, 2))
    xx = x.T @ x / len(x)
    xx += ridge * np.trace(xx) / len(xx) * np.eye(len(xx))
    values, vectors = np.linalg.eigh(xx)
    white_x = vectors / np.sqrt(values) @ vectors.T
    values, vectors = np.linalg.eigh(y.T @ y / len(y))
    white_y = vectors[:, 1:] / np.sqrt(values[1:])
    left, _, right = np.linalg.svd(white_x @ (x.T @ y / len(x)) @ white_y, full_matrices=False)
    a, b = white_x @ left, white_y @ right.T
    correlations = [
        np.corrcoef(other_x @ a[:, i], other_y @ b[:, i])[0, 1] for i in range(a.shape[1])
    ]
    variates, sides = (x @ a, x) if x.shape[1] < white_y.shape[1] else (y @ b, y)
    alpha = np.abs(variates.T @ sides).sum(1)
    return np.average(correlations, weights=alpha), np.mean(correlations)


@pytest.mark.parametrize(("dim", "ridge"), [(12, 1e-2), (12, 1.0), (3, 0.0)])
def test_held_out_scores_equal_their_definition(dim, ridge):
    """Directions and weights are of the first third, correlations of another, and signed."""
    x, classes = items(600, dim=max(dim, 4))
    x = x[:, :dim]
    own = x - x.mean(0)
    sums = [moments(own[i::3], classes[i::3]) for i in range(3)]
    found = held_out(sums[0], Spectrum.of(sums[0].covariances()[0]), *sums[1:], ridges=[ridge])
    pwcca, cca = by_definition(x, classes, ridge)
    assert found.pwcca == pytest.approx(pwcca, rel=1e-9)
    assert found.cca == pytest.approx(cca, rel=1e-9)


def test_what_the_correlations_are_invariant_to():
    """Rotation, scale and shift, with regularisation; any invertible map without."""
    x, classes = items()
    random = np.random.default_rng(1)
    mixed = random.standard_normal((12, 12))
    rotation = np.linalg.qr(mixed)[0]
    first, turned = scored(x, classes), scored(50 * x @ rotation - 7, classes)
    for kind in ("pwcca", "cca", "svcca"):
        assert getattr(turned, kind) == pytest.approx(getattr(first, kind), rel=1e-7)
    plain = fitted(x, classes).regularised(0.0)
    other = fitted(x @ mixed, classes).regularised(0.0)
    assert torch.allclose(plain.correlations, other.correlations, rtol=1e-6)
    assert torch.allclose(plain.weights, other.weights, rtol=1e-6)


def test_extremes_of_the_correlations():
    """1 if the features give the class; about 0 for random classes; nan for constant features."""
    x, classes = items()
    given = np.concatenate([np.eye(N_CLASSES)[classes], x[:, 5:]], axis=1)
    assert scored(given, classes).pwcca == pytest.approx(1, abs=1e-6)
    random = np.random.default_rng(3).integers(N_CLASSES, size=len(classes))
    found = scored(x, random)
    in_sample = fitted(x, random).regularised(0.0).correlations.mean()
    assert abs(found.pwcca) < 0.08 < in_sample  # correlations of the fit are biased upwards
    assert np.isnan(scored(np.zeros((900, 4)), classes).pwcca)
    assert np.isnan(scored(x, np.zeros(900, int)).pwcca)


def test_svcca_leaves_out_directions_of_little_variance():
    """A class that is in less than 1 % of the variance is lost to SVCCA only."""
    random = np.random.default_rng(0)
    classes = np.arange(900) // 3 % 2
    x = np.concatenate([30 * random.standard_normal((900, 3)), classes[:, None]], axis=1)
    found = scored(x, classes)
    assert found.pwcca == pytest.approx(1, abs=0.01)
    assert abs(found.svcca) < 0.15


def test_the_regularisation_is_chosen():
    """With few items for many features, more than the least one is better."""
    random = np.random.default_rng(0)
    classes = random.integers(N_CLASSES, size=240)
    x = random.standard_normal((240, 70)) + np.eye(70)[classes] * 3
    own = x - x.mean(0)
    sums = [moments(own[i::3], classes[i::3]) for i in range(3)]
    spectrum = Spectrum.of(sums[0].covariances()[0])
    chosen = held_out(sums[0], spectrum, *sums[1:]).pwcca
    fixed = [held_out(sums[0], spectrum, *sums[1:], ridges=[ridge]).pwcca for ridge in RIDGES]
    assert chosen in fixed
    assert chosen > fixed[0] + 0.05


def frame_sample(features, n_utterances):
    """Return a sample of one layer, with equally many frames of each utterance."""
    n = len(features)
    utterance = np.repeat(np.arange(n_utterances), n // n_utterances)
    frame = np.arange(n) % (n // n_utterances)
    return FrameSample(features[None], utterance, frame, frame > 0)


def test_pnmi_equals_that_of_scikit_learn():
    """For clusters far apart, both find them, and share and entropy are those of its functions."""
    random = np.random.default_rng(0)
    cluster = random.integers(4, size=1200)
    labels = (cluster + (random.random(1200) < 0.3)) % 3
    features = 50 * random.standard_normal((4, 6))[cluster] + random.standard_normal((1200, 6))
    sample = frame_sample(features.astype(np.float32), 60)
    [division] = divide(sample, labels, 1, seed=0)
    found, chance = pnmi(sample.features[0], division, 3, k=4)
    codes = KMeans(4, n_init=10, random_state=0).fit_predict(features)[division.test]
    own = labels[division.test]
    expected = mutual_info_score(own, codes) / entropy(np.bincount(own))
    assert found == pytest.approx(expected, rel=1e-9)
    assert 0 < chance < 0.05 < found
    exact, _ = pnmi(sample.features[0], replace(division, labels=cluster[division.test]), 4, k=4)
    assert exact == pytest.approx(1)
    assert np.isnan(pnmi(np.ones((1200, 6), np.float32), division, 3, k=4)[0])


def test_divisions_are_of_utterances_and_shuffle_spans():
    """Halves share no utterance; shuffling moves the labels of spans, not of single frames."""
    labels = np.repeat(np.arange(40) % 5 - 1, 10)  # four spans in each of ten utterances
    sample = frame_sample(np.zeros((400, 2), np.float32), 10)
    divisions = divide(sample, labels, 3, seed=1)
    for division in divisions:
        owners = [set(sample.utterance[part]) for part in (division.train, division.test)]
        assert not owners[0] & owners[1]
        assert len(owners[0]) == 5
        assert (labels[division.test] >= 0).all()
        assert np.array_equal(labels[division.test], division.labels)
        spans = division.shuffled.reshape(-1, 10)
        assert (spans == spans[:, :1]).all()
        assert np.array_equal(np.sort(division.shuffled), np.sort(division.labels))
    assert any(not np.array_equal(one.labels, one.shuffled) for one in divisions)
    assert len({tuple(sorted(one.train)) for one in divisions}) == 3
    again = divide(sample, labels, 3, seed=1)
    assert all(np.array_equal(a.train, b.train) for a, b in zip(divisions, again, strict=True))
