"""Interpreter of pickles that builds data only: nothing is imported, called or executed.

The opcodes come from `pickletools`. Containers and scalars become Python's own. Every class or
function becomes a `Named`, every object that would be built an `Inert`, whatever opcode builds it.
The exceptions are a few constructors, given by the caller, that make data of their arguments.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.encoders.checkpoints.records import Inert, Named

Constructor = Callable[..., Any]
"""Function that makes data of the arguments in a pickle; it must be harmless for any arguments, and
raise ValueError for those that do not fit."""

_MAX_OPCODES = 5_000_000  # the checkpoints of fairseq have some 100,000
_MAX_READ_BYTES = 1 << 28  # longest string; real checkpoints have lists of words and file names
_DICTS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")
_RECONSTRUCTOR = "copyreg._reconstructor"
_OF_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # also in protocols 0 to 2
_NO_ARGUMENT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,  # the items of a set need not be hashable here
}
_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_KEYS = (str, int, float, bytes, bool, type(None))
_MARK = object()


class Stream:
    """Bytes of a file, read from a position on; `pickletools` needs `read` and `readline`.

    Attributes:
        position: Offset of the next byte.
    """

    def __init__(self, data: memoryview, position: int = 0) -> None:
        """Use `data` without copying it.

        Args:
            data: The bytes.
            position: Offset of the first byte to read.
        """
        self._data = data
        self.position = position

    def read(self, n_bytes: int) -> bytes:
        """Read up to `n_bytes` bytes.

        Raises:
            ValueError: More than the longest string is asked for.
        """
        if not 0 <= n_bytes <= _MAX_READ_BYTES:
            raise ValueError(f"it states a string of {n_bytes} bytes")
        part = bytes(self._data[self.position : self.position + n_bytes])
        self.position += len(part)
        return part

    def readline(self) -> bytes:
        """Read to the next line feed, or to the end."""
        line = bytearray()
        while part := self.read(256):
            end = part.find(b"\n") + 1
            if end:
                self.position -= len(part) - end
                return bytes(line + part[:end])
            line += part
            if len(line) > _MAX_READ_BYTES:
                raise ValueError("it has a line without an end")
        return bytes(line)


def read_pickle(
    stream: Stream, constructors: Mapping[str, Constructor], persistent: Callable[[Any], Any]
) -> Any:
    """Interpret one pickle; the stream is then behind it.

    Args:
        stream: The bytes.
        constructors: By the full names of functions or classes: what to make of a call.
        persistent: Makes data of a persistent id, as `persistent_load` of an unpickler.

    Raises:
        ValueError: The pickle is damaged or truncated, or has an operation that no checkpoint has.
    """
    machine = _Machine(constructors, persistent)
    source: Any = stream  # it has what `genops` needs of a file
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(source)):
            if count > _MAX_OPCODES:
                raise ValueError(f"its pickle has more than {_MAX_OPCODES} operations")
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    except (LookupError, TypeError, ArithmeticError, MemoryError, RecursionError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__})") from error
    raise ValueError("its pickle has no end")


class _Machine:
    """Stack and memo of a pickle."""

    def __init__(
        self, constructors: Mapping[str, Constructor], persistent: Callable[[Any], Any]
    ) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._constructors = constructors
        self._persistent = persistent

    def run(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        if name in _PUSHED:
            self._stack.append(argument)
        elif name in _NO_ARGUMENT:
            self._stack.append(_NO_ARGUMENT[name]())
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name == "MARK":
            self._stack.append(_MARK)
        else:
            operation = getattr(self, f"_{name.lower()}", None)
            if operation is None:
                raise ValueError(f"its pickle has the operation {name}, which no checkpoint has")
            operation(argument)

    def pop(self) -> Any:
        """Remove and return the top of the stack."""
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("its pickle is damaged (a mark in place of a value)")
        return value

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise ValueError("its pickle is damaged (a mark in place of a value)")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("its pickle is damaged (a mark is missing)")
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    # Operations without an effect on values.

    def _proto(self, argument: Any) -> None:
        """Every protocol is read."""

    def _frame(self, argument: Any) -> None:
        """The bytes of a frame follow in the stream."""

    # Stack and containers.

    def _pop(self, argument: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, argument: Any) -> None:
        self._pop_to_mark()

    def _dup(self, argument: Any) -> None:
        self._stack.append(self._top())

    def _tuple(self, argument: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _tuple1(self, argument: Any) -> None:
        self._stack.append((self.pop(),))

    def _tuple2(self, argument: Any) -> None:
        second, first = self.pop(), self.pop()
        self._stack.append((first, second))

    def _tuple3(self, argument: Any) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self._stack.append((first, second, third))

    def _list(self, argument: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def _frozenset(self, argument: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _dict(self, argument: Any) -> None:
        values = self._pop_to_mark()
        self._stack.append({})
        self._set(values)

    def _append(self, argument: Any) -> None:
        self._extend([self.pop()])

    def _appends(self, argument: Any) -> None:
        self._extend(self._pop_to_mark())

    def _additems(self, argument: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        (target.items if isinstance(target, Inert) else _expect(target, list)).extend(values)

    def _setitem(self, argument: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def _setitems(self, argument: Any) -> None:
        self._set(self._pop_to_mark())

    def _set(self, values: list[Any]) -> None:
        target = self._top()
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if isinstance(target, Inert):
            target.entries += pairs
            return
        entries = _expect(target, dict)
        for key, value in pairs:
            if isinstance(key, _KEYS) or (
                isinstance(key, tuple) and all(isinstance(part, _KEYS) for part in key)
            ):
                entries[key] = value
            elif not isinstance(key, Inert | Named):  # an enumeration; no weight has such a name
                raise ValueError(f"its pickle has a key of the type {type(key).__name__}")

    # Classes, functions and objects.

    def _global(self, argument: Any) -> None:
        self._stack.append(_named(*str(argument).split(" ", 1)))

    def _stack_global(self, argument: Any) -> None:
        name, module = _expect(self.pop(), str), _expect(self.pop(), str)
        self._stack.append(_named(module, name))

    def _ext1(self, argument: Any) -> None:
        self._stack.append(Named(f"the extension {argument}"))

    _ext2 = _ext4 = _ext1

    def _reduce(self, argument: Any) -> None:
        args = _expect(self.pop(), tuple)
        self._stack.append(self._call(self.pop(), args))

    def _newobj(self, argument: Any) -> None:
        args = _expect(self.pop(), tuple)
        self._stack.append(_new(self.pop(), args))

    def _newobj_ex(self, argument: Any) -> None:
        named_args, args = _expect(self.pop(), dict), _expect(self.pop(), tuple)
        self._stack.append(_new(self.pop(), (*args, named_args)))

    def _inst(self, argument: Any) -> None:
        args = tuple(self._pop_to_mark())
        self._stack.append(self._call(_named(*str(argument).split(" ", 1)), args))

    def _obj(self, argument: Any) -> None:
        called, *args = self._pop_to_mark()
        self._stack.append(self._call(called, tuple(args)))

    def _build(self, argument: Any) -> None:
        state, target = self.pop(), self._top()
        if isinstance(target, Inert):
            target.state = state
        elif isinstance(target, str | int | float | bytes | tuple | list | Named | None):
            raise ValueError(f"its pickle gives a state to a {type(target).__name__}")
        # The state of an OrderedDict or a tensor is its attributes, which nothing here needs.

    def _persid(self, argument: Any) -> None:
        self._stack.append(self._persistent(argument))

    def _binpersid(self, argument: Any) -> None:
        self._stack.append(self._persistent(self.pop()))

    def _call(self, called: Any, args: tuple[Any, ...]) -> Any:
        """Record a call, or make its data if it is one of the known constructors."""
        if isinstance(called, Named) and called.kind in self._constructors:
            return self._constructors[called.kind](*args)
        return _new(called, args)


def _named(module: str, name: str = "") -> Named:
    return Named(f"{_OF_PYTHON_2.get(module, module)}.{name}")


def _new(called: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(called, Named):
        return Inert("a call of an object", args)
    if called.kind == _RECONSTRUCTOR and args:
        return _new(args[0], args[2:])
    if called.kind in _DICTS:
        if called.kind == _DICTS[0] and args and isinstance(args[0], list):  # pairs, in Python 2
            return {_expect(key, str): value for key, value in args[0]}
        return {}
    return Inert(called.kind, args)


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(
            f"its pickle is damaged (a {type(value).__name__} in place of a {kind.__name__})"
        )
    return value
