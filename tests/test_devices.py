"""The GPUs that torch finds, and messages about one that it does not find."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import EngineConfig
from pipeline.devices import choose_device, count_gpus
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.settings import choose_device as device_of_encoder
from pipeline.errors import ConfigError
from pipeline.extract import resources
from pipeline.extract.executors.ray_cluster import Machine
from pipeline.extract.resources import find_resources


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Set the GPUs of the machine, and whether torch can use them."""

    def install(n: int, usable: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable and n > 0)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def test_auto_takes_a_gpu_only_if_torch_can_use_it(gpus) -> None:
    """With a driver that is too old, torch still counts the GPUs of the machine."""
    gpus(2, usable=False)
    assert count_gpus() == 0
    assert choose_device("auto").type == device_of_encoder("auto") == "cpu"
    assert find_resources(EngineConfig(kind="inline")).device == "cpu"
    gpus(2)
    assert count_gpus() == 2
    assert choose_device("auto").type == device_of_encoder("auto") == "cuda"
    assert find_resources(EngineConfig(kind="inline")).device == "cuda"


def test_cuda_without_a_gpu_is_refused(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, in every place where a device is chosen."""
    gpus(1, usable=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    reason = r"torch finds no GPU: .*too old for CUDA 13.0.*CUDA_VISIBLE_DEVICES='' hides others"
    with pytest.raises(ConfigError, match=f"^device is cuda, and {reason}"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match=f"^engine.device is cuda, and {reason}"):
        find_resources(EngineConfig(kind="inline", device="cuda"))
    with pytest.raises(ConfigError, match=f"^device=cuda, and {reason}"):
        load_encoder("tiny", "random", device="cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"torch finds no GPU: torch .* is built without CUDA"):
        device_of_encoder("cuda:0")


def test_a_cluster_without_a_gpu_is_named(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs of this machine, which starts the run, do not matter."""
    gpus(1)
    monkeypatch.setattr(resources, "find_machine", lambda config: Machine(4, 0, 2**34))
    with pytest.raises(ConfigError, match="is cuda, and the Ray cluster has no GPU"):
        find_resources(EngineConfig(kind="ray", address="head:6379", device="cuda"))


def test_a_gpu_that_does_not_exist_is_refused(gpus) -> None:
    """With those that do."""
    gpus(2)
    assert device_of_encoder("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="device=cuda:3, and torch finds 2 GPUs, from cuda:0 to"):
        load_encoder("tiny", "random", device="cuda:3")
