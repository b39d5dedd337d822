"""Numbers and names of layers, of a model and of a store, and the choice of some of them.

A number is no position: -1 is the output of the convolution stack and not the last layer. `-1` and
`N + 1` of a model with N blocks are optional layers, which "all" leaves out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import ConfigError, StoreError

CONV = -1
"""Output of the convolution stack, before the feature projection."""
INPUT = 0
"""Input of block 1."""
COLLAPSED_LAYER = CONV
"""Layer number in a collapsed store; in other stores it is that of `conv`: see `is_collapsed`."""
COLLAPSED = "collapsed"
"""Name of the layer of a collapsed store, the weighted sum of the layers of its parent."""
LAYER_NAMES = "layer_names"
"""Attribute of a store with the names of its layers, if they are not the standard ones."""
_STANDARD = re.compile(r"conv|input|final_norm|block_\d+|\d+")


def standard_name(layer: int) -> str:
    """Return the name of a layer of a model whose numbers are those of its blocks.

    Example:
        >>> [standard_name(layer) for layer in (-1, 0, 12)]
        ['conv', 'input', 'block_12']
    """
    return {CONV: "conv", INPUT: "input"}.get(layer, f"block_{layer}")


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


def name_layers(layers: Sequence[int], names: Sequence[str] = ()) -> dict[int, str]:
    """Return the name of each layer, by number.

    Args:
        layers: Numbers.
        names: Name of each; empty in results of earlier versions, whose layers have standard ones.
    """
    known = names if len(names) == len(layers) else map(standard_name, layers)
    return dict(zip(layers, known, strict=True))


def label_of(layer: int, name: str) -> str:
    """Return what tables call a layer: its number if it is 0 or a block, else its name.

    A name of digits, as in `torch.nn.Sequential`, would look like the number of another layer, so
    that such a layer is called by its own number.

    Example:
        >>> label_of(6, "block_6"), label_of(13, "final_norm")
        ('6', 'final_norm')
    """
    is_numbered = layer >= INPUT and (name == standard_name(layer) or name.isdigit())
    return str(layer) if is_numbered else name


def label_layers(layers: Sequence[int], names: Sequence[str] = ()) -> dict[int, str]:
    """Return the label of each layer, by number; the arguments are those of `name_layers`."""
    return {layer: label_of(layer, name) for layer, name in name_layers(layers, names).items()}


def layer_text(label: str) -> str:
    """Return what sentences call a layer with a label: `layer 6`, `conv`."""
    return f"layer {label}" if label.isdigit() else label


def labels_of(names: Mapping[int, str]) -> str:
    """Return the labels of layers, for a message: `[0, 1, final_norm]`."""
    return f"[{', '.join(label_of(layer, name) for layer, name in names.items())}]"


def is_collapsed(attributes: Mapping[str, Any]) -> bool:
    """Return whether a store was made by `collapse`, from its attributes.

    Its only layer has the number -1, as `conv` of other stores.
    """
    is_single = list(attributes.get("layers", ())) == [COLLAPSED_LAYER]
    return is_single and "collapse" in attributes.get("identity", {})


def number_layers(
    layers: Sequence[int | str],
    names: Mapping[int, str],
    of: str = "the store",
    *,
    dropped: Sequence[int] = (),
    error: type[ConfigError] | type[StoreError] = StoreError,
    are_extractable: bool = True,
) -> tuple[int, ...]:
    """Return the numbers of layers that are asked for by number or by name, in their order.

    Args:
        layers: Numbers, names, or both.
        names: Names of the layers that there are, by number.
        of: What has them, for messages.
        dropped: Layers that were dropped, for messages.
        error: What to raise.
        are_extractable: Whether the message says how to extract layers that are not there.

    Raises:
        ConfigError, StoreError: It is no list, or empty, or has a layer that is not there.
    """
    expected = f"expected some of {labels_of(names)}, the layers of {of}"
    if isinstance(layers, str | bytes) or not hasattr(layers, "__len__"):
        raise error(f"layers is {layers!r:.60}; {expected}, in a list")
    if not len(layers):
        raise error(f"layers=[] names no layers; {expected}, or leave it out for all of them")
    numbers = {name: number for number, name in names.items()} | {n: n for n in names}
    unknown = [layer for layer in layers if _key(layer) not in numbers]
    if unknown:
        listed = ", ".join(str(layer) for layer in unknown)
        gone = f" (layers {list(dropped)} were dropped)" if dropped else ""
        hint = _hint(unknown, names, are_extractable)
        raise error(f"no layers [{listed}] in {of}; it has {labels_of(names)}{gone}{hint}")
    return tuple(numbers[_key(layer)] for layer in layers)


def counting_hint(layers: Sequence[object], names: Mapping[int, str]) -> str:
    """Return a hint for negative numbers that are no layers, to append to a message; else "".

    Args:
        layers: Layers that are not there.
        names: Names of those that are, by number.
    """
    negative = [str(n) for n in layers if re.fullmatch(r"-\d+", str(n))]
    if not negative:
        return ""
    last = max(names)
    also = " (-1 is conv)" if str(CONV) in negative else ""
    return (
        f"; negative numbers do not count from the end{also}: the last layer is "
        f"{label_of(last, names[last])}"
    )


def _hint(unknown: Sequence[object], names: Mapping[int, str], are_extractable: bool) -> str:
    """Return the remedy for layers that are not there, to append to a message."""
    if COLLAPSED in names.values():
        return "; only their weighted sum is left. The store that it was made from has the layers"
    if hint := counting_hint(unknown, names):
        return hint
    words = [word for word in unknown if isinstance(word, str) and not _STANDARD.fullmatch(word)]
    close = [name for word in words for name in difflib.get_close_matches(word, names.values(), 1)]
    if close:
        return f"; did you mean {' and '.join(dict.fromkeys(close))}?"
    listed = [str(layer) for layer in unknown if isinstance(layer, str | int)]
    if not are_extractable or not listed:
        return ""
    return (
        f"; extract.layers=[{','.join(listed)}] with another store= extracts them, if the model "
        "has them"
    )


def _key(layer: object) -> Any:
    """Return a layer as it is looked up; None for what can be none."""
    return layer if isinstance(layer, str) or hasattr(layer, "__index__") else None
