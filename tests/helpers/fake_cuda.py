"""A CUDA device without a GPU: torch's fake tensors, which have a shape, a dtype and a device.

`fake_cuda` lets code run as on a GPU. Nothing is computed, but an operation on tensors of two
devices raises, and so does reading a value on the host. `place` puts an encoder there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pipeline.encoders.kernels import kernels_for
from pipeline.encoders.modules.encoder import ModuleEncoder
from pipeline.encoders.wav2vec2.encoder import Wav2Vec2Encoder

DEVICE = torch.device("cuda:0")
_COPIES = ("_to_copy", "to", "copy_")


class FakeCuda(TorchDispatchMode):
    """Makes every tensor a fake one, and notes the copies for which the host waits.

    Attributes:
        waits: Operations that copy between host and device and return when that is done.
        unpinned: Those that do not wait, to the device, from memory that is not page-locked.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self._fake = fake
        self._pinned: list[Tensor] = []  # alive, so that no other storage gets their address
        self.waits: list[str] = []
        self.unpinned: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A real tensor of one element would become a constant, which torch moves for real.
        args, kwargs = tree_map_only(Tensor, self.fake, (args, kwargs or {}))
        result = func(*args, **kwargs)
        name = str(func.name()).removeprefix("aten::").partition(".")[0]
        if kwargs.get("pin_memory"):
            self._pinned.append(result)
        if name in _COPIES:
            self._note(name, func, args, kwargs, result)
        return result

    def fake(self, tensor: Tensor) -> Tensor:
        """Return the fake tensor of a real one, on the same device."""
        return tensor if isinstance(tensor, FakeTensor) else self._fake.from_tensor(tensor)

    def pin(self, tensor: Tensor, *args: Any) -> Tensor:
        """Return a copy in page-locked memory, as `Tensor.pin_memory` does."""
        if tensor.device.type != "cpu":
            raise RuntimeError(f"cannot pin memory of {tensor.device}")
        copied = self.fake(tensor).clone()
        self._pinned.append(copied)
        return copied

    def _is_pinned(self, tensor: Tensor) -> bool:
        return _storage(tensor) in map(_storage, self._pinned)

    def _note(self, name: str, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        source = args[1] if name == "copy_" else args[0]
        if source.device.type == result.device.type:
            return
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        shape = f"{name} {[*source.shape]} {source.device} to {result.device}"
        if not given.get("non_blocking"):
            self.waits.append(shape)
        elif result.is_cuda and not self._is_pinned(source):
            self.unpinned.append(shape)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Stream:
    """Stands for a CUDA stream or event: nothing runs, so nothing has to be waited for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        """Wait for nothing."""

    record = synchronize = wait_stream


@contextmanager
def _no_stream(stream: Any) -> Iterator[None]:
    yield


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Give torch a fake GPU of compute capability 9.0."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        FakeCuda(fake) as mode,
        patch("torch.cuda.get_device_capability", lambda *device: (9, 0)),
        patch("torch.cuda.is_bf16_supported", lambda *options: True),
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.Stream", _Stream),
        patch("torch.cuda.Event", _Stream),
        patch("torch.cuda.current_stream", _Stream),
        patch("torch.cuda.stream", _no_stream),
        patch.object(nn.Module, "to", _move),
        patch.object(Tensor, "record_stream", lambda tensor, stream: None),
        patch.object(Tensor, "pin_memory", lambda tensor, *device: mode.pin(tensor)),
    ):
        yield mode


@cache
def why_not() -> str:
    """Return why there can be no fake GPU here; an empty text if there can.

    torch 2.9 built with CUDA asks the driver for its device in every copy, also of fake tensors.
    """
    try:
        with fake_cuda():
            torch.zeros(1, device=DEVICE).copy_(torch.zeros(1, device=DEVICE))
    except torch.AcceleratorError as error:
        return f"torch {torch.__version__} needs a driver here: {str(error).splitlines()[0]}"
    return ""


def _move(module: nn.Module, *args: Any, **options: Any) -> nn.Module:
    """Replace parameters and buffers by fake ones, as `Module.to` moves real ones."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **options)
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, value in held.items():
                if value is None:
                    continue
                moved = torch.empty_strided(
                    value.shape,
                    value.stride(),
                    dtype=dtype if dtype and value.is_floating_point() else value.dtype,
                    device=device or value.device,
                )
                is_parameter = isinstance(value, nn.Parameter)
                held[name] = nn.Parameter(moved, requires_grad=False) if is_parameter else moved
    return module


def place(encoder: Any) -> Any:
    """Move an encoder that was made on the CPU to the device; call it within `fake_cuda`."""
    encoder.device = DEVICE
    if isinstance(encoder, Wav2Vec2Encoder):
        encoder._kernels = kernels_for(DEVICE)
        encoder._model.to(DEVICE)
    elif isinstance(encoder, ModuleEncoder):
        encoder._runner._captured.module.to(DEVICE)
    else:
        encoder._module.to(DEVICE)
    return encoder
