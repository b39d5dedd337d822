"""Stored features as a Hugging Face dataset. The only file of `feed` that imports `datasets`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.feed.dataset import FeatureDataset

_POSITION = "position"
_WAY = (
    "they stay in the store and are read on access; those of a row are "
    'pipeline.open_store(...).read(row["id"]); `strata export STORE OUT format=hf` writes a '
    "dataset that has them"
)


def to_hf_dataset(dataset: FeatureDataset) -> datasets.Dataset:
    """Return a dataset of ids and columns whose features are read when a row is accessed.

    Raises:
        ConfigError: The dataset has tokens, which rows cannot have.
    """
    if dataset.tokens is not None:
        raise ConfigError(
            "rows of datasets have no tokens; make the FeatureDataset without tokens=, and read "
            "store.tokens(row['id'])"
        )
    table = dataset.store.metadata.select(["id", *dataset.columns])
    for name in dataset.class_names:
        values = dataset.column(name)
        numbers = pa.array(values if isinstance(values, list) else values.numpy(), pa.int64())
        table = table.set_column(table.column_names.index(name), name, numbers)
    table = table.append_column(_POSITION, [np.arange(len(table))])
    rows = datasets.Dataset(table)
    for name, names in dataset.class_names.items():
        rows = rows.cast_column(name, datasets.ClassLabel(names=names))
    return _Rows(rows.data, info=rows.info).with_transform(_ReadFeatures(dataset))


class _Rows(datasets.Dataset):  # type: ignore[misc]
    """Ids and columns of utterances, with a transform that reads the features."""

    def save_to_disk(self, dataset_path: Any, *args: Any, **kwargs: Any) -> None:
        """Save ids and columns; say that the features are not among them."""
        warnings.warn(f"ids and columns are saved, without the features: {_WAY}", stacklevel=2)
        plain = self.with_format(None)
        if _POSITION in plain.column_names:
            plain = plain.remove_columns(_POSITION)
        datasets.Dataset.save_to_disk(plain, dataset_path, *args, **kwargs)


class _ReadFeatures(dict[str, str]):
    """Transform that adds the features to rows. It is pickled with the dataset."""

    def __init__(self, dataset: FeatureDataset) -> None:
        super().__init__(transform="reads features")  # not empty, so that JSON asks for `items`
        self._dataset = dataset

    def __reduce__(self) -> tuple[Any, ...]:
        return _ReadFeatures, (self._dataset,)

    def items(self) -> Any:
        """Refuse to become JSON, which is how datasets that were made of this one are saved."""
        raise TypeError(f"the features cannot be saved: {_WAY}; or call with_format(None) first")

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if _POSITION not in rows:
            return rows
        positions = rows.pop(_POSITION)
        return rows | {
            "features": [item.features for item in self._dataset.__getitems__(positions)]
        }
