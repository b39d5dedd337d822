"""`bench_objects --overlap`: whether uploads overlap with the encoder.

The same clips are extracted to a folder, and to a bucket behind a proxy that lets as many bytes
a second through as make the upload take as long as the encoder. With overlap the second run takes
about as long as the first, without it twice as long. The encoder waits as for a GPU, and returns
noise in the shapes of HuBERT base, so that other work on the machine changes little.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

from benchmarks.noise_encoder import register_noise
from pipeline.config import load_config
from pipeline.extract import run
from pipeline.store.backend.base import Backend
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import FRAMES, LOG
from tests.helpers.corpus import write_folder

_CLIP_S, _CLIPS_PER_UNIT, _FRAMES_PER_UNIT = 5.0, 3, 768
_UNIT_S = 4.0
"""What the encoder takes for a unit."""

Behind = Callable[[float, float], AbstractContextManager[None]]
"""Puts a proxy before the server: milliseconds of latency, bytes a second."""


def measure_overlap(
    folder: Path, uri: str, behind: Behind, n_units: int = 5, latency_ms: float = 80.0
) -> dict[str, float]:
    """Extract clips to a folder, upload its shards alone, and extract to the bucket.

    Args:
        folder: For the clips and the store.
        uri: A prefix in the bucket.
        behind: Puts the proxy before the server.
        n_units: Units of the store.
        latency_ms: Of each request.

    Returns:
        Seconds of each for a unit, from one commit to the next; `overlap` is the share of the
        shorter one of the encoder and the upload that passes while the other one is at work.
    """
    register_noise(_UNIT_S / _FRAMES_PER_UNIT)
    clips = write_folder(folder / "clips", [_CLIP_S] * (_CLIPS_PER_UNIT * n_units))
    extract(clips, str(folder / "warm"), 1)  # the first run of a process imports the model's code
    extract(clips, str(folder / "store"))
    local = LocalBackend(folder / "store")
    found = {"encode_s": between_commits(local)}
    keys = sorted(local.list(FRAMES), key=lambda key: key.split("/")[::-1])
    shards = [key for key in keys if "/c/" in key]
    n_bytes = sum(local.size(key) for key in shards)
    bytes_per_s = n_bytes / n_units / found["encode_s"]
    with behind(latency_ms, bytes_per_s):
        remote = open_backend(f"{uri}-alone")
        n_per_unit = len(shards) // n_units
        uploaded_s = seconds(lambda: upload(local, remote, shards, n_per_unit))
        found["upload_s"] = uploaded_s / n_units
        extract(clips, f"{uri}-overlap")
        found["both_s"] = between_commits(open_backend(f"{uri}-overlap"))
    shutil.rmtree(folder / "store")
    alone = found["encode_s"] + found["upload_s"]
    shorter = min(found["encode_s"], found["upload_s"])
    found["overlap"] = (alone - found["both_s"]) / shorter
    print(
        f"overlap: {n_units} units of {n_bytes / n_units / 1e6:,.0f} MB at "
        f"{bytes_per_s / 1e6:.1f} MB/s and {latency_ms:g} ms; seconds for a unit: encode "
        f"{found['encode_s']:.2f}, upload {found['upload_s']:.2f}, both {found['both_s']:.2f}; "
        f"{found['overlap']:.2f} of the shorter one is hidden"
    )
    return found


def extract(clips: Path, store: str, limit: int | None = None) -> None:
    """Extract clips in this process."""
    given = [
        *("dataset=audiofolder", f"dataset.path={clips}", f"store={store}"),
        *("model=hf", "model.source=noise", "model.name=noise", "engine=inline"),
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


def between_commits(backend: Backend) -> float:
    """Return the seconds from one commit to the next in the last run, by its log."""
    events = [json.loads(line) for line in backend.read(LOG).splitlines()]
    times = [
        datetime.fromisoformat(event["time"]).timestamp()
        for event in events
        if event["event"] == "unit_committed" and event["run_id"] == events[-1]["run_id"]
    ]
    return (times[-1] - times[0]) / (len(times) - 1)


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s
