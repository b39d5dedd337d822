"""Stacks of two-layer heads trained on the same batches, with hand-derived gradients.

A linear head is `outputs = W2 (W1 x + b1) + b2`, where x is the mean over frames of a layer, or of
a weighted sum of layers. Both layers are linear, so they can be multiplied into one:
`outputs = (W2 W1) x + (W2 b1 + b2)`. With few outputs this is much cheaper, and its cost does not
grow with the batch. The gradients with respect to W1, b1, W2 and b2 are the same either way.
Computing them here takes half the time of autograd, which allocates tensors as large as all
parameters. A head with a hidden layer, `outputs = W2 relu(W1 x + b1) + b2`, has the same parameters
and is computed layer by layer.

Plain reference: tests/probing/test_pooled_trainer.py, `test_a_stack_steps_as_autograd_does`, takes
the same steps with plain modules, `WeightedSum`, cross-entropy, autograd and torch's Adam, and
compares losses and parameters, for each way to compute the gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config.sweep_schema import LINEAR
from pipeline.probing.results import WEIGHTED, Candidate, HeadSpec
from pipeline.probing.trainers.objectives import Objective
from pipeline.probing.trainers.snapshot import (
    HeadShape,
    Snapshot,
    initial_parameters,
    matmul_per_head,
)


class Stack(ABC):
    """Heads that are trained together: of one seed and fold, all or none on weighted sums.

    An implementation must implement `snapshot` and `step`, and extend `keep`.

    Attributes:
        specs: Settings of the heads.
        shape: Sizes of each head.
    """

    def __init__(
        self,
        specs: Sequence[HeadSpec],
        layers: Sequence[Candidate],
        shape: HeadShape,
        objective: Objective,
    ) -> None:
        """Find the layers of the heads.

        Args:
            specs: Settings of the heads.
            layers: Candidate at each index of the layer axis of the features.
            shape: Sizes of each head.
            objective: What the heads learn.
        """
        self.specs, self.shape, self._objective = list(specs), shape, objective
        axes = () if self.weighted else tuple(layers.index(spec.layer) for spec in specs)
        self._axes = axes[:1] if len(set(axes)) == 1 else axes

    @property
    def weighted(self) -> bool:
        """Whether the heads are on weighted sums."""
        return self.specs[0].layer == WEIGHTED

    def keep(self, heads: Sequence[int]) -> None:
        """Keep these heads, with their optimizer state, and drop the others."""
        self.specs = [self.specs[i] for i in heads]
        self._axes = tuple(self._axes[i] for i in heads) if len(self._axes) > 1 else self._axes

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Return the heads as they are now; they may share memory with the stack."""

    @abstractmethod
    def step(self, pooled: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Take one step of Adam on the loss of a batch.

        Args:
            pooled: Features of all utterances, float32 [n_layers, n_utterances, dim], contiguous.
            labels: Labels of all utterances, [n_columns, n_utterances].
            rows: Positions of the utterances of the batch, int64 [batch].

        Returns:
            The loss of each head before the step, [n_heads].
        """

    def _initial_parameters(self) -> list[Tensor]:
        """Draw the parameters of all heads as `initial_parameters` does, [n_heads, ...] each."""
        drawn = [initial_parameters(spec.seed, spec.layer, self.shape) for spec in self.specs]
        return [torch.stack(parts) for parts in zip(*drawn, strict=True)]


class HeadStack(Stack):
    """Heads whose steps torch computes, on any device."""

    def __init__(
        self,
        specs: Sequence[HeadSpec],
        layers: Sequence[Candidate],
        shape: HeadShape,
        objective: Objective,
        device: torch.device,
    ) -> None:
        """Initialise the heads as torch initialises linear layers, on a device; see `Stack`."""
        super().__init__(specs, layers, shape, objective)
        self._parameters = [part.to(device) for part in self._initial_parameters()]
        self._make_optimizer(None)

    def keep(self, heads: Sequence[int]) -> None:
        """Keep these heads, with their optimizer state, and drop the others."""
        super().keep(heads)
        previous = self._optimizer.state, self._views
        self._parameters = [part[list(heads)] for part in self._parameters]
        self._make_optimizer((previous[0], [previous[1][i] for i in heads]))

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """Return the heads as they are now; a hidden layer shares memory with the stack."""
        project, project_bias, output, output_bias, *_ = self._parameters
        mix = self._parameters[4].softmax(1) if self.weighted else None
        if self.shape.kind != LINEAR:
            hidden = (project, project_bias.unsqueeze(2))
            return Snapshot(self._axes, mix, hidden, output, output_bias.unsqueeze(2))
        bias = matmul_per_head(output, project_bias.unsqueeze(2)).add_(output_bias.unsqueeze(2))
        return Snapshot(self._axes, mix, None, matmul_per_head(output, project), bias)

    @torch.no_grad()
    def step(self, pooled: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Take one step of Adam on the loss of a batch, and return the loss of each head."""
        now = self.snapshot()
        selected, batch_labels = now.select_layers(pooled, rows), labels[:, rows]
        inputs = now.inputs(selected)
        if now.hidden is not None:
            loss, (left, right) = self._gradients_of_hidden(now, inputs, batch_labels)
        elif self.shape.product_is_cheaper(len(rows)):
            loss, (left, right) = self._gradients_of_product(now, inputs, batch_labels)
        else:
            loss, (left, right) = self._gradients_layer_by_layer(inputs, batch_labels)
        if now.mix is not None:
            self._mix_gradients(now.mix, matmul_per_head(left, right), selected)
        self._optimizer.step()
        return loss

    def _gradients_of_product(
        self, now: Snapshot, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Fill the gradients, computing with the multiplied layers.

        Args:
            now: The heads.
            inputs: [n_heads, batch, dim].
            labels: [n_columns, batch].

        Returns:
            The losses, [n_heads], and two factors whose product is the gradient with respect to the
            inputs: [n_heads, batch, k] and [n_heads, k, dim].
        """
        project, project_bias, output = self._parameters[:3]
        loss, errors = self._objective.loss(now.outputs(inputs), labels)
        weight_gradient = matmul_per_head(errors, inputs)  # [n_heads, n_outputs, dim]
        bias_gradient = torch.stack([head.sum(1, keepdim=True) for head in errors])
        matmul_per_head(output.mT, weight_gradient, out=self._gradients[0])
        matmul_per_head(output.mT, bias_gradient, out=self._gradients[1].unsqueeze(2))
        matmul_per_head(weight_gradient, project.mT, out=self._gradients[2])
        self._gradients[2] += bias_gradient * project_bias.unsqueeze(1)
        self._gradients[3].copy_(bias_gradient.squeeze(2))
        return loss, (errors.mT, now.weight)

    def _gradients_layer_by_layer(
        self, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Fill the gradients layer by layer: cheaper with more outputs than utterances."""
        project, project_bias, output, output_bias = self._parameters[:4]
        hidden = matmul_per_head(inputs, project.mT).add_(project_bias.unsqueeze(1))
        outputs = matmul_per_head(output, hidden.mT).add_(output_bias.unsqueeze(2))
        loss, errors = self._objective.loss(outputs, labels)
        hidden_gradient = matmul_per_head(errors.mT, output)  # [n_heads, batch, projection]
        self._fill_both_layers(inputs, hidden_gradient, hidden, errors)
        return loss, (hidden_gradient, project)

    def _gradients_of_hidden(
        self, now: Snapshot, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Fill the gradients of heads with a hidden layer; the gradient of ReLU at 0 is 0."""
        hidden = now.last_inputs(inputs)  # [n_heads, projection, batch]
        outputs = matmul_per_head(now.weight, hidden).add_(now.bias)
        loss, errors = self._objective.loss(outputs, labels)
        hidden_gradient = matmul_per_head(now.weight.mT, errors).mul_(hidden > 0).mT
        self._fill_both_layers(inputs, hidden_gradient, hidden.mT, errors)
        return loss, (hidden_gradient, self._parameters[0])

    def _fill_both_layers(
        self, inputs: Tensor, hidden_gradient: Tensor, hidden: Tensor, errors: Tensor
    ) -> None:
        """Fill the gradients of weights and biases.

        Args:
            inputs: [n_heads, batch, dim].
            hidden_gradient: Gradient with respect to what the first layer computes, [n_heads,
                batch, projection].
            hidden: What the second layer gets, [n_heads, batch, projection].
            errors: Gradient with respect to the outputs, [n_heads, n_outputs, batch].
        """
        matmul_per_head(hidden_gradient.mT, inputs, out=self._gradients[0])
        torch.stack([head.sum(0) for head in hidden_gradient], out=self._gradients[1])
        matmul_per_head(errors, hidden, out=self._gradients[2])
        torch.stack([head.sum(1) for head in errors], out=self._gradients[3])

    def _mix_gradients(self, mix: Tensor, input_gradient: Tensor, selected: Tensor) -> None:
        """Fill the gradient of the scalars whose softmax gives the weights of the layers.

        Args:
            mix: Weights of the layers, [n_heads, n_layers].
            input_gradient: Gradient with respect to the inputs, [n_heads, batch, dim].
            selected: Features of the batch, [n_layers, batch, dim].
        """
        layers = selected.flatten(1)
        weight_gradient = torch.stack([torch.mv(layers, head.flatten()) for head in input_gradient])
        pairs = zip(mix, weight_gradient, strict=True)
        means = torch.stack([torch.dot(weights, gradient) for weights, gradient in pairs])
        torch.mul(mix, weight_gradient - means.unsqueeze(1), out=self._gradients[4])

    def _make_optimizer(
        self, previous: tuple[dict[Tensor, Any], list[list[Tensor]]] | None
    ) -> None:
        """Make an optimizer with a group per head, whose parameters are views into the stack.

        Args:
            previous: Optimizer state and views to continue from.
        """
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
        if previous is not None:
            for views, old_views in zip(self._views, previous[1], strict=True):
                for view, old in zip(views, old_views, strict=True):
                    self._optimizer.state[view] = previous[0][old]
