"""Runs the product on fuzzed files, in a process of its own that may crash. Started by fuzz.py.

Prints one JSON object a line: what it is about to do, then what came of it.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audio.decode import decode
from pipeline.config import DatasetConfig, load_config
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.windows import Windowing
from pipeline.errors import AudioError, StrataError
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.extract.planning.planner import plan_source
from pipeline.sources.opening import open_source
from pipeline.store.maintain.verify import verify_store
from pipeline.store.read.features import FeatureStore

ADDRESS_SPACE_BYTES = 16 << 30
SEPARATE = "planned"
"""Step that reads all headers, with threads."""


def main() -> None:
    """Plan a folder, then decode its files; or extract it; or open tables."""
    job = json.loads(sys.stdin.read())
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    for step in {"audio": _audio, "extract": _extract, "tables": _tables}[job["kind"]](job):
        print(json.dumps(step | {"rss": _peak_bytes()}), flush=True)
    print(json.dumps({"end": True}), flush=True)


def _audio(job: dict[str, Any]) -> Any:
    folder = Path(job["folder"])
    source = open_source(DatasetConfig("audiofolder", path=str(folder)))
    rows = {name: row for row, name in enumerate(source.ids().to_pylist())}
    if job["plan"]:
        yield {"begin": SEPARATE}
        plan = plan_source(source, Windowing(GEOMETRY, 40.0, 5.0), None)
        first = {row["id"]: row["n_samples"] for row in plan.table.to_pylist()}
        yield {"done": SEPARATE, "n_planned": first}
    for name in job["names"]:
        yield {"begin": name}
        start_s = time.perf_counter()
        found: dict[str, Any] = {}
        try:
            decoded = decode(source.segment(rows[name]), GEOMETRY.sample_rate_hz)
            samples = decoded.waveform.numpy()
            np.save(folder.parent / "decoded" / f"{name}.npy", samples)
            found = {"n": len(samples), "rate": decoded.source_rate_hz, "flags": decoded.flags}
            found |= {"channels": decoded.n_channels, "finite": bool(np.isfinite(samples).all())}
        except AudioError as error:
            found = {"reason": str(error)}
        except Exception as error:  # noqa: BLE001 - this is what the campaign looks for
            found = {"crash": repr(error)[:300]}
        yield {"done": name, "s": time.perf_counter() - start_s, **found}


def _extract(job: dict[str, Any]) -> Any:
    folder, store = job["folder"], str(Path(job["folder"]).parent / "store")
    yield {"begin": SEPARATE}
    options = ["dataset=audiofolder", f"dataset.path={folder}", "model=tiny", f"store={store}"]
    found: dict[str, Any] = {}
    try:
        config = load_config([*options, "engine=inline", "engine.threads=1"])
        run.extract(config, Observer())
        opened = FeatureStore(store)
        flags = {i: opened.record(i)["flags"] for i in opened.ids}
        reasons = {row["id"]: row["reason"] for row in opened.quarantined.to_pylist()}
        found = {"flags": flags, "reasons": reasons, "ok": verify_store(store).ok}
    except Exception as error:  # noqa: BLE001 - this is what the campaign looks for
        found = {"crash": repr(error)[:300]}
    yield {"done": SEPARATE, **found}


def _tables(job: dict[str, Any]) -> Any:
    for item in job["items"]:
        yield {"begin": item["name"]}
        start_s = time.perf_counter()
        config = DatasetConfig(item["kind"], path=item["path"], audio_column=item["column"])
        found: dict[str, Any] = {}
        try:
            source = open_source(config)
            rows = range(len(source))
            labels = source.metadata(rows)
            with contextlib.suppress(AudioError):
                plan_source(source, Windowing(GEOMETRY, 40.0, 5.0), None)
            found = {
                "ids": source.ids().to_pylist(),
                "columns": {name: list(map(str, labels[name].to_pylist())) for name in
                            labels.column_names},
                "types": {field.name: str(field.type) for field in labels.schema},
            }  # fmt: skip
        except StrataError as error:
            found = {"reason": str(error)}
        except Exception as error:  # noqa: BLE001 - this is what the campaign looks for
            found = {"crash": repr(error)[:300]}
        yield {"done": item["name"], "s": time.perf_counter() - start_s, **found}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
