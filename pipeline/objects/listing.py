"""A large folder listed in parallel.

A server lists a thousand objects at a time, and each page begins where the one before has ended. If
names are known that are probably there, pages can begin at every thousandth of them and be asked
for together.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.objects.base import ObjectInfo, Objects
from pipeline.objects.client import LIST_PAGE
from pipeline.objects.parallel import run_parallel

_LISTS_IN_FLIGHT = 8  # a list is more work for a server than a read


def list_folder(client: Objects, folder: str, expected: Sequence[str] = ()) -> list[ObjectInfo]:
    """List the objects directly below a folder, in the order of their keys.

    Args:
        client: The bucket and the prefix.
        folder: The folder.
        expected: Names that are probably there; what is returned does not depend on them.
    """
    if len(expected) <= LIST_PAGE:
        return sorted(client.list_folder(folder)[0], key=_key)
    bounds = sorted(f"{folder}/{name}" for name in expected)[LIST_PAGE - 1 :: LIST_PAGE]
    spans = zip(["", *bounds], [*bounds, ""], strict=True)
    pages = run_parallel(lambda span: client.list(folder, *span), spans, _LISTS_IN_FLIGHT)
    found = [info for page in pages for info in page]
    depth = folder.count("/") + 1
    return sorted((info for info in found if info.key.count("/") == depth), key=_key)


def _key(info: ObjectInfo) -> str:
    return info.key
