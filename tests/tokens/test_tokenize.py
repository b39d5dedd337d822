"""`tokenize`: tokens of known stores, resuming, and what is refused."""

from __future__ import annotations

import io
import json
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from rich.console import Console

import pipeline
from pipeline.cli.tables import show_status
from pipeline.errors import (
    ConfigError,
    DamagedError,
    IdentityError,
    StoreError,
    StoreNotFoundError,
)
from pipeline.events import Observer
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.codecs import BFLOAT16, FLOAT32, INT8
from pipeline.store.format.tokens import NO_TOKEN, chunk_key, codebook_key, parse_chunk
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.tokens import count_tokens
from pipeline.store.maintain.verify import verify_store
from pipeline.tokens import assigning, training
from tests.helpers.fake_store import make_store as make_fake_store
from tests.helpers.feature_stores import commit_units, default_columns, make_store, noise
from tests.helpers.token_stores import (
    LAYER,
    LENGTHS,
    K,
    clustered,
    clustered_store,
    expected_tokens,
    tokenized,
)


class Notes(Observer):
    def __init__(self):
        self.lines, self.units = [], []

    def note(self, line):
        self.lines.append(line)

    def units_tokenized(self, done, total):
        self.units.append((done, total))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    clustered_store(tmp_path / "store")
    return tmp_path / "store"


def check_all(store, rows=None, name=None):
    for position, row in enumerate(rows or range(len(LENGTHS))):
        expected = expected_tokens(store, row, LENGTHS[row], name)
        assert store.tokens(position, name).tolist() == expected.tolist()


def chunks(root: Path, name=f"layer{LAYER}-k{K}") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (root / "features.zarr/tokens" / name / "c").iterdir()}


def test_every_frame_has_the_code_of_its_centre(root):
    """Every utterance has its tokens, the result counts them, and the store is sound."""
    result = tokenized(root)
    store = pipeline.open_store(root)
    check_all(store)
    assert (result.name, result.layer, result.k, result.seed) == ("layer2-k5", LAYER, K, 0)
    assert (result.frames, result.used_codes, result.trained) == (sum(LENGTHS), K, True)
    assert result.units == result.units_written == 3
    assert result.inertia == pytest.approx(8 * 0.01**2, rel=0.2)
    assert result.perplexity == pytest.approx(K, rel=0.01)
    assert store.token_names == ["layer2-k5"]
    assert verify_store(root).ok
    assert verify_store(root).orphans == ()


@pytest.mark.parametrize("codec", [INT8, FLOAT32, BFLOAT16])
def test_all_codecs(tmp_path, codec):
    """Frames are decoded as `read` does, whatever their codec."""
    clustered_store(tmp_path / "store", codec=codec)
    tokenized(tmp_path / "store")
    check_all(pipeline.open_store(tmp_path / "store"))


def test_a_long_utterance_in_pieces(tmp_path):
    """Tokens of pieces in several units are joined, in order."""
    clustered_store(tmp_path / "store", (300, 20, 40), pieces={0: 3}, frames_per_unit=256)
    tokenized(tmp_path / "store")
    store = pipeline.open_store(tmp_path / "store")
    assert len(store.pieces(0)) == 3
    assert store.tokens(0).tolist() == expected_tokens(store, 0, 300).tolist()


def test_any_zarr_reader_opens_them(root):
    """zarr-python and tensorstore read the same array, without a warning; rest is `no_token`."""
    tokenized(root)
    store = pipeline.open_store(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(root / "features.zarr", mode="r")
        array = group["tokens/layer2-k5"]
        values = array[:]
        assert sorted(group) == ["frames", "pooled", "tokens"]
    assert array.attrs["layer"] == LAYER
    assert array.attrs["no_token"] == NO_TOKEN == array.fill_value
    spec = {"driver": "zarr3", "kvstore": f"file://{root}/features.zarr/tokens/layer2-k5"}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), values)
    owner, slot, start, n = store.piece_places()
    rest = np.ones(len(values), bool)
    for position, first, count in zip(owner, slot * 256 + start, n, strict=True):
        assert values[first : first + count].tolist() == store.tokens(int(position)).tolist()
        rest[first : first + count] = False
    assert (values[rest] == NO_TOKEN).all()
    assert len(values) == zarr.open_array(root / "features.zarr/frames").shape[1]


def test_running_again_does_nothing_and_growth_only_what_is_new(tmp_path):
    """New units get tokens of the stored codebook; old chunks stay as they are."""
    plan = clustered_store(tmp_path / "store", units=[0, 1])
    first = tokenized(tmp_path / "store")
    before, book = chunks(tmp_path / "store"), (tmp_path / "store" / codebook_key(first.name))
    content = book.read_bytes()
    again = tokenized(tmp_path / "store")
    assert (again.units_written, again.trained, again.inertia) == (0, False, None)
    assert again.perplexity == first.perplexity
    layout = pipeline.open_store(tmp_path / "store")._layout
    columns = default_columns(len(LENGTHS))
    commit_units(tmp_path / "store", plan, layout, columns, clustered, units=[2])
    store = pipeline.open_store(tmp_path / "store")
    with pytest.raises(StoreError, match=r"no tokens 'layer2-k5' yet; `strata tokenize .* name="):
        store.tokens(6)
    notes = Notes()
    grown = pipeline.tokenize(tmp_path / "store", name="layer2-k5", observer=notes)
    assert (grown.units_written, grown.units, grown.trained) == (1, 3, False)
    assert notes.units == [(2, 3), (3, 3)]
    check_all(store)
    after = chunks(tmp_path / "store")
    assert book.read_bytes() == content
    assert {name: after[name] for name in before} == before


def test_a_unit_in_a_new_slot_is_done_again(tmp_path):
    """A unit that was extracted again has no tokens until `tokenize` runs; the old ones go."""
    fake = make_fake_store(tmp_path / "store", (300, 200, 400, 100))
    pipeline.tokenize(fake.root, 6, 3)
    store = pipeline.open_store(fake.root)
    before = [store.tokens(i).tolist() for i in range(4)]
    (fake.root / "index/unit-1.parquet").unlink()
    slot = fake.claim(1)
    assert fake.commit(1, slot).won
    store = pipeline.open_store(fake.root)
    with pytest.raises(StoreError, match="'utterance-2' has no tokens 'layer6-k3' yet"):
        store.tokens(2)
    assert pipeline.tokenize(fake.root, name="layer6-k3").units_written == 1
    store = pipeline.open_store(fake.root)
    assert [store.tokens(i).tolist() for i in range(4)] == before
    old = fake.root / chunk_key("layer6-k3", 1)
    assert old.exists()
    repaired = repair_store(fake.root)
    assert str(chunk_key("layer6-k3", 1)) in [orphan.path for orphan in repaired.removed]
    assert not old.exists()
    assert verify_store(fake.root).ok


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 1}, r"layer is 2 there, 1 here"),
        ({"seed": 4}, r"seed is 0 there, 4 here"),
        ({"k": 6}, r"k is 5 there, 6 here"),
        ({"where": "score > 0"}, r"where is None there, score > 0 here"),
        ({"sample_frames": 77}, r"sample_frames is \d+ there, 77 here"),
    ],
)
def test_other_settings_under_the_same_name_are_refused(root, change, message):
    """The difference is shown, and nothing changes."""
    tokenized(root, name="units")
    before = chunks(root, "units")
    with pytest.raises(IdentityError, match=message):
        pipeline.tokenize(root, **({"layer": LAYER, "k": K, "name": "units"} | change))
    assert chunks(root, "units") == before


def test_two_names_side_by_side(root):
    """Several tokens in one store: a name is needed then, and a wrong one has a hint."""
    tokenized(root)
    pipeline.tokenize(root, 1, 3, name="coarse")
    store = pipeline.open_store(root)
    assert store.token_names == ["coarse", "layer2-k5"]
    check_all(store, name="layer2-k5")
    assert store.codebook("coarse").k == 3
    with pytest.raises(StoreError, match="has tokens coarse, layer2-k5; say which"):
        store.tokens(0)
    with pytest.raises(StoreError, match="no tokens 'coarse-2'; did you mean coarse"):
        store.tokens(0, "coarse-2")
    with pytest.raises(StoreError, match="only in upper and lower case"):
        pipeline.tokenize(root, 1, 3, name="Coarse")


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "x" * 65, "zarr.json", "a b"])
def test_names_that_are_no_paths_are_refused(root, name):
    """A name becomes a folder: anything else is refused before something is written."""
    with pytest.raises(ConfigError, match="expected a name of tokens"):
        tokenized(root, name=name or " ")
    assert not (root / "codebooks").exists()


def test_where_restricts_only_the_training(root):
    """The codebook is trained on the selection; all utterances get tokens."""
    result = tokenized(root, where="speaker = 'speaker-0'")
    assert result.train_frames == LENGTHS[0] + LENGTHS[3] + LENGTHS[6]
    assert result.frames == sum(LENGTHS)
    assert pipeline.open_store(root).codebook().training["where"] == "speaker = 'speaker-0'"
    notes = Notes()
    where = "speaker in ('speaker-0', 'speaker-9')"
    tokenized(root, name="absent", where=where, observer=notes)
    assert any("WARNING" in line and "speaker-9" in line for line in notes.lines)
    with pytest.raises(StoreError, match="selects none of the 7 utterances"):
        tokenized(root, name="none", where="score > 1000")


def test_the_sample_is_bounded(root):
    """sample_frames= bounds the training, memory= the sample; the error says what fits."""
    result = tokenized(root, sample_frames=64)
    assert 48 <= result.train_frames <= 80
    with pytest.raises(ConfigError, match=r"memory=2,400 holds 100 frames"):
        tokenized(root, name="b", sample_frames=400, memory=2400)
    assert tokenized(root, name="c", memory=2400).train_frames <= 120
    with pytest.raises(ConfigError, match="k=5 needs at least as many"):
        tokenized(root, name="d", memory=100)


def test_all_frames_from_the_disk(root, monkeypatch):
    """sample_frames=all reads every frame, in bounded memory, and finds the same centres.

    The notes of the sample's training name the one on all frames, whose own name the assignment.
    """
    monkeypatch.setattr(training, "_NOTE_FROM_S", 0.0)
    notes = Notes()
    result = tokenized(root, sample_frames="all", memory=3000, observer=notes)
    assert result.train_frames == sum(LENGTHS)
    of_all = [line for line in notes.lines if f"k-means on {sum(LENGTHS)} frames" in line]
    assert of_all
    assert not any("then the training on all" in line for line in of_all)
    of_sample = [line for line in notes.lines if "then the training on all" in line]
    assert of_sample
    assert not any("to assign all frames" in line for line in of_sample)
    check_all(pipeline.open_store(root))


def test_a_codebook_of_another_store(tmp_path, root):
    """Its codes are used as they are; equal features get equal tokens."""
    result = tokenized(root)
    clustered_store(tmp_path / "other", LENGTHS[:4], codec=INT8)
    notes = Notes()
    applied = pipeline.tokenize(tmp_path / "other", codebook=result.codebook, observer=notes)
    assert (applied.trained, applied.name) == (False, "layer2-k5")
    assert applied.codebook_sha256 == result.codebook_sha256
    assert any("dtype is float16 there, int8 here" in line for line in notes.lines)
    check_all(pipeline.open_store(tmp_path / "other"), rows=range(4))
    again = Notes()
    pipeline.tokenize(tmp_path / "other", codebook=result.codebook, observer=again)
    assert not any("dtype" in line for line in again.lines)


def test_a_codebook_of_another_encoder_is_refused(tmp_path, root):
    """The error lists the differences; a changed or foreign file is refused, too."""
    result = tokenized(root)
    make_store(tmp_path / "wide", (50,), dim=16, features=clustered)
    with pytest.raises(IdentityError, match=r"other features .*: feature_dim is 8 there, 16 here"):
        pipeline.tokenize(tmp_path / "wide", codebook=result.codebook)
    assert not (tmp_path / "wide/codebooks").exists()
    raw = bytearray(Path(result.codebook).read_bytes())
    raw[-3] ^= 1
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(DamagedError, match="its sha256 differs"):
        pipeline.tokenize(root, codebook=tmp_path / "x.safetensors")
    with pytest.raises(DamagedError, match="is no codebook of `strata tokenize`"):
        pipeline.tokenize(root, codebook=root / "plan.parquet", name="y")
    with pytest.raises(ConfigError, match="there is no such file"):
        pipeline.tokenize(root, codebook=tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="seed= is for a training"):
        pipeline.tokenize(root, codebook=result.codebook, seed=3)
    with pytest.raises(IdentityError, match="k is 5 there, 7 here"):
        pipeline.tokenize(root, codebook=result.codebook, k=7)


def test_several_stores_get_one_codebook(tmp_path, root):
    """It is trained on both; a joined store reads the tokens of each."""
    clustered_store(tmp_path / "other", (33, 44), ids=["a", "b"])
    result = pipeline.tokenize([root, tmp_path / "other"], LAYER, K)
    assert result.frames == result.train_frames == sum(LENGTHS) + 77
    joined = pipeline.open_store([root, tmp_path / "other"])
    assert joined.token_names == ["layer2-k5"]
    check_all(joined)
    assert joined.tokens("b").tolist() == expected_tokens(joined, 1, 44).tolist()
    alone = pipeline.open_store(tmp_path / "other")
    assert alone.codebook().sha256 == joined.codebook().sha256
    pipeline.drop(tmp_path / "other", tokens="layer2-k5", confirm=True)
    tokenized(tmp_path / "other", seed=3)
    with pytest.raises(StoreError, match="of different codebooks"):
        pipeline.open_store([root, tmp_path / "other"]).tokens(0, "layer2-k5")


def test_two_processes_at_once(root):
    """Both succeed, with one codebook and equal chunks."""
    results, threads = [], []
    for _ in range(2):
        threads.append(threading.Thread(target=lambda: results.append(tokenized(root))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len({result.codebook_sha256 for result in results}) == 1
    assert len(results) == 2
    check_all(pipeline.open_store(root))
    assert verify_store(root).ok


def test_what_cannot_be_tokenized(tmp_path):
    """No frames, no such layer, no settings, too few frames, no store: each error names it."""
    make_store(tmp_path / "pooled", (20, 30), keep=("pooled",))
    with pytest.raises(StoreError, match="keeps no frames"):
        tokenized(tmp_path / "pooled")
    clustered_store(tmp_path / "store")
    with pytest.raises(StoreError, match=r"no layers \[9\]"):
        pipeline.tokenize(tmp_path / "store", 9, K)
    with pytest.raises(ConfigError, match="give the layer and the number of codes"):
        pipeline.tokenize(tmp_path / "store")
    with pytest.raises(ConfigError, match="no tokens 'x'; to make them, give the layer"):
        pipeline.tokenize(tmp_path / "store", name="x")
    with pytest.raises(ConfigError, match="k is 502, but there are only 501 frames"):
        pipeline.tokenize(tmp_path / "store", LAYER, 502)
    with pytest.raises(ConfigError, match="k is 65,536; expected 1 to 65,535"):
        pipeline.tokenize(tmp_path / "store", LAYER, 65_536)
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        pipeline.tokenize(tmp_path / "store", LAYER, K, device="tpu")
    with pytest.raises(StoreNotFoundError):
        pipeline.tokenize(tmp_path / "nothing", LAYER, K)


def test_a_frame_that_is_not_finite_names_its_utterance(tmp_path):
    """In the training, and in units that come later."""

    def broken(row, layer, n_frames, dim):
        values = clustered(row, layer, n_frames, dim).astype("f4")
        if row == 3:
            values[41, 2] = np.nan
        return values

    make_store(tmp_path / "store", LENGTHS, dim=8, features=broken, codec=FLOAT32)
    with pytest.raises(DamagedError, match=r"frame 41 of utterance 'utt-0003' .* is not finite"):
        tokenized(tmp_path / "store")
    with pytest.raises(DamagedError, match=r"frame 41 of utterance 'utt-0003' .* is not finite"):
        tokenized(tmp_path / "store", where="id != 'utt-0003'")


def test_damaged_frames_get_no_tokens(root):
    """Frames are compared with their checksums before they are assigned."""
    shard = root / "features.zarr/frames/c/1/1/0"
    raw = bytearray(shard.read_bytes())
    raw[1000] ^= 64
    shard.write_bytes(raw)
    with pytest.raises(DamagedError, match=r"layer 2 of utterance 'utt-000\d' has a wrong"):
        tokenized(root)
    assert set(chunks(root)) == {"0"}


def test_a_layer_by_name(tmp_path):
    """The codebook has its number, and the tokens are called after it if it is no block."""
    clips = [200, 100]
    make_store(tmp_path / "s", clips, (-1, 2))
    result = pipeline.tokenize(tmp_path / "s", "conv", 4)
    assert (result.name, result.layer) == ("conv-k4", -1)
    assert pipeline.tokenize(tmp_path / "s", "block_2", 4).name == "layer2-k4"
    counts = {item.name: item for item in count_tokens(open_backend(tmp_path / "s"))}
    assert (counts["conv-k4"].layer, counts["conv-k4"].layer_name) == (-1, "conv")
    out = io.StringIO()
    show_status(Console(file=out, width=100), read_status(tmp_path / "s"))
    assert "tokens conv-k4: layer conv, k=4" in out.getvalue()
    with pytest.raises(StoreError, match=r"no layers \[input\] in .*; it has \[conv, 2\]"):
        pipeline.tokenize(tmp_path / "s", "input", 4)
    with pytest.raises(ConfigError, match="layer= and weights= contradict"):
        pipeline.tokenize(tmp_path / "s", "conv", 4, weights=[1, 0])


def test_codebooks_of_sums_state_no_names_that_follow_from_numbers(root):
    """Those of earlier versions stay equal to the facts of their stores."""
    pipeline.tokenize(root, k=K, weights=[0, 1, 0], name="sum")
    assert "layer_names" not in pipeline.open_store(root).codebook("sum").encoder


def test_a_weighted_sum(root):
    """Tokens of a weighted sum of layers are those of the layer that alone has a weight."""
    pipeline.tokenize(root, k=K, weights=[0, 1, 0], name="sum")
    store = pipeline.open_store(root)
    check_all(store, name="sum")
    assert store.codebook("sum").layer is None
    with pytest.raises(StoreError, match="2 weights for the 3 layers"):
        pipeline.tokenize(root, k=K, weights=[0, 1], name="other")


def test_random_features_are_assigned_to_the_nearest_centroid(tmp_path):
    """Tokens of arbitrary features are the argmin over all centroids, computed in float64."""
    make_store(tmp_path / "store", LENGTHS, dim=8, features=noise)
    pipeline.tokenize(tmp_path / "store", 3, 16)
    store = pipeline.open_store(tmp_path / "store")
    centroids = store.codebook().centroids.astype("f8")
    for position in range(len(store)):
        frames = store.read(position, layers=[3])[0].double().numpy()
        exact = ((frames[:, None] - centroids[None]) ** 2).sum(2).argmin(1)
        assert store.tokens(position).tolist() == exact.tolist()


def test_a_chunk_is_what_the_format_says(root):
    """Little-endian uint16, then crc32c; a changed byte is an error that names the remedy."""
    tokenized(root)
    path = root / chunk_key("layer2-k5", 1)
    raw = path.read_bytes()
    assert len(raw) == 2 * 256 + 4
    assert (parse_chunk(raw, 256)[:17] < K).all()
    path.write_bytes(raw[:7] + bytes([raw[7] ^ 1]) + raw[8:])
    store = pipeline.open_store(root)
    bad = [i for i in range(len(store)) if store.slots[i] == 1]
    with pytest.raises(DamagedError, match="wrong checksum; `strata verify --repair`"):
        store.tokens(bad[0])
    notes = Notes()
    assert tokenized(root, observer=notes).units_written == 1
    assert any(line.startswith("WARNING") and "made again" in line for line in notes.lines)
    assert path.read_bytes() == raw


def test_facts_of_the_codebook(root):
    """The file is one of safetensors; its metadata says what it is, and is what tokens refer to."""
    from safetensors import safe_open

    result = tokenized(root)
    with safe_open(result.codebook, "np") as file:
        facts = json.loads(file.metadata()["codebook"])
        assert file.get_tensor("centroids").shape == (K, 8)
    assert (facts["layer"], facts["k"], facts["seed"]) == (LAYER, K, 0)
    assert facts["training"]["n_frames"] == sum(LENGTHS)
    document = json.loads((root / "features.zarr/tokens/layer2-k5/zarr.json").read_text())
    assert document["attributes"]["codebook_sha256"] == result.codebook_sha256
    assert document["attributes"]["encoder"] == facts["encoder"]


def test_a_collapsed_store_has_tokens_of_its_own(tmp_path, root):
    """Those of the layers are not copied, which a note says; a codebook of a layer is refused."""
    result = tokenized(root)
    notes = Notes()
    pipeline.collapse(root, tmp_path / "sum", [0, 1, 0], observer=notes)
    assert any("tokens layer2-k5 are of layers of" in line for line in notes.lines)
    with pytest.raises(IdentityError, match="collapse"):
        pipeline.tokenize(tmp_path / "sum", codebook=result.codebook)
    pipeline.tokenize(tmp_path / "sum", -1, K)
    check_all(pipeline.open_store(tmp_path / "sum"))


def test_a_unit_that_is_moved_meanwhile_keeps_no_tokens_behind(root, monkeypatch):
    """Utterances are dropped while their unit gets tokens: the old slot keeps none of them."""
    real, dropped = assigning.put_chunk, []

    def slow(backend, name, slot, tokens):
        if not dropped:
            dropped.append(slot)
            pipeline.drop(root, where="id = 'utt-0000'", confirm=True)
        real(backend, name, slot, tokens)

    monkeypatch.setattr(assigning, "put_chunk", slow)
    notes = Notes()
    result = tokenized(root, observer=notes)
    assert (result.units, result.units_written) == (2, 2)
    assert any("run again for it" in line for line in notes.lines)
    assert not (root / chunk_key(result.name, dropped[0])).exists()
    assert tokenized(root).units_written == 1
    check_all(pipeline.open_store(root), rows=range(1, len(LENGTHS)))
    found = verify_store(root)
    assert (found.ok, found.orphans) == (True, ())
