"""The other pages: their Python runs, and the files and settings they name exist."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.config.schema import Config
from pipeline.config.sweep_schema import SweepConfig
from pipeline.store.format.codecs import INT8
from tests.helpers.feature_stores import make_store, noise
from tests.helpers.pages import blocks
from tests.servers.hub import serve_hub
from tests.test_architecture import BOTTOM, MAY_IMPORT

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *DOCS,
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("campaigns/*.md"),
]
FOLDERS = "benchmarks|campaigns|conf|docs|examples|pipeline|scripts|tests"


def name_of(page: Path) -> str:
    """Path within the repository."""
    return page.relative_to(ROOT).as_posix()


def run_python(page: Path, names: dict[str, Any] | None = None) -> str:
    """Run the page's Python blocks in order; return what they print. `names` are its variables."""
    printed = io.StringIO()
    names = {} if names is None else names
    with contextlib.redirect_stdout(printed):
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.S | re.M):
            exec(compile(block, page, "exec"), names)
    return printed.getvalue()


def test_all_python_on_every_page_is_run() -> None:
    """A page with Python has a test here, or in a module of its own."""
    with_python = {name_of(page) for page in PAGES if "```python" in page.read_text()}
    names = (
        "add_an_encoder",
        "comparing",
        "copies",
        "drop",
        "encoder",
        "export",
        "hub",
        "predict",
        "probing",
        "spans",
        "store",
        "tokens",
        "training",
        "tutorial",
    )
    own = {f"docs/{name}.md" for name in names}
    assert with_python == {"README.md", *own}


def test_the_readme_reads_a_store_of_twelve_layers(tmp_path, monkeypatch) -> None:
    """The first ten lines of Python that a newcomer sees."""
    make_store(tmp_path / "features", [20, 30, 40], layers=range(1, 13))
    monkeypatch.chdir(tmp_path)
    assert run_python(ROOT / "README.md") == ""


def make_spans(folder: Path, store: pipeline.FeatureStore) -> None:
    """Write a TextGrid of two phones for each utterance."""
    folder.mkdir()
    for name in store.ids:
        stop_s = store.n_frames(name) * 0.02
        lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
        lines += ["xmin = 0", f"xmax = {stop_s}", "tiers? <exists>", "size = 1", "item []:"]
        lines += ["    item [1]:", '        class = "IntervalTier"', '        name = "phones"']
        lines += ["        xmin = 0", f"        xmax = {stop_s}", "        intervals: size = 2"]
        for i, label in enumerate(("a", "b")):
            lines += [f"        intervals [{i + 1}]:", f"            xmin = {i * stop_s / 2}"]
            lines += [f"            xmax = {(i + 1) * stop_s / 2}", f'            text = "{label}"']
        (folder / f"{name}.TextGrid").write_text("\n".join(lines) + "\n")


def test_the_tokens_page(tmp_path, monkeypatch) -> None:
    """Its commands tokenize and tokenize again; its Python reads what they have made."""
    for name in ("features", "other", "clean", "noisy"):
        ids = [f"{name}-{i}" for i in range(3)]
        make_store(tmp_path / name, [250, 240, 190], layers=range(1, 13), features=noise, ids=ids)
    monkeypatch.chdir(tmp_path)
    page, answers = ROOT / "docs" / "tokens.md", []
    make_spans(Path("alignments"), pipeline.open_store("features"))
    for block in (block for block in blocks(page) if block.language == "bash"):
        for line in block.text.splitlines():
            command = shlex.split(line, comments=True)[1:]
            done = CliRunner().invoke(app, [*command, "--json"])
            assert done.exit_code == 0, done.output
            answers.append(json.loads(done.stdout))
    assert answers[4]["quality"]["labels"] == 2
    assert answers[5]["utterances"] == len(Path("units.txt").read_text().splitlines()) == 3
    answers = answers[:4]
    assert [answer["trained"] for answer in answers] == [True, False, False, True]
    assert [answer["units_written"] for answer in answers] == [3, 0, 3, 6]
    assert len({answer["codebook_sha256"] for answer in answers[:3]}) == 1
    pipeline.drop("features", tokens="layer9-k500", confirm=True)
    printed = run_python(page).splitlines()
    assert printed[0].startswith("250 frames, ")
    assert printed[0].endswith(" units, 250 frames again")
    assert printed[1] == "20 of 20 codes used"


def test_the_page_on_probing_sweeps_a_selection(
    folder, tmp_path, monkeypatch, rendered_charts
) -> None:
    """From Python, into a folder with what a paper needs."""
    (tmp_path / "features").symlink_to(folder / "features")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    printed = run_python(ROOT / "docs" / "probing.md", names)
    written = tmp_path / printed.strip()
    assert "-selection-" in printed
    assert len(names["result"].table) == len(names["store"].layers) + 1
    assert 100 < sum(map(len, names["result"].sweep.test_ids)) + names["result"].sweep.n_train < 160
    table = re.search(
        r"^## Figures.*?^NAME is", (ROOT / "docs/probing.md").read_text(), re.S | re.M
    )
    assert table is not None
    for ending in (".pdf", ".svg", ".csv", "-wide.svg", "-wide.png"):
        assert (written / "figures" / f"scores{ending}").stat().st_size > 100
        assert ending in table[0]
    for name in ("report.html", "tables/scores.tex", "tables/scores.md", "methods.txt"):
        assert (written / name).stat().st_size > 100
        assert name.partition("/")[0] in table[0]
    assert (tmp_path / "layers.pdf").stat().st_size > 1000


def test_the_hub_page_reads_a_store_that_was_pushed(tmp_path, monkeypatch) -> None:
    """From a repository by the name that the page gives it."""
    make_store(tmp_path / "features", [20, 30, 40], layers=range(1, 13))
    with serve_hub() as hub:
        hub.use(monkeypatch)
        pipeline.push(tmp_path / "features", "hf://datasets/USER/NAME")
        names: dict[str, Any] = {}
        run_python(ROOT / "docs" / "hub.md", names)
        expected = pipeline.open_store(tmp_path / "features").read(0, [9])
        assert (names["store"].read(0, [9]) == expected).all()


def test_the_store_page_decodes_int8_with_zarr(tmp_path, monkeypatch) -> None:
    """To what Strata's readers return, which is rounded to float16."""
    make_store(tmp_path / "features", [20, 30, 40], features=noise, codec=INT8)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run_python(ROOT / "docs" / "store.md", names)
    expected = pipeline.open_store(tmp_path / "features").read(0).numpy()
    assert (names["values"].astype(expected.dtype) == expected).all()


def test_the_encoder_page_encodes_a_long_recording_in_windows() -> None:
    """The windows of two passes keep every frame once."""
    printed = run_python(ROOT / "docs" / "encoder.md")
    kept = re.findall(r"frames from (\d+) on: \(12, (\d+), 48\)", printed)
    assert len(kept) > 1
    stops = [int(start) + int(n) for start, n in kept]
    assert [int(start) for start, _ in kept] == [0, *stops[:-1]]
    assert stops[-1] == (10 * 16_000 - 400) // 320 + 1


def test_the_page_on_copies_runs(tmp_path, monkeypatch) -> None:
    """Its commands and its Python, on stores that have what they name."""
    columns = pa.table({"speaker": ["ann", "bob", "ann"]})
    make_store(tmp_path / "features", [60, 30, 70], range(5, 8), columns=columns)
    for name in ("clean-100", "clean-360"):
        make_store(tmp_path / name, [20])
    monkeypatch.chdir(tmp_path)
    page, answers = ROOT / "docs" / "copies.md", []
    for line in next(block.text for block in blocks(page) if block.language == "bash").splitlines():
        done = CliRunner().invoke(app, [*shlex.split(line)[1:], "--json"])
        answers.append((done.exit_code, json.loads(done.stdout)))
    assert [code for code, _ in answers] == [0, 1, 0, 0]
    assert "prefix=true" in answers[1][1]["error"]  # the stores of this test have the same ids
    assert pipeline.open_store("ann").ids == ["utt-0000", "utt-0002"]
    assert pipeline.open_store("means").statistics == ("mean", "std")
    assert run_python(page) == "3 utterances, 0.0 MB of int8\n"


def test_the_page_on_dropping_runs(tmp_path, monkeypatch) -> None:
    """Its commands and its Python, on a store that has what they name."""
    columns = pa.table({"speaker": ["ann", "bob", "ann", "cas"]})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "withdrawn.txt").write_text("utt-0001\n")
    make_store(tmp_path / "features", [60, 30, 70, 9], range(1, 6), columns=columns)
    page, answers = ROOT / "docs" / "drop.md", []
    for line in next(block.text for block in blocks(page) if block.language == "bash").splitlines():
        command = [*shlex.split(line, comments=True)[1:], "--json"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        answers.append(json.loads(done.stdout))
    assert [answer["confirmed"] for answer in answers] == [False, True, True, True]
    assert [answer["utterances"] for answer in answers] == [2, 2, 1, 0]
    store = pipeline.open_store("features")
    assert (store.ids, store.layers) == (["utt-0003"], (4, 5))
    make_store(tmp_path / "second/features", [60, 30, 70], columns=columns.slice(0, 3))
    monkeypatch.chdir(tmp_path / "second")
    assert run_python(page) == "2 utterances, 3 s, 0.0 MB\n"


@pytest.mark.slow
def test_the_export_page_writes_and_reads_every_format(tmp_path, monkeypatch) -> None:
    """Its commands and its Python run in order, and frames are one layer of the same utterance."""
    columns = pa.table({"speaker": ["ann", "bob"], "text": ["one", "two"]})
    make_store(tmp_path / "features", [20, 30], range(1, 13), dim=768, columns=columns)
    monkeypatch.chdir(tmp_path)
    page, names, shapes = ROOT / "docs" / "export.md", {}, []
    for block in blocks(page):
        if block.language == "bash":
            done = CliRunner().invoke(app, shlex.split(block.text)[1:])
            assert done.exit_code == 0, done.output
        else:
            exec(compile("\n" * block.line + block.text, page, "exec"), names)
            shapes.append((str(names["frames"].dtype), tuple(names["frames"].shape)))
    half, single = (20, 768), "float16"
    assert shapes == [
        (single, half),
        ("torch.float16", (12, *half)),
        ("float32", half),
        (single, half),
        (single, half),
    ]
    assert names["speaker"] == "ann"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_on_a_page_exist(page: Path) -> None:
    """Whatever begins with a folder of the repository, and every target of a link."""
    named = re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]*", page.read_text())
    links = re.findall(r"\]\(([^)#:]+)[)#]", page.read_text())
    assert not [name for name in named if not list(ROOT.glob(name.rstrip(".")))]
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_named_on_a_page_exist(page: Path) -> None:
    """`pipeline.a.b` is a module, or something in one."""
    for name in re.findall(r"`(pipeline(?:\.\w+)+)", page.read_text()):
        module, _, rest = name.partition(".")
        found: Any = importlib.import_module(module)
        for part in rest.split("."):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(f"{module}.{part}")
            found = getattr(found, part)
            module = f"{module}.{part}"


def steps() -> list[tuple[str, str]]:
    """File and function of each step on the architecture page."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    return re.findall(r"\| `(pipeline/[\w/]+)\.py` \| `([\w.]+)` \|$", page, re.M)


@pytest.mark.parametrize(("file", "function"), steps())
def test_every_step_of_a_clip_is_where_the_page_says(file: str, function: str) -> None:
    """The function is defined in that file."""
    found: Any = importlib.import_module(file.replace("/", "."))
    for part in function.split("."):
        found = getattr(found, part)
    assert found.__module__ == file.replace("/", ".")


def test_the_architecture_page_lists_the_encoders_files() -> None:
    """Every file of `pipeline/encoders` has a row, and every row has a file."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    folder = ROOT / "pipeline" / "encoders"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    listed = set(re.findall(r"^\| `([\w/]+\.py)` \|", page, re.M))
    assert listed == {name for name in files if not name.endswith("__init__.py")}


def test_the_imports_on_the_architecture_page_are_the_tested_ones() -> None:
    """The table of packages equals `MAY_IMPORT`, without the modules that all may import."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = re.findall(r"^\| `([\w/]+)` \| [^|]* \| (.*) \|$", page, re.M)
    shown = {name: set(re.findall(r"`([\w/]+)`", imports)) for name, imports in table}
    assert shown.pop("cli") == set()
    assert shown == {name: MAY_IMPORT[name] - BOTTOM for name in MAY_IMPORT.keys() - BOTTOM}


def settings(config: type, prefix: str = "") -> Iterator[str]:
    """Names of all settings of a configuration, e.g. `extract.layers`."""
    hints = get_type_hints(config)
    for item in fields(config):
        kind = hints[item.name]
        if is_dataclass(kind) and isinstance(kind, type):
            yield from settings(kind, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


def test_every_setting_is_on_the_configuration_page() -> None:
    """And none that there is not."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    tables = "".join(re.findall(r"^\| (`.*?`) \|", page, re.M))
    known = {*settings(Config), *settings(SweepConfig)}
    assert set(re.findall(r"`([\w.]+)`", tables)) == known | {"task"}
