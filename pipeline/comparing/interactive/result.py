"""The result of a comparison of sweeps in Python."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from markupsafe import Markup

from pipeline.comparing.report.grid import Grid, html_of
from pipeline.comparing.report.grids import draw_grids
from pipeline.comparing.report.sentences import headline
from pipeline.comparing.report.writing import draw_charts
from pipeline.comparing.results import Comparison
from pipeline.errors import ConfigError, counted, did_you_mean
from pipeline.probing.report.charts import COLUMN, SCREEN, Chart
from pipeline.probing.report.html import element, join

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS: dict[str, dict[str, pa.DataType]] = {
    "scores": {
        "layer": pa.int64(),
        "n_train": pa.int64(),
        "is_best": pa.bool_(),
        **dict.fromkeys(("task", "metric", "encoder", "head", "candidate"), pa.string()),
    },
    "pairs": dict.fromkeys(
        (
            *("task", "metric", "first", "first_candidate", "second", "second_candidate"),
            "test",  # name of the paired test
        ),
        pa.string(),
    ),
}
"""Types of the columns of both tables; all others are float64."""


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """Compared sweeps; what `pipeline.report` returns, and `pipeline.sweep` of several sweeps.

    Attributes:
        comparison: All results: the sweeps of each task, paired tests, notes.
        report: Path of report.html.
    """

    comparison: Comparison
    report: Path

    @property
    def folder(self) -> Path:
        """Folder of the report, `figures/`, `tables/`, methods.txt and comparison.json."""
        return self.report.parent

    @property
    def best(self) -> dict[str, list[str]]:
        """By task, the sweep with the best test score, then those that are not worse.

        These do not differ from it significantly. Each sweep is represented by its best candidate
        on dev.
        """
        return {
            task.name: [
                task.winner.name,
                *(v.name for v in task.variants if v != task.winner and task.is_best(v)),
            ]
            for task in self.comparison.tasks
        }

    @cached_property
    def table(self) -> pa.Table:
        """One row per candidate of each sweep.

        Columns are `task`, `metric`, `encoder`, `head`, `fraction` (the share of train), `n_train`,
        `candidate`, `layer` (null for a sum), `lr`, `dev`, `test`, `low` and `high` (95 % interval
        of `test`), `seed_sd` and `is_best` (by dev, within its sweep). Scores are fractions.
        """
        return self._table_of("scores")

    @cached_property
    def pairs(self) -> pa.Table:
        """One row per paired test, with `p_value` and `p_value_holm`; see `comparison`."""
        return self._table_of("pairs") if "pairs" in self._grids else pa.table({})

    def plot(self, chart: str | None = None, *, is_column: bool = False) -> Figure:
        """Draw a chart of the report as a figure of matplotlib, which a notebook shows.

        Args:
            chart: Name of a chart, as in `figures/`: "layers" (of several tasks "layers-TASK"),
                "best-layers", or "learning-curves". None is the first one.
            is_column: Whether it is for a column of a paper, 3.3 inches wide.

        Raises:
            ConfigError: The comparison has no such chart.

        Example:
            >>> result.plot("best-layers").savefig("best.pdf")    # doctest: +SKIP
        """
        name = next(iter(self._charts)) if chart is None else chart
        if name not in self._charts:
            raise ConfigError(
                f"the comparison has no chart {name!r}{did_you_mean(name, self._charts)}"
            )
        return self._charts[name].draw(COLUMN if is_column else SCREEN)

    @cached_property
    def _charts(self) -> dict[str, Chart]:
        return draw_charts(self.comparison)

    @cached_property
    def _grids(self) -> dict[str, Grid]:
        return draw_grids(self.comparison)

    def _table_of(self, name: str) -> pa.Table:
        rows, kinds = self._grids[name].numbers, _KINDS[name]
        columns = dict(zip(rows.columns, zip(*rows.values, strict=True), strict=True))
        return pa.table(
            {key: pa.array(values, kinds.get(key, pa.float64())) for key, values in columns.items()}
        )

    def __repr__(self) -> str:
        tasks = ", ".join(task.name for task in self.comparison.tasks)
        encoders = ", ".join(self.comparison.encoders)
        sweeps = counted(self.comparison.n_sweeps, "sweep")
        return f"<ComparisonResult: {sweeps} of {encoders} on {tasks}, {self.report}>"

    def _repr_html_(self) -> str:
        """Return the leaderboard as a notebook shows it."""
        lines = [
            *(element("p", element("b", f"Warning: {w}")) for w in self.comparison.warnings),
            *(element("p", headline(task)) for task in self.comparison.tasks),
            html_of(self._grids["leaderboard"]),
            element("p", "Report: ", element("code", self.report)),
        ]
        return str(Markup("<div>{}</div>").format(join(lines)))
