"""The report of a comparison: page, charts, tables, and how a browser shows it."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from pipeline.comparing.building import compare
from pipeline.comparing.reading import StoredSweep
from pipeline.comparing.report.grid import markdown_of, write_grid
from pipeline.comparing.report.grids import draw_grids
from pipeline.comparing.report.sentences import head_line, headline, methods, pair_line, title
from pipeline.comparing.report.writing import draw_charts, report_body, write_comparison
from pipeline.probing.report import html
from tests.helpers.browser import browse, measure, served
from tests.helpers.charts import rendered
from tests.helpers.invented_sweeps import invented_sweep
from tests.probing.test_report import needs_browser, words_of

TASKS = ("ks", "er", "ic", "sid", "lid")


def comparison_of(*sweeps):
    """Compare sweeps that need no folders."""
    return compare([StoredSweep(sweep, Path(f"sweeps/{i}")) for i, sweep in enumerate(sweeps)])


@pytest.fixture(scope="module", autouse=True)
def rendered_charts(unrendered_charts):
    """Render the charts of all tests here."""
    with rendered():
        yield


@pytest.fixture(scope="module")
def large():
    """Three encoders of 25 layers, or 13, on five tasks."""
    return comparison_of(
        *(
            invented_sweep(task, model, n_layers, level, best=best, n_test=150, seeds=(0,))
            for number, task in enumerate(TASKS)
            for model, n_layers, level, best in (
                ("hubert_large", 24, 0.85, 18 - number),
                ("wavlm_large", 24, 0.86, 12 + number),
                ("hubert_base", 12, 0.7, 9),
            )
        )
    )


@pytest.fixture(scope="module")
def folder(large, tmp_path_factory):
    """Its report, without figures/, which take seconds; tests do not change it."""
    path = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(html, "write_figures", lambda *_: None)
        write_comparison(large, path)
    return path


@pytest.fixture(scope="module")
def small():
    """Two encoders of two layers on two tasks."""
    return comparison_of(
        *(
            invented_sweep(task, model, 2, n_test=40)
            for task in ("ks", "er")
            for model in ("a", "b")
        )
    )


@pytest.fixture(scope="module")
def small_folder(small, tmp_path_factory):
    """Its report; tests do not change it."""
    path = tmp_path_factory.mktemp("small")
    write_comparison(small, path)
    return path


@pytest.fixture(scope="module")
def varied():
    """Two encoders with two heads, and three shares of train; lower levels with fewer labels."""
    sweeps = [
        invented_sweep(
            model=model, head=head, fraction=share, level=level - 0.1 * (1 - share), seeds=(0,)
        )
        for model, level in (("a", 0.8), ("b<i>", 0.7))
        for head in ("linear", "mlp")
        for share in (1.0, 0.5, 0.125)
    ]
    return comparison_of(*sweeps)


@pytest.fixture(scope="module")
def varied_page(varied):
    """Its page, without tags."""
    return words_of(report_body(varied, draw_charts(varied), draw_grids(varied)))


def test_the_files(small_folder):
    """A chart per task, the map of best layers, tables in three forms, all numbers."""
    folder = small_folder
    names = {path.name for path in folder.iterdir()}
    assert names == {"report.html", "comparison.json", "methods.txt", "figures", "tables"}
    charts = {"layers-ks", "layers-er", "best-layers"}
    endings = (".pdf", ".svg", ".csv", "-wide.svg", "-wide.png")
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {f"{name}{ending}" for name in charts for ending in endings}
    tables = {path.name for path in (folder / "tables").iterdir()}
    grids = ("leaderboard", "pairs", "scores")
    assert tables == {f"{name}.{ending}" for name in grids for ending in ("tex", "md", "csv")}
    assert json.loads((folder / "comparison.json").read_text())["encoders"] == ["a", "b"]


def test_the_page_is_small_and_self_contained(folder):
    """Three encoders, 24 layers and five tasks take less than two megabytes, without network."""
    page = (folder / "report.html").read_text()
    assert len(page) < 2e6
    assert not re.findall(r"https?:|@import|\bsrc\s*=", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_the_leaderboard_has_best_layer_and_weighted_sum(large):
    """A row per encoder and two columns per task; the best and what is like it are bold."""
    grid = draw_grids(large)["leaderboard"]
    assert [row[0] for row in grid.rows] == ["hubert_large", "wavlm_large", "hubert_base"]
    assert grid.head[:3] == ("encoder", "ks: best layer", "ks: weighted sum")
    assert len(grid.head) == 1 + 2 * len(TASKS)
    first = large.tasks[0].variants[0]
    best = first.best_layer
    assert grid.rows[0][1] == f"{best.test:.3f} [{best.low:.3f}, {best.high:.3f}], layer 18"
    for row, column in grid.bold:
        task = large.tasks[(column - 1) // 2]
        variant = task.variants[row]
        assert task.is_best(variant)
        assert (variant.best.layer == "weighted") == (column % 2 == 0)
    assert {row for row, _ in grid.bold} == {0, 1}
    assert len(grid.bold) == 2 * len(TASKS)


def test_a_missing_sweep_leaves_a_gap():
    """An encoder without a sweep of a task."""
    found = comparison_of(
        invented_sweep("ks", "a"), invented_sweep("er", "a"), invented_sweep("er", "b")
    )
    grid = draw_grids(found)["leaderboard"]
    assert grid.rows[1][:3] == ["b", "", ""]
    page = report_body(found, draw_charts(found), draw_grids(found))
    assert "<tr><td>b</td><td>–</td><td>–</td>" in re.sub(r' class="\w*"', "", page)


def test_the_csv_files_have_all_numbers(large, folder):
    """In full precision: each candidate of each variant, and each pair."""
    with (folder / "tables/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * (25 + 25 + 13)
    score = large.tasks[0].variants[0].sweep.scores[0]
    assert float(rows[0]["test"]) == score.test
    with (folder / "tables/pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 5 * 3
    assert float(pairs[0]["p_value_holm"]) == large.tasks[0].pairs[0].adjusted
    numbers = draw_charts(large)["layers-er"].numbers
    assert len(numbers.values) == 25 + 25 + 13


def test_tables_escape_what_comes_from_data(varied, varied_page):
    """Names of encoders do not become markup of LaTeX, Markdown or HTML."""
    grids = draw_grids(varied)
    assert r"b\<i\>" in markdown_of(grids["leaderboard"])
    assert "b&lt;i&gt;" in varied_page


def test_learning_curves_are_drawn_and_listed(varied, varied_page):
    """A line per encoder and head, a row per size; the CSV has every layer."""
    charts, grids = draw_charts(varied), draw_grids(varied)
    chart = charts["learning-curves"]
    assert len(chart.numbers.values) == 12 * 13
    rows = grids["learning_curves"].rows
    assert len(rows) == 12
    assert [row[2:4] for row in rows[:3]] == [
        ["12.5 %", "200"],
        ["50 %", "800"],
        ["100 %", "1,600"],
    ]
    svg = chart.svg.decode()
    for text in ("a / linear", "a / mlp", "200", "1,600", "training utterances"):
        assert f">{text}<" in svg
    assert "Learning curves" in varied_page
    assert "shares of train (12.5 %, 50 % and 100 %)" in varied_page


def test_it_says_whether_the_best_layer_changes(varied_page):
    """In a section of its own, for each encoder."""
    assert "Does the best layer change with the head?" in varied_page
    assert "a: layer 9 is best with linear and with mlp." in varied_page
    other = invented_sweep(head="mlp", best=4, level=0.9)
    [task] = comparison_of(invented_sweep(), other).tasks
    line = head_line(task, task.head_changes[0])
    assert line.startswith("hubert_base: layer 9 is best with linear, layer 4 with mlp. With mlp, ")
    assert "layer 4 is better than layer 9 on test by 0." in line


def test_sentences_state_what_was_found(large):
    """The winner, what does not differ from it, and each test with its corrected p-value."""
    task = large.tasks[0]
    assert title(large) == "Which encoder is best over 5 tasks?"
    line = headline(task)
    assert re.match(
        r"ks: of the candidates that dev chose, \w+_large with (the weighted sum|layer \d+) has "
        "the best test score",
        line,
    )
    assert "not significantly different from" in line
    found = pair_line(task, task.pairs[1])
    assert re.search(
        r"hubert_large \(.*\) is better by 0\.\d+ than hubert_base .* significant\.", found
    )
    assert ": p < 0.0001, corrected 0.5 (paired sign-flip" in pair_line(
        task, replace(task.pairs[1], p_value=1 / 20_001, adjusted=0.5)
    )
    text = methods(large)
    assert "15 sweeps of hubert_large, wavlm_large and hubert_base were compared on 5 tasks" in text
    assert "corrected by Holm's method for the number of tests of a task (3 for ks, " in text
    alone = comparison_of(invented_sweep())
    assert "tested" not in headline(alone.tasks[0])
    assert "There are no two sweeps" in report_body(alone, draw_charts(alone), draw_grids(alone))


def test_methods_state_each_fact_once_with_what_it_is_about():
    """Layers, weights, seeds, heads and speakers are as in the paragraph of a sweep."""
    sweeps = [
        replace(sweep, setup=replace(sweep.setup, speakers={"train": 9, "dev": 2, "test": 3}))
        for sweep in (
            invented_sweep(task, model, 6, head=head)
            for task, head in (("ks", "linear"), ("er", "linear"), ("ic", "mlp"))
            for model in ("a", "b")
        )
    ]
    text = methods(comparison_of(*sweeps))
    for model in ("a", "b"):
        line = (
            f"{model}: The features are the outputs of layers 1 to 6 (raw outputs of the "
            f"Transformer blocks, without a final layer norm) of {model} with pretrained weights "
            f"(SHA-256 {model:0<16}), computed in fp32 and stored as float16."
        )
        assert text.count(line) == 1
    assert text.count("ks and er: Each utterance is represented by the mean") == 1
    assert text.count("ic: Each utterance") == 1
    assert "A head is a hidden layer of 256 dimensions with ReLU" in text
    assert text.count("Heads are trained by Adam at a constant learning rate of 0.01") == 1
    assert text.count("averaged over the seeds 0 and 1.") == 1
    assert "9 in train, 2 in dev and 3 in test" in text


def test_random_weights_are_in_every_caption_and_in_the_methods():
    """A table of a paper that was made of random weights cannot be taken for a result."""
    found = comparison_of(
        *(invented_sweep(task, "tiny", 2, weights="random") for task in ("ks", "er")),
        invented_sweep("ks", "other", 2),
    )
    for grid in draw_grids(found).values():
        for table in (grid, *grid.parts):
            assert table.caption.startswith("RANDOM WEIGHTS, so scores say nothing about a trained")
            assert "trained encoder: tiny. " in table.caption
    assert "tiny: The features are" in methods(found)
    assert methods(found).count("The weights of the encoder are random") == 1
    assert "RANDOM" not in draw_grids(comparison_of(invented_sweep()))["leaderboard"].caption


def test_latex_has_a_leaderboard_of_each_task(small, tmp_path):
    """One of all tasks is wider than a page; Markdown and CSV have all."""
    write_grid(draw_grids(small)["leaderboard"], tmp_path, "1")
    latex = (tmp_path / "leaderboard.tex").read_text()
    assert re.findall(r"label\{(.*)\}", latex) == ["tab:leaderboard-1", "tab:leaderboard-2"]
    first, second = latex.split(r"\end{table}")[:2]
    assert "ks: weighted sum" in first
    assert "er" not in re.findall(r"(\w+): weighted sum", first)
    assert "er: weighted sum" in second
    assert "ks: weighted sum | er: best layer" in (tmp_path / "leaderboard.md").read_text()


def test_an_encoder_has_one_name_in_tables_and_sentences():
    """Also if each task has another head, which then tells nothing apart."""
    found = comparison_of(
        *(
            invented_sweep(task, model, 6, head=head)
            for task, head in (("ks", "linear"), ("er", "mlp"))
            for model in ("a", "b")
        )
    )
    assert [row[0] for row in draw_grids(found)["leaderboard"].rows] == ["a", "b"]
    assert {v.name for task in found.tasks for v in task.variants} == {"a", "b"}
    both = comparison_of(
        *(invented_sweep("ks", "a", 6, head=head) for head in ("linear", "mlp")),
        invented_sweep("er", "a", 6),
    )
    rows = [row[0] for row in draw_grids(both)["leaderboard"].rows]
    assert rows == ["a / linear", "a / mlp"]
    assert {v.name for task in both.tasks for v in task.variants} == set(rows)
    assert headline(both.tasks[1]).startswith("er: a / linear with ")


def test_one_layer_has_no_best_layer():
    """Neither a section nor a sentence."""
    found = comparison_of(
        *(invented_sweep(head=head, n_layers=1, weighted=False) for head in ("linear", "mlp"))
    )
    assert found.tasks[0].head_changes == ()
    charts, grids = draw_charts(found), draw_grids(found)
    assert "best-layers" not in charts
    assert "Best layers" not in report_body(found, charts, grids)


def test_layers_of_other_depths_share_an_axis(large):
    """Encoders of 12 and 24 layers are drawn by their share of the depth, others by number."""
    charts = draw_charts(large)
    assert ">layer, as a share of the last one<" in charts["layers-ks"].svg.decode()
    same = comparison_of(invented_sweep(model="a"), invented_sweep(model="b"))
    svg = draw_charts(same)["layers"].svg.decode()
    assert ">layer<" in svg
    assert ">sum<" in svg
    assert ">9/12<" in draw_charts(same)["best-layers"].svg.decode()


def test_the_same_comparison_gives_the_same_bytes(small, small_folder, tmp_path):
    """No dates, random ids or counters."""
    write_comparison(small, tmp_path)
    files = [path for path in small_folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        same = tmp_path / path.relative_to(small_folder)
        assert path.read_bytes() == same.read_bytes(), path.name


SORT = """<!doctype html>
<iframe id="page" src="/report.html" style="width: 1000px; height: 2000px"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("page").onload = function () {
  const tables = [...this.contentDocument.querySelectorAll("table.sortable")];
  const orders = tables.map((table) => {
    const buttons = [...table.querySelectorAll("th button")];
    const at = buttons.findIndex((button) => /: weighted sum|^test$|^p$/.test(button.textContent));
    buttons[at].click();
    return [...table.tBodies[0].rows].map((row) => row.cells[at].textContent);
  });
  document.getElementById("found").textContent = JSON.stringify(orders);
};
</script>"""
"""A page that sorts each table by a column of numbers."""


@pytest.mark.browser
@needs_browser
def test_a_browser_shows_and_sorts_three_encoders_on_five_tasks(folder):
    """No text of a chart is cut in wide and narrow windows, nothing is loaded, tables sort."""
    with served(folder) as site:
        for width in (1100, 400):
            seen = measure(site, width)
            assert len(seen["charts"]) == len(TASKS) + 1
            for chart in seen["charts"]:
                assert chart["drawn"] > 15
                assert chart["outside"] == []
            assert seen["needed"] <= seen["room"], "the page is wider than its window"
            assert seen["loaded"] == 0
        site.pages["/sort.html"] = SORT
        dom = browse(site, "/sort.html", "--dump-dom")
        assert all(url.startswith("http://report.test/") for url in site.asked_by_pages())
    text = unescape(dom.partition('<pre id="found">')[2].partition("</pre>")[0])
    orders = json.loads(text)
    assert [len(order) for order in orders] == [3, 15, 5 * (25 + 25 + 13)]
    for order in orders:
        numbers = [float(cell.split()[0]) for cell in order]
        assert numbers == sorted(numbers)
        assert len(set(numbers)) > 1
