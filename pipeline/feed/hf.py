"""Stored features as a Hugging Face dataset. The only file of `feed` that imports `datasets`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from pipeline.feed.dataset import FeatureDataset

_POSITION = "position"


def to_hf_dataset(dataset: FeatureDataset) -> datasets.Dataset:
    """Return a dataset of ids and columns whose features are read when a row is accessed."""
    table = dataset.store.metadata.select(["id", *dataset.columns])
    for name in dataset.class_names:
        values = dataset.column(name)
        numbers = pa.array(values if isinstance(values, list) else values.numpy(), pa.int64())
        table = table.set_column(table.column_names.index(name), name, numbers)
    table = table.append_column(_POSITION, [np.arange(len(table))])
    rows = datasets.Dataset(table)
    for name, names in dataset.class_names.items():
        rows = rows.cast_column(name, datasets.ClassLabel(names=names))
    return rows.with_transform(_ReadFeatures(dataset))


class _ReadFeatures:
    """Transform that adds the features to rows. It is pickled with the dataset."""

    def __init__(self, dataset: FeatureDataset) -> None:
        self._dataset = dataset

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if _POSITION not in rows:
            return rows
        positions = rows.pop(_POSITION)
        return rows | {
            "features": [item.features for item in self._dataset.__getitems__(positions)]
        }
