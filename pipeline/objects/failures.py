"""Failures of requests: the reason in one line, whether a retry may help, and the remedy.

obstore reports an error as several lines of Rust values. Its first lines have the HTTP status and
the server's own code and message; the rest says how the connection failed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

_STATUS = re.compile(r"status code: (\d{3})(?: ([A-Za-z' -]+))?")
_CODE = re.compile(r"<Code>([^<]{1,80})</Code>|\"(?:reason|code)\": ?\"([A-Za-z]{1,80})\"")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})</Message>|\"message\": ?\"([^\"]{1,300})\"")
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529}
Action = Literal["read", "list", "write", "delete"]
"""What a request does; each takes a permission of its own."""
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "StorageFull"}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_BAD_KEY = re.compile(r"invalid path: .*?Path \"([^\"]{1,1100})\"", re.DOTALL)
_REGION = re.compile(r"<Region>([a-z0-9-]{2,40})</Region>|expecting '([a-z0-9-]{2,40})'")
_OTHER_REGION = {
    "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}  # fmt: skip
_PERMISSIONS: dict[str, dict[Action, str]] = {
    "s3": {
        "read": "s3:GetObject, and s3:ListBucket if the object is missing",
        "list": "s3:ListBucket",
        "write": "s3:PutObject",
        "delete": "s3:DeleteObject",
    },
    "gs": {
        "read": "storage.objects.get",
        "list": "storage.objects.list",
        "write": "storage.objects.create, and storage.objects.delete to replace one",
        "delete": "storage.objects.delete",
    },
    "az": {
        "read": "the role Storage Blob Data Reader",
        "list": "the role Storage Blob Data Reader",
        "write": "the role Storage Blob Data Contributor",
        "delete": "the role Storage Blob Data Contributor",
    },
}
_WRONG_CLOCK = "the clock of this machine is wrong: set it, and run the same command again"
_CAUSES = {
    "ExpiredToken": "the session token has expired: get a new one (such as `aws sso login`)",
    "InvalidToken": "the session token (AWS_SESSION_TOKEN) does not belong to the access key",
    "InvalidAccessKeyId": "the server does not know the access key",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key, or a proxy changes "
    "requests",
    "RequestTimeTooSkewed": _WRONG_CLOCK,
    "RequestExpired": _WRONG_CLOCK,
    "AuthenticationFailed": "the key or the token is wrong or has expired, or the clock of this "
    "machine is wrong",
}
"""Meaning of the codes of servers that are about credentials, with any status."""
_SAME_CAUSES = {"ExpiredTokenException": "ExpiredToken", "TokenRefreshRequired": "ExpiredToken"}
_CREDENTIALS = {
    "s3": (
        "AWS_SKIP_SIGNATURE", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ),
    "gs": (
        "GOOGLE_SKIP_SIGNATURE", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "az": (
        "AZURE_SKIP_SIGNATURE", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE",
    ),
}  # fmt: skip
"""Variables that choose the credentials; for S3 the first one that is set is used."""
_ELSE = {
    "s3": "~/.aws or the role of this machine",
    "gs": "gcloud or the role of this machine",
    "az": "the managed identity of this machine",
}
_METADATA_HOSTS = ("169.254.169.254", "169.254.170.", "metadata.google.internal", "169.254.170.23")
_NO_CREDENTIALS = (
    "no credentials were found: set them in the environment (such as AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS or AZURE_STORAGE_ACCOUNT_KEY), or run "
    "where the machine has a role"
)


@dataclass(frozen=True)
class Failure:
    """A request that failed.

    Attributes:
        reason: Why, in one line.
        status: HTTP status; 0 if there was no answer.
        code: The server's own code, such as `NoSuchBucket`; empty if it gave none.
        may_pass: Whether the same request may succeed a moment later.
        may_have_arrived: Whether the server may have done what it was asked for.
        region: Where the bucket is, if the server says so.
        is_of_key: Whether it is about the name of an object, and not about the server.
    """

    reason: str
    status: int = 0
    code: str = ""
    may_pass: bool = False
    may_have_arrived: bool = False
    region: str = ""
    is_of_key: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether there is no such object, or no such bucket."""
        return self.status == 404

    @property
    def is_without_bucket(self) -> bool:
        """Whether there is no such bucket."""
        return self.is_missing and self.code in _NO_BUCKET

    @property
    def is_denied(self) -> bool:
        """Whether the credentials are missing, wrong or not sufficient."""
        return self.status in (401, 403) or _cause_of(self.code) is not None

    def remedy(self, scheme: str, action: Action) -> str:
        """Return what the code means and what helps, to append to a message; empty if unknown.

        Args:
            scheme: The protocol of the server, as in URIs.
            action: What was asked for.
        """
        if self.code in _OTHER_REGION or self.status in (301, 307):
            where = f"in the region {self.region}" if self.region else "in another region"
            has_address = any(map(_is_set, ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")))
            address = ", and AWS_ENDPOINT_URL to its address" if has_address else ""
            return f"; the bucket is {where}: set AWS_REGION to it{address}"
        cause = _cause_of(self.code)
        if cause is not None:
            return f"; {cause}" + ("" if cause == _WRONG_CLOCK else f"; {_used(scheme)}")
        if self.status in (401, 403) and not self.is_without_credentials:
            return f"; this takes {_PERMISSIONS[scheme][action]}; {_used(scheme)}"
        return ""

    @property
    def is_without_credentials(self) -> bool:
        """Whether no credentials were found, so that nothing was asked for."""
        return self.reason == _NO_CREDENTIALS

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
        return Failure(_NO_CREDENTIALS, status=401)
    bad_key = _BAD_KEY.search(text)
    if bad_key:
        return Failure(
            f"the object {bad_key[1]} has nothing, '.' or '..' between two slashes of its key, "
            "which the client does not read; rename it, or give a folder without it",
            is_of_key=True,
        )
    if status:
        return _read_answer(int(status[1]), (status[2] or "").strip(), text)
    if "redirect without LOCATION" in text:
        return Failure("301 Moved Permanently", status=301)
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
    region = "".join(_groups(_REGION, text))
    arrived = may_pass and status != 429
    return Failure(reason, status, code, may_pass, may_have_arrived=arrived, region=region)


def _cause_of(code: str) -> str | None:
    return _CAUSES.get(_SAME_CAUSES.get(code, code))


def _is_set(variable: str) -> bool:
    value = os.environ.get(variable, "")
    return value.lower() not in ("", "0", "false", "no", "off")


def _used(scheme: str) -> str:
    """Return where the credentials come from that a request was made with."""
    names = [name for name in _CREDENTIALS[scheme] if _is_set(name)]
    if not names:
        return f"the credentials are those of {_ELSE[scheme]}"
    if names[0].endswith("_SKIP_SIGNATURE"):
        return f"{names[0]} is set: no credentials are sent"
    if names[0] == "AWS_PROFILE":
        return f"the credentials are those of AWS_PROFILE={os.environ['AWS_PROFILE']}"
    used = names[:1] if scheme == "s3" else names
    return f"the credentials are those of {' and '.join(used)}"


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
