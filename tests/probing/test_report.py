"""The report of a sweep: its text, its charts, and how a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html import unescape
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline.probing.report.charts import COLOURS
from pipeline.probing.report.html import _DARK, _SCRIPT, element, table
from pipeline.probing.report.prediction_charts import confusion_chart
from pipeline.probing.report.sweep_charts import curves_chart, draw_charts, scores_chart
from pipeline.probing.report.sweep_report import headline, report_body, significance, write_report
from pipeline.probing.results import WEIGHTED, Comparison
from tests.helpers.browser import browse, find_browser, measure, served
from tests.helpers.charts import rendered, unrendered
from tests.helpers.fake_sweep import class_sweep, text_sweep

HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "$x_1$ & \"co\" 'q'",
    "tab\tbell\x07\nline",
    "二",
    "n" * 80,
)
"""Class names that could break a page, a chart or a line."""
needs_browser = pytest.mark.skipif(
    find_browser() is None, reason="no chromium or google-chrome on PATH (.ci/run installs one)"
)


@pytest.fixture(scope="module", autouse=True)
def rendered_charts(unrendered_charts):
    """Render the charts of all tests here."""
    with rendered():
        yield


@pytest.fixture(scope="module")
def classes():
    return class_sweep()


@pytest.fixture(scope="module")
def texts():
    return text_sweep()


@pytest.fixture(scope="module")
def class_folder(classes, tmp_path_factory):
    """A shared report; tests do not change it."""
    folder = tmp_path_factory.mktemp("classes")
    write_report(classes, folder)
    return folder


@pytest.fixture(scope="module")
def text_folder(texts, tmp_path_factory):
    """A shared report; tests do not change it."""
    folder = tmp_path_factory.mktemp("texts")
    write_report(texts, folder)
    return folder


@pytest.fixture(scope="module")
def small():
    """A sweep that is fast to draw."""
    return class_sweep(n_layers=2, seeds=(0,), classes=("no", "yes"))


@pytest.fixture(scope="module")
def small_charts(small):
    """Its charts, for tests of the text around them."""
    return draw_charts(small)


def words_of(html: str) -> str:
    """Return the text of a page, without tags."""
    text = re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]+>", " ", html, flags=re.S)
    return " ".join(text.split())


def test_every_candidate_is_in_the_table(classes, class_folder):
    """A row has learning rate, dev, test, interval and macro-F1; only the best is marked."""
    html = (class_folder / "report.html").read_text()
    rows = re.findall(r"<tr[^>]*>(?:<td[^>]*>[^<]*</td>)+</tr>", html)
    for score in classes.scores:
        name = "weighted sum" if score.layer == WEIGHTED else f"layer {score.layer}"
        name += ", best by dev" if score.layer == classes.best else ""
        [row] = [row for row in rows if re.match(rf"<tr[^>]*><td>{name}<", row)]
        cells = re.findall(r"<td[^>]*>([^<]*)</td>", row)
        assert cells == [
            name,
            "0.001",
            f"{score.dev:.3f}",
            f"{score.test:.3f}",
            f"{score.low:.3f} to {score.high:.3f}",
            f"{score.seed_sd:.3f}",
            f"{score.extra['macro_f1']:.3f}",
        ]
    assert html.count('<tr class="best">') == 1


def test_the_files(class_folder, text_folder):
    """Every chart is there as PDF, SVG and CSV, and as wide SVG with text and PNG of some size."""
    names = {"scores", "weights", "curves", "confusion"}
    for folder, expected in ((class_folder, names), (text_folder, names - {"confusion"})):
        assert {path.name for path in folder.iterdir()} == {
            *("report.html", "methods.txt", "tables", "figures"),
        }
        figures = folder / "figures"
        endings = (".pdf", ".svg", ".csv", "-wide.svg", "-wide.png")
        wanted = {f"{name}{ending}" for name in expected for ending in endings}
        assert {path.name for path in figures.iterdir()} == wanted
        for name in expected:
            root = ElementTree.fromstring((figures / f"{name}-wide.svg").read_bytes())
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            texts_in_it = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
            assert texts_in_it & {"layer", "step", "predicted word"}
            with Image.open(figures / f"{name}-wide.png") as image:
                image.verify()
                assert min(image.size) > 300


def test_the_same_sweep_gives_the_same_bytes(texts, text_folder, tmp_path):
    """The files have no dates, random ids or counters."""
    write_report(texts, tmp_path)
    paths = [path for path in text_folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in paths} >= {".pdf", ".tex", ".html"}
    for path in paths:
        same = tmp_path / path.relative_to(text_folder)
        assert path.read_bytes() == same.read_bytes(), path.name


def test_it_is_self_contained(class_folder, text_folder):
    """The page has no external references and one known script; a policy forbids all else."""
    for folder in (class_folder, text_folder):
        html = (folder / "report.html").read_text()
        assert "default-src 'none'" in html
        assert html.count(f"<script>{_SCRIPT}</script>") == 1
        digest = hashlib.sha256(_SCRIPT.encode()).digest()
        assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'\"" in html
        html = html.replace(f"<script>{_SCRIPT}</script>", "")
        assert not re.findall(r"<(script|link|img|iframe|object|embed|base|form)\b", html)
        assert not re.findall(r"https?:|@import|\bsrc\s*=|\bon\w+\s*=\s*[\"']", html)
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', html))
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
        ids = re.findall(r'\bid="([^"]*)"', html)
        assert len(ids) == len(set(ids))
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
        assert used
        assert set(used) <= set(ids)


def test_text_from_data_is_escaped(small_charts, tmp_path):
    """Class names, ids, stores and warnings do not become markup, formulas or line breaks."""
    made = class_sweep(classes=HOSTILE_NAMES, n_layers=2, seeds=(0,))
    sweep = replace(made, store='a"<b>', warnings=("<i>beware</i>",), labels=("<u>",))
    with rendered(["svg"]):
        path = write_report(sweep, tmp_path)
    html = path.read_text().replace(f"<script>{_SCRIPT}</script>", "")
    assert not re.findall(r"<(script|i|b|u)\b", html)
    assert "&lt;script&gt;" in html
    assert "&lt;i&gt;beware&lt;/i&gt;" in html
    root = ElementTree.fromstring((tmp_path / "figures" / "confusion.svg").read_bytes())
    shown = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"$x_1$ & \"co\" 'q'", "tab bell line", "二", "n" * 21 + "…"} <= shown
    predictions = ("</td><script>",) * 60
    texts = text_sweep(n_layers=2, seeds=(0,))
    heads = tuple(replace(head, predictions=predictions) for head in texts.heads)
    html = report_body(replace(texts, heads=heads), small_charts)
    assert "&lt;/td&gt;&lt;script&gt;" in html
    assert "<script" not in html


def test_warnings_come_first(small, small_charts):
    """Warnings precede the title, as an alert; without warnings there is no alert."""
    assert 'role="alert"' not in report_body(small, small_charts)
    html = report_body(replace(small, warnings=("weights are RANDOM",)), small_charts)
    assert 'role="alert"' in html
    assert html.index("weights are RANDOM") < html.index("<h1")


def test_it_says_whether_a_difference_is_significant(classes):
    """A better test score without a small p-value is not called significant."""
    assert (
        "p = 0.41, McNemar's test): the difference between layer 9 and layer 10 is not significant"
        in " ".join(significance(classes))
    )
    inside = "layer 7, layer 8, layer 10, layer 11, the weighted sum"
    assert significance(classes)[1] == f"Test scores within the interval of the best: {inside}."
    sure = replace(classes, comparison=Comparison(9, WEIGHTED, 0.02, 0.001, "McNemar's test"))
    assert "layer 9 is better by 0.020 (p = 0.001" in significance(sure)[0]
    assert "the difference is significant" in significance(sure)[0]
    wrong = replace(classes, comparison=Comparison(9, WEIGHTED, -0.02, 0.001, "McNemar's test"))
    assert "layer 9 is worse by 0.020" in significance(wrong)[0]
    assert "the weighted sum may be the better choice" in significance(wrong)[0]
    close = replace(classes, comparison=Comparison(9, 8, 0.0001, 0.9, "McNemar's test"))
    assert "better by less than 0.001" in significance(close)[0]
    unknown = replace(classes, comparison=Comparison(9, 8, 0.0, float("nan"), "McNemar's test"))
    assert "between layer 9 and layer 8 is not significant" in significance(unknown)[0]
    assert "only one candidate" in significance(replace(classes, comparison=None))[0]


def test_lower_is_better_for_error_rates(texts, text_folder):
    """A negative difference is an improvement, and the axis names the better direction."""
    assert "layer 9 is better by 0.003" in significance(texts)[0]
    assert "test character error rate 0.0" in headline(texts)
    words = words_of((text_folder / "report.html").read_text())
    assert "character error rate (lower is better)" in words
    assert "test word error rate" in words
    assert "higher is better" not in words


def test_text_tasks_show_predictions(texts, text_folder):
    """References and predictions of some test utterances belong to their ids."""
    html = (text_folder / "report.html").read_text()
    rows = re.findall(r"<td>(clip-\d+)</td><td>([^<]*)</td><td>([^<]*)</td>", html)
    assert len(rows) == 8
    for name, reference, predicted in rows:
        at = texts.test_ids[0].index(name)
        assert reference == texts.truth[0][at]
        assert predicted == texts.heads[0].predictions[at]


def test_many_classes_become_a_list_of_confusions(tmp_path):
    """With more than 40 classes, the most frequent confusions are listed instead of drawn."""
    names = [f"speaker {i}" for i in range(120)]
    sweep = class_sweep(n_layers=2, classes=names, n_test=2000, seeds=(0,))
    counts = np.array(sweep.confusion)
    counts[17, 90] = 55
    sweep = replace(sweep, confusion=tuple(tuple(row) for row in counts.tolist()))
    with unrendered():
        html = write_report(sweep, tmp_path).read_text()
    assert not (tmp_path / "figures" / "confusion.svg").exists()
    assert "120 classes are too many to draw" in html
    first = re.search(r"<td>(speaker \d+)</td><td>(speaker \d+)</td><td[^>]*>(\d+)</td>", html)
    assert first is not None
    assert first.groups() == ("speaker 17", "speaker 90", "55")


@pytest.mark.parametrize("n_classes", [2, 40])
def test_few_and_just_enough_classes_are_drawn(n_classes):
    """Two and forty classes are drawn; for two, every count is shown."""
    sweep = class_sweep(n_layers=2, classes=[f"c{i}" for i in range(n_classes)])
    svg = confusion_chart(sweep).svg.decode()
    if n_classes == 2:
        assert all(f">{count}<" in svg for row in sweep.confusion for count in row if count)
    assert "c1" in svg


def test_one_candidate_is_enough(tmp_path):
    """A collapsed store has one layer without a number, and a report without comparison."""
    made = class_sweep(n_layers=1, seeds=(0,))
    [score] = [replace(s, layer="collapsed") for s in made.scores if s.layer == 1]
    heads = tuple(replace(h, layer="collapsed") for h in made.heads if h.layer == 1)
    sweep = replace(
        made,
        scores=(score,),
        heads=heads,
        best="collapsed",
        comparison=None,
        layer_weights=None,
        baselines={},
    )
    with rendered(["svg"]):
        words = words_of(write_report(sweep, tmp_path).read_text())
    assert "The collapsed layer has the best dev score" in words
    assert "strata collapse" not in words
    only_sum = [s for s in made.scores if s.layer == WEIGHTED]
    alone = replace(made, scores=tuple(only_sum), best=WEIGHTED, comparison=None)
    assert "The weighted sum has the best dev score" in report_body(
        alone, {"scores": scores_chart(alone), "curves": curves_chart(alone)}
    )


def test_curves_leave_out_losses_that_are_not_finite(small):
    """Infinite and NaN points are left out, and the rest is unchanged."""
    burst = ((1, float("inf"), 0.9), (2, float("nan"), 0.9), (3, 0.5, float("nan")))
    broken = tuple(replace(head, curve=(*burst, *head.curve)) for head in small.heads)
    assert curves_chart(replace(small, heads=broken)).svg == curves_chart(small).svg
    diverged = tuple(
        replace(head, curve=burst, dev=float("nan")) if head.layer == 2 else head
        for head in small.heads
    )
    svg = curves_chart(replace(small, heads=diverged)).svg.decode()
    assert "layer 1" in svg
    assert "layer 2" not in svg


def test_it_lists_the_next_steps(class_folder, small, small_charts):
    """The page has code that reads the best layer, and the command that collapses the store."""
    words = words_of((class_folder / "report.html").read_text())
    assert "layers=[9]" in words
    assert "strata collapse features/hubert_base OUT weights=weights.json" in words
    words = words_of(report_body(replace(small, best=WEIGHTED, store="my store"), small_charts))
    assert "store.weighted_sum(store.ids[0], weights)" in words
    assert "strata layers &#39;my store&#39;" in words


def test_table_cells_are_formatted_and_escaped():
    """Floats have three decimals, a missing value is a dash, text is escaped once."""
    html = table(["a", "b"], [[0.12345, None], [float("nan"), "<x>"]])
    assert re.findall(r"<td[^>]*>(.*?)</td>", html) == ["0.123", "–", "–", "&lt;x&gt;"]
    assert element("p", element("b", "<x>")) == "<p><b>&lt;x&gt;</b></p>"


def test_charts_take_the_colours_of_the_page(class_folder, text_folder):
    """Every colour is a CSS variable, so that charts are readable on a dark page."""
    for folder in (class_folder, text_folder):
        drawn = re.findall(r"<svg.*?</svg>", (folder / "report.html").read_text(), re.DOTALL)
        assert len(drawn) >= 3
        for svg in drawn:
            assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)
            assert "var(--ink)" in svg
            assert set(re.findall(r"var\(--(\w+)\)", svg)) <= _DARK.keys()


@pytest.mark.parametrize("colours", [COLOURS, _DARK], ids=["light", "dark"])
def test_colours_contrast_with_the_paper(colours):
    """Contrast follows WCAG: 4.5 for text, including labels of lines, 3 for graphics."""
    assert colours.keys() == COLOURS.keys()
    for name in ("ink", "muted", "blue", "green", "purple"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    assert contrast(colours["orange"], colours["paper"]) >= 3


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours by WCAG 2."""
    levels = []
    for colour in (one, other):
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(levels) + 0.05) / (min(levels) + 0.05)


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("kind", ["classes", "texts"])
def test_a_browser_shows_every_chart_and_loads_nothing_else(kind, class_folder, text_folder):
    """In wide and narrow windows, charts have some size, no text is cut, nothing is loaded."""
    folder, n_charts = (class_folder, 4) if kind == "classes" else (text_folder, 3)
    with served(folder) as site:
        for width in (1100, 400):
            seen = measure(site, width)
            assert len(seen["charts"]) == n_charts
            for chart in seen["charts"]:
                assert chart["width"] > 300
                assert chart["height"] > 150
                assert chart["drawn"] > 30
                assert chart["outside"] == []
            assert seen["needed"] <= seen["room"], "the page is wider than its window"
            assert seen["loaded"] == 0
        assert site.asked_by_pages() == {
            "http://report.test/measure.html",
            "http://report.test/report.html",
        }


SORT = """<!doctype html>
<iframe id="page" src="/report.html" style="width: 1000px; height: 2000px"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("page").onload = function () {
  const inner = this.contentDocument;
  const table = inner.querySelector("table.sortable");
  const orders = [];
  for (const name of ["test", "test", "candidate", "candidate", "learning rate"]) {
    const buttons = [...table.querySelectorAll("th button")];
    buttons.find((button) => button.textContent === name).click();
    const column = [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
    const marks = [...table.querySelectorAll("th")].map((head) => head.ariaSort);
    orders.push([column, marks]);
  }
  document.getElementById("found").textContent = JSON.stringify(orders);
};
</script>"""
"""A page that clicks on the headings of the table of scores."""


@pytest.mark.browser
@needs_browser
def test_a_browser_sorts_the_scores(classes, tmp_path):
    """A click on a heading sorts 25 layers by its column, the next one backwards; gaps are last."""
    made = class_sweep(n_layers=25, seeds=(0,))
    scores = (replace(made.scores[0], lr=0.0), *made.scores[1:])
    with unrendered():
        path = write_report(replace(made, scores=scores), tmp_path)
    assert path.read_text().count('class="sortable"') == 1
    with served(tmp_path) as site:
        site.pages["/sort.html"] = SORT
        dom = browse(site, "/sort.html", "--dump-dom")
    text = unescape(dom.partition('<pre id="found">')[2].partition("</pre>")[0])
    ascending, descending, by_name, backwards, by_rate = json.loads(text)
    of_name = {name_of(score.layer, made): round(score.test, 3) for score in scores}
    assert len(of_name) == 26
    tests = [of_name[name] for name in ascending[0]]
    assert tests == sorted(tests)
    assert [of_name[name] for name in descending[0]] == tests[::-1]
    assert ascending[1].count("ascending") == descending[1].count("descending") == 1
    names = [name_of(score.layer, made) for score in scores]
    assert by_name[0] == names
    assert backwards[0] == names[::-1]
    assert by_rate[0][-1] == "layer 1"


def name_of(layer, sweep) -> str:
    """Return what the table calls a candidate."""
    name = "weighted sum" if layer == WEIGHTED else f"layer {layer}"
    return name + (", best by dev" if layer == sweep.best else "")


@pytest.mark.browser
@needs_browser
def test_a_browser_paints_light_and_dark(class_folder, tmp_path):
    """Paper and test scores have the colours of the reader's scheme."""
    for flags, colours in (((), COLOURS), (("--force-dark-mode",), _DARK)):
        with served(class_folder) as site:
            shot = tmp_path / "shot.png"
            browse(site, "/report.html", f"--screenshot={shot}", "--window-size=1000,1600", *flags)
        pixels = np.asarray(Image.open(BytesIO(shot.read_bytes())).convert("RGB")).reshape(-1, 3)
        for name, least in (("paper", 1e5), ("blue", 300), ("green", 300)):
            wanted = [int(colours[name][i : i + 2], 16) for i in (1, 3, 5)]
            assert (pixels == wanted).all(1).sum() > least, name


@pytest.mark.browser
@needs_browser
def test_the_browser_test_detects_a_request(tmp_path):
    """A page that loads pictures over http or https is detected."""
    with served(tmp_path) as site:
        site.pages["/report.html"] = (
            '<img src="http://elsewhere.test/a.png"><img src="https://secret.test/b.png">'
        )
        assert measure(site, 800)["loaded"] > 0
        asked = site.asked_by_pages()
    assert {"http://elsewhere.test/a.png", "secret.test:443"} <= asked
