"""Time the training steps of heads that read frames, one head in one thread.

    OMP_NUM_THREADS=1 python benchmarks/bench_heads.py [--rounds 5] [--large]

The store has random features of the shape of a base model (12 layers, 768 features, float16). A
step is one batch of the recipe: 128 clips of one second for `attentive`, 8,000 frames of utterances
of 10 seconds for the CTC heads. It includes the reading of the frames, from the page cache. Kinds
take turns, round after round. Prints a table of medians of the CPU time, with that of a whole head,
and one JSON line; the memory is the estimate that `memory=` is compared with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from synthetic_store import warm, write_store

import pipeline
from pipeline.config import TaskConfig, load_sweep_config
from pipeline.probing.labels import Fold
from pipeline.probing.results import WEIGHTED, HeadSpec
from pipeline.probing.trainers import sequences
from pipeline.probing.trainers.frame_data import prepare_transcripts
from pipeline.probing.trainers.frame_lessons import TranscriptLesson
from pipeline.probing.trainers.objectives import Classification
from pipeline.probing.trainers.sequence_data import Lesson, SequenceData, UtteranceLesson

CLIPS, CLIP_FRAMES, UTTERANCES, UTTERANCE_FRAMES = 300, 50, 80, 500
SYMBOLS_PER_UTTERANCE = 140
KINDS = {
    "attentive": ("ks", []),
    "mlp, CTC": ("asr", ["task.head=mlp"]),
    "lstm 256, CTC": ("asr", ["task.head=lstm"]),
    "lstm 1024, CTC": ("asr", ["task.head=lstm", "task.units=1024", "task.projection=1024"]),
}
LAYERS = tuple(range(1, 13))


def fold_of(n: int) -> Fold:
    """Return a fold whose dev and test are the first utterances."""
    return Fold(np.arange(2, n), np.arange(1), np.arange(1, 2))


def lesson_of(store: pipeline.FeatureStore, task: TaskConfig) -> Lesson:
    """Return random labels: classes, or transcripts."""
    n, random = len(store), np.random.default_rng(0)
    if task.kind == "utterance":
        labels = torch.from_numpy(random.integers(0, 10, (1, n)))
        objective = Classification((10,))
        return UtteranceLesson(labels, objective, fold_of(n), task.batch, store.frame_counts)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz '"))
    texts = ["".join(random.choice(letters, SYMBOLS_PER_UTTERANCE)).strip() for _ in range(n)]
    return TranscriptLesson(store, task, prepare_transcripts(store, task, fold_of(n), texts))


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="LSTMs of 1024 units, too")
    given = parser.parse_args()
    rounds = given.rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, n, frames in (
            ("ks", CLIPS, CLIP_FRAMES),
            ("asr", UTTERANCES, UTTERANCE_FRAMES),
        ):
            write_store(Path(folder) / name, np.full(n, frames, np.int64))
            warm(Path(folder) / name)
        groups, seconds, sizes, steps = {}, {}, {}, {}
        for kind, (name, settings) in KINDS.items():
            if "1024" in kind and not given.large:
                continue
            store = pipeline.open_store(Path(folder) / name)
            head = settings or [f"task.head={kind}"]
            task = load_sweep_config([f"task={name}", *head]).task
            task = replace(task, steps=task.steps or 640)
            lesson = lesson_of(store, task)
            data = SequenceData(store, LAYERS, task, (lesson,), torch.device("cpu"), 1 << 33)
            for layer in (9, WEIGHTED):
                spec = HeadSpec(layer, 1e-3, 0, 0)
                n_per_part, n_bytes = sequences._frames_per_part(data, [spec])
                key = (kind, str(layer))
                groups[key] = (sequences._Group(data, [spec], n_per_part), lesson.order(0))
                seconds[key], sizes[key], steps[key] = [], n_bytes, task.steps
        for number in range(rounds + 1):
            for key, (group, order) in groups.items():
                positions = next(order)
                start_s = time.process_time()
                group.step(group.heads, positions)
                if number:  # the first one takes longer
                    seconds[key].append(time.process_time() - start_s)
    rows = {key: statistics.median(times) for key, times in seconds.items()}
    print(f"{'head':16}{'layer':>10}{'step':>10}{'steps':>8}{'whole head':>12}{'memory':>10}")
    for (kind, layer), step_s in rows.items():
        whole_min = step_s * steps[kind, layer] / 60
        print(
            f"{kind:16}{layer:>10}{step_s * 1000:>7.0f} ms{steps[kind, layer]:>8,}"
            f"{whole_min:>8.1f} min{sizes[kind, layer] / 1e6:>7.0f} MB"
        )
    print(json.dumps({f"{kind}, layer {layer}": step_s for (kind, layer), step_s in rows.items()}))


if __name__ == "__main__":
    main()
