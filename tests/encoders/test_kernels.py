"""The tuned operations of each device equal the reference in float64.

Those of GPUs run here on the CPU, except for `varlen_attn`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.encoders.kernels import cpu
from pipeline.encoders.kernels.base import Kernels, Pack, RelativePositions, wide_dtype
from pipeline.encoders.kernels.cpu import CpuKernels, can_pack
from pipeline.encoders.kernels.cuda import CudaKernels
from pipeline.encoders.kernels.grouping import pad_in_groups
from pipeline.encoders.kernels.reference import PlainLinear, ReferenceKernels

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


@pytest.fixture(params=["packed", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations; the packed one if this machine has it, whether faster or not."""
    monkeypatch.setattr(cpu, "is_packing_faster", lambda: request.param == "packed")
    if request.param == "packed" and not can_pack(torch.device("cpu"), torch.float32):
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
    product = CpuKernels().linear(weight, offset, dtype)
    assert isinstance(product, PlainLinear) == (way == "plain")

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
    product = CpuKernels().linear(torch.eye(16)[:8], None, torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(product(views), views[:, :8])
        torch.testing.assert_close(
            product.add(views, views[:, 8:].clone()), views[:, :8] + views[:, 8:]
        )


def test_half_precision_on_a_cpu_is_left_to_torch() -> None:
    """fp16 products are not packed: few CPUs support them."""
    assert not can_pack(torch.device("cpu"), torch.float16)
    assert not can_pack(torch.device("cuda"), torch.float32)


KERNELS = {"cpu": CpuKernels, "cuda": CudaKernels, "reference": ReferenceKernels}
DTYPES = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
COUNTS = [1, 40, 300, 40, 40, 17, 290, 2]


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return KERNELS[request.param]()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation, relative to the largest value of each clip."""
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max())


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_that_of_each_clip(kernels: Kernels, dtype, with_bias, head_dim) -> None:
    """With and without WavLM's gated position bias, whatever the neighbours."""
    random = torch.Generator().manual_seed(0)
    n_heads, dim = 4, 4 * head_dim
    pack = Pack(COUNTS, "cpu", kernels.row_multiple)
    projected = torch.randn(pack.n_rows, 3 * dim, generator=random).to(dtype)
    loud = slice(pack.starts[1], pack.starts[2])
    projected[loud] *= 4 if head_dim == 8 else 2  # scores add up as many products
    gates = bias = exact_bias = None
    if with_bias:
        wide = wide_dtype(dtype)
        gates = 2 + torch.randn(pack.n_rows, n_heads, generator=random).to(dtype).to(wide)
        by_distance = torch.randn(n_heads, 1023, generator=random).to(dtype)
        table = by_distance.unfold(1, 512, 1).flip(1)  # of query i and key j: j - i + 511
        bias = lambda n: table[:, :n, :n].to(wide)  # noqa: E731
        exact_bias = lambda n: table[:, :n, :n].double()  # noqa: E731
    with torch.inference_mode():
        found = kernels.attention(projected, pack, n_heads, gates, bias)
        exact = ReferenceKernels().attention(
            projected.double(), pack, n_heads, None if gates is None else gates.double(), exact_bias
        )
    assert found.shape == (pack.n_rows, dim)
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    for start, count in zip(pack.starts, pack.counts, strict=True):
        rows = slice(start, start + count)
        assert relative_error(found[rows], exact[rows]) <= DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_with_relative_positions_is_that_of_each_clip(kernels: Kernels, dtype) -> None:
    """Each pair of frames has the key of its distance, before and after the query."""
    random = torch.Generator().manual_seed(0)
    n_heads, head_dim, longest = 4, 8, max(COUNTS) + 20
    pack = Pack(COUNTS, "cpu", kernels.row_multiple)
    projected = torch.randn(pack.n_rows, 3 * n_heads * head_dim, generator=random).to(dtype)
    content, position = torch.randn(2, n_heads, head_dim, generator=random).to(dtype)
    table = torch.randn(n_heads, 2 * longest - 1, head_dim, generator=random).to(dtype)

    def keys(n: int) -> torch.Tensor:
        return table[:, longest - n : longest + n - 1]

    exact_keys = lambda n: keys(n).double()  # noqa: E731
    with torch.inference_mode():
        found = kernels.relative_attention(
            projected, pack, n_heads, RelativePositions(content, position, keys)
        )
        exact = ReferenceKernels().relative_attention(
            projected.double(),
            pack,
            n_heads,
            RelativePositions(content.double(), position.double(), exact_keys),
        )
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    for start, count in zip(pack.starts, pack.counts, strict=True):
        rows = slice(start, start + count)
        assert relative_error(found[rows], exact[rows]) <= DTYPES[dtype]


@pytest.mark.parametrize("kernel", [1, 7, 31])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_channel_is_convolved_within_its_clip(kernels: Kernels, dtype, kernel) -> None:
    """By the definition, for clips that are shorter and longer than the kernel."""
    random = torch.Generator().manual_seed(0)
    pack, dim, reach = Pack(COUNTS, "cpu"), 6, kernel // 2
    x = torch.randn(pack.n_frames, dim, generator=random)
    x[pack.starts[2] : pack.starts[3]] *= 1e4
    weight, bias = torch.randn(dim, kernel, generator=random), torch.randn(dim, generator=random)
    with torch.inference_mode():
        found = kernels.depthwise_convolution(weight.to(dtype), bias.to(dtype))(x, pack)
    assert (found.dtype, found.shape) == (dtype, x.shape)
    for start, count in zip(pack.starts, pack.counts, strict=True):
        rows = slice(start, start + count)
        padded = F.pad(x[rows].double(), (0, 0, reach, reach))
        weighted = padded.unfold(0, kernel, 1) * weight.to(dtype).double()
        exact = weighted.sum(-1) + bias.double()
        assert relative_error(found[rows], exact) <= DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_clip_is_multiplied_with_its_own_matrix(kernels: Kernels, dtype) -> None:
    """In blocks as the front end passes them."""
    random = torch.Generator().manual_seed(0)
    owners = np.array([0, 0, 1, 2, 2, 2, 4])  # a clip of no block as well
    windows = torch.randn(7 * 24, 32, generator=random).to(dtype)
    factors = torch.randn(5, 32, 48, generator=random).to(dtype)
    out = torch.full((7 * 24, 48), torch.nan, dtype=dtype)
    kernels.clip_products(windows, factors, owners, out)
    for block, owner in enumerate(owners):
        rows = slice(block * 24, (block + 1) * 24)
        exact = windows[rows].double() @ factors[owner].double()
        assert relative_error(out[rows], exact) <= DTYPES[dtype]


def test_groups_of_like_length_hold_every_frame_once() -> None:
    """Padding is at most 15 % and up to 16 frames; the places restore the order of the pack."""
    pack = Pack([700, 3, 650, 40, 38, 1, 700, 16, 500] + [30] * 40, "cpu")
    padded = pad_in_groups(pack)
    frames = torch.cat([group.rows.flatten() for group in padded.groups])
    padding = torch.cat([group.is_padding.flatten() for group in padded.groups])
    assert torch.equal(frames[padded.places], torch.arange(pack.n_frames))
    assert not padding[padded.places].any()
    assert int((~padding).sum()) == pack.n_frames
    assert padded.n_frames == 704
    for group in padded.groups:
        lengths = (~group.is_padding).sum(1)
        assert lengths.min() >= 0.85 * lengths.max()
        assert group.rows.shape[1] % 16 == 0
        assert group.rows.shape[1] - int(lengths.max()) < 16


def test_a_pack_knows_its_clips() -> None:
    """Starts, offsets, rows, and the clip and position of each frame."""
    pack = Pack([3, 1, 2], "cpu", row_multiple=4)
    assert (pack.starts, pack.n_frames, pack.n_rows, pack.longest) == ((0, 3, 4), 6, 8, 3)
    assert pack.offsets.tolist() == [0, 3, 4, 6]
    assert pack.offsets.dtype == torch.int32
    assert pack.clip_of_frame.tolist() == [0, 0, 0, 1, 2, 2]
    assert pack.frame_in_clip.tolist() == [0, 1, 2, 0, 0, 1]
