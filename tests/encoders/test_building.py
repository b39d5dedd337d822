"""Models on the meta device, from which shapes are taken."""

from __future__ import annotations

import pytest

from tests.helpers.encoder_kinds import ALL_KINDS, small_spec


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_model_without_values_has_the_same_shapes(kind):
    """Leaving out initial values changes no name, shape or dtype."""
    spec = small_spec(kind)
    shapes, weights = (spec.build(device).state_dict() for device in ("meta", "cpu"))
    assert all(tensor.is_meta for tensor in shapes.values())
    assert [(name, one.shape, one.dtype) for name, one in shapes.items()] == [
        (name, one.shape, one.dtype) for name, one in weights.items()
    ]
