"""A note about tokens that a new store does not get from the store that it is made of."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.events import Observer
from pipeline.store.backend.base import Backend
from pipeline.store.format.tokens import codebook_key
from pipeline.store.tokens.stored import token_names


def note_tokens_of_layers(source: Backend, observer: Observer) -> None:
    """Note that a collapsed store does not get the tokens of the layers that it is made of."""
    names = token_names(source)
    if names:
        observer.note(
            f"tokens {', '.join(names)} are of layers of {source}, and are not copied; read them "
            "there, or tokenize the new store"
        )


def note_tokens(sources: Sequence[Backend], out: Backend, observer: Observer) -> None:
    """Note that tokens are not copied, and the commands that make them.

    Args:
        sources: The stores that are read.
        out: The new store.
        observer: Receives a note for each codebook.
    """
    noted: set[str] = set()
    for source in sources:
        for name in token_names(source):
            if name not in noted:
                noted.add(name)
                observer.note(
                    f"tokens {name!r} of {source} are not copied; `strata tokenize {out} "
                    f"codebook={source.locate(codebook_key(name))}` makes them"
                )
