"""Stored utterances encoded again in fp32, through the same audio path and windows."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose

from pipeline.errors import AudioError, ConfigError, IdentityError, SourceError
from pipeline.extract.reference import EncodedReference
from pipeline.probing.fidelity.run import measure
from pipeline.probing.fidelity.sampling import draw_sample
from pipeline.store.read.opening import open_store
from pipeline.transforms.collapse import collapse
from pipeline.transforms.copy import CopySettings, copy_stores
from tests.helpers.corpus import write_folder
from tests.helpers.extraction import INLINE, configured, extract

SECONDS = [0.5, 1.2, 0.03, 2.0, 7.5, 15.0]
"""Whole clips, one of a single frame, one with windows, and one in two pieces."""
WINDOWS = ("extract.max_window_s=4", "extract.context_s=1")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of clips, and stores of them as float32 and as int8."""
    root = tmp_path_factory.mktemp("reference")
    folder = write_folder(root / "clips", SECONDS)
    for name in ("float32", "int8"):
        extract(folder, root / name, f"extract.dtype={name}", *WINDOWS, *INLINE)
    return root


def encoded(store, folder, names=None, more=(*WINDOWS, *INLINE)):
    """Open the encoder and the dataset for utterances of a store."""
    config = configured(folder, folder / "unused", *more)
    return closing(EncodedReference(store, config, store.ids if names is None else names))


def compared(store, folder, **how):
    """Measure a store against its audio."""
    with encoded(store, folder, **how) as reference:
        return measure(store, reference, draw_sample(store).clips)


def test_every_frame_is_that_of_the_extraction(corpus):
    """Windows and pieces are those of the store: all frames agree within rounding of fp32."""
    store = open_store(corpus / "float32")
    assert [len(store.pieces(name)) for name in store.ids] == [1, 1, 1, 1, 1, 2]
    with encoded(store, corpus / "clips") as reference:
        for name in store.ids:
            parts = [reference.read(name, piece, store.layers) for piece in store.pieces(name)]
            whole = np.concatenate(parts, axis=1)
            assert whole.dtype == np.float32
            assert_allclose(whole, store.read(name).numpy(), rtol=0, atol=2e-4)
        piece = store.pieces(3)[0]
        some = reference.read(store.ids[3], piece, [5, 2])
        assert_allclose(some, store.read(3, [5, 2]).numpy(), rtol=0, atol=2e-4)


def test_float32_is_near_the_limit_and_int8_about_40_db(corpus):
    """A float32 store of the same settings differs by rounding, an int8 store by its steps."""
    exact = compared(open_store(corpus / "float32"), corpus / "clips")
    coarse = compared(open_store(corpus / "int8"), corpus / "clips")
    assert exact.n_utterances == coarse.n_utterances == len(SECONDS)
    assert len(exact.layers) == len(coarse.layers) == 12
    assert min(layer.snr_lowest_db or np.inf for layer in exact.layers) > 100
    for layer in coarse.layers:
        assert 38 < layer.snr_lowest_db <= layer.snr_db < 50
        assert layer.codec_snr_db is None
        assert 0.9999 < layer.cosine_worst < layer.cosine_mean < 1
    assert not coarse.includes_precision
    assert "RANDOM" in coarse.warnings[0]


@pytest.mark.slow
def test_the_loss_of_a_lower_precision_is_stated_apart(tmp_path):
    """The reference is fp32 whatever the store's precision; the dtype alone loses less."""
    folder = write_folder(tmp_path / "clips", [1.0, 0.7])
    more = ("extract.precision=bf16", "extract.dtype=int8", *INLINE)
    extract(folder, tmp_path / "store", *more)
    found = compared(open_store(tmp_path / "store"), folder, more=more)
    assert found.includes_precision
    assert (found.precision, found.reference_precision) == ("bf16", "fp32")
    for layer in found.layers:
        assert layer.snr_db < layer.codec_snr_db
        assert 38 < layer.codec_snr_db < 50


def test_stores_with_some_layers_need_no_setting(tmp_path):
    """The layers of the store are encoded; other layers in the settings are refused."""
    folder = write_folder(tmp_path / "clips", [1.0])
    extract(folder, tmp_path / "store", "extract.layers=[2,7]", *INLINE)
    store = open_store(tmp_path / "store")
    assert [layer.layer for layer in compared(store, folder, more=INLINE).layers] == [2, 7]
    with pytest.raises(IdentityError, match=r"encoder.layers is \[2, 7\] there, \[2\] here"):
        encoded(store, folder, more=("extract.layers=[2]", *INLINE))


def test_copies_are_encoded_again(corpus, tmp_path):
    """A copy in another dtype, with other units, has pieces of its own, cut within windows."""
    settings = CopySettings(layers=[3, 4], dtype="int8", frames_per_unit=256)
    copy_stores(corpus / "float32", tmp_path / "copy", settings)
    store = open_store(tmp_path / "copy")
    assert len(store.pieces(5)) > 2
    with encoded(store, corpus / "clips") as reference:
        for piece in store.pieces(5):
            found = reference.read(store.ids[5], piece, [3, 4])
            expected = store.read(5, None, piece.start, piece.stop).numpy()
            assert_allclose(found, expected, rtol=0, atol=0.1)
    found = compared(store, corpus / "clips")
    assert [layer.layer for layer in found.layers] == [3, 4]
    assert found.n_utterances == len(SECONDS)
    assert min(layer.snr_lowest_db for layer in found.layers) > 38


def test_other_settings_are_refused(corpus):
    """Another model, or other windows, give other features: the message names the difference."""
    store = open_store(corpus / "int8")
    with pytest.raises(IdentityError, match=r"holds other features: encoder.weights.sha256 is"):
        encoded(store, corpus / "clips", more=("model.seed=1", *WINDOWS, *INLINE))
    with pytest.raises(IdentityError, match=r"max_window_s is 4.0 there, 5.0 here"):
        encoded(store, corpus / "clips", more=("extract.max_window_s=5", *WINDOWS[1:], *INLINE))


def test_the_form_and_the_labels_may_differ(corpus, tmp_path):
    """dtype, precision and columns of the settings do not matter."""
    more = ("extract.dtype=float16", "extract.precision=bf16", "dataset.columns=[word]")
    with encoded(open_store(corpus / "int8"), corpus / "clips", more=(*more, *WINDOWS, *INLINE)):
        pass


def test_a_dataset_without_the_sample_is_refused(corpus, tmp_path):
    """The message counts and names what is missing; a dataset that has the sample is enough."""
    store = open_store(corpus / "int8")
    folder = write_folder(tmp_path / "clips", SECONDS[:3])
    with pytest.raises(SourceError, match=r"lacks 3 of the 6 utterances .* clip-003.wav, clip-004"):
        encoded(store, folder)
    with encoded(store, folder, names=store.ids[:2]) as reference:
        assert reference.read(store.ids[1], store.pieces(1)[0], [1]).shape[0] == 1


def test_audio_that_has_changed_is_left_out(corpus, tmp_path):
    """It would give other features; the reason says so, and the others are compared."""
    folder = write_folder(tmp_path / "clips", SECONDS[:4])
    extract(folder, tmp_path / "store", *WINDOWS, *INLINE)
    write_folder(folder, [0.9], metadata=False)
    (folder / "clip-001.wav").write_bytes(b"RIFF")
    store = open_store(tmp_path / "store")
    found = compared(store, folder)
    assert found.n_utterances == 2
    assert [item.id for item in found.left_out] == store.ids[:2]
    assert "the audio has changed since it was planned" in found.left_out[0].reason
    with encoded(store, folder) as reference, pytest.raises(AudioError):
        reference.read(store.ids[1], store.pieces(1)[0], [1])


def test_collapsed_stores_are_refused(corpus, tmp_path):
    """No encoder returns a weighted sum of layers."""
    collapse(corpus / "float32", tmp_path / "one", "average")
    with pytest.raises(ConfigError, match="has a weighted sum of layers"):
        encoded(open_store(tmp_path / "one"), corpus / "clips")


def test_quarantined_utterances_are_not_asked_for(tmp_path):
    """A store with a damaged clip is compared by its other clips."""
    folder = write_folder(tmp_path / "clips", [0.5, 0.6])
    (folder / "clip-000.wav").write_bytes(b"RIFF")
    extract(folder, tmp_path / "store", *INLINE)
    assert pq.read_table(tmp_path / "store" / "plan.parquet").num_rows == 2
    found = compared(open_store(tmp_path / "store"), folder, more=INLINE)
    assert (found.n_utterances, found.left_out) == (1, ())
