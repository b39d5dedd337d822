"""Blocks of code on the pages of the documentation."""

from __future__ import annotations

import os
import re
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.forked import Forked, finish
from tests.servers.base import free_port

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
    """Run a Python program of the repository in processes with the environment of torchrun.

    They are forked from one that has imported torch. torchrun itself is left out.

    Returns:
        What they print.
    """
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{free_port()}"}
    common |= {"WORLD_SIZE": f"{n_processes}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        Forked(
            _PROGRAM,
            ROOT / path,
            *arguments,
            environment=os.environ | common | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
        )
        for rank in range(n_processes)
    ]
    with ThreadPoolExecutor(n_processes) as pool:  # one may wait for what another prints
        return "".join(pool.map(lambda process: finish(process, 240), processes))


_PROGRAM = """
import runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
