"""Libraries in C that are loaded with ctypes, each with a number of its interface.

`scripts/build_native.py` compiles them. A checkout may be updated and not compiled again: its
libraries then have other functions, or the same functions with other arguments.
"""

from __future__ import annotations

import ctypes
from pathlib import Path


def load_library(path: Path, name: str, interface: int) -> ctypes.CDLL | None:
    """Load a library, whose functions release the interpreter's lock.

    Args:
        path: The file.
        name: What the names of its functions begin with; `NAME_interface` returns its number.
        interface: The number that the caller was written for.

    Returns:
        The library; None if it is not compiled, compiled for another system, or has another number.
    """
    library = _open(path)
    return library if library is not None and _number(library, name) == interface else None


def is_stale(path: Path, name: str, interface: int) -> bool:
    """Return whether `load_library` does not use a library because of its number."""
    library = _open(path)
    return library is not None and _number(library, name) != interface


def _open(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _number(library: ctypes.CDLL, name: str) -> int | None:
    """Return the number of an interface; the first libraries have none."""
    function = getattr(library, f"{name}_interface", None)
    return None if function is None else int(function())
