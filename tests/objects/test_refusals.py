"""Errors of a server that refuses: they name the operation, the URI, the reason and the remedy."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.errors import (
    NoBucketError,
    RefusedError,
    SourceError,
    StoreError,
    UnansweredError,
    UnreachableError,
)
from pipeline.objects.client import ObjectClient
from pipeline.objects.requests import Limits
from pipeline.sources.remote import listing, reading
from pipeline.store.backend.remote.backend import RemoteBackend
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, extract, overrides
from tests.servers.base import Bucket
from tests.servers.gcs import gcs_environment
from tests.servers.localbucket import SECRET
from tests.servers.proxy import Proxy

QUICK = Limits(answer_s=2.0, transfer_s=10.0, retry_s=0.5, first_retry_s=0.5)
Act = Callable[[ObjectClient], object]
READS: dict[str, Act] = {
    "get": lambda client: client.get("x"),
    "head": lambda client: client.head("x"),
    "range": lambda client: client.get_range("x", 0, 1),
}
LISTS: dict[str, Act] = {
    "list": lambda client: client.list(),
    "children": lambda client: client.children(),
    "any": lambda client: client.has_any(),
}
WRITES: dict[str, Act] = {
    "put": lambda client: client.put("x", [b"x"]),
    "create": lambda client: client.create("x", b"x"),
}


def refuse(proxy: Proxy, status: int, code: str, message: str = "no", more: str = "") -> None:
    """Answer every request as S3 refuses one: to a HEAD without content."""
    content = f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()

    def answer(method: str, *_: object) -> tuple[int, list[tuple[str, str]], bytes]:
        return status, [], b"" if method == "HEAD" else content

    proxy.pass_on = answer  # type: ignore[method-assign, assignment]


def error_of(act: Act, client: ObjectClient) -> Exception:
    """Return the error of a request, which is made once."""
    start_s = time.monotonic()
    with pytest.raises((OSError, StoreError)) as raised:
        act(client)
    assert time.monotonic() - start_s < 0.5
    text = str(raised.value)
    assert SECRET not in text
    assert "\n" not in text
    assert str(pickle.loads(pickle.dumps(raised.value))) == text
    return raised.value


@pytest.mark.parametrize(
    ("acts", "permission"),
    [
        (READS, "s3:GetObject"),
        (LISTS, "s3:ListBucket"),
        (WRITES, "s3:PutObject"),
        ({"delete": lambda client: client.delete("x")}, "s3:DeleteObject"),
    ],
)
def test_a_missing_permission_is_named(
    proxy: Proxy, s3: str, acts: dict[str, Act], permission: str
) -> None:
    """With the URI, the server's own words, and the variable that the credentials come from."""
    client = ObjectClient(s3, QUICK)
    refuse(proxy, 403, "AccessDenied", "Access Denied")
    for act in acts.values():
        error = error_of(act, client)
        cause = error if isinstance(error, OSError) else error.__cause__
        assert isinstance(cause, PermissionError)
        assert s3 in str(error)
        assert "403 Forbidden (AccessDenied: Access Denied)" in str(error)
        assert f"this takes {permission}" in str(error)
        assert "the credentials are those of AWS_ACCESS_KEY_ID" in str(error)


def test_a_creation_that_is_refused_reads_nothing(proxy: Proxy, s3: str) -> None:
    """Nothing was created, so what is under the key says nothing about this request."""
    client = ObjectClient(s3, QUICK)
    client.put("x", [b"x"])
    proxy.refuses = lambda request: request.method == "PUT"
    proxy.requests.clear()
    assert isinstance(error_of(WRITES["create"], client).__cause__, RefusedError)
    assert set(proxy.counts) == {"CREATE"}


def test_a_creation_that_may_not_be_read_back_is_refused_at_once(proxy: Proxy, s3: str) -> None:
    """The client cannot know whether the object is its own, and a retry would not help."""
    client = ObjectClient(s3, Limits())
    client.put("x", [b"of another one"])
    proxy.refuses = lambda request: request.method == "GET"
    error = error_of(lambda client: client.create("x", b"mine"), client)
    assert isinstance(error, UnansweredError)  # it may be an earlier request of the caller
    assert f"{s3}/x exists and cannot be read back" in str(error)
    assert "this takes s3:GetObject" in str(error)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AWS_SKIP_SIGNATURE", "true", "AWS_SKIP_SIGNATURE is set: no credentials are sent"),
        ("AWS_SKIP_SIGNATURE", "false", "those of AWS_ACCESS_KEY_ID"),
        ("AWS_ACCESS_KEY_ID", "", "those of ~/.aws or the role of this machine"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token", "those of AWS_ACCESS_KEY_ID"),
    ],
)
def test_the_origin_of_the_credentials_is_named(
    proxy: Proxy, s3: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    """Otherwise a forgotten variable is looked for in vain."""
    client = ObjectClient(s3, QUICK)
    client.exists("x")  # by the credentials of the environment
    monkeypatch.setenv(variable, value)
    refuse(proxy, 403, "AccessDenied")
    assert str(error_of(READS["get"], client)).endswith(words)


@pytest.mark.parametrize(
    ("status", "code", "more", "words"),
    [
        (400, "ExpiredToken", "", "the session token has expired: get a new one"),
        (403, "InvalidAccessKeyId", "", "the server does not know the access key"),
        (403, "SignatureDoesNotMatch", "", "the secret key does not belong to the access key"),
        (403, "RequestTimeTooSkewed", "", "the clock of this machine is wrong: set it"),
    ],
)
def test_credentials_that_are_not_accepted_are_explained(
    proxy: Proxy, s3: str, status: int, code: str, more: str, words: str
) -> None:
    """By reads and by writes, at once, also if the server answers 400 and no 403."""
    client = ObjectClient(s3, QUICK)
    refuse(proxy, status, code, more=more)
    for act in (*READS.values(), *LISTS.values()):
        error = error_of(act, client)
        assert isinstance(error, RefusedError)
        assert f"{code}: no); {words}" in str(error)
    for act in WRITES.values():
        assert f"{code}: no); {words}" in str(error_of(act, client))


@pytest.mark.parametrize(
    ("status", "code", "more", "words"),
    [
        (301, "PermanentRedirect", "", "in another region: set AWS_REGION"),
        (
            400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>",
            "in the region eu-west-1: set AWS_REGION",
        ),
    ],
)  # fmt: skip
def test_another_region_is_named(
    proxy: Proxy, s3: str, status: int, code: str, more: str, words: str
) -> None:
    """If the server says which one it is."""
    client = ObjectClient(s3, QUICK)
    refuse(proxy, status, code, more=more)
    for act in (*READS.values(), *LISTS.values(), *WRITES.values()):
        assert f"; the bucket is {words}" in str(error_of(act, client))


# Buckets that do not exist


@pytest.mark.parametrize("server", ["s3", "azurite", "rclone"])
def test_a_missing_bucket_is_named(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By reads, lists and writes of every kind of server; it is no missing object or store."""
    found: Bucket | str = request.getfixturevalue(server)
    uri = found if isinstance(found, str) else found.use(monkeypatch)
    scheme, kind = uri.partition("://")[0], "container" if server == "azurite" else "bucket"
    words = f"has no {kind} no-such-bucket; create it, or correct its name or the a"
    client = ObjectClient(f"{scheme}://no-such-bucket/x", QUICK)
    for act in (READS["get"], READS["range"], *LISTS.values()):
        error = error_of(act, client)
        assert isinstance(error, NoBucketError)
        assert not isinstance(error, FileNotFoundError)
        assert words in str(error)
    for act in WRITES.values():
        assert words in str(error_of(act, client))
    backend = RemoteBackend(client)
    with pytest.raises(NoBucketError):
        backend.exists("x")
    with pytest.raises(UnreachableError):
        backend.open_reader("x")


def test_google_s_answers_are_understood(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Google documents them: the emulator of the tests does not say what is missing."""
    for name, value in gcs_environment(proxy.url).items():
        monkeypatch.setenv(name, value)
    client = ObjectClient("gs://a-bucket/x", QUICK)
    refuse(proxy, 404, "NoSuchBucket", "The specified bucket does not exist.")
    for act in (READS["get"], *LISTS.values(), *WRITES.values()):
        assert "has no bucket a-bucket; create it" in str(error_of(act, client))
    refuse(proxy, 403, "AccessDenied", "Access denied.")
    used = "the credentials are those of GOOGLE_SERVICE_ACCOUNT_KEY"
    assert f"takes storage.objects.get; {used}" in str(error_of(READS["head"], client))
    assert "takes storage.objects.create, and " in str(error_of(WRITES["put"], client))


def test_commands_tell_a_missing_bucket_from_a_missing_store(s3: str, tmp_path: Path) -> None:
    """Verbs that read, extraction, copies, and datasets: one line that names the bucket."""
    clips = write_folder(tmp_path / "clips", mixed_lengths(3))
    extract(clips, tmp_path / "store", *INLINE, "extract.layers=[2]")
    gone = "s3://no-such-bucket/features"
    words = "has no bucket no-such-bucket; create it"
    for arguments in (
        ["status", gone],
        ["verify", gone],
        ["inspect", gone],
        ["copy", gone, str(tmp_path / "copy")],
        ["copy", str(tmp_path / "store"), gone],
        ["extract", *overrides(clips, tmp_path / "s", *INLINE)[1:], f"store={gone}"],
        ["plan", *overrides(clips, tmp_path / "s"), f"dataset.path={gone}"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1, (arguments, result.output)
        assert words in result.output, (arguments, result.output)
        assert "no store" not in result.output
    result = CliRunner().invoke(app, ["status", f"{s3}/none"])
    assert f"error: no store at {s3}/none" in result.output


def test_a_dataset_in_a_missing_bucket_is_named(s3: str) -> None:
    """By lists and by reads of one object."""
    acts: list[Callable[[str], object]] = [
        listing.list_below,
        listing.has_files,
        reading.fetch_whole,
    ]
    for act in acts:
        with pytest.raises(SourceError, match="has no bucket no-such-bucket; create it"):
            act("s3://no-such-bucket/a.wav")
