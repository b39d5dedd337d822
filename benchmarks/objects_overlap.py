"""`bench_objects --overlap`: whether uploads overlap with the encoder.

The same clips are extracted to a folder, and to a bucket behind a proxy that lets as many bytes
a second through as make the upload take as long as the encoder. With overlap the second run takes
about as long as the first, without it twice as long.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.config import load_config
from pipeline.extract import run
from pipeline.store.backend.base import Backend
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import FRAMES
from tests.helpers.corpus import write_folder

_CLIP_S, _FRAMES_PER_UNIT = 5.0, 768
_CLIPS_PER_UNIT = 3

Behind = Callable[[float, float], AbstractContextManager[None]]
"""Puts a proxy before the server: milliseconds of latency, bytes a second."""


def measure_overlap(
    folder: Path, uri: str, behind: Behind, n_units: int = 8, latency_ms: float = 80.0
) -> dict[str, float]:
    """Extract clips to a folder, upload its shards alone, and extract to the bucket.

    Args:
        folder: For the clips and the store.
        uri: A prefix in the bucket.
        behind: Puts the proxy before the server.
        n_units: Units of the store.
        latency_ms: Of each request.

    Returns:
        Seconds of each; `overlap` is the share of the shorter one of the encoder and the upload
        that passes while the other one is at work.
    """
    clips = write_folder(folder / "clips", [_CLIP_S] * (_CLIPS_PER_UNIT * n_units))
    extract(clips, str(folder / "warm"), 1)  # the first run of a process imports the model's code
    found = {"encode_s": seconds(lambda: extract(clips, str(folder / "store")))}
    local = LocalBackend(folder / "store")
    keys = sorted(local.list(FRAMES), key=lambda key: key.split("/")[::-1])
    shards = [key for key in keys if "/c/" in key]
    n_bytes = sum(local.size(key) for key in shards)
    bytes_per_s = n_bytes / found["encode_s"]
    with behind(latency_ms, bytes_per_s):
        remote = open_backend(f"{uri}-alone")
        found["upload_s"] = seconds(lambda: upload(local, remote, shards, len(shards) // n_units))
        found["both_s"] = seconds(lambda: extract(clips, f"{uri}-overlap"))
    shutil.rmtree(folder / "store")
    alone = found["encode_s"] + found["upload_s"]
    shorter = min(found["encode_s"], found["upload_s"])
    found["overlap"] = (alone - found["both_s"]) / shorter
    found["best_overlap"] = 1 - 1 / n_units  # the first unit is encoded before anything goes up
    print(
        f"overlap: {n_units} units, {n_bytes / 1e6:,.0f} MB at {bytes_per_s / 1e6:.1f} MB/s and "
        f"{latency_ms:g} ms: encode {found['encode_s']:.1f} s, upload {found['upload_s']:.1f} s, "
        f"both {found['both_s']:.1f} s; {found['overlap']:.2f} of the shorter one is hidden "
        f"(at best {found['best_overlap']:.2f})"
    )
    return found


def extract(clips: Path, store: str, limit: int | None = None) -> None:
    """Extract clips with HuBERT base and random weights, in this process."""
    given = [
        *("dataset=audiofolder", f"dataset.path={clips}", f"store={store}"),
        *("model=hubert_base", "model.weights=random", "engine=inline"),
        f"plan.frames_per_unit={_FRAMES_PER_UNIT}",
    ]
    run.extract(load_config([*given, *([f"dataset.limit={limit}"] if limit else [])]))


def upload(local: Backend, remote: Backend, keys: list[str], n_per_unit: int) -> None:
    """Publish objects, those of a unit together, as a run does."""
    for first in range(0, len(keys), n_per_unit):
        partials = []
        for key in keys[first : first + n_per_unit]:
            partials.append(remote.open_partial(key))
            partials[-1].write(local.read(key), 0)
        remote.publish(partials)


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s
