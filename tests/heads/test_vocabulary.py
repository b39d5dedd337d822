"""Vocabularies of transcripts, and error counts."""

from __future__ import annotations

import doctest
import json
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.heads import vocabulary as module
from pipeline.heads.vocabulary import Vocabulary
from pipeline.probing.metrics import error_counts, error_rate

TOKENS = ("characters", "words")
raw_texts = st.lists(st.text(max_size=12), min_size=1).filter(lambda texts: "".join(texts).strip())
normal_texts = st.text(alphabet="ab ", max_size=9).map(lambda text: " ".join(text.split()))


@given(raw_texts, st.sampled_from(TOKENS))
def test_a_transcript_survives_encoding_and_decoding(texts, tokens):
    """Decoding gives the normalised text; numbers are between 1 and the size."""
    vocabulary = Vocabulary.of(texts, tokens)
    for text in texts:
        numbers = vocabulary.encode(text)
        assert all(1 <= number < len(vocabulary) for number in numbers)
        assert vocabulary.decode(numbers) == vocabulary.normalize(text)
        assert vocabulary.normalize(vocabulary.normalize(text)) == vocabulary.normalize(text)


@given(raw_texts, st.sampled_from(TOKENS))
def test_a_vocabulary_survives_saving_and_loading(tmp_path_factory, texts, tokens):
    """A loaded vocabulary is equal, and does not depend on the order of the transcripts."""
    vocabulary = Vocabulary.of(texts, tokens)
    path = tmp_path_factory.getbasetemp() / "vocabulary.json"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary == Vocabulary.of(reversed(texts), tokens)


def test_the_example_of_the_docstring_is_correct():
    """The doctest of the module passes."""
    assert doctest.testmod(module).failed == 0


def test_characters_are_normalised():
    """Lower case, composed, one space between words, no space at the ends."""
    vocabulary = Vocabulary.of(["It's  ", "\tCAFE\u0301 au\nLAIT"], "characters")
    assert vocabulary.symbols == tuple(sorted(set("it's café au lait")))
    assert vocabulary.normalize(" Cafe\u0301\n  LAIT") == "caf\u00e9 lait"
    assert vocabulary.decode((*vocabulary.encode("a"), 1, 1, *vocabulary.encode("u"))) == "a u"


def test_words_keep_their_case():
    """Case distinguishes phones, and a phone of several characters is one symbol."""
    vocabulary = Vocabulary.of(["S i: o\u0303", "s  @U"], "words")
    assert vocabulary.symbols == ("@U", "S", "i:", "s", "\u00f5")
    assert vocabulary.decode(vocabulary.encode("s @U  S")) == "s @U S"


def test_unknown_symbols_are_counted_and_refused():
    """Unknown symbols are counted, and encoding one is an error that names it."""
    vocabulary = Vocabulary.of(["abc"], "characters")
    assert vocabulary.unknown(["ABxx", "cy"]) == {"x": 2, "y": 1}
    with pytest.raises(ConfigError, match="'x'"):
        vocabulary.encode("abx")


def test_invalid_vocabularies_are_refused(tmp_path):
    """Empty transcripts, an unknown kind of symbol and a file without vocabulary are errors."""
    with pytest.raises(ConfigError, match="empty"):
        Vocabulary.of([" ", ""], "characters")
    with pytest.raises(ConfigError, match="did you mean characters"):
        Vocabulary.of(["a"], "character")
    for content in ("{", "[]", json.dumps({"tokens": "letters", "symbols": ["a"]})):
        (tmp_path / "v.json").write_text(content)
        with pytest.raises(ConfigError, match=r"v\.json"):
            Vocabulary.load(tmp_path / "v.json")
    with pytest.raises(ConfigError, match=r"missing\.json"):
        Vocabulary.load(tmp_path / "missing.json")


def distance(first, second):
    """Return the edit distance by its recursive definition."""

    @cache
    def cost(i, j):
        if not i or not j:
            return i + j
        same = first[i - 1] == second[j - 1]
        return min(cost(i - 1, j) + 1, cost(i, j - 1) + 1, cost(i - 1, j - 1) + (not same))

    return cost(len(first), len(second))


@given(st.lists(st.tuples(normal_texts, normal_texts), max_size=4))
def test_errors_are_the_edit_distance_of_each_utterance(pairs):
    """Errors are the edit distance of characters or tokens; also for empty texts."""
    references, predictions = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    for metric, cut in (("cer", list), ("wer", str.split), ("per", str.split)):
        errors, lengths = error_counts(metric, references, predictions)
        assert errors.tolist() == [distance(cut(a), cut(b)) for a, b in pairs]
        assert lengths.tolist() == [len(cut(a)) for a in references]


def test_long_utterances_weigh_more():
    """The error rate is over the corpus, not a mean over utterances; unknown metrics raise."""
    assert error_rate("wer", ["a b c d", "a"], ["a b c d", "b"]) == pytest.approx(1 / 5)
    assert error_rate("cer", ["", ""], ["", "ab"]) == 2
    with pytest.raises(ConfigError, match="did you mean"):
        error_rate("cerr", ["a"], ["a"])
