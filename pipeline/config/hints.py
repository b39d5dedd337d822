"""Hints at the setting or the option that a misspelt one means, to append to a message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import did_you_mean

_TASK_WORDS = {
    "keyword": "ks",
    "keywords": "ks",
    "keyword spotting": "ks",
    "command": "ks",
    "commands": "ks",
    "kws": "ks",
    "speaker": "sid",
    "speakers": "sid",
    "speaker identification": "sid",
    "speaker verification": "sv",
    "verification": "sv",
    "asv": "sv",
    "emotion": "er",
    "emotions": "er",
    "emotion recognition": "er",
    "ser": "er",
    "intent": "ic",
    "intents": "ic",
    "intent classification": "ic",
    "language": "lid",
    "languages": "lid",
    "language identification": "lid",
    "transcription": "asr",
    "speech recognition": "asr",
    "ctc": "asr",
    "phone recognition": "pr",
    "phoneme recognition": "pr",
    "phoneme": "phone",
    "phonemes": "phone",
    "vad": "frame",
}
"""Words that describe a task, in lower case and with spaces, and its recipe."""


def setting_hint(key: str, known: Sequence[str]) -> str:
    """Return a hint at settings of this name in a group, or else at those of similar names."""
    in_groups = [name for name in known if name.rpartition(".")[2] == key]
    return f"; did you mean {' or '.join(in_groups)}?" if in_groups else did_you_mean(key, known)


def option_hint(group: str, value: str, options: Sequence[str]) -> str:
    """Return a hint at the option of a group that a value means."""
    named = [name.strip() for name in value.strip("[]").split(",")]
    if group == "task" and len(named) > 1:
        return (
            "; a sweep has one task. Run `strata sweep` for each, then `strata report SWEEP_DIR…` "
            "for all"
        )
    if group == "dataset" and Path(value).exists():
        return f"; a folder or file is dataset.path={value}"
    words = [word for word in re.split(r"[^a-z]+", value.lower()) if word]
    meant = _TASK_WORDS.get(" ".join(words)) if group == "task" else None
    return f"; did you mean {meant}?" if meant in options else did_you_mean(value, options)
