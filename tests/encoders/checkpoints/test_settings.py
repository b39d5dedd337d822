"""What a checkpoint states of its model: what is taken from where, and what is refused."""

from __future__ import annotations

import argparse
import pickle
from dataclasses import replace

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.encoders.checkpoints import architecture
from pipeline.encoders.checkpoints.reading import open_weights, spec_of
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.registry import find_family
from pipeline.encoders.wav2vec2.weights import check_weights, fill_model, load_model
from pipeline.errors import ConfigError, WeightsError
from tests.helpers.encoder_kinds import randomize, small_spec
from tests.helpers.original_checkpoints import (
    CONVOLUTIONS,
    LARGE,
    fairseq_names,
    model_settings,
    save_config,
    save_distiller,
    save_unilm,
    small_model,
)

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def hubert():
    """A small HuBERT of the base kind."""
    return small_model("HubertModel")


def save(path, model, settings=None, task=None, weights=None):
    cfg = {"model": model_settings(model) | (settings or {}), "task": task or {}}
    torch.save({"cfg": cfg, "model": fairseq_names(model) | (weights or {})}, path)
    return path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_type": "conformer"}, "layer_type='conformer'; only 'transformer'"),
        ({"activation_fn": "relu"}, "activation_fn='relu'; only 'gelu'"),
        ({"quantize_input": True}, "quantize_input=True; only False"),
        ({"crop_seq_to_multiple": 2}, "crop_seq_to_multiple=2; only 1"),
        ({"extractor_mode": "other"}, "extractor_mode='other'; expected default or layer_norm"),
        ({"extractor_mode": ["default"]}, r"extractor_mode=\['default'\]; expected"),
        ({"conv_feature_layers": "[(24, 10, 5)] * 7"}, r"conv_feature_layers=.*strides \[5, 2"),
        ({"conv_feature_layers": "__import__('os')"}, "conv_feature_layers="),
        ({"conv_feature_layers": "[(9,9,9)] * 999999999"}, "conv_feature_layers="),
        ({"conv_feature_layers": CONVOLUTIONS.replace("24", "0")}, "conv_feature_layers="),
        ({"encoder_layers": 0}, "encoder_layers=0; expected 1 to"),
        ({"encoder_layers": 10**9}, "encoder_layers=1000000000; expected 1 to"),
        ({"encoder_layers": True}, "encoder_layers=True; expected 1 to"),
        ({"encoder_embed_dim": "32"}, "encoder_embed_dim='32'; expected 1 to"),
        ({"encoder_attention_heads": 5}, "5 attention heads and 8 groups"),
        ({"conv_bias": "no"}, "conv_bias='no'; expected true or false"),
        ({"gru_rel_pos": True}, "gru_rel_pos=True, and its weights are those of a model without"),
        ({"task_emb_type": "add"}, "task_emb_type='add', which is not supported"),
    ],
)
def test_other_architectures_are_refused(tmp_path, hubert, settings, message):
    """The message names the file, the setting, its value and what is supported."""
    path = save(tmp_path / "weights.pt", hubert, settings)
    with pytest.raises(ConfigError, match=message) as caught:
        load_encoder(path, source="checkpoint")
    assert str(caught.value).startswith(f"{path} (a checkpoint of fairseq) has ")


def test_another_sample_rate_is_refused(tmp_path, hubert):
    """As for checkpoints of Hugging Face."""
    path = save(tmp_path / "weights.pt", hubert, task={"sample_rate": 8000})
    with pytest.raises(
        ConfigError, match=r"was trained at 8000 Hz; .*sample_rate_hz=8000: docs/add"
    ):
        load_encoder(path, source="checkpoint")


def test_a_wavlm_without_its_settings_of_positions_is_refused(tmp_path):
    """Its weights and settings contradict each other."""
    save_unilm(tmp_path / "weights.pt", small_model("WavLMModel"))
    with pytest.raises(ConfigError, match="relative_position_embedding=False, and its weights are"):
        load_encoder(tmp_path / "weights.pt", source="checkpoint")


def test_projections_of_a_wavlm_that_cannot_be_joined_are_refused(tmp_path):
    """The three are one weight of torchaudio: each must be there, and be no single number."""
    model, path = small_model("WavLMModel"), tmp_path / "weights.pt"
    cfg = model_settings(model) | {"relative_position_embedding": True, "gru_rel_pos": True}
    name = "encoder.layers.1.self_attn.k_proj.weight"
    weights = fairseq_names(model)
    torch.save({"cfg": cfg, "model": weights | {name: torch.tensor(1.0)}}, path)
    with pytest.raises(WeightsError, match="has a projection that is a single number"):
        load_encoder(path, source="checkpoint")
    del weights[name]
    torch.save({"cfg": cfg, "model": weights}, path)
    with pytest.raises(WeightsError, match=r"layers\.1\.attention.*in_proj_weight is missing"):
        load_encoder(path, source="checkpoint")


def test_settings_and_weights_must_agree(tmp_path, hubert):
    """More blocks in the settings than in the file is an error that names the weights."""
    path = save(tmp_path / "weights.pt", hubert, {"encoder_layers": 4})
    with pytest.raises(WeightsError, match=r"layers\.3.* missing.* The file contradicts what"):
        load_encoder(path, source="checkpoint")


def test_unknown_weights_are_named(tmp_path, hubert):
    """What is not in the list of training's weights is not dropped."""
    path = save(tmp_path / "weights.pt", hubert, weights={"encoder.extra.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"no supported model has: encoder\.extra\.weight; if"):
        load_encoder(path, source="checkpoint")


def test_adapters_of_languages_are_refused(tmp_path, hubert):
    """MMS has them; the Hugging Face form has those of one language."""
    weights = {"encoder.layers.0.adapter_layer.W_a": torch.zeros(102, 4, 32)}
    path = save(tmp_path / "weights.pt", hubert, weights=weights)
    with pytest.raises(ConfigError, match="has adapters of languages, as MMS; use the Hugging"):
        load_encoder(path, source="checkpoint")


@pytest.mark.parametrize(("options", "normalised"), [({}, False), (LARGE, True)])
def test_without_a_statement_normalisation_follows_the_front_end(tmp_path, options, normalised):
    """Models with layer norms in the front end take normalised waveforms; a note says so."""
    path = save(tmp_path / "weights.pt", small_model("Wav2Vec2Model", **options))
    words = "" if normalised else "not "
    encoder = load_encoder(path, source="checkpoint", device="cpu")
    [note] = encoder.notes
    assert "does not state whether waveforms are normalised" in note
    assert note.endswith(f": waveforms are {words}normalised")
    assert encoder.identity["architecture"]["normalize_waveform"] is normalised


def test_distilhubert_states_no_normalisation_and_has_none(tmp_path):
    """That is so for every model of s3prl's distiller, so no note is needed."""
    path = tmp_path / "weights.ckpt"
    save_distiller(path, small_model("HubertModel", feat_proj_layer_norm=False))
    spec, notes = spec_of(open_weights(path))
    assert (spec.normalize_waveform, notes) == (False, ())


def test_a_reference_in_the_settings_is_not_a_value(tmp_path, hubert):
    """A `${task.normalize}` in the model's section does not hide the task's value."""
    settings = {"normalize": "${task.normalize}", "sample_rate": "${task.sample_rate}"}
    path = save(tmp_path / "weights.pt", hubert, settings, {"normalize": True})
    assert spec_of(open_weights(path))[0].normalize_waveform


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("kind", ["hubert_large", "wavlm_base"])
def test_without_settings_torchaudios_models_are_compared(tmp_path, monkeypatch, kind, wrapped):
    """A model with weights of the same shapes gives heads, norms and normalisation; a note says so.

    A fine-tuned checkpoint of fairseq, whose settings do not describe its encoder, is such a case.
    """
    spec = small_spec(kind)
    model = small_model("WavLMModel" if "wavlm" in kind else "HubertModel", **_options(kind))
    weights, path = fairseq_names(model), tmp_path / "weights.pt"
    cfg = {"model": {"_name": "wav2vec_ctc", "encoder_embed_dim": 768, "w2v_args": None}}
    torch.save({"model": weights, "cfg": cfg} if wrapped else weights, path)
    message = r"states no settings .* no model of torchaudio, .* \(model=hf\)"
    with pytest.raises(ConfigError, match=message):
        spec_of(open_weights(path))
    monkeypatch.setattr(architecture, "registry", lambda: {"tiny": small_spec("mms"), kind: spec})
    found, [note] = spec_of(open_weights(path))
    assert found.architecture() == spec.architecture()
    assert "states no settings of its model; they are those of torchaudio's models" in note


def _options(kind):
    options = {"num_hidden_layers": 4, "num_conv_pos_embeddings": 128}
    return options | (LARGE | {"conv_bias": False} if kind == "hubert_large" else {})


def test_a_checkpoint_of_a_named_model_fits_it(tmp_path):
    """`model=NAME model.weights=PATH` takes original checkpoints, too; the digest is the same."""
    spec = small_spec("hubert_large")
    model = small_model("HubertModel", **_options("hubert_large"))
    path = save(tmp_path / "weights.pt", model, task={"normalize": True})
    loaded = load_model(spec, path, 0)
    assert loaded.source == "file"
    other = spec_of(open_weights(path))[0]
    assert fill_model(other, open_weights(path).read(), "file", "").sha256 == loaded.sha256
    check_weights(spec, path)


@pytest.mark.parametrize(
    ("settings", "normalize", "message"),
    [
        ({}, False, "normalize_waveform is False, expected True"),
        ({"encoder_attention_heads": 8}, True, "encoder_num_heads is 8, expected 4"),
        ({"layer_norm_first": False}, True, "encoder_layer_norm_first is False, expected True"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, settings, normalize, message):
    """Also where only the settings differ, which the shapes of the weights do not show."""
    spec = small_spec("hubert_large")
    model = small_model("HubertModel", **_options("hubert_large"))
    path = save(tmp_path / "weights.pt", model, settings, {"normalize": normalize})
    for check in (check_weights, lambda *args: load_model(*args, 0)):
        with pytest.raises(WeightsError, match=f"{message}. Use model=checkpoint model.name="):
            check(spec, path)


def test_a_state_dict_of_torchaudio_needs_no_name(tmp_path):
    """Its model is found by the shapes of its weights."""
    spec = replace(small_spec("wavlm_large"), name="tiny")
    path = tmp_path / "weights.pt"
    torch.save(randomize(small_model("HubertModel")).state_dict(), path)
    with pytest.raises(WeightsError, match="names of Hugging Face transformers; use model=hf"):
        load_encoder(path, source="checkpoint")
    source = load_encoder("tiny", "random", device="cpu")
    torch.save(source._model.state_dict(), path)
    found = load_encoder(path, source="checkpoint", device="cpu")
    assert len(found.notes) == 1
    assert found.identity["weights"] == source.identity["weights"]
    with pytest.raises(WeightsError, match="do not fit tiny"):
        check_weights(spec, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "is a list, not a tensor"),
        (torch.nn.Linear(1, 1), r"is an object of torch\.nn\.modules\.linear\.Linear"),
        ({"model": torch.nn.Linear(1, 1)}, "not hold a state dict .* model is an object of torch"),
        ({"model": {}}, "not hold a state dict .* the entries of none"),
        ({}, "not hold a state dict .* the entries of none"),
        ({"weight": torch.zeros(1), "n": 3}, "the entries weight, n; n is a int, not a tensor"),
        ({"weight": torch.zeros(1), "f": len}, "f is a reference to builtins.len"),
        ({"model": {"a": 1}, "cfg": None}, "a is a int, not a tensor"),
        ({1: torch.zeros(1), None: 2}, "the entries 1, None; None is a int"),
        ({"model": {"a\x1b[31m": torch.zeros(1)}}, r"the name of a weight is 'a\\x1b\[31m'"),
        ({"model": {"a" * 300: torch.zeros(1)}}, "the name of a weight is 'aaa"),
        ({"model": {"a": 1, "\nb": 2}}, "the name of a weight is '"),
        ({"args": argparse.Namespace(a=1)}, r"args is an object of argparse\.Namespace"),
    ],
)
def test_other_contents_are_refused(tmp_path, content, message):
    """The message says what is there instead of weights."""
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message) as caught:
        load_encoder(path, source="checkpoint")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_that_contain_themselves_are_one_line(tmp_path):
    """As everything that is wrong in a file."""
    cfg = {"model": {}}
    cfg["model"]["again"] = cfg
    torch.save({"cfg": cfg, "model": {"a": torch.zeros(1)}}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="settings are nested more than 60 levels deep"):
        load_encoder(tmp_path / "weights.pt", source="checkpoint")


def test_the_path_must_be_given_and_exist(tmp_path):
    """Both messages name the setting."""
    family = find_family("checkpoint")
    with pytest.raises(ConfigError, match=r"model=checkpoint needs model\.name=PATH"):
        family.describe(ModelConfig(source="checkpoint"))
    with pytest.raises(ConfigError, match=r"there is no checkpoint at .*nowhere"):
        load_encoder(tmp_path / "nowhere.pt", source="checkpoint")


def test_the_family_can_be_sent_to_a_worker(tmp_path, hubert):
    """A worker on another machine need not know it."""
    save_config(tmp_path / "weights.pt", hubert)
    model = ModelConfig(str(tmp_path / "weights.pt"), "checkpoint")
    family = pickle.loads(pickle.dumps(find_family("checkpoint")))
    description = family.describe(model)
    assert (description.name, description.n_layers, description.dim) == ("checkpoint_hubert", 3, 32)
    assert description == find_family("checkpoint").describe(model)
