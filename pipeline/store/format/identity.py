"""Identity of a store: every setting that changes a stored byte; and comparison of identities.

Workers, batch sizes and paths are not part of the identity. Versions of libraries are provenance.
The utterances are compared in the plan.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import IdentityError
from pipeline.store.format.codecs import DEFAULT_CODEC
from pipeline.store.format.layout import FORMAT_VERSION, KEPT, Layout
from pipeline.store.format.pooling import MEAN

Identity = dict[str, Any]
SOXR_KEY = "resampler_for_large_factors"
"""Key of the second resampler in the audio part of an identity: a store that was created without
audio of such sample rates lacks it."""

_MISSING = object()
_COMMIT, _SHA256 = "weights.commit", "weights.sha256"


def make_identity(
    source: dict[str, Any],
    audio: dict[str, Any],
    encoder: dict[str, Any],
    layout: Layout | None = None,
) -> Identity:
    """Return the identity of a store.

    Args:
        source: Dataset kind, name, revision, id rule and carried columns.
        audio: Decoder, mono rule, resampler and their settings.
        encoder: Architecture, weights, layers and precision.
        layout: Arrays of the store; None for those of format 1.
    """
    codec = DEFAULT_CODEC if layout is None else layout.codec
    identity = {
        "format_version": FORMAT_VERSION if layout is None else layout.format_version,
        "dtype": codec.name,
        "source": source,
        "audio": audio,
        "encoder": encoder,
    }
    if layout is not None and layout.keep != KEPT:
        identity["keep"] = list(layout.keep)
    if layout is not None and layout.statistics != (MEAN,):
        identity["pooling"] = list(layout.statistics)
    return identity


def check_same(stored: Identity, wanted: Identity, where: str) -> None:
    """Check that a store holds the features that this run would write.

    Args:
        stored: Identity in the store.
        wanted: Identity of this run.
        where: Location of the store, for the message.

    Raises:
        IdentityError: It does not; the message lists every difference.
    """
    differences = compare(stored, wanted)
    if differences:
        raise IdentityError(
            f"store {where} holds other features: {'; '.join(differences)}. "
            "Use the same settings to resume it, or another store= to start a new one"
        )


def compare(stored: Identity, wanted: Identity) -> list[str]:
    """Return every difference of two identities, as `key is STORED there, WANTED here`.

    The commit of a checkpoint on the hub says where its weights are from. It is not compared where
    both have the same SHA-256: a later commit may have changed a text only, and the same weights
    may be in a directory.
    """
    old, new = _flatten(stored), _flatten(wanted)
    for key in [key for key in {**old, **new} if key.endswith(_COMMIT)]:
        digest = key.removesuffix(_COMMIT) + _SHA256
        if old.get(digest) is not None and old.get(digest) == new.get(digest):
            old.pop(key, None)
            new.pop(key, None)
    keys = [*old, *(key for key in new if key not in old)]
    pairs = ((key, old.get(key, _MISSING), new.get(key, _MISSING)) for key in keys)
    return [_difference(key, stored, wanted) for key, stored, wanted in pairs if stored != wanted]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: list(value) if isinstance(value, tuple) else value}


def _difference(key: str, stored: Any, wanted: Any) -> str:
    old, new = ("nothing" if value is _MISSING else str(value) for value in (stored, wanted))
    pairs = enumerate(zip(old, new, strict=False))
    n_equal = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    return f"{key} is {_excerpt(old, n_equal)} there, {_excerpt(new, n_equal)} here"


def _excerpt(text: str, n_equal: int) -> str:
    """Return about 60 characters of a text, around the first character that differs."""
    start = max(0, n_equal - 20) if len(text) > 60 else 0
    head = "..." if start else ""
    tail = "..." if len(text) - start > 60 else ""
    return f"{head}{text[start : start + 60]}{tail}"
