"""Sizes of memory, as numbers of bytes or as text."""

from __future__ import annotations

import re

from pipeline.errors import ConfigError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B|)", re.IGNORECASE)


def parse_bytes(memory: int | str) -> int:
    """Return a number of bytes, given as such or as text such as "500MB" or "2 GiB".

    Raises:
        ConfigError: It is neither.
    """
    match = _SIZE.fullmatch(memory.strip()) if isinstance(memory, str) else None
    if match:
        return int(float(match[1]) * _UNITS[match[2].upper()])
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise ConfigError(f'memory is {memory!r}; expected bytes, or text such as "2GB" or "500MB"')
    return memory
