"""Every error that Strata raises on purpose, grouped by what the caller does about it.

    StrataError
    ├── ConfigError              correct the command or the configuration (exit code 2)
    ├── SourceError              correct the dataset or its description
    ├── AudioError               one utterance cannot be decoded; it is quarantined
    ├── EncoderError             the encoder cannot be built or run
    │   └── WeightsError         the weights are missing, unreadable or of another architecture
    ├── StoreError               the store cannot be used as asked
    │   ├── StoreNotFoundError   there is no store at this path
    │   ├── IdentityError        the store was made from something else; choose another path
    │   ├── StoreBusyError       a live driver holds the store; wait for it or stop it
    │   ├── NoSpaceError         the features do not fit on the disk
    │   ├── UnansweredError      a server has not said whether it has written an object
    │   ├── UnreachableError     a server does not answer a read (also an OSError)
    │   │   ├── NoBucketError    a server has no such bucket
    │   │   └── RefusedError     a server refuses a read (also a PermissionError)
    │   └── DamagedError         stored bytes are not what was committed; run `strata verify`
    ├── UtteranceNotFoundError   no such utterance in the store (also a KeyError)
    └── RunError                 the run could not finish; what was committed is safe, run it again

A message says what went wrong, with which value, what was expected, and what to do. They
are sent between processes, so each class must be picklable and takes only its message as argument;
an UnreachableError takes those of an OSError, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class StrataError(Exception):
    """Base of every deliberate error. `str(error)` is one line fit to show to the user."""


class ConfigError(StrataError):
    """A setting is misspelt, of the wrong type, or contradicts another."""


class SourceError(StrataError):
    """The dataset cannot be opened, or its description does not match it."""


class AudioError(StrataError):
    """One utterance's audio cannot be turned into a waveform."""


class EncoderError(StrataError):
    """The encoder cannot be built, or cannot encode what it was given."""


class WeightsError(EncoderError):
    """Weights are missing, unreadable, or do not fit the architecture."""


class StoreError(StrataError):
    """The store cannot be used as asked."""


class StoreNotFoundError(StoreError):
    """There is no store at this path."""


class IdentityError(StoreError):
    """The store's identity (source, audio, encoder, precision, ...) differs from the run's."""


class StoreBusyError(StoreError):
    """Another driver is at work on this store."""


class NoSpaceError(StoreError):
    """The features do not fit in the space that is free."""


class UnansweredError(StoreError):
    """A write was sent to a server and not answered: the object may appear later."""


class UnreachableError(StoreError, OSError):
    """A server does not answer, or refuses; what is stored there is unknown, and may be sound.

    Attributes:
        filename: The URI of the object.
        strerror: What went wrong, with the name of the server.
    """

    def __str__(self) -> str:
        if self.filename is None:
            return " ".join(map(str, self.args))
        return f"{self.filename} cannot be read: {self.strerror}"


class NoBucketError(UnreachableError):
    """A server has no such bucket: nothing is known about the objects that are meant."""


class RefusedError(UnreachableError, PermissionError):
    """A server does not let this user read an object."""


class DamagedError(StoreError):
    """Stored bytes differ from what was committed."""


class UtteranceNotFoundError(StrataError, KeyError):
    """The store has no such utterance."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class RunError(StrataError):
    """The run ended before every unit was committed."""


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, for a message: 1 unit, 2,000 units, 3 classes."""
    if n == 1:
        return f"{n:,} {noun}"
    return f"{n:,} {noun}es" if noun.endswith("s") else f"{n:,} {noun}s"


def first_few(values: Sequence[object]) -> str:
    """Return the first five values as text, for a message."""
    listed = ", ".join(str(value) for value in values[:5])
    return listed + (", ..." if len(values) > 5 else "")


def one_line(error: object) -> str:
    """Return a text in one line of at most 300 characters; the type's name if it is empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint with the known words closest to a misspelt one, to append to a message."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=2, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(options)}" if options else ""
