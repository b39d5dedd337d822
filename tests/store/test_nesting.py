"""Places where no store is made: in another one, among a dataset's files, over lost attributes."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest
import torch

import pipeline
from pipeline.errors import ConfigError, DamagedError
from pipeline.extract import run
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.format.layout import ATTRIBUTES
from pipeline.transforms.copy import copy_stores
from tests.helpers.audio_files import write
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, configured, extract
from tests.helpers.feature_stores import make_store
from tests.servers.proxy import Proxy


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for stores."""
    if request.param == "folder":
        return str(tmp_path / "stores")
    return f"{request.getfixturevalue('s3')}/stores"


def create(place: str) -> None:
    """Make what is the first document of a store."""
    with Lease(place, uuid.uuid4().hex):
        open_backend(place).put(ATTRIBUTES, [b"{}"])


def test_a_store_inside_a_store_is_refused(place: str) -> None:
    """At any depth, with both names; nothing is written."""
    create(f"{place}/one")
    before = set(open_backend(place).list())
    for inside in (f"{place}/one/frames-of-mine", f"{place}/one/index/a/b"):
        with pytest.raises(ConfigError, match=rf"{inside} is inside the store {place}/one; give"):
            create(inside)
    assert set(open_backend(place).list()) == before
    create(f"{place}/one")  # the store itself is taken again
    create(f"{place}/two")
    create(f"{place}/one-more")


def test_a_store_around_a_store_is_refused(place: str) -> None:
    """A folder of stores is no place for another one."""
    create(f"{place}/one")
    words = rf"{place} has the store {place}/one in it; give a place of its own, such as {place}/N"
    with pytest.raises(ConfigError, match=words):
        create(place)


def test_stores_that_are_there_already_are_written(place: str) -> None:
    """Earlier versions let stores be in each other: a run must still be able to complete them."""
    create(f"{place}/outer/inner")
    open_backend(f"{place}/outer").put(ATTRIBUTES, [b"{}"])
    create(f"{place}/outer/inner")
    create(f"{place}/outer")


def test_folders_above_a_store_need_not_be_readable(proxy: Proxy, s3: str) -> None:
    """Credentials are often restricted to a prefix of the bucket."""
    mine = f"{s3.rpartition('/')[2]}/mine/"
    proxy.refuses = lambda request: mine not in request.path and "prefix" not in request.query
    create(f"{s3}/mine")


def test_a_copy_into_a_store_is_refused(tmp_path: Path) -> None:
    """Not only into its own source."""
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        make_store(path, [5, 7])
    with pytest.raises(ConfigError, match=r"inside.copying is inside the store .*other; give a pl"):
        copy_stores(str(one), str(other / "inside"))


def test_a_store_among_the_files_of_its_dataset(tmp_path: Path) -> None:
    """Not in the very folder of the dataset, nor where its Parquet files would be listed."""
    clips = tmp_path / "clips"
    write(clips / "a.wav")
    for verb in (run.plan, run.extract):
        with pytest.raises(ConfigError, match=r"clips is the folder of the dataset: .*its own"):
            verb(configured(clips, clips, "engine=inline"))
        inside = ("dataset=parquet", f"dataset.path={clips}")
        with pytest.raises(ConfigError, match=r"inside dataset\.path=.*clips.*would be read as"):
            verb(configured(clips, clips / "store", *inside, "engine=inline"))
    assert LocalBackend(clips).children("") == ["a.wav"]
    run.plan(configured(clips, clips / "store", "engine=inline"))  # whose files are no audio


@pytest.mark.parametrize("lost", ["features.zarr/zarr.json", "features.zarr"])
def test_units_without_attributes_are_not_taken_for_those_of_another_run(
    tmp_path: Path, lost: str
) -> None:
    """A store that was half removed would show layers 2 and 9 as 3 and 7, and pass `verify`."""
    clips, store = write_folder(tmp_path / "clips", mixed_lengths(4)), tmp_path / "store"
    extract(clips, store, *INLINE, "extract.layers=[2,9]")
    if (store / lost).is_dir():
        shutil.rmtree(store / lost)
    else:
        (store / lost).unlink()
    units = len(list((store / "index").iterdir()))
    words = rf"{units} committed units?, but .*zarr\.json, which says what they are, is gone"
    for layers in ("extract.layers=[3,7]", "extract.layers=[2,9]"):
        with pytest.raises(DamagedError, match=words):
            extract(clips, store, *INLINE, layers)
    with pytest.raises(DamagedError, match=words):
        run.plan(configured(clips, store, *INLINE))
    encoder = pipeline.load_encoder("tiny", weights="random")
    with pytest.raises(DamagedError, match=words):
        pipeline.cached(encoder, str(store))("a", torch.zeros(8000))
    assert len(list((store / "index").iterdir())) == units
    assert not (store / "features.zarr" / "zarr.json").exists()
