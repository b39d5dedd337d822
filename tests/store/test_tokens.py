"""Tokens in a store: their format, verification, repair, status, and what `drop` does with them."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pipeline
from pipeline.errors import ConfigError, DamagedError, StoreError, StoreNotFoundError
from pipeline.store.format.codebook import Codebook
from pipeline.store.format.codecs import DEFAULT_CODEC, INT8
from pipeline.store.format.tokens import (
    NO_TOKEN,
    chunk_bytes,
    chunk_key,
    chunk_place,
    codebook_key,
    deduplicate,
    document_key,
    is_token_document,
    parse_chunk,
)
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.verify import verify_store
from tests.helpers.commands import strata
from tests.helpers.token_stores import (
    LAYER,
    LENGTHS,
    K,
    clustered_store,
    expected_tokens,
    tokenized,
)

NAME = f"layer{LAYER}-k{K}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    clustered_store(tmp_path / "store")
    tokenized(tmp_path / "store")
    return tmp_path / "store"


@given(arrays(np.int64, st.integers(0, 30), elements=st.integers(0, 3)))
def test_runs_repeat_to_the_tokens(tokens):
    """Runs differ from their neighbours, have frames, and repeated they are the tokens again."""
    units, durations = deduplicate(tokens)
    assert np.repeat(units, durations).tolist() == tokens.tolist()
    assert (units[1:] != units[:-1]).all()
    assert (durations > 0).all()


@given(arrays(np.uint16, st.integers(1, 40)), st.data())
def test_a_chunk_comes_back_or_is_refused(tokens, data):
    """A chunk gives its tokens back; with any bit flipped, or cut short, it is refused."""
    raw = chunk_bytes(tokens)
    assert parse_chunk(raw, len(tokens)).tolist() == tokens.tolist()
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    for wrong in (bytes(changed), raw[:-1]):
        with pytest.raises(ValueError, match=r"wrong checksum|bytes instead of"):
            parse_chunk(wrong, len(tokens))


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.data(),
)
def test_a_codebook_comes_back_or_is_refused(centroids, data):
    """A codebook file gives the codebook back; with a byte changed it is refused or is the same."""
    book = Codebook(centroids, 9, None, 3, {"encoder": {"name": "x"}}, {"n_frames": 7})
    raw = book.to_bytes()
    again = Codebook.from_bytes(raw, "here")
    assert again.centroids.tobytes() == centroids.tobytes()
    assert (again.facts, again.sha256) == (book.facts, book.sha256)
    at = data.draw(st.integers(0, len(raw) - 1))
    changed = bytearray(raw)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    outcome = ""
    try:
        outcome = Codebook.from_bytes(bytes(changed), "here").sha256
    except DamagedError as error:
        outcome = str(error)
    assert outcome == book.sha256 or outcome.startswith("here ")


def test_files_that_are_no_codebook_of_this_version_are_refused():
    """Another kind, bytes after the centroids, a header longer than the file, and NaN."""
    book = Codebook(np.ones((2, 3), np.float32), 9, None, 3, {}, {})
    raw = book.to_bytes()
    nan = replace(book, centroids=np.full((2, 3), np.nan, np.float32)).to_bytes()
    for changed, words in (
        (raw.replace(b"strata codebook 1", b"strata codebook 2"), "kind is 'strata codebook 2'"),
        (raw + b"\0", "its centroids do not fit its metadata"),
        (nan, "its centroids do not fit its metadata"),
        (raw[:40], "its header is longer than the file"),
    ):
        with pytest.raises(DamagedError, match=f"here is no codebook of .*{words}"):
            Codebook.from_bytes(changed, "here")


def test_keys_and_places():
    """A chunk's key gives its name and slot; documents and codebooks are known, others are not."""
    assert chunk_place(chunk_key("a.b-1", 42)) == ("a.b-1", 42)
    assert chunk_place("features.zarr/tokens/a/c/x") is None
    assert is_token_document(document_key("a"))
    assert is_token_document("features.zarr/tokens/zarr.json")
    assert is_token_document(codebook_key("a"))
    assert not is_token_document("codebooks/notes.txt")


def test_dedup(root):
    """Runs of equal tokens with their durations; every utterance has the frames it had."""
    store = pipeline.open_store(root)
    for position, n_frames in enumerate(LENGTHS):
        units, durations = store.tokens(position, dedup=True)
        expected = expected_tokens(store, position, n_frames)
        assert np.repeat(units.numpy(), durations.numpy()).tolist() == expected.tolist()
        assert len(units) == -(-n_frames // 3)


def test_views_and_other_processes(root):
    """Selections, reversed orders and pickled stores read the same tokens."""
    store = pipeline.open_store(root)
    view = store.select(speaker="speaker-1").take([1, 0])
    assert view.tokens(0).tolist() == store.tokens("utt-0004").tolist()
    assert view.tokens(-1).tolist() == store.tokens("utt-0001").tolist()
    copy = pickle.loads(pickle.dumps(view))
    assert copy.tokens("utt-0004").tolist() == store.tokens("utt-0004").tolist()


def test_a_store_without_tokens(tmp_path):
    """The error says how to make them."""
    clustered_store(tmp_path / "store")
    store = pipeline.open_store(tmp_path / "store")
    assert store.token_names == []
    with pytest.raises(StoreError, match="has no tokens; `strata tokenize .* layer=9 k=500` makes"):  # noqa: RUF043
        store.tokens(0)
    with pytest.raises(StoreError, match=r"no tokens 'x'; it has none"):
        store.tokens(0, "x")


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_flipped_byte_in_a_chunk(root):
    """`verify` finds it, and --repair removes the chunk, so that `tokenize` makes it again."""
    path = root / chunk_key(NAME, 0)
    whole = path.read_bytes()
    flip(path, 33)
    found = verify_store(root)
    assert not found.ok
    assert found.damaged_units == []
    assert [(item.name, item.key) for item in found.tokens] == [(NAME, chunk_key(NAME, 0))]
    done = strata("verify", str(root))
    assert done.returncode == 1
    assert ": features sound, TOKENS DAMAGED (1 problem)" in done.stdout
    done = strata("verify", str(root), "--repair", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["tokens"][0]["name"] == NAME
    assert not path.exists()
    assert verify_store(root).ok
    assert pipeline.tokenize(root, name=NAME).units_written == 1
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens: tokens.__setitem__(3, NO_TOKEN), "without a code from 0 to 4"),
        (lambda tokens: tokens.__setitem__(3, K), "without a code from 0 to 4"),
        (lambda tokens: tokens.__setitem__(255, 0), "tokens in frames without an utterance"),
    ],
)
def test_values_that_cannot_be(root, change, message):
    """Chunks with sound checksums and impossible values are damage, too."""
    path = root / chunk_key(NAME, 0)
    tokens = parse_chunk(path.read_bytes(), 256).copy()
    change(tokens)
    path.write_bytes(chunk_bytes(tokens))
    assert message in verify_store(root).tokens[0].problem


@pytest.mark.parametrize("codec", [DEFAULT_CODEC, INT8])
def test_a_chunk_in_the_place_of_another(tmp_path, codec):
    """Two chunks of equal lengths were exchanged: each has a right checksum, and wrong tokens."""
    clustered_store(tmp_path / "store", (250, 250), codec=codec)
    tokenized(tmp_path / "store")
    assert verify_store(tmp_path / "store").ok
    one, two = (tmp_path / "store" / chunk_key(NAME, slot) for slot in (0, 1))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    found = verify_store(tmp_path / "store").tokens
    assert [item.key for item in found] == [chunk_key(NAME, 0), chunk_key(NAME, 1)]
    assert "not the nearest" in found[0].problem
    repair_store(tmp_path / "store")
    tokenized(tmp_path / "store")
    assert one.read_bytes() == content


def test_a_damaged_document_is_written_anew(root):
    """From the codebook; readers refuse the damaged one."""
    path = root / document_key(NAME)
    whole = path.read_text()
    path.write_text(whole.replace('"layer": 2', '"layer": 3'))
    with pytest.raises(DamagedError, match="was changed or is damaged"):
        pipeline.open_store(root).tokens(0)
    assert verify_store(root).tokens[0].key == document_key(NAME)
    assert repair_store(root).tokens == (document_key(NAME),)
    assert path.read_text() == whole
    path.unlink()
    assert "is missing" in verify_store(root).tokens[0].problem
    repair_store(root)
    assert path.read_text() == whole


def test_a_lost_codebook(root):
    """Tokens stay readable; `verify` and `codebook` say that it is missing or another one."""
    path = root / codebook_key(NAME)
    content = path.read_bytes()
    other = Codebook.from_bytes(content, "")
    path.write_bytes(Codebook(other.centroids + 1, 2, None, 0, other.encoder, {}).to_bytes())
    assert "is not of the codebook" in verify_store(root).tokens[0].problem
    with pytest.raises(DamagedError, match="is not the codebook that tokens"):
        pipeline.open_store(root).codebook()
    path.unlink()
    assert "is missing; restore it" in verify_store(root).tokens[0].problem
    store = pipeline.open_store(root)
    assert len(store.tokens(0)) == LENGTHS[0]
    with pytest.raises(DamagedError, match="is missing; restore it"):
        store.codebook()
    path.write_bytes(content)
    assert verify_store(root).ok


def test_status_and_inspect_name_them(root):
    """With layer, k, and how many units have them."""
    (root / chunk_key(NAME, 1)).unlink()
    (count,) = read_status(root).tokens
    assert (count.name, count.layer, count.k, count.units, count.units_total) == (NAME, 2, 5, 2, 3)
    assert f"tokens {NAME}: layer 2, k=5, 2 of 3 units" in strata("status", str(root)).stdout
    facts = json.loads(strata("inspect", str(root), "--json").stdout)
    assert facts["tokens"][0]["units"] == 2


def test_drop_tokens(root):
    """`drop tokens=NAME` shows what goes, and removes array and codebook with confirm=true."""
    asked = strata("drop", str(root), f"tokens={NAME}")
    assert f"would be dropped: tokens {NAME} of 3 units" in asked.stdout
    assert pipeline.open_store(root).token_names == [NAME]
    done = strata("drop", str(root), f"tokens={NAME}", "confirm=true")
    assert done.returncode == 0, done.stderr
    assert not list((root / "features.zarr").glob("tokens/**/*.json"))
    assert not (root / codebook_key(NAME)).exists()
    assert pipeline.open_store(root).token_names == []
    assert verify_store(root).ok
    again = strata("drop", str(root), f"tokens={NAME}")
    assert again.returncode == 2
    assert "it has none" in again.stderr
    with pytest.raises(ConfigError, match="tokens= goes alone"):
        pipeline.drop(root, tokens=NAME, layers=[1])
    with pytest.raises(StoreNotFoundError):
        pipeline.drop(root / "x", tokens=NAME)


def test_dropped_utterances_leave_no_tokens(root):
    """Those of the others move with their unit; nothing is computed again."""
    before = {i: pipeline.open_store(root).tokens(i).tolist() for i in range(len(LENGTHS))}
    pipeline.drop(root, where="id in ('utt-0001', 'utt-0005', 'utt-0006')", confirm=True)
    store = pipeline.open_store(root)
    assert store.ids == ["utt-0000", "utt-0002", "utt-0003", "utt-0004"]
    for name in store.ids:
        assert store.tokens(name).tolist() == before[int(name[-1])]
    found = verify_store(root)
    assert found.ok
    assert found.orphans == ()
    assert pipeline.tokenize(root, name=NAME).units_written == 0
    kept = sorted(int(p.name) for p in (root / f"features.zarr/tokens/{NAME}/c").iterdir())
    assert kept == sorted(set(store.slots.tolist()))
    n_tokens = 0
    for slot in kept:
        tokens = parse_chunk((root / chunk_key(NAME, slot)).read_bytes(), 256)
        n_tokens += int((tokens != NO_TOKEN).sum())
    assert n_tokens == sum(LENGTHS[int(name[-1])] for name in store.ids)


def test_dropped_layers_leave_their_tokens(root):
    """Tokens of a dropped layer are readable; a unit that lacks them cannot get any."""
    pipeline.drop(root, layers=[LAYER], confirm=True)
    store = pipeline.open_store(root)
    assert store.tokens(0).tolist() == expected_tokens(store, 0, LENGTHS[0]).tolist()
    assert verify_store(root).ok
    assert pipeline.tokenize(root, name=NAME).units_written == 0
    (root / chunk_key(NAME, 1)).unlink()
    with pytest.raises(StoreError, match=r"no layers \[2\]"):
        pipeline.tokenize(root, name=NAME)
