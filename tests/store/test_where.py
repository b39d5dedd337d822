"""Conditions as text: parsed, checked against the columns, and equal to plain Python."""

from __future__ import annotations

import operator
import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.errors import ConfigError, StoreError
from pipeline.store.read.where import parse_condition, parse_where
from tests.helpers.feature_stores import make_store

CLASSES = {"digit": ["zero", "one", "two", "three"]}
TABLE = pa.table(
    {
        "speaker": ["ann", "bob", None, "it's", "Ann", "", "a%b_c"],
        "split part": ["train", "test", "train", None, "dev", "dev", "test"],
        "n_frames": pa.array([40, 100, 3, 250, 17, -5, 2**40], pa.int64()),
        "score": [0.5, None, -1.0, 2.0, float("nan"), 1e9, 0.0],
        "digit": pa.array([0, 1, 2, 3, None, 1, 0], pa.int64()),
        "noisy": [True, False, None, True, False, True, None],
        "né`": [1, 2, 3, 4, 5, 6, 7],
        "words": [["a"], [], None, ["b"], [], [], []],
    }
)
SIGNS = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def rows(text):
    """Return the numbers of the rows that a condition selects."""
    numbered = TABLE.append_column("__row", [range(len(TABLE))])
    return numbered.filter(parse_where(text, TABLE.schema, CLASSES))["__row"].to_pylist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speaker in ('ann','bob') and n_frames > 50", [1]),
        ('not `split part` == "train"', [1, 4, 5, 6]),
        ("speaker = 'it''s'", [3]),
        ('speaker = "it\'s"', [3]),
        ("`né``` <= 2", [0, 1]),
        ("né = 1" if "né" in TABLE.column_names else "`né``` = 1", [0]),
        ("speaker not in ('ann', 'bob',)", [3, 4, 5, 6]),
        ("speaker != 'ann'", [1, 3, 4, 5, 6]),
        ("speaker is null", [2]),
        ("speaker IS NOT NULL AND noisy", [0, 3, 5]),
        ("words is null", [2]),
        ("noisy = false or noisy is null", [1, 2, 4, 6]),
        ("not (noisy or n_frames < 20)", [1]),
        ("noisy and n_frames < 20 or score = 2", [3, 5]),
        ("noisy and (n_frames < 20 or score = 2.0)", [3, 5]),
        ("-1 = score", [2]),
        ("50 < n_frames", [1, 3, 6]),
        ("n_frames > 99.5 and n_frames < 1e3", [1, 3]),
        ("n_frames = +4e1", [0]),
        ("n_frames = '40'", [0]),
        ("score >= .5", [0, 3, 5]),
        ("digit = 'one'", [1, 5]),
        ("digit in ('zero', 3)", [0, 3, 6]),
        ("digit < 2", [0, 1, 5, 6]),
        ("digit like 't%'", [2, 3]),
        ("digit not like 't%'", [0, 1, 5, 6]),
        ("speaker like '_nn'", [0, 4]),
        ("speaker not like '%n%'", [1, 3, 5, 6]),
        (r"speaker like 'a\%b\_c'", [6]),
        ("speaker like 'a%c'", [6]),
    ],
)
def test_a_condition_selects_these_rows(text, expected):
    """Each form of the grammar; a missing value is neither equal nor unequal."""
    assert rows(text) == expected


def texts(words):
    """Write texts as a condition does."""
    return ["'" + word.replace("'", "''") + "'" for word in words]


def either(sides, is_absorbing):
    """Return what `or` (True) or `and` (False) makes of true, false and neither (None)."""
    if is_absorbing in sides:
        return is_absorbing
    return None if None in sides else not is_absorbing


@st.composite
def comparisons(draw):
    """Return a comparison as text, and its value for a row: True, False or None."""
    name = draw(st.sampled_from(["speaker", "n_frames", "score", "digit", "split part"]))
    column = f"`{name}`" if " " in name or draw(st.booleans()) else name
    kind = draw(st.sampled_from(["sign", "in", "null", "like"]))
    if kind == "null":
        is_negated = draw(st.booleans())
        text = f"{column} is {'not ' * is_negated}null"
        return text, lambda row: (row[name] is None) != is_negated
    of_text = name in ("speaker", "split part")
    values = [v for v in TABLE[name].drop_null().to_pylist() if v == v]
    if of_text and kind == "like":
        pattern = draw(st.text("a%_nb", max_size=4))
        regex = re.compile(pattern.replace("%", ".*").replace("_", "."))
        text = f"{column} like '{pattern}'"
        return text, lambda row: None if row[name] is None else bool(regex.fullmatch(row[name]))
    value = draw(st.sampled_from(values))
    shown = texts([value])[0] if of_text else str(value)
    if kind == "sign":
        sign = draw(st.sampled_from(sorted(SIGNS)))
        is_mirrored = draw(st.booleans())
        mirror = sign.translate(str.maketrans("<>", "><")) if sign != "<>" else sign
        text = f"{shown} {mirror} {column}" if is_mirrored else f"{column}{sign}{shown}"
        return text, lambda row: None if row[name] is None else SIGNS[sign](row[name], value)
    others = draw(st.lists(st.sampled_from(values), max_size=2))
    listed = [value, *others]
    written = texts(listed) if of_text else map(str, listed)
    is_negated = draw(st.booleans())
    text = f"{column} {'not ' * is_negated}in ({', '.join(written)})"
    return text, lambda row: None if row[name] is None else (row[name] in listed) != is_negated


def negated(part):
    """Return `not` of a condition."""
    text, value = part
    return f"not ({text})", lambda row: None if value(row) is None else not value(row)


def joined(parts, word):
    """Return conditions with a word between them, in parentheses."""
    text = f" {word} ".join(f"({text})" for text, _ in parts)
    return text, lambda row: either([value(row) for _, value in parts], word == "or")


CONDITIONS = st.recursive(
    comparisons(),
    lambda inner: (
        inner.map(negated)
        | st.builds(joined, st.lists(inner, min_size=2, max_size=4), st.sampled_from(["and", "or"]))
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(CONDITIONS)
def test_every_condition_equals_plain_python(condition):
    """Random conditions select the rows for which an evaluation in Python gives true."""
    text, value = condition
    expected = [i for i, row in enumerate(TABLE.to_pylist()) if value(row) is True]
    assert rows(text) == expected, text


@settings(max_examples=150, deadline=None)
@given(st.text("an(),'`=<> not1.in\"%ß", max_size=20))
def test_any_text_is_a_condition_or_one_of_two_errors(text):
    """No other exception, whatever a user writes."""
    try:
        rows(text)
    except (ConfigError, StoreError) as error:
        assert "\n" not in str(error)  # noqa: PT017  most texts are no condition


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"at its end: expected a column"),
        ("speaker", r"at its end: expected a comparison of speaker"),
        ("speaker in 'ann'", r"at character 12, before \"'ann'\": expected a list in parentheses"),
        ("speaker in ['ann']", r"character 12, before .*list in parentheses"),
        ("speaker in ('ann' 'bob')", r"character 19, .*expected ',' or '\)'"),
        ("speaker in ()", r"character 13, .*expected a number or a text"),
        ("speaker = ann", r"character 11, before 'ann': .*write 'ann'"),
        ("speaker = `split part`", r"two columns cannot be compared"),
        ("speaker = null", r"'is null' or 'is not null'"),
        ("speaker is 'ann'", r"expected 'null'"),
        ("speaker = 'ann", r"character 11, .*quote ' is not closed"),
        ("(noisy", r"at its end: expected '\)'"),
        ("noisy)", r"character 6, before '\)': expected 'and', 'or' or the end"),
        ("noisy && noisy", r"character 7, .*write and, or, not"),
        ("0 < n_frames < 9", r"character 14, .*expected 'and', 'or' or the end"),
        ("1 = 1", r"character 5, .*expected a column"),
        ("1", r"at its end: expected a comparison with a column"),
        ("n_frames = - 'a'", r"expected a number"),
        ("n_frames > " + "9" * 5000, r"at most 40 digits"),
        ("(" * 60 + "noisy" + ")" * 60, r"more than 50 parentheses"),
        ("not " * 60 + "noisy", r"more than 50 parentheses"),
        ("speaker not 'ann'", r"expected 'in' or 'like'"),
        ("speaker like 5", r"expected a pattern in quotes"),
    ],
)
def test_a_malformed_condition_says_where(text, message):
    """The character, what is there, and what was expected."""
    with pytest.raises(ConfigError, match=message):
        rows(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speeker = 'ann'", r"no column 'speeker'.*did you mean speaker\?.*speaker, split part"),
        ("n_frames = 'many'", r"n_frames='many': the column holds whole numbers"),
        ("n_frames = 1.5", r"n_frames=1.5: the column holds whole numbers"),
        ("speaker = 5", r"speaker=5: the column holds text; write '5'"),
        ("noisy = 1", r"noisy=1: the column holds true or false"),
        ("noisy > false", r"true and false have no order"),
        ("digit = 'four'", r"no class 'four' in column 'digit'; it has zero, one"),
        ("digit < 'two'", r"class names have no order"),
        ("words = 'a'", r"cannot select by words"),
        ("n_frames like '1%'", r"whole numbers, and like compares text"),
    ],
)
def test_values_are_checked_against_their_columns(text, message):
    """An unknown column, a value of another type, and an order that does not exist."""
    with pytest.raises(StoreError, match=message):
        rows(text)


def test_a_condition_may_be_long():
    """Thousands of values and of parts."""
    values = ", ".join(f"'speaker-{i}'" for i in range(20_000))
    assert rows(f"speaker in ({values}, 'bob')") == [1]
    parts = " or ".join(f"n_frames = {i}" for i in range(3000))
    assert rows(parts) == [0, 1, 2, 3, 4]


def test_the_compared_values_are_listed():
    """So that a caller can name those that no utterance has."""
    found = parse_condition("speaker in ('ann', 'x') or not n_frames = 3", TABLE.schema, CLASSES)
    assert [(name, values.to_pylist()) for name, values in found.compared] == [
        ("speaker", ["ann", "x"]),
        ("n_frames", [3]),
    ]


def test_a_store_selects_by_text(tmp_path):
    """As by an expression: also after a refresh, in a pickle, and with values besides."""
    make_store(tmp_path / "store", [40, 100, 3, 250, 17, 90])
    store = pipeline.open_store(tmp_path / "store")
    some = store.select("speaker in ('speaker-0', 'speaker-1') and n_frames >= 40", digit="one")
    assert some.ids == ["utt-0001"]
    assert store.select("id like '%3' or digit = 'two'").ids == ["utt-0002", "utt-0003"]
    assert store.select("n_frames > 1000").ids == []
    some.refresh()
    assert some.ids == ["utt-0001"]
    with pytest.warns(UserWarning, match=r"speaker='speaker-9'; did you mean 'speaker-"):
        store.select("speaker = 'speaker-9'")
    with pytest.raises(StoreError, match=r"did you mean speaker\? the columns are id, speaker"):
        store.select("speakers = 'a'")
