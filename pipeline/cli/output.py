"""Output of the command: the console, exit codes, one-line errors, JSON and signals.

Messages for people go to stderr. With `--json` stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from rich.console import Console

from pipeline.errors import ConfigError, StrataError

EXIT_ERROR, EXIT_USAGE, EXIT_QUARANTINED = 1, 2, 3

console = Console(stderr=True, highlight=False, soft_wrap=True)

PrintJson = Callable[[dict[str, Any]], None]


@contextmanager
def reported(as_json: bool, debug: bool) -> Iterator[PrintJson]:
    """Run a verb: turn an error into one line and an exit code.

    Args:
        as_json: Whether the verb's answer, or its error, is printed as JSON.
        debug: Whether to print the traceback of an error.

    Yields:
        A function that prints the verb's answer as JSON if `as_json` is set.
    """
    try:
        yield lambda document: _print_json(as_json, document)
    except KeyboardInterrupt:
        message = "interrupted; committed units are safe, run the same command again to continue"
        _fail(message, as_json)
    except StrataError as error:
        if debug:
            traceback.print_exc()
        code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_ERROR
        _fail(str(error), as_json, code)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001  the outermost boundary: one line, not a traceback
        if debug:
            traceback.print_exc()
        hint = "" if debug else " (--debug shows where)"
        _fail(f"unexpected {type(error).__name__}: {error}{hint}", as_json)


@contextmanager
def signals_to(request: Callable[[str], None]) -> Iterator[None]:
    """Call `request` with the signal's name on Ctrl-C and SIGTERM.

    After a signal the default handlers are restored at the end of the block, so that a further
    signal ends the process at once. Only Ray's shutdown is left then, and a KeyboardInterrupt would
    break it.
    """
    requested = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        request(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if requested else handler)


def _fail(message: str, as_json: bool, code: int = EXIT_ERROR) -> None:
    console.print(f"error: {' '.join(message.split())}", style="red", markup=False)
    _print_json(as_json, {"error": message})
    raise typer.Exit(code)


def _print_json(as_json: bool, document: dict[str, Any]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()
