"""What is wrong with the files of a checkpoint in Hugging Face form is said in one line."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import ModelConfig
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.registry import find_family
from pipeline.errors import ConfigError, StrataError, WeightsError
from tests.encoders.test_huggingface import make

transformers = pytest.importorskip("transformers")
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with three blocks."""
    folder: Path = tmp_path_factory.mktemp("sound") / "hubert"
    make(folder, "HubertModel", {}, normalize=False)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "hubert")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    kept = {name: value for name, value in (config | changes).items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(kept))


def edit_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def shard(folder: Path) -> None:
    """Write the weights in two parts with an index."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts = {f"model-0000{i + 1}-of-00002.safetensors": list(state)[i::2] for i in range(2)}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, folder / name, {"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {key: name for name, keys in parts.items() for key in keys},
    }
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def without_block(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state.items() if ".layers.1." not in key}


def error_of(folder: Path, kind: type[StrataError] = WeightsError) -> str:
    """Return the message of loading a checkpoint, which is one line."""
    with pytest.raises(kind) as caught:
        load_encoder(folder, source="huggingface", device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_weights_that_do_not_fit_are_counted_and_named(folder: Path) -> None:
    """Missing weights, those of another shape and extra blocks are refused, three by name."""
    edit_weights(folder, without_block)
    message = error_of(folder)
    assert "lacks 16 of the weights that its config.json requires, first" in message
    assert message.count("encoder.layers.1.") == 3
    edit_config(folder, intermediate_size=48, num_hidden_layers=1)
    assert "of other shapes than its config.json requires" in error_of(folder)
    assert "intermediate_dense.bias has [64], expected [48]" in error_of(folder)


def test_extra_blocks_are_refused(folder: Path) -> None:
    """A config.json with fewer blocks than the weights have is not believed."""
    edit_config(folder, num_hidden_layers=2)
    message = error_of(folder)
    assert "has 16 weights that its config.json does not account for" in message
    assert "encoder.layers.2." in message


def test_weights_of_a_head_are_named_in_a_note(folder: Path) -> None:
    """Weights that no encoder has are left out, and the encoder says which."""
    edit_weights(folder, lambda state: state | {"lm_head.weight": torch.zeros(3, 32)})
    encoder = load_encoder(folder, source="huggingface", device="cpu")
    [note] = encoder.notes
    assert note.startswith("1 weight of")
    assert note.endswith("are not used: lm_head.weight")


def test_transformers_prints_no_tables(folder: Path) -> None:
    """Its report of unused weights does not reach the terminal; its level and bar come back."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    before = transformers.utils.logging.get_verbosity()
    had_bar = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.add_handler(handler)
    transformers.utils.logging.enable_progress_bar()
    try:
        edit_weights(folder, lambda state: state | {"lm_head.weight": torch.zeros(3, 32)})
        load_encoder(folder, source="huggingface", device="cpu")
        assert transformers.utils.logging.is_progress_bar_enabled()
    finally:
        transformers.utils.logging.remove_handler(handler)
        if not had_bar:
            transformers.utils.logging.disable_progress_bar()
    assert records == []
    assert transformers.utils.logging.get_verbosity() == before


def test_damaged_weights_are_not_loaded(folder: Path) -> None:
    """A truncated file, and a pointer of git LFS in its place, each have their remedy."""
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])
    assert f"is damaged or incomplete ({len(content) - 100:,} bytes" in error_of(folder)
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n")
    assert "is a pointer of git LFS, not the weights; run `git lfs pull`" in error_of(folder)
    (folder / WEIGHTS).unlink()
    assert "has no weights; expected model.safetensors" in error_of(folder)


def test_weights_are_looked_for_before_a_run(folder: Path) -> None:
    """A description, as `plan` needs it, refuses a directory without whole weights."""
    family = find_family("huggingface")
    model = ModelConfig(str(folder), "huggingface")
    family.describe(model)
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(WeightsError, match="pointer of git LFS"):
        family.describe(model)
    (folder / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match="has no weights; expected model"):
        family.describe(model)
    assert family.describe(replace(model, weights="random")).n_layers == 3


def test_weights_in_parts(folder: Path, sound: Path) -> None:
    """Weights in several files are those of one; a missing part is named with its index.

    An index without parts is told as such.
    """
    shard(folder)
    encoders = [load_encoder(f, source="huggingface", device="cpu") for f in (folder, sound)]
    assert encoders[0].identity == encoders[1].identity
    (folder / "model-00002-of-00002.safetensors").unlink()
    message = error_of(folder)
    assert "has no model-00002-of-00002.safetensors, which model.safetensors.index.json" in message
    for content in ("{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'):
        (folder / f"{WEIGHTS}.index.json").write_text(content)
        assert "index.json of the Hugging Face" in (message := error_of(folder))
        assert message.endswith("has no weight_map; fetch it again")


def test_configurations_that_cannot_be_used(folder: Path) -> None:
    """A missing or broken config.json, and a missing or unknown type, each have their line."""
    edit_config(folder, model_type="hubertt")
    message = error_of(folder, ConfigError)
    assert "'hubertt' model, which the installed transformers does not know" in message
    assert "did you mean hubert" in message
    edit_config(folder, model_type=None)
    assert "has no model_type, which names the architecture" in error_of(folder)
    (folder / CONFIG).write_text("{")
    assert "config.json of the Hugging Face checkpoint" in error_of(folder)
    assert "is no JSON" in error_of(folder)
    (folder / CONFIG).write_text("[]")
    assert "holds a JSON list; expected an object" in error_of(folder)
    (folder / CONFIG).unlink()
    assert "has no config.json, which states the architecture" in error_of(folder)


def test_a_missing_preprocessor_is_not_guessed(folder: Path) -> None:
    """Sampling rate and normalisation change features, so that no default is taken for them."""
    (folder / "preprocessor_config.json").unlink()
    assert "states the sampling rate and the normalisation" in error_of(folder)


def test_an_architecture_is_checked_before_its_preprocessor(folder: Path) -> None:
    """A model that has no encoder needs no preprocessor, so that none is asked for."""
    (folder / "preprocessor_config.json").unlink()
    edit_config(folder, model_type="bert")
    assert "is a 'bert' model, which has no encoder here" in error_of(folder, ConfigError)
    edit_config(folder, model_type="hubret")
    assert "transformers does not know; did you mean hubert" in error_of(folder, ConfigError)


def test_names_that_are_no_checkpoints(folder: Path) -> None:
    """A file, a misspelt directory, a short name and a malformed id are each told apart."""
    assert "is a file; model=hf takes a directory" in error_of(folder / WEIGHTS, ConfigError)
    near = folder.with_name("hubrt")
    message = error_of(near, ConfigError)
    assert f"there is no such directory; did you mean {folder}?" in message
    assert "is a short name" in error_of(Path("hubert_base"), ConfigError)
    assert "use model=hubert_base" in error_of(Path("hubert_base"), ConfigError)
    assert "is neither a directory nor an id of the hub" in error_of(Path("a b"), ConfigError)


def test_a_revision_of_a_directory_is_refused(folder: Path) -> None:
    """It would be ignored: revisions are those of the hub."""
    with pytest.raises(ConfigError, match=r"model\.revision=main is for checkpoints on the hub"):
        load_encoder(folder, source="huggingface", revision="main")
