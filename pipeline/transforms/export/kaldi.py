"""Kaldi archives: binary ark files of float32, with lists that name each utterance's place.

The forms are those of Kaldi's `FloatMatrix` and `FloatVector` in binary mode
(https://kaldi-asr.org/doc/io.html).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pipeline.transforms.export.base import Appender, Chunk, Entry, ExportFormat, value_bytes
from pipeline.transforms.export.names import key

_TEXTS = ("text", "transcript", "transcription", "sentence")
_SPEAKERS = ("speaker", "speaker_id", "spk", "spk_id", "client_id")


class KaldiArchives(ExportFormat):
    """Writes `feats.<part>.ark`, and at the end `feats.scp`, `text` and `utt2spk`.

    Frames are a matrix [n_frames, dim]; each of several layers has a folder of its own, with all of
    these files. Pooled statistics are a vector [dim]; those of several layers are a matrix
    [n_layers, dim].
    """

    name = "kaldi"
    overhead_bytes = 2048

    def holds(self, dtype: torch.dtype) -> bool:
        """Return whether it is float32."""
        return dtype == torch.float32

    @property
    def _folders(self) -> list[str]:
        """Folder of each matrix of an utterance: one for each of several layers."""
        content = self.content
        if content.is_single or content.is_pooled:
            return [""]
        return [f"layer_{label}/" for label in content.labels]

    def write_part(self, number: int, chunks: Iterable[Chunk]) -> Iterator[Entry]:
        """Write an ark, or one for each of several layers; offsets in them are equal."""
        ark, folders = f"feats.{number:05d}.ark", self._folders
        entries = []
        with ExitStack() as stack:
            partials = [self.out.open_partial(folder + ark) for folder in folders]
            for partial in partials:
                stack.callback(partial.discard)
            files = [Appender(partial) for partial in partials]
            for chunk in chunks:
                paths = []
                for name, values in zip(chunk.ids, chunk.values, strict=True):
                    word = key(name).encode() + b" "
                    paths.append(f"{ark}:{files[0].tell() + len(word)}")
                    several = values if len(files) > 1 else [values]
                    for file, item in zip(files, several, strict=True):
                        file.write(word + _header(item))
                        file.write(value_bytes(item))
                entries += chunk.entries(paths)
            self.out.publish(partials)
        yield from entries

    def finish(self, n_parts: int, entries: Iterable[Entry]) -> None:
        """Write the lists, sorted by id as Kaldi wants them."""
        columns = self.content.columns.names
        text = next((name for name in _TEXTS if name in columns), None)
        speaker = next((name for name in _SPEAKERS if name in columns), None)
        places, texts, speakers = [], [], []
        for entry in entries:
            word = key(entry["id"])
            places.append((word, entry["path"]))
            if text is not None and entry["columns"][text] is not None:
                texts.append((word, " ".join(str(entry["columns"][text]).split())))
            if speaker is not None:
                speakers.append((word, _speaker(entry["columns"][speaker]) or word))
        for folder in self._folders:
            where = self.out.locate(folder).rstrip("/") + "/"
            self._put(f"{folder}feats.scp", [(word, where + path) for word, path in places])
            if text is not None:
                self._put(f"{folder}text", texts)
            if speaker is not None:
                self._put(f"{folder}utt2spk", speakers)

    def _put(self, path: str, rows: list[tuple[str, str]]) -> None:
        lines = sorted(f"{word} {value}".encode() for word, value in rows)
        self.out.put(path, [b"".join(line + b"\n" for line in lines)])


def _header(values: Tensor) -> bytes:
    """Return what comes before the values of a binary matrix or vector."""
    form = b"FM " if values.dim() == 2 else b"FV "
    return b"\0B" + form + b"".join(struct.pack("<bi", 4, size) for size in values.shape)


def _speaker(value: Any) -> str:
    return "" if value is None else key(str(value))
