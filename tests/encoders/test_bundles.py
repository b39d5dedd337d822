"""The registry: every bundle of the family, with the settings of the installed torchaudio."""

from __future__ import annotations

import json

import pytest
import torchaudio

from pipeline.encoders.wav2vec2.bundles import find_model, registry
from pipeline.errors import ConfigError

BUNDLES = {
    name: bundle
    for name, bundle in vars(torchaudio.pipelines).items()
    if name.startswith(("WAV2VEC2_", "HUBERT_", "WAVLM_", "VOXPOPULI_", "MMS_"))
}


def test_every_bundle_has_a_row():
    """The names are those of the bundles in lower case, and `tiny`."""
    assert set(registry()) == {name.lower() for name in BUNDLES} | {"tiny"}
    assert {"wav2vec2_base", "hubert_xlarge", "wavlm_base_plus", "mms_fa"} <= set(registry())


@pytest.mark.parametrize("name", sorted(BUNDLES))
def test_settings_are_those_of_the_bundle(name):
    """Layers, width, rate and normalisation are read from the bundle object."""
    bundle, spec = BUNDLES[name], registry()[name.lower()]
    assert spec.n_layers == bundle._params["encoder_num_layers"]
    assert spec.dim == bundle._params["encoder_embed_dim"]
    assert spec.sample_rate_hz == bundle.sample_rate == 16_000
    assert spec.normalize_waveform is bundle._normalize_waveform
    assert spec.group_norm == (bundle._params["extractor_mode"] == "group_norm")
    assert spec.pre_norm == bundle._params["encoder_layer_norm_first"]
    assert spec.bundle == name


def test_parameters_and_bytes_per_hour():
    """Parameters equal those of torchaudio's factory; base layers take 3.3 GB per hour."""
    spec = find_model("hubert_base")
    stock = torchaudio.models.hubert_base()
    assert spec.n_parameters() == sum(parameter.numel() for parameter in stock.parameters())
    assert spec.bytes_per_hour == 12 * 768 * 2 * 50 * 3600


def test_the_architecture_is_json_and_leaves_training_settings_out():
    """The architecture in the identity has no dropout and no head, and survives JSON."""
    for spec in registry().values():
        settings = spec.architecture()
        assert json.loads(json.dumps(settings)) == settings
        assert not [key for key in settings if "drop" in key or "aux" in key]


def test_fine_tuned_models_share_the_architecture_of_their_base():
    """Without its head, an ASR model has the architecture of its base."""
    base, tuned = find_model("hubert_large"), find_model("hubert_asr_large")
    assert base.architecture() == tuned.architecture()


def test_a_misspelt_name_is_refused_with_the_nearest():
    """The message suggests the nearest names."""
    with pytest.raises(ConfigError, match="'hubert-base'; did you mean hubert_base"):
        find_model("hubert-base")
    with pytest.raises(ConfigError, match=r"`strata models` lists the.*register_encoder"):
        find_model("zzz")
