"""Expected duration of training, from its first steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.config import load_sweep_config
from pipeline.probing.trainers import progress
from pipeline.probing.trainers.progress import StepTimer


class Clock:
    """Time that a test moves."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize(
    ("step_s", "eval_every", "at", "limit_s"),
    [
        (0.5, 50, 8, 50.0),  # more than 3 s after step 1
        (4.0, 50, 4, 400.0),  # three steps, however long they take
        (0.125, 8, 8, 12.5),  # before the evaluation after step 8
        (0.125, 2, 26, 12.5),  # two steps before an evaluation are too few
    ],
)
def test_the_duration_is_estimated_once_from_the_first_steps(
    monkeypatch, step_s, eval_every, at, limit_s
):
    """The first step, which takes longer, does not count; later steps give no estimate."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    task = replace(load_sweep_config(["task=asr"]).task, steps=100, eval_every=eval_every)
    timer = StepTimer(task, torch.device("cpu"))
    found = {}
    for step in range(1, 101):
        clock.now += 60.0 if step == 1 else step_s
        if (estimate := timer.limit_s(step)) is not None:
            found[step] = estimate
    assert found == {at: limit_s}
