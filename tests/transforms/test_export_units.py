"""`export format=units`: one line per utterance, all of them or none."""

from __future__ import annotations

import json

import pytest

import pipeline
from pipeline.errors import ConfigError, StoreError
from pipeline.store.format.tokens import chunk_key
from tests.helpers.commands import strata
from tests.helpers.token_stores import LENGTHS, clustered_store, tokenized

NAME = "layer2-k5"


@pytest.fixture
def root(tmp_path):
    clustered_store(tmp_path / "store")
    tokenized(tmp_path / "store")
    return tmp_path / "store"


def read(path):
    """Read a file of units as fairseq's tools do: the id, a bar, and numbers."""
    lines = [line.rstrip("\n").split("|") for line in path.open()]
    return {name: [int(unit) for unit in units.split()] for name, units in lines}


@pytest.mark.parametrize("dedup", [False, True])
def test_lines(root, dedup):
    """Each utterance has its line, in order; dedup writes runs once."""
    out = root.parent / "units.txt"
    args = [f"dedup={str(dedup).lower()}", "--json"]
    done = strata("export", str(root), str(out), "format=units", *args)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["utterances"], answer["bytes"]) == (len(LENGTHS), out.stat().st_size)
    store, found = pipeline.open_store(root), read(out)
    assert list(found) == store.ids
    for name in store.ids:
        expected = store.tokens(name, dedup=True)[0] if dedup else store.tokens(name)
        assert found[name] == expected.tolist()


def test_a_selection_and_a_name(root):
    """where= chooses utterances; with several tokens a name is needed."""
    pipeline.tokenize(root, 1, 3, name="coarse")
    out = str(root.parent / "some.txt")
    with pytest.raises(StoreError, match="say which"):
        pipeline.export(root, out, "units")
    where = "speaker = 'speaker-1'"
    pipeline.export(root, out, "units", tokens="coarse", where=where)
    store = pipeline.open_store(root).select(where)
    assert read(root.parent / "some.txt") == {
        name: store.tokens(name, "coarse").tolist() for name in store.ids
    }


def test_all_or_nothing(root):
    """A missing token, an id that the form cannot hold, a path that is taken: no file."""
    folder = root.parent / "out"
    folder.mkdir()
    for wrong in (f"{folder}/", str(root)):
        with pytest.raises(ConfigError, match="OUT is .*; expected the path of a"):  # noqa: RUF043
            pipeline.export(root, wrong, "units")
    clustered_store(root.parent / "bars", (40, 30), ids=["a", "b|c"])
    tokenized(root.parent / "bars")
    with pytest.raises(ConfigError, match=r"the id 'b\|c' has '\|'"):
        pipeline.export(root.parent / "bars", f"{folder}/bars.txt", "units")
    pipeline.export(root.parent / "bars", f"{folder}/a.txt", "units", where="id = 'a'")
    with pytest.raises(ConfigError, match="there is something already"):
        pipeline.export(root.parent / "bars", f"{folder}/a.txt", "units", where="id = 'a'")
    (root / chunk_key(NAME, 1)).unlink()
    with pytest.raises(StoreError, match="has no tokens 'layer2-k5' yet"):
        pipeline.export(root, f"{folder}/units.txt", "units")
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_settings_of_features_are_refused(root):
    """And settings of units for other formats."""
    with pytest.raises(ConfigError, match="layers, pooled cannot be set for format=units"):
        pipeline.export(root, "x.txt", "units", layers=[1], pooled=True)
    with pytest.raises(ConfigError, match="tokens and dedup are for format=units"):
        pipeline.export(root, "x", "npy", dedup=True)
    pipeline.drop(root, tokens=NAME, confirm=True)
    done = strata("export", str(root), "x.txt", "format=units")
    assert done.returncode == 1
    assert "has no tokens; `strata tokenize" in done.stderr
