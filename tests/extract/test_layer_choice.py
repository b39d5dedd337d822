"""Layers chosen by number and name: sizes, savings, messages, and stores of one odd layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import zarr

import pipeline
from pipeline.config import load_config
from pipeline.encoders.registry import register_family
from pipeline.errors import ConfigError
from pipeline.extract import run
from pipeline.extract.encoder_setup import resolve_encoder_setup
from pipeline.extract.resources import worker_bytes
from pipeline.extract.store_setup import make_layout
from pipeline.store.format.layers import standard_names
from pipeline.store.format.layout import Layout
from tests.helpers.corpus import write_folder
from tests.helpers.extraction import extract
from tests.helpers.fake_encoders import DIM, NARROW, FakeFamily, expected, write_spelled

OPTIONAL = replace(
    NARROW, name="optional", layer_names=standard_names(3, conv=True, final_norm=True)
)
"""Three blocks, and layers -1 and 4 of the same size."""
MODULES = replace(
    NARROW, name="modules", layer_names={1: "front", 2: "encoder.layers.3", 3: "encoder.norm"}
)


@pytest.fixture(autouse=True)
def families():
    for description in (OPTIONAL, MODULES):
        register_family(description.name, FakeFamily(description))


def fake(tmp_path, name, *more):
    """Overrides for an extraction of spelled audio with a fake encoder."""
    folder = tmp_path / "clips"
    files = {} if folder.exists() else write_spelled(folder, [8000, 4000], OPTIONAL.geometry)
    words = ["dataset=audiofolder", f"dataset.path={folder}", "engine=inline", "engine.threads=1"]
    config = load_config([*words, f"store={tmp_path / name}", *more])
    return replace(config, model=replace(config.model, name=name, source=name)), files


def test_layers_by_name_and_number_are_those_that_are_stored(tmp_path):
    """Whichever form they have; the store says both, and plain zarr has them in this order."""
    config, files = fake(tmp_path, "optional", "extract.layers=[final_norm,1,conv]")
    run.extract(config)
    store = pipeline.open_store(tmp_path / "optional")
    assert store.layers == (-1, 1, 4)
    assert store.layer_names == ("conv", "block_1", "final_norm")
    group = zarr.open_group(tmp_path / "optional/features.zarr", mode="r")
    assert group.attrs["layer_names"] == ["conv", "block_1", "final_norm"]
    for name, (tag, n_samples) in files.items():
        wanted = expected(tag, n_samples, (-1, 1, 4), OPTIONAL.geometry).numpy()
        start, n_frames = store.record(name)["frame_start"], store.n_frames(name)
        assert np.array_equal(group["frames"][:, start : start + n_frames], wanted)
        assert np.array_equal(store.read(name, ["final_norm"])[0], wanted[2])
    again, _ = fake(tmp_path, "optional", "extract.layers=[-1,1,4]")
    assert run.extract(again).units_committed == 1  # the same store
    other, _ = fake(tmp_path, "optional", "extract.layers=[0,1,4]")
    with pytest.raises(pipeline.errors.IdentityError, match="layers"):
        run.extract(other)


def test_layers_of_modules_go_by_their_names(tmp_path):
    """In the store, and wherever layers are chosen."""
    config, files = fake(tmp_path, "modules", "extract.layers=[encoder.norm,front]")
    run.extract(config)
    store = pipeline.open_store(tmp_path / "modules")
    assert store.layer_names == ("front", "encoder.norm")
    assert store.layer_labels == {1: "front", 3: "encoder.norm"}
    name, (tag, n_samples) = next(iter(files.items()))
    wanted = expected(tag, n_samples, (3,), MODULES.geometry)
    assert np.array_equal(store.read(name, ["encoder.norm"]), wanted)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("[block_13]", r"tiny has no layer block_13; expected all, superb, or a list of layers 0"),
        ("[conv,1]", r"conv has 32, block_1 has 48\); .* so extract them to two stores"),
        ("[block_1,1]", r"layers=\[block_1, 1\] has a layer twice"),
        ("conv", r"layers=conv is no list; for this layer alone write \[conv\]"),
        ("[13]", r"tiny has no layer 13"),
        ("[final_norm]", r"tiny has no layer final_norm; .* layers 0 to 12 and conv, each once"),
    ],
)
def test_wrong_layers_are_refused_with_what_there_is(tmp_path, layers, message):
    """Before anything is read; the message has the remedy."""
    config = load_config(["dataset.path=nowhere", "model=tiny", f"extract.layers={layers}"])
    with pytest.raises(ConfigError, match=message):
        resolve_encoder_setup(config)


@pytest.mark.parametrize(
    ("model", "layers", "dim", "line"),
    [
        (
            "hubert_base",
            "[conv]",
            512,
            "[conv]: runs none of the 12 blocks and takes 94% less space than layers 1 to 12",
        ),
        (
            "hubert_base",
            "[0]",
            768,
            "[0]: runs none of the 12 blocks and takes 92% less space than layers 1 to 12",
        ),
        (
            "hubert_large",
            "[1,final_norm]",
            1024,
            "[1, final_norm]: runs all 24 blocks and takes 92% less space than layers 1 to 24",
        ),
        (
            "tiny",
            "[input,block_6]",
            48,
            "[0, 6]: stops after block 6 of 12 and takes 83% less space than layers 1 to 12",
        ),
        ("tiny", "superb", 48, None),
    ],
)
def test_sizes_are_those_of_the_chosen_layers(tmp_path, model, layers, dim, line):
    """What is run, and the share of the space, in the line that `extract` prints."""
    words = ["dataset=audiofolder", f"dataset.path={tmp_path / 'clips'}", f"model={model}"]
    words += ["model.weights=random", f"extract.layers={layers}", f"store={tmp_path / 's'}"]
    setup = resolve_encoder_setup(load_config(words))
    assert setup.describe_savings() == (None if line is None else f"layers {line}")
    write_folder(tmp_path / "clips", [0.5])
    estimate = run.plan(load_config(words))
    layout = Layout(setup.layers, dim, estimate.frames_per_unit, 1)
    assert estimate.bytes >= layout.slot_bytes
    assert estimate.bytes < layout.slot_bytes + 10_000
    assert worker_bytes(layout) > 10**9


def test_a_layout_has_the_names_of_the_encoder(tmp_path):
    """So the store is created with them."""
    config, _ = fake(tmp_path, "optional", "extract.layers=[conv,final_norm]")
    setup = resolve_encoder_setup(config)
    plan = type("Plan", (), {"frames_per_unit": 256, "utterances_per_slot": 2})
    assert make_layout(setup, plan).layer_names == ("conv", "final_norm")
    assert make_layout(setup, plan).dim == DIM


def test_statistics_of_the_front_end_need_no_block(tmp_path, monkeypatch):
    """`conv` alone with `keep=[pooled]`: no block is prepared or run, and no frames are kept."""
    from pipeline.encoders.wav2vec2 import encoder as module

    write_folder(tmp_path / "clips", [0.5, 0.7])
    extract(tmp_path / "clips", tmp_path / "frames", "extract.layers=[conv]", "engine=inline")

    def refuse(*_, **__):
        raise AssertionError("a transformer was made")

    monkeypatch.setattr(module, "Transformer", refuse)
    statistics = ["extract.keep=[pooled]", "extract.pooling=[mean,std]", "engine=inline"]
    extract(tmp_path / "clips", tmp_path / "pooled", "extract.layers=[conv]", *statistics)
    store, whole = (pipeline.open_store(tmp_path / name) for name in ("pooled", "frames"))
    assert (store.layer_names, store.feature_dim, store.keeps_frames) == (("conv",), 32, False)
    for statistic in ("mean", "std"):
        found, wanted = (s.pooled(["conv"], statistic=statistic) for s in (store, whole))
        assert np.allclose(found, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(pipeline.errors.StoreError, match="keeps no frames"):
        store.read(0, ["conv"])
