"""Errors of the Hugging Face hub and of the way to it, as a reason with what to do."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import huggingface_hub
from huggingface_hub import errors

FETCH_ERRORS: tuple[type[Exception], ...] = (
    *errors.HfHubHTTPError.__bases__,  # with the base of all errors of its library of HTTP
    getattr(errors, "XetDownloadError", OSError),
    OSError,
    ValueError,
    RuntimeError,
)
"""Errors of a request to the hub, or of a download."""
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_NO_NETWORK = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNREFUSED)
_TRANSPORT = (errors.HfHubHTTPError.__bases__[0], ConnectionError, TimeoutError)
_NO_TRANSPORT = (errors.HfHubHTTPError,)


@dataclass(frozen=True)
class HubItem:
    """A repository of the hub, as messages name it.

    Attributes:
        kind: "dataset" or "model"; also the group of its settings.
        name: Its id.
        revision: Revision that was asked for; None is the newest.
    """

    kind: str
    name: str
    revision: str | None = None

    @property
    def page(self) -> str:
        """Address of its page."""
        prefix = "datasets/" if self.kind == "dataset" else ""
        return f"{huggingface_hub.constants.ENDPOINT}/{prefix}{self.name}"

    @property
    def again(self) -> str:
        """The advice to run the command again, which fetches only what the cache lacks."""
        folder = f"{self.kind}s--{self.name.replace('/', '--')}"
        files = Path(huggingface_hub.constants.HF_HUB_CACHE, folder, "blobs")
        kept = ": what was fetched is kept" if any(files.glob("*")) else ""
        return f"run the same command again{kept}"


@dataclass(frozen=True)
class Refusal:
    """Why the hub did not answer as hoped.

    Attributes:
        reason: The reason, and what to do.
        is_unreachable: Whether the hub could not be asked, or not now: what is in its cache may do
            instead.
        is_unknown: Whether there is no such repository, or it is private.
    """

    reason: str
    is_unreachable: bool = False
    is_unknown: bool = False


def explanation(item: HubItem, error: BaseException) -> Refusal | None:
    """Say why the hub refused a request, and what to do.

    Args:
        item: What was asked for.
        error: Error of a request, or one that it caused.

    Returns:
        The reason; None if the error is about something else.
    """
    chain = list(_chain(error))
    kind, page = item.kind, item.page
    is_offline = any("OfflineModeIsEnabled" in f"{type(e).__name__} {e}" for e in chain)
    if is_offline or huggingface_hub.constants.HF_HUB_OFFLINE:
        return Refusal(
            "HF_HUB_OFFLINE is set: run the same command once with a connection, or let HF_HOME be "
            "a folder whose cache has it",
            is_unreachable=True,
        )
    if _has(chain, errors.GatedRepoError) or "is a gated dataset" in str(error):
        return Refusal(f"it is gated: ask for access at {page}, then {LOG_IN}")
    if _has(chain, errors.RevisionNotFoundError):
        return Refusal(
            f"there is no revision {item.revision}: set {kind}.revision to a branch, a tag or a "
            f"commit that {page} has, or leave it out"
        )
    if _has(chain, errors.EntryNotFoundError) and not _has(chain, errors.LocalEntryNotFoundError):
        return Refusal(f"the file is not there any more; {item.again}")
    status = next(filter(None, map(_status, chain)), None)
    if status == 401 and "Invalid credentials" in str(error):
        return Refusal(f"it does not accept the token in use: {LOG_IN}")
    if _has(chain, errors.RepositoryNotFoundError) or status in (401, 404):
        return Refusal(
            f"there is no {kind} {item.name}, or it is private: check {kind}.name; for a "
            f"private one {LOG_IN}",
            is_unknown=True,
        )
    if status == 403:
        return Refusal(
            f"it refuses access (HTTP 403): {item.again}. If that does not help, ask for access at "
            f"{page}, then {LOG_IN}"
        )
    if status == 429:
        return Refusal(
            "it limits the number of requests (HTTP 429): wait some minutes (with a token in "
            f"HF_TOKEN more are allowed), then {item.again}",
            is_unreachable=True,
        )
    if status is not None:
        return Refusal(f"it answered with HTTP {status}; {item.again}", is_unreachable=True)
    if (lost := next(filter(_is_without_network, chain), None)) is not None:
        is_name = isinstance(lost, socket.gaierror)
        detail = "" if is_name else f" ({os.strerror(lost.errno or 0)})"
        return Refusal(
            f"there is no connection to the hub, {huggingface_hub.constants.ENDPOINT}{detail}: "
            f"check the network, and HTTPS_PROXY if it has a proxy, then {item.again}. On a "
            "machine without a connection, let HF_HOME be a folder whose cache has it",
            is_unreachable=True,
        )
    if any(isinstance(e, _TRANSPORT) and not isinstance(e, _NO_TRANSPORT) for e in chain):
        cause = next(e for e in reversed(chain) if isinstance(e, _TRANSPORT))
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        return Refusal(f"{reason}; check the network, then {item.again}", is_unreachable=True)
    return None


def _has(chain: list[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(error, kind) for error in chain)


def _is_without_network(error: BaseException) -> TypeGuard[OSError]:
    """Whether the hub's name is unknown, or no connection to it can be made."""
    is_known = isinstance(error, OSError) and error.errno in _NO_NETWORK
    return is_known or isinstance(error, socket.gaierror)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that caused it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """Return the status of an answer of HTTP."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
