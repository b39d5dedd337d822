"""The first use of a native library: in one thread, before others use it."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.audio.backends import soundfile, torchcodec
from pipeline.audio.decode import decode
from pipeline.audio.probe import probe
from pipeline.errors import AudioError
from pipeline.sources.base import Segment
from tests.helpers.audio_files import speechlike, write

N_THREADS = 16
CONTAINERS = ("wav", "flac", "ogg", "mp3")


def together(call: Any) -> list[Any]:
    """Call a function in many threads at the same moment."""
    barrier = threading.Barrier(N_THREADS)

    def wait_and_call() -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(N_THREADS) as pool:
        return [
            future.result() for future in [pool.submit(wait_and_call) for _ in range(N_THREADS)]
        ]


class Uses:
    """Records which thread enters and leaves a slow function."""

    def __init__(self, used: Any) -> None:
        self.used, self.events = used, list[tuple[str, int]]()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.events.append(("enter", threading.get_ident()))
        time.sleep(0.01)
        try:
            return self.used(*arguments, **named)
        finally:
            self.events.append(("leave", threading.get_ident()))


@pytest.mark.parametrize("use", [probe, decode])
def test_libsndfile_is_used_once_before_threads_use_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, use: Any
) -> None:
    """One thread opens every kind of file first, while the others wait."""
    uses = Uses(soundfile._NoReseekFile)
    monkeypatch.setattr(soundfile, "_NoReseekFile", uses)
    monkeypatch.setattr(soundfile, "_is_prepared", False)
    clip = Segment("a", str(write(tmp_path / "a.ogg", speechlike(4000))))
    together(lambda: use(clip, 16_000))
    first = uses.events[0][1]
    n_alone = next(i for i, (_, thread) in enumerate(uses.events) if thread != first)
    assert n_alone >= 6  # three files: one from memory, one that is none, one with a descriptor
    opened = [threads for event, threads in uses.events if event == "enter"]
    assert len(opened) == N_THREADS + 3  # once


def test_all_that_is_used_later_is_used_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Reading a file touches no function of libsndfile that the first use has not touched."""

    class Library:
        def __init__(self, library: Any) -> None:
            self._library, self.names = library, set[str]()

        def __getattr__(self, name: str) -> Any:
            self.names.add(name)
            return getattr(self._library, name)

    files = [write(tmp_path / f"a.{kind}", speechlike(20_000)) for kind in CONTAINERS]
    library = Library(soundfile.soundfile._snd)
    monkeypatch.setattr(soundfile.soundfile, "_snd", library)
    monkeypatch.setattr(soundfile, "_is_prepared", False)
    soundfile._prepare()
    before, library.names = library.names, set()
    for encoded in [file.read_bytes() for file in files]:
        for data in (encoded, encoded[: len(encoded) // 2], b"no sound"):
            for use, start in itertools.product((probe, decode), (0, 900)):
                with contextlib.suppress(AudioError):
                    use(Segment("a", data=data, start_sample=start), 16_000)
    assert {"sf_open_fd", "sf_seek", "sf_readf_float", "sf_close", "sf_error"} <= library.names
    assert library.names <= before


def test_torchcodec_is_tried_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait, and take its result."""
    uses = Uses(torchcodec._find_missing.__wrapped__)
    answers: list[str | None] = []

    def once() -> str | None:
        if not answers:
            answers.append(uses())
        return answers[0]

    monkeypatch.setattr(torchcodec, "_find_missing", once)
    assert len(set(together(torchcodec._missing))) == 1
    assert [event for event, _ in uses.events] == ["enter", "leave"]
