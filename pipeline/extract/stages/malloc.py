"""Memory that is free again goes back to the system.

A batch on a CPU makes and frees blocks of 5 to 60 MB of ever other sizes. glibc's malloc keeps what
lies between blocks still in use, and finds no room there for the next larger one: within a unit of
HuBERT base a worker grew by half a unit's features.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


def give_back() -> None:
    """Give freed pages back, where the C library can (glibc); elsewhere nothing is done."""
    trim = _find_trim()
    if trim is not None:
        trim(0)


@cache
def _find_trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
