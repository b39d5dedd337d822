"""Samples of one shard of a WebDataset: consecutive members of a tar file with one key.

The key ends at the first dot of the base name; a directory before it belongs to the key. Members
without a dot, hidden ones and directories belong to no sample.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.sources.archives.labels import LABELS, LabelColumn, LabelReader
from pipeline.sources.archives.tar import Member, TarReader
from pipeline.sources.folder import is_audio
from pipeline.sources.remote.file import RemoteFile

ANY_AUDIO = "audio"
"""Value of `dataset.audio_column` that takes the only audio member of each sample."""
MAX_LABEL_BYTES = 1 << 20
"""Larger labels are not read."""
_KEY = re.compile(r"(?:\./)*((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__")  # written by the WebDataset library about the shard


@dataclass
class Shard:
    """The samples of one shard that have audio, and what else was in it.

    Attributes:
        path: The tar file.
        keys: Key of each sample, text `[n_samples]`.
        offset: First byte of its audio, int64 `[n_samples]`.
        length: Bytes of its audio, int64 `[n_samples]`.
        columns: Labels as text `[n_samples]`, and their kinds.
        others: Number of members that were not read, by their extension.
        links: Names of links.
        nested: Number of nested values by their key.
        second: Number of values of each column that are left out, because another member of the
            sample has the column, with another value.
        silent: Keys of samples without audio.
        fault: How the end of the shard is damaged; empty if it is not.
    """

    path: Path | RemoteFile
    keys: pa.StringArray
    offset: pa.Array
    length: pa.Array
    columns: dict[str, tuple[pa.StringArray, set[str]]]
    others: Counter[str]
    links: list[str]
    nested: Counter[str]
    second: Counter[str]
    silent: list[str]
    fault: str


def read_shard(path: Path | RemoteFile, audio: str) -> Shard:
    """Index a shard: read its headers and its labels, and no audio.

    Args:
        path: The tar file.
        audio: Extension of the audio members; `ANY_AUDIO` takes those that are named like audio.

    Raises:
        SourceError: It is no tar, compressed or damaged; the members of a sample are not
            consecutive; a sample has several audio members; a label is not UTF-8 or not JSON, or
            it or an audio member is sparse.
    """
    index = _Index(path, audio)
    with TarReader(path) as reader:
        for member in reader.members():
            index.add(member, reader)
        index.finish(reader)
    return index.shard()


@dataclass
class _Index:
    """The samples found so far."""

    path: Path | RemoteFile
    audio: str
    keys: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)  # keys
    extensions: set[str] = field(default_factory=set)  # of the current sample
    audio_extension: str = ""  # of the current sample
    offset: array[int] = field(default_factory=lambda: array("q"))  # of audio; -1: none yet
    length: array[int] = field(default_factory=lambda: array("q"))
    labels: LabelReader = field(default_factory=LabelReader)
    others: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)
    fault: str = ""

    def add(self, member: Member, reader: TarReader) -> None:
        """Add a member to its sample."""
        found = _KEY.fullmatch(member.name)
        if member.kind == "link":
            self.links.append(member.name)
        if member.kind in ("link", "other") or _META.fullmatch(member.name):
            return
        if found is None:
            self.others[""] += 1
            return
        key, extension = found[1], found[2].lower()
        if not (self.keys and self.keys[-1] == key):
            self._begin(key, member)
        if extension in self.extensions:
            raise SourceError(f"{self.path} holds {member.name} twice; write it again")
        self.extensions.add(extension)
        is_sound = extension == self.audio or (self.audio == ANY_AUDIO and _is_audio(extension))
        is_large = member.n_bytes > MAX_LABEL_BYTES
        if not is_sound and (extension not in LABELS or is_large):
            self.others[
                f"{extension} of more than 1 MiB" if extension in LABELS else extension
            ] += 1
            return
        if member.kind == "sparse":
            raise SourceError(
                f"{self.path}: {member.name} is stored as a sparse file, which is not read in "
                "place; write the tar without --sparse"
            )
        if is_sound:
            self._put_audio(member, extension)
        elif member.start + member.n_bytes <= reader.n_bytes:
            where = f"{self.path}: {member.name}"
            self.labels.add(len(self.keys) - 1, extension, reader.read(member), where)
        if member.start + member.n_bytes > reader.n_bytes:
            self.fault = f"it is cut off within {member.name}"

    def _begin(self, key: str, member: Member) -> None:
        """Begin a sample."""
        if key in self.seen:
            raise SourceError(
                f"{self.path}: the members of the sample {key} are not consecutive: other samples "
                f"come between {_member_of(key, self.path)} and {member.name}; write the tar in "
                "the order of names, e.g. with tar --sort=name"
            )
        self.seen.add(key)
        self.extensions.clear()
        self.keys.append(key)
        self.offset.append(-1)
        self.length.append(-1)

    def _put_audio(self, member: Member, extension: str) -> None:
        if self.offset[-1] >= 0:
            choices = f"{self.audio_extension}|{extension}"
            raise SourceError(
                f"{self.path}: the sample {self.keys[-1]} has several audio members: choose with "
                f"dataset.audio_column={choices} (the extension begins at the first dot)"
            )
        self.offset[-1], self.length[-1] = member.start, member.n_bytes
        self.audio_extension = extension

    def finish(self, reader: TarReader) -> None:
        """Note how the shard ends, once all members have been added."""
        if reader.has_more:
            self.fault = "other bytes follow its end, as if two tars were joined; they are not read"
        elif not (reader.has_end or self.fault):
            self.fault = "it has no end mark, so later members may be missing"

    def shard(self) -> Shard:
        """Return what was found, without the samples that have no audio."""
        offset, length = (np.frombuffer(part, np.int64) for part in (self.offset, self.length))
        has_audio = offset >= 0
        keys = pa.array(self.keys, pa.string())
        kept = pa.array(has_audio)
        columns = {
            name: (_padded(column, len(keys)).filter(kept), column.kinds)
            for name, column in self.labels.columns.items()
        }
        return Shard(
            self.path,
            keys.filter(kept),
            pa.array(offset[has_audio]),
            pa.array(length[has_audio]),
            columns,
            self.others,
            self.links,
            self.labels.n_nested,
            self.labels.n_second,
            [key for key, kept in zip(self.keys, has_audio, strict=True) if not kept],
            self.fault,
        )


def _padded(column: LabelColumn, n: int) -> pa.StringArray:
    return pa.array([*column.values, *[None] * (n - len(column.values))], pa.string())


@lru_cache(1 << 10)
def _is_audio(extension: str) -> bool:
    return is_audio(f"audio.{extension}")


def _member_of(key: str, path: Path | RemoteFile) -> str:
    """Return the last member of the first run of members with a key."""
    name = ""
    with TarReader(path) as reader:
        for member in reader.members():
            found = _KEY.fullmatch(member.name)
            if found is not None and found[1] == key:
                name = member.name
            elif found is not None and name:
                break
    return name
