"""Output of the command: the answer on stdout, everything else on stderr, and exit codes.

The answer of a verb is text, or with `--json` one JSON object; then the text goes to stderr. What
libraries print to stdout while a verb runs goes to stderr, too.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from types import FrameType
from typing import IO, Any, NoReturn, cast

import typer
from rich.console import Console

from pipeline.cli.interrupts import prompt_interrupts
from pipeline.cli.streams import Stderr, is_terminal, write_all
from pipeline.errors import ConfigError, StrataError
from pipeline.objects.waiting import longest_wait, notes_sent_to

EXIT_ERROR, EXIT_USAGE, EXIT_QUARANTINED = 1, 2, 3
_INTERRUPTED = "interrupted; committed units are safe, run the same command again to continue"
_HELD_UP_S = 1.0
"""Seconds after which an unanswered request holds up the end of the process."""

_WIDTH = 1000
"""Columns of a table on something that is not a terminal: its lines are not broken."""


console = Console(file=cast("IO[str]", Stderr()), highlight=False, soft_wrap=True)
"""Progress, warnings, notes and errors."""

Show = Callable[[Console], None]
"""Prints the answer of a verb for people."""


class Answer:
    """Writes the answer of a verb; `reported` makes it."""

    def __init__(self, as_json: bool) -> None:
        """Remember the stdout of the moment, which `reported` replaces while the verb runs."""
        self._as_json = as_json
        self._stdout = sys.stdout

    def __call__(self, show: Show, document: dict[str, Any], code: int = 0) -> None:
        """Write the answer, and end the verb if its exit code is not 0.

        Args:
            show: Prints the answer for people.
            document: The answer as a JSON object.
            code: Exit code of the verb. A stdout that is closed or full turns 0 into 1; a reader of
                a pipe that has gone, such as `head`, does not.
        """
        if self._as_json:
            show(console)
            text = json.dumps(document) + "\n"
        else:
            text = _rendered(show, self._stdout)
        try:
            write_all(text, self._stdout)
        except (OSError, ValueError) as error:
            code = stdout_failed(error, code)
        if code:
            raise typer.Exit(code)

    def fail(self, message: str, code: int) -> NoReturn:
        """Print an error in one line, with `--json` also as an object, and end the verb."""
        self._print_error(message)
        raise typer.Exit(code)

    def end_process(self, waiting_for: str) -> NoReturn:
        """End the process from another thread: it was interrupted, and a server holds it up."""
        console.show_cursor()
        self._print_error(f"{_INTERRUPTED} (it was waiting for {waiting_for})")
        os._exit(EXIT_ERROR)

    def _print_error(self, message: str) -> None:
        console.print(f"error: {' '.join(message.split())}", style="red", markup=False)
        if self._as_json:
            with suppress(OSError, ValueError):
                write_all(json.dumps({"error": message}) + "\n", self._stdout)


@contextmanager
def reported(as_json: bool, debug: bool) -> Iterator[Answer]:
    """Run a verb: turn an error into one line and an exit code.

    Args:
        as_json: Whether the verb's answer, or its error, is printed as JSON.
        debug: Whether to print the traceback of an error.

    Yields:
        The function that writes the verb's answer.
    """
    answer = Answer(as_json)
    try:
        with (
            redirect_stdout(sys.stderr),
            prompt_interrupts(answer.end_process),
            notes_sent_to(_print_note),
        ):
            yield answer
    except KeyboardInterrupt:
        wait = longest_wait(_HELD_UP_S)
        if wait is not None:  # its thread would be waited for
            answer.end_process(str(wait))
        answer.fail(_INTERRUPTED, EXIT_ERROR)
    except StrataError as error:
        if debug:
            _print_traceback()
        code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_ERROR
        answer.fail(str(error), code)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001  the outermost boundary: one line, not a traceback
        if debug:
            _print_traceback()
        if isinstance(error, OSError) and error.filename is not None:
            place, reason = os.fsdecode(error.filename), error.strerror or error
            message = f"{place}: {reason}; when the storage works again, run the same command again"
        else:
            hint = "" if debug else " (--debug shows where)"
            message = f"unexpected {type(error).__name__}: {error}{hint}"
        answer.fail(message, EXIT_ERROR)


def stdout_failed(error: Exception, code: int = 0) -> int:
    """Say in one line on stderr that the answer could not be written to stdout.

    Args:
        error: The exception of the write.
        code: Exit code of the command.

    Returns:
        The exit code: 1 instead of 0 if the answer is lost, as `code` if its reader has gone.
    """
    if isinstance(error, BrokenPipeError):
        console.print("note: the reader of stdout ended before the end of the answer")
        return code
    reason = getattr(error, "strerror", None) or error
    console.print(
        f"error: the answer cannot be written to stdout: {reason}", style="red", markup=False
    )
    return code or EXIT_ERROR


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


def _rendered(show: Show, stream: IO[str] | None) -> str:
    """Return what `show` prints, with colours if the stream is a terminal."""
    text = io.StringIO()
    on_terminal = is_terminal(stream)
    show(
        Console(
            file=text,
            force_terminal=on_terminal or None,
            width=None if on_terminal else _WIDTH,
            highlight=False,
            soft_wrap=True,
        )
    )
    return text.getvalue()


def _print_note(line: str) -> None:
    console.print(line, markup=False)


def _print_traceback() -> None:
    console.print(traceback.format_exc(), markup=False, end="")
