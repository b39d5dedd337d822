"""`pipeline.sweep` and `pipeline.report`: sweeps and comparisons from Python."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pipeline.comparing.interactive.result import ComparisonResult
from pipeline.comparing.report.writing import write_comparison
from pipeline.comparing.running import compare_folders, plan_sweeps, run_plan
from pipeline.comparing.stores import Given
from pipeline.config.composing import compose_sweep_config
from pipeline.errors import ConfigError, counted
from pipeline.events import Observer, announced
from pipeline.probing.interactive.result import SweepResult
from pipeline.probing.report.sweep_report import write_report
from pipeline.probing.run import sweep as run_sweep
from pipeline.store.read.features import FeatureStore

_N_LINES = 10
"""Lines of progress while heads are trained."""


def sweep(
    store: Given | Sequence[Given],
    task: str,
    *,
    observer: Observer | None = None,
    progress: bool = True,
    **settings: Any,
) -> SweepResult | ComparisonResult:
    """Train small heads on every layer and on their weighted sum, and rank them, as `strata sweep`.

    Heads that an earlier sweep has trained are reused. The report, figures, tables and all numbers
    are written to a folder. Several stores with the same utterances, several heads and several
    shares of train are compared: one sweep each, and a report of all.

    Args:
        store: An open store, its path or URI, or several of them. An open store is used as it is:
            of a selection, only its utterances, and the results go to a folder of their own.
            Several stores of the same features with other utterances are read as one.
        task: A recipe: "ks", "sid", "lid", "ic", "er", "regression", "sv", "pr", "asr", "phone",
            "word", "frame", "abx".
        observer: Receives notes and progress.
        progress: Without an observer, whether notes, warnings and progress go to stderr.
        **settings: The settings of `strata sweep` by name: `layers`, `weighted`, `seeds`, `labels`,
            `heads`, `fractions`, `device`, `out`, `memory`; `split`, a mapping of its settings;
            `spans`, a path or a mapping; `task_settings`, a mapping that changes the recipe.

    Returns:
        The sweep, or the comparison of several.

    Raises:
        ConfigError: A setting is unknown, of the wrong type or out of range; a store lacks the
            labels or layers, or cannot be split as configured; or stores have other labels or
            splits of the same utterances.
        StoreError: There is no such store, it or the selection is empty, several stores can be
            neither joined nor compared, or the output cannot be written.
        IdentityError: Several stores of one encoder have other layers, or values of other types.

    Example:
        >>> store = pipeline.open_store("features")                        # doctest: +SKIP
        >>> result = pipeline.sweep(store, "ks", labels=["word"])          # doctest: +SKIP
        >>> result.best, result.table.column("test").to_pylist()           # doctest: +SKIP
        >>> adults = store.select("age >= 18")                             # doctest: +SKIP
        >>> pipeline.sweep(adults, "sid", task_settings={"lrs": [1e-2]})   # doctest: +SKIP
        >>> found = pipeline.sweep(["hubert", "wavlm"], "ks")              # doctest: +SKIP
        >>> found.best, found.plot("layers")                               # doctest: +SKIP
    """
    config = compose_sweep_config(task, settings)
    given = _stores_of(store)
    listener = observer or (PrintedProgress() if progress else Observer())
    plan = plan_sweeps(given, config, listener)
    if len(plan.sweeps) > 1:
        compared, folder = run_plan(plan, lambda: nullcontext(_fresh(listener)))
        for warning in compared.warnings:
            listener.note(f"WARNING: {warning}")
        with announced(listener, "writing the report"):
            return ComparisonResult(compared, write_comparison(compared, folder))
    paths = None if any(isinstance(item, FeatureStore) for item in given) else given
    found, folder = run_sweep(plan.sweeps[0].store, config, listener, paths=paths)
    for warning in found.warnings:
        listener.note(f"WARNING: {warning}")
    with announced(listener, "writing the report"):
        return SweepResult(found, write_report(found, folder))


def report(
    folders: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> ComparisonResult:
    """Compare finished sweeps of one or several tasks, as `strata report`.

    Nothing is trained and no store is read. The report, figures, tables and all numbers are written
    to a folder.

    Args:
        folders: Folders of sweeps, or folders that contain these.
        out: Folder of the report; None uses `sweeps/report`.
        observer: Receives notes.

    Raises:
        ConfigError: A folder does not exist or has no sweeps, a result is damaged or of something
            else, or `out` is the folder of a sweep.
        StoreError: The output cannot be written.

    Example:
        >>> found = pipeline.report("sweeps")                    # doctest: +SKIP
        >>> found.best, found.pairs.to_pandas()                  # doctest: +SKIP
        >>> found.plot("best-layers").savefig("best.pdf")        # doctest: +SKIP
    """
    places = [folders] if isinstance(folders, str | Path) else list(folders)
    compared, folder = compare_folders(places, out, observer or Observer())
    return ComparisonResult(compared, write_comparison(compared, folder))


def _fresh(observer: Observer) -> Observer:
    """Return an observer for a further sweep: one that prints counts the heads of each."""
    return PrintedProgress() if isinstance(observer, PrintedProgress) else observer


class PrintedProgress(Observer):
    """Prints notes and, some ten times, the number of trained heads to stderr."""

    def __init__(self) -> None:
        self._n_printed = -1

    def note(self, line: str) -> None:
        """Print a line."""
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def head_trained(self, done: int, total: int) -> None:
        """Print the number of heads if it has grown by a tenth."""
        if self._n_printed < 0 and done < total:
            self.note(f"{counted(total, 'head')}, {done:,} of them from an earlier sweep")
            self._n_printed = done
        elif done - self._n_printed >= max(1, total // _N_LINES) or done == total:
            self.note(f"{done:,} of {total:,} heads")
            self._n_printed = done


def _stores_of(given: Any) -> list[Given]:
    """Return the stores that are given: one, or those of a list.

    Raises:
        ConfigError: They are something else.
    """
    stores = list(given) if isinstance(given, list | tuple) else [given]
    wrong = [item for item in stores if not isinstance(item, FeatureStore | str | Path)]
    if wrong or not stores:
        raise ConfigError(
            f"store is {given!r:.80}; expected an open store, a path, or a list of them"
        )
    return stores
