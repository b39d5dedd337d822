"""A stack of two-layer linear heads that see the same batches, and its gradients written out.

A head is `logits = W2 (W1 x + b1) + b2`, x the mean over frames of a layer or of a weighted sum of
layers. Both layers are linear, so they may be multiplied out, `logits = (W2 W1) x + (W2 b1 + b2)`:
with few classes that costs a fraction, and the cost no longer grows with the batch. The gradients
with respect to W1, b1, W2 and b2 are the same either way. They are few enough to be written out,
which takes half of autograd's time: it makes and throws away tensors as large as all parameters.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.probing.labels import HeadSpec
from pipeline.probing.results import WEIGHTED, Layer


class Shape(NamedTuple):
    """Sizes of a head.

    Attributes:
        dim: Features.
        projection: Width of the layer between.
        classes: Classes of each label column; logits lie side by side.
        n_layers: Layers under a weighted sum.
    """

    dim: int
    projection: int
    classes: tuple[int, ...]
    n_layers: int

    @property
    def slots(self) -> list[slice]:
        """Where the logits of each label column lie."""
        ends = np.cumsum([0, *self.classes]).tolist()
        return [slice(start, stop) for start, stop in pairwise(ends)]


class Readout(NamedTuple):
    """Heads as one linear map each, from pooled features to logits.

    Attributes:
        axes: Layers they look at, on the layer axis: one for all heads, or one each.
        mix: Weights of the layers in place of that, [heads, n_layers]; else None.
        weight: [heads, classes, dim].
        bias: [heads, classes, 1].
    """

    axes: tuple[int, ...]
    mix: Tensor | None
    weight: Tensor
    bias: Tensor

    def seen(self, pooled: Tensor, rows: Tensor) -> Tensor:
        """The layers that the heads look at, of some utterances.

        Args:
            pooled: Of all utterances, [n_layers, n_utterances, dim].
            rows: Which utterances, [n].

        Returns:
            [n_layers, n, dim]: one layer for all heads, one each, or all for weighted sums.
        """
        if self.mix is not None:
            return pooled[:, rows]
        if len(self.axes) == 1:
            return pooled[self.axes[0]][rows].unsqueeze(0)
        return torch.stack([pooled[axis][rows] for axis in self.axes])

    def inputs(self, seen: Tensor) -> Tensor:
        """What each head sees of layers [n_layers, n, dim]: [heads, n, dim]."""
        if self.mix is None:
            return seen.expand(len(self.weight), -1, -1)
        return torch.stack([torch.mv(seen.flatten(1).T, mix) for mix in self.mix]).view(
            len(self.mix), *seen.shape[1:]
        )

    def scores(self, inputs: Tensor) -> Tensor:
        """Logits [heads, classes, n] of inputs [heads, n, dim]."""
        return products(self.weight, inputs.mT).add_(self.bias)

    def head(self, number: int) -> Readout:
        """A copy of one head."""
        at = slice(number, number + 1)
        axes = self.axes[at] if len(self.axes) > 1 else self.axes
        mix = None if self.mix is None else self.mix[at].clone()
        return Readout(axes, mix, self.weight[at].clone(), self.bias[at].clone())


class Stack:
    """Heads that are trained together: all of one seed and fold, and all or none weighted sums.

    Attributes:
        specs: The heads.
    """

    def __init__(
        self, specs: Sequence[HeadSpec], layers: Sequence[Layer], shape: Shape, device: torch.device
    ) -> None:
        """Starts as torch's linear layers do.

        Args:
            specs: The heads.
            layers: What is on the layer axis of the features.
            shape: Sizes.
            device: Where the parameters live.
        """
        self.specs = list(specs)
        self.shape = shape
        starts = [first_values(spec.seed, spec.layer, shape) for spec in specs]
        self._parameters = [torch.stack(parts).to(device) for parts in zip(*starts, strict=True)]
        axes = () if self.weighted else tuple(layers.index(spec.layer) for spec in specs)
        self._axes = axes[:1] if len(set(axes)) == 1 else axes
        self._bind(None)

    @property
    def weighted(self) -> bool:
        """Whether these are heads on weighted sums."""
        return self.specs[0].layer == WEIGHTED

    def keep(self, heads: Sequence[int]) -> None:
        """Goes on with these heads only, with the state of their optimiser."""
        before = self._optimizer.state, self._views
        self.specs = [self.specs[i] for i in heads]
        self._parameters = [part[list(heads)] for part in self._parameters]
        self._axes = tuple(self._axes[i] for i in heads) if len(self._axes) > 1 else self._axes
        self._bind((before[0], [before[1][i] for i in heads]))

    @torch.no_grad()
    def readout(self) -> Readout:
        """The heads, each multiplied out."""
        project, project_bias, output, output_bias, *_ = self._parameters
        bias = products(output, project_bias.unsqueeze(2)).add_(output_bias.unsqueeze(2))
        mix = self._parameters[4].softmax(1) if self.weighted else None
        return Readout(self._axes, mix, products(output, project), bias)

    @torch.no_grad()
    def step(self, pooled: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """One step of Adam on the mean cross-entropy of a batch, summed over label columns.

        Args:
            pooled: Features of all utterances, [n_layers, n_utterances, dim].
            labels: Their classes, [n_columns, n_utterances].
            rows: Utterances of the batch, [batch].

        Returns:
            The loss of each head before the step, [heads].
        """
        readout = self.readout()
        seen, wanted = readout.seen(pooled, rows), labels[:, rows]
        inputs = readout.inputs(seen)
        if self._product_is_cheaper(len(rows)):
            loss, (left, right) = self._by_product(readout, inputs, wanted)
        else:
            loss, (left, right) = self._one_by_one(inputs, wanted)
        if readout.mix is not None:
            self._differentiate_mix(readout.mix, products(left, right), seen)
        self._optimizer.step()
        return loss

    def _by_product(
        self, readout: Readout, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Fills the gradients, with the layers multiplied out.

        Args:
            readout: The heads as they stand.
            inputs: [heads, batch, dim].
            labels: [n_columns, batch].

        Returns:
            Losses, and two factors of the gradient with respect to the inputs.
        """
        project, project_bias, output = self._parameters[:3]
        loss, errors = self._loss(readout.scores(inputs), labels)
        towards_weight = products(errors, inputs)  # [heads, classes, dim]
        towards_bias = torch.stack([one.sum(1, keepdim=True) for one in errors])
        products(output.mT, towards_weight, out=self._gradients[0])
        products(output.mT, towards_bias, out=self._gradients[1].unsqueeze(2))
        products(towards_weight, project.mT, out=self._gradients[2])
        self._gradients[2] += towards_bias * project_bias.unsqueeze(1)
        self._gradients[3].copy_(towards_bias.squeeze(2))
        return loss, (errors.mT, readout.weight)

    def _one_by_one(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `_by_product`, layer by layer: cheaper with more classes than utterances."""
        project, project_bias, output, output_bias = self._parameters[:4]
        hidden = products(inputs, project.mT).add_(project_bias.unsqueeze(1))
        logits = products(output, hidden.mT).add_(output_bias.unsqueeze(2))
        loss, errors = self._loss(logits, labels)
        towards_hidden = products(errors.mT, output)  # [heads, batch, projection]
        products(towards_hidden.mT, inputs, out=self._gradients[0])
        torch.stack([one.sum(0) for one in towards_hidden], out=self._gradients[1])
        products(errors, hidden, out=self._gradients[2])
        torch.stack([one.sum(1) for one in errors], out=self._gradients[3])
        return loss, (towards_hidden, project)

    def _loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each head, and its gradient with respect to the logits."""
        n = logits.shape[2]
        loss = logits.new_zeros(len(logits))
        errors = torch.empty_like(logits)
        ones = logits.new_ones(()).expand(len(logits), 1, n)
        for slot, wanted in zip(self.shape.slots, labels, strict=True):
            scores = logits[:, slot].log_softmax(1)
            place = wanted.expand(len(logits), 1, n)
            loss -= scores.gather(1, place).mean((1, 2))
            errors[:, slot] = scores.exp_().scatter_add_(1, place, -ones)
        return loss, errors.div_(n)

    def _differentiate_mix(self, mix: Tensor, towards_inputs: Tensor, seen: Tensor) -> None:
        """Fills the gradient of the scalars, whose softmax mixes the layers."""
        layers = seen.flatten(1)
        towards_mix = torch.stack([torch.mv(layers, one.flatten()) for one in towards_inputs])
        pairs = zip(mix, towards_mix, strict=True)
        surplus = torch.stack([torch.dot(one, other) for one, other in pairs])
        torch.mul(mix, towards_mix - surplus.unsqueeze(1), out=self._gradients[4])

    def _product_is_cheaper(self, batch: int) -> bool:
        dim, projection, classes, _ = self.shape
        both, product = projection * (dim + sum(classes)), dim * sum(classes)
        return projection * product + batch * product < batch * both

    def _bind(self, before: tuple[dict[Tensor, Any], list[list[Tensor]]] | None) -> None:
        """Gives each head an optimiser's view of its part of the parameters and gradients."""
        self._gradients = [torch.zeros_like(part) for part in self._parameters]
        self._views = [[part[i] for part in self._parameters] for i in range(len(self.specs))]
        for i, views in enumerate(self._views):
            for view, gradient in zip(views, self._gradients, strict=True):
                view.grad = gradient[i]
        groups = [
            {"params": views, "lr": spec.lr}
            for spec, views in zip(self.specs, self._views, strict=True)
        ]
        self._optimizer = torch.optim.Adam(groups, fused=True)
        if before is not None:
            for views, old_views in zip(self._views, before[1], strict=True):
                for view, old in zip(views, old_views, strict=True):
                    self._optimizer.state[view] = before[0][old]


def products(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Matrix products of the heads, [heads, m, k] times [heads, k, n].

    On a CPU head by head, as all sums are: in other company a batched product or sum rounds
    differently, and a head must not depend on its neighbours.
    """
    if left.is_cuda:
        return torch.bmm(left, right) if out is None else torch.bmm(left, right, out=out)
    if out is None:
        out = left.new_empty(len(left), left.shape[1], right.shape[2])
    for one, other, place in zip(left, right, out, strict=True):
        torch.mm(one, other, out=place)
    return out


def first_values(seed: int, layer: Layer, shape: Shape) -> list[Tensor]:
    """Parameters of a head before training, drawn as `nn.Linear` does: of its seed and layer alone.

    Returns:
        [projection, dim], [projection], [classes, projection], [classes]; and of a weighted sum the
        scalars [n_layers], zeros.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {layer}".encode()))
    values = []
    for n_out, n_in in ((shape.projection, shape.dim), (sum(shape.classes), shape.projection)):
        bound = 1 / math.sqrt(n_in)
        sizes = ((n_out, n_in), (n_out,))
        values += [torch.empty(size).uniform_(-bound, bound, generator=generator) for size in sizes]
    return [*values, torch.zeros(shape.n_layers)] if layer == WEIGHTED else values
