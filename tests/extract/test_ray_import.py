"""A file of the user that hides the package from Ray's workers is named."""

from __future__ import annotations

import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from pipeline.config import EngineConfig
from pipeline.errors import RunError
from pipeline.extract.executors.ray_cluster import check_importable, connect
from pipeline.extract.resources import find_resources

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
    for start in (lambda: find_resources(RAY), lambda: connect(RAY, 1)):
        with pytest.raises(RunError, match=rf"{re.escape(name)} hides the package.*engine=inline"):
            start()
    assert find_resources(EngineConfig("inline")).n_workers == 1


def test_the_folder_of_the_script_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts it in front, too, wherever the script was started."""
    (tmp_path / "pipeline.py").write_text("")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    with pytest.raises(RunError, match=r"pipeline\.py hides the package"):
        check_importable()


def test_the_package_itself_and_other_names_are_no_obstacle(tmp_path: Path) -> None:
    """The folder of a checkout, a link to it, and folders without `__init__.py`."""
    (tmp_path / "pipelines.py").write_text("")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "train.py").write_text("")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "pipeline").symlink_to(ROOT / "pipeline")
    check_importable([tmp_path, ROOT, linked])
