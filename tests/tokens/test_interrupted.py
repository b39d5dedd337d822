"""`strata tokenize` is killed: what is lost, and that the same command completes it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.store.format.tokens import chunk_key
from pipeline.store.maintain.verify import verify_store
from tests.helpers.fake_store import KILL
from tests.helpers.forked import Forked, finish
from tests.helpers.token_stores import clustered_store, tokenized

NAME = "layer2-k5"
MANY = tuple(int(n) for n in np.random.default_rng(0).integers(20, 90, 40))

SLOW = """
import sys, time
from pipeline.store.tokens import stored
from pipeline.tokens import assigning
real = stored.put_chunk
def slow(backend, name, slot, tokens):
    real(backend, name, slot, tokens)
    time.sleep(0.2)
assigning.put_chunk = slow
sys.argv = ["strata", "tokenize", sys.argv[1], "layer=2", "k=5"]
from pipeline.cli.app import main
main()
"""
"""The real command; it only rests after each unit, so that a test can kill it in between."""

AT_ANY_POINT = (
    KILL
    + """
import contextlib, pathlib, shutil
import torch
from pipeline.tokens.run import tokenize
from pipeline.store.maintain.verify import verify_store
source, place = map(pathlib.Path, sys.argv[1:3])
torch.set_num_threads(1)
os.cpu_count = lambda: 1
n = killed = 0
while True:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source, place)
    if not killed_at(n, lambda: tokenize(str(place), 2, 5)):
        break
    killed += 1
    pid = os.fork()
    if pid == 0:
        assert verify_store(place).ok
        tokenize(str(place), 2, 5)
        assert verify_store(place).ok
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, n
    n += 23
print(killed)
"""
)


def chunks(root: Path) -> dict[str, bytes]:
    folder = root / f"features.zarr/tokens/{NAME}/c"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.isdecimal()}


@pytest.mark.slow
def test_a_killed_command_loses_the_unit_in_work(tmp_path):
    """Kill -9 in the middle: finished units stay; the rest is made with the same codebook."""
    for name in ("killed", "whole"):
        clustered_store(tmp_path / name, MANY)
    tokenized(tmp_path / "whole")
    command = Forked(SLOW, tmp_path / "killed")
    end = time.monotonic() + 60
    while not (tmp_path / "killed" / chunk_key(NAME, 2)).exists():
        assert time.monotonic() < end
        assert command.poll() is None, command.stderr.read()
        time.sleep(0.02)
    os.kill(command.pid, signal.SIGKILL)
    command.communicate()
    before = chunks(tmp_path / "killed")
    assert 3 <= len(before) < 10
    assert verify_store(tmp_path / "killed").ok
    result = pipeline.tokenize(tmp_path / "killed", 2, 5)
    assert (result.trained, result.units_written) == (False, result.units - len(before))
    after = chunks(tmp_path / "killed")
    assert {name: after[name] for name in before} == before
    assert after == chunks(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_any_system_call(tmp_path):
    """Whatever call it is killed before, the store is sound, and the next run completes it."""
    clustered_store(tmp_path / "source", (40, 250, 30))
    assert int(finish(Forked(AT_ANY_POINT, tmp_path / "source", tmp_path / "place"), 150)) > 3
