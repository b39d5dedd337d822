"""The examples of docs/training.md, run as they stand on a small real store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers.feature_stores import make_store

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGE.read_text(), re.S))


def spoken_digit(row, layer, n_frames, dim):
    """Noise with a direction for each digit, plain in layer 2 and faint in the others."""
    random = np.random.default_rng([row, layer])
    frames = random.standard_normal((n_frames, dim))
    frames[:, row % 4] += 4.0 if layer == 2 else 0.5
    return frames.astype(np.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the store `features`: 160 utterances, four digits, train and test."""
    path = tmp_path_factory.mktemp("examples")
    n = 160
    lengths = np.random.default_rng(0).integers(10, 60, n).tolist()
    columns = pa.table(
        {
            "digit": pa.array([i % 4 for i in range(n)], pa.int64()),
            "split": ["test" if i >= 120 else "train" for i in range(n)],
        }
    )
    make_store(
        path / "features",
        lengths,
        dim=16,
        frames_per_unit=1024,
        features=spoken_digit,
        columns=columns,
    )
    return path


def run(folder, name, *launcher):
    """Runs an example in a process of its own; returns what it prints."""
    (folder / f"train_{name}.py").write_text(EXAMPLES[name])
    done = subprocess.run(
        [sys.executable, *launcher, f"train_{name}.py"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run():
    """No example on the page goes untested."""
    assert set(EXAMPLES) == {"loop", "pooled", "lightning", "hf_trainer", "ddp", "collapse"}


def test_the_loop_learns(folder):
    """Thirty lines of PyTorch: the digits are told apart, and layer 2 gets the most weight."""
    out = run(folder, "loop")
    assert float(re.search(r"accuracy ([\d.]+)", out)[1]) > 0.9
    weights = [float(w) for w in re.search(r"weights \[(.*)\]", out)[1].split(",")]
    assert np.argmax(weights) == 1


def test_training_on_pooled_features_learns(folder):
    """The same on pooled means alone."""
    assert float(re.search(r"accuracy ([\d.]+)", run(folder, "pooled"))[1]) > 0.9


def test_lightning_takes_a_loader(folder):
    """Five epochs of a LightningModule bring the loss well below chance (1.39)."""
    out = run(folder, "lightning")
    assert "epochs 5" in out
    assert float(re.search(r"loss ([\d.]+)", out)[1]) < 1.0


def test_the_hugging_face_trainer_takes_a_dataset(folder):
    """Five epochs of transformers.Trainer bring the loss well below chance (1.39)."""
    assert float(re.search(r"loss ([\d.]+)\n$", run(folder, "hf_trainer"))[1]) < 1.0


def test_two_processes_train_together(folder):
    """Run by torchrun with gloo, both ranks end, with the same number of batches."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    out = run(folder, "ddp", *launcher)
    found = dict(re.findall(r"rank (\d): (\d+) batches", out))
    assert set(found) == {"0", "1"}
    assert found["0"] == found["1"]


def test_a_store_collapses(folder):
    """The average of the layers becomes a store of one."""
    assert "layers (-1,)" in run(folder, "collapse")
