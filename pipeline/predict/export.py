"""A trained head as a folder for other programs: its tensors, and a card that explains them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config.sweep_schema import ATTENTIVE, COSINE, LDA, LINEAR, LSTM, MLP
from pipeline.encoders.wav2vec2.bundles import registry
from pipeline.errors import ConfigError, counted
from pipeline.heads.facts import FRAMES, FRAMEWISE, REGRESSION, SPANS, VERIFICATION, HeadFacts
from pipeline.heads.trained import TrainedHead
from pipeline.predict.heads import BEST, HEAD, input_text, open_head, sweep_result
from pipeline.predict.own_code import is_own_code
from pipeline.store.format.layers import CONV

CARD = "README.md"
_MAX_CLASSES = 50
"""Classes of a label column that the card lists; the file has all."""
_STATISTICS = {
    "mean": "features.mean(1)",
    "std": "features.std(1, correction=0)",
    "max": "features.amax(1)",
    "first": "features[:, 0]",
    "last": "features[:, -1]",
}
_FORMS = {
    LINEAR: "A linear head",
    MLP: "A head with a hidden layer",
    ATTENTIVE: "A head on attentive statistics over frames",
    LSTM: "A recurrent head (two bidirectional LSTM layers)",
    COSINE: "The centre for cosine scores",
    LDA: "A linear discriminant analysis for cosine scores",
}


def export_head(folder: str | Path, out: str | Path, layer: int | str = BEST) -> TrainedHead:
    """Write a head of a sweep as `head.safetensors` and `README.md`.

    Args:
        folder: The folder of the sweep.
        out: The folder to write; new, or empty.
        layer: "best" (by dev), "weighted", "collapsed" or a layer by number or name.

    Returns:
        The head.

    Raises:
        ConfigError: There is no such head, or `out` has files.
        StoreError: The folder cannot be written.
    """
    target = files.local_folder("OUT", out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty folder; give another OUT")
    head = open_head(folder, layer)
    card = card_of(head.facts, sweep_result(Path(folder)))
    files.write_atomic(target / CARD, [card.encode()])
    head.save(target / HEAD)
    return head


def card_of(facts: HeadFacts, sweep: dict[str, Any]) -> str:
    """Return the card of a head, in Markdown.

    Args:
        facts: The head.
        sweep: What the sweep has written to `sweep.json`.
    """
    what = facts.labels[0] if len(facts.labels) == 1 else ", ".join(facts.labels)
    lines = [
        f"# {facts.task}: {what}, from {input_text(facts)} of {_encoder_name(facts)}",
        "",
        f"{_FORMS[facts.head]}, made by `strata sweep` (Strata {facts.strata}) on frozen features.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _rows(facts, sweep)),
        "",
        *(f"- **Warning:** {warning}." for warning in sweep.get("warnings", ())),
        "",
        "## Use it with Strata",
        "",
        "```bash",
        f"strata predict THIS_FOLDER clip.wav{' spans=FILE' if facts.kind == SPANS else ''}",
        "```",
        "",
        f"## {_heading(facts)}",
        "",
        "```python",
        *_program(facts),
        "```",
        "",
        *_cautions(facts),
        *_classes(facts),
    ]
    return "\n".join(lines) + "\n"


def _rows(facts: HeadFacts, sweep: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of the card's table."""
    encoder = facts.identity["encoder"]
    score = next((s for s in sweep.get("scores", ()) if s["layer"] == facts.layer), None)
    labels = "spans" if facts.kind in (SPANS, FRAMEWISE) else "label columns"
    rows = [
        ("task", f"{facts.task} ({facts.kind}), {labels}: {', '.join(facts.labels)}"),
        (
            "encoder",
            f"{_encoder_name(facts)}, weights: {facts.weights}, sha256 of all weights "
            f"`{encoder.get('weights', {}).get('sha256', 'unknown')}`",
        ),
        ("features", _features_text(facts)),
        (
            "data",
            f"{counted(sweep['n_train'], 'utterance')} to train, {sweep['n_dev']:,} dev, "
            f"{sweep['n_test']:,} test; {sweep['split']}",
        ),
        (
            f"{facts.metric} of this head",
            f"dev {facts.dev:.4f}, test {facts.test:.4f} (learning rate {facts.lr:g}, seed "
            f"{facts.seed}, fold {facts.fold})",
        ),
    ]
    if score is not None:
        rows.append(
            (
                f"{facts.metric} of the layer, all seeds",
                f"test {score['test']:.4f}, 95 % interval {score['low']:.4f} to {score['high']:.4f}"
                f" over {sweep.get('groups', 'utterances')}",
            )
        )
    return rows


def _features_text(facts: HeadFacts) -> str:
    inputs = "every frame"
    if facts.is_pooled:
        of = "the frames of a span" if facts.kind == SPANS else "frames"
        inputs = f"{' and '.join(facts.pooling)} over {of}"
    stored = f"float32 here, {facts.identity.get('dtype')} in training"
    return (
        f"{input_text(facts)}, {inputs}; {facts.dim} values, {facts.frame_rate_hz:g} frames per "
        f"second; {stored}"
    )


def _encoder_name(facts: HeadFacts) -> str:
    if _is_hf(facts) and facts.model.get("name"):
        return str(facts.model["name"])
    return str(facts.identity["encoder"].get("model", "an unknown encoder"))


def _is_hf(facts: HeadFacts) -> bool:
    return facts.weights == "huggingface"


def _is_of_transformers(facts: HeadFacts) -> bool:
    """Whether transformers gives the layers as its hidden states, of waveforms."""
    encoder = facts.identity["encoder"]
    is_general = "front_end" in encoder.get("architecture", {})
    return _is_hf(facts) and not is_general and not encoder["weights"].get("language")


def _bundle(facts: HeadFacts) -> str | None:
    """Return the torchaudio bundle of the encoder, if its layers can be had from it."""
    spec = registry().get(str(facts.identity["encoder"].get("model")))
    has_layers = all(0 < layer <= (spec.n_layers if spec else 0) for layer in _layers(facts))
    return spec.bundle if spec and facts.weights == "pretrained" and has_layers else None


def _layers(facts: HeadFacts) -> list[int]:
    """Return the layers of the encoder that the head needs."""
    collapse = facts.identity.get("collapse")
    return list(collapse["layers"] if collapse else facts.layers)


def _heading(facts: HeadFacts) -> str:
    if _is_of_transformers(facts):
        return "Use it without Strata: torch, safetensors and transformers"
    if _bundle(facts):
        return "Use it without Strata: torch, safetensors and torchaudio"
    return "Use it in Python"


def _program(facts: HeadFacts) -> list[str]:
    """Return the lines of a program that predicts one file."""
    names = "import json, soundfile, torch"
    loading = [
        'with safe_open("head.safetensors", "pt") as file:',
        '    facts = json.loads(file.metadata()["strata_head"])',
        "    head = {name: file.get_tensor(name) for name in file.keys()}",
        'waveform, rate_hz = soundfile.read("clip.wav", dtype="float32")  # mono',
        'assert rate_hz == 16_000, "resample the recording to 16 kHz"',
    ]
    layers = _layers(facts)
    if _is_of_transformers(facts):
        name = _encoder_name(facts)
        imports = ["from transformers import AutoFeatureExtractor, AutoModel"]
        encoding = [
            f'model = AutoModel.from_pretrained("{name}").eval()',
            f'extractor = AutoFeatureExtractor.from_pretrained("{name}")',
            'inputs = extractor(waveform, sampling_rate=rate_hz, return_tensors="pt").input_values',
            "with torch.no_grad():",
            "    output = model(inputs, output_hidden_states=True)",
            "    hidden = dict(enumerate(output.hidden_states))",
            *_optional_layers(facts),
        ]
    elif bundle := _bundle(facts):
        imports = ["import torchaudio"]
        encoding = [
            f"model = torchaudio.pipelines.{bundle}.get_model().eval()",
            "with torch.no_grad():",
            "    hidden = [None, *model.extract_features(torch.from_numpy(waveform)[None])[0]]",
        ]
    else:
        origin = "or any other code with these weights"
        if is_own_code(facts.model):
            origin = "register it first: docs/add_an_encoder.md"
        imports = [f"from pipeline import load_encoder  # {origin}"]
        encoding = [
            f"encoder = load_encoder({_loading(facts)})",
            f"hidden = dict(zip({layers}, encoder([torch.from_numpy(waveform)])[0][:, None]))",
        ]
    stack = f"features = torch.stack([hidden[n][0] for n in {layers}])  # [layer, frame, feature]"
    return [
        *(names, "from safetensors import safe_open", *imports, ""),
        *(*loading, *encoding, stack, *_of_features(facts)),
    ]


def _loading(facts: HeadFacts) -> str:
    """Return the arguments of `load_encoder`."""
    given, layers = facts.model, _layers(facts)
    name = str(facts.identity["encoder"].get("model"))
    if is_own_code(given):
        return f'"{name}", layers={layers}'
    weights = given.get("weights") or facts.weights
    seed = f", seed={given.get('seed') or 0}" if weights == "random" else ""
    if given.get("source") not in ("checkpoint", "huggingface"):
        return f'"{name}", weights="{weights}", layers={layers}{seed}'
    random = ', weights="random"' if weights == "random" else ""
    language = f', language="{given["language"]}"' if given.get("language") else ""
    return f'"{given["name"]}"{random}, source="{given["source"]}", layers={layers}{seed}{language}'


def _optional_layers(facts: HeadFacts) -> list[str]:
    """Return the lines that add `conv` and `final_norm` to the layers of transformers."""
    lines, layers = [], _layers(facts)
    n_blocks = facts.identity["encoder"].get("architecture", {}).get("encoder_num_layers")
    if CONV in layers:
        lines.append("    hidden[-1] = model.feature_extractor(inputs).transpose(1, 2)  # conv")
    if n_blocks is not None and n_blocks + 1 in layers:
        lines.append(f"    hidden[{n_blocks + 1}] = output.last_hidden_state  # final_norm")
    return lines


def _of_features(facts: HeadFacts) -> list[str]:
    """Return the lines from features to a prediction."""
    lines = []
    if "collapse" in facts.identity:
        weights = [round(weight, 8) for weight in facts.identity["collapse"]["weights"]]
        lines.append(f"features = torch.tensordot(torch.tensor({weights}), features, 1)[None]")
    if facts.normalize and not facts.is_pooled:
        lines.append("features = torch.nn.functional.layer_norm(features, features.shape[-1:])")
    if facts.kind == SPANS:
        lines += [
            'times = torch.arange(features.shape[1]) / facts["frame_rate_hz"]  # of frames',
            'times += facts["first_centre_s"]',
            "features = features[:, (times >= 0.1) & (times < 0.4)]  # a span from 0.1 to 0.4 s",
        ]
    if facts.is_pooled:
        parts = [_STATISTICS[name] for name in facts.pooling]
        joined = parts[0] if len(parts) == 1 else f"torch.cat([{', '.join(parts)}], -1)"
        lines.append(f"features = {joined}  # [layer, feature]")
    is_weighted = facts.layer == "weighted"
    mixed = 'torch.tensordot(head["layer_weights"], features, 1)' if is_weighted else "features[0]"
    if facts.kind == VERIFICATION:
        lines.append(f'vector = {mixed}.double() - head["mean"]')
        lines.append('vector = vector @ head["projection"] if "projection" in head else vector')
        return [*lines, "vector = vector / vector.norm()  # the score of two files: vector @ other"]
    return [*lines, *_outputs(facts.head, mixed), *_of_outputs(facts)]


def _outputs(form: str, mixed: str) -> list[str]:
    """Return the lines from the inputs of a head, or its frames, to its outputs."""
    if form in (ATTENTIVE, LSTM):
        lines = [f'frames = {mixed} @ head["projection_weight"].T + head["projection_bias"]']
    if form == ATTENTIVE:
        keys = 'torch.tanh(frames @ head["attention_weight"].T + head["attention_bias"])'
        lines += [
            f'attention = ({keys} @ head["attention_vector"]).softmax(0)  # [frame]',
            "mean = attention @ frames",
            "deviation = (attention @ (frames - mean) ** 2).clamp(min=1e-5).sqrt()",
        ]
        mixed = "torch.cat([mean, deviation])"
    elif form == LSTM:
        lines += [
            'units = head["lstm.weight_hh_l0"].shape[1]',
            "lstm = torch.nn.LSTM(frames.shape[1], units, num_layers=2, bidirectional=True)",
            'own = {k[5:]: v for k, v in head.items() if k.startswith("lstm.")}',
            "lstm.load_state_dict(own)",
        ]
        mixed = "lstm(frames)[0].detach()"
    elif form == MLP:
        lines = [f'hidden = ({mixed} @ head["hidden_weight"].T + head["hidden_bias"]).relu()']
        mixed = "hidden"
    else:
        lines = []
    return [*lines, f'outputs = {mixed} @ head["weight"].T + head["bias"]']


def _of_outputs(facts: HeadFacts) -> list[str]:
    """Return the lines from outputs to a prediction."""
    if facts.kind == REGRESSION:
        values = 'outputs * head["deviations"] + head["means"]'
        return [f'print(dict(zip(facts["labels"], ({values}).tolist())))']
    if facts.kind == FRAMES:
        joiner = " " if facts.tokens == "words" else ""
        symbols = 'facts["classes"][0][n - 1] for n in path if n'
        return [
            "path = outputs.argmax(-1).unique_consecutive().tolist()  # 0 is the blank of CTC",
            f'print(" ".join("{joiner}".join({symbols}).split()))',
        ]
    if facts.kind == FRAMEWISE:
        return [
            "numbers, lengths = outputs.argmax(-1).unique_consecutive(return_counts=True)",
            'stops_s = (lengths.cumsum(0) - 0.5) / facts["frame_rate_hz"]',
            'stops_s += facts["first_centre_s"]  # between the centres of two frames',
            "for number, stop_s in zip(numbers, stops_s):",
            '    print(f"until {stop_s:.4f} s:", facts["classes"][0][number])',
        ]
    return [
        'for column, names in zip(facts["labels"], facts["classes"]):',
        "    scores, outputs = outputs[: len(names)].softmax(0), outputs[len(names) :]",
        "    print(column, names[scores.argmax()], float(scores.max()))",
    ]


def _cautions(facts: HeadFacts) -> list[str]:
    """Return what the program does otherwise than Strata."""
    encoder = facts.identity["encoder"]
    lines = [
        "Layer *i* is the output of block *i*, without the LayerNorm that some models apply after "
        "the last block; 0 is the input of block 1, -1 the output of the convolution stack, and "
        "the number after that of the last block its output after that LayerNorm.",
    ]
    if _is_hf(facts) and encoder.get("architecture", {}).get("encoder_layer_norm_first"):
        lines.append(
            "For the last layer of this model take transformers 5.16 or newer: earlier versions "
            "apply that LayerNorm."
        )
    lines.append(
        f"Strata stores features as {facts.identity.get('dtype')}, so the numbers differ by that "
        "rounding, and it encodes recordings of more than "
        f"{encoder.get('max_window_s', 40):g} s in windows. Other sample rates must be resampled "
        "to 16 kHz."
    )
    return [" ".join(lines), ""]


def _classes(facts: HeadFacts) -> list[str]:
    """Return the classes of each label column."""
    lines = ["## Classes", ""] if any(facts.classes) else []
    columns = facts.labels if facts.kind != FRAMES else ("symbols",)
    for column, names in zip(columns, facts.classes, strict=True):
        if names:
            shown = ", ".join(f"`{name}`" for name in names[:_MAX_CLASSES])
            more = f", and {len(names) - _MAX_CLASSES:,} more" if len(names) > _MAX_CLASSES else ""
            lines.append(f"- {column}: {shown}{more}")
    return lines
