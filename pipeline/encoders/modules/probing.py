"""Properties of a module that are found by running it: frames, layers, and safe batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.encoders.modules.building import BuiltModule, ModuleRunner
from pipeline.encoders.modules.definition import ModuleDefinition
from pipeline.encoders.modules.geometry import (
    count_difference,
    find_counts,
    find_field,
    shortest_clip,
)
from pipeline.encoders.modules.references import failure
from pipeline.encoders.selfcheck import relative_errors
from pipeline.errors import EncoderError, StrataError
from pipeline.store.format.geometry import FrameGeometry

ROUNDING = 1e-5
"""Largest relative error of float32 features that counts as rounding."""
_N_LENGTHS = 8  # random lengths on which a geometry is verified


@dataclass(frozen=True)
class Probe:
    """Properties of a module that were found by running it; workers get them with the definition.

    Attributes:
        sha256: Digest of the weights.
        geometry: Sample rate, hop and receptive field of the frames.
        dims: Size of each layer.
        shortest_samples: Samples that the module needs; shorter clips are padded with zeros.
        stacks: Whether clips of one length run together, because that changes nothing.
        pads: Whether clips of other lengths are padded to run together, because that changes
            nothing.
        field_is_known: Whether the receptive field is stated or was found. With attention every
            frame depends on the whole clip, and the field follows from the number of frames alone.
    """

    sha256: str
    geometry: FrameGeometry
    dims: tuple[int, ...]
    shortest_samples: int
    stacks: bool
    pads: bool
    field_is_known: bool


def probe_module(definition: ModuleDefinition, built: BuiltModule) -> Probe:
    """Run a module on noise of several lengths.

    Takes about 50 runs on a second of audio or less, 10 if the geometry is stated.

    Raises:
        ConfigError: There is no such submodule, or the geometry is another than stated.
        EncoderError: The module fails or is not deterministic, its layers do not fit together, or
            its number of frames has no simple form.
    """
    runner = ModuleRunner(definition, built.module)
    rate_hz = definition.sample_rate_hz
    before = {name: values.clone() for name, values in built.module.named_buffers()}

    def run(*clips: Tensor) -> list[Tensor]:
        try:
            with torch.inference_mode():
                return [layer.float() for layer in runner(clips)]
        except StrataError:
            raise
        except Exception as error:
            lengths = " and ".join(str(len(clip)) for clip in clips)
            what = f"{definition.name}: the forward pass on clips of {lengths} samples"
            if len(clips) == 1:
                what = f"{definition.name}: the forward pass on a clip of {lengths} samples"
            raise EncoderError(
                f"{failure(what, error)}. The module gets waveforms [clips, samples], float32 at "
                f"{rate_hz} Hz; inputs= makes other arguments from them"
            ) from error

    second = noise(rate_hz)
    layers = run(second)
    _check_deterministic(definition, layers, run(second))

    def count(n_samples: int) -> int:
        return int(run(noise(n_samples))[0].shape[1])

    geometry, is_known = definition.geometry, True
    if geometry is None:
        hop, needed = find_counts(count, rate_hz, definition.name)
        found = find_field(lambda clip: run(clip)[0], hop, needed, rate_hz)
        geometry, is_known = found.geometry, found.is_known
    shortest = shortest_clip(count, geometry)
    _verify(definition, geometry, count, shortest)
    mate, short = noise(2 * rate_hz // 3, 1), noise(rate_hz // 2, 2, 3.0)
    probe = Probe(
        built.sha256,
        geometry,
        tuple(layer.shape[2] for layer in layers),
        shortest,
        stacks=_is_same(run, geometry, [second, noise(rate_hz, 1, 3.0)]),
        pads=definition.gets_lengths and _is_same(run, geometry, [second, mate, short]),
        field_is_known=is_known,
    )
    _check_stateless(definition, before, built.module)
    return probe


def noise(n_samples: int, seed: int = 0, loudness: float = 1.0) -> Tensor:
    """Make noise of one amplitude: float32 `[n_samples]`."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * loudness * torch.randn(n_samples, generator=generator)


def _check_deterministic(
    definition: ModuleDefinition, first: Sequence[Tensor], again: Sequence[Tensor]
) -> None:
    for name, a, b in zip(definition.layers, first, again, strict=True):
        if a.shape == b.shape and not torch.isfinite(a).all():
            raise EncoderError(
                f"{definition.name}: layer {name} has values that are not finite, on noise of "
                "amplitude 0.1; are its weights loaded?"
            )
        error = relative_errors(a, b).max() if a.shape == b.shape else torch.inf
        if not error <= ROUNDING:
            raise EncoderError(
                f"{definition.name} is not deterministic: layer {name} differs by {error:.1e} in "
                "two runs on the same waveform. Is there a dropout that evaluation mode does not "
                "end, or a state that is kept between calls?"
            )


def _check_stateless(
    definition: ModuleDefinition, before: Mapping[str, Tensor], module: nn.Module
) -> None:
    """Check that no buffer of the state dict has other values than before the runs.

    Two runs may agree within rounding while a state drifts over the clips of a corpus. A buffer
    with another shape is a table that grows, such as one of positions.
    """
    after = module.state_dict()
    for name, values in before.items():
        now = after.get(name)
        if now is None or now.shape != values.shape:
            continue
        if not torch.equal(_bytes_of(now), _bytes_of(values)):  # NaN equals NaN
            raise EncoderError(
                f"{definition.name} keeps a state between calls: its buffer {name} changes in the "
                "forward pass, so features may depend on the clips before. Leave it unchanged in "
                "evaluation mode (a BatchNorm in training mode: track_running_stats=False)"
            )


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def _verify(
    definition: ModuleDefinition,
    geometry: FrameGeometry,
    count: Callable[[int], int],
    shortest: int,
) -> None:
    """Compare the frames of random lengths with a geometry."""
    draw = random.Random(0)
    longest = max(2 * geometry.sample_rate_hz, geometry.n_samples(4), 2 * shortest)
    lengths = [draw.randint(shortest, longest) for _ in range(_N_LENGTHS)]
    lengths[0] = max(shortest, geometry.n_samples(3) - 1)
    lengths[1] = max(shortest, geometry.n_samples(3))
    if difference := count_difference(count, geometry, lengths):
        raise EncoderError(
            f"{definition.name}: {difference}. State the geometry, geometry=pipeline.FrameGeometry("
            "sample_rate_hz=…, hop_samples=…, receptive_field_samples=…), whose n_frames are those "
            "of the layers for every length"
        )


def _is_same(
    run: Callable[..., list[Tensor]], geometry: FrameGeometry, clips: Sequence[Tensor]
) -> bool:
    """Whether clips have the same features together as alone, except for rounding."""
    try:
        together = run(*clips)
    except EncoderError:
        return False
    for i, clip in enumerate(clips):
        for layer, alone in zip(together, run(clip), strict=True):
            part = layer[i : i + 1, : geometry.n_frames(len(clip))]
            if part.shape != alone.shape or not relative_errors(part, alone).max() <= ROUNDING:
                return False
    return True
