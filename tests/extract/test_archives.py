"""Features of clips that are read in place from archives, against those of the same files."""

from __future__ import annotations

import shutil
from pathlib import Path

import soundfile
import torch

import pipeline
from pipeline.extract import run
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import voice
from tests.helpers.extraction import INLINE, configured
from tests.helpers.tars import write_tar

RATE_HZ = 16_000
SUFFIXES = ("flac", "wav", "mp3", "ogg")


def write_clips(folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{i:02d}.{SUFFIXES[i % 4]}" for i in range(8)]
    for i, path in enumerate(paths):
        soundfile.write(path, voice(0.5 + 0.1 * i, i), RATE_HZ)
    return paths


def test_a_webdataset_has_the_features_of_its_files(tmp_path: Path) -> None:
    """Bit for bit, over several shards, with columns; a clip that was cut off is quarantined."""
    paths = write_clips(tmp_path / "clips")
    for number in range(2):
        members: dict[str, bytes | str] = {}
        for path in paths[number::2]:
            members |= {path.name: path.read_bytes(), f"{path.stem}.txt": f"word {path.stem}"}
        if number:
            members["99.wav"] = paths[1].read_bytes()
        write_tar(tmp_path / f"shards/x-{number:03d}.tar", members)
    cut = tmp_path / "shards/x-001.tar"
    cut.write_bytes(cut.read_bytes()[: -(12 << 10)])
    run.extract(configured(tmp_path / "clips", tmp_path / "files", *INLINE))
    settings = ["dataset=webdataset", f"dataset.path={tmp_path}/shards/x-{{000..001}}.tar"]
    config = configured(tmp_path, tmp_path / "store", *INLINE, *settings)
    run.extract(config)
    files, store = (pipeline.open_store(tmp_path / name) for name in ("files", "store"))
    assert sorted(store.ids) == [path.stem for path in paths]
    for path in paths:
        assert torch.equal(store.read(path.stem), files.read(path.name))
    texts = dict(zip(store.ids, store.metadata["txt"].to_pylist(), strict=True))
    assert texts == {path.stem: f"word {path.stem}" for path in paths}
    assert store.quarantined["id"].to_pylist() == ["99"]
    assert "do not lie within the file" in store.quarantined["reason"][0].as_py()
    assert verify_store(tmp_path / "store").ok


def test_shards_that_are_packed_again(tmp_path: Path) -> None:
    """Clips have the same ids and bytes elsewhere: only a new one is encoded."""
    paths = write_clips(tmp_path / "clips")
    texts = {path: f"word {path.stem}" for path in paths}

    def pack(n_shards: int, chosen: list[Path]) -> None:
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
        for number in range(n_shards):
            members: dict[str, bytes | str] = {}
            for path in chosen[number::n_shards]:
                members |= {path.name: path.read_bytes(), f"{path.stem}.txt": texts[path]}
            write_tar(tmp_path / f"shards/x-{number:03d}.tar", members)

    settings = ["dataset=webdataset", f"dataset.path={tmp_path}/shards/*.tar"]
    config = configured(tmp_path, tmp_path / "store", *INLINE, *settings)
    pack(2, paths[:7])
    run.extract(config)
    index = {file: file.read_bytes() for file in (tmp_path / "store/index").iterdir()}
    texts[paths[0]] = "corrected"
    pack(3, paths)
    estimate = run.plan(config)
    found = estimate.new, estimate.gone, estimate.replaced, estimate.relabelled, estimate.unchanged
    assert found == (1, 0, 0, 1, 6)
    run.extract(config)
    assert {file: file.read_bytes() for file in index} == index
    store = pipeline.open_store(tmp_path / "store")
    found_texts = dict(zip(store.ids, store.metadata["txt"].to_pylist(), strict=True))
    assert found_texts == {path.stem: texts[path] for path in paths}
    assert verify_store(tmp_path / "store").ok
