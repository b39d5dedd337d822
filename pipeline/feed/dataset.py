"""Stored features as a torch dataset: single utterances or padded batches."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from pipeline.errors import ConfigError, StoreError
from pipeline.feed.batch import Example
from pipeline.feed.classes import class_numbers
from pipeline.store.backend.held_reader import HeldRanges
from pipeline.store.format.codecs import Stored
from pipeline.store.index import row_numbers
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.final_norm import FinalNorm

if TYPE_CHECKING:
    import datasets

    from pipeline.feed.loader import FeatureLoader

IntArray = npt.NDArray[np.int64]


class FeatureDataset(Dataset[Example]):
    """Map-style dataset of the utterances of a store, with chosen layers and columns.

    `pipeline.make_loader` makes padded batches of it. With your own DataLoader, pass
    `collate_fn=pipeline.collate`; the utterances of a batch are then read in the order of the disk.

    Example:
        >>> train = FeatureDataset(store.select(split="train"), layers=[6], columns=["speaker"])
        ...                                                                     # doctest: +SKIP
    """

    def __init__(
        self,
        store: FeatureStore,
        layers: Sequence[int | str] | None = None,
        columns: Sequence[str] = (),
        max_frames: int | None = None,
        *,
        classes: Sequence[str] | Mapping[str, Sequence[str]] = (),
        final_norm: bool = False,
        tokens: str | None = None,
    ) -> None:
        """Check layers and columns; features are read on access.

        Args:
            store: The store, or a selection of it.
            layers: Layers to read, by number or name, in this order; None reads all.
            columns: Metadata columns to return with every utterance.
            max_frames: Maximum number of frames of an utterance; a longer one is cropped at a
                random place. None crops nothing.
            classes: Columns of text or whole numbers to return as class numbers, which are int64
                and begin with 0. `class_names` has the names, sorted over the whole store, so that
                train and test have equal numbers. A mapping gives the names of each column itself.
            final_norm: Apply the model's final LayerNorm to its last layer, as
                `FeatureStore.read` does.
            tokens: Name of tokens (`strata tokenize`) to return with every utterance, as they are
                in the store; those of a cropped utterance are cropped with it.

        Raises:
            ConfigError: `columns` or `classes` is not a list of names, a column of classes holds
                something else or has no value for an utterance, or `max_frames` is below 1.
            StoreError: The store lacks a layer, a column or tokens, or tokens of an utterance, or
                `final_norm` is set and the store has no final norm.
        """
        for setting, value in (("columns", columns), ("classes", classes)):
            if isinstance(value, str):
                raise ConfigError(f"{setting} is {value!r}; expected a list of names")
        names = dict.fromkeys((*columns, *classes))
        unknown = [name for name in names if name not in store.metadata.column_names]
        if unknown:
            known = ", ".join(store.metadata.column_names)
            raise StoreError(f"no columns {unknown} in the store; it has {known}")
        if max_frames is not None and max_frames < 1:
            raise ConfigError(f"max_frames is {max_frames}; it must be at least 1")
        self.store = store
        store.check_frames()
        store.expect_epochs()
        self._axes = store.axes(layers)
        self.layers = store.numbers_at(self._axes)
        self.max_frames = max_frames
        self._norm = store.final_norm if final_norm else None
        self.tokens = tokens
        if tokens is not None:
            store.check_tokens(tokens)
        self._ids = store.metadata["id"].combine_chunks()
        numbered = class_numbers(store, classes)
        self._columns = {
            name: numbered[name][1] if name in numbered else _column(store.metadata[name])
            for name in names
        }
        known_names = store.class_names
        self._class_names = {name: known_names[name] for name in names if name in known_names}
        self._class_names |= {name: numbered[name][0] for name in numbered}

    loader_type: ClassVar[Callable[..., FeatureLoader] | None] = None
    """What `make_loader` makes for a dataset of this class; None for a `FeatureLoader`."""

    def check_whole(self) -> None:
        """Check that all utterances are there; a dataset may grow while its units are extracted.

        Raises:
            ConfigError: They are not.
        """

    @property
    def columns(self) -> tuple[str, ...]:
        """Metadata columns that are returned with every utterance."""
        return tuple(self._columns)

    @property
    def norm(self) -> FinalNorm | None:
        """The model's final LayerNorm, if it is applied to the last layer."""
        return self._norm

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of the features, as the store's readers return them."""
        return self.store.codec.value_dtype

    @property
    def class_names(self) -> dict[str, list[str]]:
        """Class names, by class number, of each column that holds classes."""
        return {name: list(names) for name, names in self._class_names.items()}

    def column(self, name: str) -> Tensor | list[Any]:
        """Return a column of every utterance, as batches have it.

        Args:
            name: One of `columns`.

        Returns:
            Tensor [n_utterances] of numbers or class numbers, else a list.

        Raises:
            StoreError: The dataset has no such column.
        """
        if name not in self._columns:
            raise StoreError(f"no column {name!r} in the dataset; it has {list(self._columns)}")
        values: Tensor | list[Any] = self._take(np.arange(len(self)))[name]
        return values

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Read several utterances, in the order of the disk. Crops use torch's random state."""
        positions = np.array([self.store.position(_position(i)) for i in indices], np.int64)
        counts = self.store.frame_counts[positions]
        lengths = np.minimum(counts, self.max_frames) if self.max_frames else counts
        chance = torch.rand(len(positions), dtype=torch.float64).numpy()
        starts = (chance * (counts - lengths + 1)).astype(np.int64)
        shape = (len(self._axes), self.store.feature_dim)
        outs = [np.empty((shape[0], int(n), shape[1]), self.dtype) for n in lengths]
        cuts = zip(positions.tolist(), starts.tolist(), outs, strict=True)
        self.store.read_into(list(cuts), self._axes, self._norm)
        columns = self._take(positions)
        names = self._ids.take(row_numbers(positions)).to_pylist()
        tokens = self.read_tokens(positions, starts, lengths)
        return [
            Example(
                features=torch.from_numpy(out),
                id=names[i],
                start=int(starts[i]),
                columns={
                    name: values[i].item() if isinstance(values, Tensor) else values[i]
                    for name, values in columns.items()
                },
                tokens=tokens[i] if tokens else None,
            )
            for i, out in enumerate(outs)
        ]

    def take(self, positions: Sequence[int]) -> Self:
        """Return a dataset of the utterances at `positions`, in that order.

        Raises:
            IndexError: There is no such position.
        """
        taken = copy(self)
        taken.store = self.store.take(positions)
        rows = np.array([self.store.position(int(position)) for position in positions], np.int64)
        taken._ids = self._ids.take(row_numbers(rows))
        taken._columns = {
            name: values[rows] if isinstance(values, np.ndarray) else values.take(row_numbers(rows))
            for name, values in self._columns.items()
        }
        return taken

    def holding(self, held: HeldRanges) -> Self:
        """Return the same dataset, read from ranges in memory where they are there."""
        view = copy(self)
        view.store = self.store.holding(held)
        return view

    def batch_shape(self, lengths: IntArray) -> tuple[int, int, int, int]:
        """Return the shape of the features of a batch: [batch, n_layers, n_frames, dim].

        Args:
            lengths: Frames of each utterance after cropping, int64 [batch].
        """
        longest = int(lengths.max(initial=0))
        return (len(lengths), len(self._axes), longest, self.store.feature_dim)

    def read_batch(self, positions: IntArray, starts: IntArray, out: Stored) -> None:
        """Read utterances into a batch and zero the padding.

        Args:
            positions: Positions of the utterances, int64 [batch].
            starts: First frame of each utterance, int64 [batch].
            out: Destination, float16 [batch, n_layers, n_frames, dim].
        """
        lengths = np.minimum(self.store.frame_counts[positions] - starts, out.shape[2])
        if self.max_frames:
            lengths = np.minimum(lengths, self.max_frames)
        cuts = []
        for i, n in enumerate(lengths.tolist()):
            cuts.append((int(positions[i]), int(starts[i]), out[i, :, :n]))
            out[i, :, n:] = 0
        self.store.read_into(cuts, self._axes, self._norm)

    def read_tokens(
        self, positions: IntArray, starts: IntArray, lengths: IntArray
    ) -> list[Tensor] | None:
        """Return the tokens of parts of utterances, int64 [length] each; None without tokens.

        Args:
            positions: Positions of the utterances, int64 [n].
            starts: First frame of each part, int64 [n].
            lengths: Frames of each part, int64 [n].
        """
        if self.tokens is None:
            return None
        parts = zip(positions.tolist(), starts.tolist(), lengths.tolist(), strict=True)
        return [self.store.tokens(at, self.tokens)[start : start + n] for at, start, n in parts]

    def describe(self, positions: IntArray) -> tuple[list[str], dict[str, Any]]:
        """Return the ids and columns of a batch, from positions int64 [batch]."""
        return self._ids.take(row_numbers(positions)).to_pylist(), self._take(positions)

    def to_hf_dataset(self) -> datasets.Dataset:
        """Return a Hugging Face `datasets.Dataset` whose features are read on access.

        Features are not copied to memory or disk: the rows hold ids and columns, and a transform
        reads `features` (float16 [n_layers, n_frames, dim]) of the accessed rows. Classes are
        `ClassLabel`s.
        """
        from pipeline.feed.hf import to_hf_dataset

        return to_hf_dataset(self)

    def _take(self, positions: IntArray) -> dict[str, Any]:
        return {
            name: torch.from_numpy(values[positions])
            if isinstance(values, np.ndarray)
            else values.take(row_numbers(positions)).to_pylist()
            for name, values in self._columns.items()
        }


def as_feature_dataset(dataset: Dataset[Any]) -> FeatureDataset:
    """Return a FeatureDataset, or a `Subset` of one (`random_split` makes them), as FeatureDataset.

    Raises:
        ConfigError: It is another kind of dataset.
        IndexError: A subset has an index that its dataset lacks.
    """
    if isinstance(dataset, FeatureDataset):
        return dataset
    if isinstance(dataset, Subset):
        whole = as_feature_dataset(dataset.dataset)
        return whole.take([int(index) for index in dataset.indices])
    if isinstance(dataset, FeatureStore):
        raise ConfigError(
            "the dataset is a FeatureStore; make a dataset of it with "
            "pipeline.FeatureDataset(store)"
        )
    raise ConfigError(
        f"the dataset is a {type(dataset).__name__}; expected a FeatureDataset or a "
        "torch.utils.data.Subset of one; for other datasets use torch's DataLoader with "
        "collate_fn=pipeline.collate"
    )


def _column(values: pa.ChunkedArray) -> npt.NDArray[Any] | pa.Array:
    """Return a column of numbers without nulls as a NumPy array, any other column unchanged."""
    kind = values.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not numeric or values.null_count:
        return values.combine_chunks()
    numbers = np.array(values.to_numpy())  # a writable copy
    if numbers.dtype.kind == "u":
        return numbers.astype(np.int64)
    return numbers


def _position(index: Any) -> int:
    """Return an index as an int.

    Raises:
        TypeError: It is a text, a fraction, a slice or a list.
    """
    try:
        return operator.index(index)
    except TypeError:
        raise TypeError(
            f"index is {index!r:.60}; expected the position of one utterance, an int. For several "
            "positions use torch.utils.data.Subset(dataset, positions), for an id store.read(id)"
        ) from None
