"""A checkpoint: a directory, or a commit on the hub, whose files are fetched into its cache."""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # documented

from pipeline.errors import ConfigError, StoreError, WeightsError, one_line
from pipeline.files import write_atomic
from pipeline.hub_errors import FETCH_ERRORS, HubItem, Refusal, explanation

CONFIG = "config.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CACHED = "models--"  # prefix of a model's folder in the cache of the hub


@dataclass(frozen=True)
class Checkpoint:
    """Files of a checkpoint.

    Attributes:
        name: Name as the user gave it: a hub id, or a directory.
        commit: Commit on the hub; None for a directory.
    """

    name: str
    commit: str | None = None

    def __str__(self) -> str:
        at = "" if self.commit is None else f" (commit {self.commit[:7]})"
        return f"the Hugging Face checkpoint {self.name!r}{at}"

    def find(self, file: str) -> Path | None:
        """Return the path of a file, fetched if it is on the hub.

        Returns:
            None if the checkpoint does not have it. With `HF_HUB_OFFLINE` also None if it is not in
            the cache.

        Raises:
            WeightsError: The hub refuses it, or does not answer.
        """
        if self.commit is None:
            path = Path(self.name).expanduser() / file
            return path if path.is_file() else None
        known = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.commit)
        if known is not None:  # a path, or the record that there is no such file
            return Path(known) if isinstance(known, str) else None
        try:
            return Path(huggingface_hub.hf_hub_download(self.name, file, revision=self.commit))
        except FETCH_ERRORS as error:
            is_local = isinstance(error, errors.LocalEntryNotFoundError)
            if isinstance(error, errors.EntryNotFoundError) and not is_local:
                return None
            if huggingface_hub.constants.HF_HUB_OFFLINE:
                return None
            raise WeightsError(f"cannot fetch {file} of {self}: {self._why(error)}") from error

    def require(self, file: str, purpose: str) -> Path:
        """Return the path of a file that the checkpoint must have.

        Args:
            file: Its name.
            purpose: What it states, and what to do without it, for the message.

        Raises:
            WeightsError: There is none, or it cannot be fetched.
        """
        found = self.find(file)
        if found is None:
            raise WeightsError(f"{self} has no {file}{self.where_missing()}, {purpose}")
        return found

    def files(self) -> list[str]:
        """Return the names of the files of the checkpoint, sorted.

        With `HF_HUB_OFFLINE` those in the cache.

        Raises:
            WeightsError: The hub refuses them, or does not answer.
        """
        if self.commit is None or huggingface_hub.constants.HF_HUB_OFFLINE:
            return sorted(path.name for path in self.folder().iterdir() if path.is_file())
        try:
            return sorted(huggingface_hub.HfApi().list_repo_files(self.name, revision=self.commit))
        except FETCH_ERRORS as error:
            raise WeightsError(f"cannot list the files of {self}: {self._why(error)}") from error

    def where_missing(self) -> str:
        """Return what to add to the statement that a file is missing."""
        is_offline = self.commit is not None and huggingface_hub.constants.HF_HUB_OFFLINE
        return " in the cache (HF_HUB_OFFLINE is set)" if is_offline else ""

    def folder(self) -> Path:
        """Return the folder of the files that were found so far.

        Raises:
            WeightsError: There is no config.json.
        """
        return self.require(
            CONFIG,
            "which states the architecture; give a directory or a hub id in the form of "
            "transformers (save_pretrained)",
        ).parent

    def _why(self, error: BaseException) -> str:
        refusal = explanation(HubItem("model", self.name, self.commit), error)
        return one_line(error) if refusal is None else refusal.reason


def open_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint: a directory, or else a commit on the hub.

    Without a connection the commit is that of the revision in the cache.

    Args:
        name: Directory, or id on the hub.
        revision: Branch, tag or commit on the hub; the default branch if None. The hub is not asked
            about a commit.

    Raises:
        ConfigError: There is no such directory, model or revision.
        WeightsError: The hub refuses the model, or does not answer and its cache does not have it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigError(
                f"model.revision={revision} is for checkpoints on the hub, but model.name={name} "
                "is a directory; leave it out"
            )
        return Checkpoint(name)
    if path.is_file():
        raise ConfigError(
            f"model.name={name} is a file; model=hf takes a directory with config.json and "
            "model.safetensors, or a hub id; original files of fairseq, unilm and s3prl are read "
            "with model=checkpoint"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ConfigError(f"model.name={name}: there is no such directory{_hint(name)}")
    try:
        validate_repo_id(name)
    except errors.HFValidationError as error:
        raise ConfigError(
            f"model.name={name} is neither a directory nor an id of the hub, as USER/NAME"
            f"{_hint(name)}"
        ) from error
    return Checkpoint(name, _find_commit(name, revision))


def _find_commit(name: str, revision: str | None) -> str:
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        commit = str(huggingface_hub.HfApi().model_info(name, revision=revision).sha)
    except FETCH_ERRORS as error:
        item = HubItem("model", name, revision)
        refusal = explanation(item, error) or Refusal(one_line(error))
        if refusal.is_unreachable:
            known = huggingface_hub.try_to_load_from_cache(name, CONFIG, revision=revision)
            if isinstance(known, str):
                return Path(known).parent.name
        if refusal.is_unknown:
            raise ConfigError(
                f"model.name={name}: there is no such directory here, and no such model on the hub"
                f"{_hint(name)}, or it is private: for a private one log in with `hf auth login`, "
                "or set HF_TOKEN"
            ) from error
        is_setting = isinstance(error, errors.RevisionNotFoundError)
        kind = ConfigError if is_setting else WeightsError
        what = f"the checkpoint {name!r} cannot be fetched from the hub"
        if refusal.is_unreachable:
            what = f"there is no directory {name!r} here, and it cannot be fetched from the hub"
        hint = _hint(name) if refusal.is_unreachable else ""
        raise kind(f"{what}: {refusal.reason}{hint}") from error
    found = Checkpoint(name, commit).find(CONFIG)
    if found is not None:
        _record(found.parents[2] / "refs" / (revision or "main"), commit)
    return commit


def _record(ref: Path, commit: str) -> None:
    """Record the commit of a branch in the cache, as the client of the hub does.

    The client records it only for files that it fetches by the name of a branch. Here all files are
    fetched by the commit, so that all are of one commit. A read-only cache is not changed.
    """
    with suppress(OSError, StoreError):
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(ref, [commit.encode()])


def _hint(name: str) -> str:
    """Return a hint at checkpoints of this machine with a similar name: directories, the cache."""
    parent = Path(name).expanduser().parent
    near: list[str] = []
    if parent.is_dir():
        folders = [path.name for path in parent.iterdir() if (path / CONFIG).is_file()]
        close = difflib.get_close_matches(Path(name).name, folders, n=1, cutoff=0.6)
        near += [str(parent / folder) for folder in close]
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    cached = [
        path.name.removeprefix(_CACHED).replace("--", "/") for path in cache.glob(f"{_CACHED}*")
    ]
    near += difflib.get_close_matches(name, cached, n=1, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""
