"""Count the requests of commands on a store in a bucket, and print the table of docs/buckets.md.

    benchmarks/count_requests.py

The store has 12 layers, frames and means. An S3 server of this machine (localbucket) is behind a
proxy that counts. What a run needs is the same for all of its size, and so much more for each unit.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pipeline
from pipeline.store.backend.remote import probe
from pipeline.store.maintain.status import read_status
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, extract
from tests.servers.localbucket import BUCKET, environment, start_localbucket
from tests.servers.proxy import Proxy, start_proxy

N_CLIPS = 8, 24
"""Clips of two stores, which differ in their units."""


class Requests(NamedTuple):
    """Requests of a command, as providers bill them.

    Attributes:
        writes: PUT and POST, conditional or not.
        lists: Lists.
        reads: GET and HEAD.
    """

    writes: int
    lists: int
    reads: int


def count_requests(proxy: Proxy, folder: Path) -> dict[str, Requests]:
    """Return the requests of each row of the table.

    Args:
        proxy: Stands before the server to which the environment leads.
        folder: An empty folder for audio.
    """

    def counted(act: Callable[[], object]) -> Requests:
        probe._honoured.clear()  # a command is a process of its own
        proxy.requests.clear()
        act()
        n = proxy.counts
        return Requests(n["PUT"] + n["CREATE"] + n["POST"], n["LIST"], n["GET"] + n["HEAD"])

    found: dict[int, dict[str, Requests]] = {}
    for n_clips in N_CLIPS:
        clips = write_folder(folder / f"{n_clips}", mixed_lengths(n_clips))
        uri = f"s3://{BUCKET}/count-{n_clips}"
        steps: dict[str, Callable[[], object]] = {
            "run": lambda clips=clips, uri=uri: extract(clips, uri, *INLINE),
            "idle": lambda clips=clips, uri=uri: extract(clips, uri, *INLINE),
            "open": lambda uri=uri: pipeline.open_store(uri),
            "status": lambda uri=uri: read_status(uri),
        }
        rows = {name: counted(act) for name, act in steps.items()}
        found[read_status(uri).units_total] = rows
    (few, first), (many, second) = found.items()
    rows = {}
    for name in first:
        pairs = list(zip(first[name], second[name], strict=True))
        each = [round((b - a) / (many - few)) for a, b in pairs]
        rows[f"{name}: each unit"] = Requests(*each)
        rows[name] = Requests(*(a - few * n for (a, _), n in zip(pairs, each, strict=True)))
    return rows


def main() -> None:
    """Print the table."""
    with (
        tempfile.TemporaryDirectory() as name,
        start_localbucket(Path(name)) as server,
        start_proxy(server.url) as proxy,
    ):
        os.environ |= environment(proxy.url)
        for row, n in sorted(count_requests(proxy, Path(name) / "audio").items()):
            print(f"{row:20s} {n.writes:4d} writes {n.lists:4d} lists {n.reads:4d} reads")


if __name__ == "__main__":
    main()
