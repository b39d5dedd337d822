"""Extraction of audio in a bucket: the store of the same files in a folder, and no loss."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from pipeline.config import load_config
from pipeline.errors import SourceError
from pipeline.events import CommittedUnit, Observer
from pipeline.extract import run
from pipeline.objects.requests import Limits
from pipeline.sources.remote import reading
from pipeline.sources.remote.extents import extents
from pipeline.store.maintain.status import Status, read_status
from tests.helpers.audio_files import write
from tests.helpers.buckets import place_of, upload
from tests.helpers.corpus import RATE_HZ, mixed_lengths, voice, write_folder
from tests.helpers.extraction import INLINE, contents, extract, overrides
from tests.servers.localbucket import LocalBucket
from tests.servers.proxy import Fault, Proxy, Request

N_CLIPS = 16


@pytest.fixture(autouse=True)
def servers_are_given_up_early(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After a fraction of a second, in place of two minutes."""
    monkeypatch.setattr(reading, "LIMITS", Limits(answer_s=10.0, retry_s=0.3, first_retry_s=0.3))
    reading._client.cache_clear()
    yield
    reading._client.cache_clear()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clips") / "clips", mixed_lengths(N_CLIPS))


@pytest.fixture(scope="module")
def files_store(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the clips, read as files."""
    store = tmp_path_factory.mktemp("files") / "store"
    extract(clips, store, *INLINE)
    return store


def extract_bucket(uri: str, store: Path, *more: str, observer: Observer | None = None) -> Status:
    settings = overrides(Path("-"), store, *INLINE, f"dataset.path={uri}", *more)
    return run.extract(load_config(settings), observer)


class AfterFirst(Observer):
    """Calls a function once the first unit is committed."""

    def __init__(self, act) -> None:
        self.act = act

    def unit_committed(self, report: CommittedUnit) -> None:
        act, self.act = self.act, lambda: None
        act()


def test_features_are_those_of_the_files(
    clips: Path, files_store: Path, localbucket: LocalBucket, proxy: Proxy, s3: str, tmp_path: Path
) -> None:
    """Byte for byte, with few requests; a second run reads lists only."""
    upload(clips, localbucket, s3)
    status = extract_bucket(s3, tmp_path / "s")
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
    assert contents(tmp_path / "s") == contents(files_store)
    assert proxy.counts["GET"] <= 4 * N_CLIPS + 4
    proxy.requests.clear()
    extract_bucket(s3, tmp_path / "s")
    assert proxy.counts["GET"] <= 2  # the table
    assert proxy.counts["LIST"] <= 4


def delayed(proxy: Proxy) -> list[int]:
    """Let every answer take 0.15 s; return how many are waited for, at each request."""
    proxy.moment_s = 0.15
    began: list[float] = []
    in_flight: list[int] = []

    def choose(request: Request) -> Fault:
        now = time.monotonic()
        began.append(now)
        in_flight.append(sum(now - other < proxy.moment_s for other in began))
        return Fault.DELAY

    proxy.choose = choose
    return in_flight


def test_waits_for_the_server_overlap(
    clips: Path, localbucket: LocalBucket, proxy: Proxy, s3: str, tmp_path: Path
) -> None:
    """Planning asks for many files at once, also of a small dataset, and so does a worker."""
    upload(clips, localbucket, s3)
    settings = load_config(overrides(Path("-"), tmp_path / "s", f"dataset.path={s3}"))
    in_flight = delayed(proxy)
    run.plan(settings)
    assert max(in_flight) >= 8
    extents.forget()
    in_flight = delayed(proxy)
    assert extract_bucket(s3, tmp_path / "s").utterances_ok == N_CLIPS
    assert max(in_flight) >= 6


def test_a_lost_object_is_quarantined_and_a_lost_server_is_not(
    clips: Path, files_store: Path, localbucket: LocalBucket, proxy: Proxy, s3: str, tmp_path: Path
) -> None:
    """A run ends where the server is gone half way, and goes on where it is back."""
    upload(clips, localbucket, s3)

    def take_away() -> None:
        proxy.choose = lambda request: Fault.BUSY
        extents.forget()

    with pytest.raises(SourceError, match=rf"{s3}/clip-.* cannot be read.*run the same command"):
        extract_bucket(s3, tmp_path / "s", observer=AfterFirst(take_away))
    assert 0 < read_status(tmp_path / "s").units_committed < read_status(tmp_path / "s").units_total
    assert read_status(tmp_path / "s").utterances_quarantined == 0
    proxy.choose = lambda request: None
    extract_bucket(s3, tmp_path / "s")
    assert contents(tmp_path / "s") == contents(files_store)
    lost = place_of(localbucket, f"{s3}/clip-014.wav")

    def lose() -> None:
        lost.unlink()
        extents.forget()

    status = extract_bucket(s3, tmp_path / "t", observer=AfterFirst(lose))
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
    [row] = pipeline.open_store(tmp_path / "t").quarantined.to_pylist()
    assert (row["id"], "no such object" in row["reason"]) == ("clip-014.wav", True)


def test_a_bucket_that_is_emptied_is_not_quarantined(
    clips: Path, localbucket: LocalBucket, s3: str, tmp_path: Path
) -> None:
    """As for a folder that is unmounted, whose files are not quarantined."""
    upload(clips, localbucket, s3)

    def empty() -> None:
        shutil.rmtree(place_of(localbucket, s3))
        extents.forget()

    with pytest.raises(SourceError, match=r"is gone or empty.*bring it back"):
        extract_bucket(s3, tmp_path / "s", observer=AfterFirst(empty))
    assert read_status(tmp_path / "s").utterances_quarantined == 0


@pytest.mark.parametrize("leaves_others", [False, True])
def test_a_bucket_that_is_emptied_while_headers_are_read_is_not_quarantined(
    clips: Path, localbucket: LocalBucket, proxy: Proxy, s3: str, tmp_path: Path,
    leaves_others: bool,
) -> None:  # fmt: skip
    """The plan would have no utterance for most of its files, and the run would end well."""
    upload(clips, localbucket, s3)
    place = place_of(localbucket, s3)
    if not leaves_others:
        (place / "metadata.csv").unlink()
    n_read = 0

    def empty(request: Request) -> None:
        nonlocal n_read
        n_read += request.method == "GET" and request.path.endswith(".wav")
        if n_read == 3:
            for path in place.glob("*.wav"):
                path.unlink()

    proxy.choose = empty
    words = "have vanished since it was listed" if leaves_others else "is gone or empty"
    with pytest.raises(SourceError, match=rf"{s3}.*{words}"):
        extract_bucket(s3, tmp_path / "s")
    assert not (tmp_path / "s" / "plan.parquet").exists()


def test_missing_objects_of_a_list_are_named(
    clips: Path, localbucket: LocalBucket, s3: str, tmp_path: Path
) -> None:
    """Some are left out with a warning; a list of which no object exists is refused."""
    upload(clips, localbucket, s3)
    names = [f"{s3}/clip-00{i}.wav" for i in range(4)]
    listed = tmp_path / "list.csv"
    settings = ("dataset=manifest", f"dataset.path={listed}", "dataset.audio_column=path")
    notes: list[str] = []

    class Notes(Observer):
        def note(self, line: str) -> None:
            notes.append(line)

    listed.write_text("\n".join(["path", *names, f"{s3}/none.wav"]))
    run.plan(load_config([*overrides(Path("-"), tmp_path / "s"), *settings]), Notes())
    [warning] = [line for line in notes if line.startswith("WARNING: the audio")]
    assert f"of 1 of 5 utterances do not exist, first {s3}/none.wav" in warning
    listed.write_text("\n".join(["path", f"{s3}/none-1.wav", f"{s3}/none-2.wav"]))
    with pytest.raises(SourceError, match=rf"no audio file of .*exists.*first one is {s3}/none-1"):
        run.plan(load_config([*overrides(Path("-"), tmp_path / "t"), *settings]))


def test_a_replaced_object_is_noticed(
    clips: Path, localbucket: LocalBucket, s3: str, tmp_path: Path
) -> None:
    """During a run it is quarantined; the next one with the setting plans and extracts it."""
    upload(clips, localbucket, s3)
    replaced = place_of(localbucket, f"{s3}/clip-014.wav")

    def act() -> None:
        write(replaced, voice(1.0, 77), RATE_HZ)
        os.utime(replaced, (2e9, 2e9))
        extents.forget()

    status = extract_bucket(s3, tmp_path / "s", observer=AfterFirst(act))
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
    [row] = pipeline.open_store(tmp_path / "s").quarantined.to_pylist()
    assert "changed since it was planned" in row["reason"]
    status = extract_bucket(s3, tmp_path / "s", "retry_quarantined=true")
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
    assert pipeline.open_store(tmp_path / "s").n_frames("clip-014.wav") == 49
