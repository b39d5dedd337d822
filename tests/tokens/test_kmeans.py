"""k-means: its result against other computations, and what it depends on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans

from pipeline.errors import ConfigError
from pipeline.events import Observer
from pipeline.threads import in_order, single_threaded
from pipeline.tokens import training
from pipeline.tokens.kmeans import KMeansSettings, train
from pipeline.tokens.nearest import NonFiniteFrameError, Quantizer


class Points:
    """Frames in memory, which count how often they are read."""

    def __init__(self, values):
        self.values, self.n_read = torch.from_numpy(np.asarray(values)), 0

    def __len__(self):
        return len(self.values)

    def read(self, start, stop):
        self.n_read += stop - start
        return self.values[start:stop]


def gaussians(n, dim=16, centres=40, spread=1.0, seed=0):
    random = np.random.default_rng(seed)
    middle = random.normal(0, spread, (centres, dim))
    return (middle[random.integers(centres, size=n)] + random.normal(size=(n, dim))).astype("f4")


def inertia(values, centroids):
    squares = ((values[:, None].astype("f8") - centroids[None]) ** 2).sum(2)
    return squares.min(1).mean()


def test_nearest_is_what_the_definition_says():
    """Codes and distances are those of all pairs computed in float64, also far from zero."""
    values = gaussians(700) + 300
    centroids = gaussians(30, seed=1) + 300
    codes, total = Quantizer(torch.from_numpy(centroids)).assign(torch.from_numpy(values))
    exact = ((values[:, None].astype("f8") - centroids[None]) ** 2).sum(2)
    assert (codes == exact.argmin(1)).all()
    assert total == pytest.approx(exact.min(1).sum(), rel=1e-4)


def test_iterations_are_those_of_lloyd():
    """From the same centroids as scikit-learn's Lloyd, the same centroids after convergence."""
    values = gaussians(3000, centres=6, spread=8)
    start = values[:6].copy()
    ours = train(Points(values), KMeansSettings(6, tolerance=0, max_iterations=100), init=start)
    theirs = KMeans(6, init=start, n_init=1, tol=0, max_iter=100).fit(values)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, rtol=1e-4, atol=1e-4)
    assert ours.inertia * len(values) == pytest.approx(theirs.inertia_, rel=1e-4)
    assert ours.is_converged


def test_as_good_as_minibatch_kmeans():
    """The inertia is at most 2 % above that of scikit-learn's MiniBatchKMeans; it is below it."""
    values = gaussians(40_000, centres=100)
    ours = train(Points(values), KMeansSettings(64))
    theirs = MiniBatchKMeans(64, n_init=3, random_state=0).fit(values)
    assert inertia(values[::7], ours.centroids) < 1.0 * inertia(
        values[::7], theirs.cluster_centers_
    )


def test_the_threads_change_nothing():
    """One thread, two and five give the same bits; another seed gives others."""
    values = gaussians(40_000)
    one, two, five = (train(Points(values), KMeansSettings(20), n_threads=n) for n in (1, 2, 5))
    assert one.centroids.tobytes() == two.centroids.tobytes() == five.centroids.tobytes()
    assert one.inertia == two.inertia == five.inertia
    other = train(Points(values), KMeansSettings(20, seed=1))
    assert one.centroids.tobytes() != other.centroids.tobytes()


def test_small_parts_come_first():
    """Most iterations read a part of the frames; those over all of them are counted."""
    points = Points(gaussians(200_000, dim=4))
    seen = []
    settings = KMeansSettings(20)
    result = train(
        points, settings, progress=lambda i, n, inertia, s, is_last: seen.append((n, is_last))
    )
    sizes = [n for n, _ in seen]
    assert sizes == sorted(sizes)
    assert sizes[0] < 200_000 / 4 + 1
    assert sizes.count(200_000) == result.iterations == sum(is_last for _, is_last in seen)


def test_an_empty_cluster_gets_a_far_frame():
    """A centroid that no frame is nearest to moves to the frame that is farthest from its own."""
    values = gaussians(500, dim=3, centres=1)
    values[123] = 50
    start = np.concatenate([values[:2], [[1e4, 1e4, 1e4]]]).astype("f4")
    first = train(Points(values), KMeansSettings(3, max_iterations=1), init=start)
    assert first.centroids[2].tolist() == [50, 50, 50]
    again = train(Points(values), KMeansSettings(3, max_iterations=1), init=start, n_threads=3)
    assert again.centroids.tobytes() == first.centroids.tobytes()


def test_too_few_frames_are_refused():
    """Fewer frames, or different frames, than clusters: the error has both numbers."""
    with pytest.raises(ConfigError, match=r"k is 9, but there are only 8 frames"):
        train(Points(gaussians(8)), KMeansSettings(9))
    repeated = np.repeat(gaussians(8), 50, axis=0)
    with pytest.raises(ConfigError, match=r"400 frames with only 8 different values"):
        train(Points(repeated), KMeansSettings(9))
    assert len(train(Points(repeated), KMeansSettings(8)).centroids) == 8


def test_rare_frames_are_looked_for():
    """If the first frames have too few different values, more are looked at."""
    values = np.zeros((30_000, 4), "f4")
    values[29_000:] = gaussians(1000, dim=4)
    result = train(Points(values), KMeansSettings(10))
    assert len(np.unique(result.centroids, axis=0)) == 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("at", [5, 20_000])
def test_a_frame_that_is_not_finite_is_named(bad, at):
    """In the frames of k-means++ as in later ones; values whose squares overflow count, too."""
    values = gaussians(20_001, dim=4)
    values[at, 2] = bad
    with pytest.raises(NonFiniteFrameError) as caught:
        train(Points(values), KMeansSettings(5))
    assert caught.value.frame == at


def test_the_pool_keeps_the_order_and_the_bound():
    """Results come in the order of the calls, and few calls run ahead."""
    started = []
    with single_threaded(2) as pool:
        calls = [lambda i=i: started.append(i) or i for i in range(50)]
        found = in_order(pool, calls, 3)
        assert next(found) == 0
        assert len(started) <= 5
        assert list(found) == list(range(1, 50))


def test_the_time_left_counts_what_follows(monkeypatch):
    """The training on all frames after that on a sample, and the assignment of all frames."""
    monkeypatch.setattr(training, "_NOTE_FROM_S", 0.0)
    lines = []

    class Lines(Observer):
        def note(self, text):
            lines.append(text)

    progress = training._Progress(Lines(), KMeansSettings(5, 0, max_iterations=10), 7000, 90_000)
    progress(4, 1000, 3.0, 5.0, True)
    assert lines[0].endswith(
        "at most 30 s left, less if it converges, then the training on all 7,000 frames"
    )
    progress.n_later = 0
    progress(4, 9000, 3.0, 5.0, True)
    assert lines[1].endswith("less if it converges, then about 50 s to assign all frames")
    progress(4, 9000, 3.0, 5.0, False)
    assert lines[2].endswith(", 5.0 s")
