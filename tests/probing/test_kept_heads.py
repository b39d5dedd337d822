"""The trained heads that a sweep writes: one per candidate, the best by dev."""

from __future__ import annotations

import shutil

import pytest

from pipeline.config import load_sweep_config
from pipeline.heads.trained import TrainedHead
from pipeline.probing.run import sweep
from tests.helpers.observers import Notes
from tests.helpers.planted_stores import write_planted

QUICK = ["task.steps=20", "task.eval_every=10", "split.speaker=none"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("kept") / "store"
    write_planted(root)
    return root


def run(store, out, *settings):
    """Sweep the words; return the results, the notes and the bytes of the heads by name."""
    notes = Notes()
    words = ["task=ks", f"out={out}", *QUICK, *settings]
    result, folder = sweep(store, load_sweep_config(words), notes)
    heads = {path.name: path.read_bytes() for path in (folder / "trained").iterdir()}
    return result, notes.lines, heads, folder


def test_each_candidate_has_its_best_head_by_dev(store, tmp_path):
    """Of its chosen learning rate; of equal ones that of the first seed."""
    result, _, heads, folder = run(store, tmp_path / "out", "task.lrs=[1e-2,1e-4]", "seeds=[0,1]")
    assert heads.keys() == {f"layer-{i}.safetensors" for i in (1, 2, 3)} | {"weighted.safetensors"}
    for score in result.scores:
        name = "weighted" if score.layer == "weighted" else f"layer-{score.layer}"
        facts = TrainedHead.load(folder / "trained" / f"{name}.safetensors").facts
        chosen = [h for h in result.heads if (h.layer, h.lr) == (score.layer, score.lr)]
        best = min(chosen, key=lambda head: (-head.dev, head.seed))
        assert (facts.layer, facts.lr, facts.seed) == (best.layer, best.lr, best.seed)
        assert (facts.dev, facts.test) == (best.dev, best.test)


def test_equal_sweeps_write_equal_bytes(store, tmp_path):
    """From the cache, anew in another folder, and after the files are lost, which is noted."""
    settings = ("task.lrs=[1e-2]", "seeds=[0,1]")
    _, notes, heads, folder = run(store, tmp_path / "a", *settings)
    assert notes == []
    again, notes, same, _ = run(store, tmp_path / "a", *settings)
    assert (again.trained, notes, same) == (0, [], heads)
    shutil.rmtree(folder / "trained")
    (folder / "trained").mkdir()
    again, notes, same, _ = run(store, tmp_path / "a", *settings)
    assert (again.trained, same) == (0, heads)
    assert len(notes) == 1
    assert "4 heads of earlier runs, whose parameters were not kept: trained again" in notes[0]
    (folder / "trained" / "layer-2.safetensors").write_bytes(b"damaged")
    _, notes, same, _ = run(store, tmp_path / "a", *settings)
    assert same == heads
    assert notes[0].startswith("1 head of earlier runs")
    assert run(store, tmp_path / "b", *settings)[2] == heads


def test_a_sweep_of_more_layers_takes_the_heads_of_the_first(store, tmp_path):
    """Heads that it shares with the sweep in the folder without a number are not trained again."""
    settings = ("task.lrs=[1e-2]", "seeds=[0]", "weighted=false")
    _, _, heads, folder = run(store, tmp_path / "out", *settings, "layers=[1,3]")
    result, notes, more, second = run(store, tmp_path / "out", *settings)
    assert (result.trained, second.name) == (1, "out-2")
    assert not any("trained again" in note for note in notes)
    assert more.keys() == heads.keys() | {"layer-2.safetensors"}
    assert {name: more[name] for name in heads} == heads
    shutil.rmtree(second)
    (folder / "trained/layer-3.safetensors").write_bytes(b"damaged")
    assert any("2 heads of earlier" in note for note in run(store, tmp_path / "out", *settings)[1])


def test_heads_of_other_candidates_are_removed(store, tmp_path):
    """The folder has the heads of the sweep that it has the results of."""
    _, _, heads, folder = run(store, tmp_path / "out", "task.lrs=[1e-2]", "seeds=[0]", "layers=[2]")
    assert set(heads) == {"layer-2.safetensors"}
    shutil.copy(folder / "trained/layer-2.safetensors", folder / "trained/layer-9.safetensors")
    assert run(store, tmp_path / "out", "task.lrs=[1e-2]", "seeds=[0]", "layers=[2]")[2] == heads
