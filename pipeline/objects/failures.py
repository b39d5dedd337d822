"""What went wrong with a request, in one line, and whether trying again may help.

obstore reports an error as several lines of Rust values. Its first lines have the HTTP status and
the server's own code and message; the rest says how the connection failed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_STATUS = re.compile(r"status code: (\d{3})(?: ([A-Za-z' -]+))?")
_CODE = re.compile(r"<Code>([^<]{1,80})</Code>|\"(?:reason|code)\": ?\"([A-Za-z]{1,80})\"")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})</Message>|\"message\": ?\"([^\"]{1,300})\"")
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "StorageFull"}
_METADATA_HOSTS = ("169.254.169.254", "169.254.170.", "metadata.google.internal", "169.254.170.23")


@dataclass(frozen=True)
class Failure:
    """A request that failed.

    Attributes:
        reason: Why, in one line.
        status: HTTP status; 0 if there was no answer.
        code: The server's own code, such as `NoSuchBucket`; empty if it gave none.
        may_pass: Whether the same request may succeed a moment later.
        may_have_arrived: Whether the server may have done what it was asked for.
    """

    reason: str
    status: int = 0
    code: str = ""
    may_pass: bool = False
    may_have_arrived: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether there is no such object, or no such bucket."""
        return self.status == 404

    @property
    def is_denied(self) -> bool:
        """Whether the credentials are missing, wrong or not sufficient."""
        return self.status in (401, 403)

    @property
    def is_full(self) -> bool:
        """Whether the storage is full."""
        return self.status == 507 or self.code in _FULL

    @property
    def is_conflict(self) -> bool:
        """Whether the server says that the object exists, or that another request is under way."""
        return self.status in (304, 409, 412)


def read_failure(error: BaseException) -> Failure:
    """Return what an error of obstore means."""
    text, _, debug = str(error).partition("Debug source")
    status = _STATUS.search(text)
    if any(host in text for host in _METADATA_HOSTS):
        return Failure(
            "no credentials were found: set them in the environment (such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS or AZURE_STORAGE_ACCOUNT_KEY), "
            "or run where the machine has a role",
            status=401,
        )
    if status:
        return _read_answer(int(status[1]), (status[2] or "").strip(), text)
    if "redirect without LOCATION" in text:
        return Failure("the bucket is in another region; set AWS_REGION", status=301)
    if isinstance(error, FileNotFoundError):
        return Failure("there is no such object", status=404)
    if "kind: Timeout" in debug or "TimedOut" in debug or "timed out" in text:
        return Failure("no answer in time", may_pass=True, may_have_arrived=True)
    if "kind: Connect" in debug:
        return Failure(f"cannot connect{_cause(debug)}", may_pass=True)
    if "HTTP error" in text or "HttpError" in debug or "reqwest" in debug:
        return Failure("the connection broke", may_pass=True, may_have_arrived=True)
    if type(error).__name__ == "PanicException":
        return Failure(f"obstore failed: {first_line(text)}", may_have_arrived=True)
    return Failure(first_line(text), may_have_arrived=True)


def _read_answer(status: int, phrase: str, text: str) -> Failure:
    code, message = ("".join(_groups(pattern, text)) for pattern in (_CODE, _MESSAGE))
    detail = ": ".join(part for part in (code, first_line(message)) if part)
    reason = f"{status} {phrase}".strip() + (f" ({detail})" if detail else "")
    may_pass = status in _TRANSIENT
    return Failure(reason, status, code, may_pass, may_have_arrived=may_pass and status != 429)


def _groups(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    match = pattern.search(text)
    return tuple(group or "" for group in match.groups()) if match else ()


def _cause(debug: str) -> str:
    """Return what the system said about a connection, if it stands among obstore's values."""
    match = re.search(r'message: "([^"]{1,100})"', debug)
    if match:
        return f" ({match[1]})"
    if "dns error" in debug or "failed to lookup address" in debug:
        return " (the name of the server is unknown)"
    return " (the certificate of the server is not valid)" if "InvalidCertificate" in debug else ""


def first_line(text: str) -> str:
    """Return the first line of a text, cut to 300 characters."""
    return (text.strip().splitlines() or [""])[0][:300]
