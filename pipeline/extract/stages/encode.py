"""The encode stage: from waveforms to features in the unit's buffer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoders.base import Encoder
from pipeline.encoders.windows import Window
from pipeline.extract.stages import malloc
from pipeline.extract.stages.decode import Utterance
from pipeline.extract.stages.device_copy import DeviceCopy, PendingCopy
from pipeline.extract.stages.timing import Stopwatch
from pipeline.store.format import records
from pipeline.store.format.codecs import Codec
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import make_batches
from pipeline.store.tensors import encode_into, torch_dtype
from pipeline.store.write.buffer import UnitBuffer

_BATCHES_BETWEEN_TRIMS = 8  # a trim after every batch takes 3 % of the time
Means = npt.NDArray[np.float32]
OnFinal = Callable[[Utterance, Means | None], None]
"""Called with each placed utterance once its frames in the buffer are final, and with the means of
its frames, float32 `[n_layers, dim]`, if the device has computed them."""


class EncodeStage:
    """Encodes utterances into a unit's buffer, in batches that depend on the plan only.

    Args:
        encoder: The encoder; its `clock` is set.
        layout: Shapes of the store's arrays.
        max_batch_frames: Maximum of utterances × frames of the longest one in a batch.
        watch: Measures the time of each part.
    """

    def __init__(
        self, encoder: Encoder, layout: Layout, max_batch_frames: int, watch: Stopwatch
    ) -> None:
        self._encoder, self._layout = encoder, layout
        self._codec = layout.codec
        self._max_batch_frames = max_batch_frames
        self._watch = watch
        self._copy = DeviceCopy(encoder.device, torch_dtype(self._codec))
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

    def encode(self, utterances: list[Utterance], buffer: UnitBuffer, on_final: OnFinal) -> None:
        """Encode the placed utterances into `buffer`; each waveform is released afterwards."""
        placed = [item for item in utterances if item.waveform is not None]
        short = [item for item in placed if not item.is_long]
        lengths = np.array([item.n_frames for item in short], np.int64)
        waiting: deque[tuple[list[Utterance], PendingCopy]] = deque()
        for number, batch in enumerate(make_batches(lengths, self._max_batch_frames)):
            if number % _BATCHES_BETWEEN_TRIMS == 0 and self._encoder.device.type == "cpu":
                malloc.trim()
            members = [short[int(i)] for i in batch]
            waiting.append((members, self._copy.start(self._encode_batch(members))))
            if len(waiting) > self._copy.depth:
                self._receive(*waiting.popleft(), buffer, on_final)
        while waiting:
            self._receive(*waiting.popleft(), buffer, on_final)
        for item in placed:
            if item.is_long:
                self._encode_long(item, buffer)
                item.waveform = None
                on_final(item, None)

    def _encode_batch(self, members: list[Utterance], precision: str | None = None) -> Tensor:
        """Encode short utterances as one batch: `[n_layers, batch, max_frames, dim]`."""
        waveforms = [item.waveform for item in members if item.waveform is not None]
        features, lengths = self._encoder.encode_batch(waveforms, precision=precision)
        planned = [item.n_frames for item in members]
        if list(lengths) != planned:
            raise AssertionError(f"the encoder returned {lengths} frames, expected {planned}")
        return features

    def _receive(
        self,
        members: list[Utterance],
        pending: PendingCopy,
        buffer: UnitBuffer,
        on_final: OnFinal,
    ) -> None:
        """Store a batch in the buffer; encode all of it again in fp32 if a value overflows."""
        features = pending()
        with self._watch.host("copy"):
            fits = _fits(features, self._codec)
        if not fits:
            features = self._encode_batch(members, precision="fp32")
            for item in members:
                item.flags = (*item.flags, records.FLAG_FP32)
        for i, item in enumerate(members):
            self._store(item, item.start, features[:, i, : item.n_frames], buffer)
            item.waveform = None
            on_final(item, None)

    def _encode_long(self, item: Utterance, buffer: UnitBuffer) -> None:
        """Encode a long utterance; its windows are independent, so pieces join exactly."""
        waveform = item.waveform
        assert waveform is not None  # only decoded utterances are encoded
        stats = self._encoder.utterance_stats(
            waveform if item.statistics is None else item.statistics
        )
        first = item.windows[0].keep_start
        for window in item.windows:
            features = self._encode_window(waveform, window, stats, item)
            self._store(item, item.start + window.keep_start - first, features, buffer)

    def _encode_window(
        self, waveform: Tensor, window: Window, stats: Any, item: Utterance
    ) -> Tensor:
        """Encode one window, again in fp32 if it overflows: `[n_layers, n_kept, dim]`."""
        start = item.sample_start
        for precision in (None, "fp32"):
            [(_, features)] = self._encoder.encode_windows(
                waveform, [window], stats, sample_start=start, precision=precision
            )
            if _fits(features, self._codec):
                break
            if precision is None and records.FLAG_FP32 not in item.flags:
                item.flags = (*item.flags, records.FLAG_FP32)
        return features

    def _store(self, item: Utterance, start: int, features: Tensor, buffer: UnitBuffer) -> None:
        """Store features `[n_layers, n_frames, dim]` in the buffer, or quarantine the utterance."""
        if not item.is_ok:
            return
        with self._watch.host("copy"):
            stored = features.to(torch_dtype(self._codec)).cpu() if features.is_cuda else features
            if _fits(stored, self._codec):
                stop = start + features.shape[1]
                encode_into(self._codec, stored, buffer.frames[:, start:stop])
                return
        item.quarantine(_overflow_message(features, self._encoder.layers, self._codec))
        buffer.blank(item.start, item.start + item.n_frames)


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
            return f"layer {layer} reaches {largest:.3g}, more than {codec.name} holds"
    raise AssertionError("every layer fits")
