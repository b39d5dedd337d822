"""The result of `pipeline.sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from markupsafe import Markup

from pipeline.errors import ConfigError, counted, did_you_mean
from pipeline.probing.ranking import best_single_layer
from pipeline.probing.report.charts import COLUMN, SCREEN, Chart
from pipeline.probing.report.html import element, join, table
from pipeline.probing.report.naming import metric_name
from pipeline.probing.report.score_tables import score_rows
from pipeline.probing.report.sweep_charts import draw_charts
from pipeline.probing.report.sweep_report import headline, significance
from pipeline.probing.results import Candidate, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Scores of every layer and of their weighted sum; what `pipeline.sweep` returns.

    Attributes:
        sweep: All results: heads, predictions, references, baselines, the paired test.
        report: Path of report.html.
    """

    sweep: Sweep
    report: Path

    @property
    def folder(self) -> Path:
        """Folder of the results: the report, `figures/`, `tables/`, methods.txt, sweep.json."""
        return self.report.parent

    @property
    def best(self) -> Candidate:
        """The candidate with the best dev score: a layer, or "weighted" for the weighted sum."""
        return self.sweep.best

    @property
    def best_layer(self) -> Candidate:
        """The single layer with the best dev score."""
        return best_single_layer(self.sweep.scores, self.sweep.higher_is_better)

    @cached_property
    def table(self) -> pa.Table:
        """One row per candidate, in the order of the layers, the weighted sum last.

        Columns are `candidate`, `layer` (null for a sum), `lr` (null if nothing is trained),
        `dev`, `test`, `low` and `high` (95 % interval of `test`), `seed_sd` (null for one seed),
        further test scores by name, and `is_best`. Scores are fractions.
        """
        rows = score_rows(self.sweep)
        columns = dict(zip(rows.columns, zip(*rows.values, strict=True), strict=True))
        kinds = {"candidate": pa.string(), "layer": pa.int64(), "is_best": pa.bool_()}
        return pa.table(
            {
                name: pa.array(values, kinds.get(name, pa.float64()))
                for name, values in columns.items()
            }
        )

    def plot(self, chart: str = "scores", *, is_column: bool = False) -> Figure:
        """Draw a chart of the report as a figure of matplotlib, which a notebook shows.

        Args:
            chart: "scores", or what else the sweep has data for: "weights", "curves", "confusion",
                "predictions", "detection".
            is_column: Whether it is for a column of a paper, 3.3 inches wide, as in `figures/`.

        Raises:
            ConfigError: The sweep has no such chart.

        Example:
            >>> result.plot("weights").savefig("weights.pdf")    # doctest: +SKIP
        """
        if chart not in self._charts:
            raise ConfigError(
                f"the sweep has no chart {chart!r}{did_you_mean(chart, self._charts)}; it has "
                f"{', '.join(self._charts)}"
            )
        return self._charts[chart].draw(COLUMN if is_column else SCREEN)

    @cached_property
    def _charts(self) -> dict[str, Chart]:
        return draw_charts(self.sweep)

    def __repr__(self) -> str:
        best = self.sweep.score(self.best)
        return (
            f"<SweepResult {self.sweep.task}: best by dev {self.best}, test "
            f"{metric_name(self.sweep.metric)} {best.test:.3f} [{best.low:.3f}, {best.high:.3f}], "
            f"{counted(len(self.sweep.scores), 'candidate')}, {self.report}>"
        )

    def _repr_html_(self) -> str:
        """Return the result as a notebook shows it."""
        warnings = [element("p", element("b", f"Warning: {w}")) for w in self.sweep.warnings]
        names = [name for name in self.table.column_names if name not in ("layer", "is_best")]
        rows = [
            row | {"lr": None if row["lr"] is None else f"{row['lr']:g}"}
            for row in self.table.to_pylist()
        ]
        at = [row["is_best"] for row in rows].index(True)
        shown = table(names, [[row[name] for name in names] for row in rows], at)
        lines = [headline(self.sweep), *significance(self.sweep)]
        text = [element("p", line) for line in lines]
        page = element("p", "Report: ", element("code", self.report))
        return str(Markup("<div>{}</div>").format(join([*warnings, *text, shown, page])))
