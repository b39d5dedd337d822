"""The benchmark of architectures measures all methods, on both paths."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import bench_models
from benchmarks.published_models import Published

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"intermediate_size": 32}
MODELS = {
    "hubert": Published(
        "HubertConfig",
        {**TINY, "conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 8},
        settings={"do_normalize": False},
    ),
    "w2v-bert": Published("Wav2Vec2BertConfig", TINY, "SeamlessM4TFeatureExtractor"),
    "speech-to-text": Published(
        "Speech2TextConfig",
        {
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "conv_channels": 16,
        },
        "Speech2TextFeatureExtractor",
    ),
    "whisper": Published(
        "WhisperConfig",
        {
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "max_source_positions": 50,
        },
        "WhisperFeatureExtractor",
        {"chunk_length": 1},
    ),
}


@pytest.fixture(autouse=True)
def threads():
    """Restore the number of threads, which the benchmark sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_method_is_measured(monkeypatch, capsys):
    """Four speeds for each model; the column of padding tells which models leak."""
    monkeypatch.setattr(bench_models, "MODELS", MODELS)
    few = [
        "--clock",
        "cpu",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--audio-s",
        "2",
        "--clip-s",
        "0.5",
        "1",
    ]
    results = bench_models.main([*few, "--models", *MODELS])
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == results
    assert [row["path"] for row in results] == ["packed", *["general"] * 3]
    assert all(row[method] > 0 for row in results for method in bench_models.METHODS)
    leaks = {row["model"]: row["padding"] for row in results}
    assert leaks["hubert"] > 1e-3  # its GroupNorm sees the padding
    assert leaks["w2v-bert"] < 1e-4
    assert leaks["whisper"] < 1e-4
