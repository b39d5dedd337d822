"""Structs of the Thrift compact protocol, in which Parquet writes its footer and its page headers.

Bytes in, numbers out. Only what these need is returned: numbers, booleans, structs, lists of
structs, and the lengths of texts. Everything else is skipped. See https://github.com/apache/thrift/blob/master/doc/specs/
thrift-compact-protocol.md.
"""

from __future__ import annotations

Struct = dict[int, "int | Struct | list[Struct]"]
"""Values by the number of their field. Booleans are 0 and 1, and texts are their lengths."""

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY = range(1, 9)
_LIST, _SET, _MAP, _STRUCT, _UUID = range(9, 14)
_FIXED_BYTES = {_BYTE: 1, _DOUBLE: 8, _UUID: 16}
_MAX_DEPTH = 8
_MAX_VARINT_BYTES = 10


class ThriftError(ValueError):
    """Bytes that are no struct."""


class IncompleteError(ThriftError):
    """Bytes that end before the struct does."""


def read_struct(data: bytes, start: int = 0) -> tuple[Struct, int]:
    """Read a struct.

    The work is bounded by the number of bytes.

    Args:
        data: The bytes.
        start: Position of the struct.

    Returns:
        Its fields, and the position after it.

    Raises:
        IncompleteError: The bytes end within it.
        ThriftError: They are no struct.
    """
    return _Reader(data, start).struct()


def number_of(fields: Struct, number: int) -> int:
    """Return a number of a struct.

    Raises:
        ThriftError: There is none.
    """
    value = fields.get(number)
    if not isinstance(value, int):
        raise ThriftError(f"it lacks the number {number}")
    return value


def struct_of(fields: Struct, number: int) -> Struct:
    """Return a struct within a struct.

    Raises:
        ThriftError: There is none.
    """
    value = fields.get(number)
    if not isinstance(value, dict):
        raise ThriftError(f"it lacks the part {number}")
    return value


def list_of(fields: Struct, number: int) -> list[Struct]:
    """Return a list of structs within a struct; an empty one if there is none."""
    value = fields.get(number)
    return value if isinstance(value, list) else []


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    """Read an unsigned number of 7 bits a byte.

    Returns:
        The number, and the position after it.

    Raises:
        IncompleteError: The bytes end within it.
        ThriftError: It is longer than 10 bytes.
    """
    if start < len(data) and data[start] < 0x80:  # most are
        return data[start], start + 1
    value = 0
    for i, byte in enumerate(data[start : start + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, start + i + 1
    if start + _MAX_VARINT_BYTES > len(data):
        raise IncompleteError("it ends too early")
    raise ThriftError("it has a number of more than 10 bytes")


class _Reader:
    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position
        self._depth = 0

    def struct(self) -> tuple[Struct, int]:
        return self._struct(), self._position

    def _struct(self) -> Struct:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ThriftError("it is nested too deeply")
        fields: Struct = {}
        number = 0
        while (head := self._byte()) != 0:
            step, kind = head >> 4, head & 0x0F
            number = number + step if step else self._integer()
            value = self._value(kind)
            if value is not None:
                fields[number] = value
        self._depth -= 1
        return fields

    def _value(self, kind: int) -> int | Struct | list[Struct] | None:
        """Read a value of a field; None if it is skipped."""
        if kind in (_TRUE, _FALSE):
            return int(kind == _TRUE)
        if kind in (_I16, _I32, _I64):
            return self._integer()
        if kind == _STRUCT:
            return self._struct()
        if kind in _FIXED_BYTES:
            self._skip(_FIXED_BYTES[kind])
        elif kind == _BINARY:
            length = self._varint()
            self._skip(length)
            return length
        elif kind in (_LIST, _SET):
            head = self._byte()
            n_elements = head >> 4 if head >> 4 < 15 else self._varint()
            if head & 0x0F == _STRUCT:
                return [self._struct() for _ in range(n_elements)]
            self._skip_elements(n_elements, (head & 0x0F,))
        elif kind == _MAP:
            n_elements = self._varint()
            head = self._byte() if n_elements else 0
            self._skip_elements(n_elements, (head >> 4, head & 0x0F))
        else:
            raise ThriftError(f"it has a field of the unknown type {kind}")
        return None

    def _skip_elements(self, n_elements: int, kinds: tuple[int, ...]) -> None:
        for _ in range(n_elements):
            for kind in kinds:
                if kind in (_TRUE, _FALSE):
                    self._skip(1)  # in a field it takes no byte of its own
                else:
                    self._value(kind)

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value, self._position = read_varint(self._data, self._position)
        return value

    def _byte(self) -> int:
        if self._position >= len(self._data):
            raise IncompleteError("it ends too early")
        self._position += 1
        return self._data[self._position - 1]

    def _skip(self, n_bytes: int) -> None:
        self._position += n_bytes
        if self._position > len(self._data):
            raise IncompleteError("it ends too early")
