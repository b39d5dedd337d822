"""What is right for a fuzzed file: it is read, flagged or quarantined, and no sound is missing."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_audio import LOSSY, Case, Clip
from fuzz_tables import KINDS, TableCase, reference
from numpy.typing import NDArray

from pipeline.audio.decode import decode
from pipeline.sources.base import Segment

READ, FLAGGED, QUARANTINED, REFUSED, WRONG = "read", "flagged", "quarantined", "refused", "wrong"
LENGTH_FLAGS = frozenset(("truncated", "longer_than_header", "length_unverified"))
MAX_GROWN_BYTES = 1 << 30
MAX_S = 35.0
MAX_REASON = 600
REMOVING = frozenset(("truncate", "truncate at the end", "cut out", "drop page"))
"""Mutations after which some sound is gone, unless only tags or headers were hit."""
KEEPING = frozenset(
    ("truncate", "truncate at the end", "append bytes", "append zeros", "append tag",
     "append itself", "other extension", "unchanged")
)  # fmt: skip
"""Mutations that change nothing before the end: what is read equals the beginning."""
MAX_DIFFERENCE = 0.02


class Judge:
    """Judges sound files."""

    def audio(
        self,
        case: Case,
        found: dict[str, Any],
        planned: int | None,
        reference: dict[str, Any] | None,
        decoded: Path,
    ) -> tuple[str, str]:
        """Return the result of a file, and why it is wrong.

        Args:
            case: The file.
            found: What the child has reported.
            planned: Samples that the plan states; None if it was not planned.
            reference: What FFmpeg has decoded.
            decoded: Folder with the decoded samples.
        """
        trouble = _trouble(found)
        if trouble:
            return WRONG, trouble
        if "reason" in found:
            if case.mutation in ("unchanged", "other extension") and _is_read_by_all(case.format):
                return WRONG, f"a sound file is quarantined: {found['reason']}"
            return QUARANTINED, ""
        if not found["finite"]:
            return WRONG, "samples are not finite"
        is_flagged = bool(LENGTH_FLAGS.intersection(found["flags"]))
        why = "" if is_flagged else self._missing(case, found, planned, reference)
        why = why or self._other_samples(case, found, is_flagged, decoded)
        return (WRONG, why) if why else (FLAGGED if is_flagged else READ, "")

    def _missing(
        self,
        case: Case,
        found: dict[str, Any],
        planned: int | None,
        reference: dict[str, Any] | None,
    ) -> str:
        """Return what is missing from a file that is read without a flag."""
        clip = case.clip
        n_native = found["n"] * found["rate"] / 16_000
        tolerance = 1_300 if any(kind in case.format for kind in LOSSY) else 64
        padding = 5_300 if "mp3" in case.format else tolerance  # which a header may state
        if reference and "error" not in reference and reference.get("rate") == found["rate"]:
            n_other = reference["n"]
            if n_native < n_other - padding:
                return f"{n_native:.0f} samples without a flag; FFmpeg decodes {n_other}"
        is_same_kind = found["rate"] == clip.rate_hz and found["channels"] == clip.n_channels
        has_length = "without length" not in case.format
        is_removed = case.mutation in REMOVING and is_same_kind and has_length
        if is_removed and n_native < clip.n_samples - tolerance:
            return f"{n_native:.0f} of {clip.n_samples} samples without a flag"
        if planned and "mp3" not in case.format and abs(planned - found["n"]) > tolerance:
            return f"{planned} samples are planned, {found['n']} decoded, without a flag"
        return ""

    def _other_samples(
        self, case: Case, found: dict[str, Any], is_flagged: bool, decoded: Path
    ) -> str:
        """Return how samples differ from those of the file before the mutation of its end."""
        if case.mutation not in KEEPING or found["rate"] != case.clip.rate_hz:
            return ""
        samples = np.load(decoded / f"{case.name}.npy")
        clean = _clean(case.clip, case.extension)
        if clean is None:
            return ""
        n = min(len(samples), len(clean))
        n -= 2_000 if any(kind in case.format for kind in LOSSY) else 0
        if n <= 0:
            return ""
        difference = float(np.abs(samples[:n] - clean[:n]).max())
        if difference > MAX_DIFFERENCE:
            return f"samples differ by {difference:.3f} from those before the mutation"
        return ""


@functools.lru_cache(maxsize=256)
def _clean(clip: Clip, extension: str) -> NDArray[np.float32] | None:
    try:
        decoded = decode(Segment(f"clean.{extension}", data=clip.encoded), 16_000)
    except Exception:  # noqa: BLE001 - it is judged as a case of its own
        return None
    return np.asarray(decoded.waveform.numpy())


def _is_read_by_all(format_name: str) -> bool:
    """Return whether a format is read without FFmpeg's libraries, and not refused."""
    return "without length" not in format_name and format_name not in ("sds", "svx")


def _trouble(found: dict[str, Any]) -> str:
    """Return what no file may cause."""
    if "died" in found:
        return f"the process died: {found['died']}"
    if "crash" in found:
        return f"not an error of the product: {found['crash']}"
    if found["grown"] > MAX_GROWN_BYTES:
        return f"it needs {found['grown'] / 1e9:.1f} GB"
    if found["s"] > MAX_S:
        return f"it needs {found['s']:.0f} s"
    reason = found.get("reason", "-")
    if not reason or "\n" in reason or len(reason) > MAX_REASON:
        return f"the reason is not one line: {reason[:200]!r}"
    return ""


def judge_table(case: TableCase, found: dict[str, Any]) -> tuple[str, str]:
    """Return the result of a table, and why it is wrong."""
    trouble = _trouble(found)
    if trouble:
        return WRONG, trouble
    if "reason" in found:
        return (WRONG, found["reason"]) if case.mutation == "unchanged" else (REFUSED, "")
    if case.kind.endswith("parquet"):
        return READ, ""
    rows = reference(case.content, case.kind)
    if rows is None:
        return READ, ""
    if len(rows) != len(found["ids"]):
        return WRONG, f"{len(found['ids'])} rows; the table has {len(rows)}"
    is_text = "json" not in case.kind
    for name, values in found["columns"].items():
        if not all(name in row for row in rows) or name == KINDS[case.kind][2]:
            continue
        if found["types"][name] != "string":
            continue  # numbers may be written in several ways
        for row, value in zip(rows, values, strict=True):
            expected = row[name]
            if is_text and expected == "":
                expected = None
            if isinstance(expected, str | None) and str(expected) != value:
                return WRONG, f"{name} is {value[:80]!r}; the table has {str(expected)[:80]!r}"
    return READ, ""
