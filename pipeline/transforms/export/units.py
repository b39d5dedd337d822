"""Tokens as a text file of units, as textless language models take it.

The form is that of fairseq's `speech2unit`: a line `id|23 23 4` for each utterance (Lakhotia et al.
2021, "On Generative Spoken Language Modeling from Raw Audio").
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from pipeline.errors import ConfigError, StoreError
from pipeline.events import Observer
from pipeline.store.backend.base import Backend
from pipeline.store.backend.opening import open_backend
from pipeline.store.read.features import FeatureStore
from pipeline.transforms.export.base import Appender
from pipeline.transforms.export.result import Export

FORMAT = "units"
_LINES = 1000  # that are written together


def export_units(
    view: FeatureStore, out: str, name: str | None, dedup: bool, observer: Observer
) -> Export:
    """Write the tokens of all utterances to a file, which appears when it is complete.

    Args:
        view: The utterances.
        out: Path or URI of the file.
        name: Name of the tokens; None if the store has only one.
        dedup: Whether consecutive equal tokens become one.
        observer: Receives the progress.

    Raises:
        ConfigError: The path is none of a file, or there is something; or an id cannot be written.
        StoreError: The store has no such tokens, or not yet those of an utterance.
    """
    start_s = time.perf_counter()
    folder, _, file = out.rpartition("/")
    backend = open_backend(folder or ("/" if out.startswith("/") else "."))
    if not file or backend.exists(file) or backend.children(file):
        raise ConfigError(
            f"OUT is {out}; expected the path of a new file of text: there is something already"
            if file
            else f"OUT is {out}; expected the path of a file of text, such as units.txt"
        )
    layer = view.codebook(name).layer
    if name is None:
        (name,) = view.token_names
    view.check_tokens(name)
    n_bytes = _write(backend, file, _lines(view, name, dedup, observer))
    return Export(
        format=FORMAT,
        out=out,
        manifest=out,
        utterances=len(view),
        utterances_written=len(view),
        layers=() if layer is None else (layer,),
        axes=("n_units",) if dedup else ("n_frames",),
        dtype="text",
        bytes=n_bytes,
        wall_seconds=round(time.perf_counter() - start_s, 3),
    )


def _lines(view: FeatureStore, name: str, dedup: bool, observer: Observer) -> Iterator[str]:
    ids = view.ids
    observer.utterances_exported(0, len(ids))
    for position, utterance in enumerate(ids):
        if "|" in utterance or len(utterance.splitlines()) != 1:
            raise ConfigError(
                f"the id {utterance!r:.100} has '|' or a line break, which a line of units cannot "
                "have; leave it out with where=, or use another format"
            )
        units = view.tokens(position, name)
        if dedup:
            units = view.tokens(position, name, dedup=True)[0]
        yield f"{utterance}|{' '.join(map(str, units.tolist()))}\n"
        if position % _LINES == _LINES - 1 or position == len(ids) - 1:
            observer.utterances_exported(position + 1, len(ids))


def _write(backend: Backend, file: str, lines: Iterator[str]) -> int:
    """Write lines to a new object, atomically; return its bytes."""
    partial = backend.open_partial(file)
    try:
        appender = Appender(partial)
        block: list[str] = []
        for line in lines:
            block.append(line)
            if len(block) == _LINES:
                appender.write("".join(block).encode())
                block.clear()
        appender.write("".join(block).encode())
        backend.publish([partial])
    except BaseException:
        partial.discard()
        raise
    if appender.tell() == 0:
        raise StoreError("no utterance was exported")
    return appender.tell()
