"""Where a bucket is and how to reach it, by the environment of the process; its clock.

`Server` is what may be pickled and shown. Credentials are read by obstore or boto3 in each process
that needs them.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import ConfigError
from pipeline.objects.uri import ObjectUri

_TRUE = ("1", "true", "yes", "on")
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL", "STORAGE_EMULATOR_HOST"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_PLAIN_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
_SETTINGS = {
    "s3": {
        "AWS_REGION": "region",
        "AWS_DEFAULT_REGION": "default_region",
        "AWS_SKIP_SIGNATURE": "skip_signature",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "virtual_hosted_style_request",
        "AWS_REQUEST_PAYER": "request_payer",
        "AWS_S3_EXPRESS": "s3_express",
        "AWS_SERVER_SIDE_ENCRYPTION": "server_side_encryption",
        "AWS_SSE_KMS_KEY_ID": "sse_kms_key_id",
        "AWS_SSE_BUCKET_KEY_ENABLED": "sse_bucket_key_enabled",
    },
    "gs": {"GOOGLE_SKIP_SIGNATURE": "skip_signature"},
    "az": {
        "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
        "AZURE_STORAGE_USE_EMULATOR": "use_emulator",
        "AZURE_SKIP_SIGNATURE": "skip_signature",
    },
}
_ADDRESSES = {
    "s3": "https://s3.amazonaws.com",
    "gs": "https://storage.googleapis.com",
    "az": "https://{account}.blob.core.windows.net",
}
_PLACES = {
    "s3": "the address of the server (AWS_ENDPOINT_URL, AWS_REGION)",
    "gs": "the address of the server (GOOGLE_BASE_URL)",
    "az": "the account (AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT)",
}
_CLOUDS = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
_CLOCK_TIMEOUT_S = 5.0
_CLOCK_AGE_S = 60.0


@dataclass(frozen=True)
class Server:
    """The server of a bucket, without credentials.

    Attributes:
        scheme: Its protocol, as in URIs.
        bucket: The bucket.
        endpoint: Its address; empty for the cloud's own.
        allows_http: Whether requests may go over plain http.
        settings: Other settings that are no secrets, by obstore's names, sorted.
    """

    scheme: str
    bucket: str
    endpoint: str = ""
    allows_http: bool = False
    settings: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.endpoint or _CLOUDS[self.scheme]

    @property
    def address(self) -> str:
        """Where it answers to anyone, if only to refuse."""
        if self.endpoint:
            return self.endpoint
        account = dict(self.settings).get("account_name", "")
        return _ADDRESSES[self.scheme].format(account=account)

    @property
    def without_bucket(self) -> str:
        """Message for a missing bucket, with the remedy."""
        kind = "container" if self.scheme == "az" else "bucket"
        return (
            f"{self} has no {kind} {self.bucket}; create it, or correct its name or "
            f"{_PLACES[self.scheme]}"
        )

    def config(self) -> dict[str, Any]:
        """Return the settings as obstore takes them."""
        config: dict[str, Any] = dict(self.settings)
        if self.endpoint:
            config["base_url" if self.scheme == "gs" else "endpoint"] = self.endpoint
        if self.scheme == "s3":
            config["disable_bulk_delete"] = True  # many servers do not have it
        return config


def find_server(uri: ObjectUri) -> Server:
    """Return the server of a bucket by the environment of this process.

    Raises:
        ConfigError: An address is not usable.
    """
    scheme = uri.scheme
    found = ((name, os.environ.get(name, "").strip()) for name in _ENDPOINTS[scheme])
    name, endpoint = next(((name, value) for name, value in found if value), ("", ""))
    if name == "STORAGE_EMULATOR_HOST" and "://" not in endpoint:
        endpoint = f"http://{endpoint}"
    emulated = os.environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in _TRUE and scheme == "az"
    allows_http = os.environ.get(_PLAIN_HTTP[scheme], "").lower() in _TRUE or emulated
    allows_http |= name == "STORAGE_EMULATOR_HOST"
    if endpoint:
        _check_endpoint(name, endpoint, allows_http, _PLAIN_HTTP[scheme])
    settings = {
        option: os.environ[variable]
        for variable, option in _SETTINGS[scheme].items()
        if os.environ.get(variable)
    }
    return Server(
        scheme, uri.bucket, endpoint.rstrip("/"), allows_http, tuple(sorted(settings.items()))
    )


def _check_endpoint(name: str, endpoint: str, allows_http: bool, variable: str) -> None:
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise ConfigError(f"{name} has credentials in it; put them into their own variables")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"{name}={endpoint}: expected the address of a server, https://HOST:PORT")
    if parts.scheme == "http" and not allows_http:
        raise ConfigError(
            f"{name}={endpoint} is plain http, which encrypts nothing; set {variable}=true if that "
            "is meant"
        )


_asked: dict[Server, tuple[float, float]] = {}  # when, by the steady clock, and the server's time


def server_time_s(server: Server) -> float:
    """Return the time of a server, in seconds since the epoch; that of this machine if unknown.

    It is asked once a minute, by a request without credentials: an answer that refuses it has the
    time, too. In between it runs on by the monotonic clock of this machine.
    """
    found = _asked.get(server)
    if found is None or time.monotonic() - found[0] > _CLOCK_AGE_S:
        time_s = _time_of(server.address)
        found = _asked[server] = time.monotonic(), time.time() if time_s is None else time_s
    return found[1] + time.monotonic() - found[0]


def _time_of(address: str) -> float | None:
    request = urllib.request.Request(address, method="HEAD")
    headers = None
    with suppress(OSError, ValueError):
        try:
            with urllib.request.urlopen(request, timeout=_CLOCK_TIMEOUT_S) as answer:
                headers = answer.headers
        except urllib.error.HTTPError as error:
            with error:
                headers = error.headers
    text = headers.get("Date") if headers is not None else None
    with suppress(TypeError, ValueError):
        return parsedate_to_datetime(text or "").timestamp()
    return None
