"""The encode stage: from waveforms to features in the unit's buffer.

The unit of the encoder is a clip: a whole utterance, or a window of a long one. Batches are
consecutive clips, in the order of the plan, so the kept frames of a batch are contiguous in the
buffer, and a batch depends on the plan alone.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoders.base import Encoder
from pipeline.encoders.clips import encode_clips
from pipeline.errors import EncoderError
from pipeline.extract.stages import malloc
from pipeline.extract.stages.decode import Utterance
from pipeline.extract.stages.receive import PendingBatch, ScaledClip, open_receiver
from pipeline.extract.stages.timing import Stopwatch
from pipeline.store.format import records
from pipeline.store.format.codecs import Codec, FloatArray
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import make_batches
from pipeline.store.tensors import encode_into, measure
from pipeline.store.write.buffer import UnitBuffer

_FIXED_BYTES = 2 * 10**9
_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Errors of CUDA itself and of cuBLAS, which torch does not raise as an OutOfMemoryError."""
_BATCHES_BETWEEN_TRIMS = 8  # also over several small units; after every batch they take 3 %
T = TypeVar("T")
Statistics = FloatArray
OnFinal = Callable[[Utterance, Statistics | None], None]
"""Called with each placed utterance, in order, once its frames in the buffer are final, and with
the statistics of its frames, float32 `[n_statistics, n_layers, dim]`, if the device has computed
them."""


@dataclass(frozen=True)
class _Clip:
    """A whole utterance or one of its windows.

    Attributes:
        item: The utterance.
        waveform: Its samples.
        stats: Statistics of the utterance if this is a window, else None.
        n_frames: Frames that the encoder returns.
        kept: The frames to store; the others are context.
        start: Place of the first kept frame in the buffer.
        is_last: Whether the utterance is complete with this clip.
    """

    item: Utterance
    waveform: Tensor
    stats: Any
    n_frames: int
    kept: slice
    start: int
    is_last: bool

    @property
    def n_kept(self) -> int:
        """Number of frames to store."""
        return len(range(self.kept.start, self.kept.stop))


class EncodeStage:
    """Encodes utterances into a unit's buffer, in batches that depend on the plan only.

    Args:
        encoder: The encoder; its `clock` is set.
        layout: Shapes of the store's arrays.
        max_batch_frames: Maximum of frames in a batch; fewer if the device's memory is small.
        watch: Measures the time of each part.
    """

    def __init__(
        self,
        encoder: Encoder,
        layout: Layout,
        max_batch_frames: int,
        watch: Stopwatch,
    ) -> None:
        self._encoder, self._layout = encoder, layout
        self._codec = layout.codec
        self._max_batch_frames = min(max_batch_frames, _fitting_frames(encoder.device, layout))
        self._watch = watch
        self._receiver = open_receiver(encoder.device, self._codec, layout.statistics)
        # Frames that are not kept stay on a device that computes their statistics.
        self._needs_frames = layout.keeps_frames or not self._receiver.has_statistics
        self._held: dict[int, FloatArray] = {}  # by position
        self._n_halved = self._n_batches = 0
        encoder.clock = watch.device

    def place(self, utterances: list[Utterance]) -> int:
        """Assign frames of a unit to the decoded utterances, in order.

        Wrong headers can make a unit larger than planned: utterances that do not fit are deferred.

        Returns:
            Number of frames assigned.
        """
        capacity = self._layout.frames_per_unit
        used = 0
        for item in utterances:
            if item.waveform is None:
                continue
            if item.n_frames > capacity:
                item.quarantine(
                    f"{item.n_frames} frames, longer than a unit of {capacity}, which is too small "
                    "to be cut at windows: give plan.frames_per_unit at least a window's frames"
                )
                item.waveform = None
            elif used + item.n_frames > capacity:
                reason = "longer than its header said: moved to a later unit"
                item.record = replace(item.record, status=records.DEFERRED, reason=reason)
                item.waveform = None
            else:
                item.start = used
                used += item.n_frames
        return used

    def encode(self, utterances: list[Utterance], buffer: UnitBuffer, on_final: OnFinal) -> int:
        """Encode the placed utterances into `buffer`; each waveform is released afterwards.

        Returns:
            Number of batches that were halved because the device was out of memory.
        """
        self._n_halved = 0
        self._held.clear()
        clips = deque(self._cut(utterances))
        lengths = np.array([clip.n_frames for clip in clips], np.int64)
        waiting: deque[tuple[list[_Clip], PendingBatch]] = deque()
        for batch in make_batches(lengths, self._max_batch_frames):
            if self._n_batches % _BATCHES_BETWEEN_TRIMS == 0 and self._encoder.device.type == "cpu":
                malloc.trim()
            self._n_batches += 1
            members = [clips.popleft() for _ in range(batch.start, batch.stop)]
            for started in self._in_parts(members, partial(self._receive, buffer=buffer)):
                waiting.append(started)
                if len(waiting) > self._receiver.depth:
                    self._finish(*waiting.popleft(), buffer, on_final)
        while waiting:
            self._finish(*waiting.popleft(), buffer, on_final)
        return self._n_halved

    def _cut(self, utterances: list[Utterance]) -> Iterator[_Clip]:
        """Cut the placed utterances into clips."""
        for item in utterances:
            waveform, n_frames = item.waveform, item.n_frames
            if waveform is None:
                continue
            item.waveform = None  # the clips hold the samples from here on
            if not item.is_long:
                whole = slice(0, n_frames)
                yield _Clip(item, waveform, None, n_frames, whole, item.start, is_last=True)
                continue
            for window in item.windows:
                low = window.sample_start - item.sample_start
                yield _Clip(
                    item=item,
                    waveform=waveform[low : window.sample_stop - item.sample_start],
                    stats=item.statistics,
                    n_frames=window.feed_stop - window.feed_start,
                    kept=slice(
                        window.keep_start - window.feed_start, window.keep_stop - window.feed_start
                    ),
                    start=item.start + window.keep_start - item.windows[0].keep_start,
                    is_last=window is item.windows[-1],
                )

    def _in_parts(
        self, batch: list[_Clip], encode: Callable[[list[_Clip]], T]
    ) -> Iterator[tuple[list[_Clip], T]]:
        """Encode a batch; if the device is out of memory, one half after the other.

        Yields:
            Each part of the batch, with the result of `encode`.

        Raises:
            EncoderError: The device is out of memory with a single clip.
        """
        try:
            result = encode(batch)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise _out_of_memory(self._encoder, batch[0]) from error
        else:
            yield batch, result
            return
        self._n_halved += 1
        torch.cuda.empty_cache()
        middle = len(batch) // 2
        yield from self._in_parts(batch[:middle], encode)
        yield from self._in_parts(batch[middle:], encode)

    def _receive(self, batch: list[_Clip], buffer: UnitBuffer) -> PendingBatch:
        """Start to encode a batch into the buffer."""
        layers = self._encoder.encode_batch(
            [clip.waveform for clip in batch], stats=[clip.stats for clip in batch]
        )
        counts = [clip.n_kept for clip in batch]
        out, scaled = None, None
        if self._codec.n_scales:
            scaled = [self._scaled(clip, buffer) for clip in batch]
        if self._needs_frames or any(clip.item.is_long for clip in batch):
            out = buffer.frames[:, batch[0].start : batch[0].start + sum(counts)]
        return self._receiver.receive(layers, _kept_frames(batch), counts, out, scaled)

    def _scaled(self, clip: _Clip, buffer: UnitBuffer) -> ScaledClip:
        """Return where the scales of a clip go; of a window, where its values wait."""
        item = clip.item
        held = self._held_part(clip) if item.is_long else None
        return ScaledClip(buffer.scales[item.record.position], held)

    def _held_part(self, clip: _Clip) -> FloatArray:
        """Return where the values of a window wait for those of its whole utterance (piece).

        They take 4 bytes each, in the memory of the worker, for one utterance at a time.
        """
        item, position = clip.item, clip.item.record.position
        if position not in self._held:
            shape = (self._layout.n_layers, item.n_frames, self._layout.dim)
            self._held[position] = np.empty(shape, np.float32)
        first = clip.start - item.start
        return self._held[position][:, first : first + clip.n_kept]

    def _finish(
        self, batch: list[_Clip], pending: PendingBatch, buffer: UnitBuffer, on_final: OnFinal
    ) -> None:
        """Wait for a batch; encode all of it again in fp32 if a value cannot be stored."""
        with self._watch.host("copy"):
            received = pending()
        statistics = received.statistics
        if not received.fits(self._codec):
            statistics = None
            for part, encoded in self._in_parts(batch, self._encode_in_fp32):
                self._store(part, encoded, buffer)
        for i, clip in enumerate(batch):
            if not clip.is_last:
                continue
            item = clip.item
            held = self._held.pop(item.record.position, None)
            if not item.is_ok:
                buffer.drop(item.record.position, item.start, item.start + item.n_frames)
            elif held is not None:
                self._encode_whole(item, torch.from_numpy(held), item.start, buffer)
            on_final(item, None if statistics is None or item.is_long else statistics[i])

    def _encode_whole(
        self, item: Utterance, features: Tensor, start: int, buffer: UnitBuffer
    ) -> None:
        """Store features on the CPU, [n_layers, n_frames, dim], at a place in the buffer."""
        frames = buffer.frames[:, start : start + features.shape[1]]
        scales = buffer.scales[item.record.position]
        for values, out, layer_scales in zip(features, frames, scales, strict=True):
            layer_scales[...] = measure(self._codec, values)
            encode_into(self._codec, values, out, layer_scales)

    def _encode_in_fp32(self, batch: list[_Clip]) -> list[Tensor]:
        """Encode a batch in fp32: features of each clip, context included."""
        return encode_clips(
            self._encoder,
            [clip.waveform for clip in batch],
            stats=[clip.stats for clip in batch],
            precision="fp32",
        )

    def _store(self, batch: list[_Clip], encoded: list[Tensor], buffer: UnitBuffer) -> None:
        """Store clips that were encoded in fp32; quarantine what cannot be stored even so."""
        for clip, features in zip(batch, encoded, strict=True):
            item = clip.item
            if records.FLAG_FP32 not in item.flags:
                item.flags = (*item.flags, records.FLAG_FP32)
            kept = features[:, clip.kept]
            if not _fits(kept, self._codec):
                item.quarantine(_overflow_message(kept, self._encoder.layers, self._codec))
                continue
            if self._codec.n_scales and item.is_long:
                torch.from_numpy(self._held_part(clip)).copy_(kept)
            else:
                self._encode_whole(item, kept.cpu(), clip.start, buffer)


def _fitting_frames(device: torch.device, layout: Layout) -> int:
    """Return the frames of a batch that the device's free memory holds."""
    if device.type != "cuda":
        return sys.maxsize
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return count_fitting_frames(free_bytes, layout.n_layers, layout.dim)


def count_fitting_frames(free_bytes: int, n_layers: int, dim: int) -> int:
    """Return the frames of a batch that fit into memory beside the model; see `count_needed_bytes`.

    At least 1 is returned: whether one clip fits is seen when it is encoded.
    """
    per_frame = count_needed_bytes(1, n_layers, dim) - _FIXED_BYTES
    return max(1, (free_bytes - _FIXED_BYTES) // per_frame)


def count_needed_bytes(n_frames: int, n_layers: int, dim: int) -> int:
    """Return the memory that a batch is taken to need on a GPU, beside the model.

    A block holds about 16 float32 values for each frame and feature at its peak, and the layers of
    two batches wait for their copies. Memory that does not grow with the batch (the front end's
    chunk, the scores of an attention group) takes `_FIXED_BYTES`.
    """
    return _FIXED_BYTES + n_frames * dim * (16 * 4 + 2 * 2 * n_layers)


def _kept_frames(batch: list[_Clip]) -> npt.NDArray[np.int64] | None:
    """Return the packed frames that a batch stores; None for all."""
    if all(clip.n_kept == clip.n_frames for clip in batch):
        return None
    parts, first = [], 0
    for clip in batch:
        parts.append(np.arange(first + clip.kept.start, first + clip.kept.stop))
        first += clip.n_frames
    return np.concatenate(parts)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a device, or the page-locked memory of its host, has no room left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(sign in str(error) for sign in _OUT_OF_MEMORY)


def _out_of_memory(encoder: Encoder, clip: _Clip) -> EncoderError:
    seconds = len(clip.waveform) / encoder.geometry.sample_rate_hz
    return EncoderError(
        f"{encoder.device} is out of memory with one clip of {seconds:.1f} s; free memory "
        "there, or lower extract.max_window_s"
    )


def _fits(features: Tensor, codec: Codec) -> bool:
    """Return whether all values are finite and can be stored, in one pass: NaN propagates."""
    low, high = torch.aminmax(features)
    return codec.fits(float(low), float(high))


def _overflow_message(features: Tensor, layers: tuple[int, ...], codec: Codec) -> str:
    for layer, values in zip(layers, features, strict=True):
        if not bool(torch.isfinite(values).all()):
            return f"layer {layer} is not finite, even in fp32"
        largest = float(values.abs().max())
        if largest > codec.largest:
            return (
                f"layer {layer} reaches {largest:.3g}, more than {codec.name} holds; extract into "
                "another store= with extract.dtype=bfloat16 or float32"
            )
    raise AssertionError("every layer fits")
