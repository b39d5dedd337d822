"""The tree of errors: as drawn, and fit to cross process borders."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from pipeline import errors

CLASSES = [
    item
    for _, item in inspect.getmembers(errors, inspect.isclass)
    if issubclass(item, errors.StrataError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling(kind: type[errors.StrataError]) -> None:
    """Its class and its message come out on the other side of a process border."""
    again = pickle.loads(pickle.dumps(kind("what, which value, what to do")))
    assert type(again) is kind
    assert str(again) == "what, which value, what to do"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Every class is drawn once, below its base."""
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():  # the tree is indented, as a block of text
        found = re.match(r"([│├└─ ]*)([A-Z]\w+Error)\b", line.removeprefix("    "))
        if not found or (found[2] == "StrataError" and drawn):
            continue
        depth = len(found[1]) // 4
        path[depth:] = [found[2]]
        drawn[found[2]] = path[depth - 1] if depth else None
    bases = {
        kind.__name__: None if kind is errors.StrataError else kind.__bases__[0].__name__
        for kind in CLASSES
    }
    assert drawn == bases


def test_a_missing_utterance_is_a_key_error_that_reads_well() -> None:
    """KeyError would show the repr of the message."""
    error = errors.UtteranceNotFoundError("no utterance 'x'")
    assert isinstance(error, KeyError)
    assert str(error) == "no utterance 'x'"
    assert str(errors.UtteranceNotFoundError()) == ""
