"""Time the stacked training of a sweep's heads against training them one by one.

    OMP_NUM_THREADS=2 python benchmarks/bench_sweep.py [STORE task=ks ...] [--plain-heads 4]

Three ways to the same heads: all layers × learning rates × seeds stacked on pooled features, as
`strata sweep` does; one head at a time in a plain PyTorch loop on the same pooled features; and
running the encoder anew in every epoch. The first is measured, the second too on a few heads and
extrapolated by the steps that each head took. The third is extrapolated from the encoding of a few
seconds of noise with HuBERT base on this CPU, without reading audio and without training: once per
epoch of the longest head, for all heads together. Without a store the features are random, of the
shape of 3,000 short clips through a base model. On a machine with other load, compare the times of
the CPU. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

import pipeline
from pipeline.config import SweepConfig, load_sweep_config
from pipeline.heads.modules import PooledLinear, WeightedSum
from pipeline.probing.labels import Fold, classes_of, read_labels
from pipeline.probing.results import WEIGHTED, HeadResult, HeadSpec
from pipeline.probing.splits import make_split
from pipeline.probing.trainers.objectives import Classification
from pipeline.probing.trainers.pooled import PooledData, resolve_steps, train_pooled_heads

CPU = torch.device("cpu")
CLIPS, LAYERS, DIM, CLASSES, CLIP_S = 3_000, 12, 768, 10, 0.44


def random_data(config: SweepConfig) -> tuple[PooledData, float]:
    """Return features whose middle layers show the classes best, and their seconds of audio."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (1, CLIPS), generator=random)
    centres = torch.randn(CLASSES, DIM, generator=random)[labels[0]]
    pooled = torch.randn(LAYERS, CLIPS, DIM, generator=random)
    for axis in range(LAYERS):
        pooled[axis] += (0.11 - 0.01 * abs(axis - 6)) * centres
    at = np.arange(CLIPS)
    fold = Fold(at[at % 10 > 1], at[at % 10 == 1], at[at % 10 == 0])
    task = resolve_steps(config.task, len(fold.train))
    layers = tuple(range(1, LAYERS + 1))
    objectives = (Classification((CLASSES,)),)
    return PooledData(pooled, layers, labels, objectives, (fold,), task), CLIPS * CLIP_S


def data_of_store(path: str, config: SweepConfig) -> tuple[PooledData, float]:
    """Return the data of a sweep of a store, and its seconds of audio."""
    store = pipeline.open_store(path)
    labels = read_labels(store, config.task, config.labels)
    split = make_split(store, config.task, config.split, labels)
    classes = classes_of(labels)
    data = PooledData(
        pooled=store.pooled().transpose(0, 1).contiguous(),
        layers=store.layers,
        labels=torch.from_numpy(classes.numbers.T.copy()),
        objectives=(Classification(tuple(len(names) for names in classes.names)),),
        folds=split.folds,
        task=resolve_steps(config.task, len(split.folds[0].train)),
    )
    return data, float(store.frame_counts.sum()) / store.frame_rate_hz


def plain_ms(
    data: PooledData, weighted: bool, n_heads: int, n_steps: int = 100
) -> tuple[float, float]:
    """Milliseconds of a step of one head in a plain loop, mean over a few heads: wall and CPU."""
    fold, task = data.folds[0], data.task
    train = torch.from_numpy(fold.train)
    wall = cpu = 0.0
    for seed in range(n_heads):
        torch.manual_seed(seed)
        head = PooledLinear(data.shape.dim, data.shape.n_outputs, task.projection)
        mix = WeightedSum(len(data.layers))
        x = data.pooled.transpose(0, 1) if weighted else data.pooled[seed % LAYERS]
        model = nn.Sequential(mix, head) if weighted else head
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(n_steps + 5):
            if step == 5:
                began, worked = time.perf_counter(), time.process_time()
            rows = train[torch.randint(0, len(train), (task.batch,))]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), data.labels[0, rows]).backward()
            optimizer.step()
        wall += time.perf_counter() - began
        cpu += time.process_time() - worked
    return wall / (n_heads * n_steps) * 1e3, cpu / (n_heads * n_steps) * 1e3


def encoder_s(audio_s: float = 12.0) -> tuple[float, float]:
    """Seconds in which HuBERT base encodes a second of audio, lowest of three: wall and CPU."""
    encoder = pipeline.load_encoder("hubert_base", weights="random")
    clips = list(torch.randn(int(audio_s / 2), 32_000))
    encoder(clips[:1])
    walls, cpus = [], []
    for _ in range(3):
        began, worked = time.perf_counter(), time.process_time()
        encoder(clips)
        walls.append((time.perf_counter() - began) / audio_s)
        cpus.append((time.process_time() - worked) / audio_s)
    return min(walls), min(cpus)


def steps_of(heads: Sequence[HeadResult], weighted: bool) -> int:
    """Steps that these heads took together."""
    return sum(head.curve[-1][0] for head in heads if (head.layer == WEIGHTED) == weighted)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", nargs="?")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--plain-heads", type=int, default=4)
    options = parser.parse_args()
    config = load_sweep_config(options.overrides or ["task=ks"])
    if options.store:
        data, audio_s = data_of_store(options.store, config)
    else:
        data, audio_s = random_data(config)
    specs = [
        HeadSpec(layer, lr, seed, 0)
        for layer in (*data.layers, WEIGHTED)
        for lr in config.task.lrs
        for seed in config.seeds
    ]
    began, worked = time.perf_counter(), time.process_time()
    heads = train_pooled_heads(data, specs, CPU)
    stacked_s, stacked_cpu_s = time.perf_counter() - began, time.process_time() - worked
    n_threads, single = torch.get_num_threads(), []
    for n in (n_threads, 1):
        torch.set_num_threads(n)
        found = [plain_ms(data, weighted, options.plain_heads) for weighted in (False, True)]
        steps = [steps_of(heads, weighted) for weighted in (False, True)]
        single.append(np.dot(steps, found) / 1e3)  # wall, CPU
    torch.set_num_threads(n_threads)
    (single_s, _), (_, single_cpu_s) = single
    n_train = len(data.folds[0].train)
    longest = max(head.curve[-1][0] for head in heads)
    epochs = longest * min(data.task.batch, n_train) / n_train
    epoch_s, epoch_cpu_s = (audio_s * factor for factor in encoder_s())
    rows = {
        "heads": len(heads),
        "threads": n_threads,
        "steps of all heads": sum(head.curve[-1][0] for head in heads),
        "stacked, s": stacked_s,
        "stacked, s of CPU": stacked_cpu_s,
        "one head at a time, s": float(single_s),
        "one head at a time, 1 thread, s of CPU": float(single_cpu_s),
        "one at a time / stacked": float(single_s) / stacked_s,
        "one at a time / stacked, of CPU": float(single_cpu_s) / stacked_cpu_s,
        "one epoch through the encoder, s": epoch_s,
        f"{epochs:.0f} epochs through the encoder, s": epochs * epoch_s,
        "encoder / stacked": epochs * epoch_s / stacked_s,
        "encoder / stacked, of CPU": epochs * epoch_cpu_s / stacked_cpu_s,
    }
    for name, value in rows.items():
        print(f"{name:40s} {value:12,.2f}")
    names = ("heads", "threads", "head_steps", "stacked_s", "stacked_cpu_s", "one_at_a_time_s")
    names += ("one_at_a_time_cpu_s", "ratio", "cpu_ratio", "encoder_epoch_s", "encoder_epochs_s")
    names += ("encoder_ratio", "encoder_cpu_ratio")
    print(json.dumps({"bench": "sweep", **dict(zip(names, rows.values(), strict=True))}))


if __name__ == "__main__":
    main()
