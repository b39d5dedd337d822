"""Documents of a store: its plan, its Zarr metadata, and the attributes of its group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from pipeline.errors import (
    DamagedError,
    IdentityError,
    StoreError,
    StoreNotFoundError,
    UnreachableError,
)
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.codecs import DEFAULT_CODEC, codec_of
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layers import (
    COLLAPSED,
    COLLAPSED_LAYER,
    LAYER_NAMES,
    is_collapsed,
    name_layers,
    standard_name,
)
from pipeline.store.format.layout import (
    ATTRIBUTES,
    CHECKSUM,
    DROPPED_LAYERS,
    FORMAT_2,
    FORMAT_3,
    FRAMES,
    HAS_LABELS,
    INDEX_DIR,
    KEPT,
    LEDGER_DIR,
    NEWEST_LABELS,
    PLAN,
    READABLE_VERSIONS,
    Layout,
)
from pipeline.store.format.plan import Plan
from pipeline.store.format.pooling import MEAN
from pipeline.store.format.zarr_json import attributes_checksum, group_document
from pipeline.store.serialization import json_bytes, parquet_bytes, read_parquet


def group_attributes(
    layout: Layout,
    geometry: FrameGeometry,
    final_norm: Mapping[str, Any] | None,
    n_model_layers: int,
    identity: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the attributes of the group of a new store.

    Args:
        layout: Of its arrays.
        geometry: Of the encoder.
        final_norm: The final LayerNorm of a pre-norm model: `weight` and `bias`, [dim], and `eps`.
            The stored features of the last layer precede it.
        n_model_layers: Layers of the model; the norm is kept if the last one is stored.
        identity: What the features are.
        provenance: How they were made.
    """
    norm = None
    if final_norm is not None and n_model_layers in layout.layers:
        norm = {
            "layer": n_model_layers,
            "weight": final_norm["weight"].tolist(),
            "bias": final_norm["bias"].tolist(),
            "eps": final_norm["eps"],
        }
    return {
        "format_version": layout.format_version,
        "layers": list(layout.layers),
        **names_attribute(layout),
        "feature_dim": layout.dim,
        "frames_per_unit": layout.frames_per_unit,
        "utterances_per_slot": layout.utterances_per_slot,
        "frame_rate_hz": geometry.frame_rate_hz,
        "sample_rate_hz": geometry.sample_rate_hz,
        "geometry": geometry.to_dict(),
        "final_norm": norm,
        "identity": identity,
        "provenance": dict(provenance),
    }


def names_attribute(layout: Layout) -> dict[str, Any]:
    """Return the attribute with the names of the layers; nothing if they follow from the numbers.

    So the attributes of a store with layers 0 to N alone are those of earlier versions.
    """
    is_collapsed_layer = name_layers(layout.layers, layout.names) == {COLLAPSED_LAYER: COLLAPSED}
    if is_collapsed_layer or layout.layer_names == tuple(map(standard_name, layout.layers)):
        return {}
    return {LAYER_NAMES: list(layout.layer_names)}


def write_plan(store: Location, plan: Plan) -> None:
    """Write plan.parquet atomically."""
    open_backend(store).put(PLAN, [parquet_bytes(plan.to_arrow())])


def read_plan(store: Location) -> Plan | None:
    """Read the plan of a store; return None if it has none yet.

    Raises:
        DamagedError: It was changed after it was written.
        StoreError: It has another format version, or cannot be read.
    """
    backend = open_backend(store)
    try:
        return Plan.from_arrow(read_parquet(backend, PLAN))
    except FileNotFoundError:
        return None
    except DamagedError as error:
        raise DamagedError(f"{error}; restore it from a copy") from error
    except UnreachableError:
        raise
    except OSError as error:
        raise StoreError(f"{backend.locate(PLAN)} is not readable ({error})") from error


def write_group(store: Location, layout: Layout, n_slots: int, attributes: dict[str, Any]) -> None:
    """Write the zarr.json documents of the group and its arrays.

    Args:
        store: The store.
        layout: Its shapes.
        n_slots: Length of the slot axis.
        attributes: Attributes of the group.
    """
    backend = open_backend(store)
    for folder in (INDEX_DIR, LEDGER_DIR):
        backend.ensure_folder(folder)
    resize(backend, layout, n_slots)
    own = {name: value for name, value in attributes.items() if name != CHECKSUM}
    checked = own | {CHECKSUM: {"crc32c": attributes_checksum(own, sorted(own)), "of": sorted(own)}}
    backend.put(ATTRIBUTES, [json_bytes(group_document(checked))])


def note_labels(store: Location, newest: int) -> None:
    """State in the attributes of the group, atomically, which labels of its own the store has.

    Readers notice so if the newest generation is lost. It is written first: a generation newer
    than the stated one is that of a driver that was killed in between. The format version of the
    store becomes 2, because readers of version 1 would not see its labels.

    Args:
        store: The store.
        newest: Number of its newest generation.
    """
    backend = open_backend(store)
    attributes = read_attributes(backend)
    if has_labels(attributes) and attributes.get(NEWEST_LABELS) == newest:
        return
    _put_attributes(backend, attributes, FORMAT_2, {HAS_LABELS: True, NEWEST_LABELS: newest})


def note_drop(store: Location, layers: Sequence[int]) -> None:
    """State in the attributes of the group, atomically, that something was dropped.

    The format version becomes 3, because earlier versions would take it for damage.

    Args:
        store: The store.
        layers: Layers that are dropped from now on, besides those that were dropped before.
    """
    backend = open_backend(store)
    attributes = read_attributes(backend)
    dropped = sorted({*attributes.get(DROPPED_LAYERS, ()), *layers})
    facts: dict[str, Any] = {HAS_LABELS: has_labels(attributes)}
    if dropped:
        facts[DROPPED_LAYERS] = dropped
    if attributes["format_version"] < FORMAT_3 or attributes | facts != attributes:
        _put_attributes(backend, attributes, FORMAT_3, facts)


def _put_attributes(
    backend: Backend, attributes: dict[str, Any], version: int, facts: Mapping[str, Any]
) -> None:
    """Add facts to the attributes of the group, and raise its format version."""
    changed = attributes | {"format_version": max(version, attributes["format_version"]), **facts}
    if CHECKSUM in changed:
        names = sorted({*changed[CHECKSUM]["of"], *facts})
        changed[CHECKSUM] = {"crc32c": attributes_checksum(changed, names), "of": names}
    backend.put(ATTRIBUTES, [json_bytes(group_document(changed))])


def has_labels(attributes: Mapping[str, Any]) -> bool:
    """Return whether a store has labels of its own; early stores of version 2 do not state it."""
    if HAS_LABELS in attributes:
        return bool(attributes[HAS_LABELS])
    is_later = attributes.get("format_version") == FORMAT_2
    return is_later and layout_of(attributes).format_version < FORMAT_2


def resize(store: Location, layout: Layout, n_slots: int) -> None:
    """Set the length of the slot axis, and rewrite a damaged document.

    An array that another tool has written in another form keeps it.
    """
    backend = open_backend(store)
    for array in layout.arrays:
        document = layout.document(array, n_slots)
        if is_rewritten(backend, layout, array):
            document = _stored_document(backend, array) | {"shape": document["shape"]}
        key, content = f"{array}/zarr.json", json_bytes(document)
        if not backend.exists(key) or backend.read(key) != content:
            backend.put(key, [content])


def is_rewritten(store: Location, layout: Layout, array: str) -> bool:
    """Return whether another tool has written an array again in another form, e.g. compressed.

    Then its document has other codecs, and its objects are not of the size in which Strata writes
    them. If they are, the document is damaged.
    """
    backend = open_backend(store)
    expected = layout.document(array, 0)
    stored = _stored_document(backend, array)
    if stored.get("codecs", expected["codecs"]) == expected["codecs"]:
        return False
    folder = f"{array}/c/{layout.kept_axes[0]}" if array == FRAMES else f"{array}/c"
    names = backend.children(folder)
    slots = sorted(int(name) for name in names if name.isdecimal())
    if not slots:
        return False
    key, size = layout.first_object(array, slots[0])
    return backend.exists(key) and backend.size(key) != size


def check_form(store: Location, layout: Layout) -> None:
    """Check that units which are written now can be read by all readers of the arrays.

    Raises:
        StoreError: Another tool has written the arrays in another form.
    """
    backend = open_backend(store)
    for array in layout.arrays:
        if is_rewritten(backend, layout, array):
            raise StoreError(
                f"another tool has written {backend.locate(array)} in another form, so no units "
                "can be added: other readers would misread them. Extract into another store="
            )


def _stored_document(backend: Backend, array: str) -> dict[str, Any]:
    """Return the document of an array; an empty one if it is missing or damaged."""
    try:
        document = json.loads(backend.read(f"{array}/zarr.json"))
    except UnreachableError:
        raise
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def read_attributes(store: Location) -> dict[str, Any]:
    """Read the attributes of the store's group.

    Raises:
        StoreNotFoundError: There is no store.
        DamagedError: Its attributes are damaged.
        StoreError: It has another format version, or cannot be read.
    """
    backend = open_backend(store)
    path = backend.locate(ATTRIBUTES)
    try:
        attributes = json.loads(backend.read(ATTRIBUTES))["attributes"]
        version = attributes.get("format_version")
    except FileNotFoundError:
        raise StoreNotFoundError(f"no store at {backend} ({path} does not exist)") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is not readable ({error}); restore it from a copy") from error
    except UnreachableError:
        raise
    except OSError as error:
        raise StoreError(f"{path} is not readable ({error})") from error
    if version not in READABLE_VERSIONS:
        *first, last = map(str, READABLE_VERSIONS)
        readable = f"{', '.join(first)} and {last}"
        raise StoreError(
            f"store {backend} has format version {version}; this strata reads {readable} ({path})"
        )
    _check_attributes(attributes, path)
    return dict(attributes)


def _check_attributes(attributes: dict[str, Any], path: str) -> None:
    """Check the attributes against their checksum, and the layers against the identity.

    Stores of earlier versions have no checksum. Attributes that another tool has added are not
    covered by it.

    Raises:
        DamagedError: They differ.
    """
    try:
        _check_checksum_name(attributes)
        expected = attributes.get(CHECKSUM)
        is_same = (
            expected is None
            or attributes_checksum(attributes, expected["of"]) == expected["crc32c"]
        )
        encoder = attributes.get("identity", {}).get("encoder", {})
        layers = list(attributes.get("layers", []))
        if is_same and not is_collapsed(attributes):
            is_same = layers == list(encoder.get("layers", layers))
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged ({error!r}); restore it from a copy") from error
    if not is_same:
        raise DamagedError(
            f"{path} was changed after it was written, or is damaged: its attributes do not match "
            "their checksum or the identity; restore it from a copy"
        )


def _check_checksum_name(attributes: Mapping[str, Any]) -> None:
    """Raise a KeyError if the checksum is there under another name, by which it would be missed."""
    for name, value in attributes.items():
        if name != CHECKSUM and isinstance(value, dict) and value.keys() == {"crc32c", "of"}:
            raise KeyError(CHECKSUM)


def layout_of(attributes: Mapping[str, Any]) -> Layout:
    """Return the layout that a store's attributes describe.

    Raises:
        DamagedError: They describe none.
        StoreError: Their codec is unknown to this version.
    """
    try:
        identity = attributes.get("identity", {})
        names = (COLLAPSED,) if is_collapsed(attributes) else attributes.get(LAYER_NAMES, ())
        return Layout(
            layers=tuple(attributes["layers"]),
            dim=attributes["feature_dim"],
            frames_per_unit=attributes["frames_per_unit"],
            utterances_per_slot=attributes["utterances_per_slot"],
            codec=codec_of(identity.get("dtype", DEFAULT_CODEC.name)),
            keep=tuple(identity.get("keep", KEPT)),
            statistics=tuple(identity.get("pooling", (MEAN,))),
            dropped_layers=tuple(attributes.get(DROPPED_LAYERS, ())),
            names=tuple(names),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(
            f"the attributes in {ATTRIBUTES} are damaged ({error}); restore it from a copy"
        ) from error


def check_format_shape(attributes: dict[str, Any], layout: Layout, store: Location) -> None:
    """Check that a store has the layout that its plan requires, whatever was dropped of it.

    Raises:
        IdentityError: It has another one.
    """
    stored = replace(layout_of(attributes), dropped_layers=())
    wanted = replace(layout, dropped_layers=())
    if stored != wanted:
        names = [f.name for f in fields(Layout) if f.compare]
        other = [name for name in names if getattr(stored, name) != getattr(wanted, name)]
        has, needs = (
            ", ".join(f"{name}={getattr(of, name)}" for name in other) for of in (stored, wanted)
        )
        raise IdentityError(
            f"store {store} has {has}, but its plan requires {needs}: its {ATTRIBUTES} and its "
            "plan.parquet are not of one store; restore both from a copy"
        )
    if stored.layer_names != layout.layer_names:
        raise IdentityError(
            f"store {store} has the layers {', '.join(stored.layer_names)}, and this run those "
            f"called {', '.join(layout.layer_names)}; choose the same layers, or another store="
        )
