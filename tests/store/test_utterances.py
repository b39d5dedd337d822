"""The utterances of a reader: keys, selections, snapshots, layers."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.errors import DamagedError, IdentityError, StoreError, UtteranceNotFoundError
from pipeline.store.backend.local_reader import LocalReader
from pipeline.store.format.layout import Layout
from pipeline.store.maintain.verify import verify_store
from tests.helpers.backends import in_bucket, in_memory
from tests.helpers.feature_stores import commit_units, default_columns, make_store, noise, spelled

LENGTHS = [40, 100, 3, 250, 17, 700, 60, 90, 256, 1]
PIECES = {5: 4}
LOST = (6,)
ROWS = [row for row in range(len(LENGTHS)) if row not in LOST]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("views") / "store"
    make_store(path, LENGTHS, features=noise, pieces=PIECES, lost=LOST)
    return path


@pytest.fixture(scope="module", params=["folder", "memory", "s3"])
def opened(request, root):
    """The store in its folder, and copies of it in memory and in a bucket."""
    if request.param == "s3":
        return pipeline.open_store(in_bucket(root, request.getfixturevalue("s3_of_module")))
    return pipeline.open_store(in_memory(root) if request.param == "memory" else root)


def expected(position, layers=(1, 2, 3), dim=8):
    row = ROWS[position]
    return np.stack([noise(row, layer, LENGTHS[row], dim) for layer in layers])


def test_pieces_are_joined_in_every_layer(opened):
    """An utterance in four pieces, in four units, is read as one."""
    assert np.array_equal(opened.read("utt-0005").numpy(), expected(5))
    assert opened.n_frames("utt-0005") == 700


@given(
    position=st.integers(0, len(ROWS) - 1),
    start=st.none() | st.integers(-800, 800),
    stop=st.none() | st.integers(-800, 800),
    layers=st.none() | st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4),
)
def test_slices_of_frames_are_those_of_numpy(opened, position, start, stop, layers):
    """Any slice of any layers, in any order, of any utterance."""
    read = opened.read(position, layers, start, stop)
    assert np.array_equal(read.numpy(), expected(position, layers or (1, 2, 3))[:, start:stop])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"layers=\[\] names no layers; expected some of \[1, 2, 3\], .* or leave it out"),
        (2, r"layers is 2; expected some of \[1, 2, 3\], the layers of the store, in a list"),
        ("2", r"layers is '2'; expected some of \[1, 2, 3\], the layers of the store, in a list"),
        ([2, 9], r"no layers \[9\] in the store; it has \[1, 2, 3\]"),
    ],
)
def test_layers_that_cannot_be_read_are_named(opened, layers, message):
    """With those that can; no layers at all, and a number without a list, too."""
    for read in (lambda: opened.read(0, layers), lambda: opened.pooled(layers)):
        with pytest.raises(StoreError, match=message):
            read()


def test_indices_count_from_either_end_and_slice(opened):
    """`store[-1]`, `store[2:5]` and `read_many(slice)` follow `ids`."""
    assert torch.equal(opened[-1], opened.read(opened.ids[-1]))
    for found, position in zip(opened[-4:-1], range(len(ROWS) - 4, len(ROWS) - 1), strict=True):
        assert np.array_equal(found.numpy(), expected(position))
    assert [len(t[0]) for t in opened.read_many(slice(None, None, -3), [2])] == [1, 700, 3]
    for wrong in (len(ROWS), -len(ROWS) - 1):
        with pytest.raises(IndexError, match=str(wrong)):
            opened.read(wrong)


def test_repeated_keys_do_not_share_memory(opened):
    """Equal keys in `read_many` give equal, separate tensors."""
    first, _, second = opened.read_many([3, 1, "utt-0003"])
    assert torch.equal(first, second)
    first.zero_()
    assert np.array_equal(second.numpy(), expected(3))


def test_adjacent_utterances_are_one_read(root, monkeypatch):
    """A batch that is contiguous on disk takes one read per layer, in any order."""
    opened, reads = pipeline.open_store(root), []
    real = LocalReader.read_cached

    def counted(reader, parts, offset, streams):
        reads.append((len(parts), offset))
        return real(reader, parts, offset, streams)

    opened.read_many([0, 1, 2])
    monkeypatch.setattr(LocalReader, "read_cached", counted)
    opened.read_many([2, 0, 1])
    assert reads == [(3, 0)] * 3


def test_a_missing_id_is_a_key_error_with_similar_ids(opened):
    """The message has similar ids, or the quarantine reason of the id."""
    with pytest.raises(KeyError, match="utt-0003"):
        opened.read("utt-003")
    with pytest.raises(UtteranceNotFoundError, match="no sound in it"):
        opened.n_frames("utt-0006")
    assert "utt-0001" in opened
    assert "utt-0006" not in opened


def test_ids_with_equal_hashes_are_distinguished(tmp_path, monkeypatch):
    """A lookup compares the ids, too, so collisions do not matter."""
    make_store(tmp_path / "s", [5, 6, 7])
    monkeypatch.setattr(pipeline.store.read.catalogue.zlib, "crc32", lambda _: 7)
    store = pipeline.open_store(tmp_path / "s")
    assert [store.n_frames(f"utt-000{i}") for i in range(3)] == [5, 6, 7]
    with pytest.raises(KeyError):
        store.read("utt-0009")


def test_select_by_values_lists_classes_and_expressions(opened):
    """A selection is a store in the same order; selections can be nested."""
    some = opened.select(speaker=["speaker-0", "speaker-1"], digit="one")
    assert some.ids == ["utt-0001", "utt-0009"]
    assert np.array_equal(some.read(1).numpy(), expected(8))
    assert torch.equal(some.pooled([2]), opened.pooled([2])[[1, 8]])
    assert opened.select(digit=1).ids == ["utt-0001", "utt-0005", "utt-0009"]
    long = opened.select(pc.field("n_frames") > 90).select(pc.field("score") < 4)
    assert long.ids == ["utt-0001", "utt-0003", "utt-0005"]
    assert np.array_equal(long["utt-0005"].numpy(), expected(5))
    with pytest.raises(KeyError):
        some.read("utt-0000")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"speaker": "speaker-7"}, "has speaker='speaker-7'; did you mean 'speaker-2' or"),
        ({"speaker": "nobody"}, "speaker='nobody'; there are speaker-0, speaker-1, speaker-2"),
        ({"speaker": ["speaker-0", "x", "y"]}, "no committed utterance has speaker='x', 'y';"),
        ({"digit": 9}, "digit=9; there are 0, 1, 2, 3"),
        ({"n_frames": 10_000}, "n_frames=10000; there are "),
        ({"score": None}, "score=None; there are 0.0, 0.5"),
    ],
)
def test_a_value_that_no_utterance_has_gives_a_warning(opened, values, words):
    """Once, with similar values or those that there are; the rest is selected."""
    with pytest.warns(UserWarning, match=re.escape(words)) as caught:
        some = opened.select(**values)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert Path(caught[0].filename) == Path(__file__)
    n_expected = (opened.metadata["speaker"].to_pylist()).count("speaker-0")
    assert len(some) == (n_expected if isinstance(values.get("speaker"), list) else 0)


def test_a_selection_may_be_empty(opened, recwarn):
    """Without a warning, if each value is that of some utterance; also after pickling."""
    first = opened.select(digit=0)
    for store in (first, pickle.loads(pickle.dumps(first)), pickle.loads(pickle.dumps(opened))):
        assert len(store.select(digit=[1, "two"], id="utt-0000")) == 0
    assert len(opened.select(speaker=[])) == 0
    assert not recwarn.list


def test_values_are_given_one_by_one_or_as_any_collection(opened):
    """Lists, sets, NumPy and Arrow arrays and tensors; also scalars of NumPy."""
    expected = opened.select(digit=[1, 2]).ids
    for values in ({1, 2}, (1, 2), range(1, 3), np.array([1, 2]), torch.tensor([1, 2])):
        assert opened.select(digit=values).ids == expected
    assert opened.select(digit=pa.array([1, 2])).ids == expected
    assert opened.select(digit=[np.int64(1), "two"]).ids == expected
    assert opened.select(digit=np.int32(1)).ids == opened.select(digit="one").ids
    speakers = opened.metadata["speaker"].unique()
    assert opened.select(speaker=speakers).ids == opened.ids
    assert opened.select(score=1).ids == opened.select(score=1.0).ids != []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"speaker": 3}, "cannot select by speaker=3: the column holds text; write '3'"),
        ({"speaker": [["a"]]}, "cannot select by speaker=['a']: the column holds text"),
        ({"speaker": b"a"}, "the column holds text"),
        ({"digit": 1.5}, "cannot select by digit=1.5: the column holds whole numbers"),
        ({"digit": True}, "the column holds whole numbers"),
        ({"digit": float("nan")}, "the column holds whole numbers"),
        ({"digit": 10**30}, "the column holds whole numbers"),
        ({"digit": {"a": 1}}, "the column holds whole numbers"),
        ({"score": "high"}, "cannot select by score='high': the column holds numbers"),
        ({"n_frames": "many"}, "cannot select by n_frames='many': the column holds whole numbers"),
    ],
)
def test_a_value_of_another_type_is_refused(opened, values, words):
    """In one line that says what the column holds."""
    with pytest.raises(StoreError, match=re.escape(words)) as caught:
        opened.select(**values)
    assert "\n" not in str(caught.value)


def test_lists_are_no_values_to_select_by(tmp_path):
    """A column of lists is refused in one line, whatever the value."""
    columns = pa.table({"tags": [["a"], ["b", "c"]]})
    make_store(tmp_path / "s", [5, 6], columns=columns)
    for value in ("a", ["a"], [["a"]]):
        with pytest.raises(StoreError, match=r"tags, which holds list<.*; give a pyarrow"):
            pipeline.open_store(tmp_path / "s").select(tags=value)


@pytest.mark.parametrize("condition", [True, ["utt-0000"], lambda row: True])
def test_a_condition_is_text_or_an_expression(opened, condition):
    """Anything else is refused in one line."""
    with pytest.raises(StoreError, match=r"as text, a pyarrow expression, or .*split='train'"):
        opened.select(condition)


def test_select_refuses_unknown_columns_and_classes(opened):
    """The message lists the existing columns or classes."""
    with pytest.raises(StoreError, match=r"speeker.*speaker"):
        opened.select(speeker="x")
    with pytest.raises(StoreError, match="speaker"):
        opened.select(pc.field("speeker") == "x")
    with pytest.raises(StoreError, match="zero, one"):
        opened.select(digit="eleven")


def test_refresh_sees_more_and_a_pickle_does_not(tmp_path):
    """During a run a reader has the units that were committed when it was opened or refreshed."""
    root = tmp_path / "s"
    lengths = [200, 200, 200, 200]
    plan = make_store(root, lengths, units=[0, 2])
    store = pipeline.open_store(root)
    with pytest.warns(UserWarning, match="digit=1; there are 0, 2"):
        selected = store.select(digit=[1, 2])
    layout = Layout((1, 2, 3), 8, plan.frames_per_unit, plan.utterances_per_slot)
    before = pickle.dumps(store)
    commit_units(root, plan, layout, default_columns(4), units=[1])
    assert store.ids == ["utt-0000", "utt-0002"]
    with pytest.raises(KeyError):
        store.read("utt-0001")
    assert pickle.loads(before).ids == store.ids
    assert np.array_equal(pickle.loads(before)[1][0].numpy(), spelled(2, 1, 200, 8))
    store.refresh()
    assert store.ids == ["utt-0000", "utt-0001", "utt-0002"]
    assert selected.ids == ["utt-0002"]
    selected.refresh()
    assert selected.ids == ["utt-0001", "utt-0002"]


@pytest.mark.parametrize(
    ("own", "others", "sizes", "differs"),
    [
        (
            [20, 30, 25, 10],
            [20, 30],
            (256, 256),
            "utterances_per_slot=2, but .* utterances_per_slot=4",
        ),
        ([200, 200], [300, 400], (256, 512), "frames_per_unit=512, but .* frames_per_unit=256"),
        ([200, 200], [100, 100], (512, 256), "frames_per_unit=256, but .* frames_per_unit=512"),
    ],
)
def test_arrays_of_another_store_are_refused(tmp_path, own, others, sizes, differs):
    """Copied over those of a store, they are no reason for wrong features or an IndexError."""
    for name, lengths, frames in zip(("store", "other"), (own, others), sizes, strict=True):
        make_store(tmp_path / name, lengths, layers=(1, 2), frames_per_unit=frames)
    group = "store/features.zarr"
    shutil.copytree(tmp_path / "other/features.zarr", tmp_path / group, dirs_exist_ok=True)
    with pytest.raises(DamagedError, match=r"index of store .* is not that of its features.zarr"):
        pipeline.open_store(tmp_path / "store")
    with pytest.raises(IdentityError, match=differs):
        verify_store(tmp_path / "store")


def test_an_utterance_with_a_missing_piece_is_not_visible(tmp_path):
    """Only complete utterances are visible."""
    make_store(tmp_path / "s", [700, 100], pieces={0: 4}, units=[0, 1, 3, 4])
    assert pipeline.open_store(tmp_path / "s").ids == ["utt-0001"]


def test_weighted_sum_is_the_naive_float32_sum_to_the_last_bit(opened):
    """Blocks, pieces and the order on disk do not change the sum."""
    weights = torch.tensor([0.3, -1.7, 0.123])
    for position in (3, 5, 8):
        layers = torch.from_numpy(expected(position)).float()
        naive = weights[0] * layers[0] + weights[1] * layers[1] + weights[2] * layers[2]
        assert torch.equal(opened.weighted_sum(position, weights), naive)
    with pytest.raises(StoreError, match="2 weights"):
        opened.weighted_sum(0, [1.0, 2.0])


def test_pooled_is_the_mean_over_frames(opened):
    """Of every utterance and layer, in pieces or not; layers in the given order."""
    pooled = opened.pooled([3, 1])
    for position in range(len(ROWS)):
        mean = expected(position, (3, 1)).mean(1, dtype=np.float64)
        assert np.allclose(pooled[position].numpy(), mean, rtol=1e-6, atol=1e-7)


def test_the_record_is_what_was_committed(opened):
    """`record` has the columns that a reader does not keep: checksums, samples, flags."""
    record = opened.record("utt-0003")
    assert record["n_samples"] == 400 + 320 * 249
    assert len(record["crc32c"]) == 3
    assert record["speaker"] == "speaker-0"


def test_the_final_norm_is_applied_to_the_last_layer_alone(tmp_path):
    """`final_norm=True` returns the last layer of a pre-norm model as s3prl does."""
    weight, bias = np.linspace(0.5, 2, 8), np.linspace(-1, 1, 8)
    norm = {"layer": 3, "weight": weight.tolist(), "bias": bias.tolist(), "eps": 1e-5}
    make_store(tmp_path / "s", [30, 20], features=noise, attributes={"final_norm": norm})
    store = pipeline.open_store(tmp_path / "s")
    raw, normed = store.read(1), store.read(1, final_norm=True)
    frames = raw[2].double().numpy()
    spread = np.sqrt(frames.var(1, keepdims=True) + 1e-5)
    wanted = (frames - frames.mean(1, keepdims=True)) / spread * weight + bias
    assert np.allclose(normed[2].numpy(), wanted, atol=3e-3)
    assert torch.equal(normed[:2], raw[:2])
    assert torch.equal(store.read(1, [3, 1], final_norm=True), normed[[2, 0]])


def test_a_missing_final_norm_is_reported(opened):
    """A post-norm model has none."""
    with pytest.raises(StoreError, match="no final norm"):
        opened.read(0, final_norm=True)
