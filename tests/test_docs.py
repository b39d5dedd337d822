"""The site of docs/: it builds without a warning, and has a page for every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pipeline

ROOT = Path(__file__).parents[1]
NAV = (ROOT / "mkdocs.yml").read_text()


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as scripts/docs does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", site]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_public_name_has_a_page(name: str) -> None:
    """Made from its docstring, in the navigation, and in the overview."""
    assert (ROOT / "docs" / "api" / f"{name}.md").read_text() == f"::: pipeline.{name}\n"
    assert f"          - {name}: api/{name}.md\n" in NAV
    assert f"[`{name}`]({name}.md)" in (ROOT / "docs" / "api" / "index.md").read_text()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links, anchors, included files and the docstrings of the API are sound."""
    pytest.importorskip("mkdocs")
    done = build(ROOT / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in pipeline.__all__:
        page = (tmp_path / "api" / name / "index.html").read_text()
        assert f'id="pipeline.{name}"' in page
        text = re.sub(r"<[^>]*>", "", page)
        summary = getattr(pipeline, name).__doc__.splitlines()[0].split("`")[0]
        assert summary in text, name
    links = re.findall(r'(?:src|href)="(https?://[^"]*)"', (tmp_path / "index.html").read_text())
    assert [link for link in links if "squidfunk" not in link] == []  # shown without a network


@pytest.mark.slow
def test_a_broken_link_or_docstring_fails_the_build(tmp_path: Path) -> None:
    """A link without a target and a parameter that a function does not have, both reported."""
    pytest.importorskip("mkdocs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[gone](gone.md)\n\n::: sick\n")
    (tmp_path / "sick.py").write_text(
        'def f(x: int) -> int:\n    """Add.\n\n    Args:\n        y: Missing.\n    """\n'
    )
    config = yaml.safe_load(NAV)
    del config["nav"], config["extra_css"]
    config["plugins"][1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(tmp_path)]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert "'gone.md', but the target is not found" in done.stderr
    assert "'y' does not appear in the function signature" in done.stderr
