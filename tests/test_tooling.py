"""What surrounds the code: checks before a commit, typing, and lists of scripts."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]


def test_pre_commit_runs_the_fast_checks_of_scripts_test() -> None:
    """The same commands, from .venv, so that nothing is downloaded and nothing differs."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    script = (ROOT / "scripts" / "test").read_text()
    commands = re.findall(r"^(?:nice -n \d+ )?(\.venv/bin/.*?)(?: >.*)?$", script, re.M)
    assert [hook["entry"] for hook in hooks] == [c for c in commands if "pytest" not in c]


def test_torch_has_the_threads_of_the_environment() -> None:
    """It was set before torch was imported: a process that is forked from more threads may hang."""
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


def test_the_package_is_typed() -> None:
    """Type checkers read the annotations of an installed Strata."""
    assert (ROOT / "pipeline" / "py.typed").exists()


@pytest.mark.parametrize("name", ["benchmarks", "campaigns"])
def test_every_script_has_a_line_in_its_readme(name: str) -> None:
    """A row for every script that is run, and no row for one that is gone."""
    text = (ROOT / name / "README.md").read_text()
    listed = set(re.findall(r"^\| `([\w.]+)`", text, re.M))
    assert listed <= {path.name for path in (ROOT / name).iterdir()}
    scripts = {p.name for p in (ROOT / name).glob("*.py") if "__main__" in p.read_text()}
    assert scripts <= set(re.findall(r"`([\w.]+)`", text))  # as a row, or as the code of one
