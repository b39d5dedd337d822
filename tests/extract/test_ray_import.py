"""A file of the user that hides the package from Ray's workers is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config import EngineConfig
from pipeline.errors import RunError
from pipeline.extract.executors.ray_cluster import (
    check_importable,
    connect,
    why_no_start,
    worker_folders,
)
from pipeline.extract.resources import find_resources
from tests.helpers.corpus import write_folder
from tests.helpers.extraction import overrides

ROOT = Path(__file__).parents[2]
RAY = EngineConfig("ray")


MODULES = [
    "pipeline.py",
    "pipeline/__init__.py",
    f"pipeline{EXTENSION_SUFFIXES[0]}",
    "pipeline.pyc",
    "pipeline/__init__.pyc",
]
"""All files that Python imports under this name."""


@pytest.mark.parametrize("name", MODULES)
def test_a_module_named_like_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before the dataset is read and Ray starts, whose workers would die one after the other."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("print('a training script')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` and notebooks do
    for start in (lambda: find_resources(RAY), lambda: connect(RAY, 1)):
        with pytest.raises(RunError, match=rf"{re.escape(name)} hides the package.*engine=inline"):
            start()
    assert find_resources(EngineConfig("inline")).n_workers == 1


def test_the_folder_of_the_script_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts it in front, too, wherever the script was started."""
    (tmp_path / "pipeline.py").write_text("")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    with pytest.raises(RunError, match=r"pipeline\.py hides the package"):
        find_resources(RAY)


def test_workers_search_the_working_directory_only_if_the_driver_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or with a Ray that others have started, to which Ray sends it in any case."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)  # other tests may have started one
    script = Path(sys.argv[0]).resolve().parent
    assert worker_folders(RAY) == [script]
    assert worker_folders(EngineConfig("ray", address="head:6379")) == [tmp_path, script]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
        assert worker_folders(RAY) == [tmp_path, script]
    monkeypatch.syspath_prepend("")
    assert worker_folders(RAY) == [tmp_path, script]


def test_workers_that_cannot_import_are_not_asked_about_memory(tmp_path: Path) -> None:
    """The file that hides a module is named; workers that were killed may need memory."""
    error = ValueError("an error raised in its creation task\n  frame\nImportError: no Random")
    assert why_no_start(error, [tmp_path], 2) == "ImportError: no Random"
    (tmp_path / "json.py").write_text("")
    said = why_no_start(error, [tmp_path], 2)
    assert said.startswith(f"ImportError: no Random. {tmp_path / 'json.py'} hides the module json")
    assert "rename it, run in another folder, or use engine=inline" in said
    assert "enough memory for 2 workers?" in why_no_start(ValueError("killed"), [tmp_path], 2)


@pytest.mark.ray
@pytest.mark.slow
def test_files_named_like_modules_hide_nothing_from_workers(tmp_path: Path) -> None:
    """The command runs in a folder that has some: workers import what the driver has imported."""
    write_folder(tmp_path / "clips", [0.4] * 3)
    for name in ("pipeline", "random", "datasets", "numpy", "soundfile", "conf", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a script of the user')")
    arguments = overrides(tmp_path / "clips", tmp_path / "store", "engine=ray", "engine.workers=1")
    command = [str(Path(sys.executable).parent / "strata"), "extract", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "3 of 3 utterances" in done.stdout


def test_the_package_itself_and_other_names_are_no_obstacle(tmp_path: Path) -> None:
    """The folder of a checkout, a link to it, and folders without `__init__.py`."""
    (tmp_path / "pipelines.py").write_text("")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "train.py").write_text("")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "pipeline").symlink_to(ROOT / "pipeline")
    check_importable([tmp_path, ROOT, linked])
