"""Errors of the hub and of the way to it, as one sentence with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub
from huggingface_hub import errors

from pipeline.errors import SourceError

FETCH_ERRORS: tuple[type[Exception], ...] = (
    *errors.HfHubHTTPError.__bases__,  # with the base of all errors of its library of HTTP
    getattr(errors, "XetDownloadError", OSError),
    OSError,
    ValueError,
    RuntimeError,
)
"""Errors of a request to the hub, or of a download."""
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_AGAIN = "run the same command again: what was fetched is kept"


class HubUnreachableError(SourceError):
    """The hub does not answer, or not now: what is in its cache may do instead."""


@contextmanager
def explained(name: str, revision: str | None, what: str) -> Iterator[None]:
    """Explain errors of the hub.

    Args:
        name: Name of the dataset.
        revision: Revision that was asked for; None is the newest.
        what: What was wanted, for the message.

    Raises:
        SourceError: The hub refused it, or something else is wrong.
        HubUnreachableError: The hub could not be asked.
    """
    try:
        yield
    except SourceError:
        raise
    except FETCH_ERRORS as error:
        found = explanation(name, revision, error)
        if found is None:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise SourceError(f"{what} could not be fetched from the hub: {reason}") from error
        kind, reason = found
        raise kind(f"{what} could not be fetched from the hub: {reason}") from error


def explanation(
    name: str, revision: str | None, error: BaseException
) -> tuple[type[SourceError], str] | None:
    """Say why the hub refused a request, and what to do.

    Args:
        name: Name of the dataset.
        revision: Revision that was asked for; None is the newest.
        error: Error of a request, or one that it caused.

    Returns:
        The kind of error, and the reason; None if the error is about something else.
    """
    chain = list(_chain(error))
    page = f"{huggingface_hub.constants.ENDPOINT}/datasets/{name}"
    is_offline = any("OfflineModeIsEnabled" in f"{type(e).__name__} {e}" for e in chain)
    if is_offline or huggingface_hub.constants.HF_HUB_OFFLINE:
        return HubUnreachableError, (
            "HF_HUB_OFFLINE is set: run the same command once with a connection, or let HF_HOME be "
            "a folder whose cache has it"
        )
    if _has(chain, errors.GatedRepoError) or "is a gated dataset" in str(error):
        return SourceError, f"it is gated: ask for access at {page}, then {_LOG_IN}"
    if _has(chain, errors.RevisionNotFoundError):
        return SourceError, (
            f"there is no revision {revision}: set dataset.revision to a branch, a tag or a "
            f"commit that {page} has, or leave it out"
        )
    if _has(chain, errors.EntryNotFoundError) and not _has(chain, errors.LocalEntryNotFoundError):
        return SourceError, f"the file is not there any more; {_AGAIN}"
    status = next(filter(None, map(_status, chain)), None)
    if status == 401 and "Invalid credentials" in str(error):
        return SourceError, f"it does not accept the token in use: {_LOG_IN}"
    if _has(chain, errors.RepositoryNotFoundError) or status in (401, 404):
        return SourceError, (
            f"there is no dataset {name}, or it is private: check dataset.name; for a "
            f"private one {_LOG_IN}"
        )
    if status == 403:
        return SourceError, (
            f"it refuses access (HTTP 403): {_AGAIN}. If that does not help, ask for access at "
            f"{page}, then {_LOG_IN}"
        )
    if status == 429:
        return HubUnreachableError, (
            "it limits the number of requests (HTTP 429): wait some minutes (with a token in "
            f"HF_TOKEN more are allowed), then {_AGAIN}"
        )
    if status is not None:
        return HubUnreachableError, f"it answered with HTTP {status}; {_AGAIN}"
    if any(isinstance(e, _TRANSPORT) and not isinstance(e, _NO_TRANSPORT) for e in chain):
        cause = next(e for e in reversed(chain) if isinstance(e, _TRANSPORT))
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        return HubUnreachableError, f"{reason}; check the network, then {_AGAIN}"
    return None


_TRANSPORT = (errors.HfHubHTTPError.__bases__[0], ConnectionError, TimeoutError)
_NO_TRANSPORT = (errors.HfHubHTTPError,)


def _has(chain: list[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(error, kind) for error in chain)


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
