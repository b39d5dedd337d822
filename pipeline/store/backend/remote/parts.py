"""Objects of the store that are several in the bucket.

An object store cannot append to an object, or change a part of one. What needs that is kept in
parts, `KEY/~NAME`, and read in the order of their names. No key of a store has such a name.
"""

from __future__ import annotations

MARK = "~"


def part_key(key: str, name: str) -> str:
    """Return the key of a part in the bucket."""
    return f"{key}/{MARK}{name}"


def whole_key(key: str) -> str:
    """Return the key of the object that a key of the bucket is a part of, or the key itself."""
    folder, _, name = key.rpartition("/")
    return folder if folder and name.startswith(MARK) else key


def part_name(key: str) -> str:
    """Return the name of a part from its key."""
    return key.rpartition("/")[2].removeprefix(MARK)


def is_part(key: str) -> bool:
    """Return whether a key of the bucket is that of a part."""
    return key.rpartition("/")[2].startswith(MARK)
