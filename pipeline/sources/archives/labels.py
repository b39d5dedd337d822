"""Labels of samples: texts, classes and JSON objects beside the audio, as columns.

A column's type is chosen when the values of all shards are known. Until then every value is text
as it was written, so that a column of numbers in one shard and of words in another loses nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError

TEXTS = ("txt", "text", "lab")
"""Extensions of members that are one column of text, named after the extension."""
CLASS, OBJECT = "cls", "json"
LABELS = frozenset((*TEXTS, CLASS, OBJECT))
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


class _Integer(str):
    """A whole number of a JSON text, as written."""


class _Decimal(str):
    """Another number of a JSON text, as written."""


_DECODER = json.JSONDecoder(parse_int=_Integer, parse_float=_Decimal, parse_constant=_Decimal)
_KINDS: dict[type, str] = {str: "text", _Integer: "int", _Decimal: "float", bool: "bool"}


@dataclass
class LabelColumn:
    """The values of one column.

    Attributes:
        values: Text of each sample up to the last one with a value; None if it has none.
        kinds: What the values are: text, int, float, bool.
    """

    values: list[str | None] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)


class LabelReader:
    """Collects the labels of the samples of one shard.

    Attributes:
        columns: The columns, in the order of their first values.
        n_nested: Number of values of each key of JSON that are nested, and left out.
        n_second: Number of values of each column that are left out, because another member of the
            sample has the column, with another value.
    """

    def __init__(self) -> None:
        self.columns: dict[str, LabelColumn] = {}
        self.n_nested: Counter[str] = Counter()
        self.n_second: Counter[str] = Counter()

    def add(self, sample: int, extension: str, data: bytes, where: str) -> None:
        """Add a member of a sample.

        Args:
            sample: Number of the sample; never less than in the call before.
            extension: One of `LABELS`.
            data: Content of the member.
            where: Shard and member, for messages.

        Raises:
            SourceError: It is not UTF-8, or not JSON.
        """
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{where} is not UTF-8 ({error.reason} at byte {error.start}); write it as UTF-8"
            ) from error
        if extension in TEXTS:
            self._put(sample, extension, text.rstrip("\r\n"), "text")
        elif extension == CLASS:
            text = text.strip()
            self._put(sample, extension, text, "int" if _INTEGER.fullmatch(text) else "text")
        else:
            self._add_object(sample, text, where)

    def _add_object(self, sample: int, text: str, where: str) -> None:
        try:
            found: Any = _DECODER.decode(text)
            if "\\u" in text:
                json.dumps(found, ensure_ascii=False).encode()  # fails for half a surrogate pair
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{where} is not JSON: {error}") from error
        if not isinstance(found, dict):
            self.n_nested["(no object)"] += 1
            return
        for name, value in found.items():
            kind = _KINDS.get(type(value))
            if kind is not None:
                written = value if kind != "bool" else "true" if value else "false"
                self._put(sample, name, str(written), kind)
            elif value is not None:
                self.n_nested[name] += 1

    def _put(self, sample: int, name: str, value: str, kind: str) -> None:
        column = self.columns.get(name)
        if column is None:
            column = self.columns[name] = LabelColumn()
        values = column.values
        if len(values) <= sample:
            values += [None] * (sample - len(values))
            values.append(value)
            column.kinds.add(kind)
        elif values[sample] != value:  # another member of the sample has this column
            self.n_second[name] += 1


def typed(values: pa.ChunkedArray, kinds: set[str]) -> pa.ChunkedArray:
    """Return a column of text as numbers or booleans, if all of its values are of one kind.

    Whole and other numbers together are float64. Whole numbers of more than 64 bits stay text.

    Args:
        values: Text as written; null where there is no value.
        kinds: Kinds of its values.
    """
    if kinds == {"int"}:
        try:
            return pc.cast(values, pa.int64())
        except pa.ArrowInvalid:
            return values
    if kinds <= {"int", "float"}:
        return pc.cast(values, pa.float64())
    return pc.cast(values, pa.bool_()) if kinds == {"bool"} else values
