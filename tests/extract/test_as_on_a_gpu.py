"""Whole runs on the CPU with what a GPU has: kernels, receiver, two buffers and three units.

Only the copies beside the computation, the memory that is page-locked, and `varlen_attn` are left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline
from pipeline.encoders.kernels.cuda import CudaKernels
from pipeline.encoders.wav2vec2.families import TorchaudioFamily
from pipeline.errors import NoSpaceError
from pipeline.extract.executors import opening
from pipeline.extract.stages import encode, write
from pipeline.extract.stages.receive import DeviceReceiver
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.verify import verify_store
from pipeline.store.write.slot import CommitOutcome, SlotWriter
from tests.helpers.corpus import write_folder
from tests.helpers.extraction import INLINE, contents, extract

SECONDS = [2.0, 3.1, 0.02, 5.0, 13.0, 1.0, 0.5, 2.2, 6.5, 2.0]
SETTINGS = (*INLINE, "extract.max_window_s=6", "extract.context_s=1", "extract.max_batch_s=4")
FORMS = {
    "float16": ("extract.pooling=[mean,std,max,first,last]",),
    "int8": ("extract.dtype=int8",),
    "means only": ("extract.keep=[pooled]",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, of which two are longer than a window, and one is longer than a unit."""
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", SECONDS)


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Settings of a store."""
    return FORMS[request.param]


@pytest.fixture(scope="module")
def expected(
    folder: Path, form: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> pipeline.FeatureStore:
    """The store of a run as on a CPU."""
    store = tmp_path_factory.mktemp("cpu") / "s"
    extract(folder, store, *SETTINGS, *form)
    return pipeline.open_store(store)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run what a GPU has on the CPU; afterwards check that it was run."""
    load, kernels, receivers = TorchaudioFamily.load, CudaKernels(), []
    attend = kernels.attention
    n_attended = 0

    def attention(*args: Any) -> torch.Tensor:
        nonlocal n_attended
        n_attended += 1
        return attend(*args)

    def on_the_gpu(self: TorchaudioFamily, *settings: Any) -> Any:
        encoder: Any = load(self, *settings)
        encoder._kernels, encoder._modules = kernels, {}
        return encoder

    def receiver(device: torch.device, *settings: Any) -> DeviceReceiver:
        receivers.append(DeviceReceiver(device, *settings))
        return receivers[-1]

    monkeypatch.setattr(kernels, "attention", attention)
    monkeypatch.setattr(TorchaudioFamily, "load", on_the_gpu)
    monkeypatch.setattr(encode, "open_receiver", receiver)
    monkeypatch.setattr(write, "n_buffers", lambda device: 2)
    monkeypatch.setattr(opening, "units_per_worker", lambda device: 3)
    yield
    assert n_attended
    assert receivers


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_run_as_on_a_gpu_has_the_features_of_one_on_a_cpu(
    folder: Path, form: tuple[str, ...], expected: pipeline.FeatureStore, tmp_path: Path
) -> None:
    """Up to rounding; checksums and statistics are those of the stored values, bit for bit."""
    assert extract(folder, tmp_path / "s", *SETTINGS, *form).units_total > 3
    store = pipeline.open_store(tmp_path / "s")
    assert verify_store(tmp_path / "s").ok
    assert store.ids == expected.ids
    for name in store.ids if "extract.keep=[pooled]" not in form else ():
        found, exact = store.read(name).float(), expected.read(name).float()
        assert found.shape == exact.shape
        step = exact.amax(1, keepdim=True) - exact.amin(1, keepdim=True)
        allowed = step / 250 if "extract.dtype=int8" in form else exact.abs().max() * 1e-3
        assert ((found - exact).abs() <= allowed + 1e-3).all(), name
    torch.testing.assert_close(store.pooled(), expected.pooled(), atol=2e-3, rtol=2e-3)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_resumed_run_as_on_a_gpu_has_the_same_bytes(
    folder: Path, form: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in its third commit, while later units are encoded and decoded, and is run again."""
    commit, n_commits = SlotWriter.commit, 0

    def full_disk(self: SlotWriter, index: object) -> CommitOutcome:
        nonlocal n_commits
        n_commits += 1
        if n_commits == 3:
            raise NoSpaceError("the disk is full")
        return commit(self, index)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SlotWriter, "commit", full_disk)
        with pytest.raises(NoSpaceError):
            extract(folder, tmp_path / "resumed", *SETTINGS, *form)
    n_kept = read_status(tmp_path / "resumed").units_committed
    status = extract(folder, tmp_path / "resumed", *SETTINGS, *form)
    assert 2 <= n_kept < status.units_committed == status.units_total
    extract(folder, tmp_path / "whole", *SETTINGS, *form)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
