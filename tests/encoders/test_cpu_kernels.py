"""Linear maps: oneDNN's fused products equal those of torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.encoders.kernels import cpu as linear
from pipeline.encoders.kernels.cpu import Linear, can_pack

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


@pytest.fixture(params=["packed", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations; the packed one only if this machine has it."""
    if request.param == "plain":
        monkeypatch.setattr(linear, "can_pack", lambda device, dtype: False)
    elif not can_pack(torch.device("cpu"), torch.float32):
        pytest.skip("oneDNN has no fused products on this machine")
    return request.param


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_rows", [1, 7, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_every_form_is_the_product_in_float64(way, dtype, n_rows, bias) -> None:
    """Plain, with GELU and with a sum, a product equals that in float64 up to rounding."""
    if way == "packed" and not can_pack(torch.device("cpu"), dtype):
        pytest.skip(f"no fused products in {dtype} on this machine")
    random = torch.Generator().manual_seed(n_rows)
    # Values that the dtype holds exactly, so that only the product itself is judged.
    weight = (torch.randn(96, 160, generator=random) / 12).to(dtype).float()
    x = torch.randn(n_rows, 160, generator=random).to(dtype)
    offset = torch.randn(96, generator=random).to(dtype).float() if bias else None
    term = torch.randn(n_rows, 96, generator=random).to(dtype)
    product = Linear(weight, offset, dtype)
    assert product._packed == (way == "packed")

    exact = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    with torch.inference_mode():
        for got, wanted in [
            (product(x), exact),
            (product(x.float()), exact),
            (product(x, gelu=True), F.gelu(exact)),
            (product.add(x, term.clone()), exact + term.double()),
        ]:
            assert got.dtype == dtype
            error = (got.double() - wanted).abs().max() / wanted.abs().max()
            assert error <= TOLERANCE[dtype]


def test_rows_may_overlap_in_memory(way) -> None:
    """The windows of a strided convolution are views whose rows overlap."""
    samples = torch.randn(2_000, generator=torch.Generator().manual_seed(0))
    views = samples.as_strided((100, 16), (19, 1), 5)
    product = Linear(torch.eye(16)[:8], None, torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(product(views), views[:, :8])
        torch.testing.assert_close(
            product.add(views, views[:, 8:].clone()), views[:, :8] + views[:, 8:]
        )


def test_half_precision_on_a_cpu_is_left_to_torch() -> None:
    """fp16 products are not packed: few CPUs support them."""
    assert not can_pack(torch.device("cpu"), torch.float16)
    assert not can_pack(torch.device("cuda"), torch.float32)
