"""Identities of stores, and their differences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import IdentityError
from pipeline.store.format.identity import check_same, compare, make_identity
from pipeline.store.format.layout import FORMAT_VERSION

SOURCE = {"kind": "hub", "columns": [{"name": "speaker", "type": "string"}]}
AUDIO = {"resampler": {"name": "sinc", "width": 6}}
ENCODER = {"name": "hubert_base", "layers": [1, 2], "precision": "fp32", "weights": "a" * 64}


def identity(**changes: object) -> dict:
    """Return an identity with changes in its encoder."""
    return make_identity(SOURCE, AUDIO, {**ENCODER, **changes})


def test_equal_identities_are_accepted() -> None:
    """Without an error."""
    assert compare(identity(), identity()) == []
    check_same(identity(), identity(), "here")


def test_the_format_and_the_stored_type_are_identity() -> None:
    """They change stored bytes, like every other setting of the identity."""
    assert identity()["format_version"] == FORMAT_VERSION
    assert identity()["dtype"] == "float16"


def test_every_difference_is_reported() -> None:
    """With key, stored value, wanted value and remedy."""
    with pytest.raises(IdentityError) as caught:
        check_same(identity(), identity(layers=[6], precision="bf16"), "out/store")
    assert str(caught.value) == (
        "store out/store holds other features: "
        "encoder.layers is [1, 2] there, [6] here; encoder.precision is fp32 there, bf16 here. "
        "Use the same settings to resume it, or another store= to start a new one"
    )


def test_a_missing_setting_is_a_difference() -> None:
    """A setting that only one version has."""
    assert compare({"a": 1}, {"b": {"c": 2}}) == [
        "a is 1 there, nothing here",
        "b.c is nothing there, 2 here",
    ]


def test_tuples_equal_lists() -> None:
    """JSON has no tuples."""
    assert compare({"a": [1, 2]}, {"a": (1, 2)}) == []


@pytest.mark.parametrize("at", [5, 70, 400])
def test_long_values_are_cut_around_the_difference(at: int) -> None:
    """A list of columns or a hash stays readable, and the two sides always differ."""
    old = "x" * 500
    new = f"{old[:at]}y{old[at + 1 :]}"
    (line,) = compare({"key": old}, {"key": new})
    stored, wanted = line.removeprefix("key is ").removesuffix(" here").split(" there, ")
    assert stored != wanted
    assert "y" in wanted
    assert "..." in stored
    assert len(line) < 170


def test_a_longer_list_does_not_look_like_the_shorter() -> None:
    """The message shows the end of the shorter one and the same place of the longer one."""
    columns = [f"column-{i}" for i in range(30)]
    (line,) = compare({"columns": columns}, {"columns": [*columns, "more"]})
    assert "'more'" in line


values = st.recursive(
    st.integers() | st.text(max_size=9) | st.booleans() | st.none(),
    lambda item: st.dictionaries(st.text("abc", min_size=1), item, min_size=1, max_size=3),
    max_leaves=6,
)
documents = st.dictionaries(st.text("abc", min_size=1), values, max_size=4)


@given(documents, documents)
def test_no_difference_is_overlooked(a: dict, b: dict) -> None:
    """`compare` returns nothing if and only if the two are equal."""
    assert (compare(a, b) == []) == (a == b)


def test_commits_without_a_digest_are_compared() -> None:
    """Only equal digests show that two commits have the same weights; missing ones show nothing."""
    one, other = ({"weights": {"commit": letter * 40}} for letter in "ab")
    [difference] = compare(identity(**one), identity(**other))
    assert difference.startswith("encoder.weights.commit is ")
    one, other = ({"weights": {"commit": letter * 40, "sha256": "c" * 64}} for letter in "ab")
    assert compare(identity(**one), identity(**other)) == []
