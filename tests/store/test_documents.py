"""The Zarr documents of a store are checked: any change is found, or changes nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from pipeline.errors import StrataError
from pipeline.store.documents import read_attributes, resize
from pipeline.store.format.layout import ATTRIBUTES, FRAMES, POOLED
from pipeline.store.maintain.verify import verify_store
from pipeline.store.read.opening import open_store
from tests.helpers.feature_stores import make_store

DOCUMENTS = (ATTRIBUTES, f"{FRAMES}/zarr.json", f"{POOLED}/zarr.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two units and two layers."""
    root = tmp_path_factory.mktemp("documents") / "store"
    make_store(root, [200, 150, 180], layers=(3, 7), dim=4, frames_per_unit=512)
    return root


def reads(root: Path) -> list[torch.Tensor]:
    """Everything that a reader returns."""
    store = open_store(root)
    by_layer = [store.read(0, [layer]) for layer in store.layers]
    return [*store.read_many(range(len(store))), *by_layer, store.pooled()]


def is_found(root: Path) -> bool:
    """Whether opening, reading or verifying the store reports something."""
    try:
        reads(root)
        return not verify_store(root).ok
    except StrataError:
        return True


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        (ATTRIBUTES, [3, 7], [7, 3]),
        (ATTRIBUTES, [3, 7], [3, 6]),
        (ATTRIBUTES, "checksum", "checksul"),
        (ATTRIBUTES, "group", "groop"),
        (f"{FRAMES}/zarr.json", "frame", "grame"),
        (f"{FRAMES}/zarr.json", "little", "big"),
        (f"{POOLED}/zarr.json", "little", "big"),
        (f"{FRAMES}/zarr.json", "float16", "int16"),
        (f"{POOLED}/zarr.json", "float32", "int32"),
    ],
)
def test_a_changed_document_is_found(folder: Path, key: str, old: object, new: object) -> None:
    """Other layers, byte order, type or names, no checksum; a new run mends the arrays."""
    assert not is_found(folder)
    path, before = folder / key, (folder / key).read_text()
    compact = json.dumps(json.loads(before))
    changed = compact.replace(json.dumps(old), json.dumps(new))
    assert changed != compact
    try:
        path.write_text(changed)
        assert is_found(folder)
        if key != ATTRIBUTES:
            resize(folder, open_store(folder)._layout, 2)
            assert not is_found(folder)
    finally:
        path.write_text(before)


def test_attributes_that_another_tool_adds_are_no_damage(folder: Path) -> None:
    """The checksum covers what Strata wrote, whatever the order and the spaces."""
    path, before = folder / ATTRIBUTES, (folder / ATTRIBUTES).read_text()
    document = json.loads(before)
    attributes = document["attributes"]
    document["attributes"] = {"mine": 1} | dict(reversed(attributes.items()))
    try:
        path.write_text(json.dumps(document, indent=4))
        assert not is_found(folder)
        assert read_attributes(folder)["mine"] == 1
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_any_bit_of_the_documents_may_flip(folder: Path) -> None:
    """Either something reports it, or nothing that a reader returns changes."""
    expected, draw = reads(folder), random.Random(0)
    n_found = 0
    for _ in range(200):
        path = folder / draw.choice(DOCUMENTS)
        before = path.read_bytes()
        flipped = bytearray(before)
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found = is_found(folder)
            n_found += found
            assert found or all(map(torch.equal, reads(folder), expected)), bytes(flipped)
        finally:
            path.write_bytes(before)
    assert n_found > 150
