"""Local copies of remote tables and lists, which the readers of local ones read.

A copy lives as long as the process, and has the time of its object: two machines that read the same
table give the dataset the same fingerprint. In messages it has the name of its object.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import AudioError, SourceError
from pipeline.sources.remote.listing import is_file, list_folder
from pipeline.sources.remote.reading import fetch_whole
from pipeline.sources.remote.uri import check_uri, folder_of, is_remote, joined, name_of

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_N_THREADS = 16
_KALDI = re.compile(r"(wav\.scp|segments|text|(reco|utt|spk)2\w+)(\.gz)?")
_TABLES = (".csv", ".tsv")
_mirrors: dict[str, str] = {}
"""The folder of each copy, and the URI of the folder that it is a copy of."""


@cache
def _home() -> str:
    """Return the folder of the copies, which is removed when the process ends, not with a fork."""
    home, owner = tempfile.mkdtemp(prefix="strata-tables-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(home, ignore_errors=True)

    atexit.register(remove)
    return home


def copy_tables(config: DatasetConfig) -> DatasetConfig:
    """Fetch the tables that `dataset.path` names, if it is remote.

    Returns:
        The configuration that reads the copies; the same if there is nothing to copy.

    Raises:
        SourceError: There is no such table or list, or the server does not answer.
    """
    path = config.path
    if not is_remote(path):
        return config
    assert path is not None
    check_uri(path)
    uri = path.rstrip("/")
    if config.kind == "kaldi":
        names = [name for name in list_folder(uri) if _KALDI.fullmatch(name)]
        if "wav.scp" not in names:
            raise SourceError(f"dataset.path={path} holds no wav.scp")
        return replace(config, path=str(copy_files(uri, names)))
    if config.kind == "disk":
        raise SourceError(
            f"dataset.path={path}: a dataset that save_to_disk wrote is read from a local disk; "
            "copy it there, or write it as Parquet and use dataset=parquet"
        )
    if config.kind not in ("manifest", "lhotse") or config.tars is not None:
        return config
    if config.kind == "manifest" and config.split is not None and not is_file(uri):
        names = [name for name in list_folder(uri) if name.lower().endswith(_TABLES)]
        if not names:
            raise SourceError(f"dataset.path={path} holds no table, or does not exist")
        return replace(config, path=str(copy_files(uri, names)))
    return replace(config, path=str(copy_file(uri)))


def copy_file(uri: str) -> Path:
    """Fetch a table; return the path of the copy.

    Raises:
        SourceError: It does not exist, or the server does not answer.
    """
    return copy_files(folder_of(uri), [name_of(uri)]) / name_of(uri)


def copy_files(folder: str, names: Iterable[str]) -> Path:
    """Fetch files of a remote folder; return the folder of the copies.

    Raises:
        SourceError: One does not exist, or the server does not answer.
    """
    home = Path(tempfile.mkdtemp(dir=_home()))
    _mirrors[str(home)] = folder.rstrip("/")

    def fetch(name: str) -> None:
        target = home / name
        target.parent.mkdir(parents=True, exist_ok=True)
        uri = joined(folder, name)
        try:
            content, modified_s = fetch_whole(uri)
        except AudioError as error:
            raise SourceError(f"{uri} does not exist, or is no file ({error})") from error
        target.write_bytes(content)
        os.utime(target, (modified_s, modified_s))

    with ThreadPoolExecutor(_N_THREADS) as pool:
        list(pool.map(fetch, names))
    return home


def original(text: str) -> str:
    """Return a text in which copies have the names of their objects."""
    if _mirrors and _home() in text:
        for copy, folder in _mirrors.items():
            text = text.replace(copy, folder)
    return text
