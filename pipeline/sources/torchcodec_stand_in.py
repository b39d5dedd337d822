"""Context manager that lets `datasets` run without a working torchcodec.

`datasets` imports torchcodec for every audio column, even if no audio is decoded. The import fails
without FFmpeg before torchcodec 0.16, and beside a torch for another CUDA version or for the CPU
only.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["importable_torchcodec"]

_MODULES = ("torchcodec", "torchcodec.decoders", "torchcodec.encoders")


class _Absent:
    """Placeholder for any class of torchcodec. `isinstance(x, _Absent)` is always False."""


class _StandIn(ModuleType):
    """Module in which every public name is `_Absent`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> type[_Absent]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent


@contextmanager
def importable_torchcodec() -> Iterator[None]:
    """Make `import torchcodec` succeed within the block.

    A torchcodec that cannot be imported is replaced by a stand-in that decodes nothing.
    """
    if _is_importable():
        yield
        return
    replaced = {name: sys.modules[name] for name in _MODULES if name in sys.modules}
    sys.modules.update({name: _StandIn(name) for name in _MODULES})
    try:
        yield
    finally:
        for name in _MODULES:
            del sys.modules[name]
        sys.modules.update(replaced)


def _is_importable() -> bool:
    """Return whether torchcodec can be imported."""
    try:
        importlib.import_module("torchcodec.decoders")
        importlib.import_module("torchcodec.encoders")
    except (ImportError, RuntimeError, OSError):  # not installed, no FFmpeg, no CUDA library
        return False
    return True
