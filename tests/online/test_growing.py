"""The loader of a dataset that grows: order, ranks, resume, errors; without an encoder."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import numpy as np
import pytest
from torch.utils.data import random_split

import pipeline
from pipeline.errors import ConfigError, NoSpaceError, RunError
from pipeline.feed.batching import BatchPolicy
from pipeline.online.dataset import OnlineDataset, View
from tests.helpers.feature_stores import spelled
from tests.helpers.growing_store import ScriptedExtraction, begin, commit

LENGTHS = [int(n) for n in np.random.default_rng(5).integers(10, 90, 40)]
N_UNITS = 9
REST = list(range(1, N_UNITS))


def complete(root):
    """A dataset of a complete store."""
    return OnlineDataset(pipeline.open_store(root), View(), None)


def loader_of(dataset, **options):
    return pipeline.make_loader(dataset, **({"max_frames_per_batch": 150} | options))


def ids_of(batches):
    return [name for batch in batches for name in batch.ids]


def unit_of(root):
    """Unit of each id of a complete store."""
    store = pipeline.open_store(root)
    return {name: store.pieces(name)[-1].unit for name in store.ids}


def collect(loader, names):
    """Add the ids of an epoch to `names`, as far as it gets."""
    for batch in loader:
        names += batch.ids


def runs_of(values):
    """The values without repetitions in a row."""
    return [value for i, value in enumerate(values) if i == 0 or value != values[i - 1]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epochs_have_every_utterance_once_with_its_values(tmp_path, num_workers):
    """In epoch 0 unit by unit as they are committed; later shuffled over the whole store."""
    dataset, _ = begin(tmp_path, LENGTHS, [1, None, 2, 5, 3, 4, 6, 8, 7])
    loader = loader_of(dataset, num_workers=num_workers)
    orders = []
    for _ in range(3):
        orders.append([])
        for batch in loader:
            orders[-1] += batch.ids
            for i, name in enumerate(batch.ids):
                n = int(batch.lengths[i])
                wanted = spelled(int(name[-4:]), 2, n, 8)
                assert np.array_equal(batch.features[i, 1, :n].numpy(), wanted)
                assert not batch.features[i, :, n:].any()
    assert all(sorted(order) == pipeline.open_store(tmp_path).ids for order in orders)
    units = unit_of(tmp_path)
    assert runs_of([units[name] for name in orders[0]]) == [0, 1, 2, 5, 3, 4, 6, 8, 7]
    assert len(runs_of([units[name] for name in orders[1]])) > 2 * N_UNITS
    assert orders[1] != orders[2]


def test_a_unit_is_shuffled_by_the_seed_and_its_number(tmp_path):
    """The same seed gives the same epoch 0, however long the units take; another seed another."""
    orders = []
    for i, (steps, seed) in enumerate(
        [(REST, 1), ([None, *REST[:4], None, *REST[4:]], 1), (REST, 2)]
    ):
        dataset, _ = begin(tmp_path / str(i), LENGTHS, steps)
        orders.append(ids_of(loader_of(dataset, seed=seed)))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    alike, _ = begin(tmp_path / "alike", [60] * 16, [1, 2, 3])
    names = ids_of(loader_of(alike, max_frames_per_batch=60))
    places = {tuple(int(name[-4:]) % 4 for name in names[i : i + 4]) for i in range(0, 16, 4)}
    assert len(places) > 1
    unshuffled, _ = begin(tmp_path / "3", LENGTHS, REST)
    assert ids_of(loader_of(unshuffled, shuffle=False)) == sorted(orders[0])


def test_committed_units_come_first(tmp_path):
    """Those of earlier runs and of other jobs are read, and not waited for in order."""
    dataset, _ = begin(tmp_path, LENGTHS, [None, None, 0, 1, 2, 4, 6, 7, 8], first=(3, 5))
    names = ids_of(loader_of(dataset))
    units = [unit_of(tmp_path)[name] for name in names]
    assert runs_of(units) == [3, 5, 0, 1, 2, 4, 6, 7, 8]


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_have_equally_many_batches_of_one_order(tmp_path, drop_last):
    """All ranks go through the units by number, whenever they see them."""
    taken, n_batches = [], []
    for rank, steps in enumerate([REST, [4, 3, 2, 1, None, 8, 7, 6, 5], [8, 7, 6, 5, 4, 3, 2, 1]]):
        dataset, _ = begin(tmp_path / str(rank), LENGTHS, steps)
        loader = loader_of(dataset, rank=rank, world_size=3, drop_last=drop_last)
        batches = [batch.ids for batch in loader]
        n_batches.append(len(batches))
        taken += [name for batch in batches for name in batch]
    assert len(set(n_batches)) == 1
    counts = Counter(taken)
    whole = set(pipeline.open_store(tmp_path / "0").ids)
    one_rank, _ = begin(tmp_path / "all", LENGTHS, REST)
    n_alone = sum(1 for _ in loader_of(one_rank))
    if drop_last:
        assert max(counts.values()) == 1
        assert n_batches[0] == n_alone // 3
    else:
        assert set(counts) == whole
        assert n_batches[0] == -(-n_alone // 3)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_state_of_epoch_0_continues_exactly(tmp_path, world_size):
    """In a new process, whether the store is complete by then or not."""
    options = {"world_size": world_size, "rank": world_size - 1}
    dataset, extraction = begin(tmp_path, LENGTHS, [2, 1, 3])
    loader = loader_of(dataset, **options)
    first = []
    for batch in loader:
        first.append(batch.ids)
        if len(first) == 3:
            break
    state = json.loads(json.dumps(loader.state_dict()))
    assert extraction.n_stops == 1
    again = ScriptedExtraction(tmp_path, [4, 6, 5, 7, 8])
    growing = OnlineDataset(pipeline.open_store(tmp_path), View(), again)
    resumed = loader_of(growing, **options)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest, states = [], []
    for batch in resumed:
        rest.append(batch.ids)
        states.append(json.loads(json.dumps(resumed.state_dict())))
    whole = loader_of(complete(tmp_path), **options)
    for i, later in enumerate(states[:-1]):
        whole.load_state_dict(later)
        assert [batch.ids for batch in whole] == rest[i + 1 :]
    whole.load_state_dict(state | {"batches_done": 0})
    assert [batch.ids for batch in whole] == first + rest
    assert len(whole) == len(list(whole))


def test_a_state_in_the_middle_of_a_resumed_epoch_is_sound(tmp_path):
    """A state that is taken after a resume, before all units of the first state are reached."""
    dataset, _ = begin(tmp_path, LENGTHS, REST)
    states, batches = [], []
    loader = loader_of(dataset)
    for batch in loader:
        batches.append(batch.ids)
        states.append(loader.state_dict())
    late = loader_of(complete(tmp_path))
    late.load_state_dict(states[10] | {"batches_done": 2})
    next(iter(late))
    again = loader_of(complete(tmp_path))
    again.load_state_dict(late.state_dict())
    assert [batch.ids for batch in again] == batches[3:]


def test_a_state_of_other_data_or_settings_is_refused(tmp_path):
    """With what differs; a state of a whole epoch waits until the store is complete."""
    dataset, extraction = begin(tmp_path / "a", LENGTHS, REST)
    loader = loader_of(dataset)
    next(iter(loader))
    state = loader.state_dict()
    extraction.start()
    with pytest.raises(ConfigError, match="seed was 0, is 3"):
        loader_of(dataset, seed=3).load_state_dict(state)
    other, _ = begin(tmp_path / "b", LENGTHS[1:], REST[:-1])
    resumed = loader_of(other)
    resumed.load_state_dict(state)
    with pytest.raises(ConfigError, match="cannot continue after 1 batches of epoch 0"):
        list(resumed)
    lost = loader_of(complete(tmp_path / "b"))
    lost.load_state_dict(state | {"units": [50]})
    with pytest.raises(ConfigError, match="unit 50, which the state"):
        list(lost)
    whole = loader_of(dataset)
    plain = pipeline.make_loader(dataset, max_frames_per_batch=150)
    plain.set_epoch(1)
    whole.load_state_dict({**plain.state_dict(), "epoch": 1})
    assert not dataset.is_growing
    assert len(ids_of(whole)) == len(LENGTHS)


def test_recordings_come_with_the_unit_that_completes_them(tmp_path):
    """Pieces in several units are joined, and a recording is in one batch."""
    lengths, pieces = [100, 700, 40, 500, 60], {1: 4, 3: 2}
    dataset, _ = begin(tmp_path, lengths, [None, 4, 1, 2, 3, 5, 6], pieces=pieces)
    seen = []
    for batch in loader_of(dataset, max_frames_per_batch=800):
        for i, name in enumerate(batch.ids):
            seen.append(name)
            n = int(batch.lengths[i])
            assert n == lengths[int(name[-4:])]
            wanted = spelled(int(name[-4:]), 1, n, 8)
            assert np.array_equal(batch.features[i, 0, :n].numpy(), wanted)
    assert sorted(seen) == pipeline.open_store(tmp_path).ids


def test_a_condition_holds_in_every_epoch(tmp_path, recwarn):
    """Values that no utterance has yet give no warning; units without a match give no batch."""
    view = View(where="speaker = 'speaker-1' and n_frames > 20", options={"columns": ["speaker"]})
    dataset, _ = begin(tmp_path, LENGTHS, REST, view=view)
    wanted = [f"utt-{i:04d}" for i, n in enumerate(LENGTHS) if i % 3 == 1 and n > 20]
    loader = loader_of(dataset)
    for _ in range(2):
        batches = list(loader)
        assert sorted(ids_of(batches)) == wanted
        assert {value for batch in batches for value in batch.columns["speaker"]} == {"speaker-1"}
    assert not recwarn.list


def test_classes_need_names_while_units_are_missing(tmp_path):
    """Their numbers would change; columns that have class names keep them."""
    with pytest.raises(ConfigError, match=r"give their names: classes=\{'speaker'"):
        begin(tmp_path / "a", LENGTHS, REST, view=View(options={"classes": ["speaker"]}))
    named = {"speaker": ["speaker-2", "speaker-1", "speaker-0"]}
    view = View(options={"classes": named, "columns": ["digit"], "max_frames": 30})
    dataset, _ = begin(tmp_path / "b", LENGTHS, REST, view=view)
    for batch in loader_of(dataset):
        rows = [int(name[-4:]) for name in batch.ids]
        assert batch.columns["speaker"].tolist() == [2 - row % 3 for row in rows]
        assert batch.features.shape[2] <= 30
    assert dataset.class_names["digit"] == ["zero", "one", "two", "three"]


def test_other_uses_wait(tmp_path):
    """Everything that would see a part of the utterances only is refused, with the remedy."""
    dataset, _ = begin(tmp_path, LENGTHS, REST)
    uses = [
        lambda: len(dataset),
        lambda: dataset[0],
        lambda: dataset.take([0]),
        lambda: pickle.dumps(dataset),
        lambda: random_split(dataset, [0.5, 0.5]),
        lambda: pipeline.FeatureStream(dataset, BatchPolicy(100)),
        lambda: pipeline.mix([dataset], max_frames_per_batch=100),
        lambda: pipeline.make_frame_loader(dataset, frames_per_batch=64),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match=r"dataset.wait\(\)"):
            use()
    with pytest.raises(TypeError, match="not known before the end of epoch 0"):
        len(loader_of(dataset))
    dataset.wait()
    for use in uses:
        use()
    assert len(pickle.loads(pickle.dumps(dataset))) == len(LENGTHS)


def test_an_error_of_the_extraction_is_raised_once_it_is_seen(tmp_path):
    """With its type and text, in the loop over the batches."""
    error = NoSpaceError("no space left in store")
    dataset, extraction = begin(tmp_path, LENGTHS, [1, 2, error])
    names = []
    with pytest.raises(NoSpaceError, match="no space left in store"):
        collect(loader_of(dataset), names)
    assert runs_of([unit_of(tmp_path)[name] for name in names]) == [0, 1]
    assert extraction.n_stops == 1


def test_leaving_the_loop_stops_the_extraction_and_iterating_continues_it(tmp_path):
    """Also by an exception; epoch 1 then waits for all utterances."""
    dataset, extraction = begin(tmp_path, LENGTHS, REST)
    loader = loader_of(dataset)

    def train():
        for _ in loader:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert not extraction.is_running
    assert len(ids_of(loader)) == len(LENGTHS)
    assert loader.epoch == 2
    assert (extraction.n_starts, extraction.n_stops) == (2, 1)


def test_too_many_quarantined_utterances_are_an_error(tmp_path):
    """After the batches of epoch 0, and when the complete store is opened again."""
    view = View(max_quarantined=0.01)
    dataset, _ = begin(tmp_path, LENGTHS, REST, lost=(3, 7), view=view)
    names = []
    message = r"5.0% of the utterances .* run.max_quarantined=0.01 \('utt-0003': no sound"
    with pytest.raises(RunError, match=message):
        collect(loader_of(dataset), names)
    assert len(names) == len(LENGTHS) - 2
    with pytest.raises(RunError, match=message):
        OnlineDataset(pipeline.open_store(tmp_path), view, None)
    assert len(OnlineDataset(pipeline.open_store(tmp_path), View(max_quarantined=0.1), None)) == 38


def test_a_complete_store_is_a_dataset_like_any_other(tmp_path):
    """Epoch 0 is that of `FeatureDataset`, batch for batch."""
    begin(tmp_path, LENGTHS, [])
    commit(tmp_path, REST)
    store = pipeline.open_store(tmp_path)
    online = loader_of(OnlineDataset(store, View(), None))
    plain = loader_of(pipeline.FeatureDataset(store))
    assert [b.ids for b in online] == [b.ids for b in plain]
    assert online.state_dict() == plain.state_dict()
    wanted = [batch.ids for batch in plain]
    plain.set_epoch(1)
    next(iter(plain))
    online.load_state_dict(plain.state_dict())
    assert [batch.ids for batch in online] == wanted[1:]
