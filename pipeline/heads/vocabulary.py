"""The symbols that a CTC head can say, as the training transcripts have them."""

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
from pipeline.config import nearest
from pipeline.errors import ConfigError

Tokens = Literal["characters", "words"]
"""What one symbol of a transcript is: a character, or what stands between spaces, e.g. a phone."""

BLANK = 0
"""Number of the blank, the symbol by which CTC says nothing."""


@dataclass(frozen=True)
class Vocabulary:
    """The symbols that a head can say; symbol i of `symbols` has the number i + 1.

    Characters are lower-cased, and the space between two words is one of them. Words keep their
    case, which tells phones apart in some alphabets. Both are in Unicode's composed form (NFC).

    Attributes:
        tokens: characters or words.
        symbols: All but the blank, in the order of their code points.

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
        """The symbols of the training transcripts.

        Args:
            transcripts: As they are in the corpus.
            tokens: characters or words.

        Raises:
            ConfigError: `tokens` is something else, or there is no symbol in any transcript.
        """
        kind = _tokens(tokens)
        symbols = {symbol for text in transcripts for symbol in split(text, kind)}
        if not symbols:
            raise ConfigError("all training transcripts are empty; choose another column")
        return cls(kind, tuple(sorted(symbols)))

    def __len__(self) -> int:
        """Symbols, the blank included."""
        return len(self.symbols) + 1

    def normalise(self, text: str) -> str:
        """A transcript as it is compared: what `decode(encode(text))` gives of known symbols."""
        return self._join(split(text, self.tokens))

    def encode(self, text: str, skip_unknown: bool = False) -> tuple[int, ...]:
        """The numbers of a transcript's symbols.

        Args:
            text: As it is in the corpus.
            skip_unknown: Leave out what is not in the vocabulary.

        Raises:
            ConfigError: A symbol is not in the vocabulary; `unknown` finds these.
        """
        symbols = split(text, self.tokens)
        if skip_unknown:
            return tuple(self._numbers[symbol] for symbol in symbols if symbol in self._numbers)
        try:
            return tuple(self._numbers[symbol] for symbol in symbols)
        except KeyError as error:
            raise ConfigError(
                f"{error.args[0]!r} of {text!r} is none of the {len(self.symbols)} symbols of the "
                "vocabulary, which are those of the training transcripts"
            ) from None

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of symbols by their numbers; blanks and surplus spaces are left out."""
        spoken = [self.symbols[number - 1] for number in numbers if number != BLANK]
        return " ".join(self._join(spoken).split())

    def unknown(self, transcripts: Iterable[str]) -> Counter[str]:
        """How often each symbol occurs that is not in the vocabulary."""
        symbols = Counter(symbol for text in transcripts for symbol in split(text, self.tokens))
        return Counter({s: n for s, n in symbols.items() if s not in self._numbers})

    def save(self, path: str | Path) -> None:
        """Writes it as JSON.

        Raises:
            StoreError: It cannot be written.
        """
        text = json.dumps({"blank": BLANK, **asdict(self)}) + "\n"
        files.write_atomic(Path(path), [text.encode()])

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads what `save` wrote.

        Raises:
            ConfigError: There is no such file, or it holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(_tokens(found["tokens"]), tuple(str(symbol) for symbol in found["symbols"]))
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise ConfigError(f"{path} holds no vocabulary: {error!r}") from error

    def _join(self, symbols: Sequence[str]) -> str:
        return ("" if self.tokens == "characters" else " ").join(symbols)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {symbol: i + 1 for i, symbol in enumerate(self.symbols)}


def split(text: str, tokens: Tokens) -> tuple[str, ...]:
    """The symbols of a transcript: NFC, any run of white space as one space, none at the ends."""
    composed = unicodedata.normalize("NFC", text.lower() if tokens == "characters" else text)
    words = composed.split()
    return tuple(words) if tokens == "words" else tuple(" ".join(words))


def _tokens(value: str | None) -> Tokens:
    for known in get_args(Tokens):
        if value == known:
            return cast("Tokens", known)
    raise ConfigError(f"tokens is {value!r}{nearest(str(value), get_args(Tokens))}")
