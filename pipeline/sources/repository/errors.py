"""Errors of the hub and of the way to it, as errors of a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline import hub_errors
from pipeline.errors import SourceError, one_line
from pipeline.hub_errors import FETCH_ERRORS, HubItem


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
            raise SourceError(
                f"{what} could not be fetched from the hub: {one_line(error)}"
            ) from error
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
    found = hub_errors.explanation(HubItem("dataset", name, revision), error)
    if found is None:
        return None
    return (HubUnreachableError if found.is_unreachable else SourceError), found.reason
