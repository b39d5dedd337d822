"""LaTeX of a table: text escaped for every engine, and booktabs."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

_ESCAPES = {
    "\0": "{}",
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",  # a shorthand of babel in some languages
    "`": r"\char96{}",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "‘": r"\char96{}",
    "’": "'",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
}
_INVALID = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff\s]+")
_LAST_LATIN = "\u017f"
"""pdfLaTeX sets up characters up to here by itself."""


def escaped(text: object) -> str:
    """Return text as LaTeX that prints it, on one line."""
    line = _INVALID.sub(" ", str(text)).strip()
    line = re.sub(r"([-',])(?=\1)", "\\1\0", line)  # else two of them become another character
    return "".join(_ESCAPES.get(character, character) for character in line)


def latex_table(
    caption: str,
    label: str,
    head: Sequence[str],
    blocks: Sequence[Sequence[Sequence[str]]],
    bold: int | Collection[tuple[int, int]],
    comment: str,
) -> str:
    """Return a floating table to be read by the command input.

    Args:
        caption: Plain text.
        label: Label for references.
        head: Plain text of the headings. The first column is left-aligned, the others right.
        blocks: Plain text of the cells of each row, in blocks that a rule divides.
        bold: Row of the first block that is bold, or row and column of its bold cells.
        comment: First line.
    """
    lines = [
        f"% {comment}",
        r"% \usepackage{booktabs} in the preamble; table* instead of table spans two columns",
    ]
    text = "".join([caption, *head, *(cell for block in blocks for row in block for cell in row)])
    if unusual := sorted({character for character in escaped(text) if character > _LAST_LATIN}):
        fonts = " ".join(unusual[:40])
        lines.append(f"% compile with LuaLaTeX or XeLaTeX, and a font that has: {fonts}")
    lines += [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escaped(caption)}}}",
        rf"  \label{{{label}}}",
        r"  \footnotesize",
        r"  \setlength{\tabcolsep}{3pt}",
        rf"  \begin{{tabular}}{{@{{}}l{'r' * (len(head) - 1)}@{{}}}}",
        r"    \toprule",
        f"    {_row(head)}",
    ]
    cells = {(bold, at) for at in range(len(head))} if isinstance(bold, int) else set(bold)
    for number, block in enumerate(blocks):
        lines.append(r"    \midrule")
        for at, row in enumerate(block):
            columns = {column for of_row, column in cells if of_row == at and number == 0}
            lines.append(f"    {_row(row, columns)}")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str], bold: Collection[int] = ()) -> str:
    texts = [escaped(cell) for cell in cells]
    texts = [rf"\textbf{{{t}}}" if t and i in bold else t for i, t in enumerate(texts)]
    if texts[0][:1] in ("[", "*"):  # else an argument of the \\ before it
        texts[0] = f"{{}}{texts[0]}"
    return f"{' & '.join(texts)} \\\\"
