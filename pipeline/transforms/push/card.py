"""The dataset card of a store: what it holds, by its identity, and how to read it."""

from __future__ import annotations

from pipeline.store.format.layout import HUB_FILES
from pipeline.store.read.features import FeatureStore

CARD = HUB_FILES[0]
_TAGS = ("audio", "speech", "speech-features", "strata")


def make_card(store: FeatureStore, uri: str, name: str, license_name: str | None) -> str:
    """Return the text of the card.

    Args:
        store: The store.
        uri: Where it will be.
        name: User and name of the repository.
        license_name: Licence of the features by the hub's short name; None leaves it to be filled
            in.
    """
    identity = store.attributes["identity"]
    encoder, source = identity.get("encoder", {}), identity.get("source", {})
    hours = int(store.frame_counts.sum()) / store.frame_rate_hz / 3600
    weights = encoder.get("weights", {})
    facts = {
        "encoder": encoder.get("model", "unknown"),
        "weights": ", ".join(f"{key} {value}" for key, value in weights.items()) or "unknown",
        "precision": encoder.get("precision", "unknown"),
        "layers": ", ".join(store.layer_labels.values()),
        "features per frame": f"{store.feature_dim:,}",
        "frames per second": f"{store.frame_rate_hz:g}",
        "stored as": str(identity.get("dtype", "unknown")),
        "utterances": f"{len(store):,}",
        "hours of audio": f"{hours:,.2f}",
        "columns": ", ".join(store.metadata.column_names),
        "source": " ".join(str(source[key]) for key in ("kind", "name", "split") if source.get(key))
        or "unknown",
    }
    known = f"license: {license_name}" if license_name else "# license: fill in, see below"
    tags = "\n".join(f"- {tag}" for tag in _TAGS)
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items())
    to_fill = "" if license_name else _TO_FILL
    first = store.layers[len(store.layers) // 2]
    return f"""---
{known}
tags:
{tags}
---

# Features of {name.rpartition("/")[2]}

Hidden layers of a speech encoder, one array per utterance and layer, written by Strata. They are
raw outputs of the transformer blocks; layer 0, if it is there, is the input of the first block,
`conv` the output of the convolution stack, and `final_norm` follows the model's final norm.

| | |
|---|---|
{table}

{to_fill}## Reading

```python
import pipeline  # pip install strata-speech

store = pipeline.open_store("{uri}")
store.ids[:3]
store.read(store.ids[0], layers=[{first}])  # [n_layers, n_frames, dim]
```

Only the bytes of the utterance and the layers that are asked for are fetched. For training, copy
the store to a disk: `strata copy {uri} FOLDER`. `features.zarr` is a plain Zarr v3 group that any
Zarr library opens.
"""


_TO_FILL = """## Licence

The licence of these features depends on that of the audio and of the encoder's weights: state it
here, and as `license` in the first lines of this file.

"""


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
