"""Workers of Ray that are forked from a process which has imported what they use.

A worker that imports torch takes 3 CPU seconds to start. Here Ray starts a small program instead,
which passes its arguments, environment and standard streams to the server below and ends with the
worker. What runs in the fork is Ray's own program for workers.

The server is a new process, not a fork of the one that runs tests: in such a fork, which has
imported scikit-learn, a worker of Ray loses the results of its calls and aborts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

LAUNCHER = """#!{python} -IS
import json, os, socket, sys
words = sys.argv[1:]
if not words[0].endswith("default_worker.py"):
    os.execv("{python}", ["{python}", *words])
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    socket.send_fds(server, [b"x"], [0, 1, 2])
    server.sendall(json.dumps([words, dict(os.environ), os.getcwd()]).encode() + b"\\n")
    server.recv(1)  # until the worker ends
"""
SERVER = """
import gc, json, os, runpy, select, signal, socket, sys
import soundfile, torch, torchaudio, zarr
import pipeline.encoders.registry, pipeline.encoders.wav2vec2.encoder, pipeline.extract.worker
assert "ray" not in sys.modules  # it reads the environment of a worker when it is imported
gc.freeze()  # else the first collection of a fork copies all pages
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
while 0 not in select.select([0, listener], [], [])[0]:  # it ends with the tests
    launcher, _ = listener.accept()
    _, streams, _, _ = socket.recv_fds(launcher, 1, 3)
    if os.fork():
        launcher.close()
        for stream in streams:
            os.close(stream)
        continue
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    with launcher.makefile() as lines:
        sys.argv, environment, folder = json.loads(lines.readline())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)
"""


class RayWorkers:
    """The server of forked workers.

    Args:
        folder: For the program that Ray starts, and for the server's socket.
    """

    def __init__(self, folder: Path) -> None:
        self._launcher, address = folder / "python", folder / "socket"
        self._launcher.write_text(LAUNCHER.format(python=sys.executable, address=address))
        self._launcher.chmod(0o755)
        command = [sys.executable, "-u", "-c", SERVER, str(address)]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "listening\n"

    @contextmanager
    def forked(self) -> Iterator[None]:
        """Let nodes of Ray that are started meanwhile fork their workers."""
        with mock.patch.object(sys, "executable", str(self._launcher)):
            yield

    def close(self) -> None:
        """End the server; workers that it has started end with their node."""
        self._server.communicate()
