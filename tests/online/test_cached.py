"""`cached`: an encoder with a store, in one process and in several."""

from __future__ import annotations

import os
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.errors import ConfigError, EncoderError, IdentityError, NoSpaceError, StoreError
from pipeline.online import cache_store, cached
from pipeline.store.documents import read_plan
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import mixed_lengths, voice, write_folder
from tests.helpers.extraction import INLINE, extract
from tests.helpers.forked import Forked, finish

LENGTHS = mixed_lengths(24, longest_s=2.0)
WAVES = {f"clip-{i:03d}": torch.from_numpy(voice(n, i)) for i, n in enumerate(LENGTHS)}


@pytest.fixture(scope="module")
def encoder():
    return pipeline.load_encoder("tiny", weights="random", device="cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """As the extractions of these tests; bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def forbidden(encoder, monkeypatch):
    """A way to forbid encoding from now on."""

    def forbid():
        monkeypatch.setattr(type(encoder), "__call__", lambda *_: pytest.fail("encoded again"))

    return forbid


def small(encoder, store, **options):
    return pipeline.cached(encoder, store, **{"frames_per_unit": 512, **options})


def units_of(store):
    return len(list((store / "index").iterdir()))


def test_features_are_those_of_an_extraction_and_are_encoded_once(encoder, tmp_path, forbidden):
    """Bit for bit; later they come from the store, also in a new object."""
    import soundfile

    folder = write_folder(tmp_path / "clips", LENGTHS)
    extract(folder, tmp_path / "reference", *INLINE)
    reference = pipeline.open_store(tmp_path / "reference")
    files = {name: soundfile.read(folder / name, dtype="float32")[0] for name in reference.ids}
    with small(encoder, tmp_path / "store") as cache:
        for name, wave in files.items():
            features = cache(name, wave, 16_000)
            assert torch.equal(features, reference.read(name))
            assert features.dtype == torch.float16
    forbidden()
    store = pipeline.open_store(tmp_path / "store")
    assert store.ids == reference.ids
    assert sorted(store.metadata.column_names) == ["fingerprint", "id"]
    for again in (cache, small(encoder, tmp_path / "store")):
        for name, wave in files.items():
            assert torch.equal(again(name, torch.from_numpy(wave)), store.read(name))
    for record in ("flags", "n_samples", "source_rate_hz"):
        assert store.record(0)[record] == reference.record(0)[record]


def test_a_store_of_conv_alone_has_its_name(tmp_path):
    """Readers take it, and it is no weighted sum; the same encoder goes on with the store."""
    front = pipeline.load_encoder("tiny", weights="random", device="cpu", layers=["conv"])
    name, wave = next(iter(WAVES.items()))
    with small(front, tmp_path / "s") as cache:
        features = cache(name, wave, 16_000)
    store = pipeline.open_store(tmp_path / "s")
    assert (store.layers, store.layer_names, store.is_collapsed) == ((-1,), ("conv",), False)
    assert torch.equal(store.read(name, ["conv"]), features)
    with small(front, tmp_path / "s") as again:
        assert torch.equal(again(name, wave, 16_000), features)


def test_full_units_are_committed_at_once_and_the_rest_at_the_end(encoder, tmp_path, forbidden):
    """What is collected is returned from memory."""
    store = tmp_path / "store"
    with small(encoder, store) as cache:
        first = {name: cache(name, wave) for name, wave in WAVES.items()}
        n_full = units_of(store)
        assert n_full == 2
        forbidden()
        for name, wave in WAVES.items():
            assert torch.equal(cache(name, wave), first[name])
    assert units_of(store) == n_full + 1
    cache.flush()
    assert units_of(store) == n_full + 1
    assert set(pipeline.open_store(store).ids) == set(WAVES)
    assert verify_store(store).ok


@pytest.mark.parametrize("dtype", ["int8", "float32", "bfloat16"])
def test_what_is_returned_is_what_the_store_has(encoder, tmp_path, dtype):
    """In every dtype, before and after the commit; and of recordings longer than a unit."""
    long = torch.from_numpy(voice(12.3, 7))
    with small(encoder, tmp_path, dtype=dtype, frames_per_unit=256) as cache:
        found = {name: cache(name, WAVES[name]) for name in list(WAVES)[:5]}
        found["long"] = cache("long", long)
        found |= {name: cache(name, WAVES[name]) for name in list(WAVES)[5:8]}
    store = pipeline.open_store(tmp_path)
    assert len(store.pieces("long")) == 3
    for name, features in found.items():
        assert torch.equal(features, store.read(name))
    assert torch.equal(cache("long", long), found["long"])
    assert verify_store(tmp_path).ok
    [exact] = encoder([long])
    assert torch.allclose(found["long"].float(), exact, atol=0.1)


def test_another_waveform_under_an_id_is_an_error(encoder, tmp_path):
    """While it is collected, when it is committed, and if another process was first."""
    message = "'clip-000' is in store .* with other audio"
    with small(encoder, tmp_path) as cache:
        cache("clip-000", WAVES["clip-000"])
        with pytest.raises(StoreError, match=message):
            cache("clip-000", WAVES["clip-000"][:-1])
    with pytest.raises(StoreError, match=message):
        cache("clip-000", WAVES["clip-000"] * 1.01)
    first, second = small(encoder, tmp_path), small(encoder, tmp_path)
    first("clip-001", WAVES["clip-001"])
    first("clip-002", WAVES["clip-002"])
    second("clip-002", WAVES["clip-003"])
    second("clip-004", WAVES["clip-004"])
    first.flush()
    with pytest.raises(StoreError, match="'clip-002' is in store"):
        second.flush()
    second.flush()
    ids = pipeline.open_store(tmp_path).ids
    assert sorted(ids) == ["clip-000", "clip-001", "clip-002", "clip-004"]


def test_two_that_encode_the_same_commit_it_once(encoder, tmp_path):
    """Who comes second adds what is new only."""
    first, second = small(encoder, tmp_path), small(encoder, tmp_path)
    for name in list(WAVES)[:4]:
        first(name, WAVES[name])
    for name in list(WAVES)[2:6]:
        second(name, WAVES[name])
    first.flush()
    second.flush()
    assert pipeline.open_store(tmp_path).ids == list(WAVES)[:6]
    assert torch.equal(second("clip-000", WAVES["clip-000"]), first("clip-000", WAVES["clip-000"]))


class Audio(Dataset):
    """An existing dataset that encodes its audio."""

    def __init__(self, cache):
        self.cache = cache
        self.names = list(WAVES)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        return name, self.cache(name, WAVES[name]).mean(1), os.getpid()


def test_workers_of_a_loader_share_a_store(encoder, tmp_path):
    """Each commits what it has collected when it ends; the parent keeps what it had collected.

    Workers that are not forked cannot get the encoder, which is said.
    """
    cache = small(encoder, tmp_path)
    cache("early", WAVES["clip-000"] * 0.5)
    options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "fork"}
    epochs = [list(DataLoader(Audio(cache), **options)) for _ in range(2)]
    assert len({pid for _, _, pid in epochs[0]}) == 2
    store = pipeline.open_store(tmp_path)
    assert sorted(store.ids) == list(WAVES)
    for (name, mean, _), (_, again, _) in zip(*epochs, strict=True):
        assert torch.equal(mean, store.read(name).mean(1))
        assert torch.equal(mean, again)
    cache.flush()
    assert sorted(pipeline.open_store(tmp_path).ids) == [*WAVES, "early"]
    assert verify_store(tmp_path).ok
    with pytest.raises(ConfigError, match="multiprocessing_context='fork', or call `cached` in"):
        pickle.dumps(cache)


JOBS = """
import multiprocessing, os, signal, sys
import torch, pipeline
from tests.online.test_cached import WAVES, small
torch.set_num_threads(1)
ready = multiprocessing.get_context("fork").Barrier(2)
jobs = []
for how in ("go on", "die"):
    jobs.append(os.fork())
    if not jobs[-1]:
        encoder = pipeline.load_encoder("tiny", weights="random", device="cpu")
        cache = small(encoder, sys.argv[1])
        ready.wait(60)
        for n, name in enumerate(list(WAVES) if how == "die" else list(WAVES)[::-1]):
            cache(name, WAVES[name])
            if how == "die" and n == 16:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.exit()
print([os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]) for job in jobs])
"""


@pytest.mark.slow
def test_jobs_share_a_store_and_one_is_killed(tmp_path):
    """Nothing is twice in the store, nothing that was committed is lost, and it is sound.

    The jobs have no `with` block: they commit the rest when they end.
    """
    assert finish(Forked(JOBS, tmp_path), 120) == "[0, -9]\n"
    store = pipeline.open_store(tmp_path)
    assert sorted(store.ids) == list(WAVES)
    rows = [row for path in sorted((tmp_path / "index").iterdir()) for row in read_rows(path)]
    assert max(Counter(row["id"] for row in rows).values()) == 1
    assert verify_store(tmp_path).ok


def read_rows(path):
    import pyarrow.parquet as pq

    return pq.read_table(path, partitioning=None).to_pylist()


def test_a_unit_that_was_planned_and_not_committed_is_left_out(encoder, tmp_path, monkeypatch):
    """Its number is given to others, those of its utterances never."""

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    cache = small(encoder, tmp_path)
    cache("clip-000", WAVES["clip-000"])
    with monkeypatch.context() as patch:
        patch.setattr(cache_store, "commit_unit", die)
        with pytest.raises(Killed):
            cache.flush()
    assert read_plan(tmp_path).n_units == 1
    assert len(pipeline.open_store(tmp_path)) == 0
    other = small(encoder, tmp_path)
    other("clip-001", WAVES["clip-001"])
    other.flush()
    plan = read_plan(tmp_path).table.to_pylist()
    assert [(row["id"], row["row"], row["unit"]) for row in plan] == [("clip-001", 1, 0)]
    cache.flush()
    assert sorted(pipeline.open_store(tmp_path).ids) == ["clip-000", "clip-001"]
    assert verify_store(tmp_path).ok


def test_a_zombie_that_commits_under_the_same_number_is_no_loss(encoder, tmp_path, monkeypatch):
    """The unit goes under the next number."""
    cache, zombie = small(encoder, tmp_path), small(encoder, tmp_path)
    cache("clip-000", WAVES["clip-000"])
    zombie("clip-001", WAVES["clip-001"])
    commit, commit_unit = cache_store._commit, cache_store.commit_unit
    turns = []

    def late(backend, buffer, unit, slot, index):
        if not turns:
            turns.append(unit)
            [item] = zombie._collection._waiting.values()
            lease = type("Held", (), {"check": lambda self: None})()
            placed = [cache_store.Placed(item)]
            assert commit(backend, cache._layout, placed, 16_000, lease, "zombie")
        return commit_unit(backend, buffer, unit, slot, index)

    monkeypatch.setattr(cache_store, "commit_unit", late)
    cache.flush()
    store = pipeline.open_store(tmp_path)
    assert sorted(store.ids) == ["clip-000", "clip-001"]
    assert store.pieces("clip-000")[0].unit == 1
    assert verify_store(tmp_path).ok


def test_a_full_disk_loses_nothing_that_is_collected(encoder, tmp_path, monkeypatch):
    """The next flush commits it."""
    cache = small(encoder, tmp_path)
    cache("clip-000", WAVES["clip-000"])

    def fail(*_):
        raise NoSpaceError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(cache_store, "commit_unit", fail)
        with pytest.raises(NoSpaceError):
            cache.flush()
    cache.flush()
    assert pipeline.open_store(tmp_path).ids == ["clip-000"]


def test_commands_work_on_such_a_store_or_refuse_it(encoder, tmp_path, forbidden):
    """It has no dataset, which `extract`, `plan` and `relabel` say; a copy can be relabelled."""
    store, copied = tmp_path / "store", tmp_path / "copy"
    with small(encoder, store) as cache:
        for name, wave in WAVES.items():
            cache(name, wave)
    folder = write_folder(tmp_path / "clips", LENGTHS[:3])
    settings = [f"dataset.path={folder}", "model=tiny", "engine=inline", f"store={store}"]

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    assert "24 of 24 utterances, 0 quarantined" in run("status", store).output
    assert run("inspect", store).exit_code == run("inspect", store, "clip-003").exit_code == 0
    for refused in (["extract", *settings], ["plan", *settings]):
        done = run(*refused)
        assert done.exit_code == 1
        assert "filled by `pipeline.cached`, and has no dataset" in done.output
    assert "filled by `pipeline.cached`" in run("relabel", store, settings[0]).output
    assert run("copy", store, copied).exit_code == 0
    assert pipeline.open_store(copied).ids == pipeline.open_store(store).ids
    shard = next((store / "features.zarr/frames/c/3").rglob("0/0"))
    damaged = bytearray(shard.read_bytes())
    damaged[1000] ^= 1
    shard.write_bytes(damaged)
    assert run("verify", store).exit_code == 1
    assert run("verify", store, "--repair").exit_code == 0
    n_left = len(pipeline.open_store(store))
    assert n_left < len(WAVES)
    with small(encoder, store) as again:
        for name, wave in WAVES.items():
            again(name, wave)
    assert sorted(pipeline.open_store(store).ids) == list(WAVES)
    assert verify_store(store).ok


def test_wrong_use_is_refused(encoder, tmp_path):
    """With what was expected."""
    cache = small(encoder, tmp_path / "store")
    wave = WAVES["clip-000"]
    for arguments, error, message in [
        (("a", wave, 8000), ConfigError, "'a' has 8000 Hz; the encoder needs 16000 Hz"),
        ((3, wave), ConfigError, "the id of an utterance is 3; expected a text"),
        (("", wave), ConfigError, "the id of an utterance is ''"),
        (("a", wave.double()), EncoderError, "one-dimensional float32, not 1-dimensional float64"),
        (("a", np.zeros((2, 5), np.float32)), EncoderError, "not 2-dimensional"),
        (("a", wave[:0]), EncoderError, "without samples"),
        (("a", wave * float("nan")), EncoderError, "utterance 'a': float16 cannot hold"),
    ]:
        with pytest.raises(error, match=message):
            cache(*arguments)
    other = pipeline.load_encoder("tiny", weights="random", seed=1, device="cpu")
    with pytest.raises(IdentityError, match="weights"):
        small(other, tmp_path / "store")
    with pytest.raises(IdentityError, match="dtype"):
        small(encoder, tmp_path / "store", dtype="int8")
    with pytest.raises(ConfigError, match="frames_per_unit is 0"):
        cached.cached(encoder, tmp_path / "store", frames_per_unit=0)
    with pytest.raises(ConfigError, match="dtype is 'float8'"):
        small(encoder, tmp_path / "other", dtype="float8")
    folder = write_folder(tmp_path / "clips", LENGTHS[:2])
    extract(folder, tmp_path / "extracted", *INLINE)
    with pytest.raises(IdentityError, match="was extracted from a dataset"):
        small(encoder, tmp_path / "extracted")


def test_a_dropped_utterance_is_stored_again_if_it_is_asked_for(encoder, tmp_path):
    """As a new one; the others stay."""
    cache = small(encoder, tmp_path)
    for name in list(WAVES)[:4]:
        cache(name, WAVES[name])
    cache.flush()
    pipeline.drop(tmp_path, ids=["clip-001"], confirm=True)
    with small(encoder, tmp_path) as again:
        again("clip-000", WAVES["clip-000"])
        assert "clip-001" not in pipeline.open_store(tmp_path).ids
        again("clip-001", WAVES["clip-001"])
    assert sorted(pipeline.open_store(tmp_path).ids) == list(WAVES)[:4]
    assert verify_store(tmp_path).ok


def test_dropped_layers_are_no_cache(encoder, tmp_path):
    """A store from which layers were dropped has not all that the encoder returns."""
    cache = small(encoder, tmp_path)
    cache("clip-000", WAVES["clip-000"])
    cache.flush()
    cache("clip-001", WAVES["clip-001"])
    pipeline.drop(tmp_path, layers=[3], confirm=True)
    with pytest.raises(IdentityError, match=r"layers \[3\] were dropped"):
        small(encoder, tmp_path)
    with pytest.raises(StoreError, match="was changed by another program"):
        cache.flush()
    assert pipeline.open_store(tmp_path).ids == ["clip-000"]
    cache._collection._waiting.clear()  # nothing is left to commit at the end


def test_an_encoder_that_nobody_needs_commits_what_it_has(encoder, tmp_path):
    """As it does at the end of the process."""
    cache = small(encoder, tmp_path)
    cache("clip-000", WAVES["clip-000"])
    del cache
    assert pipeline.open_store(tmp_path).ids == ["clip-000"]
