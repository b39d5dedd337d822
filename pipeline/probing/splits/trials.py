"""Trials of speaker verification: pairs of utterances, of one speaker or of two.

A list is in the format of VoxCeleb (`1 ID ID`, 1 for one speaker) or in that of Kaldi
(`ID ID target`), or it is drawn here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, counted, first_few
from pipeline.files import require_regular
from pipeline.probing.labels import IntArray
from pipeline.spans.id_forms import find_id_form, id_fields, id_maker

_WORDS = {"target": True, "nontarget": False, "non-target": False, "impostor": False}
_DIGITS = {"1": True, "0": False}
_ID_FORM = "task.trial_id_form"
_TRIES = 20
"""Draws for each trial of two speakers, after which there are fewer trials."""


@dataclass(frozen=True)
class Trials:
    """Pairs of utterances.

    Attributes:
        pairs: Positions of both utterances in the store, int64 [n_trials, 2].
        is_target: Whether both are of one speaker, bool [n_trials].
    """

    pairs: IntArray
    is_target: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def positions(self) -> IntArray:
        """Positions of the utterances of the trials, ascending."""
        return np.unique(self.pairs)


def read_trials(
    path: str, ids: Sequence[str], skip_missing: bool, id_form: str | None = None
) -> tuple[Trials, int]:
    """Read a list of trials.

    An utterance is found by its id, or else by its id without the extension of a file.

    Args:
        path: File with a trial per line.
        ids: Ids of the utterances of the store.
        skip_missing: Whether trials of utterances that are not in the store are left out.
        id_form: How ids are made from those in the file, as for `pipeline.read_spans`.

    Returns:
        The trials, and the number of those that were left out.

    Raises:
        ConfigError: The file cannot be read, a line is no trial, an utterance is not in the store,
            or there are no trials of one of both kinds.
    """
    file = Path(path)
    make = None if id_form is None else id_maker(id_form, _ID_FORM)
    position_of = _positions(ids)
    pairs, targets, missing = [], [], []
    n_missing = 0
    for line_number, line in _lines(file):
        is_target, names = _parse(line, f"{file}:{line_number}")
        if make is not None:
            names = make(names[0]), make(names[1])
        found = [position_of.get(name, position_of.get(id_fields(name)["stem"])) for name in names]
        if found[0] is None or found[1] is None:
            n_missing += 1
            missing += [name for name, at in zip(names, found, strict=True) if at is None]
            continue
        pairs.append((found[0], found[1]))
        targets.append(is_target)
    if n_missing and (not skip_missing or not pairs):
        absent = list(dict.fromkeys(missing))
        form = None if id_form is not None else find_id_form(absent, ids)
        remedy = (
            "Extract these utterances, or leave the trials out with task.skip_missing_trials=true"
            if form is None
            else f"The list has {form.one!r} where the store has {form.near!r}: "
            f"{_ID_FORM}={form.form!r} finds {form.n_found:,} of "
            f"{counted(len(absent), 'utterance')}"
        )
        raise ConfigError(
            f"{file}: {n_missing:,} of {n_missing + len(pairs):,} trials have utterances that are "
            f"not in the store, e.g. {first_few(absent)}; its ids are like {first_few(ids[:2])}. "
            f"{remedy}"
        )
    trials = Trials(np.array(pairs, np.int64).reshape(-1, 2), np.array(targets, bool))
    if not trials.is_target.any() or trials.is_target.all():
        kind = "of two speakers" if len(trials) and trials.is_target.all() else "of one speaker"
        raise ConfigError(f"{file} has no trials {kind}; both kinds are needed")
    return trials, n_missing


def draw_trials(
    positions: IntArray, speakers: Sequence[str | None], n: int, seed: int, part: str = "test"
) -> Trials:
    """Draw trials, half of them of one speaker, without repeats.

    Every speaker has about as many trials of one speaker as the others; pairs of two speakers are
    uniform over pairs of speakers.

    Args:
        positions: Positions of the utterances to draw from.
        speakers: Speaker of each utterance of the store.
        n: Largest number of trials.
        seed: Seed of the draw.
        part: What the utterances are, for the message of an error.

    Raises:
        ConfigError: There is one speaker only, or no speaker has two utterances.
    """
    random = np.random.default_rng(seed)
    by_speaker: dict[str, list[int]] = defaultdict(list)
    for i in positions.tolist():
        by_speaker[str(speakers[i])].append(i)
    names = sorted(by_speaker)
    own = [by_speaker[name] for name in names]
    repeated = [utterances for utterances in own if len(utterances) > 1]
    if len(names) < 2 or not repeated:
        raise ConfigError(
            f"{part} gives no trials: its {counted(len(positions), 'utterance')} are of "
            f"{counted(len(names), 'speaker')} ({first_few(names)}), and it needs two "
            "speakers, and two utterances of one of them. Give it a larger share, e.g. "
            "split.ratios=[0.4,0.3,0.3] (dev, if it is cut from train, gets ratios[1] / "
            "(ratios[0] + ratios[1]) of train), or another split"
        )
    share = -(-(n // 2) // len(repeated))
    same = [pair for utterances in repeated for pair in _pairs_of(utterances, share, random)]
    same = [same[i] for i in random.permutation(len(same))[: max(1, n // 2)]]
    other: set[tuple[int, int]] = set()
    n_pairs = (len(positions) ** 2 - sum(len(utterances) ** 2 for utterances in own)) // 2
    wanted = min(max(1, n // 2), n_pairs)
    if 2 * wanted > n_pairs:
        every = [
            (a, b)
            for i, utterances in enumerate(own)
            for a in utterances
            for others in own[i + 1 :]
            for b in others
        ]
        other.update(every[i] for i in random.permutation(len(every))[:wanted])
    for _ in range(_TRIES * wanted):  # pairs of speakers with few utterances repeat
        if len(other) == wanted:
            break
        i, j = sorted(random.choice(len(own), 2, replace=False).tolist())
        other.add((int(random.choice(own[i])), int(random.choice(own[j]))))
    pairs = [*same, *sorted(other)]
    is_target = np.arange(len(pairs)) < len(same)
    return Trials(np.array(pairs, np.int64), is_target)


def _pairs_of(
    utterances: Sequence[int], n: int, random: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw up to `n` pairs of different utterances, without repeats."""
    count = len(utterances)
    drawn = random.choice(
        count * (count - 1) // 2, min(n, count * (count - 1) // 2), replace=False, shuffle=False
    )
    # pair number p of (0, 1), (0, 2), (1, 2), (0, 3), ...: the larger is in row 1, 2, 2, 3, ...
    larger = np.floor((1 + np.sqrt(1 + 8 * drawn.astype(np.float64))) / 2).astype(np.int64)
    smaller = drawn - larger * (larger - 1) // 2
    return [(utterances[a], utterances[b]) for a, b in zip(smaller, larger, strict=True)]


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, with their numbers from 1."""
    try:
        require_regular(file)
        with file.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"task.trials={file} cannot be read: {error}") from error


def _parse(line: str, where: str) -> tuple[bool, tuple[str, str]]:
    """Return whether a trial is of one speaker, and its two utterances."""
    parts = line.split()
    if len(parts) == 3:
        if parts[0] in _DIGITS:
            return _DIGITS[parts[0]], (parts[1], parts[2])
        last = parts[2].lower()
        if last in _WORDS or last in _DIGITS:
            return (_WORDS | _DIGITS)[last], (parts[0], parts[1])
    raise ConfigError(
        f"{where} is {line!r:.80}; expected `1 ID ID` (1: one speaker, 0: two) as in VoxCeleb, or "
        "`ID ID target` (or nontarget) as in Kaldi"
    )


def _positions(ids: Sequence[str]) -> dict[str, int]:
    """Return the position of each id, and of each id without an extension if that is unique."""
    exact = {name: position for position, name in enumerate(ids)}
    stems: dict[str, int] = {}
    repeated = set()
    for position, name in enumerate(ids):
        stem = id_fields(name)["stem"]
        if stems.setdefault(stem, position) != position:
            repeated.add(stem)
    return {name: at for name, at in stems.items() if name not in repeated} | exact
