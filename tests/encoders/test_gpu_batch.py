"""A batch on a GPU: a fixed number of operations and no synchronisation, whatever its clips."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.encoders.kernels import cuda
from pipeline.encoders.kernels.cuda import CudaKernels
from pipeline.encoders.wav2vec2.stream import Stream
from pipeline.extract.stages.receive import DeviceReceiver
from pipeline.store.format.codecs import FLOAT16
from tests.helpers.encoder_kinds import small_encoder, speech

FILL = Stream.fill
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero", "equal")


class OperationCount(TorchDispatchMode):
    """Counts the operations that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func.name()).removeprefix("aten::").split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def count_operations(name: str, n_clips: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Encode and receive a batch of about 8 s as on a GPU; count the operations."""
    encoder = small_encoder(name, precision="fp16")
    encoder._kernels = CudaKernels()
    waveforms = [speech(128_000 // n_clips, seed) for seed in range(n_clips)]
    n_frames = sum(encoder.geometry.n_frames(len(waveform)) for waveform in waveforms)
    stored = torch.zeros(len(encoder.layers), n_frames, encoder.dim, dtype=torch.float16).numpy()
    counts = [encoder.geometry.n_frames(len(waveform)) for waveform in waveforms]
    filled: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        # The clips are copied on the host, one by one, into the memory of one transfer.
        patch.setattr(Stream, "fill", lambda *args: filled.append(FILL(*args)) or filled[0])
        for _ in encoder.encode_batch(waveforms):  # prepares the weights, too
            pass
    monkeypatch.setattr(Stream, "fill", lambda *args: filled[0])
    receiver = DeviceReceiver(torch.device("cpu"), FLOAT16)
    with OperationCount() as count:
        receiver.receive(encoder.encode_batch(waveforms), None, counts, stored)()
    return count.calls


@pytest.mark.parametrize("name", ["hubert_base", "hubert_large"])
def test_the_number_of_operations_does_not_depend_on_the_clips(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 and 40 clips of the same total length: no operation and no copy for each clip."""
    monkeypatch.setattr(cuda, "can_use_varlen", lambda projected, n_heads: True)
    monkeypatch.setattr(
        cuda, "_find_varlen_attention", lambda: lambda query, key, value, *rest: query + key + value
    )
    few, many = (count_operations(name, n, monkeypatch) for n in (2, 40))
    assert few == many
    assert sum(few.values()) < 450


@pytest.mark.parametrize("name", ["hubert_base", "wavlm_base", "hubert_large", "wavlm_large"])
def test_nothing_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is read on the host before the end of the batch, with any kind of attention."""
    calls = count_operations(name, 7, monkeypatch)
    assert not [operation for operation in SYNCHRONISING if calls[operation]]
