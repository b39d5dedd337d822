"""The answer on stdout, everything else on stderr, whatever the streams are connected to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app

VERB = """
import sys
import typer
from pipeline.cli.output import console, reported
from pipeline.cli.streams import open_standard_streams
from pipeline.errors import StoreError

as_json, code = sys.argv[1] == "json", int(sys.argv[2])
open_standard_streams()
try:
    with reported(as_json, debug=False) as answer:
        console.print("progress")
        print("from a library")
        if code == 9:
            raise StoreError("no such thing")
        if code == 8:
            raise OSError(5, "Input/output error", "/store/lease.json")
        answer(lambda out: out.print("the answer → " + "x" * 100_000), {"a": 1}, code)
except typer.Exit as end:
    sys.exit(end.exit_code)
"""
"""A verb with the given exit code; 9 is an error, 8 one of the storage."""

NOTES = ["progress", "from a library"]


@contextmanager
def stdout_as(kind: str) -> Iterator[dict]:
    """Arguments of Popen that connect stdout to something that cannot be written."""
    if kind == "closed":
        yield {"preexec_fn": lambda: os.close(1)}
    elif kind == "full":
        with Path("/dev/full").open("wb") as file:
            yield {"stdout": file}
    else:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            yield {"stdout": writer}
        finally:
            os.close(writer)


def run_verb(form: str, code: int, **streams) -> subprocess.CompletedProcess:
    """Run the verb of this module in a process of its own."""
    streams = {"stderr": subprocess.PIPE, **streams}
    command = [sys.executable, "-c", VERB, form, str(code)]
    return subprocess.run(command, text=True, check=False, timeout=60, **streams)


@pytest.mark.parametrize("form", ["text", "json"])
def test_stdout_has_the_answer_only(form: str) -> None:
    """Progress, and what libraries print, are on stderr; with JSON so is the text."""
    done = run_verb(form, 0, stdout=subprocess.PIPE)
    lines = done.stderr.splitlines()
    assert lines[:2] == NOTES
    if form == "json":
        assert done.stdout == '{"a": 1}\n'
        assert lines[2].startswith("the answer → xxx")
    else:
        assert done.stdout == "the answer → " + "x" * 100_000 + "\n"
        assert len(lines) == 2


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("kind", "code", "expected", "words"),
    [
        ("closed", 0, 1, "cannot be written to stdout: it is closed"),
        ("full", 0, 1, "cannot be written to stdout: No space left on device"),
        ("full", 3, 3, "cannot be written to stdout: No space left on device"),
        ("broken", 0, 0, "the reader of stdout ended before the end of the answer"),
        ("broken", 3, 3, "the reader of stdout ended before the end of the answer"),
    ],
)
def test_an_answer_that_cannot_be_written(
    form: str, kind: str, code: int, expected: int, words: str
) -> None:
    """One line on stderr; the verb's own exit code stays, except that a lost answer is not 0."""
    with stdout_as(kind) as streams:
        done = run_verb(form, code, **streams)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("the answer")]
    assert lines[:2] == NOTES
    [line] = lines[2:]
    assert words in line
    assert done.returncode == expected


@pytest.mark.parametrize("kind", ["closed", "full", "broken"])
def test_an_error_stays_one_line(kind: str) -> None:
    """The error of the verb is the line, and its exit code."""
    with stdout_as(kind) as streams:
        done = run_verb("json", 9, **streams)
    assert done.stderr.splitlines() == [*NOTES, "error: no such thing"]
    assert done.returncode == 1


@pytest.mark.parametrize("code", [0, 3])
def test_a_full_stderr_does_not_stop_a_verb(code: int) -> None:
    """A log on a full disk loses its lines; the answer and the exit code are as ever."""
    with Path("/dev/full").open("wb") as file:
        done = run_verb("json", code, stdout=subprocess.PIPE, stderr=file)
    assert (done.stdout, done.returncode) == ('{"a": 1}\n', code)


def test_a_stdout_that_cannot_encode_the_answer() -> None:
    """Characters that stdout cannot encode are escaped."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run_verb("text", 0, stdout=subprocess.PIPE, env=environment)
    assert done.stdout.startswith("the answer \\u2192 xxx")
    assert done.returncode == 0


def test_files_do_not_get_the_number_of_a_closed_stream() -> None:
    """What is printed later cannot end up in a file that was opened first."""
    code = (
        "from pipeline.cli.streams import open_standard_streams as o; o();"
        "import os, sys; f = open(sys.argv[1], 'w'); sys.exit(f.fileno())"
    )
    command = [sys.executable, "-c", code, os.devnull]

    def close_all() -> None:
        for number in range(3):
            os.close(number)

    done = subprocess.run(command, preexec_fn=close_all, check=False, close_fds=False)
    assert done.returncode > 2


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_into_a_full_disk(option: str) -> None:
    """They are answers like those of the verbs."""
    command = [sys.executable, "-m", "pipeline", option]
    with Path("/dev/full").open("wb") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    [line] = done.stderr.splitlines()
    assert "cannot be written to stdout: No space left on device" in line
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "--foo"], "No such option: --foo; see"),
        (["extract", "--store=x"], "; settings have no dashes: store=VALUE; see"),
        (["status"], "Missing argument 'STORE'"),
        (["verifyy"], "No such command 'verifyy'"),
        (["verify", "x", "--sample", "many"], "'--sample'"),
    ],
)
def test_wrong_usage_is_one_line_and_an_object(arguments: list[str], words: str) -> None:
    """Exit code 2; with --json, stdout has the same message."""
    for is_json in (False, True):
        done = CliRunner().invoke(app, [*arguments, *["--json"] * is_json])
        assert done.exit_code == 2
        [line] = done.stderr.splitlines()
        assert words in line
        assert "--help" in line
        assert line == "error: " + json.loads(done.stdout)["error"] if is_json else not done.stdout


def test_without_arguments_the_help_is_shown() -> None:
    """The exit code is that of wrong usage."""
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert "Exit codes: 0 done" in done.stdout


def test_an_error_of_the_storage_names_the_file() -> None:
    """In one line, with what to do; it is not called unexpected."""
    done = run_verb("text", 8, stdout=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: /store/lease.json: Input/output error; when the storage works again, run the same "
        "command again"
    )
