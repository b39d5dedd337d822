"""The final LayerNorm of pre-norm models, which stored layers are without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StoreError


@dataclass(frozen=True)
class FinalNorm:
    """A LayerNorm that belongs on top of a model's last layer.

    Attributes:
        layer: That layer.
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
        """The norm that a store's attributes carry.

        Raises:
            StoreError: They carry none.
        """
        found = attributes.get("final_norm")
        if found is None:
            raise StoreError(
                "the store has no final norm: its model norms its last layer itself (post-norm), "
                "or that layer was not extracted; read it without final_norm"
            )
        return cls(
            layer=int(found["layer"]),
            weight=torch.tensor(found["weight"], dtype=torch.float32),
            bias=torch.tensor(found["bias"], dtype=torch.float32),
            eps=float(found["eps"]),
        )

    def apply(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        """Norms the model's last layer in place, wherever it stands among `layers`.

        Args:
            features: As stored, [n_layers, n_frames, dim].
            layers: What its first axis holds.

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
