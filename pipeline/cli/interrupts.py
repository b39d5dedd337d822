"""Ctrl-C while a server is waited for: the command ends within seconds.

Python delivers a signal to its main thread when that runs Python code again, which is not before a
request has been answered or given up. At its exit it waits for its other threads. So the C code
notifies another thread of the signal by a pipe. That thread ends the process if a request is still
unanswered some seconds later. This is as safe as SIGKILL, after which a run resumes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.objects.waiting import longest_wait

GRACE_S = 3.0
"""Seconds between the signal and the end, and of a request that counts as unanswered."""
_STEP_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def prompt_interrupts(end: Callable[[str], None]) -> Iterator[None]:
    """End the process soon after SIGINT or SIGTERM if a server holds it up in the block.

    Args:
        end: Called then, in another thread, with a description of the request; ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread alone
        return
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    is_over = threading.Event()
    threading.Thread(
        target=_watch, args=(receiving, is_over, end), name="strata-interrupts", daemon=True
    ).start()
    before = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(before)
        os.close(sending)  # ends the thread


def _watch(receiving: int, is_over: threading.Event, end: Callable[[str], None]) -> None:
    try:
        while numbers := os.read(receiving, 64):
            if set(numbers) & set(map(int, _SIGNALS)):
                _await_end(is_over, end)
    finally:
        os.close(receiving)


def _await_end(is_over: threading.Event, end: Callable[[str], None]) -> None:
    """End the process when a request has been unanswered for long, until the block is over."""
    stop_s = time.monotonic() + GRACE_S
    while not is_over.wait(_STEP_S):
        wait = longest_wait(GRACE_S)
        if wait is not None and time.monotonic() > stop_s:
            end(str(wait))
            return
