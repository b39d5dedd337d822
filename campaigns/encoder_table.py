"""Measure the encoder's errors against torchaudio and transformers, and print tables.

    python campaigns/encoder_table.py DATA [--only PART] [--models NAME …] [--threads N]

PART is families, variants, precision or windows; all of them by default. DATA has the folders
`read_speech` and `long` with 16 kHz FLAC files of real speech. The architectures are the real ones,
with random weights from seed 0, which suffice to measure rounding and leaks. The error of a layer
of an utterance is max |a - b| / max |b| over its frames and features; each figure is the largest
over the utterances and the layers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import soundfile
import torch
import torch.nn.functional as F
import transformers

from pipeline.encoders.clips import encode_clips
from pipeline.encoders.loading import load_encoder
from pipeline.encoders.selfcheck import relative_errors
from pipeline.encoders.wav2vec2.bundles import find_model

transformers.utils.logging.disable_progress_bar()

RATE_HZ = 16_000
# model: prefix of transformers' classes, and number of clips
FAMILIES = {
    "wav2vec2_base": ("Wav2Vec2", 24),
    "hubert_base": ("Hubert", 24),
    "wavlm_base_plus": ("WavLM", 24),
    "wav2vec2_large": ("Wav2Vec2", 12),
    "wav2vec2_large_lv60k": ("Wav2Vec2", 12),
    "hubert_large": ("Hubert", 12),
    "wavlm_large": ("WavLM", 12),
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}
# models without a bundle: prefix of transformers' classes, options of the configuration that are
# not the default (the sizes of a base model), whether waveforms are normalised, number of clips
VARIANTS = {
    "data2vec_audio_base": ("Data2VecAudio", {}, True, 24),
    "unispeech_base": ("UniSpeech", {}, True, 24),
    "unispeech_sat_base": ("UniSpeechSat", {}, True, 24),
    "distilhubert": (
        "Hubert",
        {"num_hidden_layers": 2, "feat_proj_layer_norm": False},
        False,
        24,
    ),
    "mhubert_base": ("Hubert", {"conv_pos_batch_norm": True}, True, 24),
    "conformer_relative_base": ("Wav2Vec2Conformer", {"hidden_act": "swish"}, True, 12),
    "conformer_rotary_base": (
        "Wav2Vec2Conformer",
        {"hidden_act": "swish", "position_embeddings_type": "rotary"},
        True,
        12,
    ),
    "mms_300m_adapters": ("Wav2Vec2", LARGE | {"adapter_attn_dim": 16}, True, 12),
}


def real_clips(data: Path, n_clips: int) -> list[torch.Tensor]:
    """Cut clips of 0.03–30 s in geometric steps from different recordings, in random order.

    Clips longer than their recording are cut from the long chapter.
    """
    files = sorted((data / "read_speech").rglob("*.flac"))
    chapter = read(min((data / "long").glob("*.flac"), key=lambda f: f.stat().st_size))
    clips = []
    for i in range(n_clips):
        n_samples = round(0.03 * 1000 ** (i / (n_clips - 1)) * RATE_HZ)
        audio = read(files[7 * i % len(files)])
        if audio.numel() < n_samples:
            audio = chapter[i * RATE_HZ :]
        start = (audio.numel() - n_samples) // 2  # speech, not the silence at the edges
        clips.append(audio[start : start + n_samples].clone())
    order = torch.randperm(n_clips, generator=torch.Generator().manual_seed(0)).tolist()
    return [clips[i] for i in order]


def read(path: Path) -> torch.Tensor:
    audio, rate = soundfile.read(path, dtype="float32")
    if rate != RATE_HZ:
        raise SystemExit(f"{path} has {rate} Hz; {RATE_HZ} Hz is expected")
    return torch.from_numpy(audio)


def by_torchaudio(model, waveform, normalize, dtype=torch.float32):
    """Run torchaudio's `extract_features` on one unpadded clip: all layers."""
    waveform = F.layer_norm(waveform, waveform.shape) if normalize else waveform
    with torch.inference_mode():
        layers, _ = model.extract_features(waveform[None].to(dtype))
    return torch.stack(layers)[:, 0].float()


def worst(pairs) -> float:
    return max(relative_errors(found, reference).max().item() for found, reference in pairs)


def in_batches(encoder, clips, size=6):
    features = []
    for i in range(0, len(clips), size):
        features += encode_clips(encoder, clips[i : i + size])
    return features


def hf_config(name: str, family: str):
    """Translate the architecture of a bundle to a configuration of transformers."""
    spec = find_model(name)
    params = spec.params
    config = getattr(transformers, f"{family}Config")()
    settings = {
        "hidden_size": "encoder_embed_dim",
        "num_hidden_layers": "encoder_num_layers",
        "num_attention_heads": "encoder_num_heads",
        "intermediate_size": "encoder_ff_interm_features",
        "do_stable_layer_norm": "encoder_layer_norm_first",
        "conv_bias": "extractor_conv_bias",
    }
    for theirs, ours in settings.items():
        setattr(config, theirs, params[ours])
    config.feat_extract_norm = params["extractor_mode"].removesuffix("_norm")
    return config, spec.normalize_waveform


def against_transformers(config, family: str, normalize: bool, clips) -> list[float]:
    """Compare a random model with its saved checkpoint, loaded as an encoder.

    Returns:
        The largest differences of layers 0..N: alone against in a batch, and against
        `hidden_states` of transformers, clip by clip.
    """
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        encoder = load_encoder(folder, source="huggingface", layers="superb")
    leak = largest = 0.0
    for clip, found in zip(clips, in_batches(encoder, clips), strict=True):
        inputs = extractor(clip.numpy(), sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            states = model(inputs.input_values, output_hidden_states=True).hidden_states
        leak = max(leak, worst([(found, encode_clips(encoder, [clip])[0])]))
        largest = max(largest, worst([(found, torch.stack(states)[:, 0])]))
    return [leak, largest]


def variants(data: Path, names) -> None:
    print("| model | clips | alone vs batch | ours vs transformers |")
    print("|---|---|---|---|")
    for name in names:
        family, options, normalize, n_clips = VARIANTS[name]
        config = getattr(transformers, f"{family}Config")(**options)
        figures = against_transformers(config, family, normalize, real_clips(data, n_clips))
        print(
            f"| {name} | {n_clips} | " + " | ".join(f"{f:.1e}" for f in figures) + " |", flush=True
        )


def families(data: Path, names) -> None:
    print("| model | clips | alone vs batch | ours vs torchaudio | ours vs transformers |")
    print("|---|---|---|---|---|")
    for name in names:
        family, n_clips = FAMILIES[name]
        clips = real_clips(data, n_clips)
        encoder = load_encoder(name, "random")
        batched = in_batches(encoder, clips)
        alone = [encode_clips(encoder, [clip])[0] for clip in clips]
        spec = find_model(name)
        reference = [by_torchaudio(encoder._model, c, spec.normalize_waveform) for c in clips]
        figures = [
            worst(zip(batched, alone, strict=True)),
            worst(zip(batched, reference, strict=True)),
        ]
        del encoder, batched, alone, reference
        config, normalize = hf_config(name, family)
        figures.append(against_transformers(config, family, normalize, clips)[1])
        print(
            f"| {name} | {n_clips} | " + " | ".join(f"{f:.1e}" for f in figures) + " |", flush=True
        )


def precision(data: Path) -> None:
    print("| model | precision | layer 0 | 1 | middle | last | alone vs batch | stock, cast |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ("hubert_base", "wavlm_base_plus", "hubert_large"):
        clips = real_clips(data, 12)
        n = find_model(name).n_layers
        encoder = load_encoder(name, "random", layers=[0, 1, n // 2, n])
        exact = [encode_clips(encoder, [clip])[0] for clip in clips]
        for short, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            encoder = load_encoder(name, "random", layers=[0, 1, n // 2, n], precision=short)
            alone = [encode_clips(encoder, [clip])[0] for clip in clips]
            leak = worst(zip(in_batches(encoder, clips), alone, strict=True))
            errors = [relative_errors(a, b) for a, b in zip(alone, exact, strict=True)]
            normalize = find_model(name).normalize_waveform
            model = encoder._model.to(dtype)
            stock = 0.0
            for clip, reference in zip(clips, exact, strict=True):
                layers = by_torchaudio(model, clip, normalize, dtype)[[0, n // 2 - 1, n - 1]]
                stock = max(stock, worst([(layers, reference[1:])]))
            figures = [*torch.stack(errors).amax(0).tolist(), leak, stock]
            print(
                f"| {name} | {short} | " + " | ".join(f"{f:.1e}" for f in figures) + " |",
                flush=True,
            )


def windows(data: Path) -> None:
    chapter = read(min((data / "long").glob("*.flac"), key=lambda f: f.stat().st_size))
    clip = chapter[: 100 * RATE_HZ]
    print("| model | window s | context s | largest error | median frame's | seconds |")
    print("|---|---|---|---|---|---|")
    for name in ("hubert_base", "wavlm_base_plus"):
        whole = load_encoder(name, "random", max_window_s=1000)
        started = time.perf_counter()
        [reference] = encode_clips(whole, [clip])
        seconds = time.perf_counter() - started
        print(
            f"| {name} | {clip.numel() / RATE_HZ:.0f}, whole | – | 0 | 0 | {seconds:.1f} |",
            flush=True,
        )
        for window_s, context_s in ((20, 2), (20, 5), (40, 0), (40, 2), (40, 5), (40, 10)):
            encoder = load_encoder(name, "random", max_window_s=window_s, context_s=context_s)
            started = time.perf_counter()
            [features] = encoder([clip])
            seconds = time.perf_counter() - started
            scale = reference.abs().amax((1, 2), keepdim=True)
            by_frame = ((features - reference).abs() / scale).amax((0, 2))
            print(
                f"| {name} | {window_s} | {context_s} | {by_frame.max():.1e} "
                f"| {by_frame.median():.1e} | {seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=["families", "variants", "precision", "windows"])
    both = [*FAMILIES, *VARIANTS]
    parser.add_argument("--models", nargs="+", choices=both, default=both)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only in (None, "families"):
        families(arguments.data, [name for name in arguments.models if name in FAMILIES])
    if arguments.only in (None, "variants"):
        variants(arguments.data, [name for name in arguments.models if name in VARIANTS])
    if arguments.only in (None, "precision"):
        precision(arguments.data)
    if arguments.only in (None, "windows"):
        windows(arguments.data)
