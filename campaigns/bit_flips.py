"""Damage every kind of file of a store, and count what no reader notices.

    campaigns/bit_flips.py [--tries 6000] [--seed 0] [--seconds 0]

Each try changes one object of a small real store: one flipped bit (most tries), a truncation, a
block of 4 KiB of zeros, an exchange with another object of the same kind, or a removal. Then it
compares everything that readers return with what they returned before: features, pooled means and
sums, ids, columns, classes, quarantined utterances, attributes, records, the counts of `status`,
and what zarr-python reads. If anything differs, `open_store`, a read, a read with `verify=True`, or
`verify_store` must have raised or reported it, and its message must name the object. Any error
that is not a StrataError counts as a crash. Half of the tries change an object without a trace in
its stamp, as a failing disk does, and half replace it.

Not compared, because they are a convenience: the times and speeds in `status`, which are from the
log, and the lease. A seed reproduces each try. Exits 1 if a change is unnoticed or unnamed, or if
a reader crashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import pipeline
from pipeline.config import load_config
from pipeline.errors import StrataError
from pipeline.extract import run
from pipeline.extract.relabel import relabel
from pipeline.feed.frames.measuring import keep_statistics, store_statistics
from pipeline.store.backend.base import Backend
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.memory import MemoryBackend
from pipeline.store.backend.zarr_arrays import open_array, open_group
from pipeline.store.coordination.lease import Holder
from pipeline.store.coordination.processes import process_space
from pipeline.store.format.layout import FRAMES, GROUP, LEASE, POOLED, failure_key, marker_key
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.verify import verify_store
from pipeline.tokens.run import tokenize
from pipeline.transforms.collapse import collapse
from pipeline.transforms.copy.run import copy_stores
from pipeline.transforms.copy.settings import CopySettings

KINDS = {
    "group zarr.json": r"features\.zarr/zarr\.json",
    "array zarr.json": r"features\.zarr/(frames|pooled|scale)/zarr\.json",
    "shard": r"features\.zarr/frames/c/.*",
    "pooled means": r"features\.zarr/pooled/c/.*",
    "scale": r"features\.zarr/scale/c/.*",
    "tokens": r"features\.zarr/tokens/[^/]+/c/.*",
    "tokens zarr.json": r"features\.zarr/tokens/(.+/)?zarr\.json",
    "codebook": r"codebooks/.*",
    "unit index": r"index/unit-\d+\.parquet",
    "labels": r"labels/generation-\d+\.parquet",
    "index cache": r"index\.parquet",
    "frame statistics": r"frame_statistics\.parquet",
    "plan": r"plan\.parquet",
    "claim": r"ledger/slot-\d+\.json",
    "failure record": r"ledger/slot-\d+\.died\.json",
    "marker": r"ledger/slot-\d+\.trail",
    "log": r"log\.jsonl",
    "lease": r"lease.*",
}
MUTATIONS = {"flip": 16, "truncate": 1, "zeros": 1, "swap": 1, "remove": 1}
"""Kinds of damage, with their weights."""
BLOCK = 4096
RESULTS = ("no change", "open or read", "verified read", "verify", "UNNOTICED", "UNNAMED", "CRASH")
FAULTS = RESULTS[4:]


def kind_of(key: str) -> str:
    """Return the kind of an object; every object of a store has one."""
    [kind] = [name for name, pattern in KINDS.items() if re.fullmatch(pattern, key)]
    return kind


def observe(store: Backend, verify: bool = False) -> dict[str, Any]:
    """Return everything that readers return, as values that can be compared."""
    opened = pipeline.open_store(store, verify=verify)
    found: dict[str, Any] = {
        "attributes": json.dumps(opened.attributes, sort_keys=True),
        "ids": opened.ids,
        "columns": (str(opened.metadata.schema), opened.metadata.to_pylist()),
        "quarantined": opened.quarantined.to_pylist(),
        "classes": opened.class_names,
        "geometry": (opened.layers, opened.feature_dim, opened.geometry, opened.codec.name),
        "features": [_hash(features.numpy()) for features in opened[:]],
        "parts": [_hash(opened.read(i, opened.layers[-1:], 1, 3).numpy()) for i in opened.ids],
        "pooled": _hash(opened.pooled().numpy()),
        "sums": [_hash(opened.weighted_sum(i, weights(opened)).numpy()) for i in opened.ids],
    }
    for name in opened.token_names:
        found[f"tokens {name}"] = [opened.tokens(i, name).tolist() for i in opened.ids]
        found[f"codebook {name}"] = opened.codebook(name).sha256
    if opened.ids:
        with warnings.catch_warnings(action="ignore"):  # that they are computed again
            statistics = store_statistics(opened)
        found["statistics"] = [_hash(x) for x in (statistics.mean, statistics.std, statistics.norm)]
    if verify:
        return found
    places = [opened.record(name) for name in opened.ids]
    found["records"] = places
    if opened.attributes.get("final_norm"):
        norm = opened.final_norm
        found["norm"] = (norm.layer, norm.eps, _hash(norm.weight.numpy()), _hash(norm.bias.numpy()))
    status = read_status(store)
    found["status"] = (
        (status.units_total, status.units_committed, status.utterances_total),
        (status.utterances_ok, status.utterances_quarantined, status.audio_seconds),
        (status.reasons, status.flags, status.tokens),
    )
    return found


def observe_zarr(store: Backend, places: list[dict[str, Any]]) -> list[Any]:
    """Return what zarr-python reads of the frames and means of the given utterances."""
    frames, pooled = open_array(store, FRAMES), open_array(store, POOLED)
    group = open_group(store, GROUP)
    found: list[Any] = [sorted(group.array_keys()), sorted(group.attrs)]
    if "tokens" in group:
        arrays = group["tokens"].arrays()
        found += [(name, _hash(np.asarray(array))) for name, array in sorted(arrays)]
    found += [
        (array.shape, str(array.dtype), array.metadata.dimension_names, dict(array.attrs))
        for array in (frames, pooled)
    ]
    for place in places:
        start = place["frame_start"]
        found.append(_hash(np.asarray(frames[:, start : start + place["n_frames"]])))
    slots = sorted({place["slot"] for place in places})
    return [*found, *(_hash(np.asarray(pooled[slot])) for slot in slots)]


def weights(store: pipeline.FeatureStore) -> list[float]:
    """Return weights of a sum, all different from zero."""
    return [1.0 + axis for axis in range(len(store.layers))]


def _hash(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@dataclass
class Damage:
    """One change of one object, and how to undo it.

    Attributes:
        kind: Kind of the object.
        how: Kind of the damage.
        keys: The objects that were changed.
        detail: For messages.
    """

    kind: str
    how: str
    keys: list[str]
    detail: str


class Damager:
    """Changes one object of a store at a time, and restores it."""

    def __init__(self, readers: Readers, rng: random.Random) -> None:
        self.store, self.original, self.rng = readers.store, readers.original, rng
        self.by_kind: dict[str, list[str]] = {}
        for key in sorted(self.original):
            self.by_kind.setdefault(kind_of(key), []).append(key)

    def damage(self, kinds: Collection[str] = KINDS) -> Damage | None:
        """Change one object of these kinds; return None if the chosen change changes nothing."""
        present = [kind for kind in self.by_kind if kind in kinds]
        if not present:
            return None
        kind = self.rng.choice(present)
        how = self.rng.choices(list(MUTATIONS), MUTATIONS.values())[0]
        key = self.rng.choice(self.by_kind[kind])
        raw = bytearray(self.original[key])
        if how == "swap":
            others = [k for k in self.by_kind[kind] if self.original[k] != self.original[key]]
            if not others:
                return None
            other = self.rng.choice(others)
            self._write(key, self.original[other])
            self._write(other, self.original[key])
            return Damage(kind, how, [key, other], f"{key} and {other}")
        if how == "remove":
            self.store.delete(key)
            return Damage(kind, how, [key], key)
        if not raw:
            return None
        at = self.rng.randrange(len(raw))
        if how == "flip":
            bit = self.rng.randrange(8)
            raw[at] ^= 1 << bit
            detail = f"{key}: bit {bit} of byte {at} of {len(raw)}"
        elif how == "truncate":
            del raw[at:]
            detail = f"{key}: {at} of {len(self.original[key])} bytes are left"
        else:
            at -= at % BLOCK
            raw[at : at + BLOCK] = bytes(len(raw[at : at + BLOCK]))
            detail = f"{key}: zeros from byte {at}"
        if raw == self.original[key]:
            return None
        self._write(key, bytes(raw))
        return Damage(kind, how, [key], detail)

    def restore(self, damage: Damage) -> None:
        """Undo the last change."""
        for key in damage.keys:
            self.store.put(key, [self.original[key]])

    def _write(self, key: str, content: bytes) -> None:
        """Replace an object, or change it without a new stamp."""
        path = self.store.local_path(key)
        if self.rng.random() < 0.5:
            self.store.put(key, [content])
        elif path is not None:
            path.write_bytes(content)
        else:
            self.store._objects[key] = content


class Readers:
    """All readers of one store, what they return of it while it is sound, and its objects."""

    def __init__(self, store: Backend) -> None:
        self.store = store
        self.sound = observe(store)
        self.places = self.sound["records"]
        self.sound["zarr"] = observe_zarr(store, self.places)
        self.original = {key: store.read(key) for key in store.list()}
        observe(store, verify=True)
        report = verify_store(store)
        assert report.ok, report.damages

    def result_of(self, damage: Damage) -> tuple[str, str]:
        """Return which of `RESULTS` a damage has, and the message that tells it."""
        seen, error = self._try(self._observe)
        if error is not None:
            return self._told("open or read", damage, error)
        if seen == self.sound:
            return "no change", ""
        changed = ", ".join(name for name in self.sound if seen.get(name) != self.sound[name])
        _, error = self._try(lambda: observe(self.store, verify=True))
        if error is not None:
            return self._told("verified read", damage, error)
        report, error = self._try(lambda: verify_store(self.store))
        if error is None and not report.ok:
            problems = [*report.damages, *report.tokens]
            error = StrataError("; ".join(item.problem for item in problems))
        if error is not None:
            return self._told("verify", damage, error)
        return "UNNOTICED", f"changed: {changed}"

    def _observe(self) -> dict[str, Any]:
        seen = observe(self.store)
        try:
            seen["zarr"] = observe_zarr(self.store, self.places)
        except Exception as error:  # noqa: BLE001  zarr raises whatever its codecs raise
            seen["zarr"] = f"{type(error).__name__}: {error}"
        return seen

    def _try(self, act: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        try:
            return act(), None
        except Exception as error:  # noqa: BLE001  that is the question
            return None, error

    def _told(self, by: str, damage: Damage, error: BaseException) -> tuple[str, str]:
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, StrataError):
            return "CRASH", text
        return (by if any(key in text for key in damage.keys) else "UNNAMED"), text


@dataclass
class Tally:
    """What a campaign has found.

    Attributes:
        counts: Tries by kind of object, kind of damage, and result.
        faults: One line for each try that is a fault.
    """

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, damage: Damage, result: str, text: str) -> None:
        """Count a try."""
        self.counts[damage.kind, damage.how, result] += 1
        if result in FAULTS:
            self.faults.append(f"{result} {damage.how} {damage.detail}: {text[:300]}")

    def table(self) -> str:
        """Return the table of kinds."""
        rows = [["object", "damage", "tries", *RESULTS]]
        for kind, how in sorted({(kind, how) for kind, how, _ in self.counts}):
            numbers = [self.counts[kind, how, result] for result in RESULTS]
            rows.append([kind, how, str(sum(numbers)), *(str(n or "") for n in numbers)])
        totals = [
            sum(n for (_, _, result), n in self.counts.items() if result == wanted)
            for wanted in RESULTS
        ]
        rows.append(["all", "", str(sum(totals)), *(str(n or "") for n in totals)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(f"{cell:{w}s}" for cell, w in zip(row, widths, strict=True)) for row in rows
        ]
        return "\n".join(lines)


def campaign(
    readers: Sequence[Readers],
    tries: int,
    seed: int,
    kinds: Collection[str] = KINDS,
    until: float = float("inf"),
) -> Tally:
    """Damage stores and count the results.

    Args:
        readers: Readers of sound stores, which are sound again afterwards.
        tries: Number of changes.
        seed: Seed of the changes.
        kinds: Kinds of the objects to change.
        until: Time by `time.monotonic` at which to stop early.
    """
    rng = random.Random(seed)
    damagers = [Damager(item, rng) for item in readers]
    tally = Tally()
    while sum(tally.counts.values()) < tries and time.monotonic() < until:
        i = rng.randrange(len(readers))
        damage = damagers[i].damage(kinds)
        if damage is None:
            continue
        try:
            tally.add(damage, *readers[i].result_of(damage))
        finally:
            damagers[i].restore(damage)
    return tally


def make_stores(folder: Path) -> list[Backend]:
    """Extract a few clips, one of them broken and one longer than a unit; collapse the result.

    Returns:
        The store in memory, with two generations of labels; the same in a folder below `folder`;
        the collapsed one, and a copy with int8 values, in memory.
    """
    rng = np.random.default_rng(0)
    clips = folder / "clips"
    clips.mkdir()
    lines = ["file_name,word,speaker"]
    for i, seconds in enumerate((0.5, 0.9, 7.0, 0.2, 1.1, 0.6)):
        name = f"clip-{i}.wav"
        soundfile.write(clips / name, 0.1 * rng.standard_normal(round(16_000 * seconds)), 16_000)
        lines.append(f"{name},{i % 2},s{i % 3}")
    (clips / "clip-9.wav").write_bytes(b"not audio")
    lines.append("clip-9.wav,1,s0")
    (clips / "metadata.csv").write_text("\n".join(lines) + "\n")
    store, collapsed = MemoryBackend(), MemoryBackend()
    config = load_config(
        [
            "dataset=audiofolder",
            f"dataset.path={clips}",
            "dataset.columns=[word,speaker]",
            "model=tiny",
            f"store={folder / 'unused'}",
            "engine=inline",
            "engine.threads=1",
            "extract.layers=[1,2]",
            "plan.frames_per_unit=256",
            "run.max_quarantined=1",
        ]
    )
    run.extract(config, backend=store)
    tokenize(store, 2, 7)
    collapse(store, collapsed, "average")
    keep_statistics(pipeline.open_store(store))
    copy_stores(store, folder / "int8", CopySettings(dtype="int8"))
    int8 = MemoryBackend()
    for key in (copied := LocalBackend(folder / "int8")).list():
        int8.put(key, [copied.read(key)])
    edited = [line.replace(",s1", ",s9") for line in lines]
    (clips / "metadata.csv").write_text("\n".join(edited) + "\n")
    relabel(store, config)
    leave_a_failure(store)
    local = LocalBackend(folder / "store")
    for key in store.list():
        local.put(key, [store.read(key)])
    return [store, local, collapsed, int8]


def leave_a_failure(store: MemoryBackend) -> None:
    """Add what a killed driver and its attempt leave: a claim, some data, and all small files."""
    slot = 1 + max(int(name.split("-")[1].split(".")[0]) for name in store.children("ledger"))
    claim = {"slot": slot, "unit": 0, "attempt": 2, "run_id": "x", "worker": "ray", "time": "x"}
    failure = {"slot": slot, "unit": 0, "cause": "died", "detail": "SIGSEGV", "position": 0}
    failure |= {"id": "clip-0.wav", "run_id": "x", "time": "2025-01-01T00:00:00.000+00:00"}
    store.put(f"ledger/slot-{slot}.json", [json.dumps(claim).encode()])
    store.put(failure_key(slot), [json.dumps(failure).encode()])
    store.put(marker_key(slot), [b"0\n"])
    holder = Holder("x", socket.gethostname(), os.getpid(), 1, process_space())  # no such process
    store.put(LEASE, [json.dumps(asdict(holder)).encode()])
    store.put(f"{FRAMES}/c/0/{slot}/0", [store.read(f"{FRAMES}/c/0/0/0")])


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long; 0: never")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds if options.seconds else float("inf")
    with tempfile.TemporaryDirectory() as folder:
        readers = [Readers(store) for store in make_stores(Path(folder))]
        tally = campaign(readers, options.tries, options.seed, until=until)
    print(tally.table())
    for fault in tally.faults:
        print(fault)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
