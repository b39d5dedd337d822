"""Benchmarks and campaigns that no test runs import what is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("pipeline", "tests", "benchmarks", "campaigns")
PROGRAMS = [path for folder in OURS[2:] for path in sorted((ROOT / folder).glob("*.py"))]


def names_of(path: Path) -> set[str]:
    """Return what a module defines or imports at its top level, in branches, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_imports_of_this_project_are_there(path: Path) -> None:
    """Every module and name that a program imports from this project exists."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in OURS:
            continue
        place = ROOT / str(node.module).replace(".", "/")
        module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        assert module.exists(), f"{path.name} imports {node.module}"
        names = names_of(module)
        for alias in node.names:
            is_there = alias.name in names or (place / f"{alias.name}.py").exists()
            is_lazy = "__getattr__" in names  # of a package that imports when it is asked
            assert is_there or is_lazy or (place / alias.name).is_dir(), (
                f"{path.name} imports {alias.name} from {node.module}"
            )
