"""`Kind`: where an architecture of transformers has its encoder, its blocks and its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.general.front_ends import FrontEnd
from pipeline.encoders.kernels.base import to_device
from pipeline.store.format.geometry import FrameGeometry

Arguments = dict[str, Tensor | None]
Parts = tuple[FrontEnd, FrameGeometry]


def _mask(batch: Tensor, lengths: Sequence[int]) -> Tensor | None:
    """Return bool `[clips, time]`, or None if nothing is padding."""
    if min(lengths) == batch.shape[1]:
        return None
    mask = torch.arange(batch.shape[1]) < torch.tensor(list(lengths))[:, None]
    return to_device(mask, batch.device)


def with_mask(batch: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Arguments:
    """Return the clips, and a mask if there is padding."""
    key = "input_values" if batch.ndim == 2 else "input_features"
    return {key: batch, "attention_mask": _mask(batch, lengths)}


def one_channel(batch: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Arguments:
    """Return the clips with an axis for one channel, and a mask if there is padding."""
    return {"input_values": batch[:, None], "padding_mask": _mask(batch, lengths)}


def only_states(batch: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Arguments:
    """Return the clips, for an encoder that takes no mask."""
    return {"hidden_states": batch}


def whole_window(batch: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Arguments:
    """Return the windows, for an encoder that also attends to the frames beyond the audio."""
    return {"input_features": batch.transpose(1, 2)}


def attended_window(batch: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Arguments:
    """Return the windows with the frames beyond the audio masked, as Qwen2-Audio does."""
    mask = torch.arange(batch.shape[1] // 2) < torch.tensor(list(counts))[:, None]
    return {
        "input_features": batch.transpose(1, 2),
        "attention_mask": to_device(mask[:, None, None], batch.device),
    }


@dataclass(frozen=True)
class Kind:
    """One architecture.

    Attributes:
        package: Package of `transformers.models` with the encoder.
        encoder_class: Class of the encoder.
        extractor_class: Class of its feature extractor.
        prefix: Pattern of the prefix of the encoder's names in a checkpoint of a whole model.
        blocks: Name of the list of blocks in the encoder.
        parts: Returns front end and geometry from the encoder's configuration, the feature
            extractor and the name of the checkpoint.
        options: Entries of the configuration that change a feature.
        arguments: Returns the arguments of the encoder from a batch `[clips, time, ...]`, the
            length of each clip within it, and the frames of each clip.
        can_pad: Whether the encoder takes a mask, so that padding may change nothing.
        inner: Attribute of the checkpoint's configuration with that of the encoder.
        n_layers: Entry of the configuration with the number of blocks.
        dim: Entry with the size of a feature vector.
        final_norm: Norm of the last block's output, if there is one.
        norm_if: Entry of the configuration that says whether there is; None for always.
        file: What follows `modeling_` in the name of its module; None if it is `package`.
    """

    package: str
    encoder_class: str
    extractor_class: str
    prefix: str
    blocks: str
    parts: Callable[[Any, Any, str], Parts]
    options: tuple[str, ...]
    arguments: Callable[[Tensor, Sequence[int], Sequence[int]], Arguments] = with_mask
    can_pad: bool = True
    inner: str | None = None
    n_layers: str = "num_hidden_layers"
    dim: str = "hidden_size"
    final_norm: str | None = None
    norm_if: str | None = None
    file: str | None = None

    @property
    def module(self) -> str:
        """Module of transformers with the encoder."""
        return f"transformers.models.{self.package}.modeling_{self.file or self.package}"

    def encoder_config(self, config: Any) -> Any:
        """Return the configuration of the encoder within that of a checkpoint."""
        inner = getattr(config, self.inner, None) if self.inner else None
        return config if inner is None else inner

    def norm_of(self, encoder_config: Any) -> str | None:
        """Return the norm of the last block's output, if the encoder has one."""
        has_norm = self.norm_if is None or getattr(encoder_config, self.norm_if, False)
        return self.final_norm if has_norm else None
