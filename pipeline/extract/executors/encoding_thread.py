"""The thread of a worker: it creates the worker and encodes its units in order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from pipeline.extract.executors.base import UnitWorker
from pipeline.extract.messages import UnitReport, UnitTask

STOP_S = 10.0
"""Maximum wait for a batch that is being encoded when a worker is closed."""


class EncodingThread:
    """Creates a worker and encodes its units, in one thread and in the order of submission.

    PyTorch keeps a thread pool per calling thread, and results depend on its size. So one thread
    creates the worker and encodes, whichever thread submits the units.
    """

    def __init__(self, make_worker: Callable[[], UnitWorker]) -> None:
        """Create the worker: open the source and load the encoder.

        Raises:
            StrataError: The worker cannot be created.
        """
        self._thread = ThreadPoolExecutor(1, "encode")
        try:
            self._worker = self._thread.submit(make_worker).result()
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        self._begun: list[Future[Future[UnitReport]]] = []  # in the order of submission

    def submit(self, task: UnitTask) -> Future[UnitReport]:
        """Start to decode a unit; it is encoded after those that were submitted before."""
        self._worker.prefetch(task)
        report: Future[UnitReport] = Future()
        begun = self._thread.submit(self._worker.begin, task)
        self._begun = [*(earlier for earlier in self._begun if not earlier.done()), begun]
        begun.add_done_callback(lambda begun: _pass_on(begun, report))
        return report

    def close(self) -> None:
        """Drop the units that are not encoded, and commit the others."""
        self._worker.interrupt()
        self._thread.shutdown(wait=False, cancel_futures=True)
        # `wait` never takes a future that `shutdown` has cancelled for a done one.
        wait([begun for begun in self._begun if not begun.cancelled()], STOP_S)
        self._worker.close()


def _pass_on(begun: Future[Future[UnitReport]], report: Future[UnitReport]) -> None:
    """Give the result of a unit that was encoded, or the error, to the future of its report."""
    if begun.cancelled():
        report.cancel()
        return
    error = begun.exception()
    if error is not None:
        report.set_exception(error)
        return
    begun.result().add_done_callback(lambda committed: _copy(committed, report))


def _copy(committed: Future[UnitReport], report: Future[UnitReport]) -> None:
    error = committed.exception()
    if error is not None:
        report.set_exception(error)
    else:
        report.set_result(committed.result())
