"""The counts of requests in docs/buckets.md, on which the costs of a bucket depend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.count_requests import Requests, count_requests
from tests.servers.proxy import Proxy

PAGE = Path(__file__).parents[2] / "docs" / "buckets.md"
ROWS = {
    "run": "a run of any size",
    "run: each unit": "each unit",
    "idle": "a run that finds nothing to do",
    "open": "`open_store`",
    "status": "`status`",
}


def stated(row: str) -> Requests:
    """Return the figures of a row of the page's table."""
    match = re.search(rf"^\| {re.escape(row)} \| (.+) \| (.+) \| (.+) \|$", PAGE.read_text(), re.M)
    assert match is not None
    return Requests(*(int(re.sub(r"\D.*", "", cell.replace("–", "0"))) for cell in match.groups()))


@pytest.mark.slow
def test_the_page_states_the_requests_of_each_command(
    proxy: Proxy, s3: str, tmp_path: Path
) -> None:
    """Within a few: a thread may look once more or less."""
    counted = count_requests(proxy, tmp_path / "audio")
    for name, row in ROWS.items():
        for expected, n in zip(stated(row), counted[name], strict=True):
            assert abs(expected - n) <= max(1, 0.1 * expected), (row, stated(row), counted[name])
    assert counted["idle: each unit"].writes == 0
    assert counted["open: each unit"] == (0, 0, 0)
