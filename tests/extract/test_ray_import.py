"""A file of the user that hides the package from Ray's workers is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import EngineConfig
from pipeline.errors import RunError
from pipeline.extract.executors.ray_cluster import check_importable, connect

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["pipeline.py", "pipeline/__init__.py"])
def test_a_module_named_like_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before Ray starts, whose workers would die one after the other."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("print('a training script')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=rf"{name} hides the package.*engine=inline"):
        connect(EngineConfig("ray"), 1)


def test_the_package_itself_and_other_names_are_no_obstacle(tmp_path: Path) -> None:
    """The folder of a checkout, a link to it, and folders that are no module."""
    (tmp_path / "pipelines.py").write_text("")
    (tmp_path / "pipeline").mkdir()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "pipeline").symlink_to(ROOT / "pipeline")
    check_importable([tmp_path, ROOT, linked])
