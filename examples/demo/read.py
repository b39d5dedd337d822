"""Read one layer and a weighted sum from the demo's store, and print size and speed.

    python examples/demo/read.py STORE

`scripts/demo` runs it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pipeline
from pipeline.store.maintain.status import read_status

if len(sys.argv) != 2:
    print("usage: read.py STORE", file=sys.stderr)
    sys.exit(2)
path = Path(sys.argv[1])
store = pipeline.open_store(path)
print(store)
name = store.ids[0]
layer = store.read(name, layers=[6])
mixed = store.weighted_sum(name, [1 / 12] * 12)
pooled = store.pooled()
print(f"utterance {name!r}, of word {store.class_names['word'][store.record(name)['word']]!r}")
print(f"  layer 6:       {tuple(layer.shape)} {layer.dtype}, {layer.nbytes:,} bytes read")
print(f"  weighted sum:  {tuple(mixed.shape)} {mixed.dtype}")
print(f"  pooled, all:   {tuple(pooled.shape)} {pooled.dtype}")
status = read_status(path)
n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
print(
    f"{status.audio_seconds:.0f} s of audio in {n_bytes / 1e6:.0f} MB on disk "
    f"({n_bytes / status.audio_seconds * 3600 / 1e9:.2f} GB per audio hour), "
    f"extracted at {status.realtime_factor:.1f}× real time"
)
