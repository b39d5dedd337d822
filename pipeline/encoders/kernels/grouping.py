"""Padded groups of clips of like length, for attention that needs a rectangle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.encoders.kernels.base import Pack

_FRAME_MULTIPLE = 16  # of a group: attention kernels copy a mask whose rows are not aligned
_MIN_SHARE = 0.85  # of the longest clip of a group that its shortest one has
_MAX_SCORES = 2**23  # of a group, for each head


@dataclass(frozen=True)
class PaddedGroup:
    """Clips of like length, padded to a rectangle.

    Attributes:
        rows: Packed frame of each place, int64 `[n_clips, n_frames]`; padding repeats the clip's
            first frame.
        is_padding: bool `[n_clips, n_frames]`.
    """

    rows: Tensor
    is_padding: Tensor


@dataclass(frozen=True)
class PaddedGroups:
    """All clips of a pack in padded groups.

    Attributes:
        groups: The groups.
        places: For each packed frame, its place in the concatenated rectangles: int64 `[n_frames]`.
        n_frames: Frames of the longest group.
    """

    groups: list[PaddedGroup]
    places: Tensor
    n_frames: int


def pad_in_groups(pack: Pack) -> PaddedGroups:
    """Group the clips of a pack by length."""
    counts, starts = np.asarray(pack.counts), np.asarray(pack.starts)
    order = np.argsort(-counts, kind="stable")
    first_place = np.zeros(len(counts), np.int64)  # of each clip
    groups = []
    begin = n_places = longest = 0
    while begin < len(order):
        n_frames = -(-int(counts[order[begin]]) // _FRAME_MULTIPLE) * _FRAME_MULTIPLE
        longest = max(longest, n_frames)
        like = int(np.count_nonzero(counts[order[begin:]] >= _MIN_SHARE * counts[order[begin]]))
        members = order[begin : begin + max(1, min(like, _MAX_SCORES // n_frames**2))]
        begin += len(members)
        first_place[members] = n_places + np.arange(len(members)) * n_frames
        n_places += len(members) * n_frames
        is_padding = np.arange(n_frames) >= counts[members][:, None]
        rows = starts[members][:, None] + np.where(is_padding, 0, np.arange(n_frames))
        groups.append(PaddedGroup(pack.indices(rows), pack.indices(is_padding)))
    places = first_place[pack.clip_of_frame] + pack.frame_in_clip
    return PaddedGroups(groups, pack.indices(places), longest)
