"""`strata fidelity` as a user runs it."""

from __future__ import annotations

import json

import pytest

from pipeline.store.format.codecs import FLOAT32, INT8
from tests.helpers.commands import strata
from tests.helpers.corpus import write_folder
from tests.helpers.extraction import INLINE, extract
from tests.helpers.feature_stores import make_store
from tests.helpers.planted_stores import write_planted

QUICK = ["task=ks", "split.speaker=none", "seeds=[0]", "task.lrs=[1e-2]", "task.steps=40"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """float32 and int8 stores with labels, and one that keeps statistics only."""
    root = tmp_path_factory.mktemp("stores")
    write_planted(root / "float32", codec=FLOAT32)
    write_planted(root / "int8", codec=INT8)
    write_planted(root / "pooled", codec=INT8, keep=("pooled",))
    return root


def test_a_sample_is_encoded_again(tmp_path):
    """Settings of the extraction name dataset and model; those of workers do not matter."""
    folder = write_folder(tmp_path / "clips", [0.5, 0.6, 0.4])
    extract(folder, tmp_path / "store", "extract.dtype=int8", *INLINE)
    settings = ["dataset=audiofolder", f"dataset.path={folder}", "model=tiny"]
    more = ["engine=ray", "engine.workers=8", "engine.threads=1", "n_utterances=2", "layers=[1,12]"]
    done = strata("fidelity", tmp_path / "store", *settings, *more, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["dtype"], document["n_utterances"], document["sweep"]) == ("int8", 2, None)
    assert [layer["layer"] for layer in document["layers"]] == [1, 12]
    assert all(38 < layer["snr_lowest_db"] < 50 for layer in document["layers"])
    assert document["verdict"].startswith("int8: above 35 dB in every layer (lowest utterance: ")
    assert document["verdict"] in " ".join(done.stderr.split())
    assert "WARNING: the encoder's weights are RANDOM" in " ".join(done.stderr.split())
    assert "2 utterances to compare" in done.stderr


def test_another_store_and_a_task(stores):
    """--against compares with a store; a task adds scores, their difference and its test."""
    done = strata("fidelity", stores / "int8", "--against", stores / "float32", *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [layer["layer"] for layer in document["layers"]] == [1, 2, 3]
    sweep = document["sweep"]
    assert [item["layer"] for item in sweep["candidates"]] == [1, 2, 3, "weighted"]
    assert sweep["mean"].keys() >= {"reference", "stored", "difference", "low", "high", "p_value"}
    assert sweep["noticed"] is False
    assert document["verdict"].startswith("int8 loses nothing that a probe of this data notices")
    assert "8 heads trained" in done.stderr
    assert not list(stores.glob("**/sweep.json"))


def test_the_answer_is_on_stdout(stores):
    """Without --json a table, the scores and the verdict; layers= chooses for both."""
    other = ["--against", stores / "float32"]
    done = strata("fidelity", stores / "int8", *other, *QUICK, "layers=[2]", "n_utterances=7")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("int8 against float32 values of")
    assert [len(line.split()) for line in lines if line.split()[:1] == ["2"]] == [7, 9]
    assert not any(line.split()[:1] == ["3"] for line in lines)
    assert "int8 loses nothing that a probe of this data notices" in " ".join(done.stdout.split())
    assert "7 utterances compared" in done.stderr


def test_layers_without_loss_are_exact(stores, tmp_path):
    """Equal values have no ratio: the table says exact, and the object null."""
    write_planted(tmp_path / "same", codec=FLOAT32)
    done = strata("fidelity", tmp_path / "same", "--against", stores / "float32", "--json")
    document = json.loads(done.stdout)
    assert document["layers"][0]["snr_db"] is None
    assert document["verdict"].startswith("float32: no difference in any layer")
    assert "exact" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["int8"], 2, "nothing to compare with: give the dataset= and model= settings"),
        (["int8", "dataset.path=clips", "task=ks"], 2, "task=ks needs reference features of all"),
        (["int8", "store=x", "model=tiny"], 2, "leave store= out"),
        (["int8", "float32"], 2, "fidelity measures one store, and 'float32' is no setting"),
        (["int8", "--against", "float32", "layers=[]"], 2, "layers=[] names no layers"),
        (["int8", "model=tniy"], 2, "no model is called 'tniy'"),
        (["int8", "--against", "float32", "model=tiny"], 2, "model=tiny is a setting of an extr"),
        (["int8", "--against", "float32", "seeds=[1]"], 2, "no task is given"),
        (["int8", "--against", "float32", "task=ks", "out=x"], 2, "fidelity writes no files"),
        (["int8", "--against", "float32", "n_utterances=0"], 2, "n_utterances is 0"),
        (["int8", "--against", "float32", "layers=[9]"], 2, "no layers [9] in the common part of"),
        (["int8", "--against", "float32", "task=er"], 2, "looks for one of the columns"),
        (["int8", "--against", "int8"], 2, "is the store itself"),
        (["int8", "--against", "nowhere"], 1, "nowhere"),
        (["pooled", "--against", "float32"], 1, "keeps no frames to compare"),
        (["pooled", "dataset.path=clips"], 1, "keeps no frames to compare"),
        (["int8", "--against", "pooled"], 1, "keeps no frames to compare"),
    ],
)
def test_refusals(stores, monkeypatch, arguments, code, message):
    """One line that names the setting or the store, and the remedy."""
    monkeypatch.chdir(stores)
    done = strata("fidelity", *arguments)
    assert done.returncode == code
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_what_is_left_out_is_shown(tmp_path):
    """Utterances of one store alone are counted in a note."""
    make_store(tmp_path / "a", [6] * 3, codec=INT8)
    make_store(tmp_path / "b", [6] * 2, codec=FLOAT32)
    done = strata("fidelity", tmp_path / "a", "--against", tmp_path / "b")
    assert "left out: 1 utterance of" in " ".join(done.stderr.split())
