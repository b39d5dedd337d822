"""Clips of the benchmark: chosen from a folder, repeated if the folder has too little audio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

SHORTEST_S, LONGEST_S = 1.0, 40.0
"""Peers encode a clip as a whole, so clips longer than a window of Strata are left out."""
EXTENSIONS = frozenset((".flac", ".wav", ".ogg", ".mp3"))


@dataclass(frozen=True)
class Clips:
    """Audio files that every method encodes.

    Attributes:
        folder: Folder with a link per clip.
        files: These links.
        audio_s: Seconds of audio of all of them.
        n_distinct: Number of different files among them.
    """

    folder: Path
    files: tuple[Path, ...]
    audio_s: float
    n_distinct: int

    def describe(self) -> str:
        """Describe the clips in a line."""
        repeated = f" ({self.n_distinct} files, repeated)" if self.is_repeated else ""
        return f"{len(self.files)} clips{repeated}, {self.audio_s:.0f} s of audio"

    @property
    def is_repeated(self) -> bool:
        """Whether a file is encoded more than once."""
        return self.n_distinct < len(self.files)


def gather(source: Path, audio_s: float, folder: Path) -> Clips:
    """Link clips of about `audio_s` seconds in total into a folder.

    Takes every k-th file of `source` if it has more audio than that, and repeats all of them if it
    has less.

    Raises:
        SystemExit: `source` has no clip of 1 to 40 s.
    """
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS)
    lengths = {path: soundfile.info(path).duration for path in found}
    usable = [path for path in found if SHORTEST_S <= lengths[path] <= LONGEST_S]
    if not usable:
        raise SystemExit(f"error: {source} has no clip of {SHORTEST_S:g} to {LONGEST_S:g} s")
    total_s = sum(lengths[path] for path in usable)
    chosen = usable[:: max(1, round(total_s / audio_s))]
    n_copies = max(1, round(audio_s / sum(lengths[path] for path in chosen)))
    folder.mkdir(parents=True)
    files = []
    for copy in range(n_copies):
        for number, path in enumerate(chosen):
            link = folder / f"{copy:03}-{number:05}{path.suffix}"
            link.symlink_to(path.resolve())
            files.append(link)
    seconds = n_copies * sum(lengths[path] for path in chosen)
    return Clips(folder, tuple(files), seconds, len(chosen))


def read_clip(path: Path, rate_hz: int) -> Tensor:
    """Read a clip as the peers do: one channel, float32 [n_samples] at `rate_hz`."""
    samples, file_rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(np.ascontiguousarray(samples.mean(1)))
    if file_rate_hz == rate_hz:
        return waveform
    return torchaudio.functional.resample(waveform, file_rate_hz, rate_hz)
