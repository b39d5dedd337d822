"""Files read through memory maps, where the extension is compiled and the file system is local."""

from __future__ import annotations

from typing import TYPE_CHECKING

INTERFACE = 2
"""Number of the interface that is used here; a library from before a change has another one."""

try:
    from pipeline.store.native import _mapped
    from pipeline.store.native._mapped import MappedFile as MappedFile

    _is_stale = getattr(_mapped, "INTERFACE", 0) != INTERFACE
except ImportError:  # not compiled, or for another system
    _is_stale = True
if _is_stale and not TYPE_CHECKING:
    MappedFile = None

READY, RANGE, BLOCKS = 0, 1, 2
"""What `MappedFile.needs` returns: nothing, the bytes of the range, or whole blocks of the file."""


def map_file(descriptor: int, whole: bool) -> MappedFile | None:
    """Map a file that is open for reading; return None where that is not possible or no faster.

    Args:
        descriptor: The open file; it must stay open as long as the map is used.
        whole: Whether most of it will be read, so that whole blocks are fetched from the beginning.
    """
    if MappedFile is None:
        return None
    try:
        return MappedFile(descriptor, whole)
    except OSError:
        return None
