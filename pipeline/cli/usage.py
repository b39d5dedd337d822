"""The group of verbs: wrong usage is one line and, with `--json`, an object on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.cli.output import EXIT_ERROR, EXIT_USAGE, Answer, stdout_failed
from pipeline.cli.streams import discard


class Verbs(TyperGroup):
    """Parses the command line and runs a verb, like its base class, but reports errors briefly."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a verb and exit; without arguments, print the help."""
        given = list(sys.argv[1:] if args is None else args)
        settings = (prog_name, complete_var, False, windows_expand_args)
        if not standalone_mode:
            return super().main(given, *settings, **extra)
        try:
            code = super().main(given or ["--help"], *settings, **extra)
        except typer.Abort:
            code = EXIT_ERROR
        except SystemExit as end:  # the reader of --help or --version has gone
            if not isinstance(end.__context__, BrokenPipeError):
                raise
            code = _output_failed(end.__context__)
        except OSError as error:  # --help or --version; verbs report theirs
            code = _output_failed(error)
        except Exception as error:  # noqa: BLE001  typer's errors have no common public class
            code = _report_usage(error, "--json" in given)
        sys.exit(code if given else code or EXIT_USAGE)


def _output_failed(error: OSError) -> int:
    discard(sys.__stdout__)
    return stdout_failed(error)


def _report_usage(error: Exception, as_json: bool) -> int:
    """Report an error of typer, and return its exit code; raise any other error."""
    message = getattr(error, "format_message", None)
    if message is None:
        raise error
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "strata"
    hint = _hint(getattr(error, "option_name", None), context)
    try:
        Answer(as_json).fail(f"{message().rstrip('.')}{hint}; see {command} --help", EXIT_USAGE)
    except typer.Exit as end:
        return end.exit_code


def _hint(option: str | None, context: Any) -> str:
    """Say how settings are written, if an unknown option was given to a verb that has settings."""
    name = (option or "").lstrip("-")
    takes_settings = context is not None and any(p.nargs == -1 for p in context.command.params)
    return f"; settings have no dashes: {name}=VALUE" if name and takes_settings else ""
