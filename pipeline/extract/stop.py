"""Request to stop a run, made by a signal handler and read by the driver."""

from __future__ import annotations


class Stop:
    """Request to stop a run: the first lets units in flight end, the second stops at once.

    Attributes:
        reason: Name of the first request's signal, e.g. SIGTERM; empty if there was no request.
        is_graceful: Whether the run has units in flight in other processes, so that it can wait.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.is_graceful = False

    def request(self, reason: str) -> None:
        """Ask the run to stop; safe in a signal handler.

        Raises:
            KeyboardInterrupt: This is the second request, or there is nothing to wait for.
        """
        is_second, self.reason = bool(self.reason), self.reason or reason
        if is_second or not self.is_graceful:
            raise KeyboardInterrupt
