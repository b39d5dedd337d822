"""The data of a campaign: clips with labels, weights, and the features that they must have."""

from __future__ import annotations

import csv
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

import pipeline

AUDIO = (".wav", ".flac", ".ogg", ".mp3")
LABELS = ("digit", "speaker")


def copy_corpus(source: Path, target: Path, limit: int) -> None:
    """Copy clips of a folder, evenly chosen, and write a table with two labels for each."""
    clips = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO)
    if not clips:
        raise SystemExit(f"error: there is no audio in {source}")
    (target / "clips").mkdir(parents=True)
    step = max(1, len(clips) // limit)
    names = []
    for i, clip in enumerate(clips[::step][:limit]):
        names.append(f"clips/{i:04d}{clip.suffix.lower()}")
        shutil.copyfile(clip, target / names[-1])
    write_table(target, {name: (str(i % 10), f"s{i % 7}") for i, name in enumerate(names)})


def write_table(folder: Path, labels: dict[str, tuple[str, ...]]) -> None:
    """Write the table of a corpus in one step, as an editor does."""
    half = folder / "metadata.csv.new"
    with half.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", *LABELS])
        writer.writerows([name, *values] for name, values in labels.items())
    half.replace(folder / "metadata.csv")


def read_table(folder: Path) -> dict[str, tuple[str, ...]]:
    """Read the labels of a corpus."""
    with (folder / "metadata.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    return {row[0]: tuple(row[1:]) for row in rows}


def write_weights(path: Path, seed: int) -> None:
    """Write random weights of the tiny encoder, as a checkpoint."""
    torch.manual_seed(seed)
    state = pipeline.load_encoder("tiny", "random")._model.state_dict()
    if seed:
        state = {name: value + 0.01 * torch.randn_like(value) for name, value in state.items()}
    half = path.with_name(f"new-{path.name}")
    torch.save(state, half)
    half.replace(path)


@dataclass(frozen=True)
class Expected:
    """What a store must hold, by utterance.

    Attributes:
        features: `[n_layers, n_frames, dim]`.
        means: `[n_layers, dim]`, as stored.
        labels: Values of `LABELS`.
    """

    features: dict[str, torch.Tensor]
    means: dict[str, torch.Tensor]
    labels: dict[str, tuple[str, ...]]


def read_store(path: Path) -> Expected:
    """Read all utterances of a store, with their checksums.

    Raises:
        StrataError: It is damaged.
    """
    with pipeline.open_store(path) as store:
        ids = list(store.ids)
        features = {name: store.read(name).clone() for name in ids}
        means = dict(zip(ids, store.pooled(), strict=True))
        rows = store.metadata.to_pylist()
        labels = {
            name: tuple(str(row[label]) for label in LABELS)
            for name, row in zip(ids, rows, strict=True)
        }
    return Expected(features, means, labels)


def differences(now: Expected, expected: Expected, *, exact: bool) -> list[str]:
    """Return what a store holds that it should not; up to rounding if batches may be others."""
    found = [
        f"the {what} of {name} differ"
        for name, features in now.features.items()
        for what, ours, theirs in (
            ("features", features, expected.features.get(name)),
            ("means", now.means[name], expected.means.get(name)),
        )
        if theirs is None or _differs(ours, theirs, exact=exact)
    ]
    return found + [
        f"the labels of {name} are {labels}"
        for name, labels in now.labels.items()
        if labels != expected.labels.get(name)
    ]


def _differs(ours: torch.Tensor, expected: torch.Tensor, *, exact: bool) -> bool:
    if ours.shape != expected.shape:
        return True
    if exact or torch.equal(ours, expected):
        return not torch.equal(ours, expected)
    scale = expected.float().abs().amax().clamp(min=1e-6)
    return bool(((ours.float() - expected.float()).abs().amax() / scale) > 0.02)


class Damage:
    """Damage to the files of a corpus, which `restore` undoes."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.pristine = folder.with_name("pristine")
        if not self.pristine.exists():
            shutil.copytree(folder, self.pristine)

    def choose(self) -> Path:
        """Choose a clip."""
        return self.rng.choice(sorted((self.folder / "clips").iterdir()))

    def replaced(self) -> None:
        """Put another recording into the place of one, as long or longer."""
        path = self.choose()
        samples, rate = soundfile.read(path, dtype="float32")
        new = path.with_name(f".new{path.suffix}")
        extra = self.rng.choice([0, 0, rate // 4])
        noise = torch.randn(len(samples) + extra) * 0.1
        soundfile.write(new, noise.numpy(), rate)
        new.replace(path)

    def rewritten(self) -> None:
        """Write other samples into a file, whose inode stays."""
        path = self.choose()
        raw = bytearray(path.read_bytes())
        half = len(raw) // 2
        raw[half:] = self.rng.randbytes(len(raw) - half)
        path.write_bytes(raw)

    def truncated(self) -> None:
        """Cut a file."""
        path = self.choose()
        os.truncate(path, self.rng.randrange(path.stat().st_size))

    def removed(self) -> None:
        """Remove a file."""
        self.choose().unlink()

    def renamed(self) -> None:
        """Rename a file."""
        path = self.choose()
        path.rename(path.with_name(f"was-{path.name}"))

    def swapped(self) -> None:
        """Swap two files."""
        one, other = self.choose(), self.choose()
        aside = one.with_name(f".aside{one.suffix}")
        one.rename(aside)
        other.rename(one) if other != one else aside.rename(one)
        if aside.exists():
            aside.rename(other)

    def relabelled(self) -> None:
        """Change the labels of some rows of the table."""
        labels = read_table(self.folder)
        for name in self.rng.sample(sorted(labels), 3):
            labels[name] = (labels[name][0], "someone else")
        write_table(self.folder, labels)

    def keep(self) -> None:
        """Take the folder as it is for what it must be."""
        shutil.rmtree(self.pristine)
        shutil.copytree(self.folder, self.pristine)

    def restore(self) -> None:
        """Make the folder what it was: each file in one step, with its old time."""
        wanted = {path.relative_to(self.pristine) for path in self.pristine.rglob("*")}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.relative_to(self.folder) not in wanted:
                path.unlink()
        for name in wanted:
            path, copy = self.folder / name, self.pristine / name
            if copy.is_file() and not (path.exists() and same(path, copy)):
                half = path.with_name(f"{path.name}.copy")
                shutil.copy2(copy, half)
                half.replace(path)


def same(path: Path, copy: Path) -> bool:
    """Whether two files have the same bytes."""
    return path.read_bytes() == copy.read_bytes()


def mount_bind(source: Path, target: Path) -> bool:
    """Show a folder at another place; return whether that is permitted."""
    target.mkdir(exist_ok=True)
    command = ["mount", "--bind", str(source), str(target)]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def unmount(target: Path) -> bool:
    """End a mount, even while files are open."""
    command = ["umount", "-l", str(target)]
    return not subprocess.run(command, capture_output=True, check=False).returncode
