"""Whether a store has all that its plan has, and whether it is the one that settings would make."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.errors import IdentityError
from pipeline.extract.planning.replanning import deferred_rows
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.documents import layout_of, read_attributes, read_plan
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.identity import check_same
from pipeline.store.format.layout import ATTRIBUTES


def is_complete(backend: Backend) -> bool:
    """Whether every utterance of the plan is extracted or quarantined.

    The dataset is not looked at.

    Raises:
        StoreError: The store cannot be read.
    """
    if not backend.exists(ATTRIBUTES):
        return False
    plan = read_plan(backend)
    if plan is None or not set(range(plan.n_units)) <= set(index_files.committed_units(backend)):
        return False
    geometry = FrameGeometry.from_attributes(read_attributes(backend))
    return len(deferred_rows(backend, plan, geometry)) == 0


def check_settings(config: Config, backend: Backend) -> None:
    """Check that a store holds what these settings make, as far as no weights tell.

    Compared are the model, its layers, windows and precision (unless it is "auto"), and the form
    of what is stored.

    Raises:
        ConfigError: A setting is wrong.
        IdentityError: The store holds other features, or was made from other stores.
    """
    from pipeline.extract.encoder_setup import resolve_encoder_setup  # imports torchaudio

    attributes = read_attributes(backend)
    identity = dict(attributes["identity"])
    for verb in ("collapse", "copy"):
        if verb in identity:
            raise IdentityError(
                f"store {backend} was made by `strata {verb}`, and nothing can be extracted into "
                "it; read it with open_store, or give the store that it was made from"
            )
    setup = resolve_encoder_setup(config, attributes)
    encoder = dict(identity.get("encoder", {}))
    wanted = setup.stated_facts()
    encoder |= {name: value for name, value in wanted.items() if name in encoder}
    check_same(identity, identity | {"encoder": encoder}, str(backend))
    stored, form = layout_of(attributes), setup.form
    kept = (stored.codec.name, stored.keep, stored.statistics)
    asked = (form.codec.name, form.keep, form.statistics)
    names = ("extract.dtype", "extract.keep", "extract.pooling")
    differences = [
        f"{name} is {after}, the store has {before}"
        for name, before, after in zip(names, kept, asked, strict=True)
        if before != after
    ]
    if differences:
        raise IdentityError(
            f"store {backend} holds features in another form: {'; '.join(differences)}; change "
            "the settings, or give another store"
        )
