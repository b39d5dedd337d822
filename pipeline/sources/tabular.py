"""A source over an Arrow table with one row for each utterance: a file, bytes, or a part of one."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import SourceError, first_few
from pipeline.sources import columns, segments
from pipeline.sources.base import Segment
from pipeline.sources.fingerprint import fingerprint
from pipeline.sources.lists import ids
from pipeline.sources.lists.delimited import state_types
from pipeline.sources.lists.lines import check_files
from pipeline.sources.lists.mapped import mapped_if_large
from pipeline.sources.lists.paths import find_files
from pipeline.sources.location import describe_location
from pipeline.sources.splits import ALL, COLUMN

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig


class TabularSource:
    """Implementation of `Source` for a table with paths or encoded bytes.

    `config.limit` takes the first rows.

    Args:
        config: Configuration of the dataset.
        rows: The table.

    Raises:
        SourceError: There are no rows; a column that the configuration names is missing or cannot
            be carried; an id is empty or not unique.
    """

    def __init__(self, config: DatasetConfig, rows: columns.Rows) -> None:
        rows = ids.with_split_rule(config, rows)
        if config.limit is not None:
            rows = rows.first(config.limit)
        if not len(rows.table):
            raise SourceError(f"{describe_location(config)} has no rows")
        self.config = config
        self.origin = first_few(rows.tables) if rows.tables else describe_location(config)
        self.skipped = rows.skipped
        self._state = rows.state
        if config.types:
            rows = replace(rows, table=state_types(rows, config.types))
        self._paths, self._data = columns.audio_of(rows)
        columns.check_text(f"column {rows.audio_column}", self._paths, self.origin)
        columns.require_paths(rows)
        check_files(rows)
        rows = segments.with_spans(config, rows, self._paths, self._data is None)
        self.notes = rows.notes
        if config.split == ALL and COLUMN not in rows.table.column_names:
            self.notes += (
                f"dataset.split=all: {describe_location(config)} has no splits that are known by "
                "their names, so there is no column split",
            )
        self._spans, self._ranges = rows.spans, rows.ranges
        self.columns, self.skipped_columns = columns.choose_columns(config, rows)
        id_rule, own_ids = ids.make_ids(config, rows, self._paths, self._data)
        self._ids = mapped_if_large(pa.table({"id": own_ids}))["id"].chunk(0)
        del own_ids
        self.notes += ids.note_spaces(self._ids)
        self._paths = columns.compact(self._paths)
        if self._data is None:
            self._paths, notes = find_files(self._paths, rows.root)
            self.notes += notes
        self._metadata = mapped_if_large(columns.select_columns(rows.table, self.columns))
        for name in self._metadata.column_names:
            columns.check_text(f"column {name}", self._metadata[name], self.origin)
        self.identity: dict[str, Any] = {
            "kind": config.kind,
            "name": config.name,
            "config": config.config,
            "split": config.split,
            "revision": config.revision,
            "audio_column": rows.audio_column,
            "ids": id_rule,
            "columns": [
                {"name": c.name, "type": c.type, "class_names": c.class_names and [*c.class_names]}
                for c in self.columns
            ],
        }
        if rows.spans is not None:
            self.identity["segments"] = rows.spans.identity

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the rows, the settings, and the size and modification time of every file."""
        facts: list[object] = [self._state, self.identity]
        if self._spans is not None:
            facts.append(self._spans.state)  # other columns of the table may be chosen
        if self._ranges is not None:
            facts.append(self._ranges.state)
        return fingerprint(facts, self._ids, self._paths)

    @property
    def is_shared(self) -> bool:
        """Whether no row has its encoded bytes in the table."""
        return self._data is None

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> pa.StringArray:
        """Return the ids of all rows, in order."""
        return self._ids

    def segment(self, row: int) -> Segment:
        """Return the audio of one row: a whole file, or bytes, or a range or a part of one."""
        part = {} if self._spans is None else self._spans.of(row)
        return Segment(self._ids[row].as_py(), **self._place(row), **part)

    def _place(self, row: int) -> dict[str, Any]:
        """Return where the encoded bytes of a row are, as arguments for `Segment`."""
        data = None if self._data is None else self._data[row].as_py()
        path = None if data is not None else self._paths[row].as_py()
        place = {} if self._ranges is None else self._ranges.of(row)
        return {"path": path, "data": data, **place}

    def metadata(self, rows: Sequence[int]) -> pa.Table:
        """Return the carried columns of `rows`, in that order."""
        if len(rows) and all(b - a == 1 for a, b in itertools.pairwise(rows)):
            return self._metadata.slice(rows[0], len(rows)).combine_chunks()
        return self._metadata.take(pa.array(rows, pa.int64())).combine_chunks()
