"""Encoders of the general path against transformers' own forward pass, one clip at a time."""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cache

import pytest
import torch

from pipeline.config.models import FAMILIES
from pipeline.encoders.clips import encode_clips
from pipeline.encoders.general.architectures import KINDS
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.selfcheck import relative_errors
from pipeline.encoders.wav2vec2.conversion import configs as packed
from pipeline.errors import ConfigError, WeightsError
from tests.helpers.encoder_kinds import speech

pytest.importorskip("transformers")

from tests.helpers.general_checkpoints import CHECKPOINTS, hidden_states, save

PADDED = {"wav2vec2-bert", "seamless_m4t", "seamless_m4t_v2", "parakeet_ctc", "lasr_ctc"}
PADDED |= {"omniasr_ctc"}
"""Small models that give a clip the same features with padding behind it and a mask."""
NORMED = {"whisper", "voxtral", "seamless_m4t", "seamless_m4t_v2", "wav2vec2-conformer"}
NORMED |= {"moonshine", "lasr_ctc", "omniasr_ctc", "speech_to_text"}
"""Models with a norm after the last block, at the same frames."""
CLIPS = [speech(20_011, 1), 0.01 * speech(19_003, 2) + 0.05, speech(20_011, 3), speech(4_000, 4)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a function that saves a small checkpoint once: its folder, and its encoder."""

    @cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        return folder, save(name, folder)

    return make


def load(folder, **options):
    return load_encoder(folder, source="huggingface", device="cpu", **options)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_layers_are_the_states_of_transformers(folders, name):
    """Layers 0 to N of a mixed batch are the input of block 1 and the outputs of the blocks.

    With a norm after them also layer N + 1, its output. Every clip has the frames that the geometry
    states.
    """
    folder, module = folders(name)
    layers = [0, "block_1", 2, 3, *(["final_norm"] if name in NORMED else [])]
    encoder = load(folder, layers=layers)
    for found, clip in zip(encoder(CLIPS), CLIPS, strict=True):
        states, normed = hidden_states(name, module, clip)
        n_frames = encoder.geometry.n_frames(len(clip))
        expected = torch.cat([states, normed[None]]) if name in NORMED else states
        assert found.shape == (len(layers), n_frames, encoder.dim)
        assert relative_errors(found, expected[:, :n_frames]).max() <= 2e-5
    assert encoder.layer_names[:2] == ("input", "block_1")
    assert (encoder.final_norm is not None) == (name in NORMED)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_clips_are_padded_only_where_it_changes_nothing(folders, name):
    """The probe finds the models that leak, and a batch of those has no padding."""
    encoder = load(folders(name)[0])
    assert (encoder._kind.can_pad and encoder._padding_changes_nothing) == (name in PADDED)
    batches = []
    forward = encoder._forward
    encoder._forward = lambda captured, inputs, counts, group: (
        batches.append(sorted(group)) or forward(captured, inputs, counts, group)
    )
    together = encode_clips(encoder, CLIPS)
    fixed = encoder.windows.geometry.pads_end
    expected = [[0, 1, 2], [3]] if name in PADDED else [[0, 2], [1], [3]]
    assert batches == ([[0, 1, 2, 3]] if fixed else expected)
    for found, clip in zip(together, CLIPS, strict=True):
        [alone] = encode_clips(encoder, [clip])
        assert relative_errors(found, alone).max() <= 1e-5


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_half_precisions_are_close(folders, name):
    """Features in bf16 and fp16 are finite and near those in fp32; fp32 stays as it is."""
    encoder = load(folders(name)[0])
    [exact] = encode_clips(encoder, [CLIPS[0]])
    for precision, tolerance in (("bf16", 0.15), ("fp16", 0.02)):
        [found] = encode_clips(encoder, [CLIPS[0]], precision=precision)
        assert found.dtype == torch.float32
        assert relative_errors(found, exact).max() <= tolerance
        assert relative_errors(found, exact).max() > 0
    assert torch.equal(encode_clips(encoder, [CLIPS[0]])[0], exact)


@pytest.mark.parametrize("name", ["whisper", "parakeet_ctc", "wav2vec2-bert"])
def test_autocast_of_a_trainer_changes_nothing(folders, name):
    """Neither the features nor the statistics of a long recording."""
    if name not in CHECKPOINTS:
        pytest.skip(f"this transformers has no {name}")
    encoder = load(folders(name)[0])
    expected, stats = encoder(CLIPS), encoder.utterance_stats(CLIPS[0])
    with torch.autocast("cpu", torch.bfloat16):
        found, others = encoder(CLIPS), encoder.utterance_stats(CLIPS[0])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(others.total, stats.total)


def test_whether_padding_changes_features_is_probed_in_fp32(folders, monkeypatch):
    """Also if the first batch is one in TF32: its rounding would be taken for a change."""
    encoder, used, within = load(folders("wav2vec2-bert")[0]), [], []

    @contextmanager
    def settings(precision):
        within.append(precision)
        yield
        within.pop()

    forward = encoder._forward

    def recorded(*args):
        used.append((within[-1], len(args[-1])))
        return forward(*args)

    monkeypatch.setattr(encoder, "_settings", settings)
    monkeypatch.setattr(encoder, "_forward", recorded)
    list(encoder.encode_batch([clip[:16_000] for clip in CLIPS], precision="tf32"))
    assert used == [("fp32", 2), ("fp32", 1), ("fp32", 1), ("tf32", 4)]


def test_a_batch_in_an_unknown_precision_is_refused(folders):
    """When the batch is given; float64 is a precision of the packed path only."""
    encoder = load(folders("moonshine")[0])
    with pytest.raises(ConfigError, match=r"'fp64' is not one of fp32, tf32, bf16, fp16$"):
        encoder.encode_batch([CLIPS[0]], precision="fp64")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_random_weights_need_no_file(folders, name, tmp_path):
    """They come from the seed, are marked as random, and differ from the checkpoint's."""
    folder = folders(name)[0]
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = torch.random.get_rng_state()
    first, again, other = (load(tmp_path, weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.is_random
    assert first.identity == again.identity
    assert first.identity["weights"] != other.identity["weights"]
    assert first.identity["architecture"] == load(folder).identity["architecture"]


def test_the_identity_is_that_of_the_encoder(folders, tmp_path):
    """It holds the encoder's weights and settings, no path, and nothing of the decoder."""
    folder, _ = folders("whisper")
    encoder = load(folder)
    assert encoder.identity["model"] == encoder.name == "hf_whisper"
    assert encoder.identity["architecture"]["front_end"]["feature_size"] == 40
    assert str(folder) not in json.dumps(encoder.identity)
    assert encoder.weights_source == "huggingface"
    save("whisper", tmp_path, decoder_layers=2)
    assert load(tmp_path).n_model_layers == 3
    assert not any("decoder" in key for key, _ in load(tmp_path)._module.named_modules())


def test_options_beyond_the_packed_path_run_by_hooks(tmp_path):
    """A HuBERT with another activation equals transformers; with the usual one it is packed."""
    import transformers

    options = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    options |= {"intermediate_size": 48, "conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 8}
    kinds = {}
    for activation in ("gelu", "relu"):
        config = transformers.HubertConfig(**options, hidden_act=activation)
        module = transformers.HubertModel(config).eval()
        module.save_pretrained(tmp_path)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
        encoder = load(tmp_path, layers="superb")
        kinds[activation] = type(encoder).__name__
        for found, clip in zip(encoder(CLIPS), CLIPS, strict=True):
            normalised = (clip - clip.mean()) / (clip.var(correction=0) + 1e-7).sqrt()
            with torch.inference_mode():
                states = module(normalised[None], output_hidden_states=True).hidden_states
            assert relative_errors(found, torch.stack(states)[:, 0]).max() <= 2e-5
    assert kinds == {"gelu": "Wav2Vec2Encoder", "relu": "GeneralEncoder"}


def change(folder, file, **entries):
    """Change entries of a JSON file."""
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | entries))


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("config.json", {"model_type": "bert"}, r"is a 'bert' model, which has no encoder here;"),
        ("config.json", {"num_mel_bins": 80}, r"gives 40 values a frame; .* expects 80"),
        ("config.json", {"max_source_positions": 1500}, r"windows of 64000 samples; .* 480000"),
        (
            "preprocessor_config.json",
            {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
            r"has a Wav2Vec2FeatureExtractor; its architecture needs a WhisperFeatureExtractor",
        ),
        ("config.json", {"encoder_layers": 4}, r"lacks \d+ of the weights .* first layers\.3"),
        (
            "config.json",
            {"encoder_ffn_dim": 56},
            r"has 9 weights of other shapes .* layers\.0\.fc1\.bias has \[48\], expected \[56\]",
        ),
        (
            "config.json",
            {"encoder_layers": 2},
            r"has 15 weights that .*does not account for, first layers\.2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, file, entries, message):
    """Another architecture, feature extractor or number of blocks: one line names the value."""
    save("whisper", tmp_path)
    change(tmp_path, file, **entries)
    with pytest.raises((ConfigError, WeightsError), match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_forward_pass_on_a_cpu_holds_at_most_30_s_of_audio(tmp_path, monkeypatch):
    """Padding included: seven windows of 4 s; larger batches are slower there."""
    save("whisper", tmp_path)
    encoder = load(tmp_path)
    sizes, forward = [], encoder._forward

    def count(captured, inputs, counts, group):
        sizes.append(len(group))
        return forward(captured, inputs, counts, group)

    monkeypatch.setattr(encoder, "_forward", count)
    assert len(encode_clips(encoder, [CLIPS[0][:1600]] * 16)) == 16
    assert sizes == [7, 7, 2]


def test_an_unknown_architecture_names_the_nearest_and_the_page(tmp_path):
    """And a path of weights is refused, since the checkpoint has its own."""
    save("whisper", tmp_path)
    with pytest.raises(ConfigError, match=r"weights='x\.pt' is not pretrained or random"):
        load(tmp_path, weights="x.pt")
    for model_type, nearest in (("speecht5", None), ("moonshine_streaming", "moonshine")):
        change(tmp_path, "config.json", model_type=model_type)
        with pytest.raises(
            ConfigError, match=r"docs/add_an_encoder\.md says how to add one"
        ) as error:
            load(tmp_path)
        assert ("nearest" in str(error.value)) is (nearest is not None)
        assert nearest is None or f"has is {nearest!r}; docs/models.md lists" in str(error.value)


def test_pickles_are_read_only_with_allow_pickle(tmp_path):
    """As on the packed path."""
    save("moonshine", tmp_path)
    reference = load(tmp_path).identity
    from safetensors.torch import load_file

    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="Only safetensors are read unless allow_pickle"):
        load(tmp_path)
    assert load(tmp_path, allow_pickle=True).identity == reference


def test_each_family_has_an_example_for_messages() -> None:
    """`model=whisper` is no option; the message names a checkpoint of the family."""
    assert {name.replace("-", "_") for name in [*KINDS, *packed.KINDS]} <= set(FAMILIES)
