"""Construction of torchaudio's models, with the parts that torchaudio does not have.

The weights of these parts have the names that transformers gives them, below torchaudio's names of
the modules that hold them. The modules compute, too, in plain PyTorch, so torchaudio's
`extract_features` is a reference of the packed code. Those of the Conformer only hold weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.encoders.wav2vec2.conformer import ConformerLayer, RotaryTable
from pipeline.encoders.wav2vec2.norms import BatchNorm

_FACTORIES = {
    "wav2vec2": torchaudio.models.wav2vec2_model,
    "wavlm": torchaudio.models.wavlm_model,
    "conformer": torchaudio.models.wav2vec2_model,
}


@dataclass(frozen=True)
class Parts:
    """What differs from torchaudio's modules; the defaults are theirs.

    Attributes:
        projection_norm: Whether the feature projection starts with a layer norm; DistilHuBERT
            has none.
        position: Positional convolution: "weight_norm"; "batch_norm", a batch norm before it, as in
            some HuBERTs; or "stack", convolutions with layer norms, as in data2vec.
        position_layers: Convolutions of a "stack".
        adapter_dim: Inner size of the adapter after each block of a pre-norm model, as in MMS; None
            if there are no adapters.
    """

    projection_norm: bool = True
    position: str = "weight_norm"
    position_layers: int = 1
    adapter_dim: int | None = None

    def changes(self) -> dict[str, Any]:
        """Return what is not the default, for the identity of a store."""
        pairs = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in pairs if value != field.default}


class _NoValues(TorchFunctionMode):
    """Leaves out initial values on the meta device, for which torch would import its compiler.

    The import takes a second or more, and a process that only plans needs it for nothing else.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return what `func` returns, with any values."""
        if func is nn.init.normal_:
            return (kwargs or {}).get("tensor", *args[:1])
        if func is torch.norm_except_dim:
            weight, _, kept = args
            return weight.new_empty([n if i == kept else 1 for i, n in enumerate(weight.shape)])
        return func(*args, **(kwargs or {}))


def build_model(
    kind: str, params: Mapping[str, Any], parts: Parts, layer_norm_eps: float, device: str
) -> nn.Module:
    """Build a model without the output head, in evaluation mode.

    Args:
        kind: torchaudio factory, "wav2vec2" or "wavlm", or "conformer".
        params: Arguments of the factory. For "conformer" those of "wav2vec2" without the positional
            convolution, and `conformer_kernel`, `conformer_position` and `conformer_activation`.
        parts: What differs from torchaudio's modules.
        layer_norm_eps: Term added to the variance by the layer norms of the transformer.
        device: "cpu" for a randomly initialised model, "meta" for shapes without memory.
    """
    with _NoValues() if device == "meta" else nullcontext(), torch.device(device):
        model: nn.Module = _FACTORIES[kind](**_factory_params(kind, params), aux_num_out=None)
        for module in model.get_submodule("encoder").modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = layer_norm_eps
        if kind == "conformer":
            _add_conformer(model, params)
        else:
            _add_parts(model, params, parts)
    return model.eval()


def _factory_params(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    if kind != "conformer":
        return dict(params)
    replaced = {"num_layers": 0, "pos_conv_kernel": 1, "pos_conv_groups": 1}  # `_add_conformer`
    own = {name: value for name, value in params.items() if not name.startswith("conformer_")}
    return own | {f"encoder_{name}": value for name, value in replaced.items()}


def _add_conformer(model: Any, params: Mapping[str, Any]) -> None:
    """Replace positional convolution and blocks; that convolution is not used in this model."""
    dim, heads = params["encoder_embed_dim"], params["encoder_num_heads"]
    position = params["conformer_position"]
    sizes = dim, params["encoder_ff_interm_features"], heads, params["conformer_kernel"]
    transformer = model.encoder.transformer
    del transformer.pos_conv_embed
    transformer.layers = nn.ModuleList(
        ConformerLayer(*sizes, position) for _ in range(params["encoder_num_layers"])
    )
    if position == "rotary":
        transformer.embed_positions = RotaryTable(dim // heads)


def _add_parts(model: Any, params: Mapping[str, Any], parts: Parts) -> None:
    dim = params["encoder_embed_dim"]
    transformer = model.encoder.transformer
    convolution = dim, params["encoder_pos_conv_kernel"], params["encoder_pos_conv_groups"]
    if not parts.projection_norm:
        model.encoder.feature_projection.layer_norm = nn.Identity()
    if parts.position == "batch_norm":
        transformer.pos_conv_embed = NormedPosition(*convolution)
    elif parts.position == "stack":
        transformer.pos_conv_embed = PositionStack(*convolution, parts.position_layers)
    if parts.adapter_dim is not None:
        for layer in transformer.layers:
            layer.adapter_layer = Adapter(dim, parts.adapter_dim)
            layer.register_forward_hook(_apply_adapter)


class _SameConvolution(nn.Conv1d):
    """A grouped convolution over time that keeps the number of frames."""

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, dim, frames]` to the same shape."""
        return super().forward(x)[..., : x.shape[-1]]  # an even kernel gives one frame too many


class NormedPosition(nn.Module):
    """Positional convolution after a batch norm; the padding is added after the norm."""

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.batch_norm = BatchNorm(dim)
        self.conv = _SameConvolution(dim, kernel, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, frames, dim]` to the same shape."""
        return F.gelu(self.conv(self.batch_norm(x.mT))).mT


class PositionStack(nn.Module):
    """Positional convolutions, each followed by a layer norm without weights and GELU."""

    def __init__(self, dim: int, kernel: int, groups: int, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_PositionLayer(dim, kernel, groups) for _ in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, frames, dim]` to the same shape."""
        for layer in self.layers:
            convolve = layer.get_submodule("conv")
            x = F.gelu(F.layer_norm(convolve(x.mT).mT, x.shape[-1:]))
        return x


class _PositionLayer(nn.Module):
    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = _SameConvolution(dim, kernel, groups)


class Adapter(nn.Module):
    """Bottleneck after a block (Houlsby et al. 2019); its output is added to that of the block."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear_1 = nn.Linear(dim, inner)
        self.linear_2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., dim]` to the same shape."""
        y: Tensor = self.linear_2(F.relu(self.linear_1(self.norm(x))))
        return y


def _apply_adapter(layer: nn.Module, _: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """Add the adapter's output to that of a block of torchaudio."""
    x, position_bias = output
    return x + layer.get_submodule("adapter_layer")(x), position_bias
