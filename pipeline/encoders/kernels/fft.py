"""The positional convolution by FFT, for CPUs.

It needs 1/30 of the arithmetic of the direct form, which accounted for 1/20 of the encoder's time.
Clips are placed in one stream with zeros between them, and the stream is cut into overlapping
blocks (overlap-save: Oppenheim and Schafer, "Discrete-Time Signal Processing", section 8.7), so no
clip is padded to the length of another. An unused block separates neighbours, so that no output is
computed from a block that holds two clips: the rounding error of a loud one would reach the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.encoders.kernels.base import Pack
from pipeline.encoders.kernels.reference import gelu_


class FourierConvolution:
    """`gelu(conv(x))` of each clip, with zero padding at its ends, in float32."""

    def __init__(self, weight: Tensor, bias: Tensor, n_groups: int, *, gelu: bool = True) -> None:
        """Prepare the weights.

        Args:
            weight: float32 `[dim, dim / n_groups, kernel]`.
            bias: float32 `[dim]`.
            n_groups: Number of groups.
            gelu: Whether GELU follows.
        """
        self._gelu = gelu
        self._n_groups = n_groups
        self._kernel = weight.shape[2]
        self._bias = bias.detach().float()
        kernels = weight.detach().view(n_groups, -1, *weight.shape[1:])  # [group, out, in, kernel]
        spectrum: Tensor = torch.fft.rfft(kernels.double(), n=2 * self._kernel)
        # Conjugate spectrum, complex64 [frequency, group, in, out].
        self._spectrum = spectrum.conj().permute(3, 0, 2, 1).to(torch.complex64).contiguous()

    def __call__(self, x: Tensor, pack: Pack) -> Tensor:
        """Convolve packed frames `[n_frames, dim]`; return float32 of the same shape."""
        dim, size = x.shape[1], 2 * self._kernel
        step = size - self._kernel + 1  # output frames of a block
        positions, n_blocks = [], 0
        for count in pack.counts:  # its own blocks, and one whose output is not used
            positions.append(torch.arange(count) + n_blocks * step)
            n_blocks += -(-count // step) + 1
        rows = torch.cat(positions)
        stream = x.new_zeros((n_blocks - 1) * step + size, dim, dtype=torch.float32)
        stream.index_copy_(0, rows + self._kernel // 2, x.float())
        blocks = stream.view(len(stream), self._n_groups, -1).unfold(0, size, step)
        spectra = torch.fft.rfft(blocks).permute(3, 1, 0, 2)  # [frequency, group, block, in]
        products = spectra @ self._spectrum  # [frequency, group, block, out]
        products = products.permute(2, 0, 1, 3).flatten(2)  # [block, frequency, dim]
        y: Tensor = torch.fft.irfft(products, n=size, dim=1)[:, :step].reshape(-1, dim)
        y = y.index_select(0, rows) + self._bias
        return gelu_(y) if self._gelu else y
