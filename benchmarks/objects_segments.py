"""`bench_objects --segments`: which share of a recording's bytes segments of it fetch."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from pipeline.audio.decode import decode
from pipeline.objects.client import ObjectClient
from pipeline.sources.base import Segment
from tests.helpers.corpus import RATE_HZ, voice
from tests.servers.proxy import Proxy, start_proxy

_NAME, _SEGMENT_S, _BLOCK_S, _THREADS = "hour.flac", 6, 60, 4


def measure_segments(
    folder: Path, uri: str, n_segments: int = 200, seconds: int = 3600
) -> dict[str, float]:
    """Decode segments of a FLAC in a bucket, spread over all of it.

    Args:
        folder: For the recording, before it goes up.
        uri: Where to put it.
        n_segments: Segments of six seconds.
        seconds: Length of the recording.

    Returns:
        The share of its bytes that was asked for, and of its samples that the segments have; the
        requests; and the seconds.
    """
    file = folder / _NAME
    with soundfile.SoundFile(file, "w", RATE_HZ, 1, format="FLAC") as out:
        for number in range(seconds // _BLOCK_S):
            out.write(voice(float(_BLOCK_S), number % 5))
    size = file.stat().st_size
    ObjectClient(uri).put(_NAME, [file.read_bytes()])
    starts = np.linspace(0, (seconds - _SEGMENT_S) * RATE_HZ, n_segments).astype(int).tolist()
    length = _SEGMENT_S * RATE_HZ
    segments = [
        Segment(f"{i}", f"{uri}/{_NAME}", start_sample=start, stop_sample=start + length)
        for i, start in enumerate(starts)
    ]
    before = os.environ["AWS_ENDPOINT_URL"]
    with start_proxy(before) as proxy, ThreadPoolExecutor(_THREADS) as pool:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        start_s = time.perf_counter()
        try:
            list(pool.map(lambda segment: decode(segment, RATE_HZ), segments))
        finally:
            os.environ["AWS_ENDPOINT_URL"] = before
        spent_s = time.perf_counter() - start_s
        n_bytes, n_requests = asked_for(proxy, size)
    found = {
        "bytes_share": n_bytes / size,
        "samples_share": n_segments * _SEGMENT_S / seconds,
        "requests": n_requests,
        "seconds": spent_s,
    }
    print(
        f"{n_segments} segments of {_SEGMENT_S} s, {found['samples_share']:.2f} of {seconds:,} s "
        f"of FLAC ({size / 1e6:.0f} MB): {found['bytes_share']:.2f} of its bytes by {n_requests} "
        f"requests, {spent_s:.1f} s"
    )
    return found


def asked_for(proxy: Proxy, size: int) -> tuple[int, int]:
    """Return the bytes of the recording that were asked for, and the number of requests."""
    total = n_requests = 0
    for request in proxy.requests:
        if request.kind == "GET" and request.path.endswith(_NAME):
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
            total += min(int(found[2]) + 1, size) - int(found[1]) if found else size
            n_requests += 1
    return total, n_requests
