"""Ctrl-C while a server of objects is waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli.interrupts import GRACE_S
from pipeline.objects.requests import Limits
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, extract
from tests.helpers.forked import forked_strata
from tests.servers.proxy import Fault, Proxy, Request


@pytest.fixture
def silent(proxy: Proxy) -> Iterator[Proxy]:
    """A proxy that answers nothing, until the test is over."""
    is_over = threading.Event()

    def wait(_: Request) -> Fault:
        is_over.wait(120)
        return Fault.DROP

    proxy.choose = wait
    yield proxy
    is_over.set()


def interrupt(arguments: list[str], proxy: Proxy) -> tuple[float, int, str, str]:
    """Start a command; interrupt it a moment after its first request.

    Returns:
        Seconds until it has ended, its exit code, and what it has printed.
    """
    process = forked_strata(*arguments)
    end_s = time.monotonic() + 60
    while not proxy.requests:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.02)
    time.sleep(0.3)
    start_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(Limits().answer_s * 4)
    return time.monotonic() - start_s, process.returncode, out, err


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["status", "copy"])
def test_ctrl_c_ends_a_command_that_waits_for_an_answer(
    silent: Proxy, s3: str, tmp_path: Path, verb: str
) -> None:
    """Within seconds, and not when the request times out, by the main thread or by others.

    The error names what was waited for; with --json it is the only thing on stdout.
    """
    arguments = ["status", s3, "--json"]
    if verb == "copy":
        clips = write_folder(tmp_path / "clips", mixed_lengths(4))
        extract(clips, tmp_path / "store", *INLINE, "extract.layers=[2]")
        arguments = ["copy", str(tmp_path / "store"), s3, "--json"]
    spent_s, code, out, err = interrupt(arguments, silent)
    assert spent_s < GRACE_S + 4
    assert spent_s < Limits().answer_s / 2
    assert code == 1
    error = json.loads(out)["error"]
    assert error.startswith("interrupted; committed units are safe, run the same command again")
    assert f"it was waiting for {s3}" in error
    assert "no answer for" in error
    assert error in err
    assert "Traceback" not in err


def test_ctrl_c_is_left_alone_if_no_server_is_waited_for(tmp_path: Path) -> None:
    """A block that goes on after the signal, as a graceful stop does, is not ended."""
    program = f"""
import os, signal, sys, time
from pipeline.cli import interrupts
interrupts.GRACE_S = 0.2
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
with interrupts.prompt_interrupts(lambda text: os._exit(9)):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.8)
with open({str(tmp_path / "done")!r}, "w") as file:
    file.write(str(len(seen)))
"""
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert done.returncode == 0
    assert (tmp_path / "done").read_text() == "1"
