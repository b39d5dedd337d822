"""Checkpoints on the hub: one commit for a whole run, in the identity, and without a connection.

The hub is a server on this machine, and the client is the real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pipeline
from pipeline.config import Config, load_config
from pipeline.encoders.loading import load_encoder
from pipeline.errors import ConfigError, IdentityError, WeightsError
from pipeline.extract.run import extract, plan
from pipeline.online.completeness import check_settings
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.identity import compare
from tests.encoders.test_huggingface import make
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.hub_server import Fault, Hub, running_hub, use_hub
from tests.helpers.observers import Notes

pytest.importorskip("transformers")
NAME = "someone/hubert-small"


@dataclass
class Served:
    """A hub with one model, and a cache that is empty at first.

    Attributes:
        hub: The hub.
        folder: Files of the model's newest commit.
        commit: That commit.
        use: Makes the client use the hub, or, with True, no network.
    """

    hub: Hub
    folder: Path
    commit: str
    use: Callable[[bool], None]

    def push(self, **files: str) -> str:
        """Commit the folder again with other texts; return the commit."""
        for name, text in files.items():
            (self.folder / name).write_text(text)
        return self.hub.commit_folder(NAME, self.folder)

    def push_weights(self) -> str:
        """Commit other weights, as of a longer training."""
        make(self.folder, "HubertModel", {"layer_norm_eps": 1e-4}, normalize=False)
        return self.push()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    folder = tmp_path / "pushed"
    make(folder, "HubertModel", {}, normalize=False)
    with running_hub() as hub:

        def use(offline: bool) -> None:
            use_hub(hub, tmp_path / "home", monkeypatch, offline)

        use(False)
        yield Served(hub, folder, hub.commit_folder(NAME, folder), use)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "clips"
    return write_folder(folder, mixed_lengths(4), metadata=False)


def configured(clips: Path, store: Path, *more: str, name: str = NAME) -> Config:
    settings = (f"dataset.path={clips}", f"store={store}", "model=hf", f"model.name={name}")
    return load_config(
        [*settings, "engine=inline", "engine.threads=1", "plan.frames_per_unit=256", *more]
    )


def commit_of(store: Path) -> str:
    attributes = pipeline.open_store(store).attributes
    assert (
        attributes["provenance"]["model"]["revision"]
        == (attributes["identity"]["encoder"]["weights"]["commit"])
    )
    return str(attributes["identity"]["encoder"]["weights"]["commit"])


def test_the_commit_is_part_of_the_identity(served: Served) -> None:
    """A branch, or none, is resolved to its commit; a directory with these files has none."""
    served.hub.branches[NAME, "v1"] = served.commit
    found = [
        load_encoder(NAME, source="huggingface", revision=revision, device="cpu")
        for revision in (None, "v1", served.commit)
    ]
    for encoder in found:
        assert encoder.identity["weights"]["commit"] == served.commit
        assert any(served.commit[:7] in note for note in encoder.notes)
    local = load_encoder(served.folder, source="huggingface", device="cpu")
    assert "commit" not in local.identity["weights"]
    assert compare(local.identity, found[0].identity) == []


def test_a_commit_is_not_asked_for(served: Served) -> None:
    """With a commit as the revision, and its files in the cache, the hub gets no request."""
    load_encoder(NAME, source="huggingface", device="cpu")
    served.hub.requests.clear()
    load_encoder(NAME, source="huggingface", revision=served.commit, device="cpu")
    assert served.hub.requests == []


def test_a_run_resolves_the_branch_once(served: Served, clips: Path, tmp_path: Path) -> None:
    """A branch that moves while a run goes on does not change what its workers load."""
    config = configured(clips, tmp_path / "store")
    asked: list[str] = []

    def move(method: str, path: str) -> Fault | None:
        if path == f"/api/models/{NAME}":
            asked.append(path)
        elif asked and served.hub.branches[NAME, "main"] == served.commit:
            served.push_weights()  # after the branch was resolved, before any file is fetched
        return None

    served.hub.fault = move
    extract(config)
    assert served.hub.branches[NAME, "main"] != served.commit
    assert len(asked) == 1
    assert commit_of(tmp_path / "store") == served.commit


def test_resuming_takes_the_commit_of_the_store(
    served: Served, clips: Path, tmp_path: Path
) -> None:
    """After the branch has moved, a run goes on with the first commit and says so.

    `model.revision=main` asks for the new weights, which are refused with both commits.
    """
    config, notes = configured(clips, tmp_path / "store"), Notes()
    extract(config)
    moved = served.push_weights()
    assert extract(config, notes).utterances_ok == 4
    plan(config)
    check_settings(config, open_backend(str(tmp_path / "store")))
    [line] = [line for line in notes.lines if "the store was created with commit" in line]
    assert f"commit {served.commit} of {NAME}" in line
    with pytest.raises(IdentityError) as caught:
        extract(configured(clips, tmp_path / "store", "model.revision=main"))
    for fact in (served.commit, moved, "weights.sha256"):
        assert fact[:20] in str(caught.value)


def test_a_commit_with_the_same_weights_resumes(
    served: Served, clips: Path, tmp_path: Path
) -> None:
    """Another README is no other encoder, nor is a directory with the same files."""
    extract(configured(clips, tmp_path / "store"))
    served.push(**{"README.md": "Better words."})
    for more, name in ((["model.revision=main"], NAME), ([], str(served.folder))):
        assert extract(configured(clips, tmp_path / "store", *more, name=name)).utterances_ok == 4
    assert commit_of(tmp_path / "store") == served.commit


def test_a_store_without_a_commit_resumes(served: Served, clips: Path, tmp_path: Path) -> None:
    """Stores that were made before commits were recorded stay valid."""
    store = tmp_path / "store"
    extract(configured(clips, store))
    path = store / "features.zarr" / "zarr.json"
    group = json.loads(path.read_text())
    attributes = group["attributes"]
    del attributes["identity"]["encoder"]["weights"]["commit"]
    attributes["provenance"]["model"]["revision"] = None
    attributes.pop("checksum", None)
    path.write_text(json.dumps(group))
    assert extract(configured(clips, store)).utterances_ok == 4


def test_without_a_connection_the_cached_commit_is_taken(
    served: Served, clips: Path, tmp_path: Path
) -> None:
    """With `HF_HUB_OFFLINE`, and if the hub does not answer, the snapshot in the cache is used."""
    load_encoder(NAME, source="huggingface", device="cpu")
    served.push_weights()
    served.use(True)
    extract(configured(clips, tmp_path / "offline"))
    served.use(False)
    served.hub.fault = lambda method, path: Fault(503)
    extract(configured(clips, tmp_path / "down"))
    assert commit_of(tmp_path / "offline") == commit_of(tmp_path / "down") == served.commit


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault(401, "GatedRepo"), WeightsError, "it is gated: ask for access at .*`hf auth login`"),
        (Fault(403, "GatedRepo"), WeightsError, "it is gated: ask for access at"),
        (Fault(403), WeightsError, r"it refuses access \(HTTP 403\)"),
        (Fault(404, "RepoNotFound"), ConfigError, "no such model on the hub.*or it is private"),
        (Fault(429), WeightsError, "it limits the number of requests"),
        (Fault(500), WeightsError, "it answered with HTTP 500"),
    ],
    ids=str,
)
def test_refusals_have_one_clear_line(
    served: Served, fault: Fault, kind: type[Exception], message: str
) -> None:
    """What the hub answers is explained, with the remedy."""
    served.hub.fault = lambda method, path: fault
    with pytest.raises(kind, match=message) as caught:
        load_encoder(NAME, source="huggingface")
    assert "\n" not in str(caught.value)


def test_unknown_names_and_revisions(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt name brings what is near, without network too; an unknown revision is named."""
    load_encoder(NAME, source="huggingface", device="cpu")
    with pytest.raises(ConfigError, match=f"did you mean {NAME}"):
        load_encoder("someone/hubert-smal", source="huggingface")
    with pytest.raises(ConfigError, match=r"model\.name=hubert_bas: .*is model=hubert_base$"):
        load_encoder("hubert_bas", source="huggingface")
    with pytest.raises(ConfigError, match=r"there is no revision v9: set model\.revision"):
        load_encoder(NAME, source="huggingface", revision="v9")
    served.use(True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        load_encoder("someone/other", source="huggingface")
    parent = served.folder.parent
    monkeypatch.chdir(parent.parent)
    message = f"no directory .* here, .* HF_HUB_OFFLINE is set.*; did you mean {parent.name}/pushed"
    with pytest.raises(WeightsError, match=message):
        load_encoder(f"{parent.name}/pushd", source="huggingface")


def test_files_that_a_commit_lacks(served: Served) -> None:
    """The messages are those for a directory, with the commit."""
    (served.folder / "model.safetensors").rename(served.folder / "pytorch_model.bin")
    commit = served.push()
    message = rf"\(commit {commit[:7]}\) has pytorch_model.bin and no model.safetensors"
    with pytest.raises(WeightsError, match=message):
        load_encoder(NAME, source="huggingface")
    (served.folder / "preprocessor_config.json").unlink()
    served.push()
    with pytest.raises(WeightsError, match=r"has no preprocessor_config.json, which states"):
        load_encoder(NAME, source="huggingface")


def test_a_download_that_breaks_off(served: Served) -> None:
    """A file that the hub does not send is named, and nothing half is loaded."""

    def fail(method: str, path: str) -> Fault | None:
        return Fault(500) if "safetensors" in path else None

    served.hub.fault = fail
    with pytest.raises(WeightsError, match=r"cannot fetch model\.safetensors of .*HTTP 500"):
        load_encoder(NAME, source="huggingface")
