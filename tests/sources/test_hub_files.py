"""Audio files and lists in a repository of the hub, which URIs with hf:// name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.audio.decode import decode
from pipeline.audio.probe import probe
from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import speechlike, write
from tests.helpers.hub_server import Hub, running_hub, use_hub

NAME = "anna/words"


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A repository with three clips and a table of two of them."""
    use_hub(server, tmp_path / "home", monkeypatch)
    folder = tmp_path / "clips"
    for i, name in enumerate("abc"):
        write(folder / f"data/{name}.wav", speechlike(160_000, seed=i))
    (folder / "list.csv").write_text("path,word\ndata/a.wav,one\ndata/c.wav,two\n")
    server.commit_folder(NAME, folder)
    server.requests.clear()
    return server


def configs(place: str) -> dict[str, DatasetConfig]:
    return {
        "audiofolder": DatasetConfig("audiofolder", f"{place}/data"),
        "manifest": DatasetConfig("manifest", f"{place}/list.csv", audio_column="path"),
    }


@pytest.mark.parametrize("kind", ["audiofolder", "manifest"])
def test_a_dataset_on_the_hub_is_that_of_the_folder(kind: str, hub: Hub, tmp_path: Path) -> None:
    """Its files are named by their commit; planning fetches both ends of each."""
    here = open_source(configs(str(tmp_path / "clips"))[kind])
    there = open_source(configs(f"hf://datasets/{NAME}")[kind])
    assert there.ids().to_pylist() == here.ids().to_pylist()
    rows = range(len(here))
    assert there.metadata(rows) == here.metadata(rows)
    commit = hub.branches[NAME, "main"]
    for row in rows:
        ours, theirs = there.segment(row), here.segment(row)
        assert str(ours.path).startswith(f"hf://datasets/{NAME}@{commit}/data/")
        assert probe(ours, 16_000) == probe(theirs, 16_000)
    assert hub.n_bytes(".wav") == len(here) * 2 * 4096
    for row in rows:
        expected = decode(here.segment(row), 16_000).waveform
        assert decode(there.segment(row), 16_000).waveform.equal(expected)


def test_a_commit_that_leaves_a_file_leaves_the_fingerprint(hub: Hub, tmp_path: Path) -> None:
    """Stamps are digests of contents; other contents change it."""
    config = configs(f"hf://datasets/{NAME}")["audiofolder"]
    before = open_source(config).fingerprint
    (tmp_path / "clips/notes.md").write_text("hello")
    hub.commit_folder(NAME, tmp_path / "clips")
    assert open_source(config).fingerprint == before
    write(tmp_path / "clips/data/b.wav", speechlike(160_000, seed=9))
    hub.commit_folder(NAME, tmp_path / "clips")
    assert open_source(config).fingerprint != before


def test_mistakes_are_named(hub: Hub) -> None:
    """A repository, a revision or a folder that does not exist, and a URI without a repository."""
    for uri, words in {
        "hf://datasets/anna/nothing/data": "there is no dataset anna/nothing",
        f"hf://datasets/{NAME}@v9/data": "there is no revision v9",
        f"hf://datasets/{NAME}/nowhere": "does not exist, or is an empty folder",
        f"hf://{NAME}": "expected hf://datasets/USER/NAME",
    }.items():
        with pytest.raises(SourceError, match=words):
            open_source(DatasetConfig("audiofolder", uri))
