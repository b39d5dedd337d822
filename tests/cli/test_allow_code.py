"""`model.target` runs only with `--allow-code`, and never because a store or a sweep names it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import pipeline
from pipeline.config import ModelConfig, load_sweep_config
from pipeline.encoders.modules import registration
from pipeline.errors import ConfigError
from pipeline.events import Observer
from pipeline.predict.encoding import HeadEncoder
from pipeline.predict.own_code import is_own_code
from pipeline.probing.run import sweep
from tests.helpers import toy_modules
from tests.helpers.commands import error_line, last_json, strata
from tests.helpers.corpus import write_folder
from tests.helpers.toy_modules import LAYERS

ONE = ("engine=inline", "engine.threads=1")
CODE = """
from pathlib import Path
from tests.helpers.toy_modules import make, make_nothing
Path({marker!r}).touch()
"""
LAYERS_SETTING = f"model.layers=[{','.join(LAYERS)}]"
TARGET = ("model=module", "model.target=own_code:make", LAYERS_SETTING)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, the store `features` that `own_code:make` has made of them, and its sweep `ks`."""
    root = tmp_path_factory.mktemp("code")
    write_folder(root / "clips", [0.3 + 0.01 * i for i in range(24)])
    (root / "own_code.py").write_text(CODE.format(marker=str(root / "ran")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(registration, "_ALLOWED", {})
        done = strata("extract", *data(root), *TARGET, *ONE, "--allow-code", "store=features")
    assert done.returncode == 0, done.stderr
    settings = ["task=ks", "labels=[word]", "task.speaker_independent=false", "seeds=[0]"]
    settings += ["task.lrs=[1e-2]", "task.steps=4", "task.eval_every=2", "split.speaker=none"]
    settings += ["split.ratios=[0.5,0.25,0.25]", f"out={root / 'ks'}"]
    sweep(root / "features", load_sweep_config(settings))
    return root


@pytest.fixture(autouse=True)
def own(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has neither imported nor allowed the code."""
    (swept / "ran").unlink(missing_ok=True)
    sys.modules.pop("own_code", None)
    monkeypatch.chdir(swept)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registration, "_ALLOWED", {})
    monkeypatch.setattr(registration, "_REGISTERED", {})


def data(root: Path) -> list[str]:
    return ["dataset=audiofolder", f"dataset.path={root / 'clips'}"]


def has_run(root: Path) -> bool:
    """Whether the code was imported."""
    return (root / "ran").exists()


@pytest.mark.parametrize(
    "verb",
    [["plan"], ["extract", "store=new"], ["selfcheck"], ["fidelity", "features"]],
    ids=lambda verb: verb[0],
)
def test_without_permission_nothing_is_imported(swept: Path, verb: list[str]) -> None:
    """One line says what would run, and which option allows it."""
    settings = data(swept) if verb[0] != "selfcheck" else []
    done = strata(*verb, *settings, *TARGET)
    assert done.returncode == 2
    line = error_line(done)
    assert "model.target=own_code:make imports own_code and calls its code" in line
    assert "--allow-code" in line
    assert not has_run(swept)
    assert not (swept / "new").exists()


def test_with_permission_the_code_of_the_current_folder_runs(swept: Path) -> None:
    """In every verb that loads an encoder; the identity names the code."""
    planned = strata("plan", *data(swept), *TARGET, "--allow-code", "--json")
    assert last_json(planned)["utterances"] == 24
    assert has_run(swept)
    resumed = strata("extract", *data(swept), *TARGET, *ONE, "--allow-code", "store=features")
    assert resumed.returncode == 0, resumed.stderr
    checked = strata("selfcheck", *TARGET, "--allow-code", "--json")
    assert last_json(checked)["ok"], checked.stderr
    settings = [*data(swept), *TARGET, "n_utterances=2", "--allow-code", "--json"]
    assert last_json(strata("fidelity", "features", *settings))["n_utterances"] == 2
    encoder = pipeline.open_store("features").attributes["identity"]["encoder"]
    assert encoder["code"]["factory"] == "tests.helpers.toy_modules:make"


def test_what_fails_in_the_code_is_one_line(swept: Path) -> None:
    """With the type and the text of the exception; `--debug` adds the traceback."""
    target = ["model=module", "model.target=own_code:make_nothing", LAYERS_SETTING]
    done = strata("plan", *data(swept), *target, "--allow-code")
    assert done.returncode == 1
    assert "make_nothing failed: FileNotFoundError: no file encoder.pt" in error_line(done)
    debug = strata("plan", *data(swept), *target, "--allow-code", "--debug")
    assert "Traceback" in debug.stderr
    assert 'raise FileNotFoundError("no file' in debug.stderr


def test_a_store_that_names_code_is_used_without_it(swept: Path) -> None:
    """Reading, checking, relabelling and copying import nothing."""
    for arguments in (
        ["status", "features"],
        ["verify", "features"],
        ["inspect", "features", "clip-000.wav"],
        ["relabel", "features", *data(swept)],
        ["copy", "features", "copied", "layers=[1]"],
        ["predict", "ks", "features"],
    ):
        done = strata(*arguments)
        assert done.returncode == 0, done.stderr
    assert not has_run(swept)


@pytest.mark.parametrize("options", [[], ["--allow-code"]], ids=["without", "with"])
def test_what_a_sweep_names_is_not_run(swept: Path, options: list[str]) -> None:
    """Not even with the option: it allows what the user names in the same command."""
    done = strata("predict", "ks", "clips/clip-000.wav", *options)
    assert done.returncode == 2
    line = error_line(done)
    assert "code that a sweep names is not run" in line
    assert f"model.target=own_code:make '{LAYERS_SETTING}' --allow-code" in line
    assert not has_run(swept)
    without = strata("predict", "ks", "clips/clip-000.wav", *TARGET)
    assert "needs your permission" in error_line(without)
    assert not has_run(swept)


@pytest.mark.parametrize(
    "recorded",
    [
        {"source": "module", "target": "own_code:make", "layers": list(LAYERS)},
        {"source": "module", "name": "own", "target": "own_code:make"},
        {"option": "module", "target": "own_code:make"},
        {"source": "huggingface", "name": "x", "target": "own_code:make"},
        {"source": "torchaudio", "name": "module", "target": "own_code:make"},
        {"name": "module", "weights": "pretrained", "target": "own_code:make"},
    ],
)
def test_no_form_of_a_recorded_target_is_run(swept: Path, recorded: dict[str, object]) -> None:
    """Whatever a head file says, with permission for another target or for any."""
    facts = replace(pipeline.Predictor("ks").head.facts, model=recorded)
    for allow in (False, True):
        with pytest.raises(ConfigError, match="code that a sweep names is not run"):
            HeadEncoder(facts, (), Observer(), allow)
    assert not has_run(swept)


def test_a_head_predicts_with_code_that_the_user_gives(swept: Path) -> None:
    """On the command line by the target, in Python also by registering it; weights are compared."""
    named = [*TARGET, "model.name=own_code:make"]
    done = strata("predict", "ks", "clips/clip-000.wav", *named, "--allow-code", "--json")
    assert done.returncode == 0, done.stderr
    [expected] = last_json(done)["predictions"]
    pipeline.register_encoder("own_code:make", toy_modules.make, layers=LAYERS)
    [found] = pipeline.Predictor("ks").predict_files(["clips/clip-000.wav"])
    assert found.prediction is not None
    assert found.prediction.labels[0] in json.dumps(expected)
    pipeline.register_encoder("own_code:make", toy_modules.make_other, layers=LAYERS)
    predictor = pipeline.Predictor("ks")
    with pytest.raises(
        pipeline.errors.IdentityError, match=r"^give the code of .*another encoder: "
    ):
        predictor.predict_files(["clips/clip-000.wav"])


def test_the_card_of_a_head_says_to_register_the_encoder(swept: Path, tmp_path: Path) -> None:
    """It does not name a place of weights."""
    done = strata("export-head", "ks", tmp_path / "head", "layer=2")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "head" / "README.md").read_text()
    assert 'load_encoder("own_code:make", layers=[2])' in card
    assert "register it first: docs/add_an_encoder.md" in card
    assert not has_run(swept)


def test_from_python_a_target_needs_an_argument(swept: Path) -> None:
    """`open_or_extract` of a complete store, which starts no process."""
    settings = {"model": {"source": "module", "target": "own_code:make", "layers": list(LAYERS)}}
    with pytest.raises(ConfigError, match="in Python allow_code=True"):
        pipeline.open_or_extract("features", dataset={"path": "clips"}, **settings)
    assert not has_run(swept)
    found = pipeline.open_or_extract(
        "features", dataset={"path": "clips"}, allow_code=True, **settings
    )
    assert len(list(pipeline.make_loader(found, max_frames_per_batch=500))) > 0
    assert has_run(swept)


def test_an_unset_target_names_no_code() -> None:
    """Stores record every setting of a model, also those without a value."""
    recorded = asdict(ModelConfig("tiny", weights="random"))
    assert "target" in recorded
    assert not is_own_code(recorded)
    assert is_own_code(recorded | {"target": "own_code:make"})
    assert is_own_code(recorded | {"source": "module"})
