"""Files of predictions: csv and jsonl; of parts of recordings also CTM and RTTM."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, first_few
from pipeline.files import is_uri

_TABLES, NIST = (".csv", ".jsonl"), (".ctm", ".rttm")
OF_PARTS = ("spans", "framewise")
"""Kinds of heads that predict parts of recordings, a row each."""


def check_out(out: Path | None) -> None:
    """Check where predictions are to be written, before the work.

    Raises:
        ConfigError: It is a URI, a folder, or of another kind.
    """
    if out is None:
        return
    if is_uri(out):
        raise ConfigError(f"--out {out}: expected a file of this machine")
    if out.suffix not in (*_TABLES, *NIST) or out.is_dir():
        raise ConfigError(
            f"--out {out}: expected a file with the suffix {', '.join(_TABLES)}, or for parts of "
            f"recordings {' or '.join(NIST)}"
        )


def check_nist(out: Path | None, kind: str, names: Sequence[str], classes: Sequence[str]) -> None:
    """Check that a CTM or RTTM can have what is predicted, before the work.

    Raises:
        ConfigError: The head predicts whole recordings, or a name has white space.
    """
    if out is None or out.suffix not in NIST:
        return
    if kind not in OF_PARTS:
        raise ConfigError(
            f"--out {out}: a {out.suffix[1:].upper()} has parts of recordings, and this head "
            f"labels whole ones; give a file with the suffix {' or '.join(_TABLES)}"
        )
    wrong = [name for name in (*names, *classes) if not name or any(map(str.isspace, name))]
    if wrong:
        shown = first_few([repr(name) for name in wrong])
        raise ConfigError(
            f"--out {out}: names in a {out.suffix[1:].upper()} have no white space and are not "
            f"empty, and there is {shown}; give a file with the suffix {' or '.join(_TABLES)}"
        )


def ctm_line(name: str, row: Mapping[str, Any]) -> str:
    """Return the line of a part: `name channel start duration label confidence`."""
    return f"{name} 1 {_times(row)} {row['label']} {row['score']:.4f}\n"


def rttm_line(name: str, row: Mapping[str, Any]) -> str:
    """Return the line of a part; the score is in the field of the confidence."""
    return f"SPEAKER {name} 1 {_times(row)} <NA> <NA> {row['label']} {row['score']:.4f} <NA>\n"


def table_text(rows: Sequence[Mapping[str, Any]], *, is_csv: bool) -> str:
    """Return rows as csv, with a column for each name that a row has, or as JSON, one a line."""
    if not is_csv:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _times(row: Mapping[str, Any]) -> str:
    start_s, stop_s = row["start_s"], row["stop_s"]
    return f"{_number(start_s)} {_number(stop_s - start_s)}"


def _number(value: float) -> str:
    """Return seconds with at most six decimals."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
