"""The final LayerNorm of pre-norm models, which is not applied to stored layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.store.format.layers import LAYER_NAMES


@dataclass(frozen=True)
class FinalNorm:
    """The LayerNorm that follows the last layer of a model.

    Attributes:
        layer: Number of that layer.
        weight: float32 [dim].
        bias: float32 [dim].
        eps: Added to the variance.
    """

    layer: int
    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, attributes: dict[str, Any]) -> FinalNorm:
        """Return the norm in the attributes of a store.

        Raises:
            StoreError: There is none.
        """
        found = attributes.get("final_norm")
        if found is None and "final_norm" in attributes.get(LAYER_NAMES, ()):
            raise StoreError(
                "the store lacks the layer before the final norm; read layers=['final_norm'], "
                "which has it applied, without final_norm"
            )
        if found is None:
            raise StoreError(
                "the store has no final norm: its model normalises its last layer itself "
                "(post-norm), or that layer was not extracted; read it without final_norm"
            )
        return cls(
            layer=int(found["layer"]),
            weight=torch.tensor(found["weight"], dtype=torch.float32),
            bias=torch.tensor(found["bias"], dtype=torch.float32),
            eps=float(found["eps"]),
        )

    def apply(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        """Normalise the model's last layer in place, if it is among `layers`.

        Args:
            features: As stored, [n_layers, n_frames, dim].
            layers: Layer numbers of the first axis.

        Returns:
            `features`; computed in float32, rounded to their dtype.
        """
        for i, layer in enumerate(layers):
            if layer == self.layer:
                frames = features[i].float()
                shape = frames.shape[-1:]
                features[i] = torch.nn.functional.layer_norm(
                    frames, shape, self.weight, self.bias, self.eps
                )
        return features
