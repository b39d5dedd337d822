"""Extract corpora of every kind that names parts of files, change them, and compare with cut files.

From a folder of speech it makes a recording of an hour with 500 segments (as lists of NeMo, Kaldi
and lhotse), a Parquet dataset of 20,000 rows, a WebDataset of three shards and a DatasetDict of
three splits. Each is planned, extracted by a driver that is killed (SIGKILL), resumed, compared
with an extraction of files cut by hand, grown in the middle, with a row replaced and one removed,
extracted again, relabelled and verified.

    python campaigns/corpora.py AUDIO_FOLDER [--only KIND] [--rows N] [--minutes M] [--work DIR]

Exits 1 if a step fails.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

import pipeline

RATE_HZ = 16_000
N_SEGMENTS, SEGMENT_S = 500, (1.5, 9.0)
N_SAMPLES, N_SPLIT_ROWS, CLIP_S = 300, 150, 1.0
SPLITS = ("train", "dev", "test")
TOLERANCE = 4e-3
"""Of features whose batch had other clips: float16 and other sums of the same products."""
Samples = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Row:
    """One utterance: the samples from `start` on of the speech, and its labels."""

    id: str
    start: int
    n_samples: int
    speaker: str
    text: str

    @property
    def split(self) -> str:
        """Its split, which stays when other rows are added."""
        return SPLITS[int(self.id[1:7]) % len(SPLITS)]

    @property
    def times(self) -> tuple[float, float]:
        """Start and end in the recording, in seconds."""
        return self.start / RATE_HZ, (self.start + self.n_samples) / RATE_HZ


Write = Callable[[Path, Sequence[Row], Samples], list[str]]


def read_speech(folder: Path, n_samples: int) -> Samples:
    """Return so many samples of the files of a folder, repeated if they are too few."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".wav", ".flac"):
            samples, rate = soundfile.read(path, dtype="int16")
            if rate == RATE_HZ and samples.ndim == 1:
                parts.append(samples)
    if not parts:
        raise SystemExit(f"{folder} has no mono wav or flac at {RATE_HZ} Hz")
    speech = np.concatenate(parts)
    return np.tile(speech, -(-n_samples // len(speech)))[:n_samples]


def random_rows(n: int, n_samples: int, lengths_s: tuple[float, float], seed: int) -> list[Row]:
    """Draw rows from a recording, in the order of their starts.

    Times are multiples of 1/8 s, which are exact in binary: lists that round down cut there, too.
    """
    rng = np.random.default_rng(seed)
    grid = RATE_HZ // 8
    lengths = rng.integers(int(lengths_s[0] * 8), int(lengths_s[1] * 8) + 1, n) * grid
    starts = np.sort(rng.integers(0, (n_samples - int(lengths.max())) // grid, n)) * grid
    return [
        Row(f"u{i:06d}", int(start), int(length), f"s{i % 7}", f"text {i}")
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]


def changed(rows: Sequence[Row]) -> list[Row]:
    """Insert rows in the middle, move one, remove one and replace the audio of one."""
    middle = len(rows) // 2
    added = [replace(rows[i], id=f"{rows[middle].id}-new{i}", text=f"new {i}") for i in range(3)]
    kept = [row for i, row in enumerate(rows) if i != 3]
    kept[1] = replace(kept[1], start=kept[1].start + RATE_HZ // 4)
    kept[5], kept[6] = kept[6], kept[5]
    return [*kept[:middle], *added, *kept[middle:]]


def cut(samples: Samples, row: Row) -> Samples:
    """Return the samples of a row."""
    return samples[row.start : row.start + row.n_samples]


def encoded(samples: Samples, row: Row) -> bytes:
    """Return the samples of a row as the bytes of a flac file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, cut(samples, row), RATE_HZ, format="FLAC")
    return buffer.getvalue()


def recording(folder: Path, samples: Samples) -> Path:
    """Write the recording, once."""
    path = folder / "recording.flac"
    if not path.exists():
        soundfile.write(path, samples, RATE_HZ)
    return path


def nemo(folder: Path, rows: Sequence[Row], samples: Samples) -> list[str]:
    """Write a list of NeMo."""
    path = recording(folder, samples)
    entries = (
        {"audio_filepath": str(path), "offset": row.times[0], "duration": row.n_samples / RATE_HZ}
        | {"id": row.id, "text": row.text, "speaker": row.speaker}
        for row in rows
    )
    list_path = folder / "list.json"
    list_path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return ["dataset=manifest", f"dataset.path={list_path}", "dataset.id_column=id"]


def kaldi(folder: Path, rows: Sequence[Row], samples: Samples) -> list[str]:
    """Write a data directory of Kaldi."""
    (folder / "wav.scp").write_text(f"rec {recording(folder, samples)}\n")
    columns = {
        "segments": lambda row: f"rec {row.times[0]:.3f} {row.times[1]:.3f}",
        "text": lambda row: row.text,
        "utt2spk": lambda row: row.speaker,
    }
    for name, value in columns.items():
        (folder / name).write_text("".join(f"{row.id} {value(row)}\n" for row in rows))
    return ["dataset=kaldi", f"dataset.path={folder}"]


def lhotse(folder: Path, rows: Sequence[Row], samples: Samples) -> list[str]:
    """Write cuts of lhotse."""
    path = recording(folder, samples)
    source = {"type": "file", "channels": [0], "source": str(path)}
    facts = {
        "sampling_rate": RATE_HZ,
        "num_samples": len(samples),
        "duration": len(samples) / RATE_HZ,
    }
    whole = {"id": "rec", "sources": [source], **facts}
    lines = []
    for row in rows:
        length_s = row.n_samples / RATE_HZ
        label = {"id": row.id, "recording_id": "rec", "start": 0.0, "duration": length_s}
        label |= {"channel": 0, "text": row.text, "speaker": row.speaker}
        entry = {"id": row.id, "start": row.times[0], "duration": length_s, "channel": 0}
        entry |= {"supervisions": [label], "recording": whole, "type": "MonoCut"}
        lines.append(json.dumps(entry) + "\n")
    (folder / "cuts.jsonl").write_text("".join(lines))
    return ["dataset=lhotse", f"dataset.path={folder / 'cuts.jsonl'}"]


def parquet(folder: Path, rows: Sequence[Row], samples: Samples) -> list[str]:
    """Write files of 5,000 rows as `datasets` does: the audio is not compressed."""
    for path in folder.glob("*.parquet"):
        path.unlink()
    for i, start in enumerate(range(0, len(rows), 5000)):
        part = rows[start : start + 5000]
        audio = [{"bytes": encoded(samples, row), "path": f"{row.id}.flac"} for row in part]
        columns = {name: [getattr(row, name) for row in part] for name in ("id", "speaker", "text")}
        table = pa.table({"audio": audio, **columns})
        writer = {"compression": "none", "use_dictionary": False, "row_group_size": 1000}
        pq.write_table(table, folder / f"part-{i:03d}.parquet", **writer)
    return ["dataset=parquet", f"dataset.path={folder}", "dataset.id_column=id"]


def webdataset(folder: Path, rows: Sequence[Row], samples: Samples) -> list[str]:
    """Write three shards."""
    for i, part in enumerate(np.array_split(np.arange(len(rows)), 3)):
        with tarfile.open(folder / f"x-{i:03d}.tar", "w") as shard:
            for row in (rows[j] for j in part):
                labels = json.dumps({"speaker": row.speaker, "text": row.text}).encode()
                for suffix, data in (("flac", encoded(samples, row)), ("json", labels)):
                    member = tarfile.TarInfo(f"{row.id}.{suffix}")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
    return ["dataset=webdataset", f"dataset.path={folder}/x-{{000..002}}.tar"]


def dataset_dict(folder: Path, rows: Sequence[Row], samples: Samples) -> list[str]:
    """Save a DatasetDict of three splits."""
    parts = {}
    for split in SPLITS:
        part = [row for row in rows if row.split == split]
        audio = [{"bytes": encoded(samples, row), "path": None} for row in part]
        columns = {name: [getattr(row, name) for row in part] for name in ("id", "speaker", "text")}
        made = datasets.Dataset.from_dict({"audio": audio, **columns})
        parts[split] = made.cast_column("audio", datasets.Audio(decode=False))
    new = folder / "new"
    datasets.DatasetDict(parts).save_to_disk(new)
    shutil.rmtree(folder / "saved", ignore_errors=True)
    new.rename(folder / "saved")
    options = ["dataset.id_column=id", "dataset.split=all"]
    return ["dataset=disk", f"dataset.path={folder / 'saved'}", *options]


def files(folder: Path, rows: Sequence[Row], samples: Samples) -> list[str]:
    """Write each row as a file, in the order of a list: the extraction to compare with."""
    lines = ["id,path"]
    for row in rows:
        soundfile.write(folder / f"{row.id}.flac", cut(samples, row), RATE_HZ)
        lines.append(f"{row.id},{row.id}.flac")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return ["dataset=manifest", f"dataset.path={folder}/list.csv", "dataset.id_column=id"]


KINDS: dict[str, Write] = {
    "nemo": nemo,
    "kaldi": kaldi,
    "lhotse": lhotse,
    "parquet": parquet,
    "webdataset": webdataset,
    "disk": dataset_dict,
}


class FailedError(Exception):
    """A step did not give what it should."""


def strata(verb: str, *arguments: str) -> dict[str, Any]:
    """Run a command; return its JSON."""
    command = [sys.executable, "-m", "pipeline", verb, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedError(f"strata {verb} exited {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def kill_after_commits(arguments: Sequence[str], store: Path, n_units: int) -> int:
    """Start an extraction and kill it when some units are committed; return how many are."""
    command = [sys.executable, "-m", "pipeline", "extract", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    index = store / "index"
    while process.poll() is None:
        if index.exists() and len(list(index.glob("unit-*.parquet"))) >= n_units:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.02)
    return len(list(index.glob("unit-*.parquet")))


def compare(store: Path, by_hand: Path, ids: Sequence[str], is_exact: bool) -> str:
    """Compare features with those of files cut by hand.

    Raises:
        FailedError: They differ, or other utterances are shown.
    """
    found, expected = pipeline.open_store(store), pipeline.open_store(by_hand)
    if found.ids != list(ids):
        raise FailedError(f"{store} shows {len(found)} utterances, or in another order")
    n_equal, worst = 0, 0.0
    for name in ids:
        one, other = found.read(name), expected.read(name)
        if one.shape != other.shape:
            raise FailedError(f"{name} has {one.shape[1]} frames, {other.shape[1]} by hand")
        n_equal += torch.equal(one, other)
        worst = max(worst, float((one.float() - other.float()).abs().max()))
    if worst > TOLERANCE or (is_exact and n_equal < len(ids)):
        raise FailedError(f"{len(ids) - n_equal} differ, by up to {worst:.1e}")
    return f"{n_equal:,} of {len(ids):,} bit-equal, others within {worst:.1e}"


def require(is_so: bool, what: str) -> None:
    """Raise FailedError unless something holds."""
    if not is_so:
        raise FailedError(what)


def expected_order(kind: str, rows: Sequence[Row]) -> list[str]:
    """Return the ids in the order of the source: splits come one after another."""
    if kind != "disk":
        return [row.id for row in rows]
    return [row.id for split in sorted(SPLITS) for row in rows if row.split == split]


def try_kind(kind: str, rows: list[Row], samples: Samples, work: Path) -> None:
    """Run all steps for one kind of corpus; print a line for each."""
    corpus, cuts, store, by_hand = (work / n for n in ("corpus", "cuts", "store", "by-hand"))
    corpus.mkdir(parents=True)
    cuts.mkdir()
    frames = f"plan.frames_per_unit={max(512, sum(r.n_samples for r in rows) // 320 // 12)}"
    settings = ["model=tiny", "engine=inline", "engine.threads=1", frames]
    options = [*KINDS[kind](corpus, rows, samples), *settings, f"store={store}"]
    order = expected_order(kind, rows)
    by_id = {row.id: row for row in rows}
    cut_options = [*files(cuts, [by_id[name] for name in order], samples), *settings]
    began = time.monotonic()
    planned = strata("plan", *options)
    print(f"  plan: {planned['utterances']:,} utterances, {time.monotonic() - began:.1f} s")
    require(planned["utterances"] == len(rows), "rows are missing from the plan")
    n_units = kill_after_commits(options, store, 3)
    print(f"  killed with {n_units} of {planned['units']} units committed")
    status = strata("extract", *options)
    require(status["utterances_ok"] == len(rows), f"{status['utterances_ok']} extracted")
    strata("extract", *cut_options, f"store={by_hand}")
    print(f"  resumed; against files: {compare(store, by_hand, order, True)}")
    units = {path.name: path.read_bytes() for path in (store / "index").iterdir()}
    grown = changed(rows)
    KINDS[kind](corpus, grown, samples)
    counts = {k: strata("plan", *options)[k] for k in ("new", "gone", "replaced", "relabelled")}
    print(f"  changed: {counts}")
    require(
        counts == {"new": 3, "gone": 1, "replaced": 1, "relabelled": 0}, "other changes expected"
    )
    strata("extract", *options)
    kept = {name: (store / "index" / name).read_bytes() for name in units}
    require(kept == units, "a committed unit has changed")
    order = expected_order(kind, grown)
    shutil.rmtree(by_hand)
    strata("extract", *files(cuts, grown, samples), *settings, f"store={by_hand}")
    print(f"  grown; against files: {compare(store, by_hand, order, False)}")
    renamed = [replace(row, speaker=f"{row.speaker}-new") for row in grown]
    dataset = KINDS[kind](corpus, renamed, samples)
    relabelled = strata("relabel", str(store), *dataset)
    require(relabelled["relabelled"] == len(grown), f"relabelled {relabelled['relabelled']}")
    speakers = pipeline.open_store(store).metadata["speaker"].to_pylist()
    require(all(name.endswith("-new") for name in speakers), "labels were not renewed")
    print(f"  relabelled; verify: {strata('verify', str(store))['ok']}")


def main() -> int:
    """Try each kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("audio", type=Path, help="folder of speech, wav or flac at 16 kHz")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--rows", type=int, default=20_000, help="of the Parquet dataset")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the recording")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    samples = read_speech(options.audio, int(options.minutes * 60 * RATE_HZ))
    clip = (CLIP_S, CLIP_S)
    sizes: dict[str, tuple[int, tuple[float, float]]] = {
        **dict.fromkeys(("nemo", "kaldi", "lhotse"), (N_SEGMENTS, SEGMENT_S)),
        "parquet": (options.rows, clip),
        "webdataset": (N_SAMPLES, SEGMENT_S),
        "disk": (N_SPLIT_ROWS, SEGMENT_S),
    }
    failed = []
    for kind in [options.only] if options.only else KINDS:
        n, lengths_s = sizes[kind]
        print(f"{kind}: {n:,} utterances", flush=True)
        if options.work:
            options.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            try:
                try_kind(
                    kind, random_rows(n, len(samples), lengths_s, 1), samples, Path(folder) / kind
                )
            except FailedError as error:
                failed.append(kind)
                print(f"  FAILED: {error}")
    print(f"{len(failed)} kinds failed: {', '.join(failed)}" if failed else "all kinds passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
