"""An independent decoder: FFmpeg through PyAV (`pip install av`), in a process of its own.

Reads one path a line; prints JSON: samples per channel, rate and channels, or an error.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import av


def main() -> None:
    """Answer for each path."""
    av.logging.set_level(av.logging.PANIC)
    for line in sys.stdin:
        print(json.dumps(_decoded(line.rstrip("\n"))), flush=True)


def _decoded(path: str) -> dict[str, Any]:
    n_samples, facts = 0, {}
    try:
        with av.open(path) as container:
            for frame in container.decode(audio=0):
                n_samples += frame.samples
                facts = {"rate": frame.sample_rate, "channels": len(frame.layout.channels)}
    except Exception as error:  # noqa: BLE001 - any error means that it cannot be compared
        return {"n": n_samples, "error": repr(error)[:200], **facts}
    return {"n": n_samples, **facts}
