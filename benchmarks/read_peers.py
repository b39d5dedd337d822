"""Formats that features could be kept in instead, with the reader of each, for `bench_read.py`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import pipeline

DIM, N_LAYERS = 768, 12
LAYER_BYTES = DIM * 2

Read = Callable[[int, slice, int, int], object]
"""Reads an utterance: its number, layers (as positions), first frame, one past the last."""


def other_formats(store: pipeline.FeatureStore, folder: Path, capacity: int) -> dict[str, Read]:
    """Write the features in other formats whose libraries are installed; return their readers.

    Args:
        store: The features.
        folder: Where to put the files.
        capacity: Frames of a unit of the store.
    """
    writers = {
        "arrow": ("Arrow IPC mmap", arrow),
        "lmdb": ("LMDB", lmdb_values),
        "safetensors": ("safetensors", safetensors_units),
        "torch": ("torch.load", torch_files),
        "h5py": ("h5py", hdf5),
        "lhotse": ("lhotse", lhotse_hdf5),
    }
    needs = {"arrow": ("pyarrow",), "lhotse": ("lhotse", "h5py")}
    peers: dict[str, Read] = {}
    for key, (name, write) in writers.items():
        if all(find_spec(library) for library in needs.get(key, (key,))):
            target = folder / key
            target.mkdir()
            peers |= {
                f"{name}{suffix}": read for suffix, read in write(store, target, capacity).items()
            }
    return peers


def units_of(store: pipeline.FeatureStore, capacity: int) -> list[list[int]]:
    """Return the utterances of each group that is as long as a unit."""
    groups: list[list[int]] = []
    room = 0
    for i, n in enumerate(store.frame_counts.tolist()):
        if room < n:
            groups.append([])
            room = capacity
        groups[-1].append(i)
        room -= n
    return groups


def arrow(store: pipeline.FeatureStore, folder: Path, capacity: int) -> dict[str, Read]:
    """A file per unit: one record batch with a column per layer; maps and arrays are kept."""
    import pyarrow as pa

    place: dict[int, tuple[int, int]] = {}
    columns: list[list[np.ndarray]] = []
    for number, group in enumerate(units_of(store, capacity)):
        features = torch.cat(store.read_many(group), dim=1).numpy()
        arrays = [
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(LAYER_BYTES), features.shape[1], [None, pa.py_buffer(layer)]
            )
            for layer in features
        ]
        batch = pa.record_batch(arrays, names=[str(layer) for layer in store.layers])
        path = folder / f"{number}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        kept = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        columns.append(
            [
                np.frombuffer(column.buffers()[1], np.float16).reshape(-1, DIM)
                for column in kept.columns
            ]
        )
        at = 0
        for i in group:
            place[i] = (number, at)
            at += store.n_frames(i)

    def read(i: int, layers: slice, first: int, last: int) -> object:
        number, at = place[i]
        chosen = columns[number][layers]
        out = np.empty((len(chosen), last - first, DIM), np.float16)
        for k, column in enumerate(chosen):
            out[k] = column[at + first : at + last]
        return torch.from_numpy(out)

    return {"": read}


def lmdb_values(store: pipeline.FeatureStore, folder: Path, capacity: int) -> dict[str, Read]:
    """A value per utterance and layer; one read transaction is kept."""
    import lmdb

    size = int(store.frame_counts.sum()) * N_LAYERS * LAYER_BYTES
    environment = lmdb.open(str(folder), map_size=2 * size + (64 << 20), readahead=False)
    for i in range(len(store)):
        with environment.begin(write=True) as writing:
            for k, layer in enumerate(store.read(i).numpy()):
                writing.put(f"{i}/{k}".encode(), layer.tobytes())
    transaction = environment.begin(buffers=True)

    def read(i: int, layers: slice, first: int, last: int) -> object:
        axes = range(N_LAYERS)[layers]
        out = np.empty((len(axes), last - first, DIM), np.float16)
        for k, axis in enumerate(axes):
            value = np.frombuffer(transaction.get(f"{i}/{axis}".encode()), np.float16)
            out[k] = value.reshape(-1, DIM)[first:last]
        return torch.from_numpy(out)

    return {"": read}


def safetensors_units(store: pipeline.FeatureStore, folder: Path, capacity: int) -> dict[str, Read]:
    """A file per unit with a tensor per utterance and layer, kept open."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    opened, place = [], {}
    for number, group in enumerate(units_of(store, capacity)):
        found = dict(zip(group, store.read_many(group), strict=True))
        path = folder / f"{number}.safetensors"
        save_file({f"{i}/{k}": x[k].clone() for i, x in found.items() for k in range(12)}, path)
        opened.append(safe_open(path, "pt"))
        place |= dict.fromkeys(group, number)

    def read(i: int, layers: slice, first: int, last: int) -> object:
        file = opened[place[i]]
        parts = [file.get_slice(f"{i}/{k}")[first:last] for k in range(N_LAYERS)[layers]]
        return torch.stack(parts) if len(parts) > 1 else parts[0][None].clone()

    return {"": read}


def torch_files(store: pipeline.FeatureStore, folder: Path, capacity: int) -> dict[str, Read]:
    """A file per utterance, read whole or mapped."""
    for i in range(len(store)):
        torch.save(store.read(i), folder / f"{i}.pt")

    def load(i: int, layers: slice, first: int, last: int) -> object:
        return torch.load(folder / f"{i}.pt")[layers, first:last].clone()

    def load_mapped(i: int, layers: slice, first: int, last: int) -> object:
        return torch.load(folder / f"{i}.pt", mmap=True)[layers, first:last].clone()

    return {"": load, " mmap": load_mapped}


def hdf5(store: pipeline.FeatureStore, folder: Path, capacity: int) -> dict[str, Read]:
    """A dataset per utterance."""
    import h5py

    with h5py.File(folder / "features.h5", "w") as file:
        for i in range(len(store)):
            file.create_dataset(str(i), data=store.read(i).numpy())
    opened = h5py.File(folder / "features.h5", "r")

    def read(i: int, layers: slice, first: int, last: int) -> object:
        return torch.from_numpy(opened[str(i)][layers, first:last])

    return {"": read}


def lhotse_hdf5(store: pipeline.FeatureStore, folder: Path, capacity: int) -> dict[str, Read]:
    """The writer of lhotse, which keeps float16."""
    from lhotse import NumpyHdf5Reader, NumpyHdf5Writer

    with NumpyHdf5Writer(folder / "lhotse.h5") as writer:
        keys = [
            writer.write(str(i), store.read(i).transpose(0, 1).contiguous().numpy())
            for i in range(len(store))
        ]
    reader = NumpyHdf5Reader(writer.storage_path)

    def read(i: int, layers: slice, first: int, last: int) -> object:
        frames = reader.read(keys[i], left_offset_frames=first, right_offset_frames=last)
        return torch.from_numpy(np.ascontiguousarray(frames[:, layers].transpose(1, 0, 2)))

    return {"": read}
