"""The stage that limits the speed of a run, from the reports of its units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENCODER_STAGES = ("front_end", "transformer", "copy")
"""Stages of the encoding thread and its device; the rest of its time it waits."""
LIMITS_FROM = 0.5
"""Busy share from which the busiest stage is called the limit."""


@dataclass
class StageTotals:
    """Sums over the reports of the units of one run.

    Attributes:
        audio_s: Seconds of audio.
        n_bytes: Bytes written.
        seconds: Seconds per stage, of all threads.
        threads: Threads per worker of the stages that have several.
        workers: Names of the workers.
    """

    audio_s: float = 0.0
    n_bytes: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    threads: dict[str, int] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)

    def add(self, report: Mapping[str, Any]) -> None:
        """Add the report of a unit, as the run log has it."""
        self.audio_s += report.get("audio_s", 0.0)
        self.n_bytes += report.get("n_bytes", 0)
        self.seconds.update(report.get("seconds", {}))
        self.threads |= report.get("threads", {})
        self.workers.add(report.get("worker", ""))

    def busy_shares(self, wall_s: float) -> dict[str, float]:
        """Return the share of the time in which each stage was busy.

        It is 1 for a stage all of whose threads were busy all the time. The writing threads also
        compute checksums and means. The disk is busy while files are written or synced, whichever
        takes longer. Empty without units, or if the reports do not state their threads.

        Args:
            wall_s: Duration of the run.
        """
        if not self.threads or wall_s <= 0:
            return {}
        available_s = len(self.workers) * wall_s
        per_thread = {
            stage: spent / self._n_threads(stage) / available_s
            for stage, spent in self.seconds.items()
        }
        shares = {
            "encoder": sum(per_thread.get(stage, 0.0) for stage in ENCODER_STAGES),
            "decoding": per_thread.get("decode", 0.0),
            "checksums and means": per_thread.get("seal", 0.0),
            "disk": max(per_thread.get("write", 0.0), per_thread.get("commit", 0.0)),
        }
        return {stage: min(1.0, share) for stage, share in shares.items()}

    def limited_by(self, wall_s: float) -> str | None:
        """Describe the busiest stage and its speed while it was busy, in words.

        Args:
            wall_s: Duration of the run.

        Returns:
            E.g. `limited by the disk: 1.2 GB/s`; None without `busy_shares`.
        """
        shares = self.busy_shares(wall_s)
        if not shares:
            return None
        stage = max(shares, key=lambda name: shares[name])
        if shares[stage] < LIMITS_FROM:
            listed = ", ".join(f"{name} {share * 100:.0f} %" for name, share in shares.items())
            return f"not limited by one stage; busy shares: {listed}"
        busy_s = shares[stage] * wall_s
        speed = self.audio_s / busy_s
        realtime = f"{speed:,.0f} × real time" if speed >= 10 else f"{speed:.2g} × real time"
        throughput = f"{self.n_bytes / busy_s / 1e9:.3g} GB/s"
        return {
            "encoder": f"limited by the encoder: {realtime}",
            "decoding": f"limited by decoding: {realtime} on {self._threads('decode')}",
            "checksums and means": f"limited by checksums and means: {throughput} on "
            f"{self._threads('seal')}",
            "disk": f"limited by the disk: {throughput}",
        }[stage]

    def _n_threads(self, stage: str) -> int:
        return self.threads.get("write" if stage == "seal" else stage, 1)

    def _threads(self, stage: str) -> str:
        n_threads = self._n_threads(stage) * len(self.workers)
        return "1 thread" if n_threads == 1 else f"{n_threads} threads"
