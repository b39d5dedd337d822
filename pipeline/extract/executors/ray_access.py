"""Access to Ray: the token that a cluster asks for, and the privacy of a Ray that runs here.

Anybody who can connect to a port of Ray can run code there. A cluster may ask for a token (Ray 2.52
or newer). A Ray that this process starts listens on the loopback address only, and asks for one,
too.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Any

from pipeline.errors import RunError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
DEFAULT_PATH = "~/.ray/auth_token"
REMEDY = (
    f"set {MODE}=token, and put the token of the cluster into {TOKEN}, into the file that "
    f"{TOKEN_PATH} names, or into {DEFAULT_PATH} (`ray get-auth-token` on its head node prints it)"
)
LOOPBACK = "127.0.0.1"
"""Address of the Ray that this process starts."""
ASK_S = 10.0
"""Maximum wait for the answer of a cluster."""


class _Answer(Enum):
    OPEN = auto()
    REFUSED = auto()
    UNKNOWN = auto()  # nobody there, or another protocol


def match_token(address: str) -> None:
    """Let this process use the token of a cluster if, and only if, the cluster asks for one.

    Ray itself sends no token to an address that is named, unless RAY_AUTH_MODE=token, though
    `ray start` asks for a token wherever it finds one; and a process that sends one to a cluster
    without hangs later.

    Args:
        address: As for `ray.init`: host:port, or auto.

    Raises:
        RunError: There is no token, it is wrong, or the environment contradicts the cluster.
    """
    mode = os.environ.get(MODE, "").lower()
    library = _token_library()
    at = _gcs_address(address)
    if library is None or at is None or mode not in ("", "token", "disabled"):
        return
    cluster = f"the Ray cluster at {address}"
    answer = _ask(at, {})
    if answer is _Answer.OPEN:
        if mode == "token":
            raise RunError(
                f"{cluster} asks for no token, but {MODE}=token is set here: set {MODE}=disabled, "
                f"or start the cluster with {MODE}=token"
            )
        _set_mode("disabled")  # else "auto" sends a token that it finds
    elif answer is _Answer.REFUSED:
        if mode == "disabled":
            raise RunError(f"{cluster} asks for a token, but {MODE}=disabled is set here: {REMEDY}")
        header, source = _token(library)
        if not header:
            raise RunError(f"{cluster} asks for a token, and none was found in {source}: {REMEDY}")
        if _ask(at, header) is _Answer.REFUSED:
            raise RunError(f"{cluster} refuses the token of {source}: {REMEDY}")
        _set_mode("token")


def _token_library() -> Any:
    """Return Ray's loader of tokens; None before Ray 2.52, which has none."""
    from ray import _raylet

    loader = getattr(_raylet, "AuthenticationTokenLoader", None)
    return None if loader is None else loader.instance()


def _gcs_address(address: str) -> str | None:
    """Return host:port of a cluster; None where it cannot be asked without Ray."""
    if "://" in address or os.environ.get("RAY_USE_TLS", "0") != "0":
        return None
    if address != "auto":
        return address if ":" in address else None
    from ray._private import services

    found: str | None = services.canonicalize_bootstrap_address(address)
    return found


def _ask(address: str, header: dict[str, str]) -> _Answer:
    """Ask a cluster for its id, which it tells to those who may use it."""
    import grpc

    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            call(b"", timeout=ASK_S, metadata=tuple(header.items()))  # an empty message
        except grpc.RpcError as error:
            refused = error.code() is grpc.StatusCode.UNAUTHENTICATED
            return _Answer.REFUSED if refused else _Answer.UNKNOWN
    return _Answer.OPEN


def _token(library: Any) -> tuple[dict[str, str], str]:
    """Return the header with the token of this user, empty if there is none, and its place."""
    source = DEFAULT_PATH
    if os.environ.get(TOKEN):
        source = TOKEN
    elif path := os.environ.get(TOKEN_PATH):
        source = f"{path} ({TOKEN_PATH})"
        try:
            empty = not Path(path).expanduser().read_text().strip()
        except OSError:
            empty = True
        if empty:  # Ray would end the process
            return {}, source
    library.reset_cache()
    header: dict[str, str] = library.get_token_for_http_header(ignore_auth_mode=True)
    return header, source


def _set_mode(mode: str | None) -> None:
    """Set the mode in the environment, and in Ray, which has read it when it was imported."""
    from ray import _raylet

    if mode is None:
        os.environ.pop(MODE, None)
    else:
        os.environ[MODE] = mode
    raylet: Any = _raylet
    raylet.Config.initialize("")


_before: dict[str, str | None] = {}  # the environment before `private_ray`


@contextmanager
def private_ray() -> Iterator[None]:
    """Keep others out of the Ray that is started at `LOOPBACK` in the block.

    It listens on the loopback address only. If RAY_AUTH_MODE is not set, it asks for a random token
    that only this process and its children have: other users of this machine reach the loopback
    address, too. `forget_token` ends that. Ray 2.59 or newer would write a token into the home
    folder, readable for all, from which `ray start` then takes it.

    Raises:
        RunError: This version of Ray listens on other addresses, and asks for no token.
    """
    import ray
    from ray._private import ray_constants

    library = _token_library()
    if library is not None and MODE not in os.environ:
        _before.update({TOKEN: os.environ.get(TOKEN), MODE: None})
        os.environ[TOKEN] = secrets.token_hex(32)
        library.reset_cache()
        _set_mode("token")
    # Otherwise newer versions replace `LOOPBACK` by the address of the network.
    constant = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
        host = ray.get_runtime_context().gcs_address.rpartition(":")[0]
        if not ipaddress.ip_address(host).is_loopback and os.environ.get(MODE) != "token":
            ray.shutdown()
            raise RunError(
                f"Ray {ray.__version__} listens on {host}, where others can run code in it: use "
                f"engine=inline, or {MODE}=token with Ray 2.52 or newer"
            )
    except BaseException:
        forget_token()
        raise
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant


def forget_token() -> None:
    """Restore the environment that `private_ray` has changed, after Ray has been shut down."""
    if not _before:
        return
    for name, value in _before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _before.clear()
    _token_library().reset_cache()
    _set_mode(None)
