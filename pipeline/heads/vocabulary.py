"""Vocabulary of a CTC head: the symbols of the training transcripts."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast, get_args

from pipeline import files
from pipeline.config import did_you_mean
from pipeline.errors import ConfigError

Tokens = Literal["characters", "words"]
"""Kind of symbol: a character, or a word, i.e. a space-separated token, e.g. a phone."""

BLANK = 0
"""Number of the blank, CTC's symbol for no output."""


@dataclass(frozen=True)
class Vocabulary:
    """Symbols that a head can predict; symbol i of `symbols` has the number i + 1.

    Characters are lower-cased, and include the space between words. Words keep their case, which
    distinguishes phones in some alphabets. Both are in Unicode's composed form (NFC).

    Attributes:
        tokens: "characters" or "words".
        symbols: All symbols except the blank, in the order of their code points.

    Example:
        >>> vocabulary = Vocabulary.of(["Abba", "a  cab"], "characters")
        >>> vocabulary.symbols
        (' ', 'a', 'b', 'c')
        >>> vocabulary.encode("A cab")
        (2, 1, 4, 2, 3)
        >>> vocabulary.decode([2, 1, 4, 2, 3])
        'a cab'
    """

    tokens: Tokens
    symbols: tuple[str, ...]

    @classmethod
    def of(cls, transcripts: Iterable[str], tokens: str | None) -> Vocabulary:
        """Collect the symbols of the training transcripts.

        Args:
            transcripts: Training transcripts, not normalised.
            tokens: "characters" or "words".

        Raises:
            ConfigError: `tokens` has another value, or all transcripts are empty.
        """
        kind = as_tokens(tokens)
        symbols = {symbol for text in transcripts for symbol in split(text, kind)}
        if not symbols:
            raise ConfigError("all training transcripts are empty; choose another column")
        return cls(kind, tuple(sorted(symbols)))

    def __len__(self) -> int:
        """Number of symbols, including the blank."""
        return len(self.symbols) + 1

    def normalize(self, text: str) -> str:
        """Return the normal form in which transcripts are compared: that of `decode(encode(text))`.

        Unlike `encode`, keep symbols that are not in the vocabulary.
        """
        return self._join(split(text, self.tokens))

    def encode(self, text: str, skip_unknown: bool = False) -> tuple[int, ...]:
        """Return the numbers of a transcript's symbols.

        Args:
            text: Transcript, not normalised.
            skip_unknown: Leave out symbols that are not in the vocabulary.

        Raises:
            ConfigError: A symbol is not in the vocabulary; `unknown` counts such symbols.
        """
        symbols = split(text, self.tokens)
        if skip_unknown:
            return tuple(self._numbers[symbol] for symbol in symbols if symbol in self._numbers)
        try:
            return tuple(self._numbers[symbol] for symbol in symbols)
        except KeyError as error:
            raise ConfigError(
                f"{error.args[0]!r} of {text!r} is not in the vocabulary, the {len(self.symbols)} "
                "symbols of the training transcripts"
            ) from None

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the text of symbol numbers, without blanks and repeated spaces."""
        symbols = [self.symbols[number - 1] for number in numbers if number != BLANK]
        return " ".join(self._join(symbols).split())

    def unknown(self, transcripts: Iterable[str]) -> Counter[str]:
        """Count the symbols that are not in the vocabulary."""
        symbols = Counter(symbol for text in transcripts for symbol in split(text, self.tokens))
        return Counter({s: n for s, n in symbols.items() if s not in self._numbers})

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as JSON.

        Raises:
            StoreError: The file cannot be written.
        """
        text = json.dumps({"blank": BLANK, **asdict(self)}) + "\n"
        files.write_atomic(Path(path), [text.encode()])

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a vocabulary that `save` wrote.

        Raises:
            ConfigError: The file is missing or holds no vocabulary.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            symbols = tuple(str(symbol) for symbol in stored["symbols"])
            return cls(as_tokens(stored["tokens"]), symbols)
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise ConfigError(f"{path} holds no vocabulary: {error!r}") from error

    def _join(self, symbols: Sequence[str]) -> str:
        return ("" if self.tokens == "characters" else " ").join(symbols)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {symbol: i + 1 for i, symbol in enumerate(self.symbols)}


def split(text: str, tokens: Tokens) -> tuple[str, ...]:
    """Return the symbols of a transcript, in NFC, with runs of white space as one space."""
    composed = unicodedata.normalize("NFC", text.lower() if tokens == "characters" else text)
    words = composed.split()
    return tuple(words) if tokens == "words" else tuple(" ".join(words))


def as_tokens(value: str | None) -> Tokens:
    """Return a kind of symbol, checked.

    Raises:
        ConfigError: It is none.
    """
    for known in get_args(Tokens):
        if value == known:
            return cast("Tokens", known)
    raise ConfigError(f"tokens is {value!r}{did_you_mean(str(value), get_args(Tokens))}")
