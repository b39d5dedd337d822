"""Numbers and names of the layers of a model.

A store holds numbers; the names are for people. `-1` and `N + 1` are optional layers that "all"
leaves out.
"""

from __future__ import annotations

CONV = -1
"""Output of the convolution stack, before the feature projection."""
INPUT = 0
"""Input of block 1."""


def standard_names(
    n_layers: int, *, conv: bool = False, final_norm: bool = False
) -> dict[int, str]:
    """Return the layers of a model with N blocks, by number.

    Args:
        n_layers: N.
        conv: Whether the output of the convolution stack is a layer, -1.
        final_norm: Whether the last block's output after the model's final norm is one, N + 1.

    Example:
        >>> standard_names(2, conv=True, final_norm=True)
        {-1: 'conv', 0: 'input', 1: 'block_1', 2: 'block_2', 3: 'final_norm'}
    """
    names = {CONV: "conv"} if conv else {}
    names |= {INPUT: "input"} | {i: f"block_{i}" for i in range(1, n_layers + 1)}
    return names | ({n_layers + 1: "final_norm"} if final_norm else {})
