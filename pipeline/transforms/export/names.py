"""Names of files from ids. Ids are data: `../x`, `a/b` or a text of a thousand characters."""

from __future__ import annotations

import re
from hashlib import sha256
from urllib.parse import quote, unquote

MAX_BYTES = 180
"""Longest name, without a suffix; file systems allow 255 bytes."""
_SHORTENED = "~"
_N_DIGITS = 16
_CUT = re.compile(r"%[0-9A-F]?\Z")


def encoded(name: str) -> str:
    """Return an id as a name for a file.

    Letters, digits, `-` and `_` of ASCII stay; every other byte of its UTF-8 becomes `%XX`. If the
    result is longer than `MAX_BYTES`, its begin and a hash of the id stand for it. Different ids
    have different names, which may differ in upper and lower case only.
    """
    text = _quoted(name)
    return text if text and len(text) <= MAX_BYTES else distinct(name)


def distinct(name: str) -> str:
    """Return an id as a name that is unlike that of any other id, also in lower case."""
    digest = sha256(name.encode()).hexdigest()[:_N_DIGITS]
    head = _quoted(name)[: MAX_BYTES - _N_DIGITS - 1]
    return f"{_CUT.sub('', head)}{_SHORTENED}{digest}"


def decoded(text: str) -> str | None:
    """Return the id of a name; None if it is shortened, and only the manifest has the id."""
    return None if _SHORTENED in text else unquote(text, errors="strict")


def key(name: str) -> str:
    """Return an id as a word for lists that are split at white space.

    White space, control characters and `%` become `%XX`.
    """
    return "".join(
        quote(character, safe="") if is_separator(character) else character for character in name
    )


def _quoted(name: str) -> str:
    return quote(name, safe="").replace(".", "%2E").replace("~", "%7E")


def is_separator(character: str) -> bool:
    """Whether a character may end a word, or would make an encoded word ambiguous."""
    return character == "%" or character.isspace() or not character.isprintable()
