"""Removal of files from the page cache, for reads from the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Remove files from the page cache, after writing them to the disk; skip folders."""
    for path in paths:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
