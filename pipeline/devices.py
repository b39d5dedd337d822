"""The device that torch computes on."""

from __future__ import annotations

import os

import torch

from pipeline.errors import ConfigError, counted


def count_gpus() -> int:
    """Return the number of GPUs that torch can use in this process.

    0 also if the driver is too old for torch: then `torch.cuda.device_count` still counts them.
    """
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_gpu(device: torch.device, setting: str) -> None:
    """Check that a device of the type cuda exists.

    Args:
        device: The device.
        setting: The setting that names it, for the message: "device=cuda:1".

    Raises:
        ConfigError: torch finds no GPU, or fewer.
    """
    n_gpus = count_gpus()
    if not n_gpus:
        raise ConfigError(f"{setting}, and torch finds no GPU: {_why_no_gpu()}. Use cpu or auto")
    if device.index is not None and device.index >= n_gpus:
        raise ConfigError(
            f"{setting}, and torch finds {counted(n_gpus, 'GPU')}, from cuda:0 to "
            f"cuda:{n_gpus - 1}{_visible()}"
        )


def _why_no_gpu() -> str:
    version: str | None = torch.version.cuda
    if version is None:
        return f"torch {torch.__version__} is built without CUDA"
    return (
        f"there is none, or its driver is missing or too old for CUDA {version} of this torch "
        f"(nvidia-smi shows both){_visible()}"
    )


def _visible() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f"; CUDA_VISIBLE_DEVICES={visible!r} hides others"


def choose_device(name: str) -> torch.device:
    """Return the device of a setting: auto, cpu or cuda.

    Raises:
        ConfigError: The setting has another value, or there is no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; expected auto, cpu or cuda")
    if name == "cuda":
        check_gpu(torch.device(name), "device is cuda")
    return torch.device("cuda" if name != "cpu" and count_gpus() else "cpu")
