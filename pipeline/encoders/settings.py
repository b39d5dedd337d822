"""Resolution of the settings of an encoder: layers, precision, device and windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pipeline.devices import check_gpu, count_gpus
from pipeline.encoders.base import EncoderDescription, EncoderSettings
from pipeline.encoders.windows import Windowing
from pipeline.errors import ConfigError, first_few
from pipeline.store.format.layers import counting_hint

PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Precisions, and the dtype of the matrix products in each. "tf32" rounds the factors of float32
products to 10 bits, on CUDA only; "fp32" never does."""
REFERENCE_PRECISION = "fp64"
"""Precision of the reference that errors are taken against; not offered for extraction."""
_MIN_KEPT = 0.1
"""Smallest share of a window that is kept. With less, a plan has millions of windows per day of
audio, and nearly all of the computation is for context."""


def resolve_settings(
    description: EncoderDescription,
    layers: str | Sequence[int | str] = "all",
    precision: str = "auto",
    device: str = "auto",
    max_window_s: float | None = None,
    context_s: float | None = None,
) -> EncoderSettings:
    """Check the settings of an encoder and resolve "auto".

    Args:
        description: The encoder.
        layers: "all" for 1..N, "superb" for 0..N, or the layers themselves.
        precision: "fp32", "tf32" (CUDA only), "bf16", "fp16", or "auto": fp32 on a CPU, fp16 on
            CUDA.
        device: "cpu", "cuda", "cuda:1"…, or "auto": CUDA where available.
        max_window_s: Longest window in seconds; None for the encoder's default.
        context_s: Context on each side of a window in seconds; None for the encoder's default.

    Raises:
        ConfigError: A setting is unknown or out of range.
    """
    device = choose_device(device)
    return EncoderSettings(
        layers=choose_layers(layers, description),
        precision=choose_precision(precision, device),
        device=device,
        windows=choose_windows(description, max_window_s, context_s),
    )


def choose_layers(
    layers: str | Sequence[int | str], description: EncoderDescription
) -> tuple[int, ...]:
    """Return the chosen layers, ascending.

    Args:
        layers: "all" for 1..N, "superb" for 0..N, or numbers or names of the encoder's layers.
        description: The encoder.

    Raises:
        ConfigError: The choice is empty, repeats a layer, or names one that the model lacks, or
            layers of different sizes.
    """
    n_layers, names = description.n_layers, description.names
    if layers == "all":
        return tuple(range(1, n_layers + 1))
    if layers == "superb" and 0 in names:
        return tuple(range(n_layers + 1))
    expected = _expected_layers(description)
    numbers_of = {name: number for number, name in names.items()}
    if isinstance(layers, str) and (layers in numbers_of or layers.removeprefix("-").isdigit()):
        raise ConfigError(f"layers={layers} is no list; for this layer alone write [{layers}]")
    if isinstance(layers, str) or not layers:
        raise ConfigError(f"layers={layers or '[]'} names no layers; {expected}")
    shown = f"layers=[{', '.join(map(str, layers))}]"
    given = [numbers_of.get(n, n) if isinstance(n, str) else n for n in layers]
    numbers = tuple(n for n in given if isinstance(n, int))
    unknown = [str(n) for n in given if type(n) is not int or n not in names]
    if unknown:
        raise ConfigError(
            f"{shown}: {description.name} has no layer {first_few(unknown)}; {expected}"
            f"{counting_hint(unknown, names)}"
        )
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"{shown} has a layer twice; {expected}")
    sizes = {n: description.dim_of([n]) for n in numbers}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{names[n]} has {size}" for n, size in sorted(sizes.items()))
        raise ConfigError(
            f"{shown} have features of different sizes ({listed}); a store has layers of one size, "
            "so extract them to two stores"
        )
    return tuple(sorted(numbers))


def _expected_layers(description: EncoderDescription) -> str:
    n_layers, names = description.n_layers, description.names
    low = 0 if 0 in names else 1
    extra = [name for number, name in names.items() if not low <= number <= n_layers]
    example = f"[1,{names[n_layers]}]" if n_layers > 1 and n_layers in names else "[1]"
    superb = ", superb" if low == 0 else ""
    others = f" and {' and '.join(extra)}" if extra else ""
    return (
        f"expected all{superb}, or a list of layers {low} to {n_layers}{others}, each once, by "
        f"number or name, like {example}"
    )


def choose_precision(precision: str, device: str) -> str:
    """Resolve "auto" for a device.

    Raises:
        ConfigError: The precision is unknown, or the device does not have it.
    """
    check_precision(precision)
    if precision == "auto":
        return "fp16" if device.startswith("cuda") else "fp32"
    if precision == "tf32" and not device.startswith("cuda"):
        raise ConfigError(f"precision=tf32 needs a CUDA device, not {device}; use fp32")
    return precision


def check_precision(precision: str) -> None:
    """Check the name of a precision.

    Raises:
        ConfigError: The precision is unknown.
    """
    if precision != "auto" and precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r} is not one of auto, {', '.join(PRECISIONS)}")


def choose_device(device: str) -> str:
    """Resolve "auto" for this process.

    Raises:
        ConfigError: torch has no such device, or this machine.
    """
    if device == "auto":
        return "cuda" if count_gpus() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device!r} is not auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda":
        check_gpu(chosen, f"device={device}")
    return str(chosen)


def choose_windows(
    description: EncoderDescription, max_window_s: float | None, context_s: float | None
) -> Windowing:
    """Return the windowing, with the encoder's defaults for None.

    Raises:
        ConfigError: A length is out of range, or two contexts fill the window, or nearly so.
    """
    longest = description.max_window_s if max_window_s is None else float(max_window_s)
    context = description.context_s if context_s is None else float(context_s)
    limit = math.inf if description.window_limit_s is None else description.window_limit_s
    if longest > limit:
        raise ConfigError(
            f"max_window_s is {longest:g}; expected at most {limit:g}, the longest window of "
            f"{description.name}"
        )
    windowing = Windowing(description.geometry, longest, context)
    kept_s = longest - 2 * context
    if kept_s < _MIN_KEPT * longest:
        raise ConfigError(
            f"max_window_s={longest:g} keeps {kept_s:g} s between two contexts of {context:g} s; "
            f"make it at least {2 * context / (1 - _MIN_KEPT):.3g} s"
        )
    return windowing
