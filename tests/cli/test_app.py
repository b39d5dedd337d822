"""The command line as a user runs it: exit codes, one clear line per error, JSON on stdout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile

import pipeline
from pipeline import events
from pipeline.cli.output import signals_to
from pipeline.config import config_folder
from pipeline.encoders.wav2vec2.bundles import registry
from tests.helpers.commands import error_line, last_json, strata
from tests.helpers.corpus import mixed_lengths, voice, write_folder

COMMON = ["model=tiny", "engine=inline", "engine.threads=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", mixed_lengths(6))


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "s"
    done = strata("extract", f"dataset.path={folder}", f"store={path}", *COMMON)
    assert done.returncode == 0, done.stderr
    return path


def test_the_version_is_that_of_the_package() -> None:
    """`--version` prints the version in pyproject.toml on stdout; no verb is needed."""
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    done = strata("--version")
    assert (done.returncode, done.stdout) == (0, f"strata {pyproject['project']['version']}\n")


def test_plan_json_has_the_promised_keys(folder: Path) -> None:
    """`plan --json` prints one object with the fixed keys; without --json, a line for people."""
    done = strata("plan", f"dataset.path={folder}", "model=tiny", "--json")
    found = last_json(done)
    assert done.returncode == 0
    assert {"utterances", "hours", "units", "frames", "bytes"} <= found.keys()
    assert found["utterances"] == 6
    text = strata("plan", f"dataset.path={folder}", "model=tiny")
    assert text.stdout.startswith("6 utterances, ")
    assert "utterances" not in text.stderr


def test_status_verify_and_inspect(store: Path) -> None:
    """The reading verbs agree on a finished store and exit with 0."""
    status = strata("status", str(store), "--json")
    assert last_json(status) | {
        "units_total": 1,
        "units_committed": 1,
        "utterances_ok": 6,
        "utterances_quarantined": 0,
    } == last_json(status)
    assert {"audio_seconds", "wall_seconds"} <= last_json(status).keys()
    verify = strata("verify", str(store), "--json")
    assert (verify.returncode, last_json(verify)["ok"]) == (0, True)
    assert last_json(verify)["damaged_units"] == []
    inspect = strata("inspect", str(store), "--json")
    assert last_json(inspect)["layers"] == list(range(1, 13))
    one = last_json(strata("inspect", str(store), "clip-003.wav", "--json"))
    assert one["id"] == "clip-003.wav"
    assert [item["layer"] for item in one["layers"]] == list(range(1, 13))
    assert one["layers"][0]["shape"] == [one["n_frames"], 48]


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("status", "1 of 1 units committed"),
        ("verify", "1 of 1 units checked, 6 utterances"),
        ("inspect", "layers: "),
    ],
)
def test_answers_are_on_stdout(store: Path, verb: str, words: str) -> None:
    """Without --json the answer is text on stdout; stderr has lines of progress only."""
    done = strata(verb, str(store))
    progress = ["1 unit to check", "1 unit checked in "] if verb == "verify" else []
    lines = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert done.returncode == 0
    assert all(map(str.startswith, lines, progress))
    assert len(lines) == len(progress)
    assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["plan", "dataset.path={folder}"], ["opening the dataset"]),
        (
            ["extract", "dataset.path={folder}", "store={store}"],
            ["looking for the workers' resources", "opening the dataset", "reading the index"],
        ),
        (["status", "{store}"], ["reading the index"]),
        (["verify", "{store}"], []),
        (["inspect", "{store}"], ["reading the index"]),
        (["collapse", "{store}", "{out}", "weights=average"], []),
        (["copy", "{store}", "{out}"], ["reading the indexes of the sources"]),
        (["export", "{store}", "{out}", "format=npy"], []),
        (["layers", "{store}", "out={out}"], ["measuring the layers", "writing the report"]),
        (["selfcheck"], ["loading the encoder and encoding the clips"]),
    ],
    ids=lambda value: value[0] if value and value[0].isalpha() else "",
)
def test_slow_steps_say_what_they_do(
    folder: Path, store: Path, tmp_path: Path, monkeypatch, arguments: list[str], steps: list[str]
) -> None:
    """Each step that may be slow is announced, the import of libraries first."""

    class AtOnce(threading.Timer):
        """A timer whose time has come."""

        def start(self) -> None:
            self.function(*self.args)

    monkeypatch.setattr(events, "threading", SimpleNamespace(Timer=AtOnce))
    places = {"folder": folder, "store": store, "out": tmp_path / "out"}
    settings = COMMON if arguments[0] in ("plan", "extract") else []
    settings = ["model=tiny"] if arguments[0] == "selfcheck" else settings
    done = strata(*(item.format(**places) for item in arguments), *settings)
    assert done.returncode == 0, done.stderr
    announced = [line for line in done.stderr.splitlines() if line.endswith(" ...")]
    assert announced[0] == "importing torch and other libraries ..."
    assert set(announced[1:]) >= {f"{step} ..." for step in steps}


def test_verify_exits_with_1_on_damage(folder: Path, tmp_path: Path) -> None:
    """A flipped byte is found, named, and makes the exit code 1."""
    path = tmp_path / "s"
    strata("extract", f"dataset.path={folder}", f"store={path}", *COMMON)
    shard = path / "features.zarr" / "frames" / "c" / "4" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 1
    shard.write_bytes(raw)
    done = strata("verify", str(path), "--json")
    assert done.returncode == 1
    assert last_json(done)["damaged_units"] == [0]
    assert "layer 5" in done.stderr


def test_too_many_quarantined_exits_with_3(tmp_path: Path) -> None:
    """Everything else is committed, and the exit code shows that too much is missing."""
    folder = write_folder(tmp_path / "clips", [0.5] * 4)
    (folder / "clip-001.wav").write_bytes(b"")
    arguments = ["extract", f"dataset.path={folder}", f"store={tmp_path / 's'}", *COMMON, "--json"]
    done = strata(*arguments)
    assert done.returncode == 3
    assert (last_json(done)["utterances_ok"], last_json(done)["utterances_quarantined"]) == (3, 1)
    assert strata(*arguments, "run.max_quarantined=0.5").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan", "dataset.pth=x"], 2, "unknown setting dataset.pth; did you mean dataset.path"),
        (["plan", "model=hubert_bse"], 2, "hubert_base"),
        (["plan", "dataset.path=/no/such/folder"], 1, "/no/such/folder"),
        (["plan"], 1, "dataset.path"),
        (["extract", "engine.workers=many"], 2, "engine.workers is 'many'; expected a whole"),
        (["status", "/no/such/store"], 1, "no store at /no/such/store"),
        (["verify", "/no/such/store"], 1, "no store at /no/such/store"),
        (["verify", "x", "--repair", "--sample", "0.1"], 2, "leave --sample out"),
    ],
)
def test_a_wrong_command_is_one_clear_line(arguments: list[str], code: int, words: str) -> None:
    """The error names the misspelt key, missing path or wrong type, and the correction."""
    done = strata(*arguments)
    assert done.returncode == code, done.stderr
    assert words in error_line(done)


def test_a_store_is_required(folder: Path) -> None:
    """`extract` without a store names the setting."""
    done = strata("extract", f"dataset.path={folder}", *COMMON)
    assert (done.returncode, "store=PATH" in error_line(done)) == (2, True)


def test_skipped_files_are_counted_and_listed_on_request(tmp_path: Path) -> None:
    """The note has the first ones; `plan --all` and the JSON object have all."""
    folder = write_folder(tmp_path / "clips", [0.5])
    names = [f"notes-{i}.txt" for i in range(9)]
    for name in names:
        (folder / name).write_text("no audio")
    few = strata("plan", f"dataset.path={folder}", "model=tiny")
    assert "skipped: 9 files of the dataset: " in few.stderr
    assert "`strata plan ... --all` lists all" in few.stderr
    every = strata("plan", f"dataset.path={folder}", "model=tiny", "--all")
    assert [line for line in every.stdout.splitlines() if line.endswith(": skipped")] == [
        f"  {name}: skipped" for name in names
    ]
    found = last_json(strata("plan", f"dataset.path={folder}", "model=tiny", "--json"))
    assert found["skipped"] == names


def test_a_skipped_column_of_ids_names_the_setting(tmp_path: Path) -> None:
    """Of a table whose column id is not used as the ids."""
    folder = write_folder(tmp_path / "clips", [0.5])
    table = tmp_path / "t.csv"
    table.write_text("id,path\n007," + next(folder.glob("*.wav")).name + "\n")
    arguments = (
        "dataset=manifest",
        f"dataset.path={table}",
        f"dataset.root={folder}",
        "model=tiny",
    )
    words = "skipped: 1 column of the dataset: id; to use the column id as the ids, set"
    assert f"{words} dataset.id_column=id" in strata("plan", *arguments).stderr
    assert "skipped" not in strata("plan", *arguments, "dataset.id_column=id").stderr


def test_duplicate_ids_are_named(tmp_path: Path) -> None:
    """Duplicate ids are an error that names the column and the value."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a", "b", "c"):
        soundfile.write(folder / f"{name}.wav", voice(0.5, 1), 16_000)
    rows = "file_name,key\na.wav,x\nb.wav,y\nc.wav,x\n"
    (folder / "metadata.csv").write_text(rows)
    done = strata("plan", f"dataset.path={folder}", "dataset.id_column=key", "model=tiny")
    line = error_line(done)
    assert done.returncode == 1
    assert "key" in line
    assert "x" in line


def test_pretrained_weights_without_a_network_say_so(folder: Path, tmp_path: Path) -> None:
    """There is no silent fallback to random weights."""
    done = strata(
        "extract",
        f"dataset.path={folder}",
        f"store={tmp_path / 's'}",
        "engine=inline",
        f"model.weights={tmp_path / 'missing.pt'}",
    )
    assert done.returncode == 2
    assert "missing.pt" in error_line(done)
    assert not (tmp_path / "s" / "features.zarr").exists()


def test_random_weights_print_a_warning(folder: Path, tmp_path: Path) -> None:
    """The warning says that the features mean nothing."""
    done = strata("extract", f"dataset.path={folder}", f"store={tmp_path / 's'}", *COMMON)
    assert "RANDOM" in done.stderr
    assert done.stdout.startswith("1 of 1 units committed")


def test_module_and_command_are_the_same() -> None:
    """`python -m pipeline` runs the verbs, with the same exit codes."""
    command = [sys.executable, "-m", "pipeline", "status", "/no/such/store"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]  # notes come before it where imports take long
    assert last.startswith("error: no store at /no/such/store")
    assert done.stdout == ""


def test_debug_shows_the_traceback() -> None:
    """`--debug` adds where an error came from."""
    assert "Traceback" in strata("status", "/no/such/store", "--debug").stderr


@pytest.mark.slow
def test_models_lists_the_registry() -> None:
    """`models` lists every encoder with its size and cost; each has a conf/model file."""
    rows = last_json(strata("models", "--json"))["models"]
    assert [row["name"] for row in rows] == list(registry())
    base = next(row for row in rows if row["name"] == "hubert_base")
    assert (base["layers"], base["dim"]) == (12, 768)
    assert base["gb_per_hour"] == pytest.approx(12 * 768 * 2 * 50 * 3600 / 1e9, rel=1e-3)
    files = {path.stem for path in (config_folder() / "model").glob("*.yaml")}
    assert files == {*registry(), "hf", "checkpoint", "module"}


def test_selfcheck_reports_each_layer(folder: Path) -> None:
    """`selfcheck` compares single, batched and fp32 encoding, on synthetic or given clips."""
    for more in ([], [f"dataset.path={folder}"]):
        done = strata("selfcheck", "model=tiny", "extract.precision=bf16", "--json", *more)
        found = last_json(done)
        assert done.returncode == 0, done.stderr
        assert len(found["alone_vs_batch"]) == len(found["precision_vs_fp32"]) == 12
        assert 0 < max(found["precision_vs_fp32"]) < found["tolerance"]


def test_collapse_writes_a_store_of_one_layer(store: Path, tmp_path: Path) -> None:
    """`collapse` requires weights, refuses other keys, and writes a sound store."""
    out = tmp_path / "mean"
    done = strata("collapse", str(store), str(out), "weights=average", "--json")
    assert done.returncode == 0, done.stderr
    assert last_json(strata("inspect", str(out), "--json"))["feature_dim"] == 48
    assert len(last_json(strata("inspect", str(out), "--json"))["layers"]) == 1
    assert last_json(strata("verify", str(out), "--json"))["ok"]
    assert "weights=average" in error_line(strata("collapse", str(store), str(out)))
    misspelt = strata("collapse", str(store), str(out), "weigths=average")
    assert (misspelt.returncode, "did you mean weights" in error_line(misspelt)) == (2, True)


def test_copy_writes_a_store(store: Path, tmp_path: Path) -> None:
    """`copy` states what it has written; wrong settings are usage errors with the remedy."""
    out = tmp_path / "copy"
    (tmp_path / "ids").write_text("\n".join(pipeline.open_store(store).ids[:3]) + "\n")
    settings = ("layers=[6]", "dtype=float32", "pooling=[mean,std]", f"ids={tmp_path / 'ids'}")
    done = strata("copy", str(store), str(out), *settings, "--json")
    assert done.returncode == 0, done.stderr
    answer = last_json(done)
    assert (answer["layers"], answer["dtype"], answer["utterances"]) == ([6], "float32", 3)
    assert answer["sources"] == [str(store)]
    keys = {"utterances", "units", "frames", "bytes", "layers", "dtype", "sources", "wall_seconds"}
    assert answer.keys() >= keys
    assert last_json(strata("verify", str(out), "--json"))["ok"]
    again = strata("copy", str(store), str(out), *settings)
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)
    other = strata("copy", str(store), str(out), "layers=[6]")
    assert (other.returncode, "dtype is float32 there" in error_line(other)) == (1, True)
    for setting, words in (
        ("layer=[6]", "did you mean layers"),
        ("layers=[6", "expected layers such as [1,6]"),
        ("frames_per_unit=many", "expected a whole number"),
        ("keep=[frames,]", "expected a list such as [a,b]"),
        ("prefix=yes", "expected true or false"),
        ("where=n_frames >", "cannot be read at its end"),
    ):
        wrong = strata("copy", str(store), str(tmp_path / "x"), setting)
        assert (wrong.returncode, words in error_line(wrong)) == (2, True), wrong.stderr
    alone = strata("copy", str(store))
    assert (alone.returncode, "SRC... DST" in error_line(alone)) == (2, True)


def test_nothing_is_extracted_into_a_copy(folder: Path, store: Path, tmp_path: Path) -> None:
    """Neither into a collapsed store; the message names the way."""
    for verb, more in (("copy", []), ("collapse", ["weights=average"])):
        out = tmp_path / verb
        assert strata(verb, str(store), str(out), *more).returncode == 0
        settings = [*COMMON, f"dataset.path={folder}", f"store={out}"]
        refused = strata("extract", *settings)
        words = f"was made by `strata {verb}`, and nothing can be extracted into it"
        assert (refused.returncode, words in error_line(refused)) == (1, True), refused.stderr


def test_export_writes_files(store: Path, tmp_path: Path) -> None:
    """`export` states what it has written; wrong settings are usage errors with the remedy."""
    out = tmp_path / "files"
    settings = ("format=npy", "layers=[6]", "where=n_frames > 3", "pooled=true")
    done = strata("export", str(store), str(out), *settings, "--json")
    assert done.returncode == 0, done.stderr
    answer = last_json(done)
    assert (answer["layers"], answer["axes"], answer["dtype"]) == ([6], ["dim"], "float32")
    assert answer["utterances"] == len(Path(answer["manifest"]).read_text().splitlines())
    assert f"{answer['utterances']} utterances exported in" in done.stderr
    again = strata("export", str(store), str(out), *settings)
    assert again.returncode == 0
    assert "have been exported before" in again.stderr
    other = strata("export", str(store), str(out), "format=npy")
    assert (other.returncode, "layers is [6] there" in error_line(other)) == (1, True)
    for setting, words in (
        ("layers=[6", "expected layers such as [1,6]"),
        ("pooled=yes", "expected true or false"),
        ("format=hdf5", "npy, safetensors, kaldi, webdataset, hf"),
        ("were=x", "did you mean where"),
        ("where=speaker in", "cannot be read at its end"),
    ):
        wrong = strata("export", str(store), str(tmp_path / "x"), "format=npy", setting)
        assert (wrong.returncode, words in error_line(wrong)) == (2, True), wrong.stderr
    missing = strata("export", str(store), str(tmp_path / "x"))
    assert (missing.returncode, "format=npy|safetensors" in error_line(missing)) == (2, True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("requested", [True, False])
def test_a_signal_after_the_run_has_stopped_ends_the_process(requested: bool) -> None:
    """After a request to stop the default handlers are set, otherwise the previous ones."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    requests: list[str] = []
    try:
        with signals_to(requests.append):
            if requested:
                os.kill(os.getpid(), signal.SIGTERM)
        assert requests == ["SIGTERM"] * requested
        for number, handler in before.items():
            assert signal.getsignal(number) == (signal.SIG_DFL if requested else handler)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
