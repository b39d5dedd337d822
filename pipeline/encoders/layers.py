"""Numbers and names of the layers of a model.

A store holds both. `-1` and `N + 1` are optional layers that "all" leaves out.
"""

from __future__ import annotations

from pipeline.store.format.layers import CONV, INPUT, standard_name

__all__ = ["CONV", "INPUT", "standard_names"]


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
    numbers = range(CONV if conv else INPUT, n_layers + 1)
    names = {number: standard_name(number) for number in numbers}
    return names | ({n_layers + 1: "final_norm"} if final_norm else {})
