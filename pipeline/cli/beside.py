"""`python -m pipeline.cli.beside PARENT`: the extraction beside a trainer; see `pipeline/online`.

The request comes on stdin, messages go to stdout, one JSON object a line, and progress to stderr,
in lines even on a terminal, which belongs to the trainer.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console

from pipeline.cli.progress import RunProgress
from pipeline.cli.streams import Stderr
from pipeline.config import Config, build
from pipeline.errors import RunError, StrataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.store.format.plan import Plan

_WATCH_S = 0.5
"""Seconds between two looks at the parent."""
_GRACE_S = 30.0
"""Seconds after which a process that cannot stop ends at once."""


class _Progress(RunProgress):
    """Shows the progress in lines, and tells when the store is known to be the right one."""

    def __init__(self, ready: Callable[[], None], expected_speed: float | None) -> None:
        console = Console(
            file=cast("IO[str]", Stderr()), highlight=False, soft_wrap=True, force_terminal=False
        )
        super().__init__(console, expected_speed)
        self._on_ready = ready

    def planned(self, plan: Plan, done: int, audio_s: float) -> None:
        """Print the number of units; the store's identity has been compared before."""
        super().planned(plan, done, audio_s)
        self._on_ready()


class _Messages:
    """Writes messages to the parent; its end is noticed elsewhere."""

    def __init__(self) -> None:
        """Take over stdout; what anything else writes there goes to stderr."""
        self._channel = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        self._is_ready = False

    def ready(self) -> None:
        """Tell that the store is known to be the right one; once, as the pipe may fill up."""
        if not self._is_ready:
            self._is_ready = True
            self.send("ready")

    def send(self, kind: str, **content: Any) -> None:
        """Write one message."""
        line = json.dumps({"kind": kind, **content}) + "\n"
        with suppress(BrokenPipeError):
            os.write(self._channel, line.encode())


def watch(parent: int) -> None:
    """End this process by SIGTERM once its parent has ended, however that ended."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


def main() -> None:
    """Extract as the parent asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    messages = _Messages()
    threading.Thread(target=watch, args=[int(sys.argv[1])], daemon=True).start()
    request = json.loads(sys.stdin.buffer.read())
    try:
        _extract(request, messages)
        messages.send("done")
    except KeyboardInterrupt:
        messages.send("error", name=RunError.__name__, text="the extraction was stopped")
        sys.exit(1)
    except StrataError as error:
        messages.send("error", name=type(error).__name__, text=str(error))
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  the boundary of the process
        traceback.print_exc()
        text = f"unexpected {type(error).__name__} in the extraction: {error}"
        messages.send("error", name=RunError.__name__, text=" ".join(text.split()))
        sys.exit(1)


def _extract(request: dict[str, Any], messages: _Messages) -> None:
    """Extract what a request asks for."""
    from pipeline.extract.stop import Stop
    from pipeline.online.beside import Request, extract_beside
    from pipeline.online.code_transfer import unpack_code
    from pipeline.store.coordination.run_history import read_history

    config: Config = build(Config, request.pop("config"))
    code = request.pop("code", None)
    if code is not None:
        unpack_code(code, config.model)
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.request("SIGTERM"))
    last = read_history(config.store).last_busy if config.store else None
    with _Progress(messages.ready, last.speed if last else None) as progress:
        extract_beside(Request(config, **request), progress, stop, messages.ready)


if __name__ == "__main__":
    main()
