"""Tokens of copies: those of the sources, for every selection, size of units and join."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import pipeline
from pipeline.errors import ConfigError, DamagedError, StoreError
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.tokens import NO_TOKEN, chunk_key
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.verify import verify_store
from pipeline.store.tokens.stored import put_chunk, read_tokens
from pipeline.transforms.copy import CopySettings, copy_stores
from pipeline.transforms.copy import run as copy_run
from tests.helpers.observers import Notes
from tests.helpers.token_stores import LENGTHS, clustered_store, expected_tokens, tokenized

NAME = "layer2-k5"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store in several units, one utterance in two pieces, with tokens; tests only read it."""
    root = tmp_path_factory.mktemp("tokens") / "store"
    clustered_store(root, pieces={3: 2})
    tokenized(root)
    tokenized(root, name="other", seed=3)
    return root


def check(out, source, name=NAME):
    """Check that a copy is sound, and has the tokens of its source."""
    found = verify_store(out)
    assert (found.ok, found.tokens, found.orphans) == (True, (), ())
    copy, parent = pipeline.open_store(out), pipeline.open_store(source)
    copy.check_tokens(name)
    for utterance in copy.ids:
        assert copy.tokens(utterance, name).tolist() == parent.tokens(utterance, name).tolist()
    assert copy.codebook(name).sha256 == parent.codebook(name).sha256
    return copy


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"layers": [2]},
        {"layers": [1, 3]},
        {"where": "n_frames > 20 and n_frames < 200"},
        {"frames_per_unit": 256},
        {"keep": "pooled"},
    ],
    ids=str,
)
def test_a_copy_has_the_tokens_of_its_utterances(root, tmp_path, given):
    """Of all names, whatever the layers, utterances and units; without frames, too."""
    done = copy_stores(root, tmp_path / "out", CopySettings(**given))
    assert done.tokens == (NAME, "other")
    check(tmp_path / "out", root, "other")
    copy = check(tmp_path / "out", root)
    row = copy.ids.index("utt-0001")
    expected = expected_tokens(pipeline.open_store(root), 1, LENGTHS[1], NAME)
    assert copy.tokens(row, NAME).tolist() == expected.tolist()


def test_pieces_that_are_cut_keep_their_tokens(tmp_path):
    """An utterance that is longer than a unit of the copy."""
    clustered_store(tmp_path / "long", (700, 40, 300), frames_per_unit=1024)
    tokenized(tmp_path / "long")
    copy_stores(tmp_path / "long", tmp_path / "out", CopySettings(frames_per_unit=256))
    assert verify_store(tmp_path / "out").units_total > 3
    check(tmp_path / "out", tmp_path / "long")


@pytest.mark.parametrize(
    ("tokens", "names"),
    [
        ("none", ()),
        (["other"], ("other",)),
        (["other", "other"], ("other",)),
        (None, (NAME, "other")),
        ("all", (NAME, "other")),
    ],
)
def test_names_choose_the_tokens(root, tmp_path, tokens, names):
    """None, some, or all, which is the default."""
    done = copy_stores(root, tmp_path / "out", CopySettings(tokens=tokens))
    assert done.tokens == names
    assert tuple(pipeline.open_store(tmp_path / "out").token_names) == names
    assert sorted(path.stem for path in (tmp_path / "out").glob("codebooks/*")) == sorted(names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": "othr"}, "tokens: there are none called 'othr'; did you mean other"),
        (
            {"tokens": ["all", "other"]},
            r"tokens is \['all', 'other'\]; expected all, none, or names",
        ),
        ({"tokens": []}, r"tokens is \[\]; expected all, none, or names"),
        (
            {"tokens": NAME, "dtype": "int8"},
            f"tokens '{NAME}' cannot be copied: they are codes of float16 frames, and the copy has "
            "int8. Copy without; `strata tokenize .*/out codebook=.*` makes them for the copy",
        ),
    ],
)
def test_tokens_that_cannot_be_copied_are_refused_by_name(root, tmp_path, given, message):
    """Before anything is written."""
    with pytest.raises(ConfigError, match=message):
        copy_stores(root, tmp_path / "out", CopySettings(**given))
    assert list(tmp_path.iterdir()) == []


def test_another_dtype_leaves_tokens_out_with_the_remedy(root, tmp_path):
    """A note has the command, which makes the tokens of the copy."""
    notes = Notes()
    done = copy_stores(root, tmp_path / "out", CopySettings(dtype="int8"), notes)
    assert done.tokens == ()
    (line,) = [line for line in notes.lines if NAME in line]
    codebook = root / f"codebooks/{NAME}.safetensors"
    assert f"`strata tokenize {tmp_path / 'out'} codebook={codebook}` makes them" in line
    pipeline.tokenize(tmp_path / "out", codebook=codebook)
    assert pipeline.open_store(tmp_path / "out").token_names == [NAME]


def test_joined_stores_share_tokens_of_one_codebook(root, tmp_path):
    """Units whose sources lack tokens get none, which a note says, and `tokenize` completes them.

    Tokens of one name from different codebooks are left out.
    """
    clustered_store(tmp_path / "more", (50, 80))
    pipeline.tokenize(tmp_path / "more", codebook=root / f"codebooks/{NAME}.safetensors")
    tokenized(tmp_path / "more", name="own", seed=1)
    tokenized(tmp_path / "more", name="other", seed=7)
    notes, out = Notes(), tmp_path / "joined"
    one, two = pipeline.open_store(root), pipeline.open_store(tmp_path / "more")
    assert one.codebook("other").sha256 != two.codebook("other").sha256
    done = copy_stores([root, tmp_path / "more"], out, CopySettings(prefix=True), notes)
    assert done.tokens == (NAME, "own")
    (line,) = [line for line in notes.lines if "'other'" in line]
    assert "from different codebooks, so equal numbers mean different things" in line
    joined = pipeline.open_store(out)
    assert joined.tokens("store/utt-0003", NAME).tolist() == one.tokens(3, NAME).tolist()
    assert joined.tokens("more/utt-0001", NAME).tolist() == two.tokens(1, NAME).tolist()
    with pytest.raises(StoreError, match="has no tokens 'own' yet"):
        joined.tokens("store/utt-0000", "own")
    assert any("without tokens 'own', because sources lack some" in line for line in notes.lines)
    pipeline.tokenize(out, name="own")
    found = verify_store(out)
    assert (found.ok, found.tokens) == (True, ())
    assert pipeline.open_store(out).tokens("more/utt-0001", "own").tolist() == (
        two.tokens(1, "own").tolist()
    )


def test_tokens_come_before_the_copy_appears_and_later_with_the_same_command(
    root, tmp_path, monkeypatch
):
    """An interrupted copy goes on; a complete one without tokens gets them."""
    out = tmp_path / "out"

    def fail(*_):
        assert (tmp_path / "out.copying" / chunk_key(NAME, 0)).exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(copy_run, "publish", fail)
        with pytest.raises(KeyboardInterrupt):
            copy_stores(root, out)
    assert not out.exists()
    copy_stores(root, out)
    check(out, root)
    shutil.rmtree(out)
    copy_stores(root, out, CopySettings(tokens="none"))
    notes = Notes()
    assert copy_stores(root, out, observer=notes).tokens == (NAME, "other")
    n_units = verify_store(out).units_total
    assert n_units > 1
    assert f"{out} is complete already; {n_units} units of it got tokens" in notes.lines
    check(out, root)
    copy_stores(root, out, observer=notes)
    assert notes.lines[-1] == f"{out} is complete already; nothing to do"


def test_damaged_tokens_stop_a_copy(root, tmp_path):
    """With the file and the remedy; the copy does not appear, and none are needed with `none`."""
    shutil.copytree(root, tmp_path / "store")
    path = tmp_path / "store" / chunk_key(NAME, 0)
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match=r"wrong checksum; `strata verify --repair` removes it"):
        copy_stores(tmp_path / "store", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    copy_stores(tmp_path / "store", tmp_path / "out", CopySettings(tokens="none"))


@pytest.mark.parametrize(
    ("other", "problem"), [(None, "missing"), ("other", "not that of the tokens")]
)
def test_tokens_without_their_codebook_stop_a_copy(root, tmp_path, other, problem):
    """Nothing could be said about what their numbers mean."""
    shutil.copytree(root, tmp_path / "store")
    path = tmp_path / "store/codebooks" / f"{NAME}.safetensors"
    path.unlink()
    if other is not None:
        shutil.copy(path.with_stem(other), path)
    with pytest.raises(DamagedError, match=rf"{NAME}.safetensors is {problem}; restore it, or"):
        copy_stores(tmp_path / "store", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", [5, NO_TOKEN])
def test_frames_without_a_code_stop_a_copy(root, tmp_path, code):
    """With the id of the utterance: the checksum of such a chunk is right, but it has no code."""
    shutil.copytree(root, tmp_path / "store")
    backend = open_backend(tmp_path / "store")
    known = read_tokens(backend, NAME)
    (tmp_path / "store" / chunk_key(NAME, 0)).unlink()
    put_chunk(backend, NAME, 0, np.full(known.frames_per_unit, code, np.uint16))
    with pytest.raises(DamagedError, match=rf"tokens '{NAME}' lack a code of utterance 'utt-000"):
        copy_stores(tmp_path / "store", tmp_path / "out", CopySettings(tokens=NAME))
    assert not (tmp_path / "out").exists()


def test_names_that_differ_in_case_only_are_not_copied_together(root, tmp_path):
    """On many file systems they are one name; a note has the command that makes the second."""
    clustered_store(tmp_path / "more", (50, 80))
    pipeline.tokenize(
        tmp_path / "more", codebook=root / "codebooks/other.safetensors", name="Other"
    )
    notes = Notes()
    done = copy_stores(
        [root, tmp_path / "more"], tmp_path / "out", CopySettings(prefix=True), notes
    )
    assert done.tokens == ("Other", NAME)
    (line,) = [line for line in notes.lines if "upper and lower case" in line]
    assert line.startswith("tokens 'other' are not copied: the name differs from 'Other' only in ")


def test_revoked_units_of_a_copy_get_their_tokens_again(root, tmp_path):
    """In the slot of the new attempt."""
    out = tmp_path / "out"
    copy_stores(root, out)
    shard = next(path for path in (out / "features.zarr/frames/c/0").glob("*/0") if path.is_file())
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 255
    shard.write_bytes(raw)
    assert not verify_store(out).ok
    repair_store(out)
    copy_stores(root, out)
    check(out, root)


def test_a_copy_goes_to_a_bucket_and_back_with_its_tokens(root, s3, tmp_path):
    """Documents, codebooks and chunks."""
    copy_stores(root, f"{s3}/up")
    check(f"{s3}/up", root)
    copy_stores(f"{s3}/up", tmp_path / "down")
    check(tmp_path / "down", root)
    for path in sorted((root / "features.zarr/tokens").rglob("*")):
        if path.is_file():
            other = tmp_path / "down" / path.relative_to(root)
            assert np.array_equal(
                np.frombuffer(path.read_bytes(), np.uint8),
                np.frombuffer(other.read_bytes(), np.uint8),
            )
