"""Adapters by language, as in MMS, against transformers' own loading of them."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import ModelConfig
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.registry import family_of
from pipeline.encoders.selfcheck import relative_errors
from pipeline.encoders.wav2vec2.conversion.adapters import list_languages
from pipeline.errors import ConfigError, WeightsError
from tests.encoders.test_huggingface import LARGE, make
from tests.helpers.encoder_kinds import speech
from tests.helpers.hub_server import running_hub, use_hub

transformers = pytest.importorskip("transformers")

load_hf_encoder = partial(load_encoder, source="huggingface", layers="superb", device="cpu")
WITH_ADAPTERS = LARGE | {"adapter_attn_dim": 8}


@pytest.fixture
def mms(tmp_path):
    """Save a small checkpoint with adapters of two languages beside those of its main weights."""
    model = make(tmp_path, "Wav2Vec2ForCTC", WITH_ADAPTERS, True)
    generator = torch.Generator().manual_seed(7)
    for language in ("fra", "deu"):
        adapters = {
            name: weight + 0.3 * torch.randn(weight.shape, generator=generator)
            for name, weight in model._get_adapters().items()
        }
        save_file(adapters, tmp_path / f"adapter.{language}.safetensors")
    return tmp_path


def by_transformers(folder, waveform, language):
    """Return `hidden_states` of transformers, with the adapters that it loads itself."""
    model = transformers.Wav2Vec2ForCTC.from_pretrained(folder, target_lang=language).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    raw = []
    model.base_model.encoder.layers[-1].register_forward_hook(
        lambda block, args, out: raw.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        states = model(inputs.input_values, output_hidden_states=True).hidden_states
    return torch.stack([*states[:-1], raw[0]])[:, 0]


@pytest.mark.parametrize("language", ["fra", None])
def test_the_chosen_adapters_are_used(mms, language):
    """Those of the language, or without one those of the main weights, as in transformers."""
    waveform = speech(9_000)
    expected = by_transformers(mms, waveform, language)
    [found] = load_hf_encoder(mms, language=language)([waveform])
    assert relative_errors(found, expected).max() <= 1e-5
    other = by_transformers(mms, waveform, "deu")
    assert relative_errors(found, other)[1:].min() > 1e-2


def test_the_language_is_part_of_the_identity(mms):
    """Each language is another encoder; without one a note says which languages there are."""
    french, german, default = (load_hf_encoder(mms, language=one) for one in ("fra", "deu", None))
    assert french.identity["weights"]["language"] == "fra"
    assert french.identity["weights"]["sha256"] != german.identity["weights"]["sha256"]
    assert "language" not in default.identity["weights"]
    assert french.identity["architecture"]["adapter_dim"] == 8
    [note] = [line for line in default.notes if "adapters" in line]
    assert "deu, fra: model.language chooses one" in note
    assert not [line for line in french.notes if "the adapters are" in line]


def test_a_language_without_adapters_is_refused_before_weights_are_read(mms):
    """The message names the languages that there are."""
    (mms / "model.safetensors").unlink()
    model = ModelConfig(str(mms), source="huggingface", language="eng")
    with pytest.raises(ConfigError, match=r"no adapter\.eng\.safetensors; .* of deu, fra$"):
        family_of(model).describe(model)
    with pytest.raises(ConfigError, match=r"language=\.\./fra"):
        load_hf_encoder(mms, language="../fra")


def test_of_many_languages_the_nearest_are_named():
    """A message does not list a thousand languages."""
    many = [f"{a}{b}{c}" for a in "abcdefg" for b in "xyz" for c in "mno"]
    text = list_languages(many, "axp")
    assert text.startswith("it has adapters of 63 languages, like ax")
    assert len(text) < 80


def test_pickled_adapters_are_read_only_with_allow_pickle(mms):
    """The same weights from a pickle are the same encoder."""
    expected = load_hf_encoder(mms, language="fra").identity
    torch.save(load_file(mms / "adapter.fra.safetensors"), mms / "adapter.fra.bin")
    (mms / "adapter.fra.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has adapter\.fra\.bin and no .*allow_pickle=true"):
        load_hf_encoder(mms, language="fra")
    assert load_hf_encoder(mms, language="fra", allow_pickle=True).identity == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], r"adapter\.fra\.bin is a list, not a tensor"),
        (
            {"layers.0.adapter_layer.norm.bias": 3},
            "a state dict .*norm.bias is a int, not a tensor",
        ),
        (torch.nn.Linear(1, 1), r"is an object of torch\.nn\.modules\.linear\.Linear"),
        (b"anything", r"adapter\.fra\.bin: it is neither a file of PyTorch nor of safetensors"),
    ],
)
def test_a_pickle_without_adapters_is_refused_in_one_line(mms, content, message):
    """It is read as data, as original checkpoints are, and the message advises no other way."""
    path = mms / "adapter.fra.bin"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    (mms / "adapter.fra.safetensors").unlink()
    with pytest.raises(WeightsError, match=message) as caught:
        load_hf_encoder(mms, language="fra", allow_pickle=True)
    assert "\n" not in str(caught.value)


def test_main_weights_may_lack_adapters_if_a_language_is_chosen(mms):
    """Without one the message says what to choose; the chosen ones are complete."""
    expected = load_hf_encoder(mms, language="deu").identity
    main = load_file(mms / "model.safetensors")
    kept = {name: weight for name, weight in main.items() if "adapter_layer" not in name}
    save_file(kept, mms / "model.safetensors", metadata={"format": "pt"})
    assert load_hf_encoder(mms, language="deu").identity == expected
    with pytest.raises(WeightsError, match=r"choose model\.language: it has adapters of deu, fra"):
        load_hf_encoder(mms)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers.1", None, "lacks 6 weights: encoder.transformer.layers.1.adapter_layer"),
        ("layers.1", "layers.7", "lacks 6 weights"),
        ("layers.1.adapter_layer.norm.bias", "layers.9.adapter_layer.norm.bias", "lacks 1 weight"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(mms, old, new, message):
    """A file that lacks a block's adapters, or has them for a block that there is not."""
    path = mms / "adapter.fra.safetensors"
    adapters = load_file(path)
    for name in [name for name in adapters if old in name]:
        weight = adapters.pop(name)
        if new is not None:
            adapters[name.replace(old, new)] = weight
    save_file(adapters, path)
    with pytest.raises(WeightsError, match=message) as caught:
        load_hf_encoder(mms, language="fra")
    assert "adapter.fra.safetensors" in str(caught.value)


def test_more_blocks_and_damaged_files_are_refused(mms):
    """Adapters of a deeper model, other shapes, and a file that is cut off."""
    path = mms / "adapter.fra.safetensors"
    whole = load_file(path)
    [name, *_] = [name for name in whole if "layers.1." in name]
    save_file(whole | {name.replace("layers.1.", "layers.3."): whole[name].clone()}, path)
    with pytest.raises(WeightsError, match="has weights of other blocks"):
        load_hf_encoder(mms, language="fra")
    save_file(whole | {name: torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"adapter\.fra\.safetensors .*of shape \[3\], expected"):
        load_hf_encoder(mms, language="fra")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"adapter\.fra\.safetensors .* is damaged"):
        load_hf_encoder(mms, language="fra")


def test_a_language_needs_adapters(tmp_path):
    """Models without adapters, and sources without languages, refuse one."""
    make(tmp_path, "HubertModel", {}, normalize=False)
    with pytest.raises(
        ConfigError, match=r"language=fra chooses adapters.* has none: leave it out"
    ):
        load_hf_encoder(tmp_path, language="fra")
    config = json.loads((tmp_path / "config.json").read_text()) | {"hidden_act": "relu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="has none: leave it out"):
        load_hf_encoder(tmp_path, language="fra")
    with pytest.raises(ConfigError, match=r"model\.source=torchaudio has none"):
        load_encoder("tiny", "random", language="fra")


def test_random_weights_have_no_language(mms):
    """Random weights read no file of the checkpoint."""
    with pytest.raises(ConfigError, match="weights=random reads none"):
        load_hf_encoder(mms, "random", language="fra")


def test_adapters_on_the_hub_are_fetched_by_language(mms, tmp_path, monkeypatch):
    """Only the file of the language; the hub lists what there is, and offline the cache does."""
    with running_hub() as hub:
        hub.commit_folder("someone/mms-small", mms)
        home = tmp_path / "home"
        use_hub(hub, home, monkeypatch)
        load = partial(load_hf_encoder, "someone/mms-small")
        assert load(language="fra").identity["weights"]["language"] == "fra"
        fetched = {path.name for path in home.rglob("adapter.*")}
        assert fetched == {"adapter.fra.safetensors"}
        with pytest.raises(ConfigError, match=r"no adapter\.eng\.safetensors; .* of deu, fra$"):
            load(language="eng")
        use_hub(hub, home, monkeypatch, offline=True)
        assert load(language="fra").identity["weights"]["language"] == "fra"
        with pytest.raises(
            ConfigError, match=r"in the cache \(HF_HUB_OFFLINE is set\); .* of fra$"
        ):
            load(language="deu")
