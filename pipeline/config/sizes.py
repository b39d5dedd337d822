"""Sizes of memory, as numbers of bytes or as text."""

from __future__ import annotations

import re

from pipeline.errors import ConfigError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B|)", re.IGNORECASE)


def parse_bytes(size: int | str, name: str = "memory", least: int = 1) -> int:
    """Return a number of bytes, given as such or as text such as "500MB" or "2 GiB".

    Args:
        size: The setting.
        name: Its name, for messages.
        least: The smallest number.

    Raises:
        ConfigError: It is neither.
    """
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    found = int(float(match[1]) * _UNITS[match[2].upper()]) if match else size
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        or_none = ", or 0 for none" if least == 0 else ""
        raise ConfigError(
            f'{name} is {size!r}; expected bytes, or text such as "2GB" or "500MB"{or_none}'
        )
    return found
