"""Frames of spans: the rule, what is left out, recordings, and how ids differ."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, SourceError
from pipeline.spans.frame_labels import frame_labels
from pipeline.spans.id_forms import find_id_form
from pipeline.spans.placing import place_spans
from pipeline.spans.table import Spans
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.read.opening import open_store
from pipeline.store.read.timing import first_frames, frame_times, frames_between
from tests.helpers.feature_stores import make_store

GEOMETRY = FrameGeometry(16_000, 320, 400)
LENGTHS = [40, 1, 60, 25]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("spans") / "features"
    make_store(root, LENGTHS, frames_per_unit=64, lost=[3])
    return open_store(root)


def spans_of(*rows):
    return Spans.of(*zip(*rows, strict=True))


@given(
    n_frames=st.integers(1, 200),
    cuts=st.lists(st.floats(0, 5, width=32), max_size=12),
)
def test_contiguous_spans_have_each_frame_exactly_once(n_frames, cuts):
    """Whatever the borders, also those at a frame's centre, no frame is lost or has two spans."""
    borders = np.array([0.0, *sorted([*cuts, 0.0125, 0.0325]), 10.0])
    first = np.minimum(first_frames(GEOMETRY, borders[:-1]), n_frames)
    last = np.minimum(first_frames(GEOMETRY, borders[1:]), n_frames)
    frames = [f for low, high in zip(first, last, strict=True) for f in range(low, high)]
    assert frames == list(range(n_frames))


def test_a_time_at_a_centre_is_that_of_the_frame():
    """Times in files have few digits: a float beside the centre counts as at it."""
    frames = np.arange(2000)
    times = np.array([float(f"{0.0125 + 0.02 * frame:.4f}") for frame in frames.tolist()])
    assert (first_frames(GEOMETRY, times) == frames).all()


@given(start=st.floats(0, 3), length=st.floats(0, 1))
def test_frames_of_a_span_are_those_whose_centres_are_in_it(start, length):
    """The arithmetic agrees with a comparison of every centre, but for a millionth of a hop."""
    centre = frame_times(GEOMETRY, 250).centre_s
    first, last = frames_between(GEOMETRY, start, start + length)
    near = np.abs(centre[:, None] - [start, start + length]).min(1) < 1e-7
    inside = (centre >= start) & (centre < start + length)
    expected = np.zeros(250, bool)
    expected[first:last] = True
    assert ((inside == expected) | near).all()


def test_read_takes_a_span(store):
    """A row of Spans or a pair of seconds reads the frames whose centres are in it."""
    spans = spans_of(("utt-0000", 0.1, 0.2, "a"), ("utt-0002", 0.5, 0.5, "b"))
    got = store.read("utt-0000", [2], span=spans[0])
    assert torch.equal(got, store.read("utt-0000", [2], 5, 10))
    assert torch.equal(got, store.read(0, [2], span=(0.1, 0.2)))
    assert store.read("utt-0002", span=spans[1]).shape == (3, 0, 8)
    for span, words in (
        ((0.2, 0.1), "span is (0.2, 0.1); expected a row of Spans or a pair"),
        ((0.1,), "span is (0.1,); expected"),
        ("ab", "span is 'ab'; expected"),
        ((-0.1, 0.1), "span is (-0.1, 0.1)"),
        ((float("nan"), 0.1), "span is (nan, 0.1)"),
        (spans[1], "span is of utterance 'utt-0002', not of 'utt-0000'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            store.read("utt-0000", span=span)
    with pytest.raises(ConfigError, match="give span, or start and stop"):
        store.read(0, start=1, span=(0, 1))


def test_what_has_no_frames_is_counted(store):
    """Unknown, quarantined and short spans are left out, and late ones are cut; all are noted."""
    spans = spans_of(
        ("utt-0000", 0.0, 0.1, "a"),
        ("utt-0000", 0.101, 0.105, "b"),  # between two centres
        ("utt-0000", 0.7, 0.82, "c"),  # ends within a hop of the end: silently the last frames
        ("utt-0002", 1.0, 9.0, "d"),
        ("utt-0002", 5.0, 6.0, "e"),
        ("utt-0003", 0.0, 1.0, "f"),
        ("other", 0.0, 1.0, "g"),
    )
    placed = place_spans(store, spans)
    got = zip(placed.row, placed.position, placed.first, placed.last, strict=True)
    assert [tuple(map(int, row)) for row in got] == [(0, 0, 0, 5), (2, 0, 35, 40), (3, 2, 50, 60)]
    assert placed.annotated.tolist() == [0, 2]
    late, empty = placed.notes[2:]
    assert placed.notes[:2] == (
        "1 span of 7 in utterances that are not in the store: other (1 utterance)",
        "1 span of 7 in utterances that are quarantined: they have no features (1 utterance)",
    )
    assert late.startswith("2 spans of 5 end after their utterances, by more than a frame, and are")
    assert "are the times in seconds (unit=ms, unit=samples)" in late
    assert empty.startswith(
        "2 spans of 5 without frames, since the centre of no frame is inside (first 'b' of"
    )
    chosen = place_spans(store.select("id = 'utt-0002'"), spans)
    assert chosen.position.tolist() == [0]
    assert "3 spans of 7 in utterances that are not selected (1 utterance)" in chosen.notes
    with pytest.raises(SourceError, match=r"no span has a frame of .*: 1 span of 1 end after"):
        place_spans(store, spans.take([4]))


@pytest.mark.parametrize(
    ("ids", "form", "n"),
    [
        (["utt-0000.wav", "utt-0002.wav", "x"], "{stem}", 2),
        (["data/utt-0000.wav", "data/utt-0002.flac"], "{name}", 2),
    ],
)
def test_ids_that_differ_name_the_form_that_makes_them_equal(store, ids, form, n):
    """The error of unknown ids says how the nearest differ, and how many a form would find."""
    spans = spans_of(*((name, 0.0, 0.1, "a") for name in ids))
    words = f"id_form={form!r} finds {n} of {len(ids)} utterances"
    with pytest.raises(SourceError, match=re.escape(words)):
        place_spans(store, spans)


def test_ids_with_a_prefix_and_a_suffix_are_explained(tmp_path):
    """The form has braces of the ids doubled, and works as it is given."""
    make_store(tmp_path, [9, 9], ids=["a{1}/clip-1.wav", "a{1}/clip-2.wav"])
    spans = spans_of(("clip-1", 0.0, 0.1, "a"), ("clip-2", 0.0, 0.1, "b"))
    store = open_store(tmp_path)
    with pytest.raises(SourceError, match="id_form=") as caught:
        place_spans(store, spans)
    form = re.search("id_form='(.*?)'", str(caught.value))[1]
    assert form == "a{{1}}/{id}.wav"
    made = spans.with_ids(lambda name: form.format(id=name))
    assert len(place_spans(store, made)) == 2


def segmented(root, starts, recordings, lengths, name="start"):
    columns = pa.table({"recording": recordings, name: pa.array(starts, pa.float64())})
    make_store(root, lengths, columns=columns)
    return open_store(Path(root))


def test_times_of_recordings_are_divided_among_segments(tmp_path):
    """A span is moved to the segment that it is in, cut at its ends, or in two of them."""
    store = segmented(tmp_path, [1.0, 2.0, 0.0], ["rec", "rec", "other"], [50, 50, 50])
    spans = spans_of(
        ("rec", 1.5, 1.7, "inside"),
        ("rec", 0.5, 1.1, "before"),
        ("rec", 1.9, 2.1, "both"),
        ("rec", 0.1, 0.2, "outside"),
        ("other", 0.0, 0.1, "first"),
    )
    placed = place_spans(store, spans, times="recording")
    got = zip(placed.row, placed.position, placed.first, placed.last, strict=True)
    assert [tuple(map(int, row)) for row in got] == [
        (0, 0, 25, 35),
        (1, 0, 0, 5),
        (2, 0, 45, 50),
        (2, 1, 0, 5),
        (4, 2, 0, 5),
    ]
    assert placed.annotated.tolist() == [0, 1, 2]
    assert placed.notes[0] == "1 span of 5 in no segment of the store"
    assert placed.notes[1].endswith(" cut at the ends of segments")
    with pytest.raises(SourceError, match="has no recording of the spans"):
        place_spans(store, spans_of(("utt-0000", 0, 1, "x")), times="recording")


def test_overlapping_segments_both_have_a_span(tmp_path):
    """Also when a short segment is within a longer one that begins before it."""
    store = segmented(tmp_path, [0.0, 0.2, 0.9], ["r"] * 3, [100, 10, 50], name="offset")
    placed = place_spans(store, spans_of(("r", 0.95, 1.0, "x")), times="recording")
    assert placed.position.tolist() == [0, 2]
    placed = place_spans(store, spans_of(("r", 0.25, 0.3, "x")), times="recording")
    assert placed.position.tolist() == [0, 1]


def test_times_of_recordings_need_their_columns(store, tmp_path):
    """A store without recordings, or with unclear starts, is refused with the way out."""
    spans = spans_of(("rec", 0.0, 1.0, "x"))
    with pytest.raises(ConfigError, match="has no column 'recording', so its utterances are not"):
        place_spans(store, spans, times="recording")
    other = segmented(tmp_path, [0.0], ["rec"], [50], name="begins")
    with pytest.raises(ConfigError, match="give segment_start=COLUMN"):
        place_spans(other, spans, times="recording")
    with pytest.raises(ConfigError, match="no column 'begin' in"):
        place_spans(other, spans, times="recording", segment_start="begin")
    assert len(place_spans(other, spans, times="recording", segment_start="begins")) == 1
    texts = pa.table({"recording": ["rec"], "start": ["0.5"]})
    make_store(tmp_path / "texts", [50], columns=texts)
    with pytest.raises(ConfigError, match="segment_start=start holds string; expected seconds"):
        place_spans(open_store(tmp_path / "texts"), spans, times="recording")
    identity = dict(other.attributes["identity"])
    identity["source"] = identity["source"] | {"segments": {"unit": "samples"}}
    numbers = pa.table({"recording": ["rec"], "start": [8000]})
    make_store(tmp_path / "samples", [50], columns=numbers, attributes={"identity": identity})
    with pytest.raises(ConfigError, match="are counted in samples of their files; give times from"):
        place_spans(open_store(tmp_path / "samples"), spans, times="recording")


def test_each_frame_has_the_label_of_its_span(store):
    """-1 where there is none; `at` and the array of an utterance agree."""
    spans = spans_of(
        ("utt-0002", 0.2, 0.3, "b"),
        ("utt-0002", 0.3, 0.5, "a"),
        ("utt-0002", 0.45, 0.6, "a"),  # the same label: no contradiction
        ("utt-0000", 0.7, 2.0, "b"),
    )
    with pytest.warns(UserWarning, match="end after their utterances"):
        labels = frame_labels(store, spans)
    assert labels.names == ("a", "b")
    expected = [np.full(n, -1) for n in LENGTHS[:3]]
    expected[2][10:15], expected[2][15:30], expected[0][35:] = 1, 0, 1
    for position, wanted in enumerate(expected):
        assert labels[position].tolist() == wanted.tolist()
        at = labels.at(np.full(len(wanted), position), np.arange(len(wanted)))
        assert at.tolist() == wanted.tolist()
    assert labels.counts.tolist() == [15, 10]
    assert labels.n_unlabelled == 101 - 25
    assert labels.positions.tolist() == [0, 2]


def test_unlabelled_frames_may_be_a_class(store):
    """Only in utterances that the file labels; a label that is no class counts as unlabelled."""
    spans = spans_of(("utt-0000", 0.0, 0.2, "a"), ("utt-0000", 0.4, 0.6, "b"))
    labels = frame_labels(store, spans, classes=["a"], unlabelled="rest")
    assert labels.names == ("a", "rest")
    assert labels["utt-0000"].tolist() == [0] * 10 + [1] * 30
    assert labels.at([0, 0, 1, 2], [0, 25, 0, 0]).tolist() == [0, 1, -1, -1]
    assert labels["utt-0002"].tolist() == [-1] * 60
    assert (labels.counts.tolist(), labels.n_unlabelled) == ([10, 30], 61)
    assert labels.notes == ("10 frames with a label that is no class, counted as unlabelled",)
    merged = frame_labels(store, spans, unlabelled="b")
    assert merged["utt-0000"].tolist() == [0] * 10 + [1] * 30
    with pytest.raises(ConfigError, match="no span has a label of classes"):
        frame_labels(store, spans, classes=["c"])
    with pytest.raises(ConfigError, match="has a name twice"):
        frame_labels(store, spans, classes=["a", "a"])
    for wrong in ("", 3):
        with pytest.raises(ConfigError, match="expected the name of a class, or None"):
            frame_labels(store, spans, unlabelled=wrong)


def test_a_frame_with_two_labels_is_refused_with_both_lines(store):
    """The message names the spans that share a frame, also with others between them."""
    rows = [("utt-0000", 0.0, 0.5, "a"), ("utt-0000", 0.1, 0.2, "a"), ("utt-0000", 0.4, 0.6, "b")]
    with pytest.raises(SourceError, match=r"row 3: the span 'b' .* common with 'a' of .* row 1"):
        frame_labels(store, spans_of(*rows))
    beside = spans_of(("utt-0000", 0.0, 0.301, "a"), ("utt-0000", 0.3, 0.6, "b"))
    assert frame_labels(store, beside)["utt-0000"][:30].tolist() == [0] * 15 + [1] * 15


@given(st.data())
def test_labels_of_contiguous_spans_cover_all_frames(store, data):
    """Each frame of contiguous spans has the label of the span that its centre is in."""
    cuts = sorted(data.draw(st.sets(st.integers(1, 1200), max_size=8)))
    borders = [0, *cuts, 1300]
    rows = [
        ("utt-0002", low / 1000, high / 1000, f"{number:02}")
        for number, (low, high) in enumerate(pairwise(borders))
    ]
    placed = place_spans(store, spans_of(*rows))
    labels = frame_labels(store, placed)
    centres = np.round(store.times("utt-0002").centre_s * 1000, 3)
    wanted = [f"{np.searchsorted(borders, c, side='right') - 1:02}" for c in centres]
    assert [labels.names[i] for i in labels["utt-0002"]] == wanted


def test_of_equally_good_forms_the_shortest_is_offered():
    """It names the fewest folders."""
    found = find_id_form(
        ["a", "b"], ["archive/old/a.wav", "archive/old/b.wav", "z/a.wav", "z/b.wav"]
    )
    assert (found.form, found.near, found.n_found) == ("z/{id}.wav", "z/a.wav", 2)
