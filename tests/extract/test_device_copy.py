"""Copy of features to the host."""

from __future__ import annotations

import pytest
import torch

from pipeline.extract.stages.device_copy import DeviceCopy


def test_on_the_cpu_nothing_is_copied_or_delayed() -> None:
    """The result is the tensor itself, available at once."""
    copy = DeviceCopy("cpu", torch.float16)
    features = torch.randn(3, 2, 5, 4)
    assert copy.depth == 0
    assert copy.start(features)() is features


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_copies_can_be_pending() -> None:
    """Each result is the rounded features, although the next copy was started before."""
    copy = DeviceCopy("cuda", torch.float16)
    sent = [torch.randn(3, 2, n, 4, device="cuda") for n in (50, 10, 70)]
    first, second = copy.start(sent[0]), copy.begin(sent[1])
    assert torch.equal(first(), sent[0].half().cpu())
    third = copy.start(sent[2])
    assert torch.equal(second(), sent[1].half().cpu())
    assert torch.equal(third(), sent[2].half().cpu())
