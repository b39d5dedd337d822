"""Messages with numbers of things."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

import pipeline
from pipeline.errors import counted

ROOT = Path(pipeline.__file__).parent
PACKAGES = ("comparing", "heads", "predict", "probing", "spans", "tokens")
NOUN = re.compile(
    r" (?:[a-z]+ )?(audio clips|candidates|classes|clips|codes|evaluations|fields|folds|frames|"
    r"heads|iterations|labels|layers|lines|seeds|segments|spans|speakers|steps|symbols|tiers|"
    r"transcripts|trials|units|utterances|values|weights)\b"
)
NEVER_ONE = (
    *("len(seeds)", "len(sweep.test_ids)", "n_folds", "len(again)", "len(numbers)", "len(shares)"),
    *("len(sweep.confusion)", "len(config.layers)", "found.count(name)", "setup.n_stored"),
    *(
        "recipe['eval_every']",
        "facts.dim",
        "facts.frame_rate_hz",
        "one.frame_rate_hz",
        "others[at]",
        "sizes",
        "len(self.symbols)",
    ),
)
"""Numbers that are more than one where they are shown, by a condition or by what they are."""


def uncounted(tree: ast.AST) -> list[str]:
    """Return the f-strings with a number and a noun in the plural that is not `counted`."""
    found = []
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for i, (number, after) in enumerate(pairwise(parts)):
            if not isinstance(number, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            value, before = ast.unparse(number.value), parts[i - 1] if i else None
            is_total = bool(re.search(r" of (its |the )?$", ast.unparse(before or number)[:-1]))
            is_constant = value.removeprefix("_").isupper()
            is_text = value == "name" or value.endswith(
                (".name", "metric", "source", "kind", "where", "path", "word", "root")
            )
            is_fine = is_total or is_constant or is_text or value.startswith("counted(")
            if NOUN.match(str(after.value)) and not is_fine and value not in NEVER_ONE:
                found.append(f"line {number.lineno}: {{{value}}}{str(after.value)[:30]}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_one_thing_is_not_in_the_plural(package: str) -> None:
    """No message says "1 classes": a number before a noun is written by `counted`.

    The total of a share, as in "3 of 10 spans", is in the plural.
    """
    for path in sorted((ROOT / package).rglob("*.py")):
        assert uncounted(ast.parse(path.read_text(encoding="utf-8"))) == [], path


def test_what_the_search_finds() -> None:
    """A number before a noun, with or without an adjective; not what is counted, or a total."""
    assert uncounted(ast.parse('f"{n:,} test utterances of {m} classes"')) == [
        "line 1: {n} test utterances of "
    ]
    assert uncounted(ast.parse("f\"{counted(n, 'span')} of {len(a)} spans\"")) == []


def test_counted_nouns() -> None:
    """One is in the singular; thousands are separated; nouns in -s get -es."""
    assert [counted(n, "span") for n in (0, 1, 2000)] == ["0 spans", "1 span", "2,000 spans"]
    assert [counted(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]
