"""Ranges of an object: near ones merged to one request, many requests in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from pipeline.objects.library import generation

COALESCE_BYTES = 1 << 20
"""Bytes between two ranges that are rather read than requested apart."""
IN_FLIGHT = 32
LONGEST_BYTES = 8 << 20
"""Bytes of a merged range at most: a longer one would be faster in two requests."""

Fetch = Callable[[int, int], memoryview]


def merge(
    starts: Sequence[int], lengths: Sequence[int], coalesce: int = COALESCE_BYTES
) -> list[tuple[int, int, list[int]]]:
    """Merge ranges that are near to each other.

    Args:
        starts: First byte of each range.
        lengths: Bytes of each, more than 0.
        coalesce: The largest gap within a merged range, in bytes.

    Returns:
        Each merged range: its start, its stop, and the numbers of the ranges in it, by start.
    """
    merged: list[tuple[int, int, list[int]]] = []
    for number in sorted(range(len(starts)), key=starts.__getitem__):
        start, stop = starts[number], starts[number] + lengths[number]
        if merged:
            first, last, members = merged[-1]
            is_near = start <= last + coalesce
            if is_near and (start < last or max(stop, last) - first <= LONGEST_BYTES):
                merged[-1] = (first, max(last, stop), [*members, number])
                continue
        merged.append((start, stop, [number]))
    return merged


def fetch_merged(
    fetch: Fetch, starts: Sequence[int], lengths: Sequence[int], coalesce: int = COALESCE_BYTES
) -> list[memoryview]:
    """Fetch ranges, those near to each other together, `IN_FLIGHT` at a time.

    Args:
        fetch: Fetches a range by its start and its length.
        starts: First byte of each range.
        lengths: Bytes of each; an empty one is not fetched.
        coalesce: The largest gap within a merged range, in bytes.

    Returns:
        The bytes of each range, in the order of the arguments.
    """
    found = [memoryview(b"")] * len(starts)
    full = [number for number, length in enumerate(lengths) if length]
    merged = merge([starts[i] for i in full], [lengths[i] for i in full], coalesce)
    if len(merged) == 1:
        contents = [fetch(merged[0][0], merged[0][1] - merged[0][0])]
    else:
        spans = [(start, stop - start) for start, stop, _ in merged]
        contents = list(_pool(generation()).map(lambda span: fetch(*span), spans))
    for (first, _, members), content in zip(merged, contents, strict=True):
        for member in members:
            start = starts[full[member]] - first
            found[full[member]] = content[start : start + lengths[full[member]]]
    return found


@cache
def _pool(generation: int) -> ThreadPoolExecutor:
    """Return the threads of this process, which a fork of it does not have."""
    return ThreadPoolExecutor(IN_FLIGHT, "strata-objects")
