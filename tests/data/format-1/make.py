"""Make the store of format version 1 that tests/store/test_format_1.py reads.

Run once, with the code of 0.1.0 before its rooms were rearranged; kept to show how the store came
about. It uses only the command line and the public names, so any later version runs it too.

    python tests/data/format-1/make.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

import pipeline

RATE_HZ = 16_000
SECONDS = [0.01, 0.9, 6.3, 0.4, 1.3, 0.0, 0.7, 2.2]
"""One shorter than a frame, one longer than a unit (cut into pieces), one empty (quarantined)."""
SETTINGS = [
    "model=tiny",
    "model.weights=random",
    "extract.layers=[0,6,12]",
    "extract.precision=fp32",
    "extract.max_window_s=3",
    "extract.context_s=0.5",
    "plan.frames_per_unit=256",
    "engine=inline",
    "engine.threads=1",
]


def write_clips(folder: Path) -> None:
    """Write one wav file per length, and metadata with a word, a speaker and a number."""
    folder.mkdir(parents=True)
    lines = ["file_name,word,speaker,score"]
    for i, seconds in enumerate(SECONDS):
        generator = np.random.default_rng(i)
        n_samples = round(seconds * RATE_HZ)
        tone = np.sin(np.arange(n_samples) * (0.02 + 0.01 * i))
        sound = 0.2 * tone + 0.02 * generator.standard_normal(n_samples)
        soundfile.write(folder / f"clip-{i}.wav", sound.astype(np.float32), RATE_HZ, "PCM_16")
        lines.append(f"clip-{i}.wav,word-{i % 3},speaker-{i % 2},{i / 4}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def hide_host(log: Path) -> None:
    """Replace this machine's name, which the run log states, by `host`."""
    log.write_text(log.read_text().replace(socket.gethostname(), "host"))


def describe(store: pipeline.FeatureStore) -> dict[str, dict[str, object]]:
    """SHA-256 of every utterance's features as stored, of its pooled means, and its shape."""
    pooled = store.pooled()
    found = {}
    for i, name in enumerate(store.ids):
        features = store.read(name)
        found[name] = {
            "shape": list(features.shape),
            "features": hashlib.sha256(features.numpy().tobytes()).hexdigest(),
            "pooled": hashlib.sha256(pooled[i].numpy().tobytes()).hexdigest(),
        }
    return found


def main(folder: Path) -> None:
    """Write `clips`, `store`, the hashes of what it holds, and the opened store as a pickle."""
    write_clips(folder / "clips")
    settings = ["dataset=audiofolder", "dataset.path=clips", *SETTINGS, "store=store"]
    strata = [sys.executable, "-m", "pipeline"]
    extract = [*strata, "extract", *settings, "run.max_quarantined=1"]
    subprocess.run(extract, check=True, cwd=folder)
    subprocess.run([*strata, "verify", "store"], check=True, cwd=folder)
    hide_host(folder / "store" / "log.jsonl")
    opened = pipeline.open_store(folder / "store")
    (folder / "expected.json").write_text(json.dumps(describe(opened), indent=1) + "\n")
    (folder / "opened.pickle").write_bytes(pickle.dumps(opened))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
