"""Counts what a batch asks of a GPU: arithmetic, bytes, launches and memory, without a GPU.

    python -m benchmarks.gpu_count --model hubert_base --precision fp16

The batch runs on torch's fake tensors, which have shapes and no values. Nothing is measured: a
count says what is asked of the memory and of the products, and not how fast a device does it.
Every operation is taken as one launch that reads its inputs and writes its outputs once.
"""

from __future__ import annotations

import argparse
import gc
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pipeline.encoders.settings import resolve_settings
from pipeline.encoders.wav2vec2.bundles import find_model
from pipeline.encoders.wav2vec2.encoder import Wav2Vec2Encoder
from pipeline.encoders.wav2vec2.weights import LoadedModel
from pipeline.extract.stages.encode import count_needed_bytes
from pipeline.extract.stages.receive import DeviceReceiver
from pipeline.store.format.codecs import FLOAT16
from tests.helpers.fake_cuda import DEVICE, fake_cuda, place, why_not

ATTENTION = ("scaled_dot_product_attention", "_varlen_attn_out")
GATHERS = ("index", "index_select", "embedding", "gather")
NO_KERNEL = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty")
FILLS = ("zeros", "new_zeros", "ones", "new_ones", "arange", "new_full", "full")


class Counts(TorchDispatchMode):
    """Counts the operations on the fake device.

    Attributes:
        flop: Floating-point operations of products, by operation.
        moved: Bytes read and written, by operation.
        launches: Operations that compute or copy, by name.
        peak: Largest sum of the bytes of all tensors that exist at a time, without the weights.
    """

    def __init__(self, squares: int) -> None:
        """Start; `squares` is the sum of the squares of the numbers of frames of the clips."""
        super().__init__()
        self.flop, self.moved = Counter[str](), Counter[str]()
        self.launches, self.peak = Counter[str](), 0
        self._squares, self._live = squares, dict[int, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func.name()).rpartition("::")[2].partition(".")[0]
        if name not in ATTENTION and func is not torch.ops.prim.device.default:
            with self:  # in inference mode, torch hands over operations that consist of others
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        outputs = _on_device(result)
        if any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns):
            return result  # a view
        self._follow(outputs)
        if outputs and name not in NO_KERNEL:
            read, written = sum(map(_bytes, _on_device((args, kwargs)))), sum(map(_bytes, outputs))
            if name in GATHERS:  # reads as much of the first input as it writes
                read += min(_bytes(args[0]), written) - _bytes(args[0])
            self.moved[name] += written + (0 if name in FILLS else read)
            self.launches[name] += 1
            self.flop[name] += self._flop(func, name, args, kwargs, result)
        return result

    def _flop(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> int:
        if name == "_varlen_attn_out":  # [n_frames, heads, head_dim]: two products in each clip
            return int(4 * self._squares * args[1].shape[1] * args[1].shape[2])
        if name in ATTENTION:  # [clips, heads, n_frames, head_dim]
            return int(4 * args[0].numel() * args[1].shape[2])
        packet = getattr(torch.ops.aten, name.rstrip("_"), None)  # addmm_ is counted as addmm
        formula = flop_registry.get(packet)
        return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))

    def _follow(self, outputs: Sequence[Tensor]) -> None:
        """Add the memory of new tensors, until it is freed."""
        for storage in (output.untyped_storage() for output in outputs):
            if storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._live.values()))


def _on_device(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor) and x.is_cuda]


def _bytes(x: Tensor) -> int:
    """Return the bytes of a tensor; a view that repeats values has not more than its memory."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def count_batch(
    model: str, precision: str, lengths_s: Sequence[float], layers: str | Sequence[int] = "all"
) -> tuple[Counts, int]:
    """Count a batch; also return the bytes that an extraction takes it to need."""
    spec = find_model(model)
    settings = resolve_settings(spec.describe(), layers, "fp32", "cpu")
    lengths = [round(spec.sample_rate_hz * seconds) for seconds in lengths_s]
    with fake_cuda():
        built = LoadedModel(spec.build().requires_grad_(False), "random", "")
        encoder = place(Wav2Vec2Encoder(spec, built, settings))
        encoder._modules_for(precision)  # the weights are prepared once
        frames = [encoder.geometry.n_frames(n) for n in lengths]
        gc.collect()
        with Counts(sum(n**2 for n in frames)) as counts:
            batch = encoder.encode_batch([torch.zeros(n) for n in lengths], precision=precision)
            DeviceReceiver(DEVICE, FLOAT16).receive(batch, None, frames, None)
    return counts, count_needed_bytes(sum(frames), len(encoder.layers), encoder.dim)


def main() -> None:
    """Print the counts of one batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="hubert_base", help="as in `strata models`")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--clips-s", type=float, nargs="+", default=[2.0 + i for i in range(24)])
    arguments = parser.parse_args()
    if why_not():
        raise SystemExit(f"error: {why_not()}")
    counts, needed = count_batch(arguments.model, arguments.precision, arguments.clips_s)
    audio_s = sum(arguments.clips_s)
    parts = counts.launches, counts.moved, counts.flop
    print("A count on fake tensors. Nothing was run on a GPU, and nothing was measured.")
    print(
        f"{arguments.model}, {arguments.precision}, {len(arguments.clips_s)} clips, {audio_s:g} s"
    )
    print(f"launches: {counts.launches.total()}")
    print(f"memory at once: {counts.peak / 1e9:.2f} GB; taken to need {needed / 1e9:.2f} GB")
    print(f"\n{'per second of audio':32}{'launches':>9}{'MB':>9}{'GFLOP':>9}")
    rows = {name: [part[name] for part in parts] for name, _ in counts.moved.most_common(15)}
    for name, (n, moved, flop) in {"total": [part.total() for part in parts], **rows}.items():
        print(f"{name:32}{n / audio_s:9.2f}{moved / audio_s / 1e6:9.2f}{flop / audio_s / 1e9:9.2f}")


if __name__ == "__main__":
    main()
