"""A stack of linear heads on a CPU, whose steps C code takes in one pass over the parameters.

It computes what `HeadStack` does, up to rounding: with the layers multiplied into one, the
gradients of both layers, the step of Adam and the next product. In torch these are six passes over
parameters that do not fit the caches of a core. Weighted sums of all heads of the stack, and the
gradients of their weights, are computed while an utterance's features are in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config.sweep_schema import LINEAR
from pipeline.probing.results import Candidate, HeadSpec
from pipeline.probing.trainers.head_stack import HeadStack, Stack
from pipeline.probing.trainers.native import heads as native
from pipeline.probing.trainers.native.heads import HeadInputs, HeadTensors, NativeHeads
from pipeline.probing.trainers.objectives import Objective
from pipeline.probing.trainers.snapshot import HeadShape, Snapshot, matmul_per_head


class FusedStack(Stack):
    """Linear heads whose steps C code computes, on a CPU."""

    def __init__(
        self,
        specs: Sequence[HeadSpec],
        layers: Sequence[Candidate],
        shape: HeadShape,
        objective: Objective,
    ) -> None:
        """Initialise the heads as torch initialises linear layers; see `Stack`."""
        super().__init__(specs, layers, shape, objective)
        parts = self._initial_parameters()
        first, first_bias, last, last_bias = parts[:4]
        scalars = parts[4] if self.weighted else torch.empty(len(specs), 0)
        self._values = HeadTensors(first, first_bias, last.mT.contiguous(), last_bias, scalars)
        self._means, self._squares = self._values.zeros(), self._values.zeros()
        self._product = matmul_per_head(last, first)
        bias = matmul_per_head(last, first_bias.unsqueeze(2))
        self._product_bias = bias.add_(last_bias.unsqueeze(2))
        self._n_steps = 0
        self._bind()

    def keep(self, heads: Sequence[int]) -> None:
        """Keep these heads, with their optimizer state, and drop the others."""
        super().keep(heads)
        self._values, self._means = self._values.take(heads), self._means.take(heads)
        self._squares = self._squares.take(heads)
        self._product = self._product[list(heads)]
        self._product_bias = self._product_bias[list(heads)]
        self._bind()

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """Return the heads as they are now; they share memory with the stack."""
        mix = self._values.scalars.softmax(1) if self.weighted else None
        return Snapshot(self._axes, mix, None, self._product, self._product_bias)

    @torch.no_grad()
    def step(self, pooled: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Take one step of Adam on the loss of a batch, and return the loss of each head."""
        axes = self._axes * len(self.specs) if len(self._axes) == 1 else self._axes
        inputs = HeadInputs(pooled, rows, axes, self.snapshot().mix)
        self._native.mix(inputs)
        loss, errors = self._objective.loss(self._native.outputs(inputs), labels[:, rows])
        self._n_steps += 1
        self._native.learn(self._n_steps, inputs, errors)
        return loss

    def _bind(self) -> None:
        self._native = NativeHeads(
            self._values,
            self._means,
            self._squares,
            self._product,
            self._product_bias,
            [spec.lr for spec in self.specs],
        )


def make_stack(
    specs: Sequence[HeadSpec],
    layers: Sequence[Candidate],
    shape: HeadShape,
    objective: Objective,
    device: torch.device,
    batch: int,
) -> Stack:
    """Return untrained heads of one seed and fold.

    Args:
        specs: Settings of the heads.
        layers: Candidate at each index of the layer axis of the features.
        shape: Sizes of each head.
        objective: What the heads learn.
        device: Device of the parameters.
        batch: Utterances, spans or frames of a batch.
    """
    is_linear = shape.kind == LINEAR and shape.product_is_cheaper(batch)
    if is_linear and device.type == "cpu" and native.fits(shape.dim, shape.projection):
        return FusedStack(specs, layers, shape, objective)
    return HeadStack(specs, layers, shape, objective, device)
