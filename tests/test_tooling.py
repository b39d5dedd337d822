"""The checks before a commit are those of scripts/test."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_pre_commit_runs_the_fast_checks_of_scripts_test() -> None:
    """The same commands, from .venv, so that nothing is downloaded and nothing differs."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    script = (ROOT / "scripts" / "test").read_text()
    assert [hook["entry"] for hook in hooks] == re.findall(r"^(\.venv/bin/.*)$", script, re.M)


def test_the_package_is_typed() -> None:
    """Type checkers read the annotations of an installed Strata."""
    assert (ROOT / "pipeline" / "py.typed").exists()
