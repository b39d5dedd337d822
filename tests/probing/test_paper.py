"""What a paper takes from a sweep: figures of a column, tables, the methods paragraph."""

from __future__ import annotations

import csv
import re
import zlib
from dataclasses import asdict, replace
from io import StringIO
from itertools import pairwise

import matplotlib.text
import pytest
from PIL import ImageColor

from pipeline.config import load_sweep_config
from pipeline.probing.report.charts import COLOURS, COLUMN
from pipeline.probing.report.latex import escaped
from pipeline.probing.report.methods import listed, methods
from pipeline.probing.report.score_tables import caption, latex_of, markdown_of, score_rows
from pipeline.probing.report.sweep_charts import curves_chart, draw_charts, scores_chart
from pipeline.probing.results import WEIGHTED, Setup
from tests.helpers.charts import rendered
from tests.helpers.fake_sweep import class_sweep, text_sweep

SPECIAL = "_ & % $ # { } ~ ^ \\ < > | \" ` -- --- '' ,, [*] é"
"""Characters that mean something in LaTeX or Markdown."""
BASELINES = {
    "chance": 0.1,
    "untrained head, layer 9": 0.12,
    "logistic regression, layer 9": 0.91,
}


@pytest.fixture(scope="module", autouse=True)
def rendered_charts(unrendered_charts):
    """Render the charts of all tests here."""
    with rendered():
        yield


@pytest.fixture(scope="module")
def wide_sweep():
    """A sweep of 25 layers and the weighted sum, with long class names and several baselines."""
    made = class_sweep(n_layers=25, seeds=(0, 1), classes=[f"a long class {i}" for i in range(30)])
    return replace(made, baselines=BASELINES)


@pytest.fixture(scope="module")
def charts(wide_sweep):
    return draw_charts(wide_sweep)


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(content.decode())))


def streams_of(pdf: bytes) -> list[bytes]:
    """Return the contents of a PDF, uncompressed."""
    found = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S)
    return [zlib.decompressobj().decompress(part) for part in found if part[:1] == b"x"]


def printed(latex: str) -> str:
    """Return what LaTeX prints, for what `escaped` may write; refuse all other commands."""
    known = {
        r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
        r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", r"\char34{}": '"',
        r"\char96{}": "`", r"\_": "_", r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#",
        r"\{": "{", r"\}": "}", "{}": "",
    }  # fmt: skip
    pattern = "|".join(re.escape(command) for command in known)
    parts = re.split(f"({pattern})", latex)
    for part in parts[::2]:
        assert not re.search(r"[\\{}_&%$#~^<>|\"`]|--|''|,,", part), part
    return "".join(known.get(part, part) for part in parts)


def test_figures_are_of_a_column_with_embedded_fonts(charts):
    """3.3 inches wide, TrueType fonts of 7 points and more, vectors only, no date."""
    for name in ("scores", "confusion"):
        pdf = charts[name].column_pdf
        assert re.search(rb"/MediaBox \[\s*0 0 237\.6 [\d.]+\s*\]", pdf)
        assert b"/FontFile2" in pdf
        assert b"/Type3" not in pdf
        assert b"/Subtype /Image" not in pdf
        assert b"Date" not in pdf
        drawn = b"\n".join(streams_of(pdf))
        sizes = {float(size) for size in re.findall(rb"([\d.]+) Tf", drawn)}
        assert min(sizes) >= 7, name
        svg = charts[name].column_svg.decode()
        assert 'width="237.6pt"' in svg
        assert "<image" not in svg
        assert "<text" in svg


def test_no_text_is_outside_of_a_narrow_figure(charts, monkeypatch):
    """Nor does a label of the 25 layers or the 30 classes overlap the next one."""
    boxes = []
    draw = matplotlib.text.Text.draw

    def recorded(text, renderer, *args, **kwargs):
        draw(text, renderer, *args, **kwargs)
        if text.get_visible() and text.get_text().strip():
            boxes.append((text.get_text(), text.get_window_extent(renderer)))

    monkeypatch.setattr(matplotlib.text.Text, "draw", recorded)
    for name, chart in charts.items():
        figure = chart.draw(COLUMN)
        figure.draw_without_rendering()  # the first pass makes the layout
        boxes.clear()
        figure.draw_without_rendering()
        room = figure.bbox
        found = dict(boxes)
        for text, box in boxes:
            assert -1 <= box.x0 <= box.x1 <= room.x1 + 1, (name, text)
            assert -1 <= box.y0 <= box.y1 <= room.y1 + 1, (name, text)
        layers = sorted(int(text) for text in found if text.isdigit() and name == "scores")
        for one, other in pairwise(layers):
            assert found[str(one)].x1 < found[str(other)].x0


def test_lines_differ_without_colour(wide_sweep):
    """In grey, the lines of a narrow chart differ by dash or marker."""
    baselines = {"chance": 0.92, "majority class": 0.91, "logistic regression": 0.93}
    figure = scores_chart(replace(wide_sweep, baselines=baselines)).draw(COLUMN)
    lines = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    looks = {(str(line._dash_pattern), line.get_marker()) for line in lines}
    assert len(looks) == len(lines) >= 6
    curves = curves_chart(wide_sweep).draw(COLUMN).axes[0].lines
    named = [line for line in curves if line.get_label().startswith(("layer", "weighted"))]
    assert len({str(line._dash_pattern) for line in named}) == len(named) >= 3
    greys = [ImageColor.getcolor(COLOURS[name], "L") for name in ("blue", "orange", "green")]
    assert max(greys) < 160  # dark enough for print


def test_csv_files_have_the_numbers_of_the_charts(wide_sweep, charts):
    """Every point with its interval, in full precision."""
    rows = rows_of(charts["scores"].numbers.to_csv())
    for row, score in zip(rows[:26], wide_sweep.scores, strict=True):
        assert row["layer"] == ("" if score.layer == WEIGHTED else str(score.layer))
        found = [float(row[name]) for name in ("dev", "test", "test_low", "test_high")]
        assert found == [score.dev, score.test, score.low, score.high]
    assert {row["name"]: float(row["test"]) for row in rows[26:]} == BASELINES
    weights = rows_of(charts["weights"].numbers.to_csv())
    assert [float(row["mean"]) for row in weights] == list(wide_sweep.layer_weights)
    heads = [h for h in wide_sweep.heads if h.layer == WEIGHTED and h.lr == 1e-3]
    assert [float(row["seed 1 fold 0"]) for row in weights] == list(heads[1].layer_weights)
    cells = rows_of(charts["confusion"].numbers.to_csv())
    counts = {(row["true"], row["predicted"]): int(row["count"]) for row in cells}
    assert counts["a long class 3", "a long class 4"] == wide_sweep.confusion[3][4]
    assert len(counts) == 900
    curve = [r for r in rows_of(charts["curves"].numbers.to_csv()) if r["candidate"] == "layer 7"]
    assert len(curve) == 20
    assert sum(row["is_best_step"] == "True" for row in curve) == 1


def test_text_in_latex_prints_as_it_is():
    """Whatever a label contains, without ligatures, commands or line breaks."""
    assert printed(escaped(SPECIAL)) == SPECIAL
    assert escaped("a\nb\x00\tc ") == "a b c"
    assert escaped("10–20 … ±") == r"10--20 \dots{} $\pm$"
    assert escaped("二") == "二"


def test_the_latex_table_is_sound(wide_sweep):
    """Environments nest, each row has all cells, names are escaped, the best by dev is bold."""
    sweep = replace(wide_sweep, labels=(SPECIAL,), split=f"by {SPECIAL}", baselines={"[x]": 0.5})
    text = latex_of(sweep)
    stack, begun = [], []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
            begun.append(name)
        else:
            assert stack.pop() == name
    assert begun == ["table", "tabular"]
    assert not stack
    body = text.partition("\\toprule")[2].partition("\\bottomrule")[0]
    rows = [line.strip().removesuffix(r" \\") for line in body.splitlines() if line.endswith(r"\\")]
    n_columns = len(re.search(r"\\begin\{tabular\}\{@\{\}(\w+)@", text)[1])
    cells = [re.split(r"(?<!\\)&", row) for row in rows]
    assert {len(row) for row in cells} == {n_columns}
    plain = [[printed(re.sub(r"\\textbf\{(.*)\}", r"\1", c.strip())) for c in row] for row in cells]
    for row, score in zip(plain[1:27], sweep.scores, strict=True):
        assert row[2:5] == [
            f"{score.dev:.3f}", f"{score.test:.3f}", f"[{score.low:.3f}, {score.high:.3f}]"
        ]  # fmt: skip
    bold = [row for row in rows if r"\textbf" in row]
    assert len(bold) == 1
    assert f"layer {sweep.best}" in bold[0]
    assert rows[-1].startswith("{}[x]")  # else an argument of the line break
    made = re.search(r"\\caption\{(.*)\}\n", text)[1]
    assert printed(made) == " ".join(caption(sweep).split())
    assert SPECIAL in caption(sweep)
    assert re.search(r"\\label\{tab:[a-z0-9-]+\}", text)
    assert "LuaLaTeX" not in text
    assert "% compile with LuaLaTeX or XeLaTeX, and a font that has: 二" in latex_of(
        replace(sweep, labels=("二",))
    )


def test_the_caption_states_what_a_table_needs(wide_sweep):
    """Metric, direction, encoder, split, sizes, seeds, interval and test."""
    text = caption(wide_sweep)
    for part in (
        "Accuracy (higher is better)",
        "task ks, labels word",
        "Means over 2 seeds (0 and 1); 400 test utterances; split: by the column split",
        "95 % bootstrap over the test utterances, 2,000 resamples",
        "Test of its difference to layer ",
        ", the second on dev: p = 0.41 (McNemar's test).",
    ):
        assert part in text
    one = class_sweep(n_layers=2, seeds=(3,))
    assert "Seed 3; 400 test" in caption(one)
    assert "sd over seeds" not in markdown_of(one)


def test_the_markdown_table(wide_sweep):
    """A caption, a row per candidate and baseline, names escaped, the best by dev in bold."""
    sweep = replace(wide_sweep, labels=("a|b_c",))
    lines = markdown_of(sweep).splitlines()
    assert r"a\|b\_c" in lines[0]
    cells = [re.split(r"(?<!\\)\|", line) for line in lines[2:]]
    assert {len(row) for row in cells} == {len(cells[0])}
    assert len(lines) == 4 + 26 + 3
    assert [line for line in lines if "**" in line] == [lines[3 + sweep.best]]


def test_the_table_of_scores_is_exact(wide_sweep):
    """The CSV file has what the sweep has; a deviation over one seed is missing."""
    rows = rows_of(score_rows(wide_sweep).to_csv())
    for row, score in zip(rows, wide_sweep.scores, strict=True):
        found = [float(row[k]) for k in ("lr", "dev", "test", "low", "high", "seed_sd", "macro_f1")]
        values = [score.lr, score.dev, score.test, score.low, score.high, score.seed_sd]
        assert found == [*values, score.extra["macro_f1"]]
    assert [row["layer"] for row in rows if row["is_best"] == "True"] == [str(wide_sweep.best)]
    assert rows_of(score_rows(class_sweep(n_layers=1, seeds=(0,))).to_csv())[0]["seed_sd"] == ""


def recipe(*overrides: str) -> dict:
    """Return the settings of a task."""
    return asdict(load_sweep_config(overrides).task)


def test_the_methods_follow_from_the_settings():
    """Another setting changes its sentence, and what is unknown is not stated."""
    setup = Setup(
        recipe=recipe("task=ks", "task.pooling=[mean,std]", "task.steps=640", "task.eval_every=20"),
        encoder={"model": "hubert_base", "weights": "random", "sha256": "ab" * 32,
                 "precision": "fp32"},
        speakers={"train": 30, "dev": 5, "test": 10},
        speaker_column="voice",
        n_stored=3000,
        n_used=2200,
        version="1.2.3",
    )  # fmt: skip
    sweep = replace(class_sweep(n_layers=3), setup=setup)
    text = methods(sweep)
    for part in (
        "layers 1 to 3 (raw outputs of the Transformer blocks, without a final layer norm) of "
        f"hubert_base with random weights (SHA-256 {'ab' * 32}), computed in fp32.",
        "weights of the encoder are random",
        "Of the 3,000 utterances of the store, 2,200 were selected.",
        "by the mean and standard deviation of its frames, concatenated.",
        "256 dimensions and a linear layer over the 10 classes of word",
        "a learned weighted sum of all of them",
        "by Adam at a constant learning rate out of 0.01 and 0.001 for at most 640 steps of up to "
        "128 utterances; every 20 steps they are scored on dev",
        "Split: by the column split; 1,600 utterances for training, 200 for dev and 400 for test.",
        "Speakers (column voice): 30 in train, 5 in dev and 10 in test.",
        "accuracy (higher is better), averaged over the seeds 0 to 2",
        "over the test utterances, with 2,000 resamples",
        "(McNemar's test, p = 0.41)",
        "with Strata 1.2.3.",
    ):
        assert part in text
    assert "\n" not in text
    other = methods(replace(sweep, setup=replace(setup, n_used=3000, speakers={}), layers=(1, 3)))
    assert "were selected" not in other
    assert "Speakers" not in other
    assert "layers 1 and 3" in other
    bare = methods(replace(sweep, setup=Setup()))
    assert "hubert_base, pretrained (sha256 1a2b3c4d), fp32." in bare
    for unknown in ("frames", "projection", "steps of", "Strata"):
        assert unknown not in bare


def test_the_methods_of_other_tasks():
    """Transcripts, numbers and trials have heads and losses of their own; of k folds it says so."""
    texts = text_sweep(n_layers=2, seeds=(0,))
    asr = methods(replace(texts, setup=Setup(recipe=recipe("task=asr"))))
    assert "over the 28 characters of train and the blank" in asr
    assert "trained with CTC and decoded greedily" in asr
    assert "steps of up to 8,000 frames" in asr
    assert "from seed 0" in asr
    setup = Setup(recipe=recipe("task=ks", "task.head=mlp"))
    hidden = methods(replace(class_sweep(n_layers=2), setup=setup))
    assert "A head is a hidden layer of 256 dimensions with ReLU and a linear layer over" in hidden
    setup = Setup(recipe=recipe("task=ks", "task.head=attentive"))
    attentive = methods(replace(class_sweep(n_layers=2), setup=setup))
    assert (
        "A head is a linear projection of each frame to 256 dimensions, attentive statistics "
        "pooling over the frames of an utterance (Okabe et al., 2018) with 128 hidden units, and a "
        "linear layer over the 10 classes of word"
    ) in attentive
    assert "mean of its frames" not in attentive
    setup = Setup(recipe=recipe("task=asr", "task.head=lstm", "task.units=1024"))
    lstm = methods(replace(texts, setup=setup))
    assert "two bidirectional LSTM layers of 1,024 units in each direction and a linear" in lstm
    assert "with gradients clipped to a norm of 1, for at most" in lstm
    assert "without a better score or a lower loss." in lstm
    assert "clipped" not in asr
    base = class_sweep(n_layers=2)
    columns = {"labels": ("valence", "arousal"), "metric": "ccc", "confusion": None}
    setup = Setup(recipe=recipe("task=regression", "task.loss=mse"))
    numbers = methods(replace(base, **columns, setup=setup))
    assert "one output for each of valence and arousal, trained to minimise the mean" in numbers
    assert "averaged over the labels" in numbers
    heads = tuple(replace(head, lr=0.0, layer_weights=None) for head in base.heads)
    scores = tuple(replace(score, lr=0.0) for score in base.scores if score.layer != WEIGHTED)
    setup = Setup(recipe=recipe("task=sv", "task.head=lda"))
    trials = replace(
        base, setup=setup, heads=heads, scores=scores, metric="eer", groups="speakers",
        layer_weights=None, truth=(((1.0,), (0.0,)),), best=2,
    )  # fmt: skip
    text = methods(trials)
    assert "by the cosine of these vectors, after the mean of train was subtracted and" in text
    assert "discriminant analysis" in text
    setup = Setup(recipe=recipe("task=sv"))
    assert "from which no mean was subtracted" in methods(replace(trials, setup=setup, n_train=0))
    assert "after the mean of train was" in methods(replace(trials, setup=setup, n_train=9))
    assert "The test has 2 trials, drawn from test with seed 0." in text
    assert "over the test speakers" in text
    assert "Adam" not in text
    assert "seeds" not in text
    assert "2 trials of 400 test utterances" in caption(trials)
    assert "learning rate" not in latex_of(trials)
    same = methods(replace(trials, split="trials veri_test.txt, dev is test"))
    assert "chosen on the trials that are reported" in same
    assert "only reported" in text
    assert "only reported" not in same
    folds = replace(base, test_ids=(("a",), ("b",)), truth=(((0,),), ((1,),)))
    assert "for dev per fold (means over 2 folds) and 400 for test in all folds" in methods(folds)


def test_the_methods_of_tasks_on_spans():
    """The boundary rule, what is compared, and what is drawn."""
    base = class_sweep(n_layers=2, seeds=(0,))

    def text(metric: str, *overrides: str) -> str:
        setup = Setup(recipe=recipe(*overrides, "spans=alignments"))
        return methods(replace(base, metric=metric, labels=("phones",), setup=setup))

    steps = ("task.steps=10", "task.eval_every=1")
    phones = text("accuracy", "task=phone", "task.pooling=[mean,max]", *steps)
    assert "; every step they are scored on dev" in phones
    assert "Each span is represented by the mean and maximum of its frames" in phones
    assert "A frame belongs to the span that its centre is in." in phones
    assert "over the 10 classes of phones" in phones
    assert "10 steps of up to 256 spans" in phones
    frames = text("f1", "task=frame", "task.unlabelled=silence")
    assert "frames in no span have the class silence." in frames
    assert "steps of up to 2,048 frames" in frames
    assert "The score is the macro-F1" in frames
    assert "neither trained on nor scored" in text("accuracy", "task=frame")
    within = text("abx_within", "task=abx", "task.context=any")
    assert (
        "The comparisons use at most 10 spans of a class, context and speaker, drawn with" in within
    )
    assert "before and after" not in within
    across = text("abx_across", "task=abx")
    assert "with the same labels before and after them" in across
    assert "at most 5 speakers of X" in across


def test_lists_in_sentences():
    """Runs of numbers are shortened, other items are enumerated."""
    assert listed([1, 2, 3]) == "1 to 3"
    assert listed([0, 1]) == "0 and 1"
    assert listed([1, 6, 12]) == "1, 6 and 12"
    assert listed(["a"]) == "a"
    assert listed([]) == ""
