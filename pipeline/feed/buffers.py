"""Memory of batches, used again and again.

Reading into fresh memory takes about twice as long as reading into memory that was used before: the
system zeroes every page first. So a batch is read into what an earlier batch has used, once nobody
holds that batch, or any view of it, any more.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Halves = npt.NDArray[np.float16]

_MOST_SPARE = 4


class _Loan:
    """Stands between memory and the arrays over it: it dies with the last of them."""

    def __init__(self, memory: Halves) -> None:
        self.__array_interface__ = memory.__array_interface__


def lend(memory: Halves, shape: Sequence[int], give_back: Callable[[], object]) -> Halves:
    """An array of `shape` at the start of `memory`; `give_back` is called when it is done with.

    That is when neither the array nor anything that shares its memory, tensors included, is held
    by anybody.
    """
    loan = _Loan(memory)
    weakref.finalize(loan, _hand_back, memory, give_back).atexit = False
    return np.asarray(loan)[: math.prod(shape)].reshape(shape)


class Pool:
    """Memory of this process: float16 arrays of any shape, from memory that was used before."""

    def __init__(self) -> None:
        self._spare: list[Halves] = []

    def take(self, shape: Sequence[int]) -> Halves:
        """An array of `shape` with any content."""
        size = math.prod(shape)
        fitting = [i for i, memory in enumerate(self._spare) if memory.size >= size]
        if fitting:
            memory = self._spare.pop(fitting[0])
        else:
            del self._spare[: 1 - _MOST_SPARE]
            memory = np.empty(size + size // 8, np.float16)  # the next one may be a bit longer
        spare = self._spare

        def give_back() -> None:
            if len(spare) < _MOST_SPARE:
                spare.append(memory)

        return lend(memory, shape, give_back)


class SharedRing:
    """Buffers that workers fill and this process reads, so that no batch is copied between them.

    A buffer is either free, or with a worker, or on loan to whoever holds the batch.
    """

    def __init__(self, n_buffers: int, size: int) -> None:
        """Makes `n_buffers` of `size` values; the system gives them memory as they are used."""
        self.size = size
        self.buffers = [shared(size) for _ in range(n_buffers)]
        self._free = list(range(n_buffers))
        self._with_workers: set[int] = set()

    def assign(self, size: int) -> int:
        """A buffer for a worker to put `size` values into; -1 if none is free, or long enough."""
        if size > self.size or not self._free:
            return -1
        number = self._free.pop()
        self._with_workers.add(number)
        return number

    def receive(self, number: int, shape: Sequence[int]) -> Tensor:
        """The batch that a worker has put into a buffer; it is free again when that is done with.

        Returns:
            float16 tensor of `shape`.
        """
        self._with_workers.discard(number)
        free = self._free

        def give_back() -> None:
            free.append(number)

        return torch.from_numpy(lend(self.buffers[number].numpy(), shape, give_back))

    def reclaim(self) -> None:
        """Takes back what workers have: they were told to stop, and nobody waits for it."""
        self._free.extend(self._with_workers)
        self._with_workers.clear()


def shared(size: int) -> Tensor:
    """Memory for `size` values that goes from process to process without being copied."""
    n_bytes = size * torch.float16.itemsize
    storage = torch.UntypedStorage._new_shared(n_bytes)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.float16).set_(storage, 0, (size,), (1,))


def _hand_back(memory: Halves, give_back: Callable[[], object]) -> None:
    give_back()  # `memory` is an argument so that it outlives the loan
