"""Tables of every format, and mutations of their text or bytes. Seeded, like fuzz_audio.py."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CLIPS = [f"c{i}.wav" for i in range(6)]
KINDS: dict[str, tuple[str, str, str]] = {
    # name: kind of dataset, file name, audio column
    "metadata.csv": ("audiofolder", "metadata.csv", "file_name"),
    "metadata.jsonl": ("audiofolder", "metadata.jsonl", "file_name"),
    "metadata.parquet": ("audiofolder", "metadata.parquet", "file_name"),
    "csv": ("manifest", "list.csv", "path"),
    "tsv": ("manifest", "list.tsv", "path"),
    "jsonl": ("manifest", "list.jsonl", "path"),
    "json": ("manifest", "list.json", "path"),
    "parquet": ("manifest", "list.parquet", "path"),
}
TEXTS = ("a", "grün", "x y", "it's", "1", "007", "1e3", "true", "NA", "null", "-", "日本", "a,b")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class TableCase:
    """A mutated table.

    Attributes:
        number: Its number in the campaign.
        kind: Key of `KINDS`.
        mutation: Key of `MUTATIONS`.
        content: Its bytes.
        rows: The rows before the mutation.
    """

    number: int
    kind: str
    mutation: str
    content: bytes
    rows: Rows


def make_table(seed: int, number: int) -> TableCase:
    """Make one table of the campaign; the same arguments give the same bytes."""
    rng = random.Random(f"table {seed} {number}")
    kind = list(KINDS)[number % len(KINDS)]
    column = KINDS[kind][2]
    rows: Rows = [
        {
            column: name,
            "speaker": rng.choice(TEXTS),
            "n": i,
            "text": " ".join(rng.choices(TEXTS, k=3)),
        }
        for i, name in enumerate(CLIPS)
    ]
    mutation = rng.choice(list(MUTATIONS))
    content = MUTATIONS[mutation](rows, kind, rng)
    return TableCase(number, kind, mutation, content, rows)


def written(rows: Rows, kind: str) -> bytes:
    """Write rows in the format of a kind."""
    if kind.endswith("parquet"):
        sink = io.BytesIO()
        try:
            table = pa.Table.from_pylist(rows)
        except (pa.ArrowException, OverflowError):  # values of several types
            table = pa.Table.from_pylist([{k: str(v) for k, v in row.items()} for row in rows])
        pq.write_table(table, sink)
        return sink.getvalue()
    if kind.endswith("jsonl"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows).encode()
    lines = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    if kind == "tsv":
        return "".join("\t".join(line) + "\n" for line in lines).encode()
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue().encode()


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def reference(content: bytes, kind: str) -> Rows | None:
    """Read a table of text with the standard library; None if it is not well-formed.

    Quotes are text in a tsv. Lines without any field are no rows.
    """
    try:
        text = content.decode("utf-8-sig")
        if kind.endswith("jsonl"):
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        elif kind == "json":
            rows = json.loads(text)
        elif kind == "tsv":
            lines = [line.split("\t") for line in text.replace("\r\n", "\n").split("\n") if line]
            rows = _records(lines)
        else:
            rows = _records(
                [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
            )
    except (ValueError, csv.Error, IndexError, RecursionError):
        return None
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None


def _records(lines: list[list[str]]) -> Rows | None:
    header, *rows = lines
    if len(set(header)) < len(header) or any(len(row) != len(header) for row in rows):
        return None
    return [dict(zip(header, row, strict=True)) for row in rows]


def _on_text(change: Callable[[str, random.Random], str]) -> Any:
    """Change the text of a table; a parquet gets the change in one of its values."""

    def mutate(rows: Rows, kind: str, rng: random.Random) -> bytes:
        if kind.endswith("parquet"):
            i = rng.randrange(len(rows))
            changed = [*rows[:i], rows[i] | {"text": change(rows[i]["text"], rng)}, *rows[i + 1 :]]
            return written(changed, kind)
        return change(written(rows, kind).decode(), rng).encode("utf-8", "surrogatepass")

    return mutate


def _on_bytes(change: Callable[[bytes, random.Random], bytes]) -> Any:
    return lambda rows, kind, rng: change(written(rows, kind), rng)


def _on_rows(change: Callable[[Rows, random.Random], Rows]) -> Any:
    return lambda rows, kind, rng: written(change([dict(row) for row in rows], rng), kind)


def _inserted(*texts: str) -> Any:
    def change(text: str, rng: random.Random) -> str:
        at = rng.randrange(len(text) + 1)
        return text[:at] + rng.choice(texts) + text[at:]

    return _on_text(change)


def _lines(change: Callable[[list[str], random.Random], list[str]]) -> Any:
    return _on_text(lambda text, rng: "\n".join(change(text.split("\n"), rng)))


def _some_line(change: Callable[[str, random.Random], str]) -> Any:
    def mutate(lines: list[str], rng: random.Random) -> list[str]:
        i = rng.randrange(len(lines))
        return [*lines[:i], change(lines[i], rng), *lines[i + 1 :]]

    return _lines(mutate)


def _value(name: str, *values: Any) -> Any:
    def change(rows: Rows, rng: random.Random) -> Rows:
        rows[rng.randrange(len(rows))][name] = rng.choice(values)
        return rows

    return _on_rows(change)


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _put(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xfe\xff")) + data[at:]


MUTATIONS: dict[str, Callable[[Rows, str, random.Random], bytes]] = {
    "unchanged": lambda rows, kind, rng: written(rows, kind),
    "quote": _inserted('"', '""', "'", '"\n', '\\"'),
    "NUL": _inserted("\0"),
    "separator": _inserted(",", "\t", ";", "\v", "\x1c", "\u2028", "\x85"),
    "line break": _inserted("\n", "\r", "\r\n", "\n\n\n"),
    "BOM": _on_bytes(lambda data, rng: b"\xef\xbb\xbf" + data),
    "UTF-16": _on_bytes(lambda data, rng: data.decode("utf-8", "ignore").encode("utf-16")),
    "CRLF": _on_text(lambda text, rng: text.replace("\n", "\r\n")),
    "CR": _on_text(lambda text, rng: text.replace("\n", "\r")),
    "no last line break": _on_text(lambda text, rng: text.rstrip("\n")),
    "invalid UTF-8": _on_bytes(_put),
    "flip bits": _on_bytes(_flip),
    "truncate": _on_bytes(_cut),
    "zero the end": _on_bytes(lambda data, rng: (lambda at: data[:at] + bytes(len(data) - at))(
        rng.randrange(len(data)))),
    "empty": lambda rows, kind, rng: b"",
    "spaces only": lambda rows, kind, rng: b" \n \n",
    "duplicate row": _lines(lambda lines, rng: [*lines[:-1], rng.choice(lines[1:] or [""]), ""]),
    "duplicate header": _lines(lambda lines, rng: [lines[0], *lines]),
    "no header": _lines(lambda lines, rng: lines[1:]),
    "shuffled lines": _lines(lambda lines, rng: rng.sample(lines, len(lines))),
    "more fields": _some_line(lambda line, rng: line + rng.choice(",\t") + "more"),
    "fewer fields": _some_line(lambda line, rng: line[: max(line.rfind(","), line.rfind("\t"), 0)]),
    "comment": _lines(lambda lines, rng: ["# comment", *lines]),
    "sep line": _lines(lambda lines, rng: ["sep=,", *lines]),
    "huge field": _value("text", "x" * 300_000, "word " * 200_000),
    "mixed types": _value("n", "word", 1.5, 10**25, True, "", "007", "1e400", "NaN"),
    "no value": _value("speaker", None, ""),
    "list": _value("text", [1, 2], ["a"], [], {"a": 1}),
    "other path": lambda rows, kind, rng: _value(KINDS[kind][2], "", "missing.wav", "../c0.wav",
        "/etc/passwd", ".", "c1.wav", " c0.wav", "c0.wav ", "./c0.wav", "c0.wav\n",
        "\U0001f3b5.wav")(
        rows, kind, rng),
    "number as text": _on_rows(lambda rows, rng: [
        row | {"speaker": f"0{row['n']}"} for row in rows]),
    "renamed column": _on_rows(lambda rows, rng: [
        {{"text": rng_name}.get(k, k): v for k, v in row.items()}
        for rng_name in [rng.choice(("", " ", "id", "unit", "text\n", "x" * 5000, "speaker "))]
        for row in rows]),
    "many columns": _on_rows(lambda rows, rng: [
        row | {f"column {i}": i for i in range(500)} for row in rows]),
    "deep JSON": lambda rows, kind, rng: written(rows, kind).replace(
        b'"a"', b"[" * 2000 + b"]" * 2000, 1) if "json" in kind else written(rows, kind),
    "other JSON": lambda rows, kind, rng: rng.choice((
        b"[]", b"{}", b"null", b"1\n2\n", b'["a"]', b'{"path": ["c0.wav", "c1.wav"]}',
        b'{"path": NaN}\n', b'{"path": "c0.wav", "path": "c1.wav"}\n',
        b'{"path": "c0.wav"} {"path": "c1.wav"}',
        b'{"path": "c0.wav", "text": "\\ud800"}\n')),
}  # fmt: skip
