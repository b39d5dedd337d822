"""Small finished sweeps of every kind of task."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pyarrow as pa

from pipeline.config import load_sweep_config
from pipeline.probing.results import Sweep
from pipeline.probing.run import sweep
from tests.helpers.feature_stores import make_store
from tests.helpers.planted_stores import planted

N = 60
WORDS = ("ab", "cd", "bad", "cab")
TASKS = {
    "utterance": ("ks", "labels=[word]"),
    "regression": ("regression", "labels=[score]"),
    "frames": ("asr", "labels=[word]"),
    "verification": ("sv", "labels=[speaker]"),
    "spans": ("word",),
    "framewise": ("frame",),
    "abx": ("abx", "task.context=any"),
}
"""Task and settings by kind."""
_UNTRAINED = ("verification", "abx")


def write_words(root: Path, *, order=None, seed: int = 0, strength=1.5, **settings) -> Path:
    """Write a store whose layer 2 shows the word of each utterance; return its path.

    Args:
        root: Folder of the store; `words.csv` beside it has each utterance as a span.
        order: Rows in the order of the store; None is ascending.
        seed: Seed of the features.
        strength: How clearly layer 2 shows the words.
        settings: Of `make_store`.
    """
    rows = list(range(N)) if order is None else list(order)
    table = {
        "word": [WORDS[row % 4] for row in rows],
        "score": [float(row % 4) + row % 3 / 10 for row in rows],
        "speaker": [f"s{row // 6}" for row in rows],
    }
    made = planted([row % 4 for row in range(N)], seed=seed, strength=strength)
    settings = {"layers": (1, 2), "dim": 16, "columns": pa.table(table)} | settings
    ids = [f"utt-{row:04d}" for row in rows]

    def features(at, layer, n_frames, dim):
        return made(rows[at], layer, n_frames, dim)

    make_store(root, [9] * len(rows), features=features, ids=ids, **settings)
    lines = [f"{name},0,1,{WORDS[row % 4]}\n" for name, row in zip(ids, rows, strict=True)]
    (root.parent / "words.csv").write_text("".join(["id,start,end,word\n", *lines]))
    return root


@cache
def quick_config(kind: str, spans: str | None, *overrides: str):
    """Return the settings of a quick sweep of a kind of task."""
    task, *more = TASKS[kind]
    trained = ["task.lrs=[1e-2]", "seeds=[0,1]", "task.steps=8", "task.eval_every=4"]
    more += [] if kind in _UNTRAINED else trained
    more += [f"spans={spans}"] if kind in ("spans", "framewise", "abx") else []
    ratios = "split.ratios=[0.4,0.3,0.3]"
    return load_sweep_config([f"task={task}", ratios, "split.speaker=speaker", *more, *overrides])


def finished_sweep(store: Path, kind: str, out: Path, *overrides: str) -> tuple[Sweep, Path]:
    """Run a quick sweep of a store that `write_words` has made."""
    spans = str(store.parent / "words.csv")
    free = ["split.speaker=none"] if kind == "frames" else []
    config = replace(quick_config(kind, spans, *free, *overrides), out=str(out))
    return sweep(store, config)
