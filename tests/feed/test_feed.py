"""Datasets, loaders and batches of stored features."""

from __future__ import annotations

import gc
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, random_split

import pipeline
from pipeline.errors import ConfigError, StoreError
from pipeline.feed.batch_reader import BufferPool, SharedBuffers
from pipeline.feed.batching import BatchPolicy
from pipeline.feed.loader import FeatureStream
from tests.helpers.feature_stores import default_columns, make_store, noise

LENGTHS = [int(n) for n in np.random.default_rng(3).integers(5, 250, 60)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    root = tmp_path_factory.mktemp("feed") / "store"
    columns = default_columns(len(LENGTHS)).append_column(
        "note", pa.array([None if i % 2 else i for i in range(len(LENGTHS))])
    )
    make_store(root, LENGTHS, features=noise, frames_per_unit=512, columns=columns, lost=(4,))
    return pipeline.open_store(root)


def loader_of(store, layers=(2,), columns=("digit", "speaker"), max_frames=None, **options):
    dataset = pipeline.FeatureDataset(store, layers, columns, max_frames)
    return pipeline.make_loader(dataset, **({"max_frames_per_batch": 700} | options))


def row_of(name):
    return int(name.rpartition("-")[2])


def check(batch, layers):
    """Check that a batch holds the values of the store, and that padding is zero."""
    assert batch.features.shape[:2] == (len(batch), len(layers))
    assert batch.features.shape[2] == int(batch.lengths.max())
    for i, name in enumerate(batch.ids):
        start, n = int(batch.starts[i]), int(batch.lengths[i])
        for axis, layer in enumerate(layers):
            wanted = noise(row_of(name), layer, LENGTHS[row_of(name)], 8)[start : start + n]
            assert np.array_equal(batch.features[i, axis, :n].numpy(), wanted)
        assert not batch.features[i, :, n:].any()
        assert not batch.mask[i, n:].any()
        assert batch.mask[i, :n].all()
        assert int(batch.columns["digit"][i]) == row_of(name) % 4
        assert batch.columns["speaker"][i] == f"speaker-{row_of(name) % 3}"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("layers", [(2,), (3, 1)])
def test_batches_hold_what_was_stored(opened, num_workers, layers):
    """Features, lengths, ids and columns are correct in two epochs of different order.

    The second epoch reuses the memory of the first.
    """
    loader = loader_of(opened, layers, num_workers=num_workers)
    orders = []
    for _ in range(2):
        names = []
        assert len(loader) > 5
        for batch in loader:
            check(batch, layers)
            names += batch.ids
        orders.append(names)
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(opened.ids)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_referenced_batch_keeps_its_values(opened, num_workers):
    """Memory is reused only when neither the batch nor a view of it is referenced."""
    kept = list(loader_of(opened, num_workers=num_workers))
    views = [batch.features[-1] for batch in loader_of(opened, num_workers=num_workers, seed=1)]
    gc.collect()
    for batch in kept:
        check(batch, (2,))
    second = loader_of(opened, num_workers=num_workers, seed=1)
    for view, batch in zip(views, second, strict=True):
        assert torch.equal(view, batch.features[-1])


def test_unreferenced_memory_is_reused():
    """Unreferenced memory is reused, in whole or in part; referenced memory is not."""
    pool = BufferPool(np.dtype(np.float16))
    first = pool.take((20, 1000, 1000))
    first.fill(7)
    view = torch.from_numpy(first)[3, :5]
    del first
    other = pool.take((19, 1000, 1000))
    assert not np.shares_memory(other, view.numpy())
    other.fill(0)
    assert (view == 7).all()
    del other
    del view
    gc.collect()
    assert any((taken == 7).all() for taken in [pool.take((2, 1000)), pool.take((2, 1000))])


def test_shared_buffers_are_freed(opened):
    """A buffer holds one batch at a time, and interrupted epochs lose no buffer."""
    ring = SharedBuffers(2, 100, np.dtype(np.float16))
    numbers = [ring.assign(100), ring.assign(1), ring.assign(1)]
    assert sorted(numbers) == [-1, 0, 1]
    assert ring.assign(101) == -1
    batch = ring.receive(numbers[0], (10, 10))
    ring.reclaim()
    assert ring.assign(1) == numbers[1]
    assert ring.assign(1) == -1
    del batch
    assert ring.assign(1) == numbers[0]
    loader = loader_of(opened, num_workers=1)
    for _ in range(6):
        next(iter(loader))
    batches = iter(loader)
    next(batches)
    assert loader._buffers.assign(1) >= 0


def test_batches_of_workers_are_not_copied(opened):
    """Batches of workers are in the shared buffers."""
    loader = loader_of(opened, num_workers=1)
    places = [batch.features.data_ptr() for batch in loader]
    assert len(places) > 5
    assert set(places) <= {buffer.data_ptr() for buffer in loader._buffers.buffers}


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_resumes_within_an_epoch(opened, num_workers):
    """A loader with the state of another returns exactly the remaining batches."""
    whole = loader_of(opened, num_workers=num_workers, max_frames=100)
    first, second = list(whole), list(whole)
    stopped = loader_of(opened, num_workers=num_workers, max_frames=100)
    list(stopped)
    for i, _batch in enumerate(stopped):
        if i == 3:
            break
    state = stopped.state_dict()
    assert state["batches_done"] == 4
    resumed = loader_of(opened, max_frames=100)
    resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
    rest = list(resumed)
    assert [b.ids for b in rest] == [b.ids for b in second[4:]]
    assert all(torch.equal(a.features, b.features) for a, b in zip(rest, second[4:], strict=True))
    assert [b.ids for b in rest] != [b.ids for b in first[4:]]
    stopped.load_state_dict(state)  # also for a loader with batches read ahead
    assert [b.ids for b in stopped] == [b.ids for b in rest]
    assert resumed.epoch == stopped.epoch == 2


def test_a_state_of_other_batches_is_refused(opened):
    """Resuming within an epoch needs equal batches; the message says what differs."""
    loader = loader_of(opened)
    next(iter(loader))
    with pytest.raises(ConfigError, match="max_frames_per_batch was 700, is 900"):
        loader_of(opened, max_frames_per_batch=900).load_state_dict(loader.state_dict())
    with pytest.raises(ConfigError, match="data was"):
        loader_of(opened.select(digit=1)).load_state_dict(loader.state_dict())
    list(loader)
    other = loader_of(opened, max_frames_per_batch=900)
    other.load_state_dict(loader.state_dict())  # between epochs, other batches are allowed
    assert other.epoch == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_epochs_advance_and_can_be_selected(opened, num_workers):
    """Each `iter` is the next epoch, also after a `break`; `set_epoch` selects one."""
    loader, other = loader_of(opened), loader_of(opened, num_workers=num_workers)
    orders = [[batch.ids for batch in loader] for _ in range(3)]
    other.set_epoch(2)
    assert [batch.ids for batch in other] == orders[2]
    other.set_epoch(1)
    assert next(iter(other)).ids == orders[1][0]
    assert [batch.ids for batch in other] == orders[2]
    other.set_epoch(2)
    assert [batch.ids for batch in other] == orders[2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_second_iteration_ends_the_first(opened, num_workers):
    """A second iteration has its whole epoch; to continue the first one is refused."""
    loader, alone = loader_of(opened, num_workers=num_workers), loader_of(opened)
    epochs = [[batch.ids for batch in alone] for _ in range(2)]
    first = iter(loader)
    assert next(first).ids == epochs[0][0]
    second = iter(loader)
    begun = [next(second).ids]
    with pytest.raises(ConfigError, match=r"another iteration over this loader .* loader for each"):
        next(first)
    del first  # ends nothing of the second one
    assert begun + [batch.ids for batch in second] == epochs[1]
    with pytest.raises(ConfigError, match="another iteration"):
        list(zip(loader, loader, strict=True))
    frames = pipeline.make_frame_loader(pipeline.FeatureDataset(opened, [2]), frames_per_batch=64)
    with pytest.raises(ConfigError, match="another iteration"):
        list(zip(frames, frames, strict=True))


def test_ranks_together_see_every_utterance(opened):
    """Two loaders, one per rank, have equally many batches and all utterances."""
    ranks = [list(loader_of(opened, rank=rank, world_size=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    assert {name for batches in ranks for b in batches for name in b.ids} == set(opened.ids)
    with pytest.raises(ConfigError, match="rank is 2"):
        loader_of(opened, rank=2, world_size=2)


def test_cropped_utterances_hold_the_named_frames(opened):
    """A cropped utterance begins at `starts`, and is not padded beyond the crop."""
    for batch in loader_of(opened, max_frames=40, num_workers=1):
        check(batch, (2,))
        assert batch.features.shape[2] <= 40


def test_an_utterance_longer_than_the_limit_is_a_batch_by_itself(opened):
    """An utterance that fits no shared buffer is returned in a batch of one."""
    for num_workers in (0, 1):
        batches = list(loader_of(opened, max_frames_per_batch=100, num_workers=num_workers))
        assert any(len(b) == 1 and b.features.shape[2] > 100 for b in batches)
        assert sum(len(b) for b in batches) == len(opened)


@pytest.mark.slow
def test_spawned_workers_read_the_same(opened):
    """Spawned workers return the batches of this process, in the same order."""
    here = [b.ids for b in loader_of(opened)]
    batches = list(loader_of(opened, num_workers=1, multiprocessing_context="spawn"))
    assert [b.ids for b in batches] == here
    check(batches[0], (2,))


def test_a_damaged_shard_raises_in_the_training_loop(tmp_path):
    """The error of a worker names the file."""
    make_store(tmp_path / "s", [100, 100, 100])
    loader = loader_of(pipeline.open_store(tmp_path / "s"), num_workers=1)
    (tmp_path / "s/features.zarr/frames/c/1/0/0").unlink()
    with pytest.raises(pipeline.errors.DamagedError, match="frames/c/1/0/0"):
        list(loader)


@pytest.mark.slow
def test_a_loader_does_not_change_the_random_state(opened):
    """Random numbers of a trainer do not depend on its loader."""
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    list(loader_of(opened, num_workers=1))
    assert torch.equal(torch.rand(3), wanted)


def test_the_dataset_is_a_map_style_torch_dataset(opened):
    """Any DataLoader accepts it, with `collate`; classes are numbers with names."""
    dataset = pipeline.FeatureDataset(opened, [2], ["digit", "speaker"])
    assert dataset.class_names == {"digit": ["zero", "one", "two", "three"]}
    example = dataset[-1]
    assert example.id == opened.ids[-1]
    assert example.columns["digit"] == row_of(example.id) % 4
    loader = DataLoader(dataset, batch_size=8, shuffle=True, collate_fn=pipeline.collate)
    batches = list(loader)
    for batch in batches:
        check(batch, (2,))
    assert sum(len(b) for b in batches) == len(opened)
    moved = batches[0].to("cpu")
    assert torch.equal(moved.features, batches[0].features)


@pytest.mark.parametrize("index", [slice(0, 2), "3", 2.7, [1, 2]])
def test_an_index_that_is_no_position_is_refused(opened, index):
    """A text of digits and a fraction were taken for a position; the message has the way out."""
    with pytest.raises(TypeError, match=r"position of one utterance.*Subset.*store.read"):
        pipeline.FeatureDataset(opened, [2])[index]


def test_random_crops_of_single_examples(opened):
    """Without a loader, crops use torch's random state."""
    dataset = pipeline.FeatureDataset(opened, [1], max_frames=30)
    position = int(np.argmax(opened.frame_counts))
    starts = {dataset[position].start for _ in range(30)}
    assert len(starts) > 10
    example = dataset[position]
    wanted = opened.read(position, [1], example.start, example.start + 30)
    assert torch.equal(example.features, wanted)


def test_the_final_norm_is_applied_to_batches_and_examples(tmp_path):
    """Batches equal `read(final_norm=True)`: last layer only, in this process and in workers.

    Padding stays zero for any bias of the norm.
    """
    norm = {"layer": 3, "weight": [2.0] * 8, "bias": [0.5] * 8, "eps": 1e-5}
    make_store(tmp_path / "s", LENGTHS[:12], features=noise, attributes={"final_norm": norm})
    store = pipeline.open_store(tmp_path / "s")
    dataset = pipeline.FeatureDataset(store, [3, 1], max_frames=100, final_norm=True)
    for num_workers in (0, 1):
        for batch in pipeline.make_loader(
            dataset, max_frames_per_batch=500, num_workers=num_workers
        ):
            for i, name in enumerate(batch.ids):
                start, n = int(batch.starts[i]), int(batch.lengths[i])
                wanted = store.read(name, [3, 1], start, start + n, final_norm=True)
                assert torch.equal(batch.features[i, :, :n], wanted)
                assert not torch.equal(wanted[0], store.read(name, [3], start, start + n)[0])
                assert not batch.features[i, :, n:].any()
    example = pipeline.FeatureDataset(store, [3, 1], final_norm=True)[2]
    assert torch.equal(example.features, store.read(2, [3, 1], final_norm=True))


def test_a_missing_final_norm_is_refused_at_once(opened):
    """When the dataset is made, not in the first batch."""
    with pytest.raises(StoreError, match="no final norm"):
        pipeline.FeatureDataset(opened, final_norm=True)


def test_columns_with_nulls_are_lists(opened):
    """A column of numbers with nulls is a list, not a tensor."""
    batch = next(iter(loader_of(opened, columns=("note", "score"))))
    assert isinstance(batch.columns["note"], list)
    assert batch.columns["score"].dtype == torch.float64


def test_the_stream_has_the_batches_of_the_loader(opened):
    """One process or two workers yield the batches of the loader, in its order."""
    dataset = pipeline.FeatureDataset(opened, [2], ["digit", "speaker"])
    stream = pipeline.FeatureStream(dataset, pipeline.BatchPolicy(max_frames_per_batch=700))
    loader = loader_of(opened)
    for epoch in range(2):
        stream.set_epoch(epoch)
        names = [batch.ids for batch in loader]
        assert len(stream) == len(names)
        assert [batch.ids for batch in stream] == names
        shared = DataLoader(stream, batch_size=None, num_workers=2)
        assert [batch.ids for batch in shared] == names


def test_as_a_hugging_face_dataset(opened):
    """Features are read on access, classes are ClassLabels, and rows can be selected."""
    rows = pipeline.FeatureDataset(opened, [2], ["digit", "speaker"]).to_hf_dataset()
    assert len(rows) == len(opened)
    assert rows.features["digit"].names == ["zero", "one", "two", "three"]
    assert torch.equal(rows[5]["features"], opened.read(5, [2]))
    some = rows.select([7, 3])
    assert [t.shape[1] for t in some[:]["features"]] == opened.frame_counts[[7, 3]].tolist()
    assert some["id"][:] == [opened.ids[7], opened.ids[3]]


def test_a_hugging_face_dataset_is_saved_without_its_features(opened, tmp_path):
    """One line says so, and where they are; ids and columns are read back."""
    rows = pipeline.FeatureDataset(opened, [2], ["digit"]).to_hf_dataset()
    way = r"without the features.*pipeline\.open_store"
    with pytest.warns(UserWarning, match=way) as caught:
        rows.save_to_disk(tmp_path / "rows")
    [warning] = caught
    assert "\n" not in str(warning.message)
    assert warning.filename == __file__
    again = datasets.load_from_disk(tmp_path / "rows")
    assert again.column_names == ["id", "digit"]
    assert again["id"] == opened.ids
    assert again.features["digit"].names[1] == "one"
    assert rows[3]["features"].shape == (1, LENGTHS[3], 8)  # unchanged


def test_what_is_made_of_it_says_how_to_save(opened, tmp_path):
    """Datasets that Hugging Face makes of it read features, and cannot be saved with them."""
    rows = pipeline.FeatureDataset(opened, [2]).to_hf_dataset().select(range(3))
    assert rows[1]["features"].shape == (1, LENGTHS[1], 8)
    with pytest.raises(TypeError, match=r"features cannot be saved: .*with_format\(None\) first"):
        rows.save_to_disk(tmp_path / "rows")
    rows.with_format(None).save_to_disk(tmp_path / "plain")
    assert len(datasets.load_from_disk(tmp_path / "plain")) == 3


def test_a_subset_is_a_dataset(opened):
    """Also a subset of a subset: its utterances, with the settings of the dataset."""
    whole = pipeline.FeatureDataset(opened, (3, 1), ["digit", "speaker"], max_frames=90)
    first, rest = random_split(whole, [40, len(whole) - 40], torch.Generator().manual_seed(2))
    inner = Subset(first, np.array([5, 3, -1]))
    for subset in (first, rest, inner):
        wanted = [
            whole.store.ids[subset.dataset.indices[i] if subset is inner else i]
            for i in subset.indices
        ]
        loader = pipeline.make_loader(subset, max_frames_per_batch=700)
        batches = list(loader)
        assert sorted(name for batch in batches for name in batch.ids) == sorted(wanted)
        for batch in batches:
            check(batch, (3, 1))
            assert int(batch.lengths.max()) <= 90
        assert len(list(loader)) == len(batches)
    stream = FeatureStream(inner, BatchPolicy(max_frames_per_batch=700))
    assert sum(len(batch) for batch in DataLoader(stream, batch_size=None)) == 3
    assert [
        len(batch)
        for batch in pipeline.make_loader(Subset(whole, [1, 1, 1]), max_frames_per_batch=700)
    ] == [3]


def test_a_subset_keeps_the_class_numbers(opened):
    """They are those of the whole dataset, also of columns of text."""
    whole = pipeline.FeatureDataset(opened, (2,), ["note"], classes=["speaker"])
    subset = Subset(whole, [i for i in range(20) if row_of(opened.ids[i]) % 3 == 2])
    [batch] = pipeline.make_loader(subset, max_frames_per_batch=10**6)
    assert batch.columns["speaker"].tolist() == [2] * len(subset)
    assert batch.columns["note"] == [row_of(n) if not row_of(n) % 2 else None for n in batch.ids]
    taken = pickle.loads(pickle.dumps(whole.take(subset.indices)))
    assert taken.class_names["speaker"] == whole.class_names["speaker"]
    assert len(set(taken.store.whole_column("speaker").to_pylist())) == 3


def test_a_subset_has_workers_and_a_state(opened):
    """It resumes as any loader; another split of the same size is refused."""
    whole = pipeline.FeatureDataset(opened, (2,), ["digit", "speaker"])
    splits = [
        random_split(whole, [40, len(whole) - 40], torch.Generator().manual_seed(i))[0]
        for i in (0, 0, 1)
    ]
    first, second, other = (
        pipeline.make_loader(split, max_frames_per_batch=700, num_workers=n)
        for split, n in zip(splits, (1, 0, 0), strict=True)
    )
    batches = iter(first)
    check(next(batches), (2,))
    state = first.state_dict()
    second.load_state_dict(state)
    assert [batch.ids for batch in second] == [batch.ids for batch in batches]
    with pytest.raises(ConfigError, match="data was"):
        other.load_state_dict(state)


def test_what_make_loader_cannot_take_is_named(opened):
    """With what it takes, and what else to do; indices beyond the dataset are an IndexError."""
    whole = pipeline.FeatureDataset(opened, (2,))
    with pytest.raises(ConfigError, match=r"is a FeatureStore; .*pipeline\.FeatureDataset\(store"):
        pipeline.make_loader(whole.store, max_frames_per_batch=700)
    for dataset in (ConcatDataset([whole, whole]), Subset(ConcatDataset([whole]), [0]), [1, 2]):
        with pytest.raises(ConfigError, match=r"is a (ConcatDataset|list); .*Subset.*collate_fn="):
            pipeline.make_loader(dataset, max_frames_per_batch=700)
    with pytest.raises(IndexError, match="position 999"):
        pipeline.make_loader(Subset(whole, [999]), max_frames_per_batch=700)


def test_chosen_utterances_are_a_snapshot(opened):
    """They have no condition that a refresh could apply."""
    chosen = opened.take([7, 2])
    assert chosen.ids == [opened.ids[7], opened.ids[2]]
    assert torch.equal(chosen.read(0), opened.read(7))
    with pytest.raises(StoreError, match="choose them again"):
        chosen.select(digit=0).refresh()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_plain_dataloader_names_the_way(opened, num_workers):
    """It has no rule for utterances of different lengths."""
    dataset = pipeline.FeatureDataset(opened, (2,))
    loader = DataLoader(dataset, batch_size=2, num_workers=num_workers)
    with pytest.raises(TypeError, match=r"collate_fn=pipeline\.collate, or use pipeline\.make_l"):
        next(iter(loader))


def test_unknown_columns_and_layers_are_refused(opened):
    """When the dataset is made, not in the first batch."""
    with pytest.raises(StoreError, match="speeker"):
        pipeline.FeatureDataset(opened, columns=["speeker"])
    with pytest.raises(StoreError, match="13"):
        pipeline.FeatureDataset(opened, layers=[13])
    for layers, message in (
        ([], r"layers=\[\] names no layers"),
        (6, "layers is 6; expected some"),
    ):
        with pytest.raises(StoreError, match=message):
            pipeline.FeatureDataset(opened, layers=layers)
    with pytest.raises(ConfigError, match="list of names"):
        pipeline.FeatureDataset(opened, columns="digit")
