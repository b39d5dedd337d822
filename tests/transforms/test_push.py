"""Push: a store on the Hugging Face hub, against a small server that speaks its calls."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
import torch

import pipeline
from pipeline.cli.app import main
from pipeline.errors import ConfigError, IdentityError, StoreError
from pipeline.events import Observer
from pipeline.store.index import read_index
from pipeline.store.maintain.verify import verify_store
from pipeline.transforms.push import run
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, extract
from tests.servers.hub import serve_hub

URI = "hf://datasets/me/features"
LAYERS = "extract.layers=[2,5]"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("push") / "clips", mixed_lengths(30))


@pytest.fixture(scope="module")
def store(clips, tmp_path_factory):
    path = tmp_path_factory.mktemp("push") / "store"
    extract(clips, path, *INLINE, LAYERS)
    return path


@pytest.fixture
def hub(monkeypatch):
    with serve_hub() as found:
        found.use(monkeypatch)
        yield found
        assert found.unknown == [item for item in found.unknown if "agent-harness" in item]


def files_of(hub):
    return hub.repositories["me/features"].files


def keys_of(store):
    """Keys of a store, but those that only its drivers need, and the cache of the index."""
    keys = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
    return keys - {"lease.lock", "log.jsonl", "index.parquet"}


def test_a_store_is_pushed_as_it_is(hub, store):
    """Every committed file, byte for byte, in one commit, and a card in another."""
    done = pipeline.push(store, URI)
    files = files_of(hub)
    assert set(files) == keys_of(store) | {"README.md", "index.parquet"}
    assert all(files[key] == (store / key).read_bytes() for key in keys_of(store))
    assert (done.units, done.units_sent, done.utterances) == (5, 5, 30)
    assert done.bytes_sent == sum(map(len, files.values()))
    assert [message for message, _ in hub.repositories["me/features"].commits] == [
        "Features of 5 units",
        "Index and dataset card",
    ]
    assert hub.repositories["me/features"].private
    again = pipeline.push(store, URI)
    assert (again.units_sent, again.bytes_sent, again.card_written) == (0, 0, False)
    assert len(hub.repositories["me/features"].commits) == 2


def test_tokens_are_pushed_with_the_store(hub, store, tmp_path):
    """Also when the units are there already; a reader of the repository has them."""
    local = tmp_path / "store"
    shutil.copytree(store, local)
    pipeline.push(local, URI)
    pipeline.tokenize(local, 2, 4)
    done = pipeline.push(local, URI)
    assert done.units_sent == 0
    files = files_of(hub)
    assert all(files[key] == (local / key).read_bytes() for key in keys_of(local))
    assert hub.repositories["me/features"].commits[-1][0] == "Tokens of 5 units"
    here, there = pipeline.open_store(local), pipeline.open_store(URI)
    assert there.token_names == ["layer2-k4"]
    assert there.tokens(3).tolist() == here.tokens(3).tolist()
    assert pipeline.push(local, URI).bytes_sent == 0


def test_an_interrupted_push_goes_on(hub, store, monkeypatch):
    """What was committed is not sent again; what is there at any time is a store."""
    monkeypatch.setattr(run, "COMMIT_FILES", 1)
    hub.fail_after = 2
    counts = []

    class Counts(Observer):
        def units_pushed(self, done, total):
            counts.append((done, total))

    with pytest.raises(StoreError, match=r"cannot commit feat.*500.*run the same command again"):
        pipeline.push(store, URI, observer=Counts())
    assert counts == [(0, 5), (1, 5), (2, 5), (3, 5)]
    assert "features.zarr/zarr.json" in files_of(hub)
    assert [key for key in files_of(hub) if key.startswith("index/")] == [
        "index/unit-0.parquet",
        "index/unit-1.parquet",
    ]
    hub.fail_after, counts[:] = None, []
    done = pipeline.push(store, URI, observer=Counts())
    assert counts == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert (done.units_sent, done.card_written) == (3, True)
    assert set(files_of(hub)) == keys_of(store) | {"README.md", "index.parquet"}


def test_a_store_that_has_grown_is_brought_up_to_date(hub, clips, store, tmp_path):
    """New units, and the documents that have changed; nothing else, and the card is kept."""
    grown = shutil.copytree(store, tmp_path / "grown")
    pipeline.push(grown, URI)
    hub.repositories["me/features"].files["README.md"] = b"my own words"
    more = write_folder(tmp_path / "clips", [*mixed_lengths(30), *mixed_lengths(12, seed=5)])
    extract(more, grown, *INLINE, LAYERS)
    done = pipeline.push(grown, URI)
    assert 0 < done.units_sent < done.units
    [(_, changed), (message, index)] = hub.repositories["me/features"].commits[2:]
    assert (message, index) == ("Index", ["index.parquet"])
    sent = {int(key[11:-8]) for key in changed if key.startswith("index/")}
    assert sent == set(range(5, done.units))
    assert set(changed) & {"plan.parquet", "features.zarr/zarr.json"}
    assert files_of(hub)["README.md"] == b"my own words"
    assert all(files_of(hub)[key] == (grown / key).read_bytes() for key in keys_of(grown))


def test_the_card_says_what_is_in_the_store(hub, store):
    """Encoder, layers, form and size; the licence is given or asked for."""
    pipeline.push(store, URI, license="cc-by-4.0", private=False)
    card = files_of(hub)["README.md"].decode()
    assert not hub.repositories["me/features"].private
    opened = pipeline.open_store(store)
    hours = int(opened.frame_counts.sum()) / 50 / 3600
    for text in (
        "\nlicense: cc-by-4.0\n",
        "| encoder | tiny |",
        "| layers | 2, 5 |",
        "| stored as | float16 |",
        "| utterances | 30 |",
        f"| hours of audio | {hours:.2f} |",
        "| columns | id, word, speaker |",
        f'pipeline.open_store("{URI}")',
    ):
        assert text in card
    assert "## Licence" not in card
    pipeline.push(store, "hf://datasets/me/other")
    other = hub.repositories["me/other"].files["README.md"].decode()
    assert "## Licence" in other
    assert "\nlicense:" not in other


def test_another_place_is_refused(hub, store, tmp_path, clips):
    """One with other features, with other files, or with units that the store lacks."""
    pipeline.push(store, URI)
    other = tmp_path / "other"
    extract(clips, other, *INLINE, "extract.layers=[3]")
    with pytest.raises(IdentityError, match="layers"):
        pipeline.push(other, URI)
    less = shutil.copytree(store, tmp_path / "less")
    (less / "index" / "unit-2.parquet").unlink()
    (less / "index.parquet").unlink()
    with pytest.raises(StoreError, match=r"1 unit that store .* lacks, such as index/unit-2"):
        pipeline.push(less, URI)
    hub.repositories["me/notes"] = type(hub.repositories["me/features"])({"a.txt": b"x"})
    with pytest.raises(StoreError, match=r"has no store, but 1 file such as a\.txt"):
        pipeline.push(store, "hf://datasets/me/notes")
    for uri in ("hf://me/features", "hf://datasets/features", "s3://bucket/x", "hf://models/a/b"):
        with pytest.raises(ConfigError, match="expected hf://datasets/USER/NAME"):
            pipeline.push(store, uri)
    with pytest.raises(ConfigError, match="license is 'CC BY'"):
        pipeline.push(store, URI, license="CC BY")
    assert len(hub.repositories["me/features"].commits) == 2


def test_only_committed_units_are_sent(hub, store, tmp_path):
    """Data of attempts that never came to a commit stay here."""
    partial = shutil.copytree(store, tmp_path / "partial")
    (partial / "index" / "unit-1.parquet").unlink()
    (partial / "index.parquet").unlink()
    slot = read_index(store, columns=["unit", "slot"]).to_pylist()
    [lost] = {row["slot"] for row in slot if row["unit"] == 1}
    done = pipeline.push(partial, URI)
    assert done.units == 4
    assert not [key for key in files_of(hub) if f"/c/0/{lost}/" in key or f"slot-{lost}." in key]


def test_a_hub_that_cannot_be_reached_is_one_line(store, monkeypatch, hub):
    """So is one that refuses the token."""
    hub.use(monkeypatch)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"cannot create it: .*refused") as found:
        pipeline.push(store, URI)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("POST /api/repos/create", "cannot create it"),
        ("GET /api/datasets/me/features/tree", "cannot list it"),
        ("PUT /lfs/", r"cannot upload plan\.parquet|cannot upload features\.zarr"),
        ("POST /api/datasets/me/features/commit", r"cannot commit features\.zarr/zarr\.json"),
    ],
)
def test_a_token_that_may_not_write_is_named(hub, store, call, words):
    """With what was refused, and the remedy; the token is in no message."""
    hub.refused = call
    with pytest.raises(StoreError, match=rf"{URI}: ({words})") as found:
        pipeline.push(store, URI)
    assert "403" in str(found.value)
    assert "set HF_TOKEN to a token that may write" in str(found.value)
    assert "hf_test" not in str(found.value)


def test_the_command(hub, store, capsys, monkeypatch):
    """The answer is one JSON object; the command of the extraction is said to be published."""
    monkeypatch.setattr("sys.argv", ["strata", "push", str(store), URI, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    answer = json.loads(capsys.readouterr().out)
    assert (answer["units"], answer["units_sent"], answer["uri"]) == (5, 5, URI)


def test_a_pushed_store_is_read_by_range(hub, store):
    """Features, labels and statistics, in this process and in several threads."""
    pipeline.push(store, URI)
    n = len(hub.requests)
    here, there = pipeline.open_store(store), pipeline.open_store(URI)
    asked = hub.requests[n:]
    assert any(item.endswith("/index.parquet") for item in asked)
    assert not [item for item in asked if "index/unit-" in item]  # its cache has what they have
    assert there.ids == here.ids
    assert there.metadata.equals(here.metadata)
    assert torch.equal(there.pooled(), here.pooled())
    found = [None] * 8

    def read(i):
        found[i] = there.read(i, [2, 5], 1, 9)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], here.read(i, [2, 5], 1, 9)) for i in range(8))
    n = len(hub.requests)
    assert torch.equal(there.read(3, [2], verify=True), here.read(3, [2]))
    assert 0 < len(hub.requests) - n < 6
    checked = verify_store(URI)
    assert checked.ok
    assert not checked.orphans
