"""Cells of ABX: which items are compared.

A and X are of one class, B is of another; all three have one context. Within speakers, all are of
one speaker; across speakers, A and B are of one speaker and X is of another. A cell is a context, a
speaker of A and B, a speaker of X, and an ordered pair of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

WITHIN, ACROSS = "within", "across"


@dataclass(frozen=True)
class Items:
    """Items to compare.

    Attributes:
        label: Class of each item, int64 [n_items].
        context: Context of each item, int64 [n_items].
        speaker: Speaker of each item, int64 [n_items].
    """

    label: IntArray
    context: IntArray
    speaker: IntArray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, which: IntArray) -> Items:
        """Return some of the items."""
        return Items(self.label[which], self.context[which], self.speaker[which])


@dataclass(frozen=True)
class Block:
    """Items of one context: those of the speaker of A and B, and those of the speaker of X.

    Attributes:
        speaker: Speaker of A and B.
        other: Speaker of X; `speaker` within speakers.
        rows: Candidates for A and B, ascending by class.
        columns: Candidates for X, ascending by class.
    """

    speaker: int
    other: int
    rows: IntArray
    columns: IntArray


def sample_items(items: Items, most: int, seed: int) -> IntArray:
    """Draw at most `most` items of each class, context and speaker; return them ascending."""
    order = np.random.default_rng(seed).permutation(len(items))
    keys = np.stack([items.context, items.speaker, items.label])[:, order]
    order = order[np.lexsort(keys[::-1])]
    drawn = items.take(order)
    is_first = np.ones(len(order), bool)
    is_first[1:] = False
    for values in (drawn.context, drawn.speaker, drawn.label):
        is_first[1:] |= values[1:] != values[:-1]
    first = np.flatnonzero(is_first)
    rank = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    return np.sort(order[rank < most])


def plan_blocks(items: Items, mode: str, most_others: int, seed: int) -> list[Block]:
    """Return the blocks that have a cell.

    Args:
        items: The items.
        mode: "within" or "across" speakers.
        most_others: Across speakers, largest number of speakers of X for a context and a speaker of
            A and B; they are drawn.
        seed: Seed of the draw.
    """
    order = np.lexsort((items.label, items.speaker, items.context))
    sorted_items = items.take(order)
    starts = np.ones(len(order), bool)
    starts[1:] = sorted_items.context[1:] != sorted_items.context[:-1]
    blocks: list[Block] = []
    random = np.random.default_rng(seed)
    for of_context in np.split(order, np.flatnonzero(starts)[1:]):
        speakers = items.speaker[of_context]
        changes = np.flatnonzero(speakers[1:] != speakers[:-1]) + 1
        groups = {int(items.speaker[group[0]]): group for group in np.split(of_context, changes)}
        labels = {name: np.unique(items.label[group]) for name, group in groups.items()}
        for name, rows in groups.items():
            if len(labels[name]) < 2:
                continue  # no B
            if mode == WITHIN:
                if len(rows) > len(labels[name]):  # some class has an A and an X
                    blocks.append(Block(name, name, rows, rows))
                continue
            others = [
                other
                for other in groups
                if other != name and np.isin(labels[other], labels[name]).any()
            ]
            if len(others) > most_others:
                others = sorted(random.choice(others, most_others, replace=False).tolist())
            for other in others:
                shared = np.isin(items.label[groups[other]], labels[name])
                blocks.append(Block(name, other, rows, groups[other][shared]))
    return blocks
