"""Encoders on a GPU that is not there: no operation has tensors of two devices.

`tests/helpers/fake_cuda.py` explains how. Nothing is computed; the values are those of other tests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

import pipeline
from pipeline.encoders.base import EncoderSettings
from pipeline.encoders.clips import encode_windows
from pipeline.encoders.encoder import SpeechEncoder
from pipeline.encoders.kernels import cuda
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.wav2vec2.encoder import Wav2Vec2Encoder
from pipeline.encoders.wav2vec2.moments import compute_moments
from pipeline.encoders.wav2vec2.weights import LoadedModel
from pipeline.extract.stages.receive import DeviceReceiver, ScaledClip
from pipeline.store.format.codecs import FLOAT16, INT8, Codec
from pipeline.store.format.pooling import STATISTICS
from tests.helpers import toy_modules
from tests.helpers.encoder_kinds import ALL_KINDS, small_encoder
from tests.helpers.fake_cuda import DEVICE, FakeCuda, fake_cuda, place, why_not
from tests.helpers.general_checkpoints import CHECKPOINTS, save_settings

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]
SAMPLES = (8_000, 200, 7_500)
MOVES_IN_LIBRARY = ("speech_to_text",)
"""Architectures whose front end is torchaudio's, which copies its tables for every clip."""


def clips(device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """Waveforms of three lengths: one shorter than a frame, and two that may be padded together."""
    return [torch.zeros(n, device=device) for n in SAMPLES]


def encode(encoder: SpeechEncoder, waveforms: list[torch.Tensor], **options: Any) -> None:
    """Encode a batch, and check what is known of the layers without their values."""
    layers = list(encoder.encode_batch(waveforms, **options))
    n_frames = sum(encoder.geometry.n_frames(len(waveform)) for waveform in waveforms)
    assert len(layers) == len(encoder.layers)
    for layer in layers:
        assert (layer.shape, layer.dtype) == ((n_frames, encoder.dim), torch.float32)
        assert layer.device == DEVICE


def check_copies(fake: FakeCuda) -> None:
    """Check that the host waits for no copy, and that no copy is from pageable memory."""
    assert not fake.waits
    assert not fake.unpinned


@pytest.mark.parametrize("name", ALL_KINDS)
def test_a_packed_batch_stays_on_the_device(name: str) -> None:
    """Every kind; the second batch, which finds the tables of positions, waits for no copy."""
    encoder = small_encoder(name, layers=[0, 1])
    with fake_cuda() as fake:
        place(encoder)
        for _ in range(2):
            fake.waits.clear()
            encode(encoder, clips(), precision="fp16")
        check_copies(fake)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(("wavlm_base", precision) for precision in ("tf32", "bf16", "fp32", "fp64")),
        *((name, "fp32") for name in ("hubert_base", "hubert_large", "rotary conformer")),
    ],
)
def test_other_precisions_stay_on_the_device(name: str, precision: str) -> None:
    """Also fp32, in which a batch is encoded again whose values do not fit."""
    encoder = small_encoder(name, layers=[1])
    with fake_cuda():
        place(encoder)
        list(encoder.encode_batch(clips(), precision=precision))


@pytest.mark.parametrize("name", ["hubert_base", "wavlm_large", "rotary conformer"])
def test_a_packed_batch_without_varlen_attention(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch has it from 2.10, and on cards from Ampere on."""
    monkeypatch.setattr(cuda, "_varlen_attention", lambda: None)
    encoder = small_encoder(name, layers=[1])
    with fake_cuda():
        encode(place(encoder), clips(), precision="fp16")


def test_attention_over_packed_clips_is_not_that_of_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """It builds a plan for every shape that is new, and every batch has one."""
    varlen: Any = pytest.importorskip("torch.nn.attention.varlen")
    if not hasattr(varlen, "varlen_attn_out"):
        pytest.skip("torch before 2.12 has no attention by cuDNN here")
    monkeypatch.setattr(varlen, "varlen_attn", None)
    encoder, attended = small_encoder("hubert_base", layers=[1]), []
    attend = varlen.varlen_attn_out
    monkeypatch.setattr(varlen, "varlen_attn_out", lambda *args: attended.append(attend(*args)))
    with fake_cuda():
        encode(place(encoder), clips(), precision="fp16")
    assert len(attended) == 1


@pytest.mark.parametrize("name", ["hubert_base", "hubert_large"])
def test_waveforms_may_be_on_the_device(name: str) -> None:
    """All of them, or some."""
    encoder = small_encoder(name, layers=[1])
    with fake_cuda():
        place(encoder)
        encode(encoder, clips(DEVICE))
        encode(encoder, [*clips(DEVICE), *clips()])


@pytest.mark.parametrize("name", ["hubert_base", "hubert_large"])
def test_windows_beside_whole_clips(name: str) -> None:
    """The statistics of a long recording, which come from the host, and those of the clips."""
    encoder = small_encoder(name, layers=[1])
    moments = compute_moments(torch.randn(40_000))
    with fake_cuda() as fake:
        place(encoder)
        for stats in ([moments] * 3, [None, moments, None]):
            encode(encoder, clips(), stats=stats)
        check_copies(fake)


def test_a_long_recording_window_by_window() -> None:
    """Each window has the kept frames of all layers, on the device."""
    encoder = small_encoder("hubert_base", layers=[1], max_window_s=2.0, context_s=0.5)
    waveform = torch.randn(50_000)
    windows, moments = encoder.plan_windows(50_000), encoder.utterance_stats(waveform)
    with fake_cuda():
        place(encoder)
        parts = dict(encode_windows(encoder, waveform, windows, moments))
    assert len(parts) == len(windows) > 1
    assert sum(part.shape[1] for part in parts.values()) == encoder.geometry.n_frames(50_000)
    assert {part.device for part in parts.values()} == {DEVICE}


@pytest.mark.parametrize(
    ("name", "layers"), [("hubert_base", ["conv"]), ("wavlm_large", [0, 4, "final_norm"])]
)
def test_optional_layers(name: str, layers: list[int | str]) -> None:
    """The convolution stack alone, and the last block after the final norm."""
    encoder = small_encoder(name, layers=layers)
    with fake_cuda():
        place(encoder)
        encode(encoder, clips())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_general_path_stays_on_the_device(name: str, tmp_path: Path) -> None:
    """Every architecture, with padded clips and one alone; the host waits for no copy."""
    save_settings(name, tmp_path)
    encoder: Any = load_encoder(tmp_path, weights="random", device="cpu", layers=[1])
    with fake_cuda() as fake:
        place(encoder)
        encoder._captured_in(torch.float16)._is_checked = True  # so it ends with block 1
        encoder.__dict__["_padding_changes_nothing"] = encoder._kind.can_pad  # else it reads values
        encode(encoder, clips(), precision="fp16")
        if name not in MOVES_IN_LIBRARY:
            check_copies(fake)


@pytest.mark.parametrize("name", ["whisper", "parakeet_ctc", "sew", "wav2vec2-bert"])
def test_windows_on_the_general_path(name: str, tmp_path: Path) -> None:
    """Each kind of statistics of a long recording: the largest value, or mean and variance."""
    if name not in CHECKPOINTS:
        pytest.skip(f"this transformers has no {name}")
    save_settings(name, tmp_path)
    encoder: Any = load_encoder(tmp_path, weights="random", device="cpu", layers=[1])
    stats = encoder.utterance_stats(torch.randn(40_000))
    with fake_cuda() as fake:
        place(encoder)
        encoder._captured_in(torch.float32)._is_checked = True
        encode(encoder, clips()[:1], stats=[stats])
        check_copies(fake)


@pytest.mark.parametrize("settings", [{}, {"lengths_argument": "lengths"}])
def test_modules_stay_on_the_device(settings: dict[str, str]) -> None:
    """A module of a user, with and without the lengths of the clips."""
    factory = toy_modules.make_attentive if settings else toy_modules.make
    pipeline.register_encoder("fake-cuda", factory, layers=toy_modules.LAYERS, **settings)
    encoder = load_encoder("fake-cuda", device="cpu")
    with fake_cuda() as fake:
        place(encoder)
        for precision in ("fp32", "bf16"):
            encode(encoder, clips(), precision=precision)
        check_copies(fake)


@pytest.mark.parametrize("keeps_frames", [True, False])
@pytest.mark.parametrize("codec", [FLOAT16, INT8])
def test_the_receiver_stays_on_the_device(codec: Codec, keeps_frames: bool) -> None:
    """With every statistic, all frames or some, and a window whose scales are not known yet."""
    encoder = small_encoder("hubert_base", layers=[0, 1])
    counts = [encoder.geometry.n_frames(n) for n in SAMPLES]
    n_layers, dim, n_kept = len(encoder.layers), encoder.dim, sum(counts) - 5
    out = np.zeros((n_layers, n_kept, dim), codec.dtype) if keeps_frames else None
    scales = np.zeros((n_layers, codec.n_scales, dim), np.float32)
    held = np.zeros((n_layers, counts[0] - 5, dim), np.float32)
    scaled = (
        [ScaledClip(scales, held), ScaledClip(scales), ScaledClip(scales)]
        if codec.n_scales
        else None
    )
    with fake_cuda() as fake:
        place(encoder)
        receiver = DeviceReceiver(DEVICE, codec, STATISTICS)
        kept = np.arange(5, sum(counts))
        receiver.receive(
            encoder.encode_batch(clips()), kept, [counts[0] - 5, *counts[1:]], out, scaled
        )
        check_copies(fake)


def test_cuda_is_the_gpu_of_the_thread_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the thread of a worker it would be the first one, whatever a trainer has chosen."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    cpu = small_encoder("hubert_base", layers=[1])
    settings = EncoderSettings(cpu.layers, "fp16", "cuda", cpu.windows)
    with fake_cuda():
        encoder = Wav2Vec2Encoder(cpu._spec, LoadedModel(cpu._model, "random", ""), settings)
        assert encoder.device == torch.device("cuda:1")
        [layer] = encoder.encode_batch(clips())
        assert layer.device == torch.device("cuda:1")


def mixes_devices() -> object:
    """Add tensors of two devices."""
    return torch.zeros(3, device=DEVICE) + torch.zeros(3)


def indexes_by_host() -> object:
    """Index a tensor of the device in place by numbers of the host."""
    return torch.zeros(3, device=DEVICE).index_copy_(0, torch.arange(3), torch.zeros(3))


def reads_a_value() -> object:
    """Read a value on the host."""
    return float(torch.zeros(3, device=DEVICE).sum())


@pytest.mark.parametrize("wrong", [mixes_devices, indexes_by_host, reads_a_value])
def test_a_fault_is_found(wrong: Callable[[], object]) -> None:
    """The fake device refuses what a real one would refuse, or wait for."""
    with fake_cuda(), pytest.raises((RuntimeError, DataDependentOutputException)):
        wrong()


def test_copies_that_wait_are_noted() -> None:
    """To the device and back, unless they are asynchronous from page-locked memory."""
    with fake_cuda() as fake:
        there = torch.zeros(3).pin_memory().to(DEVICE, non_blocking=True)
        torch.zeros(3).copy_(there, non_blocking=True)
        check_copies(fake)
        torch.zeros(3).to(DEVICE, non_blocking=True)
        assert (len(fake.waits), len(fake.unpinned)) == (0, 1)
        torch.zeros(3).to(DEVICE)
        there.cpu()
        there.copy_(torch.zeros(3))
        assert len(fake.waits) == 3
