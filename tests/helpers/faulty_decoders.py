"""Decoders that fail as real ones do: they crash, hang or run out of memory on one file."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.audio.decode import Decoded, EncodedAudio, decode
from pipeline.errors import AudioError


@dataclass(frozen=True)
class Faulty:
    """Decodes; on the utterance `name` it does what `fault` says.

    Attributes:
        name: Id of the poisonous utterance.
        fault: SIGSEGV, SIGKILL, hang, memory, or the reason of an AudioError.
        once: Where to remember that it has happened, so that it happens once; None: always.
    """

    name: str
    fault: str
    once: Path | None = None

    def __call__(self, audio: EncodedAudio, rate_hz: int) -> Decoded:
        if audio.name != self.name or (self.once is not None and self.once.exists()):
            return decode(audio, rate_hz)
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
