"""The positional convolution: grouped, over 128 frames, added to the transformer's input.

On CPUs it is computed by FFT, always in float32. The FFT form needs 1/30 of the arithmetic of the
direct form, which accounted for 1/20 of the encoder's time. Utterances are placed in one stream
with zeros between them, and the stream is cut into overlapping blocks (overlap-save: Oppenheim and
Schafer, "Discrete-Time Signal Processing", section 8.7), so no utterance is padded to the length of
another. An unused block separates neighbours, so that no output is computed from a block that holds
two utterances: the rounding error of a loud one would reach the other. On other devices the
convolution is torch's, on a zero-padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.cpu import gelu_


class PositionalConvolution:
    """`gelu(conv(x))` of each utterance, with zero padding at its ends."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        """Prepare the weights.

        Args:
            module: torchaudio's `ConvolutionalPositionalEmbedding`, float32.
            dtype: Dtype of the computation on other devices than CPUs.
        """
        weight: Tensor = module.conv.weight.detach()  # [dim, dim / groups, kernel]
        self._n_groups: int = module.conv.groups
        self._kernel = weight.shape[2]
        self._reach = self._kernel // 2  # frames before the current one in the receptive field
        on_cpu = weight.device.type == "cpu"
        self._bias = module.conv.bias.detach().to(torch.float32 if on_cpu else dtype)
        self._direct = None if on_cpu else weight.to(dtype)
        self._spectrum = self._transform(weight) if on_cpu else None

    def __call__(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Convolve each utterance separately.

        Args:
            x: `[rows, dim]`, the concatenated utterances.
            counts: Number of frames of each utterance.

        Returns:
            `[rows, dim]`, float32 on a CPU, otherwise in the dtype of the products.
        """
        if self._spectrum is not None:
            return gelu_(self._by_fft(x, counts, self._spectrum))
        assert self._direct is not None
        return gelu_(self._by_convolution(x, counts, self._direct))

    def _transform(self, weight: Tensor) -> Tensor:
        """Transform the kernels: conjugate spectrum, complex64 `[frequency, group, in, out]`."""
        kernels = weight.view(self._n_groups, -1, *weight.shape[1:])  # [group, out, in, kernel]
        spectrum: Tensor = torch.fft.rfft(kernels.double(), n=2 * self._kernel)
        return spectrum.conj().permute(3, 0, 2, 1).to(torch.complex64).contiguous()

    def _by_fft(self, x: Tensor, counts: Sequence[int], spectrum: Tensor) -> Tensor:
        dim, size = x.shape[1], 2 * self._kernel
        step = size - self._kernel + 1  # output frames of a block
        positions, n_blocks = [], 0
        for count in counts:  # its own blocks, and one whose output is not used
            positions.append(torch.arange(count) + n_blocks * step)
            n_blocks += -(-count // step) + 1
        rows = torch.cat(positions)
        stream = x.new_zeros((n_blocks - 1) * step + size, dim, dtype=torch.float32)
        stream.index_copy_(0, rows + self._reach, x.float())
        blocks = stream.view(len(stream), self._n_groups, -1).unfold(0, size, step)
        spectra = torch.fft.rfft(blocks).permute(3, 1, 0, 2)  # [frequency, group, block, in]
        products = spectra @ spectrum  # [frequency, group, block, out]
        products = products.permute(2, 0, 1, 3).flatten(2)  # [block, frequency, dim]
        y: Tensor = torch.fft.irfft(products, n=size, dim=1)[:, :step].reshape(-1, dim)
        result: Tensor = y.index_select(0, rows) + self._bias
        return result

    def _by_convolution(self, x: Tensor, counts: Sequence[int], weight: Tensor) -> Tensor:
        parts = torch.split(x.to(weight.dtype), list(counts))
        padded = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
        with _exact_convolution(weight):
            y = F.conv1d(
                padded.transpose(1, 2),
                weight,
                self._bias,
                padding=self._reach,
                groups=self._n_groups,
            )
        y = y.transpose(1, 2)  # an even kernel gives one frame too many
        return torch.cat([y[i, :count] for i, count in enumerate(counts)])


def _exact_convolution(weight: Tensor) -> AbstractContextManager[None]:
    """Keep cuDNN from rounding float32 to TF32, which it does by default."""
    if weight.is_cuda and weight.dtype == torch.float32:
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return nullcontext()
