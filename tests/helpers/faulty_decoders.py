"""Decoders that crash, hang or run out of memory on one file."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.audio.decode import decode
from pipeline.audio.types import Decoded
from pipeline.errors import AudioError
from pipeline.sources.base import Segment


@dataclass(frozen=True)
class Faulty:
    """A decoder that fails on one utterance.

    Attributes:
        name: Id of the utterance.
        fault: SIGSEGV, SIGKILL, hang, memory, or the text of an AudioError.
        once: File that is created at the first failure, after which decoding succeeds; None: fail
            every time.
    """

    name: str
    fault: str
    once: Path | None = None

    def __call__(self, segment: Segment, rate_hz: int) -> Decoded:
        if segment.id != self.name or (self.once is not None and self.once.exists()):
            return decode(segment, rate_hz)
        if self.once is not None:
            self.once.touch()
        if self.fault.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.fault))
            time.sleep(60)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "memory":
            raise MemoryError("cannot allocate 64 GiB")
        raise AudioError(self.fault)


@dataclass(frozen=True)
class Waiting:
    """A decoder that waits at one utterance until a file exists.

    Attributes:
        name: Id of the utterance.
        until: The file.
    """

    name: str
    until: Path

    def __call__(self, segment: Segment, rate_hz: int) -> Decoded:
        end_s = time.monotonic() + 60
        while segment.id == self.name and not self.until.exists():
            assert time.monotonic() < end_s
            time.sleep(0.01)
        return decode(segment, rate_hz)
