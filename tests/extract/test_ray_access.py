"""Which token a cluster gets, what is said when it refuses, and who reaches a local Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunError
from pipeline.extract.executors import ray_access
from pipeline.extract.executors.ray_access import MODE, TOKEN, TOKEN_PATH, match_token
from tests.helpers.forked import Forked, finish
from tests.helpers.ray_start import clean_environment

SECRET = "the-token-of-this-cluster"


class Cluster:
    """Answers like the head node of a cluster, which refuses connections without its token."""

    def __init__(self) -> None:
        import grpc

        self.token: str | None = None
        self.server = grpc.server(ThreadPoolExecutor(1))
        handler = grpc.unary_unary_rpc_method_handler(self._answer)
        self.server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "ray.rpc.NodeInfoGcsService", {"GetClusterId": handler}
                )
            ]
        )
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def _answer(self, request: bytes, context: Any) -> bytes:
        import grpc

        sent = dict(context.invocation_metadata()).get("authorization")
        if self.token is not None and sent != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "token is missing or incorrect")
        return b""


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.server.stop(None).wait()


@pytest.fixture
def cluster(server: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster that asks for a token; this user has none."""
    server.token = SECRET
    for name in (MODE, TOKEN, TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield server
    monkeypatch.undo()
    library = ray_access._token_library()
    if library is not None:
        library.reset_cache()
        ray_access._set_mode(os.environ.get(MODE))


def give(token: str, where: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a token into one of the places from which Ray reads it."""
    if where == TOKEN:
        monkeypatch.setenv(TOKEN, token)
        return
    path = home / ("mine" if where == TOKEN_PATH else ".ray/auth_token")
    path.parent.mkdir(exist_ok=True)
    path.write_text(token + "\n")
    if where == TOKEN_PATH:
        monkeypatch.setenv(TOKEN_PATH, str(path))


PLACES = [TOKEN, TOKEN_PATH, ray_access.DEFAULT_PATH]
needs_tokens = pytest.mark.skipif(
    tuple(map(int, version("ray").split(".")[:2])) < (2, 52),  # without importing it
    reason="Ray before 2.52 knows no tokens",
)


@needs_tokens
@pytest.mark.parametrize("where", PLACES)
def test_a_cluster_that_asks_for_a_token_gets_it(
    cluster: Cluster, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without RAY_AUTH_MODE, which `ray.init` would need."""
    give(SECRET, where, tmp_path, monkeypatch)
    match_token(cluster.address)
    assert os.environ[MODE] == "token"


@needs_tokens
def test_a_cluster_that_asks_for_none_gets_none(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there is one: a process that sends one hangs later."""
    cluster.token = None
    give(SECRET, TOKEN, tmp_path, monkeypatch)
    match_token(cluster.address)
    assert os.environ[MODE] == "disabled"


@needs_tokens
@pytest.mark.parametrize("mode", [None, "token"])
@pytest.mark.parametrize("where", PLACES)
def test_a_refused_token_is_named_by_its_place(
    cluster: Cluster,
    where: str,
    mode: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says which token was refused, and how to give another one."""
    give("of-another-cluster", where, tmp_path, monkeypatch)
    if mode:
        monkeypatch.setenv(MODE, mode)
    with pytest.raises(RunError) as caught:
        match_token(cluster.address)
    message = str(caught.value)
    assert f"{cluster.address} refuses the token of " in message
    assert f"{where}: set" in message.replace("(", "").replace(")", "", 1)
    assert all(name in message for name in (f"{MODE}=token", *PLACES))
    assert "\n" not in message


@needs_tokens
@pytest.mark.parametrize("place", ["none", "no such file", "empty file"])
def test_a_missing_token_is_named(
    cluster: Cluster, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would wait for 20 s and say no more than that it cannot connect, or end the process."""
    source = ray_access.DEFAULT_PATH
    if place != "none":
        monkeypatch.setenv(TOKEN_PATH, str(tmp_path / "mine"))
        source = f"{tmp_path / 'mine'} ({TOKEN_PATH})"
    if place == "empty file":
        (tmp_path / "mine").touch()
    with pytest.raises(RunError) as caught:
        match_token(cluster.address)
    assert f"none was found in {source}: set {MODE}=token" in str(caught.value)


@needs_tokens
def test_the_environment_is_not_overruled(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAY_AUTH_MODE that contradicts the cluster is named, in both directions."""
    give(SECRET, TOKEN, tmp_path, monkeypatch)
    monkeypatch.setenv(MODE, "disabled")
    with pytest.raises(RunError, match="asks for a token, but RAY_AUTH_MODE=disabled is set here"):
        match_token(cluster.address)
    monkeypatch.setenv(MODE, "token")
    cluster.token = None
    with pytest.raises(RunError, match="asks for no token, but RAY_AUTH_MODE=token is set here"):
        match_token(cluster.address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:1", "local"])
def test_other_addresses_are_left_to_ray(
    cluster: Cluster, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody there, or no address: `ray.init` reports it."""
    monkeypatch.setattr(ray_access, "ASK_S", 1.0)
    match_token(address)
    assert MODE not in os.environ


INSIDE = """
import json, os, re, subprocess, sys
from pathlib import Path
from pipeline.config import EngineConfig
from pipeline.extract.executors import ray_access
from pipeline.extract.executors.ray_cluster import connect, disconnect

def descendants(pid):
    found = [pid]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += descendants(int(path.parent.name))
    return found

def sockets(pids):
    '''Inodes of the sockets that these processes hold.'''
    found = set()
    for pid in pids:
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                found |= set(re.findall(r"socket:\\[(\\d+)\\]", os.readlink(path)))
            except OSError:
                pass
    return found

def environment():
    return {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH")}

class Actor:
    def pid(self):
        return os.getpid()

def seen_from_outside():
    '''Addresses on which a Ray of this process listens, and its answers to strangers.'''
    connect(EngineConfig("ray"), 1)
    import ray
    actor = ray.remote(Actor).remote()
    ray.get(actor.pid.remote())
    held = sockets(descendants(os.getpid()))
    listening = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in held:
                listening.append(words[1])
    at = ray.get_runtime_context().gcs_address
    headers = ({}, {"authorization": "Bearer wrong"})
    answers = [ray_access._ask(at, header).name for header in headers]
    disconnect()
    return listening, answers

found = []
for _ in range(2):  # each Ray of a process has another token
    before = environment()
    found.append([*seen_from_outside(), before == environment()])
print(json.dumps([*found, ray_access._token_library() is None]))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_nobody_else_reaches_a_local_ray(tmp_path: Path) -> None:
    """All of its processes listen on the loopback address, and it refuses who has no token.

    It leaves no token in the home folder, and none in the environment, and so does a second one.
    That RAY_AUTH_MODE=disabled is obeyed is seen in `tests/online/test_process.py`.
    """
    printed = finish(Forked(INSIDE, environment=clean_environment(tmp_path)), 120)
    *found, is_old = json.loads(printed)
    guarded = "OPEN" if is_old else "REFUSED"
    assert len(found) == 2
    for listening, answers, is_restored in found:
        assert len(listening) >= 6, listening
        for address in listening:
            host = address.partition(":")[0]
            assert host in ("0100007F", "0000000000000000FFFF00000100007F"), listening
        assert answers == [guarded] * 2
        assert is_restored
    assert not (tmp_path / ".ray").exists()
