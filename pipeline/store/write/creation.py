"""Creation of a store: the documents that say what its units are."""

from __future__ import annotations

from typing import Any

from pipeline.errors import DamagedError, counted
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.documents import write_group
from pipeline.store.format.layout import ATTRIBUTES, Layout


def create_store(
    backend: Backend, layout: Layout, n_slots: int, attributes: dict[str, Any]
) -> None:
    """Write the documents of a new store.

    Args:
        backend: The store.
        layout: Its shapes.
        n_slots: Length of the slot axis.
        attributes: Attributes of the group.

    Raises:
        DamagedError: There are units already.
    """
    check_no_units(backend)
    write_group(backend, layout, n_slots, attributes)


def check_no_units(backend: Backend) -> None:
    """Check that a store without attributes has no committed units.

    Their layers and encoder are unknown then: with new attributes they could be read as features of
    other layers.

    Raises:
        DamagedError: It has.
    """
    committed = index_files.committed_units(backend)
    if committed:
        raise DamagedError(
            f"store {backend} has {counted(len(committed), 'committed unit')}, but "
            f"{backend.locate(ATTRIBUTES)}, which says what they are, is gone: restore it from a "
            f"copy of the store; or remove what is left of {backend}, and make it anew"
        )
