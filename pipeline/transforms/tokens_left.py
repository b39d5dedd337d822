"""A note about tokens that a new store does not get from the store that it is made of."""

from __future__ import annotations

from pipeline.events import Observer
from pipeline.store.backend.base import Backend
from pipeline.store.tokens.stored import token_names


def note_tokens_of_layers(source: Backend, observer: Observer) -> None:
    """Note that a collapsed store does not get the tokens of the layers that it is made of."""
    names = token_names(source)
    if names:
        observer.note(
            f"tokens {', '.join(names)} are of layers of {source}, and are not copied; read them "
            "there, or tokenize the new store"
        )
