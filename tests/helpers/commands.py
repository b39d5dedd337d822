"""The command `strata`, run in the process of the test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from pipeline.cli.app import app


@dataclass
class Done:
    """Result of a command."""

    returncode: int
    stdout: str
    stderr: str


def strata(*arguments: str | Path) -> Done:
    """Run the command in this process, which saves importing torch each time."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def last_json(done: Done) -> dict:
    """Return the object on the last line of stdout."""
    return json.loads(done.stdout.splitlines()[-1])


def error_line(done: Done) -> str:
    """Return the single error line on stderr."""
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line
