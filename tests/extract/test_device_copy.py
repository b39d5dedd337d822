"""Bringing features to the host."""

from __future__ import annotations

import pytest
import torch

from pipeline.extract.stages.device_copy import DeviceCopy


def test_on_the_cpu_nothing_is_moved_or_held_back() -> None:
    """Features arrive as they are, at once."""
    transfer = DeviceCopy("cpu", torch.float16)
    features = torch.randn(3, 2, 5, 4)
    assert transfer.depth == 0
    assert transfer.start(features)() is features


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_transfers_are_under_way_at_once() -> None:
    """Each arrives rounded to float16 as it was, though the next one was begun before."""
    transfer = DeviceCopy("cuda", torch.float16)
    sent = [torch.randn(3, 2, n, 4, device="cuda") for n in (50, 10, 70)]
    first, second = transfer.start(sent[0]), transfer.begin(sent[1])
    assert torch.equal(first(), sent[0].half().cpu())
    third = transfer.start(sent[2])
    assert torch.equal(second(), sent[1].half().cpu())
    assert torch.equal(third(), sent[2].half().cpu())
