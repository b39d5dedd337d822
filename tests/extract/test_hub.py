"""`dataset=hub` as a user runs it, against a hub on this machine and the real client of the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pytest
import torch

import pipeline
from pipeline.audio.decode import decode
from pipeline.audio.probe import probe
from pipeline.config import load_config
from pipeline.errors import SourceError
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import speechlike, write
from tests.helpers.commands import Done, error_line, last_json, strata
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import contents
from tests.helpers.hub_server import CONVERTED, Fault, Hub, running_hub, use_hub
from tests.helpers.parquet_files import audio, write_parquet

NAME = "someone/clips"
MODEL = ("model=tiny", "plan.frames_per_unit=512", "engine=inline", "engine.threads=1")
SHARDS = [f"data/train-0000{i}-of-00003.parquet" for i in range(3)]


@dataclass
class Served:
    """A hub, and caches that are empty at first.

    Attributes:
        hub: The hub.
        clips: Folder of nine clips.
        home: Folder of the caches.
        use: Makes the client use the hub, or, with True, no network.
    """

    hub: Hub
    clips: Path
    home: Path
    use: Callable[[bool], None]

    def table(self, first: int, stop: int) -> bytes:
        """Return a Parquet file with some of the clips."""
        files = sorted(self.clips.glob("*.wav"))[first:stop]
        column = audio([file.read_bytes() for file in files], [file.name for file in files])
        table = pa.table({"audio": column, "word": [file.stem for file in files]})
        return write_parquet(self.home / "made.parquet", table).read_bytes()

    def shards(self) -> dict[str, bytes]:
        """Return all clips in three files, as `push_to_hub` names them."""
        return {name: self.table(3 * i, 3 * i + 3) for i, name in enumerate(SHARDS)}

    def folder(self) -> dict[str, bytes]:
        """Return all clips as files of a split."""
        return {f"train/{file.name}": file.read_bytes() for file in self.clips.glob("*.wav")}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "clips"
    return write_folder(folder, mixed_lengths(9), metadata=False)


@pytest.fixture(scope="module")
def files_store(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the clips, read as files."""
    store = tmp_path_factory.mktemp("files") / "store"
    done = strata(
        "extract", "dataset=audiofolder", f"dataset.path={clips}", f"store={store}", *MODEL
    )
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture
def served(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with running_hub() as hub:
        home = tmp_path / "home"
        home.mkdir()

        def use(offline: bool) -> None:
            use_hub(hub, home, monkeypatch, offline)

        use(False)
        yield Served(hub, clips, home, use)


def on_hub(verb: str, *more: str) -> Done:
    return strata(verb, "dataset=hub", f"dataset.name={NAME}", "dataset.split=train", *MODEL, *more)


def assert_features_of(store: Path, files_store: Path) -> None:
    """Compare the features of a store with those of the clips as files."""
    found, expected = pipeline.open_store(store), pipeline.open_store(files_store)
    assert sorted(found.ids) == sorted(expected.ids)
    for name in expected.ids:
        assert torch.equal(found.read(name), expected.read(name))


def only(part: str, fault: Fault, times: int = 1 << 30) -> Callable[[str, str], Fault | None]:
    """Let requests fail whose path has a part, so many times."""
    left = [times]

    def found(method: str, path: str) -> Fault | None:
        if part not in path or not left[0]:
            return None
        left[0] -= 1
        return fault

    return found


def test_a_repository_of_parquet_files(served: Served, tmp_path: Path, files_store: Path) -> None:
    """Plan and extract give the features of the same clips as files; each file is fetched once."""
    served.hub.commit(NAME, served.shards() | {"README.md": b"# Clips\n"})
    planned = on_hub("plan", "--json")
    assert last_json(planned)["utterances"] == 9
    n_fetched = served.hub.n_bytes()
    assert n_fetched == sum(map(len, served.shards().values()))
    done = on_hub("extract", f"store={tmp_path / 'store'}")
    assert done.returncode == 0, done.stderr
    assert served.hub.n_bytes() == n_fetched
    assert_features_of(tmp_path / "store", files_store)
    assert pipeline.open_store(tmp_path / "store").metadata["word"][0].as_py()


def test_a_second_run_needs_no_network(served: Served, tmp_path: Path) -> None:
    """It reads the caches alone, and finds the store complete and unchanged."""
    served.hub.commit(NAME, served.shards())
    assert on_hub("extract", f"store={tmp_path / 'store'}").returncode == 0
    before = contents(tmp_path / "store")
    served.hub.requests.clear()
    served.use(True)
    done = on_hub("extract", f"store={tmp_path / 'store'}", "--json")
    assert done.returncode == 0, done.stderr
    assert last_json(done)["utterances_ok"] == 9
    assert contents(tmp_path / "store") == before
    assert served.hub.requests == []


@pytest.mark.parametrize("names", [SHARDS, ["a.parquet", "b.parquet", "c.parquet"]], ids=str)
def test_an_incomplete_cache_is_not_taken_for_the_dataset(served: Served, names: list[str]) -> None:
    """A file that was never fetched is missed without a network, whatever the files are called."""
    content = dict(zip(names, served.shards().values(), strict=True))
    served.hub.commit(NAME, content)
    served.hub.fault = only(f"cdn:{names[1]}", Fault(500))
    assert on_hub("plan").returncode == 1
    served.use(True)
    done = on_hub("plan")
    assert done.returncode == 1
    assert "is not in the local cache and could not be fetched" in error_line(done)
    assert "HF_HUB_OFFLINE is set: run the same command once with a connection" in error_line(done)
    served.hub.fault = lambda method, path: None
    served.use(False)
    assert on_hub("plan").returncode == 0


def test_splits_and_configurations_of_the_card(served: Served) -> None:
    """The card names the files of a split of a configuration, and how many rows there are."""
    shards = list(served.shards().values())
    configs = [
        {"config_name": "small", "data_files": [{"split": "train", "path": "a/*"}]},
        {"config_name": "large", "data_files": [{"split": "train", "path": ["a/*", "b/*"]}]},
    ]
    infos = [
        {"config_name": name, "splits": [{"name": "train", "num_examples": n}]}
        for name, n in (("small", 3), ("large", 6))
    ]
    card = f"---\n{json.dumps({'configs': configs, 'dataset_info': infos})}\n---\n".encode()
    files = {"a/x.parquet": shards[0], "b/x.parquet": shards[1], "README.md": card}
    served.hub.commit(NAME, files)
    for config, n in (("small", 3), ("large", 6)):
        assert last_json(on_hub("plan", f"dataset.config={config}", "--json"))["utterances"] == n
    assert "['small', 'large']" in error_line(on_hub("plan"))
    served.hub.commit(NAME, files | {"a/x.parquet": shards[0], "a/y.parquet": shards[1]})
    assert "has 6 rows, but its card" in error_line(on_hub("plan", "dataset.config=small"))


def test_a_repository_without_parquet_files(
    served: Served, tmp_path: Path, files_store: Path
) -> None:
    """`datasets` loads it, and a line says so."""
    served.hub.commit(NAME, served.folder())
    done = on_hub("extract", f"store={tmp_path / 'store'}")
    assert done.returncode == 0, done.stderr
    assert (
        f"{NAME} has no Parquet files (audiofolder), and the hub has not converted it"
        in done.stderr
    )
    assert_features_of(tmp_path / "store", files_store)


def test_the_files_that_the_hub_made_of_a_repository(
    served: Served, tmp_path: Path, files_store: Path
) -> None:
    """They are read in place, and a line says so; nothing of the repository itself is fetched."""
    served.hub.commit(NAME, served.folder())
    first = served.table(0, 6)
    files = {"default/train/0000.parquet": first, "default/train/0001.parquet": served.table(6, 9)}
    commit = served.hub.commit(NAME, files, CONVERTED)
    done = on_hub("extract", f"store={tmp_path / 'store'}")
    assert done.returncode == 0, done.stderr
    assert (
        f"those that the hub made of it are read ({CONVERTED}, commit {commit[:7]})" in done.stderr
    )
    assert served.hub.n_bytes(".wav") == 0
    assert_features_of(tmp_path / "store", files_store)
    before = contents(tmp_path / "store")
    served.use(True)
    assert on_hub("extract", f"store={tmp_path / 'store'}").returncode == 0
    assert contents(tmp_path / "store") == before
    served.use(False)
    done = on_hub("plan", "dataset.revision=main")
    assert done.returncode == 0
    assert served.hub.n_bytes(".wav") > 0


def test_a_program_is_not_run_but_its_conversion_is_read(served: Served) -> None:
    """`datasets` refuses such a repository; without a conversion, its error is the answer."""
    served.hub.commit(NAME, {"clips.py": b"raise SystemExit"})
    assert "scripts are no longer supported" in error_line(on_hub("plan"))
    served.hub.commit(NAME, {"default/train/0000.parquet": served.table(0, 4)}, CONVERTED)
    assert last_json(on_hub("plan", "--json"))["utterances"] == 4


def test_a_partial_conversion_is_not_used(served: Served) -> None:
    """The repository is loaded instead, unless its part is what was asked for."""
    served.hub.commit(NAME, served.folder())
    served.hub.commit(NAME, {"default/partial-train/0000.parquet": served.table(0, 4)}, CONVERTED)
    done = on_hub("plan", "--json")
    assert last_json(done)["utterances"] == 9
    assert "converted only the first part of the split train" in done.stderr
    done = on_hub("plan", f"dataset.revision={CONVERTED}")
    assert done.returncode == 1
    assert "converted only the first part of the split train" in error_line(done)
    part = strata(
        *("plan", "dataset=hub", f"dataset.name={NAME}", "dataset.split=partial-train", *MODEL),
        *(f"dataset.revision={CONVERTED}", "--json"),
    )
    assert last_json(part)["utterances"] == 4


def test_configurations_and_parts_of_a_conversion(served: Served) -> None:
    """Files of another configuration are not read; parts of a split are, in their order."""
    served.hub.commit(NAME, {"clips.py": b""})
    files = {
        "en/train-part10/0000.parquet": served.table(2, 3),
        "en/train-part2/0000.parquet": served.table(0, 2),
        "en/test/0000.parquet": served.table(3, 4),
        "fr/train/0000.parquet": served.table(4, 9),
    }
    served.hub.commit(NAME, files, CONVERTED)
    assert "dataset.config=en|fr" in error_line(on_hub("plan"))
    assert "lacks the configuration de" in error_line(on_hub("plan", "dataset.config=de"))
    for revision in ("null", CONVERTED):
        more = ("dataset.config=en", f"dataset.revision={revision}")
        assert last_json(on_hub("plan", *more, "--json"))["utterances"] == 3


def test_a_conversion_that_may_be_out_of_date(served: Served) -> None:
    """A line says that the repository is newer; the rows that its card states are compared."""
    served.hub.commit(NAME, served.folder(), date="2024-02-02")
    converted = {"default/train/0000.parquet": served.table(0, 9)}
    served.hub.commit(NAME, converted, CONVERTED, date="2024-02-01")
    assert "was changed on 2024-02-02, after the hub converted it" in on_hub("plan").stderr
    served.hub.commit(NAME, served.folder(), date="2024-02-01")
    assert "after the hub converted it" not in on_hub("plan").stderr
    info = {"splits": [{"name": "train", "num_examples": 10}]}
    card = f"---\n{json.dumps({'dataset_info': info})}\n---\n".encode()
    served.hub.commit(NAME, served.folder() | {"README.md": card})
    assert "has 9 rows, but its card (README.md) states 10" in error_line(on_hub("plan"))


def test_a_download_that_breaks_off_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks for the rest; if it is cut off for good, the next run fetches what lacks.

    Files are fetched beside each other, so one that waits for its turn may lack, too.
    """
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    served.hub.commit(NAME, served.shards())
    part = f"cdn:{SHARDS[1]}"
    served.hub.fault = only(part, Fault(sent_bytes=1000), times=3)
    assert on_hub("plan").returncode == 0
    ranges = [r.range for r in served.hub.requests if r.path == SHARDS[1] and r.method == "GET"]
    assert ranges == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-"]
    shutil.rmtree(served.home / "hub")
    served.hub.fault = only(part, Fault(sent_bytes=0))
    done = on_hub("plan")
    assert done.returncode == 1
    assert "could not be fetched from the hub: peer closed connection" in error_line(done)
    assert "run the same command again: what was fetched is kept" in error_line(done)
    kept = {f"data/{file.name}" for file in (served.home / "hub").rglob("snapshots/*/data/*")}
    assert SHARDS[0] in kept
    assert SHARDS[1] not in kept
    served.hub.fault = lambda method, path: None
    served.hub.requests.clear()
    assert on_hub("plan").returncode == 0
    fetched = [r.path for r in served.hub.requests if r.n_bytes and r.is_file]
    assert sorted(fetched) == sorted(set(SHARDS) - kept)


REFUSALS = {
    "private": (Fault(401), "there is no dataset someone/clips, or it is private"),
    "gone": (Fault(404, "RepoNotFound"), "there is no dataset someone/clips, or it is private"),
    "gated": (Fault(401, "GatedRepo"), "it is gated: ask for access at "),
    "not granted": (Fault(403, "GatedRepo"), "it is gated: ask for access at "),
    "forbidden": (Fault(403), "it refuses access (HTTP 403)"),
    "too many": (Fault(429), "it limits the number of requests (HTTP 429)"),
    "failing": (Fault(500), "it answered with HTTP 500"),
}


REFUSED = [
    *((kind, "") for kind in REFUSALS),
    *((kind, f"cdn:{SHARDS[2]}") for kind in ("forbidden", "too many", "failing")),
    *((kind, SHARDS[2]) for kind in ("gated", "failing")),
    *((kind, "/tree/") for kind in ("private", "too many")),
]


@pytest.mark.parametrize(("kind", "part"), REFUSED, ids=str)
def test_refusals_are_one_line_with_a_remedy(served: Served, kind: str, part: str) -> None:
    """At whichever request; when the hub answers again, so does the same command."""
    fault, reason = REFUSALS[kind]
    served.hub.commit(NAME, served.shards())
    served.hub.fault = only(part, fault)
    done = on_hub("plan")
    assert done.returncode == 1
    assert reason in error_line(done)
    assert any(word in error_line(done) for word in ("HF_TOKEN", "run the same command again"))
    served.hub.fault = lambda method, path: None
    assert on_hub("plan").returncode == 0


def test_other_refusals(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision, a split or a configuration that does not exist, and a token that is wrong."""
    served.hub.commit(NAME, served.shards())
    assert "there is no revision v9" in error_line(on_hub("plan", "dataset.revision=v9"))
    assert "'nothing' not found" in error_line(on_hub("plan", "dataset.config=nothing"))
    served.hub.token = "right"
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "it is gated" in error_line(on_hub("plan"))
    monkeypatch.setenv("HF_TOKEN", "right")
    assert on_hub("plan").returncode == 0


def test_a_file_that_is_damaged_in_the_cache(served: Served) -> None:
    """The message names what to delete, and then it is fetched again."""
    served.hub.commit(NAME, served.shards())
    n = len(served.shards()[SHARDS[1]])
    served.hub.fault = only(f"cdn:{SHARDS[1]}", Fault(content=bytes(n)))
    line = error_line(on_hub("plan"))
    assert f"{SHARDS[1]} is damaged" in line
    served.hub.fault = lambda method, path: None
    blob = Path(line.partition("delete ")[2].partition(" to have it fetched again")[0])
    blob.unlink()
    assert on_hub("plan").returncode == 0


@pytest.mark.parametrize("fault", [Fault(500), Fault(429)], ids=str)
def test_a_hub_that_is_down_is_not_needed(served: Served, fault: Fault) -> None:
    """What is in the cache is used, and a line says so."""
    served.hub.commit(NAME, served.shards())
    assert on_hub("plan").returncode == 0
    served.hub.fault = only("", fault)
    huggingface_hub.HfFileSystem._cache.clear()
    done = on_hub("plan", "--json")
    assert done.returncode == 0, done.stderr
    assert last_json(done)["utterances"] == 9
    assert f"the files in the cache are used, because dataset.name={NAME}" in done.stderr


@pytest.mark.slow
def test_the_endpoint_of_the_environment(served: Served, tmp_path: Path) -> None:
    """A new process with `HF_ENDPOINT` reads the hub that it names."""
    served.hub.commit(NAME, served.shards())
    environment = os.environ | {"HF_ENDPOINT": served.hub.url, "HF_HOME": str(tmp_path / "hf")}
    environment.pop("HF_DATASETS_CACHE", None)
    command = [sys.executable, "-m", "pipeline", "plan", "dataset=hub", f"dataset.name={NAME}"]
    command += ["dataset.split=train", "model=tiny", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["utterances"] == 9
    assert served.hub.n_bytes() == sum(map(len, served.shards().values()))


# --- streams: ranges of bytes that are never stored -------------------------------------------

STREAM = "dataset.stream=true"


def stored(home: Path) -> list[Path]:
    """Return the files of the caches that may hold audio."""
    return [*home.rglob("*.parquet"), *home.rglob("blobs/*"), *home.rglob("*.arrow")]


def test_a_stream_gives_the_features_of_the_files(
    served: Served, tmp_path: Path, files_store: Path
) -> None:
    """Bit for bit, each byte of audio is fetched once to be encoded, and nothing is kept."""
    served.hub.commit(NAME, served.shards())
    assert last_json(on_hub("plan", STREAM, "--json"))["utterances"] == 9
    served.use(False)
    served.hub.requests.clear()
    done = on_hub("extract", STREAM, f"store={tmp_path / 'store'}")
    assert done.returncode == 0, done.stderr
    assert_features_of(tmp_path / "store", files_store)
    assert stored(served.home) == [served.home / "made.parquet"]
    largest = max(path.stat().st_size for path in served.clips.glob("*.wav"))
    wanted = [r.range for r in served.hub.requests if r.n_bytes > 1 << 14]
    assert len(set(wanted)) == len(wanted)
    assert max(r.n_bytes for r in served.hub.requests if r.is_file) <= max(largest, 1 << 16)


def test_a_plan_of_a_stream_reads_a_small_part(served: Served, tmp_path: Path) -> None:
    """Footers, the lengths that precede the clips, and both ends of each clip."""
    clips = write_folder(tmp_path / "long", [30.0] * 8, metadata=False)
    served = Served(served.hub, clips, served.home, served.use)
    content = served.table(0, 8)
    served.hub.commit(NAME, {"train.parquet": content})
    assert last_json(on_hub("plan", STREAM, "--json"))["utterances"] == 8
    assert 0 < served.hub.n_bytes() < len(content) / 25
    served.hub.requests.clear()
    assert last_json(on_hub("plan", "--json"))["utterances"] == 8
    assert served.hub.n_bytes() == len(content)


def test_a_store_goes_on_as_a_stream_and_back(served: Served, tmp_path: Path) -> None:
    """Whether files are downloaded is no part of a store's identity."""
    served.hub.commit(NAME, served.shards())
    store = f"store={tmp_path / 'store'}"
    assert on_hub("extract", store).returncode == 0
    before = contents(tmp_path / "store")
    for more in ((STREAM,), ()):
        done = on_hub("extract", store, *more)
        assert done.returncode == 0, done.stderr
        assert contents(tmp_path / "store") == before
        assert "has changed" not in done.stderr


@pytest.mark.parametrize(
    "fault",
    [Fault(sent_bytes=100), Fault(content=b"short"), Fault(503), Fault(429), Fault(403)],
    ids=str,
)
def test_a_stream_that_is_disturbed_goes_on(
    served: Served, tmp_path: Path, files_store: Path, fault: Fault
) -> None:
    """A broken connection, a short answer, a busy server and an expired address are retried."""
    served.hub.commit(NAME, served.shards())
    served.hub.fault = only("cdn:", fault, times=2 if fault.status != 403 else 1)
    done = on_hub("extract", STREAM, f"store={tmp_path / 'store'}")
    assert done.returncode == 0, done.stderr
    assert_features_of(tmp_path / "store", files_store)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(sent_bytes=100), "peer closed connection"),
        (Fault(content=b"short"), "only 5 came"),
        (Fault(503), "it answered with HTTP 503"),
        (Fault(403), "it refuses access (HTTP 403)"),
        (Fault(is_whole=True), "the server sends no ranges of bytes"),
    ],
    ids=str,
)
def test_a_stream_that_ends_is_resumed_by_the_same_command(
    served: Served, tmp_path: Path, files_store: Path, fault: Fault, words: str
) -> None:
    """No utterance is blamed for it: the run fails in one line, and what was committed stays."""
    served.hub.commit(NAME, served.shards())
    store = f"store={tmp_path / 'store'}"
    assert on_hub("plan", STREAM, store).returncode == 0
    served.use(False)
    served.hub.fault = only(f"cdn:{SHARDS[2]}", fault)
    done = on_hub("extract", STREAM, store)
    assert done.returncode == 1
    assert words in error_line(done)
    served.hub.fault = lambda method, path: None
    done = on_hub("extract", STREAM, store, "--json")
    assert done.returncode == 0, done.stderr
    assert last_json(done)["utterances_quarantined"] == 0
    assert_features_of(tmp_path / "store", files_store)


def test_a_header_that_cannot_be_fetched_is_not_an_unreadable_clip(
    served: Served, tmp_path: Path
) -> None:
    """Also where libsndfile reads it, which takes an error for the end of the file."""
    clip = write(tmp_path / "a.opus", speechlike(16_000 * 60)).read_bytes()
    column = audio([clip, clip], ["a.opus", "b.opus"])
    content = write_parquet(tmp_path / "x.parquet", pa.table({"audio": column})).read_bytes()
    served.hub.commit(NAME, {"train.parquet": content})
    config = load_config(["dataset=hub", f"dataset.name={NAME}", "dataset.split=train", STREAM])
    segment = open_source(config.dataset).segment(0)
    served.use(False)
    served.hub.requests.clear()
    assert probe(segment, 16_000).n_samples >= 16_000 * 60
    sizes = [r.n_bytes for r in served.hub.requests if r.method == "GET"]
    assert len(sizes) == 4  # of the file, of both ends of the clip, and what libsndfile reads
    assert max(sizes[:3]) <= 4096
    assert len(clip) < sum(sizes) < len(clip) + 4096
    served.use(False)
    served.hub.requests.clear()

    def fault(method: str, path: str) -> Fault | None:
        n_gets = sum(request.method == "GET" for request in served.hub.requests)
        return Fault(403) if n_gets >= 3 else None

    served.hub.fault = fault
    with pytest.raises(SourceError, match="refuses access"):
        probe(segment, 16_000)


def test_a_stream_of_compressed_pages(served: Served, tmp_path: Path, files_store: Path) -> None:
    """They are fetched page by page."""
    files = sorted(served.clips.glob("*.wav"))
    column = audio([file.read_bytes() for file in files], [file.name for file in files])
    path = tmp_path / "x.parquet"
    options = {"compression": "zstd", "row_group_size": 4}
    content = write_parquet(path, pa.table({"audio": column}), **options).read_bytes()
    served.hub.commit(NAME, {"train.parquet": content})
    done = on_hub("extract", STREAM, f"store={tmp_path / 'store'}")
    assert done.returncode == 0, done.stderr
    assert_features_of(tmp_path / "store", files_store)
    assert stored(served.home) == []


def test_a_commit_that_is_gone_is_refused(served: Served) -> None:
    """Its ranges are of no other commit."""
    commit = served.hub.commit(NAME, served.shards())
    config = load_config(["dataset=hub", f"dataset.name={NAME}", "dataset.split=train", STREAM])
    source = open_source(config.dataset)
    assert source.is_shared
    segment = source.segment(8)
    assert segment.path == f"hf://datasets/{NAME}@{commit}/{SHARDS[2]}"
    assert len(decode(segment, 16_000).waveform) > 0
    served.use(False)
    del served.hub.trees[NAME, commit]
    with pytest.raises(SourceError, match=f"there is no revision {commit}"):
        decode(segment, 16_000)


def test_what_cannot_be_streamed_is_refused(served: Served) -> None:
    """A repository without Parquet files would be downloaded; without a network there is none."""
    served.hub.commit(NAME, served.folder())
    assert "dataset.stream=true reads Parquet files only" in error_line(on_hub("plan", STREAM))
    served.hub.commit(NAME, served.shards())
    assert on_hub("plan").returncode == 0
    served.use(True)
    assert "HF_HUB_OFFLINE is set" in error_line(on_hub("plan", STREAM))
