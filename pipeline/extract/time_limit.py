"""Time limits of units. A unit that exceeds its limit counts as hung."""

from __future__ import annotations

MIN_LIMIT_S = 300.0
"""Smallest automatic limit."""
LIMIT_PER_AUDIO_S = 20.0
"""Limit per second of audio before any unit has been committed."""
LIMIT_PER_SLOWEST = 10.0
"""Limit as a multiple of the slowest unit's time per second of audio, after the first commit."""
ISOLATION_FACTOR = 3.0
"""Factor for an isolated unit, whose utterances are also encoded one at a time."""


class TimeLimit:
    """Time limit of a unit: the configured one, or one adapted to the speed of the workers."""

    def __init__(self, configured_s: float | None) -> None:
        self._configured_s = configured_s
        self._slowest: float | None = None  # wall seconds per second of audio

    def observe(self, audio_s: float, wall_s: float) -> None:
        """Record how long a committed unit took."""
        self._slowest = max(self._slowest or 0.0, wall_s / max(audio_s, 1.0))

    def limit_s(self, audio_s: float, *, isolated: bool) -> float:
        """Return the limit for a unit with `audio_s` seconds of audio."""
        factor = ISOLATION_FACTOR if isolated else 1
        if self._configured_s is not None:
            return self._configured_s * factor
        per_audio_s = LIMIT_PER_AUDIO_S
        if self._slowest is not None:
            per_audio_s = min(per_audio_s, LIMIT_PER_SLOWEST * self._slowest)
        return max(MIN_LIMIT_S, per_audio_s * audio_s) * factor
