"""Wrong settings are refused by every verb, before any data is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import Config, load_config
from pipeline.encoders.wav2vec2.families import TorchaudioFamily
from pipeline.errors import ConfigError
from pipeline.extract import run
from pipeline.extract.encoder_setup import resolve_encoder_setup
from pipeline.extract.selfcheck import full_selfcheck
from tests.helpers.corpus import write_folder

WRONG = {
    "precision": ("extract.precision=fp64", "'fp64' is not one of auto, fp32, tf32, bf16, fp16"),
    "layer": ("extract.layers=[1,13]", "a list of layers 0 to 12"),
    "layers": ("extract.layers=best", "expected all, superb, or a list"),
    "window": ("extract.max_window_s=0", "max_window_s is 0.0; expected seconds, 1 or more and at"),
    "endless window": ("extract.max_window_s=inf", "max_window_s is inf; expected seconds"),
    "context": ("extract.context_s=-1", "context_s is -1.0; expected seconds, 0 or more and"),
    "all context": ("extract.max_window_s=9", "nothing between two contexts of 5 s"),
    "little but context": ("extract.max_window_s=10.5", "keeps 0.5 s between two contexts of 5 s"),
    "model": ("model.name=hubert_bass", "did you mean hubert_base"),
    "weights": ("model.weights=nowhere.pt", "there are no weights at nowhere.pt"),
    "no pretrained": ("model.weights=pretrained", "tiny has no pretrained weights"),
    "device": ("engine.device=tpu", "'tpu'; expected auto, cpu or cuda"),
    "workers": ("engine.workers=2", "engine=inline has one worker"),
}


def check(config: Config) -> None:
    full_selfcheck(config, "cpu")


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("verb", [run.plan, run.extract, check], ids=["plan", "extract", "check"])
def test_wrong_settings_are_refused_before_anything_is_read(
    name: str, verb: Callable[[Config], object], tmp_path: Path
) -> None:
    """The dataset does not exist, but the message is about the setting; no store is created."""
    override, message = WRONG[name]
    store = tmp_path / "store"
    common = ["dataset.path=nowhere", "model=tiny", "engine=inline", f"store={store}"]
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        verb(load_config([*common, override]))
    assert not store.exists()


@pytest.mark.parametrize("verb", ["plan", "extract", "selfcheck"])
def test_a_wrong_setting_is_a_usage_error(verb: str) -> None:
    """Every verb exits with code 2 and prints one line."""
    done = CliRunner().invoke(
        app,
        [verb, "dataset.path=nowhere", "store=elsewhere", "model=tiny", "extract.precision=fp64"],
    )
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert "fp64" in line


def test_a_plan_loads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretrained weights are not downloaded, and random ones are not created."""

    def load(*arguments: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(TorchaudioFamily, "load", load)
    folder = write_folder(tmp_path / "clips", [0.5, 1.0])
    for model in ("model=hubert_base", "model=tiny"):
        config = load_config([f"dataset.path={folder}", model, "engine=inline"])
        assert run.plan(config).utterances == 2


def test_the_precision_follows_the_workers_device(tmp_path: Path) -> None:
    """A driver without a GPU loads the encoder in the precision of workers with one."""
    setup = resolve_encoder_setup(load_config(["dataset.path=x", "model=tiny", "engine=inline"]))
    assert setup.loader("cpu")().precision == "fp32"
    encoder = setup.loader("cuda", "cpu")()
    assert (encoder.precision, encoder.device.type) == ("fp16", "cpu")


def test_a_choice_of_layers_is_described_in_one_line(tmp_path: Path) -> None:
    """The last block and the saved space; None if layers 1 to N are all extracted."""

    def line(layers: str) -> str | None:
        common = ["dataset.path=x", "model=tiny", "engine=inline"]
        return resolve_encoder_setup(
            load_config([*common, f"extract.layers={layers}"])
        ).describe_savings()

    assert line("all") is None
    assert line("superb") is None
    assert line("[1,6]") == (
        "layers [1, 6]: stops after block 6 of 12 and takes 83% less space than layers 1 to 12"
    )
    assert line("[12]") == (
        "layers [12]: runs all 12 blocks and takes 92% less space than layers 1 to 12"
    )
    assert line("[0,1,2,3,4,5,6,7,8,9,10,11]") == (
        "layers [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]: stops after block 11 of 12 and takes as "
        "much space as layers 1 to 12"
    )
