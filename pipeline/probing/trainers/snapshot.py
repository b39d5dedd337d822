"""Stacked heads at one step of their training: what they compute, and their tensors by name.

A linear head is `outputs = W2 (W1 x + b1) + b2`, where x are the features of a layer, or of a
weighted sum of layers. Both of its layers are linear, so a snapshot has them multiplied into one:
`outputs = (W2 W1) x + (W2 b1 + b2)`. A head with a hidden layer (`task.head=mlp`) is
`outputs = W2 relu(W1 x + b1) + b2`.
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config.sweep_schema import LINEAR
from pipeline.probing.results import WEIGHTED, Candidate
from pipeline.probing.trainers.native import heads as native


class HeadShape(NamedTuple):
    """Sizes of a head.

    Attributes:
        dim: Features per utterance.
        projection: Width of the first layer.
        n_outputs: Logits of all label columns, concatenated; one per column for a regression.
        n_layers: Number of layers that a weighted sum combines.
        kind: "linear", or "mlp" for ReLU after the first layer.
    """

    dim: int
    projection: int
    n_outputs: int
    n_layers: int
    kind: str = LINEAR

    def product_is_cheaper(self, batch: int) -> bool:
        """Return whether a step with both layers multiplied takes fewer multiplications.

        Args:
            batch: Utterances of a batch.
        """
        both, product = self.projection * (self.dim + self.n_outputs), self.dim * self.n_outputs
        return self.projection * product + batch * product < batch * both


class Snapshot(NamedTuple):
    """Heads of one stack at one step of their training.

    Attributes:
        axes: Index of each head's layer on the layer axis, [n_heads]; a single index if all heads
            read the same layer; empty for weighted sums.
        mix: Weights of all layers, [n_heads, n_layers], for weighted sums; else None.
        hidden: Weight [n_heads, projection, dim] and bias [n_heads, projection, 1] of a hidden
            layer; None for linear heads.
        weight: [n_heads, n_outputs, dim], or with a hidden layer [n_heads, n_outputs, projection].
        bias: [n_heads, n_outputs, 1].
    """

    axes: tuple[int, ...]
    mix: Tensor | None
    hidden: tuple[Tensor, Tensor] | None
    weight: Tensor
    bias: Tensor

    @property
    def n_values(self) -> int:
        """Largest number of values that all heads compute for one input, beside the inputs."""
        n_hidden = 0 if self.hidden is None else self.hidden[1].numel()
        return max(self.bias.numel(), n_hidden)

    def select_layers(self, pooled: Tensor, rows: Tensor) -> Tensor:
        """Select the layers that the heads read, for some utterances.

        Args:
            pooled: Features of all utterances, float32 [n_layers, n_utterances, dim].
            rows: Positions of the utterances, int64 [n].

        Returns:
            [n_selected, n, dim]: one layer for all heads, one per head, or all for weighted sums.
        """
        if self.mix is not None:
            return pooled[:, rows]
        if len(self.axes) == 1:
            return pooled[self.axes[0]][rows].unsqueeze(0)
        return torch.stack([pooled[axis][rows] for axis in self.axes])

    def inputs(self, selected: Tensor) -> Tensor:
        """Return the input of each head, [n_heads, n, dim].

        Args:
            selected: Result of `select_layers`, [n_selected, n, dim].
        """
        if self.mix is None:
            return selected.expand(len(self.weight), -1, -1)
        return torch.stack([torch.mv(selected.flatten(1).T, mix) for mix in self.mix]).view(
            len(self.mix), *selected.shape[1:]
        )

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs [n_heads, n_outputs, n] of inputs [n_heads, n, dim]."""
        return matmul_per_head(self.weight, self.last_inputs(inputs)).add_(self.bias)

    def outputs_of(self, pooled: Tensor, rows: Tensor) -> Tensor:
        """Return the outputs for some utterances, [n_heads, n_outputs, n].

        Args:
            pooled: Features of all utterances, float32 [n_layers, n_utterances, dim].
            rows: Positions of the utterances, int64 [n].
        """
        if self.mix is None or not native.can_mix(pooled):
            return self.outputs(self.inputs(self.select_layers(pooled, rows)))
        inputs = pooled.new_empty(len(self.mix), len(rows), pooled.shape[2])
        native.mix_layers(pooled, rows, self.mix, inputs)
        return self.outputs(inputs)

    def last_inputs(self, inputs: Tensor) -> Tensor:
        """Return what the last layer gets: values of the hidden layer, or the inputs.

        Args:
            inputs: [n_heads, n, dim].

        Returns:
            [n_heads, projection, n], or for linear heads [n_heads, dim, n].
        """
        if self.hidden is None:
            return inputs.mT
        weight, bias = self.hidden
        return matmul_per_head(weight, inputs.mT).add_(bias).relu_()

    def copy_of(self, number: int) -> Snapshot:
        """Return a copy of one head."""
        at = slice(number, number + 1)
        axes = self.axes[at] if len(self.axes) > 1 else self.axes
        mix = None if self.mix is None else self.mix[at].clone()
        hidden = None
        if self.hidden is not None:
            hidden = (self.hidden[0][at].clone(), self.hidden[1][at].clone())
        return Snapshot(axes, mix, hidden, self.weight[at].clone(), self.bias[at].clone())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the first head by name, as `pipeline.heads` keeps them."""
        found = {"weight": self.weight[0], "bias": self.bias[0, :, 0]}
        if self.hidden is not None:
            found |= {"hidden_weight": self.hidden[0][0], "hidden_bias": self.hidden[1][0, :, 0]}
        return found if self.mix is None else found | {"layer_weights": self.mix[0]}


def matmul_per_head(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply matrices head by head: [n_heads, m, k] @ [n_heads, k, n].

    On a CPU one product per head, and likewise one sum per head in `head_stack.py`: batched
    products and sums round differently for different numbers of heads, and a head must not depend
    on the other heads in training.
    """
    if left.is_cuda:
        return torch.bmm(left, right) if out is None else torch.bmm(left, right, out=out)
    if out is None:
        out = left.new_empty(len(left), left.shape[1], right.shape[2])
    for head_left, head_right, head_out in zip(left, right, out, strict=True):
        torch.mm(head_left, head_right, out=head_out)
    return out


def initial_parameters(seed: int, layer: Candidate, shape: HeadShape) -> list[Tensor]:
    """Draw the parameters of a head before training, as `nn.Linear` does, from seed and layer.

    Returns:
        [projection, dim], [projection], [n_outputs, projection], [n_outputs]; for a weighted sum
        also the scalars [n_layers], all zero.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {layer}".encode()))
    values = []
    for n_out, n_in in ((shape.projection, shape.dim), (shape.n_outputs, shape.projection)):
        bound = 1 / math.sqrt(n_in)
        sizes = ((n_out, n_in), (n_out,))
        values += [torch.empty(size).uniform_(-bound, bound, generator=generator) for size in sizes]
    return [*values, torch.zeros(shape.n_layers)] if layer == WEIGHTED else values
