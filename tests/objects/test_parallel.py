"""Calls in several threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.objects.parallel import run_parallel

AT_EXIT = """
import atexit
from pipeline.objects.parallel import run_parallel
atexit.register(lambda: print(run_parallel(abs, [-1, 2, -3], 2)))
run_parallel(abs, [1, 2], 2)
"""


def test_results_are_in_order_and_errors_are_raised() -> None:
    """Whether there are none, one or many items."""
    for n in (0, 1, 50):
        assert run_parallel(str, range(n), 4) == [str(i) for i in range(n)]
    with pytest.raises(ValueError, match="invalid literal"):
        run_parallel(int, ["1", "x", "3"], 2)


def test_a_process_that_ends_makes_the_calls_itself() -> None:
    """It starts no threads any more, and `cached` commits its last unit then."""
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True)
    assert done.stdout.strip() == "[1, 2, 3]", done.stderr
