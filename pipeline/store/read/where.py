"""Conditions on the columns of a store as text: `speaker in ('a', 'b') and n_frames > 100`.

    condition  = all { "or" all }
    all        = one { "and" one }
    one        = "not" one | "(" condition ")" | comparison
    comparison = column sign value | value sign column | column
               | column ["not"] "in" "(" value { "," value } ")"
               | column ["not"] "like" text
               | column "is" ["not"] "null"
    sign       = "=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">="
    value      = number | text | "true" | "false"

A column alone is a condition if it holds true and false. Text is in single or double quotes, the
name of a column with other characters than letters, digits and `_` in backquotes; a quote within is
doubled. In the pattern of `like`, `%` stands for any characters, `_` for one, and a backslash takes
the meaning from the next one. Key words may be in capitals.

As in SQL, a comparison with a missing value is neither true nor false, and neither is its `not`:
only `is null` selects utterances without a value.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, StoreError
from pipeline.store.read.selection import class_number, held_values, typed_values

_Compare = Callable[[Any, Any], Any]
_SIGNS: dict[str, _Compare] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_ORDERINGS = frozenset(_MIRRORED)
_WORDS = frozenset(("and", "or", "not", "in", "is", "null", "like", "true", "false"))
_TOKEN = re.compile(
    r"""(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<word>[^\W\d]\w*)
    | (?P<column>`(?:[^`]|``)+`)
    | (?P<text>'(?:[^']|'')*' | "(?:[^"]|"")*")
    | (?P<sign>==|!=|<>|<=|>=|[=<>(),+-])
    """,
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")
_MAX_DEPTH = 50
_MAX_DIGITS = 40
_SHOWN = 60


@dataclass(frozen=True)
class Condition:
    """A parsed condition.

    Attributes:
        expression: For `pyarrow.Table.filter`.
        compared: The columns that must equal, or be among, some values, and these values.
    """

    expression: pc.Expression
    compared: tuple[tuple[str, pa.Array], ...]


def parse_where(
    text: str, schema: pa.Schema, class_names: Mapping[str, Sequence[str]]
) -> pc.Expression:
    """Return the expression of `parse_condition`."""
    return parse_condition(text, schema, class_names).expression


def parse_condition(
    text: str, schema: pa.Schema, class_names: Mapping[str, Sequence[str]]
) -> Condition:
    """Parse a condition and check its columns and values.

    Args:
        text: The condition; see the head of this module.
        schema: The columns and their types.
        class_names: Class names of the columns that hold class numbers. Such a column may be
            compared with numbers or names.

    Raises:
        ConfigError: The text is no condition; the message says where.
        StoreError: A column is unknown, or a value has not the type of its column.
    """
    parser = _Parser(text, schema, class_names)
    expression = parser.parse()
    return Condition(expression, tuple(parser.compared))


@dataclass(frozen=True)
class _Token:
    kind: str  # number, word, column, text, sign, key or end
    value: str  # without quotes; key words in lower case
    start: int


class _Parser:
    """Parses one text by recursive descent."""

    def __init__(
        self, text: str, schema: pa.Schema, class_names: Mapping[str, Sequence[str]]
    ) -> None:
        self.compared: list[tuple[str, pa.Array]] = []
        self._text = text
        self._schema = schema
        self._class_names = class_names
        self._tokens = self._split()
        self._at = 0
        self._depth = 0

    def parse(self) -> pc.Expression:
        found = self._condition()
        if self._next.kind != "end":
            self._fail("expected 'and', 'or' or the end")
        return found

    def _split(self) -> list[_Token]:
        tokens: list[_Token] = []
        at = 0
        while True:
            at = _SPACE.match(self._text, at).end()  # type: ignore[union-attr]
            if at == len(self._text):
                return [*tokens, _Token("end", "", at)]
            match = _TOKEN.match(self._text, at)
            if match is None:
                self._fail(_why_no_token(self._text[at]), at)
            kind, value = str(match.lastgroup), match[0]
            if kind in ("column", "text"):
                value = value[1:-1].replace(value[0] * 2, value[0])
            elif kind == "word" and value.lower() in _WORDS:
                kind, value = "key", value.lower()
            tokens.append(_Token(kind, value, at))
            at = match.end()

    # Tokens

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at += token.kind != "end"
        return token

    def _take_if(self, *values: str) -> str | None:
        """Take the next token if it is one of these signs or key words."""
        if self._next.kind in ("sign", "key") and self._next.value in values:
            return self._take().value
        return None

    def _expect(self, sign: str) -> None:
        if self._take_if(sign) is None:
            self._fail(f"expected {sign!r}")

    def _fail(self, expected: str, start: int | None = None) -> NoReturn:
        at = self._next.start if start is None else start
        rest = self._text[at : at + 20]
        place = f"at character {at + 1}, before {rest!r}" if rest.strip() else "at its end"
        around = self._text[max(0, at - _SHOWN) : at + _SHOWN]
        raise ConfigError(f"the condition {around!r} cannot be read {place}: {expected}")

    # Logic

    def _condition(self) -> pc.Expression:
        return self._joined("or", operator.or_, self._all)

    def _all(self) -> pc.Expression:
        return self._joined("and", operator.and_, self._one)

    def _joined(
        self, word: str, join: _Compare, part: Callable[[], pc.Expression]
    ) -> pc.Expression:
        """Parse parts between a key word; join them as a balanced tree, which stays shallow."""
        parts = [part()]
        while self._take_if(word):
            parts.append(part())
        while len(parts) > 1:
            pairs = [join(*parts[i : i + 2]) for i in range(0, len(parts) - 1, 2)]
            parts = pairs + parts[len(pairs) * 2 :]
        return parts[0]

    def _one(self) -> pc.Expression:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._fail(f"more than {_MAX_DEPTH} parentheses and 'not' within each other")
        if self._take_if("not"):
            found = ~self._one()
        elif self._take_if("("):
            found = self._condition()
            self._expect(")")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    # Comparisons

    def _comparison(self) -> pc.Expression:
        if self._next.kind not in ("word", "column"):
            return self._mirrored()
        name = self._column()
        sign = self._take_if(*_SIGNS)
        if sign:
            return self._compare(name, sign, self._value())
        if self._take_if("is"):
            is_negated = self._take_if("not")
            if not self._take_if("null"):
                self._fail("expected 'null'; compare with values by = or in")
            return pc.field(name).is_valid() if is_negated else pc.field(name).is_null()
        is_negated = self._take_if("not")
        if self._take_if("in"):
            found = self._among(name, self._values())
        elif self._take_if("like"):
            found = self._like(name)
        elif is_negated:
            self._fail("expected 'in' or 'like'")
        elif pa.types.is_boolean(self._schema.field(name).type):
            found = pc.field(name)
        else:
            self._fail(f"expected a comparison of {name}, such as = or in")
        return ~found if is_negated else found

    def _mirrored(self) -> pc.Expression:
        """Parse a comparison that begins with its value."""
        value = self._value("expected a column")
        sign = self._take_if(*_SIGNS)
        if not sign:
            self._fail("expected a comparison with a column, such as =")
        if self._next.kind not in ("word", "column"):
            self._fail("expected a column")
        return self._compare(self._column(), _MIRRORED.get(sign, sign), value)

    def _compare(self, name: str, sign: str, value: Any) -> pc.Expression:
        if sign not in _ORDERINGS:
            found = self._among(name, [value])
            return found if _SIGNS[sign] is operator.eq else ~found
        kind = self._schema.field(name).type
        is_class = name in self._class_names and isinstance(value, str)
        if pa.types.is_boolean(kind) or is_class:
            held = "class names" if is_class else "true and false"
            raise StoreError(
                f"cannot select by {name} {sign} {value!r:.60}: {held} have no order; use = or in"
            )
        if pa.types.is_integer(kind) and isinstance(value, float) and math.isfinite(value):
            value = math.floor(value) if sign in (">", "<=") else math.ceil(value)
        return _SIGNS[sign](pc.field(name), typed_values(name, [value], kind)[0])

    def _among(self, name: str, values: Sequence[Any]) -> pc.Expression:
        """Return whether a column has one of some values; neither true nor false if it has none."""
        kind = self._schema.field(name).type
        wanted = typed_values(name, [self._as_class(name, item) for item in values], kind)
        self.compared.append((name, wanted))
        if len(wanted) == 1:
            return pc.field(name) == wanted[0]
        return _unless_missing(name, pc.field(name).isin(wanted))

    def _like(self, name: str) -> pc.Expression:
        if self._next.kind != "text":
            self._fail("expected a pattern in quotes, such as 'abc%'")
        pattern, kind = self._take().value, self._schema.field(name).type
        if name in self._class_names:
            names = pa.array(self._class_names[name], pa.string())
            numbers = pc.indices_nonzero(pc.match_like(names, pattern))
            return _unless_missing(name, pc.field(name).isin(numbers.cast(kind)))
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise StoreError(
                f"cannot select by {name} like {pattern!r:.60}: the column holds "
                f"{held_values(kind)}, and like compares text"
            )
        return pc.match_like(pc.field(name), pattern)

    def _as_class(self, name: str, value: Any) -> Any:
        """Return the number of a class name; any other value as it is."""
        names = self._class_names.get(name)
        if names is None or not isinstance(value, str):
            return value
        return class_number(name, value, names)

    def _column(self) -> str:
        token = self._take()
        name = token.value
        if name in self._schema.names:
            return name
        near = difflib.get_close_matches(name, self._schema.names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise StoreError(
            f"no column {name!r} for the condition {self._text[:_SHOWN]!r}; {hint}the columns are "
            f"{', '.join(self._schema.names)}"
        )

    def _values(self) -> list[Any]:
        if not self._take_if("("):
            self._fail("expected a list in parentheses, such as ('a', 'b')")
        found = [self._value()]
        while self._take_if(","):
            if self._take_if(")"):
                return found
            found.append(self._value())
        if not self._take_if(")"):
            self._fail("expected ',' or ')'")
        return found

    def _value(self, expected: str = "expected a number or a text in quotes") -> Any:
        sign = self._take_if("+", "-")
        token = self._next
        if token.kind == "number":
            if len(token.value) > _MAX_DIGITS:
                self._fail(f"expected a number of at most {_MAX_DIGITS} digits")
            number = int(token.value) if token.value.isdigit() else float(token.value)
            value: Any = -number if sign == "-" else number
        elif sign:
            self._fail("expected a number")
        elif token.kind == "text":
            value = token.value
        elif token.kind == "key" and token.value in ("true", "false"):
            value = token.value == "true"
        elif token.kind == "key" and token.value == "null":
            self._fail("a missing value is found by 'is null' or 'is not null'")
        elif token.kind in ("word", "column") and token.value in self._schema.names:
            self._fail(f"two columns cannot be compared; expected a value, such as '{token.value}'")
        elif token.kind == "word":
            self._fail(f"expected a number or a text in quotes; write '{token.value}'")
        else:
            self._fail(expected)
        self._take()
        return value


def _unless_missing(name: str, found: pc.Expression) -> pc.Expression:
    """Make what is true or false neither of them where a column has no value."""
    return pc.if_else(pc.field(name).is_valid(), found, pa.scalar(None, pa.bool_()))


def _why_no_token(character: str) -> str:
    if character in "'\"`":
        return f"the quote {character} is not closed"
    if character in "&|!~":
        return "write and, or, not"
    if character in "[{":
        return "write a list in parentheses, such as ('a', 'b')"
    return "expected a column, a comparison or a value"
