"""The result of an export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Export:
    """Result of an export.

    Attributes:
        format: Name of the format.
        out: The folder.
        manifest: The index: a line of JSON with id, path, n_frames and columns per utterance.
        utterances: Exported utterances.
        utterances_written: Those that this run has written.
        layers: Exported layers.
        axes: Axes of the values of an utterance.
        dtype: Dtype of the values.
        bytes: Bytes of all values.
        wall_seconds: Duration of this run.
    """

    format: str
    out: str
    manifest: str
    utterances: int
    utterances_written: int
    layers: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: str
    bytes: int
    wall_seconds: float
