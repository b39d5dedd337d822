"""Large folders listed in parallel, on a real server."""

from __future__ import annotations

import pytest

from pipeline.objects import listing
from pipeline.objects.client import LIST_PAGE, ObjectClient
from pipeline.objects.listing import list_folder
from tests.servers.base import Bucket
from tests.servers.gcs import upload
from tests.servers.localbucket import BUCKET, LocalBucket
from tests.servers.proxy import Proxy

NAMES = [f"unit-{number}.parquet" for number in range(55)]


@pytest.fixture
def client(proxy: Proxy, localbucket: LocalBucket, s3: str) -> ObjectClient:
    """A client of a prefix with a folder of 55 objects, others beside it, and one below it."""
    found = ObjectClient(s3)
    folder = localbucket.folder / BUCKET / s3.rpartition("/")[2]
    for key in [*(f"a/index/{name}" for name in NAMES), "a/index/below/z", "a/index-2/unit-1.x"]:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(key.encode())
    return found


@pytest.mark.parametrize(
    "expected",
    [
        NAMES,
        NAMES[:31],
        NAMES[40:],
        [f"unit-{number}.parquet" for number in range(100)],
        [f"other-{number}" for number in range(20)],
        [f"z-{number}" for number in range(20)],
    ],
)
def test_a_divided_listing_has_every_object_once(
    client: ObjectClient, monkeypatch: pytest.MonkeyPatch, expected: list[str]
) -> None:
    """Whatever names are expected."""
    monkeypatch.setattr(listing, "LIST_PAGE", 10)
    found = list_folder(client, "a/index", expected)
    assert [info.key for info in found] == sorted(f"a/index/{name}" for name in NAMES)
    assert found == list_folder(client, "a/index")


def test_each_part_is_one_request(
    client: ObjectClient, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each page that is expected, and one for what comes after."""
    monkeypatch.setattr(listing, "LIST_PAGE", 10)
    list_folder(client, "a/index", NAMES)
    assert proxy.counts == {"LIST": 6}


def test_a_listing_ends_with_the_page_that_has_the_last_key(
    proxy: Proxy, localbucket: LocalBucket, s3: str
) -> None:
    """Later pages are not asked for."""
    folder = localbucket.folder / BUCKET / s3.rpartition("/")[2]
    folder.mkdir()
    names = sorted(f"{number}" for number in range(2 * LIST_PAGE + 1))
    for name in names:
        (folder / name).write_bytes(b"x")
    client = ObjectClient(s3)
    found = client.list(last=names[LIST_PAGE - 1])
    assert [info.key for info in found] == names[:LIST_PAGE]
    assert proxy.counts == {"LIST": 1}
    found = client.list(offset=names[3], last=names[LIST_PAGE])
    assert [info.key for info in found] == names[4 : LIST_PAGE + 1]
    assert proxy.counts == {"LIST": 2}
    assert len(client.list()) == len(names)
    assert proxy.counts == {"LIST": 5}


def test_what_comes_before_the_first_key_is_left_out(
    gcs: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the server lists everything, as the emulator of Google does."""
    client = ObjectClient(f"{gcs.use(monkeypatch)}/offsets")
    for name in "abcd":
        upload(gcs, f"offsets/in/{name}", b"x")
    assert [info.key for info in client.list("in", "in/a", "in/c")] == ["in/b", "in/c"]
