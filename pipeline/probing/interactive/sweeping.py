"""`pipeline.sweep`: a sweep from Python, with settings as keywords."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    store: FeatureStore | str | Path | Sequence[str | Path],
    task: str,
    *,
    observer: Observer | None = None,
    progress: bool = True,
    **settings: Any,
) -> SweepResult:
    """Train small heads on every layer and on their weighted sum, and rank them, as `strata sweep`.

    Heads that an earlier sweep has trained are reused. The report, figures, tables and all numbers
    are written to a folder.

    Args:
        store: An open store, its path or URI, or those of several stores. An open store is used as
            it is: of a selection, only its utterances, and the results go to a folder of their own.
        task: A recipe: "ks", "sid", "lid", "ic", "er", "regression", "sv", "pr", "asr", "phone",
            "word", "frame", "abx".
        observer: Receives notes and progress.
        progress: Without an observer, whether notes, warnings and progress go to stderr.
        **settings: The settings of `strata sweep` by name: `layers`, `weighted`, `seeds`, `labels`,
            `device`, `out`, `memory`; `split`, a mapping of its settings; `spans`, a path or a
            mapping; `task_settings`, a mapping that changes the recipe.

    Raises:
        ConfigError: A setting is unknown, of the wrong type or out of range; or the store lacks the
            labels or layers, or cannot be split as configured.
        StoreError: There is no such store, it or the selection is empty, or the output cannot be
            written.
        IdentityError: Several stores have features of different kinds.

    Example:
        >>> store = pipeline.open_store("features")                        # doctest: +SKIP
        >>> result = pipeline.sweep(store, "ks", labels=["word"])          # doctest: +SKIP
        >>> result.best, result.table.column("test").to_pylist()           # doctest: +SKIP
        >>> adults = store.select("age >= 18")                             # doctest: +SKIP
        >>> pipeline.sweep(adults, "sid", task_settings={"lrs": [1e-2]})   # doctest: +SKIP
    """
    config = compose_sweep_config(task, settings)
    if not isinstance(store, FeatureStore | str | Path):
        _check_paths(store)
    listener = observer or (PrintedProgress() if progress else Observer())
    found, folder = run_sweep(store, config, listener)
    for warning in found.warnings:
        listener.note(f"WARNING: {warning}")
    with announced(listener, "writing the report"):
        return SweepResult(found, write_report(found, folder))


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


def _check_paths(stores: Any) -> None:
    """Refuse open stores in a list, which `open_store` does not join.

    Raises:
        ConfigError: The stores are neither one store nor paths.
    """
    if isinstance(stores, list | tuple) and not any(isinstance(s, FeatureStore) for s in stores):
        return
    raise ConfigError(
        f"store is {stores!r:.80}; expected an open store, a path, or a list of paths. Join open "
        "stores with pipeline.open_store([PATH, PATH])"
    )
