"""Geometries of the general path, probed: frames of lengths, samples that change a frame."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from pipeline.encoders.clips import encode_clips
from pipeline.encoders.loading import load_encoder
from tests.helpers.encoder_kinds import speech

pytest.importorskip("transformers")

from tests.helpers.general_checkpoints import CHECKPOINTS, save_settings

WIDER = {"sew", "sew-d", "moonshine", "omniasr_ctc"}
"""Models whose block 1 sees more: they have a norm over the clip, or a positional convolution."""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Return a function that loads a small encoder with layer 0 and random weights."""

    @cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        save_settings(name, folder)
        settings = {"layers": [0], "device": "cpu", "max_window_s": 4, "context_s": 0.5}
        return load_encoder(folder, "random", source="huggingface", **settings)

    return make


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_model_gives_the_frames_that_the_geometry_states(encoders, name):
    """For lengths around the borders of frames and random ones; the encoder compares them."""
    encoder = encoders(name)
    geometry = encoder.geometry
    generator = torch.Generator().manual_seed(1)
    borders = [geometry.n_samples(n) + d for n in (1, 2, 3, 17) for d in (-1, 0, 1)]
    lengths = [*borders, *torch.randint(1, 60_000, (6,), generator=generator).tolist()]
    for length in lengths:
        [features] = encode_clips(encoder, [speech(max(1, length))])
        assert features.shape[1] == geometry.n_frames(max(1, length))


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name not in WIDER])
def test_a_frame_sees_its_receptive_field_and_no_other_sample(encoders, name):
    """A sample within the field changes the front end's frame, and one beside it does not.

    The statistics are those of the unchanged clip.
    """
    encoder = encoders(name)
    geometry = encoder.geometry
    waveform = speech(3 * geometry.sample_rate_hz, 2)
    stats = encoder.utterance_stats(waveform)
    [before] = encode_clips(encoder, [waveform], stats=[stats])
    n_frames = before.shape[1]
    frame = n_frames // 2
    start = frame * geometry.hop_samples - geometry.left_padding_samples
    stop = start + geometry.receptive_field_samples
    for places, inside in (
        (slice(start - 300, start), False),
        (slice(stop, stop + 300), False),
        (slice(start, start + 60), True),
        (slice(stop - 60, stop), True),
    ):
        changed = waveform.clone()
        changed[places] = changed[places] * -0.5 + 0.05
        [after] = encode_clips(encoder, [changed], stats=[stats])
        moved = (after - before)[0].abs().amax(1) > 0
        assert moved[frame] == inside, (places, moved.nonzero().flatten().tolist(), frame)
