"""Convolution stack and frame geometry, the same for every model of the family.

The hop is 320 samples, and the receptive field of a frame is 400 samples. The first convolution has
a kernel of 10 samples and a stride of 5.
"""

from __future__ import annotations

import math

from pipeline.store.format.geometry import FrameGeometry

SAMPLE_RATE_HZ = 16_000
CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)
HOP_SAMPLES = math.prod(CONV_STRIDES)
RECEPTIVE_FIELD_SAMPLES = 1 + sum(
    (kernel - 1) * math.prod(CONV_STRIDES[:i]) for i, kernel in enumerate(CONV_KERNELS)
)
GEOMETRY = FrameGeometry(SAMPLE_RATE_HZ, HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES)

# Attention costs time in the square of the window, and WavLM's position bias memory too (0.2 GB a
# block at 40 s, 1.2 GB at 100 s). At 40 s the base model runs at about 0.85 of its speed on 10 s,
# the longest utterance of LibriSpeech (35 s) stays whole, and the models were trained on crops of
# 16 to 20 s. docs/encoder.md has the figures.
DEFAULT_MAX_WINDOW_S = 40.0
DEFAULT_CONTEXT_S = 5.0
