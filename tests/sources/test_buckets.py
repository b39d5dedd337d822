"""Datasets in a bucket: every kind of list, what is read of it, and what is wrong with it."""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
import soundfile

from pipeline.audio import remote
from pipeline.audio.decode import decode
from pipeline.audio.probe import probe
from pipeline.audio.shared import SharedFile
from pipeline.config import DatasetConfig
from pipeline.errors import AudioError, SourceError, StrataError
from pipeline.objects.client import ObjectClient
from pipeline.objects.requests import Limits
from pipeline.sources.base import Segment
from pipeline.sources.opening import open_source
from pipeline.sources.remote import reading
from pipeline.sources.remote.extents import Extents, extents
from pipeline.sources.remote.listing import find_all
from tests.helpers.audio_files import speechlike, write
from tests.helpers.buckets import gets, n_bytes, place_of, upload
from tests.helpers.parquet_files import audio, write_parquet
from tests.servers.base import Bucket
from tests.servers.gcs import upload as put_to_gcs
from tests.servers.localbucket import LocalBucket
from tests.servers.proxy import Fault, Proxy
from tests.sources.test_conformance import KINDS
from tests.sources.test_conformance import open_source as open_with_channels

IN_BUCKETS = [kind for kind in KINDS if kind not in ("disk", "hub")]
SHORT = Limits(answer_s=10.0, retry_s=0.2, first_retry_s=0.2)


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test knows nothing of the files of the one before; servers are given up early."""
    monkeypatch.setattr(reading, "LIMITS", SHORT)
    reading._client.cache_clear()
    extents.forget()
    yield
    reading._client.cache_clear()


def moved(config: DatasetConfig, root: Path, uri: str) -> DatasetConfig:
    """Return the configuration of a dataset whose folder is in the bucket now."""
    paths = {name: getattr(config, name) for name in ("path", "root", "tars")}
    return replace(config, **{n: p and p.replace(str(root), uri) for n, p in paths.items()})


@pytest.mark.parametrize("kind", IN_BUCKETS)
def test_a_dataset_in_a_bucket_is_that_of_the_folder(
    kind: str, tmp_path: Path, localbucket: LocalBucket, s3: str
) -> None:
    """Ids, columns, identity and samples are equal; messages name the bucket, and no copy."""
    root = tmp_path / "root"
    root.mkdir()
    config = KINDS[kind](root)
    upload(root, localbucket, s3)
    here = open_with_channels(config)
    there = open_with_channels(moved(config, root, s3))
    rows = range(len(here))
    assert there.ids().to_pylist() == here.ids().to_pylist()
    assert there.metadata(rows).drop_columns(
        [name for name in ("__url__",) if name in here.metadata(rows).column_names]
    ) == here.metadata(rows).drop_columns(
        [name for name in ("__url__",) if name in here.metadata(rows).column_names]
    )
    assert there.identity == here.identity
    assert (there.columns, there.skipped) == (here.columns, here.skipped)
    assert there.config == moved(config, root, s3)
    assert "strata-tables" not in f"{there.origin} {there.notes}"
    for row in rows:
        ours, theirs = there.segment(row), here.segment(row)
        assert ours.data is not None or str(ours.path).startswith(s3)
        assert probe(ours, 16_000) == probe(theirs, 16_000)
        assert decode(ours, 16_000).waveform.equal(decode(theirs, 16_000).waveform)
    again = open_with_channels(moved(config, root, s3))
    assert again.fingerprint == there.fingerprint


def test_a_list_on_the_disk_names_audio_in_a_bucket(
    tmp_path: Path, localbucket: LocalBucket, s3: str
) -> None:
    """By its URI, or relative to `dataset.root`; names may have spaces and other letters."""
    names = ["a b.wav", "größe.wav", "#1 50%.wav"]
    for i, name in enumerate(names):
        write(tmp_path / "clips" / name, speechlike(1600, seed=i))
    upload(tmp_path / "clips", localbucket, s3)
    (tmp_path / "uris.csv").write_text("\n".join(["path", *(f"{s3}/{name}" for name in names)]))
    (tmp_path / "names.csv").write_text("\n".join(["path", *names]))
    by_uri = DatasetConfig("manifest", str(tmp_path / "uris.csv"), audio_column="path")
    by_name = replace(by_uri, path=str(tmp_path / "names.csv"), root=s3)
    for config in (by_uri, by_name):
        source = open_source(config)
        assert len(source.fingerprint) == 32
        for row, name in enumerate(names):
            ours, theirs = source.segment(row), Segment("x", str(tmp_path / "clips" / name))
            assert ours.path == f"{s3}/{name}"
            assert decode(ours, 16_000).waveform.equal(decode(theirs, 16_000).waveform)


@pytest.mark.parametrize("server", ["gcs", "azurite"])
def test_other_clouds(
    server: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gs:// and az:// are read as s3:// is."""
    bucket: Bucket = request.getfixturevalue(server)
    uri = f"{bucket.use(monkeypatch)}/corpus"
    clips = [write(tmp_path / f"{i}.flac", speechlike(160_000, seed=i)) for i in range(3)]
    for clip in clips:
        if server == "gcs":
            put_to_gcs(bucket, f"corpus/{clip.name}", clip.read_bytes())
        else:
            ObjectClient(uri).put(clip.name, [clip.read_bytes()])
    source = open_source(DatasetConfig("audiofolder", uri))
    assert source.ids().to_pylist() == [clip.name for clip in clips]
    assert len(source.fingerprint) == 32
    for row, clip in enumerate(clips):
        there, here = source.segment(row), Segment("x", str(clip))
        assert probe(there, 16_000) == probe(here, 16_000)
        part = {"start_sample": 80_000, "stop_sample": 96_000}
        for one, other in ((there, here), (replace(there, **part), replace(here, **part))):
            assert decode(one, 16_000).waveform.equal(decode(other, 16_000).waveform)


@pytest.mark.parametrize("kind", ["audiofolder", "manifest", "parquet", "webdataset", "kaldi"])
def test_a_changed_object_changes_the_fingerprint(
    kind: str, tmp_path: Path, localbucket: LocalBucket, s3: str
) -> None:
    """Of the audio itself, also if its size stays."""
    root = tmp_path / "root"
    root.mkdir()
    config = moved(KINDS[kind](root), root, s3)
    upload(root, localbucket, s3)
    before = open_source(config).fingerprint
    names = ("*.wav", "*.parquet", "*.tar")
    changed = next(p for name in names for p in sorted(place_of(localbucket, s3).rglob(name)))
    raw = bytearray(changed.read_bytes())
    raw[len(raw) // 2] ^= 1
    changed.write_bytes(raw)
    os.utime(changed, (2e9, 2e9))
    assert open_source(config).fingerprint != before


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "a.ogg", "a.mp3"])
def test_segments_of_a_recording_take_its_bytes_once(
    name: str, tmp_path: Path, localbucket: LocalBucket, proxy: Proxy, s3: str
) -> None:
    """Read by several threads, in any order; a few of them take a small part of the file."""
    file = tmp_path / name
    with soundfile.SoundFile(file, "w", 16_000, 1, format=name[2:].upper()) as out:
        for _ in range(90):  # libsndfile fails with long blocks of vorbis
            out.write(speechlike(16_000))
    size = file.stat().st_size
    upload(tmp_path, localbucket, s3)
    seeks = name in ("a.flac", "a.wav")  # others are decoded from the start
    step = 32_000 if seeks else 43 * 16_000
    segments = [
        Segment(f"{i}", f"{s3}/{name}", start_sample=s, stop_sample=s + 48_000)
        for i, s in enumerate(range(0, 16_000 * 87, step))
    ]
    few = segments[len(segments) // 2 :][:2]
    here = [replace(s, path=str(file)) for s in segments]
    found = [decode(s, 16_000).waveform for s in few]
    assert all(
        f.equal(decode(h, 16_000).waveform)
        for f, h in zip(found, here[len(here) // 2 :][:2], strict=True)
    )
    if seeks:
        assert n_bytes(proxy, name, size) < 0.2 * size
    with ThreadPoolExecutor(6) as pool:
        waveforms = list(pool.map(lambda s: decode(s, 16_000).waveform, reversed(segments)))
    expected = [decode(s, 16_000).waveform for s in reversed(here)]
    assert all(w.equal(e) for w, e in zip(waveforms, expected, strict=True))
    assert 0.9 * size < n_bytes(proxy, name, size) < 1.02 * size + 4096


def test_planning_parquet_reads_few_bytes(
    tmp_path: Path, localbucket: LocalBucket, proxy: Proxy, s3: str
) -> None:
    """The footer, the other columns and the places of the clips; then the ends of each clip."""
    clips = [write(tmp_path / f"{i}.wav", speechlike(80_000, seed=i)) for i in range(20)]
    table = pa.table({"audio": audio([c.read_bytes() for c in clips]), "word": ["x"] * 20})
    made = write_parquet(tmp_path / "p/a.parquet", table, data_page_size=1, write_batch_size=1)
    upload(tmp_path / "p", localbucket, s3)
    source = open_source(DatasetConfig("parquet", s3))
    size = made.stat().st_size
    assert n_bytes(proxy, ".parquet", size) < 0.05 * size
    assert source.is_shared
    assert len(source.fingerprint) == 32
    n_before = len(proxy.requests)
    for row in range(20):
        probe(source.segment(row), 16_000)
    assert n_bytes(proxy, ".parquet", size) < 0.12 * size
    assert len(proxy.requests) - n_before <= 40
    assert not gets(proxy, ".wav")


def test_planning_files_takes_two_requests_each(
    tmp_path: Path, localbucket: LocalBucket, proxy: Proxy, s3: str
) -> None:
    """Both ends of a file; its size comes with the first. The fingerprint comes from one list."""
    for i in range(12):
        write(tmp_path / f"{i}.flac", speechlike(160_000, seed=i))
    upload(tmp_path, localbucket, s3)
    source = open_source(DatasetConfig("audiofolder", s3))
    assert len(source.fingerprint) == 32
    assert proxy.counts == {"LIST": 2}
    for row in range(12):
        probe(source.segment(row), 16_000)
    assert proxy.counts == {"LIST": 2, "GET": 24}
    one = decode(source.segment(3), 16_000).waveform
    assert one.shape == (160_000,)
    assert proxy.counts["GET"] == 25


def test_patterns_name_objects(tmp_path: Path, localbucket: LocalBucket, s3: str) -> None:
    """As for paths: stars stay within a folder, two of them do not; braces are those of a shell."""
    for name in ("a/x-0.tar", "a/x-1.tar", "a/b/x-2.tar", "a/y.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    upload(tmp_path, localbucket, s3)
    relative = {
        pattern: [uri.removeprefix(f"{s3}/") for uri in find_all(f"{s3}/{pattern}")]
        for pattern in ("a/x-*.tar", "a/**/*.tar", "*/x-[1-9].tar", "b/*")
    }
    assert relative == {
        "a/x-*.tar": ["a/x-0.tar", "a/x-1.tar"],
        "a/**/*.tar": ["a/b/x-2.tar", "a/x-0.tar", "a/x-1.tar"],
        "*/x-[1-9].tar": ["a/x-1.tar"],
        "b/*": [],
    }


MISTAKES = {
    "no object": (DatasetConfig("manifest", "{s3}/no.csv"), r"{s3}/no\.csv does not exist"),
    "no folder": (DatasetConfig("audiofolder", "{s3}/no"), r"{s3}/no does not exist"),
    "no shards": (DatasetConfig("webdataset", "{s3}/x-{{0..3}}.tar"), "4 of 4 files do not exist"),
    "no bucket": (DatasetConfig("audiofolder", "s3://no-such-bucket/x"), "no-such-bucket"),
    "disk": (DatasetConfig("disk", "{s3}/d"), "read from a local disk"),
    "kaldi": (DatasetConfig("kaldi", "{s3}"), "holds no wav.scp"),
    "scheme": (DatasetConfig("audiofolder", "s3a://bucket/x"), "write s3://"),
    "credentials": (DatasetConfig("audiofolder", "s3://key:secret@bucket/x"), "names a bucket and"),
    "line": (
        DatasetConfig("manifest", "{s3}/list.csv", audio_column="path"),
        r"{s3}/list\.csv, line 3: .*is a URL",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str, localbucket: LocalBucket, s3: str, tmp_path: Path) -> None:
    """By the URI, with the line of a list; a secret is not repeated."""
    (tmp_path / "list.csv").write_text("path\na.wav\nhttps://x.org/b.wav\n")
    upload(tmp_path, localbucket, s3)
    config, words = MISTAKES[name]
    assert config.path is not None
    config = replace(config, path=config.path.format(s3=s3))
    with pytest.raises(StrataError, match=words.format(s3=s3)) as caught:
        open_source(config)
    assert "strata-tables" not in str(caught.value)
    if name != "credentials":
        return
    assert "secret" not in str(caught.value).replace("AWS_SECRET_ACCESS_KEY", "")


@pytest.mark.parametrize("key", ["b//c.wav", "../c.wav", "./c.wav", "/c.wav"])
def test_a_key_that_is_no_path_is_named(
    gcs: Bucket, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """It would be left out in silence, or be taken for another object."""
    uri = f"{gcs.use(monkeypatch)}/{uuid.uuid4().hex}"
    for name in ("a.wav", key):
        put_to_gcs(gcs, f"{uri.rpartition('/')[2]}/{name}", b"x")
    words = rf"{uri} cannot be read: the object .*{re.escape(key)} has nothing, .*; rename it"
    with pytest.raises(SourceError, match=words) as raised:
        open_source(DatasetConfig("audiofolder", uri))
    assert "network" not in str(raised.value)


@contextmanager
def refusing() -> Iterator[str]:
    """A server that refuses everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_concerns_all_objects_is_no_unreadable_clip(
    localbucket: LocalBucket, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing permissions and a server that is down end the run; a missing object does not."""
    write(tmp_path / "a.wav", speechlike(1600))
    upload(tmp_path, localbucket, s3)
    there, missing = Segment("a", f"{s3}/a.wav"), Segment("b", f"{s3}/b.wav")
    with pytest.raises(AudioError, match="no such object"):
        probe(missing, 16_000)
    with refusing() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(SourceError, match=rf"{s3}/a\.wav may not be read.*AWS_ACCESS_KEY_ID"):
            probe(there, 16_000)
        with pytest.raises(SourceError, match="may not be read"):
            open_source(DatasetConfig("audiofolder", s3))
    for one in (there, missing):  # nobody listens there now
        with pytest.raises(SourceError, match=r"cannot be read.*AWS_ENDPOINT_URL.*same command"):
            probe(one, 16_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", localbucket.url)
    assert probe(there, 16_000).n_samples == 1600
    with pytest.raises(
        SourceError, match=r"no-such-bucket/a\.wav cannot be read.*has no bucket no-such"
    ):
        probe(Segment("a", "s3://no-such-bucket/a.wav"), 16_000)


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3", "a.flac"])
def test_a_server_that_fails_within_a_recording_is_no_damage_of_it(
    name: str,
    localbucket: LocalBucket,
    proxy: Proxy,
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decoders take the failure for the end of the file; the segment is read when it is back."""
    monkeypatch.setattr(remote, "_WHOLE_BYTES", 1 << 14)
    file = tmp_path / name
    with soundfile.SoundFile(file, "w", 16_000, 1, format=name[2:].upper()) as out:
        for _ in range(60):
            out.write(speechlike(16_000))
    upload(tmp_path, localbucket, s3)
    segment = Segment("a", f"{s3}/{name}", start_sample=50 * 16_000, stop_sample=51 * 16_000)
    expected = decode(replace(segment, path=str(file)), 16_000).waveform
    for n_answered in (1,) if name == "a.ogg" else (1, 2):  # which is looked through at first
        extents.forget()
        proxy.requests.clear()
        shared = SharedFile(decode)
        proxy.choose = lambda request, n=n_answered: Fault.BUSY if proxy.counts["GET"] > n else None
        with pytest.raises(SourceError, match=r"cannot be read: .*503"):
            shared.decode(segment, 16_000)
        proxy.choose = lambda request: None
        assert shared.decode(segment, 16_000).waveform.equal(expected)
        shared.close()


def test_answers_that_are_cut_are_asked_for_again(
    localbucket: LocalBucket, proxy: Proxy, s3: str, tmp_path: Path
) -> None:
    """Samples are those of the file; what stays short is an error of the server."""
    file = write(tmp_path / "a.flac", speechlike(160_000))
    upload(tmp_path, localbucket, s3)
    segment = Segment("a", f"{s3}/a.flac")
    expected = decode(replace(segment, path=str(file)), 16_000).waveform
    faults = iter([Fault.SHORT, None] * 20)
    proxy.choose = lambda request: next(faults)
    assert decode(segment, 16_000).waveform.equal(expected)
    extents.forget()
    probe(segment, 16_000)
    proxy.choose = lambda request: Fault.SHORT
    with pytest.raises(SourceError, match=rf"{s3}/a\.flac cannot be read"):
        decode(segment, 16_000)


def test_an_object_that_is_replaced_between_two_reads_is_no_mixture(
    localbucket: LocalBucket, s3: str, tmp_path: Path
) -> None:
    """The utterance is unreadable; the next one to open it reads the new object."""
    write(tmp_path / "a.wav", speechlike(1_600_000))
    upload(tmp_path, localbucket, s3)
    segment = Segment("a", f"{s3}/a.wav", start_sample=0, stop_sample=16_000)
    decode(segment, 16_000)
    write(tmp_path / "a.wav", speechlike(1_600_000, seed=1))
    upload(tmp_path, localbucket, s3)
    os.utime(place_of(localbucket, f"{s3}/a.wav"), (2e9, 2e9))
    later = replace(segment, start_sample=800_000, stop_sample=816_000)
    with pytest.raises(AudioError, match="replaced while it was read"):
        decode(later, 16_000)
    expected = decode(replace(later, path=str(tmp_path / "a.wav")), 16_000).waveform
    assert decode(later, 16_000).waveform.equal(expected)


def test_memory_is_bounded(localbucket: LocalBucket, s3: str, tmp_path: Path) -> None:
    """What was not used for longest goes first; every byte is right all the same."""
    content = os.urandom(100_000)
    (tmp_path / "x").write_bytes(content)
    upload(tmp_path, localbucket, s3)
    small = Extents(20_000)
    for start in [*range(0, 90_000, 5_000), 7_000, 300, 88_000]:
        assert small.all_of(f"{s3}/x", start, 9_000) == content[start : start + 9_000]
        assert small._n_bytes == sum(small._sizes.values()) <= 20_000


def test_threads_fetch_a_range_once(
    localbucket: LocalBucket, proxy: Proxy, s3: str, tmp_path: Path
) -> None:
    """Those that come later wait for the first; after a failure another one tries."""
    content = os.urandom(100_000)
    (tmp_path / "x").write_bytes(content)
    upload(tmp_path, localbucket, s3)
    proxy.choose = lambda request: Fault.DELAY
    shared = Extents()
    shared.info(f"{s3}/x")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: shared.all_of(f"{s3}/x", 0, 100_000), range(8)))
    assert found == [content] * 8
    assert proxy.counts["GET"] == 2


def test_a_fork_reads_on(localbucket: LocalBucket, s3: str, tmp_path: Path) -> None:
    """With a lock, extents and connections of its own."""
    write(tmp_path / "a.wav", speechlike(16_000))
    upload(tmp_path, localbucket, s3)
    segment = Segment("a", f"{s3}/a.wav")
    expected = decode(segment, 16_000).waveform.sum().item()
    with extents._changed:  # as if another thread held it
        child = os.fork()
        if not child:
            is_equal = decode(segment, 16_000).waveform.sum().item() == expected
            os._exit(0 if is_equal else 1)
    assert os.waitpid(child, 0)[1] == 0
