"""The verbs on stores in buckets, and the programs' entry points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, overrides
from tests.helpers.forked import fork_beside
from tests.servers.localbucket import SECRET


def strata(*arguments: str | Path) -> str:
    """Run a verb; return what it prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert SECRET not in result.output
    return result.output


def refused(*arguments: str | Path) -> str:
    """Run a verb that fails; return its last line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    return result.output.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few clips."""
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", mixed_lengths(6))


@pytest.mark.slow
def test_every_verb_takes_a_uri(
    folder: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the plan to the export; what a bucket cannot say is said to be unknown."""
    monkeypatch.chdir(tmp_path)
    settings = [*overrides(folder, s3, *INLINE), "extract.layers=[2,9]"]
    assert "free space unknown" in strata("plan", *settings)
    strata("extract", *settings)
    assert "6 of 6 utterances" in strata("status", s3)
    assert "sound" in strata("verify", s3)
    assert "0 commits revoked" in strata("verify", s3, "--repair")
    assert "utterances: 6" in strata("inspect", s3)
    assert "n_frames" in strata("inspect", s3, "clip-001.wav")
    strata("collapse", s3, f"{s3}-one", "weights=average")
    assert verify_store(f"{s3}-one").ok
    strata("copy", s3, f"{s3}-copy", "dtype=int8")
    strata("export", f"{s3}-copy", tmp_path / "files", "format=npy")
    assert list((tmp_path / "files").rglob("*.npy"))
    strata("layers", s3, "n_frames=50", "frame_statistics=true")
    assert (tmp_path / "sweeps" / s3.rpartition("/")[2] / "layers" / "report.html").exists()
    assert "6 unchanged" in strata("relabel", s3, "dataset=audiofolder", f"dataset.path={folder}")
    assert "would be dropped" in strata("drop", s3, "where=speaker = 's1'")
    strata("drop", s3, "where=speaker = 's1'", "confirm=true")
    assert "sound" in strata("verify", s3)
    assert len(pipeline.open_store(s3)) == 4


def test_errors_are_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is not there, and a server that is not encrypted."""
    assert refused("status", f"{s3}/none").startswith(f"error: no store at {s3}/none")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    result = CliRunner().invoke(app, ["status", s3])
    assert result.exit_code == 2
    assert "set AWS_ALLOW_HTTP=true" in result.output


def test_features_are_cached_in_a_bucket(s3: str) -> None:
    """By a program with its own dataset; the second look reads the bucket."""
    encoder = pipeline.load_encoder("tiny", weights="random")
    wave = torch.from_numpy(np.random.default_rng(0).standard_normal(8000).astype(np.float32))
    features = pipeline.cached(encoder, s3)
    first = features("a", wave)
    features.flush()
    again = pipeline.cached(encoder, s3)("a", wave)
    assert torch.equal(first, again)
    assert pipeline.open_store(s3).ids == ["a"]


@pytest.mark.slow
def test_a_loader_begins_while_a_bucket_is_filled(
    folder: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extraction beside the trainer writes there."""
    fork_beside(monkeypatch)
    given = [item for item in overrides(folder, s3) if not item.startswith("store=")]
    dataset = pipeline.open_or_extract(s3, *given, engine={"kind": "inline", "threads": 1})
    loader = pipeline.make_loader(dataset, max_frames_per_batch=300)
    assert sorted(name for batch in loader for name in batch.ids) == pipeline.open_store(s3).ids
    assert len(pipeline.open_store(s3)) == 6
