"""Quality of tokens: against scikit-learn, and by spans on the command line."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

import pipeline
from pipeline.errors import StoreError
from pipeline.tokens.quality import joint_counts, label_quality, usage
from tests.helpers.commands import strata
from tests.helpers.token_stores import LAYER, LENGTHS, K, clustered_store, tokenized, true_code

codes = arrays(np.int64, 60, elements=st.integers(0, 7))


@given(codes, codes)
def test_quality_is_that_of_the_definitions(labels, tokens):
    """Purities and PNMI equal those from scikit-learn's contingency and mutual information."""
    found = label_quality(
        joint_counts([(labels[:20], tokens[:20]), (labels[20:], tokens[20:])], 8, 8)
    )
    table = contingency_matrix(labels, tokens)
    assert found.phone_purity == pytest.approx(table.max(0).sum() / 60)
    assert found.cluster_purity == pytest.approx(table.max(1).sum() / 60)
    entropy = mutual_info_score(labels, labels)
    if entropy < 1e-12:
        assert found.pnmi is None
    else:
        assert found.pnmi == pytest.approx(mutual_info_score(labels, tokens) / entropy, abs=1e-9)
    assert found.labels == len(set(labels.tolist()))


def test_frames_without_a_label_do_not_count():
    """Label -1 leaves a frame out; a perfect match has 1 for all measures."""
    labels, tokens = np.array([-1, 0, 0, 1, -1]), np.array([3, 2, 2, 0, 0])
    found = label_quality(joint_counts([(labels, tokens)], 2, 4))
    assert (found.frames, found.labels) == (3, 2)
    assert (found.phone_purity, found.cluster_purity, found.pnmi) == (1, 1, pytest.approx(1))


def test_usage():
    """Perplexity of n equally used codes is n; unused ones are not counted."""
    found = usage(np.array([5, 0, 5, 5, 5]))
    assert (found.used, found.entropy_bits) == (4, pytest.approx(2))
    assert found.perplexity == pytest.approx(4)
    assert usage(np.array([7, 0])).perplexity == 1
    assert math.copysign(1, usage(np.array([7, 0])).entropy_bits) == 1


@pytest.fixture
def spans(tmp_path):
    """A store, and a table with the centre of every run of three frames, but of one utterance."""
    clustered_store(tmp_path / "store")
    rows = ["id,start,end,label"]
    for row, n_frames in enumerate(LENGTHS[:-1]):
        for first in range(0, n_frames, 3):
            last = min(first + 3, n_frames)
            code = true_code(row, first)
            rows.append(f"utt-{row:04d},{first * 0.02:.2f},{last * 0.02:.2f},phone-{code}")
    (tmp_path / "phones.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_quality_from_spans(spans):
    """`spans=FILE` prints what the measures of the known clusters must be."""
    args = ["tokenize", str(spans / "store"), f"layer={LAYER}", f"k={K}"]
    done = strata(*args, f"spans={spans}/phones.csv", "--json")
    assert done.returncode == 0, done.stderr
    quality = json.loads(done.stdout)["quality"]
    assert (quality["frames"], quality["labels"]) == (sum(LENGTHS[:-1]), K)
    assert quality["phone_purity"] == quality["cluster_purity"] == 1
    assert quality["pnmi"] == pytest.approx(1)
    coarse = strata(*args[:3], "k=2", f"spans={spans}/phones.csv")
    assert "phone purity 0." in coarse.stdout
    assert "cluster purity 1.000, PNMI 0." in coarse.stdout


def test_wrong_spans_are_refused_before_the_training(spans):
    """A file that is missing, and settings of none: nothing is trained."""
    args = ["tokenize", str(spans / "store"), f"layer={LAYER}", f"k={K}"]
    done = strata(*args, f"spans={spans}/none.csv")
    assert done.returncode == 1
    assert "none.csv" in done.stderr
    done = strata(*args, "spans.tier=phones")
    assert done.returncode == 2
    assert "spans.tier is about the file of spans=FILE" in done.stderr
    assert not (spans / "store/codebooks").exists()


def test_labels_that_no_frame_has(spans):
    """There is no quality without a labelled frame."""
    tokenized(spans / "store")
    store = pipeline.open_store(spans / "store")
    labels = pipeline.frame_labels(store, pipeline.read_spans(spans / "phones.csv"))
    assert pipeline.token_quality(store, labels).pnmi == pytest.approx(1)
    labels.positions = labels.positions[:0]
    with pytest.raises(StoreError, match="no frame of .* has a label"):  # noqa: RUF043
        pipeline.token_quality(store, labels)
