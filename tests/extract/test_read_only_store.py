"""Extracting into a store that this user may read, but not write."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import IdentityError, StoreError
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.store.format.plan import Plan
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, configured, extract

CHANGES = ("mkdir", "unlink", "rename", "replace", "link", "utime", "truncate")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips and a finished store of it."""
    folder = tmp_path_factory.mktemp("finished")
    write_folder(folder / "clips", mixed_lengths(12))
    extract(folder / "clips", folder / "s", *INLINE)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of both, which a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def make_read_only(patch: pytest.MonkeyPatch, root: Path, number: int = errno.EROFS) -> None:
    """Refuse every system call that would change something below a folder."""

    def check(path: Any) -> None:
        if str(path).startswith(str(root)):
            raise OSError(number, os.strerror(number), str(path))

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **settings: Any) -> Any:
            check(path)
            return real(path, *rest, **settings)

        return call

    real_open, real_file = os.open, io.open

    def open_descriptor(path: Any, flags: int, *rest: Any, **settings: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            check(path)
        return real_open(path, flags, *rest, **settings)

    def open_file(path: Any, mode: str = "r", *rest: Any, **settings: Any) -> Any:
        if set(mode) & set("wax+"):
            check(path)
        return real_file(path, mode, *rest, **settings)

    patch.setattr(os, "open", open_descriptor)
    patch.setattr(io, "open", open_file)
    for name in CHANGES:
        patch.setattr(os, name, refusing(getattr(os, name)))


class Planned(Observer):
    """Remembers how much is left to do."""

    left: int | None = None

    def planned(self, plan: Plan, n_committed: int, audio_s: float) -> None:
        self.left = plan.n_units - n_committed


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_finished_store_needs_no_permission(
    finished: Path, monkeypatch: pytest.MonkeyPatch, number: int, engine: str
) -> None:
    """The run says that nothing is left to do; Ray is not started."""
    config = configured(finished / "clips", finished / "s", f"engine={engine}", "engine.threads=1")
    make_read_only(monkeypatch, finished / "s", number)
    observer = Planned()
    status = run.extract(config, observer)
    assert observer.left == 0
    assert status.units_committed == status.units_total > 1


@pytest.mark.parametrize("change", ["a revoked unit", "a new clip", "no plan", "no attributes"])
def test_a_store_that_needs_a_write_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """With the error of the first write: what is left cannot be done."""
    if change == "a revoked unit":
        (copy / "s" / "index" / "unit-1.parquet").unlink()
    elif change == "a new clip":
        shutil.rmtree(copy / "clips")
        write_folder(copy / "clips", [*mixed_lengths(12), 1.0])
    else:
        name = "plan.parquet" if change == "no plan" else "features.zarr/zarr.json"
        (copy / "s" / name).unlink()
    clips = copy / "clips"
    config = configured(clips, copy / "s", *INLINE)
    make_read_only(monkeypatch, copy / "s")
    with pytest.raises(StoreError, match=f"{copy / 's'} cannot be written: Read-only file system"):
        run.extract(config)


def test_other_features_are_refused_as_ever(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished store is not taken for one of other layers."""
    config = configured(finished / "clips", finished / "s", *INLINE, "extract.layers=[1]")
    make_read_only(monkeypatch, finished / "s")
    with pytest.raises(IdentityError):
        run.extract(config)
