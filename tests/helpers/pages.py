"""Blocks of code on the pages of the documentation."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Block(NamedTuple):
    """A block of code on a page; `text` begins on line `line`."""

    language: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the page's shell and Python blocks, in order; included programs are left out."""
    text = page.read_text()
    return [
        Block(found[1], text.count("\n", 0, found.start(2)), found[2])
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.S | re.M)
    ]


def included(page: Path) -> list[str]:
    """Return the programs that the page shows in full, as paths within the repository."""
    return re.findall(r"^```python title=.*\n--8<--\n(.*)\n--8<--\n```$", page.read_text(), re.M)


def run_program(monkeypatch: pytest.MonkeyPatch, path: str, *arguments: str) -> None:
    """Run a Python program of the repository in this process, which saves importing torch."""
    with monkeypatch.context() as changed:
        changed.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(str(ROOT / path), run_name="__main__")


def run_processes(path: str, *arguments: str, n_processes: int = 2) -> str:
    """Run a Python program of the repository as torchrun does; return what it prints."""
    command = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", f"{n_processes}", str(ROOT / path), *arguments),
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
