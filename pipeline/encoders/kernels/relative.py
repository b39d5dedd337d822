"""Scores of relative positions, as in Transformer-XL (Dai et al. 2019, section 3.3)."""

from __future__ import annotations

from torch import Tensor


def relative_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Multiply each query with the keys of the positions relative to it.

    Args:
        query: `[clips, heads, n_frames, head_dim]`.
        keys: Key of each relative position, from m - 1 frames before the query to m - 1 after it,
            m ≥ n_frames: `[heads, 2 * m - 1, head_dim]`.

    Returns:
        `[clips, heads, n_frames, n_frames]`: score of query i for the position of frame j.
    """
    clips, heads, n, _ = query.shape
    first = (keys.shape[1] + 1) // 2 - n
    products = (query @ keys[:, first : first + 2 * n - 1].mT).contiguous()
    # Query i has the position of frame j in column n - 1 - i + j: a view whose rows start one
    # column earlier each.
    size = n * (2 * n - 1)
    strides = (heads * size, size, 2 * n - 2, 1)
    return products.as_strided((clips, heads, n, n), strides, products.storage_offset() + n - 1)
