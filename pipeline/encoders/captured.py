"""Layers of any torch module, captured by hooks, and batches of clips that it can run together.

`CapturedModule` runs a module and returns the outputs of named submodules. `group_clips` says which
clips of a batch run together, and `pack_groups` puts their frames into the order of the batch.
`send_clips` copies a batch to the device.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.kernels.base import to_device
from pipeline.errors import ConfigError, EncoderError

_AXES = {"BTD": (0, 1, 2), "BDT": (0, 2, 1), "TBD": (1, 0, 2)}
_N_NEAR = 5  # names that a message lists
_LEAST_FILLED = 0.8
"""Smallest share of a padded batch that is audio, by default."""


@dataclass(frozen=True)
class CapturePoint:
    """A tensor of the forward pass: the output or the input of a submodule.

    Attributes:
        module: Dotted name of the submodule, as in `named_modules()`, e.g. "encoder.layers.3".
        is_input: Whether the input is captured, not the output.
        axes: Order of the tensor's axes: "BTD" for `[clips, frames, dim]`, "BDT" or "TBD".
    """

    module: str
    is_input: bool = False
    axes: str = "BTD"

    def __post_init__(self) -> None:
        if self.axes not in _AXES:
            raise ConfigError(f"axes={self.axes!r} is not one of {', '.join(_AXES)}")

    def __str__(self) -> str:
        return f"the {'input' if self.is_input else 'output'} of {self.module!r}"


class CapturedModule:
    """A module whose calls return the tensors at capture points.

    The first call runs the whole forward pass, to find submodules that are used twice. Later calls
    stop when the last point is reached. The hooks exist only during a call.

    Attributes:
        module: The module. It is not changed.
        points: The capture points.
    """

    def __init__(self, module: nn.Module, points: Sequence[CapturePoint]) -> None:
        """Check that the submodules exist.

        Args:
            module: The module, in evaluation mode.
            points: The capture points, in the order of the results.

        Raises:
            ConfigError: There are no points, or the module has no such submodule; the message names
                the nearest ones.
        """
        if not points:
            raise ConfigError("no submodules to capture are given; expected at least 1")
        self.module, self.points = module, tuple(points)
        known = dict(module.named_modules())
        for point in self.points:
            if point.module not in known:
                raise ConfigError(_unknown(point.module, known, module))
        self._submodules = [known[point.module] for point in self.points]
        self._is_checked = False

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Run the module.

        Args:
            args: Its arguments.
            kwargs: Its named arguments.

        Returns:
            A copy of the tensor at each point, in the order of the points: `[clips, frames, dim]`.

        Raises:
            EncoderError: A point is not reached, is reached twice, or has no such tensor.
        """
        found: dict[int, Tensor] = {}
        with self._hooks(found), suppress(_AllReached):
            self.module(*args, **kwargs)
        missing = [point for i, point in enumerate(self.points) if i not in found]
        if missing:
            raise EncoderError(
                f"the forward pass of {type(self.module).__name__} does not reach {missing[0]}; "
                "name a submodule that it calls (a list of modules is not called itself)"
            )
        self._is_checked = True
        return [found[i] for i in range(len(self.points))]

    @contextmanager
    def _hooks(self, found: dict[int, Tensor]) -> Iterator[None]:
        handles = []
        try:
            for i, (point, submodule) in enumerate(zip(self.points, self._submodules, strict=True)):
                if point.is_input:
                    hook = self._on_input(i, found)
                    handles.append(submodule.register_forward_pre_hook(hook, with_kwargs=True))
                else:
                    handles.append(submodule.register_forward_hook(self._on_output(i, found)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_input(self, i: int, found: dict[int, Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(i, [*args, *kwargs.values()], found)

        return hook

    def _on_output(self, i: int, found: dict[int, Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._keep(i, output, found)

        return hook

    def _keep(self, i: int, value: Any, found: dict[int, Tensor]) -> None:
        point = self.points[i]
        if i in found:
            raise EncoderError(
                f"the forward pass of {type(self.module).__name__} reaches {point} twice, so it "
                "is not one layer; name submodules that are called once"
            )
        tensor = _first_tensor(value)
        if tensor is None or tensor.ndim != 3 or not tensor.is_floating_point():
            kind = type(value).__name__ if tensor is None else f"{tensor.dtype} {[*tensor.shape]}"
            raise EncoderError(
                f"{point} is {kind}; expected a floating-point tensor with three axes, {point.axes}"
            )
        tensor = tensor.detach().permute(_AXES[point.axes])
        found[i] = tensor.clone(memory_format=torch.contiguous_format)
        if self._is_checked and len(found) == len(self.points):
            raise _AllReached


class _AllReached(BaseException):
    """Ends a forward pass, also through a module that handles every `Exception`."""


def _first_tensor(value: Any) -> Tensor | None:
    """Return a tensor, or the first entry of a tuple, a list or a mapping that is one."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return None


def _unknown(name: str, known: Mapping[str, nn.Module], module: nn.Module) -> str:
    near = difflib.get_close_matches(name, [key for key in known if key], n=_N_NEAR, cutoff=0.5)
    children = [child for child, _ in module.named_children()]
    hint = f"the nearest are {', '.join(near)}" if near else f"it has {', '.join(children)}"
    return f"{type(module).__name__} has no submodule {name!r}; {hint}"


def send_clips(waveforms: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return clips on a device; from the host to a GPU in one transfer, without waiting for it.

    Args:
        waveforms: `[n_samples]` each, on any device.
        device: The device.
    """
    if device.type != "cuda" or any(clip.device.type != "cpu" for clip in waveforms):
        return [clip.to(device) for clip in waveforms]
    together = to_device(torch.cat(list(waveforms)), device)
    return list(torch.split(together, [len(clip) for clip in waveforms]))


def group_clips(
    lengths: Sequence[int], *, padding: bool, least_filled: float = _LEAST_FILLED
) -> list[list[int]]:
    """Say which clips of a batch run together.

    Args:
        lengths: Samples of each clip.
        padding: Whether padding changes nothing in the model, so that clips of other lengths may be
            padded to the longest. Otherwise only clips of equal length run together.
        least_filled: With padding, the smallest share of samples that are no padding, 0 to 1.

    Returns:
        Positions of the clips of each group, the longest clips first. Each clip is in one group.
    """
    groups: list[list[int]] = []
    n_inside = 0  # samples of the last group
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups:
            longest = lengths[groups[-1][0]]
            filled = (n_inside + lengths[i]) / (longest * (len(groups[-1]) + 1))
            if lengths[i] == longest or (padding and filled >= least_filled):
                groups[-1].append(i)
                n_inside += lengths[i]
                continue
        groups.append([i])
        n_inside = lengths[i]
    return groups


def pack_groups(
    groups: Sequence[Sequence[int]],
    counts: Sequence[int],
    run: Callable[[Sequence[int]], Sequence[Tensor]],
) -> list[Tensor]:
    """Run groups of clips and pack their frames, one clip after another.

    Args:
        groups: Positions of the clips of each group, as from `group_clips`.
        counts: Frames of each clip.
        run: Returns for the clips of a group each layer, `[clips, frames, dim]` with as many frames
            as the longest clip has.

    Returns:
        For each layer the frames of all clips in their own order, `[sum of counts, dim]`.

    Raises:
        EncoderError: A layer has another number of frames than the longest clip.
    """
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count)
    packed: list[Tensor] = []
    for group in groups:
        expected = max(counts[i] for i in group)
        layers = run(group)
        for layer in layers:
            if layer.shape[:2] != (len(group), expected):
                raise EncoderError(
                    f"the model gives {layer.shape[1]} frames for {layer.shape[0]} clips, and its "
                    f"geometry {expected} for {len(group)}; correct the geometry, or name layers "
                    "that have the stated frames"
                )
        packed = packed or [layer.new_empty(ends[-1], layer.shape[2]) for layer in layers]
        for whole, layer in zip(packed, layers, strict=True):
            for place, i in enumerate(group):
                whole[ends[i] : ends[i + 1]] = layer[place, : counts[i]]
    return packed
