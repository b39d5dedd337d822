"""The utterances of a store: ids, metadata, selections and index records.

Only the committed index lists them. The extent of the Zarr arrays does not matter.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError, UtteranceNotFoundError
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.documents import layout_of, read_attributes
from pipeline.store.format.layers import number_layers
from pipeline.store.labels import read_labels
from pipeline.store.read import verified
from pipeline.store.read.catalogue import Catalogue, Piece, Place, committed_state, read_catalogue
from pipeline.store.read.facts import StoreFacts
from pipeline.store.read.joined.columns import Column, class_names_of
from pipeline.store.read.selection import absent_values, column_values
from pipeline.store.read.shards import ShardReader
from pipeline.store.read.where import parse_condition

Key = str | int
_WHOLE_NUMBERS = (int, np.integer)
_N_FRAMES = pa.field("n_frames", pa.int64())
_SHARED = ("_shards", "_checksums", "_whole", "_readers_of_tokens")
"""What a view shares with the store that it selects from, and no other process can have."""


class StoreView(StoreFacts):
    """The committed utterances of a store, or a selection of them.

    Attributes:
        attributes: Attributes of the Zarr group: format version, layers, identity, provenance.
    """

    # class attributes, for views that an earlier version has pickled
    _verify = _is_chosen = _is_read_whole = False
    _generation: int | None = None
    _columns: tuple[Column, ...] | None = None

    def __init__(self, uri: Location, verify: bool = False, labels: int | None = None) -> None:
        self._verify, self._generation = verify, labels
        self._backend = open_backend(uri)
        self.attributes = read_attributes(self._backend)
        self._layout = layout_of(self.attributes)
        self._conditions: tuple[pc.Expression, ...] = ()
        self._read()
        self._open()

    def _open(self) -> None:
        """Make what reads the files; they are opened when they are needed."""
        self._shards = ShardReader(self._backend, self._layout, self._place)
        if self._is_read_whole:
            self._shards.expect_whole()
        self._readers_of_tokens: list[Any] = []  # see `TokenView`
        self._renew_checksums()

    def expect_epochs(self) -> None:
        """Fetch by large blocks from now on, if these are at least half of the store's frames.

        For readers that will read all utterances, in any order. Other reads begin to do so when
        they have read a part of a file.
        """
        whole = self._catalogue if self._whole is None else self._whole
        if 2 * int(self.frame_counts.sum()) >= int(whole.frame_counts.sum()):
            self._expect_whole()

    def _expect_whole(self) -> None:
        self._is_read_whole = True
        self._shards.expect_whole()

    def _renew_checksums(self) -> None:
        self._checksums = verified.Checksums(self._backend, self._layout, self._place)
        verified.check_copies(self._backend, self._layout, self._catalogue)

    def refresh(self) -> None:
        """Show what is committed now; a selection applies its conditions to new utterances, too.

        Raises:
            StoreError: The utterances were chosen by position (`take`).
        """
        if self._is_chosen:
            raise StoreError("utterances chosen by position cannot be refreshed; choose them again")
        if self._catalogue.state != self._present_state():
            self._read()

    def _present_state(self) -> str:
        return committed_state(self._backend, self._generation, self._catalogue)

    def _read(self) -> None:
        """Read the index and show what is committed."""
        catalogue = self._read_catalogue()
        self._whole: Catalogue | None = catalogue
        for condition in self._conditions:
            catalogue = catalogue.take(catalogue.matching(condition))
        self._show(catalogue)
        self._renew_checksums()

    def of_unit(self, unit: int, others: Sequence[int] = ()) -> Self:
        """Return the utterances of a committed unit as a store.

        Only the indices of these units are read, so they may have been committed after the store
        was opened. A selection applies its conditions.

        Args:
            unit: The unit.
            others: Committed units with other pieces of its recordings. A recording that is not
                complete with them is left out.

        Raises:
            DamagedError: The index of a unit is missing or unreadable.
        """
        labels = read_labels(self._backend, self._generation)
        units = (unit, *others)
        catalogue = read_catalogue(self._backend, self._layout, labels, units)
        if others:
            catalogue = catalogue.take(catalogue.positions_in(unit))
        for condition in self._conditions:
            catalogue = catalogue.take(catalogue.matching(condition))
        view = self._shown(catalogue)
        view._is_chosen = True
        return view

    def _show(self, catalogue: Catalogue) -> None:
        """Set the utterances."""
        self._catalogue = catalogue

    def _shown(self, catalogue: Catalogue) -> Self:
        """Return a view of other utterances, with the same open files."""
        view = self._copy()
        view._show(catalogue)
        return view

    def _placed(self, place: Place) -> Self:
        """Return the store as one among several, with files of its own."""
        view = self._copy()
        view._place, view._whole = place, None
        view._open()
        return view

    def _read_catalogue(self) -> Catalogue:
        labels = read_labels(self._backend, self._generation)
        self._columns = None if labels is None else labels.columns
        return read_catalogue(self._backend, self._layout, labels)

    def select(self, condition: pc.Expression | str | None = None, **equal: Any) -> Self:
        """Select utterances by their metadata.

        Args:
            condition: A condition on the metadata, `id` and `n_frames`: a pyarrow expression, or
                text such as `speaker in ('a', 'b') and n_frames > 100 and not split = 'test'`
                (=, !=, <, <=, >, >=, in, not in, like, is null, is not null, and, or, not,
                parentheses). Text values are in quotes, columns with other characters in
                backquotes.
            **equal: Value, or several values, of a column. Classes may be given by number or name;
                None stands for no value.

        Returns:
            A store with the selected utterances, in the same order. It shares the open files with
            this one, and may be empty. A value that no committed utterance of the store has gives a
            warning.

        Raises:
            StoreError: A column is unknown, a value has not the type of its column, or the
                condition is neither an expression nor text.
            ConfigError: The text is no condition; the message says where.

        Example:
            >>> store.select(split="train", speaker=["ann", "bob"])        # doctest: +SKIP
            >>> store.select("split = 'train' and not speaker like 'x%'")  # doctest: +SKIP
            >>> store.select(pc.field("n_frames") < 1000)                  # doctest: +SKIP
        """
        conditions: list[pc.Expression] = []
        compared: list[tuple[str, pa.Array]] = []
        if isinstance(condition, str):
            found = parse_condition(condition, self._schema, self.class_names)
            conditions, compared = [found.expression], list(found.compared)
        elif isinstance(condition, pc.Expression):
            conditions = [condition]
        elif condition is not None:
            raise StoreError(
                f"cannot select by {condition!r:.60}; expected a condition as text, a pyarrow "
                "expression, or values of columns as in split='train'"
            )
        for name, value in equal.items():
            kind, names = self.whole_column(name).type, self.class_names.get(name, ())
            compared.append((name, column_values(name, value, kind, names)))
            conditions.append(pc.field(name).isin(compared[-1][1]))
        for name, wanted in compared:
            if absent := absent_values(name, wanted, self.whole_column(name)):
                warnings.warn(f"{self.location}: {absent}", stacklevel=2)
        catalogue = self._catalogue
        for item in conditions:
            catalogue = catalogue.take(catalogue.matching(item))
        view = self._shown(catalogue)
        view._conditions = (*self._conditions, *conditions)
        return view

    def take(self, positions: Sequence[int]) -> Self:
        """Return the utterances at `positions`, in that order, as a store; see `select`.

        Raises:
            IndexError: There is no such position.
        """
        found = [self.position(int(position)) for position in positions]
        view = self._shown(self._catalogue.take(np.array(found, np.int64)))
        view._is_chosen = True
        return view

    def whole(self) -> Self:
        """Return all committed utterances, as a store that shares the open files with this one."""
        view = self._shown(self._whole_catalogue())
        view._conditions, view._is_chosen = (), False
        return view

    def _whole_catalogue(self) -> Catalogue:
        if self._whole is None:  # pickling leaves it out
            is_whole = not self._conditions and not self._is_chosen
            self._whole = self._catalogue if is_whole else self._read_catalogue()
        return self._whole

    def _copy(self) -> Self:
        view = copy(self)  # leaves out what pickling leaves out
        shared = ((name, self.__dict__[name]) for name in _SHARED if name in self.__dict__)
        view.__dict__.update(shared)
        return view

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.location}: {len(self):,} utterances, "
            f"layers {list(self.layers)}, dim {self.feature_dim}>"
        )

    def close(self) -> None:
        """Close the store's files, those of its selections too; reading frames then raises.

        Not needed when a store is dropped: its files are closed with it. `with` does it as well.
        """
        self._shards.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._catalogue)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._catalogue.find(name) is not None

    def __getstate__(self) -> dict[str, Any]:
        left_out = (*_SHARED, "final_norm")  # made when needed
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_root" in state:  # pickled by version 0.1.0
            state = state | {"_backend": open_backend(state["_root"])}
            del state["_root"]
        self.__dict__.update(state)
        self._whole = None
        self._open()

    @property
    def ids(self) -> list[str]:
        """Ids of the utterances, in order; a new list at each call."""
        return list(self._catalogue.ids.to_pylist())

    @property
    def metadata(self) -> pa.Table:
        """`id` and the carried columns of every utterance, in order, with their types."""
        return self._catalogue.metadata

    @property
    def class_names(self) -> dict[str, list[str]]:
        """Class names of each carried ClassLabel column."""
        return class_names_of(self._carried)

    def whole_column(self, name: str) -> pa.ChunkedArray:
        """Return a metadata column, or `n_frames`, of all committed utterances, selected or not.

        Raises:
            StoreError: There is no such column.
        """
        whole = self._whole_catalogue()
        metadata = whole.metadata
        if name == "n_frames" and name not in metadata.column_names:
            return pa.chunked_array([whole.frame_counts])
        if name not in metadata.column_names:
            known = ", ".join(metadata.column_names)
            raise StoreError(f"no column {name!r} in {self.location}; the columns are {known}")
        return metadata[name]

    @property
    def quarantined(self) -> pa.Table:
        """`id` and `reason` of the quarantined utterances; empty in a selection."""
        return self._catalogue.quarantined

    def n_frames(self, key: Key) -> int:
        """Return the number of frames of an utterance."""
        return self._catalogue.length(self.position(key))

    def pieces(self, key: Key) -> list[Piece]:
        """Return the pieces of an utterance, in order; see `Piece`."""
        return self._catalogue.pieces(self.position(key))

    def record(self, key: Key) -> dict[str, Any]:
        """Return the index record of an utterance, or of its first piece.

        Raises:
            UtteranceNotFoundError: There is no such utterance.
            DamagedError: Its unit's index is missing or unreadable.
        """
        position = self.position(key)
        number = self._catalogue.store_of(position) - self._place.number
        committed = verified.committed_record(self.backends[number], self._catalogue, position)
        return {**committed, **self.metadata.slice(position, 1).to_pylist()[0]}

    def checksums(self) -> list[list[list[int]]]:
        """Return the crc32c of all features: for each utterance, piece and layer, in lists.

        Raises:
            DamagedError: The index of a unit is unreadable.
        """
        found: dict[int, list[int]] = {}
        for number, backend in enumerate(self.backends, self._place.number):
            found |= verified.committed_checksums(backend, self._catalogue, number)
        ends = self._catalogue.first_piece.tolist()
        return [
            [found[piece] for piece in range(start, stop)]
            for start, stop in itertools.pairwise(ends)
        ]

    def position(self, key: Key) -> int:
        """Return the position of an utterance in `ids`.

        Raises:
            UtteranceNotFoundError: There is no such id; the message has its quarantine reason, or
                similar ids.
            IndexError: There is no such position.
        """
        if isinstance(key, str):
            found = self._catalogue.find(key)
            if found is None:
                raise UtteranceNotFoundError(
                    f"{self.location}: {self._catalogue.explain_missing(key)}"
                )
            return found
        n_utterances = len(self._catalogue)
        if type(key) is int and 0 <= key < n_utterances:  # soonest, as every read comes here
            return key
        if isinstance(key, bool) or not isinstance(key, _WHOLE_NUMBERS):
            raise TypeError(f"the key is {key!r}; expected an id or a position")
        position = int(key) + (n_utterances if key < 0 else 0)
        if not 0 <= position < n_utterances:
            raise IndexError(f"position {key} in a store of {n_utterances} utterances")
        return position

    def axes(self, layers: Sequence[int | str] | None) -> list[int]:
        """Return the positions on the layer axis of layers, by number or name; None for all.

        Raises:
            StoreError: A layer is not in the store, or was dropped, or `layers` is no list of
                layers, or empty.
        """
        layout = self._layout
        if layers is None:
            return list(layout.kept_axes)
        known = layout.named_axes
        try:
            axes = [] if isinstance(layers, str) else [known[layer] for layer in layers]
        except (KeyError, TypeError):
            axes = []
        gone = layout.dropped_layers
        return axes or [known[n] for n in number_layers(layers, layout.kept_names, dropped=gone)]

    @property
    def _carried(self) -> tuple[Column, ...]:
        """Name, type and class names of the carried columns."""
        if self._columns is not None:
            return self._columns
        return tuple(self.attributes["identity"]["source"]["columns"])

    @property
    def _schema(self) -> pa.Schema:
        """Columns that a condition may name."""
        schema = self.metadata.schema
        return schema if "n_frames" in schema.names else schema.append(_N_FRAMES)
