"""Self-contained HTML pages: text, tables and charts, without network access.

The only script sorts tables; the page's policy allows it by its hash and forbids all others.
markupsafe escapes everything that is not `Markup`. Pages and charts share their colours, a light
and a dark set.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup, escape

from pipeline.files import write_atomic
from pipeline.probing.report.charts import COLOURS, Chart

_DARK = {
    "paper": "#14171c",
    "ink": "#e7eaee",
    "muted": "#a3abb8",
    "grid": "#323944",
    "blue": "#56b4e9",
    "orange": "#f0884b",
    "green": "#3ecfa0",
    "purple": "#d98fc0",
}

_CSS = """
:root { color-scheme: light dark; LIGHT --wash: #f4f6f8; --alarm: #a11212; --alarm-wash: #fdecea; }
@media screen and (prefers-color-scheme: dark) {
  :root { DARK --wash: #1d2128; --alarm: #ff9c92; --alarm-wash: #3a1714; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 54rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.4rem; border-top: 1px solid var(--grid);
  padding-top: 1.1rem; }
p { margin: 0.5rem 0; max-width: 46rem; }
.lead { font-size: 1.1rem; }
.note, figcaption, footer { color: var(--muted); font-size: 0.9rem; }
.warning { border: 2px solid var(--alarm); border-left-width: 0.6rem; color: var(--alarm);
  background: var(--alarm-wash); padding: 0.6rem 1rem; margin: 1rem 0; font-weight: 600; }
.warning p { margin: 0.2rem 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums;
  margin: 0.6rem 0; }
th, td { padding: 0.28rem 0.9rem 0.28rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--grid); white-space: nowrap; }
thead th { color: var(--muted); font-weight: 600; white-space: normal; vertical-align: bottom; }
.text { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
.number { text-align: right; }
th button { all: unset; cursor: pointer; }
th button:hover, th button:focus-visible { text-decoration: underline; }
th button::after { content: " \\2195"; opacity: 0.5; }
th[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
tr.best { background: var(--wash); font-weight: 700; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1.2rem; margin: 0.6rem 0;
  font-size: 0.95rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; height: auto; }
figure text { font-family: inherit !important; }
pre { background: var(--wash); padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.88rem;
  border: 1px solid var(--grid); }
footer { margin-top: 3rem; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin: 0 0 0.5rem; } }
@media print { th button::after { content: ""; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  figure, tr, .warning { break-inside: avoid; } h2 { break-after: avoid; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const compare = (a, b) => {
    const x = parseFloat(a), y = parseFloat(b);
    return isNaN(x) || isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = sign > 0 ? "ascending" : "descending";
      const text = (row) => row.cells[at].textContent;
      const gap = (row) => text(row) === "\u2013";
      body.append(...[...rows].sort((a, b) =>
        gap(a) - gap(b) || sign * compare(text(a), text(b))));
    };
  });
}
"""
"""Makes the headings of sortable tables buttons; cells without a value stay last."""
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{_HASH}'"
)
"""Content security policy: the browser loads nothing and runs no other script, whatever a label
contains."""


FIGURES = "figures"
"""Folder of the charts, beside the page."""
_NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?|–")
_MAX_LINE = 32  # characters; a column with a longer cell is wrapped


def join(parts: Iterable[object]) -> Markup:
    """Join parts of a page; all but `Markup` is escaped."""
    return Markup("\n").join(map(escape, parts))


def element(tag: str, *content: object, kind: str = "") -> Markup:
    """Wrap content, escaped unless it is `Markup`, in an element of class `kind`."""
    attribute = Markup(' class="{}"').format(kind) if kind else ""
    return Markup("<{0}{1}>{2}</{0}>").format(tag, attribute, Markup().join(map(escape, content)))


def warnings_box(lines: Sequence[str]) -> Markup:
    """Return a box with warnings for the top of a page; nothing without warnings."""
    if not lines:
        return Markup()
    box = Markup('<div class="warning" role="alert">{}</div>')
    return box.format(Markup().join(element("p", "Warning: ", line) for line in lines))


def facts(values: Mapping[str, object]) -> Markup:
    """Return a list of names and values."""
    pairs = ((element("dt", name), element("dd", value)) for name, value in values.items())
    return element("dl", *(part for pair in pairs for part in pair))


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    best: int | None = None,
    is_sortable: bool = False,
) -> Markup:
    """Return a table.

    Args:
        head: Column headings.
        rows: Cells. A float is shown with three decimals, None as a dash. Columns of numbers are
            right-aligned.
        best: Index of a row to highlight.
        is_sortable: Whether a click on a heading sorts the rows by its column.
    """
    kinds = [_column_kind([row[i] for row in rows]) for i in range(len(head))]
    top = element("tr", *(element("th", h, kind=k) for h, k in zip(head, kinds, strict=True)))
    body = [
        element(
            "tr",
            *(element("td", _cell(c), kind=k) for c, k in zip(row, kinds, strict=True)),
            kind="best" if i == best else "",
        )
        for i, row in enumerate(rows)
    ]
    kind = "sortable" if is_sortable else ""
    whole = element("table", element("thead", top), element("tbody", *body), kind=kind)
    return element("div", whole, kind="scroll")


def _column_kind(column: Sequence[object]) -> str:
    """Return the class of a column: number is right-aligned, text is wrapped."""
    cells = [
        cell.striptags() if isinstance(cell, Markup) else str(cell) for cell in map(_cell, column)
    ]
    if cells and all(_NUMBER.fullmatch(cell) for cell in cells):
        return "number"
    return "text" if any(len(cell) > _MAX_LINE for cell in cells) else ""


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "–"
    return "–" if value is None else value


def figure(chart: Chart, caption: object = "") -> Markup:
    """Embed a chart in a page, in the colours of the page."""
    svg = chart.svg.decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg, count=2).replace("xlink:href", "href")
    # ids must be unique in a page: prefix them with the name of the chart
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.name}-", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(f": {colour}", f": var(--{name})")
    width = float(re.findall(r'width="([\d.]+)pt"', svg)[0])
    # on a narrow screen a wide chart scrolls, so that its text stays readable
    narrowest, widest = min(width, 34 * 16), width * 1.55
    size = f'style="min-width: {narrowest:.0f}px; max-width: {widest:.0f}px"'
    label = f'role="img" aria-label="{escape(chart.alt)}"'
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"', f"<svg {label} {size}", svg)
    inside = element("div", Markup(svg), kind="scroll")
    return element("figure", inside, element("figcaption", caption) if caption else "")


def section(title: str, *content: object) -> Markup:
    """Return a section of a page with its heading."""
    return join([element("h2", title), *content])


def write_page(folder: Path, title: str, body: Markup, charts: Iterable[Chart]) -> Path:
    """Write report.html, and the files of each chart in `figures/`.

    Returns:
        Path of report.html.

    Raises:
        StoreError: A file cannot be written.
    """
    for chart in charts:
        write_figures(folder / FIGURES, chart)
    css = _CSS.replace("LIGHT", _variables(COLOURS)).replace("DARK", _variables(_DARK))
    footer = (
        f"Each chart is in the folder {FIGURES}/ beside this page: NAME.pdf and NAME.svg for a "
        "column of a paper, NAME.csv with its numbers, NAME-wide.svg and NAME-wide.png as here."
    )
    document = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{css}</style>
</head>
<body>
{body}
{element("footer", footer)}
<script>{_SCRIPT}</script>
</body>
</html>
"""
    path = folder / "report.html"
    write_atomic(path, [document.encode("utf-8", "replace")])
    return path


def write_figures(folder: Path, chart: Chart) -> None:
    """Write a chart for a column of a paper, for a screen, and as numbers.

    Raises:
        StoreError: A file cannot be written.
    """
    forms = {
        ".pdf": chart.column_pdf,
        ".svg": chart.column_svg,
        ".csv": chart.numbers.to_csv(),
        "-wide.svg": chart.svg,
        "-wide.png": chart.png,
    }
    for ending, content in forms.items():
        write_atomic(folder / f"{chart.name}{ending}", [content])


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
