"""Registered encoders in other processes: Ray's workers, and the one beside a trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import pipeline
from pipeline.config import compose_config
from pipeline.extract import run
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import contents
from tests.helpers.forked import fork_beside
from tests.helpers.toy_modules import LAYERS, make


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six clips."""
    folder = tmp_path_factory.mktemp("clips")
    write_folder(folder, mixed_lengths(6))
    return folder


def by_value():
    """A factory without a name that another process could import."""

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 8, 400, 320)
            self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

        def forward(self, waveforms):
            x = self.conv(waveforms[:, None]).transpose(1, 2)
            for block in self.blocks:
                x = torch.tanh(block(x))
            return x

    return lambda: Local()


def extract(clips: Path, store: Path, engine: str) -> dict[str, object]:
    """Extract with the encoder "mine"; return the content of the store."""
    settings = {"kind": engine, "threads": 1, "workers": 1}
    groups = {"dataset": {"path": str(clips)}, "model": "mine", "engine": settings}
    status = run.extract(compose_config([f"store={store}"], groups))
    assert status.utterances_ok == 6
    return contents(store)


@pytest.mark.slow
@pytest.mark.parametrize("factory", [make, by_value()], ids=["by name", "by value"])
def test_a_worker_of_ray_writes_the_same_bytes(
    factory, clips: Path, tmp_path: Path, ray_session: None
) -> None:
    """It imports the factory by its name, or gets it by value."""
    pipeline.register_encoder("mine", factory, layers=LAYERS)
    assert extract(clips, tmp_path / "b", "ray") == extract(clips, tmp_path / "a", "inline")


@pytest.mark.slow
def test_the_process_beside_a_trainer_gets_the_encoder(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By value, with what was found by running it here."""
    fork_beside(monkeypatch)
    pipeline.register_encoder("mine", by_value(), layers=LAYERS)
    found = pipeline.open_or_extract(
        tmp_path / "store",
        dataset={"path": str(clips)},
        model="mine",
        engine={"kind": "inline", "threads": 1},
    )
    loader = pipeline.make_loader(found, max_frames_per_batch=1000)
    assert sum(len(batch.ids) for batch in loader) == 6
    assert contents(tmp_path / "store") == extract(clips, tmp_path / "inline", "inline")
