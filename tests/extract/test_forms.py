"""Extraction into stores of other forms: dtypes, frames or statistics alone, other statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.encoders.registry import find_family
from pipeline.errors import ConfigError, IdentityError
from pipeline.extract import run
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import write_folder
from tests.helpers.extraction import INLINE, configured, contents, extract
from tests.helpers.forked import Forked, finish

SECONDS = [2.0, 3.1, 0.02, 5.0, 13.0, 20.0, 2.2]
WINDOWS = ("extract.max_window_s=6", "extract.context_s=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, of which two are longer than a window."""
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", SECONDS)


@pytest.fixture(scope="module")
def exact(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> pipeline.FeatureStore:
    """The features as float32."""
    store = tmp_path_factory.mktemp("forms") / "float32"
    extract(folder, store, *INLINE, *WINDOWS, "extract.dtype=float32")
    return pipeline.open_store(store)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_a_dtype_costs_its_rounding_only(
    folder: Path, exact: pipeline.FeatureStore, tmp_path: Path, dtype: str
) -> None:
    """Of whole clips, of windowed ones and of a padded one; the frames are the same ones."""
    extract(folder, tmp_path / "s", *INLINE, *WINDOWS, f"extract.dtype={dtype}")
    store = pipeline.open_store(tmp_path / "s")
    assert verify_store(tmp_path / "s").ok
    assert store.attributes["identity"]["dtype"] == dtype
    for key in exact.ids:
        expected, got = exact.read(key), store.read(key).float()
        width = expected.amax(1, keepdim=True) - expected.amin(1, keepdim=True)
        allowed = {
            "float16": expected.abs() * 2**-11 + 2**-24,
            "bfloat16": expected.abs() * 2**-8,
            "int8": width / 250 / 2 + expected.abs() * 2**-11,
        }[dtype]
        assert ((got - expected).abs() <= allowed).all(), key
    torch.testing.assert_close(store.pooled(), exact.pooled(), atol=2e-2, rtol=1e-2)


def test_batch_mates_change_nothing_in_int8(folder: Path, tmp_path: Path) -> None:
    """A clip has the same bytes alone and among others, also if it is cut into windows."""
    extract(folder, tmp_path / "all", *INLINE, *WINDOWS, "extract.dtype=int8")
    together = pipeline.open_store(tmp_path / "all")
    for i in (0, 4):
        (tmp_path / f"{i}").mkdir()
        name = together.ids[i]
        (tmp_path / f"{i}" / name).symlink_to(folder / name)
        extract(tmp_path / f"{i}", tmp_path / f"s{i}", *INLINE, *WINDOWS, "extract.dtype=int8")
        alone = pipeline.open_store(tmp_path / f"s{i}")
        assert alone.checksums()[0] == together.checksums()[i]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.store.write.slot import SlotWriter
from tests.helpers.extraction import INLINE, extract
commit, n = SlotWriter.commit, [0]
def dies(self, index):
    n[0] += 1
    if n[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return commit(self, index)
SlotWriter.commit = dies
*more, int8, pooled = sys.argv[3:]
for form in (int8, pooled):  # each in a process, which need not import torch again
    child = os.fork()
    if not child:
        extract(Path(sys.argv[1]), Path(sys.argv[2], form), *INLINE, *more, form)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Killed between the units of a plan, then run again: as if nothing had happened."""
    more, forms = (
        [*WINDOWS, "extract.pooling=[mean,std]"],
        ["extract.dtype=int8", "extract.keep=pooled"],
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    assert finish(Forked(KILLED, folder, killed, *more, *forms)).split() == ["-9", "-9"]
    for form in forms:
        extract(folder, killed / form, *INLINE, *more, form)
        extract(folder, whole / form, *INLINE, *more, form)
        assert contents(killed / form) == contents(whole / form)
        assert verify_store(killed / form).ok


def test_statistics_alone_are_those_of_the_whole_store(folder: Path, tmp_path: Path) -> None:
    """And take the space that `plan` states; no frame is written."""
    more = ("extract.pooling=[mean,std,max,first,last]",)
    extract(folder, tmp_path / "whole", *INLINE, *WINDOWS, *more)
    extract(folder, tmp_path / "pooled", *INLINE, *WINDOWS, *more, "extract.keep=[pooled]")
    whole, pooled = (pipeline.open_store(tmp_path / name) for name in ("whole", "pooled"))
    assert pooled.statistics == ("mean", "std", "max", "first", "last")
    for name in pooled.statistics:
        assert torch.equal(pooled.pooled(statistic=name), whole.pooled(statistic=name))
    estimate = run.plan(
        configured(folder, tmp_path / "pooled", *INLINE, *WINDOWS, *more, "extract.keep=pooled")
    )
    array = tmp_path / "pooled" / "features.zarr" / "pooled" / "c"
    assert estimate.bytes == sum(file.stat().st_size for file in array.rglob("0") if file.is_file())
    assert estimate.units == len(list(array.iterdir()))


def test_frames_alone_give_the_same_statistics(folder: Path, tmp_path: Path) -> None:
    """They are computed when they are asked for."""
    extract(folder, tmp_path / "whole", *INLINE)
    extract(folder, tmp_path / "frames", *INLINE, "extract.keep=frames")
    whole, frames = (pipeline.open_store(tmp_path / name) for name in ("whole", "frames"))
    assert frames.statistics == ()
    assert torch.equal(frames.pooled(), whole.pooled())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["extract.dtype=int4"], r"extract.dtype is 'int4'; did you mean int8"),
        (["extract.dtype=fp16"], r"extract.dtype is 'fp16'; .*float16"),
        (["extract.keep=[frame]"], r"extract.keep has 'frame'; did you mean frames"),
        (["extract.keep=[]"], r"extract.keep is empty; expected one or more of frames, pooled"),
        (["extract.pooling=[mean,median]"], r"extract.pooling has 'median'; "),
        (
            ["extract.keep=pooled", "extract.dtype=int8"],
            r"extract.dtype=int8 is about frames, which extract.keep=\[pooled\] does not keep",
        ),
        (
            ["extract.keep=frames", "extract.pooling=max"],
            r"extract.pooling needs extract.keep=\[frames,pooled\]",
        ),
    ],
)
def test_wrong_forms_are_refused(tmp_path: Path, settings: list[str], message: str) -> None:
    """Before the dataset is opened; the message names the setting, the value and the known ones."""
    with pytest.raises(ConfigError, match=message):
        extract(tmp_path / "none", tmp_path / "s", *INLINE, *settings)
    assert not (tmp_path / "s").exists()


def test_another_form_is_another_store(folder: Path, tmp_path: Path) -> None:
    """Resuming needs the same; std includes the mean; the order of names does not matter."""
    extract(folder, tmp_path / "s", *INLINE, "extract.pooling=[std]")
    assert pipeline.open_store(tmp_path / "s").statistics == ("mean", "std")
    extract(folder, tmp_path / "s", *INLINE, "extract.pooling=[std,mean]")
    with pytest.raises(IdentityError, match=r"pooling is \['mean', 'std'\] there, nothing here"):
        extract(folder, tmp_path / "s", *INLINE)
    with pytest.raises(IdentityError, match="dtype is float16 there, int8 here"):
        extract(folder, tmp_path / "s", *INLINE, "extract.pooling=std", "extract.dtype=int8")


def test_inspect_shows_statistics_where_there_are_no_frames(folder: Path, tmp_path: Path) -> None:
    """The range of each layer is that of its statistics."""
    extract(folder, tmp_path / "s", *INLINE, "extract.keep=pooled")
    store = pipeline.open_store(tmp_path / "s")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "s"), store.ids[0]])
    assert shown.exit_code == 0, shown.output
    assert "mean" in shown.output
    assert "pooled" in shown.output


def change_layers(
    patch: pytest.MonkeyPatch, change: Callable[[int, torch.Tensor], torch.Tensor]
) -> None:
    """Let encoders return other features: `change` takes the number of a layer, and its frames."""
    family = type(find_family("torchaudio"))
    load = family.load

    def load_changed(self: Any, *arguments: Any) -> Any:
        encoder = load(self, *arguments)
        encode = encoder.encode_batch

        def encode_batch(*args: Any, **more: Any) -> Iterator[torch.Tensor]:
            for i, layer in enumerate(encode(*args, **more)):
                yield change(i, layer)

        encoder.encode_batch = encode_batch
        return encoder

    patch.setattr(family, "load", load_changed)


def test_values_beyond_the_dtype_name_the_wider_ones(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are quarantined in float16 and int8, and stored in float32 and bfloat16."""
    change_layers(monkeypatch, lambda i, layer: layer * 1e6 if i == 2 else layer)
    for dtype, n_ok in (("float16", 0), ("int8", 0), ("float32", 7), ("bfloat16", 7)):
        store = tmp_path / dtype
        more = (f"extract.dtype={dtype}", *WINDOWS)
        assert extract(folder, store, *INLINE, *more).utterances_ok == n_ok
        opened = pipeline.open_store(store)
        if not n_ok:
            reason = opened.quarantined["reason"][0].as_py()
            assert "layer 3 reaches" in reason
            assert f"more than {dtype} holds" in reason
            assert "extract.dtype=bfloat16 or float32" in reason
        else:
            assert opened.read(0, [3]).abs().max() > 65504


def decibels(exact: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Return what varies over what is lost, in each feature: [..., n_frames, dim] → [..., dim]."""
    error = np.square(got - exact).mean(-2)
    return 10 * np.log10(exact.var(-2) / np.maximum(error, 1e-30))


def test_int8_keeps_what_varies_in_every_feature(
    folder: Path, exact: pipeline.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For clips of 2 to 20 s: 35 dB in each layer, 36 in the median feature, 25 in the worst.

    The layers have the outliers of trained encoders: two features with 80 times the variance of the
    others, and two with a constant part of 60 times their deviation. The error is taken against the
    variance of a feature, not its power: without offsets nothing of the latter would be left.
    """
    deviation = exact.pooled(statistic="std").mean(0)  # [n_layers, dim]
    gain, shift = torch.ones_like(deviation), torch.zeros_like(deviation)
    gain[:, [5, 17]] = (80**0.5 * deviation.median(1, keepdim=True).values) / deviation[:, [5, 17]]
    shift[:, [9, 30]] = 60 * deviation[:, [9, 30]]
    change_layers(monkeypatch, lambda i, layer: layer * gain[i] + shift[i])
    stores = {}
    for dtype in ("float32", "int8"):
        extract(folder, tmp_path / dtype, *INLINE, *WINDOWS, f"extract.dtype={dtype}")
        stores[dtype] = pipeline.open_store(tmp_path / dtype)
    each = []
    for key, seconds in zip(stores["int8"].ids, SECONDS, strict=True):
        values, got = (stores[name].read(key).double().numpy() for name in ("float32", "int8"))
        if seconds < 2:
            assert np.abs(got - values).max() <= np.abs(values).max() * 2**-11  # one frame
            continue
        each.append(decibels(values, got))  # [n_layers, dim]
        lost = np.square(got - values).mean(1).sum(-1)
        assert (10 * np.log10(values.var(1).sum(-1) / lost)).min() >= 35, key
        assert np.median(each[-1]) >= 36, key
    assert np.quantile(np.stack(each), 0.001) >= 25
    assert np.stack(each)[:, :, [9, 30]].min() >= 25
