"""URIs of buckets, and the servers that the environment leads to."""

from __future__ import annotations

import pickle

import pytest

from pipeline.errors import ConfigError
from pipeline.objects import profiles
from pipeline.objects.server import find_server
from pipeline.objects.uri import ObjectUri, file_path, is_object_uri, parse_uri
from tests.servers.localbucket import SECRET, environment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket", ObjectUri("s3", "bucket")),
        ("S3://bucket/", ObjectUri("s3", "bucket")),
        ("gs://my.bucket/a/b/", ObjectUri("gs", "my.bucket", "a/b")),
        ("az://box-1/a b/ü#?%2F", ObjectUri("az", "box-1", "a b/ü#?%2F")),
    ],
)
def test_a_uri_is_a_scheme_a_bucket_and_a_prefix(text: str, expected: ObjectUri) -> None:
    """The prefix is taken as it is: it is no URL, so nothing in it is a query or a quote."""
    assert parse_uri(text) == expected
    assert parse_uri(str(expected)) == expected
    assert expected.key("x").endswith(f"{expected.prefix}/x" if expected.prefix else "x")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("s3:///prefix", "'' cannot be the name of a bucket"),
        ("s3://b!d/prefix", "'b!d' cannot be the name"),
        ("s3://bucket/a//b", "may not have ''"),
        ("s3://bucket/a/../b", "may not have '..'"),
        ("s3a://bucket/x", "write s3://"),
        ("gcs://bucket/x", "write gs://"),
        ("ftp://bucket/x", "no kind of bucket"),
    ],
)
def test_a_uri_that_cannot_be_meant_is_refused(text: str, problem: str) -> None:
    """The message has the URI and what was expected."""
    with pytest.raises(ConfigError, match=problem) as raised:
        parse_uri(text)
    assert "s3://" in str(raised.value)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    """Also those in the address of the server."""
    with pytest.raises(ConfigError, match="Credentials") as raised:
        parse_uri(f"s3://user:{SECRET}@bucket/x")
    assert SECRET not in str(raised.value)


def test_paths_are_no_uris() -> None:
    """Only a scheme makes a URI of a bucket; other schemes are for others to judge."""
    assert is_object_uri("s3://b/x")
    assert is_object_uri("gcs://b/x")  # refused with a hint, and not taken for a path
    for text in ("/data/store", "store", "file:///data/store", "memory://1", "C:/store"):
        assert not is_object_uri(text)


def test_a_file_uri_is_an_absolute_path() -> None:
    """With what is quoted in it as in any URL."""
    assert file_path("file:///data/my%20store") == "/data/my store"
    assert file_path("file://localhost/data") == "/data"
    for text in ("file://data/store", "file:data", "file://"):
        with pytest.raises(ConfigError, match="file:///PATH"):
            file_path(text)


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its repr nor its pickle has a secret; plain http must be asked for."""
    for name, value in environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    uri = parse_uri("s3://bucket/x")
    server = find_server(uri)
    assert str(server) == "http://127.0.0.1:9"
    assert SECRET not in repr(server)
    assert SECRET.encode() not in pickle.dumps(server)
    assert server.config()["region"] == "us-east-1"
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ConfigError, match="AWS_ALLOW_HTTP=true"):
        find_server(uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://user:{SECRET}@host")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL has credentials") as raised:
        find_server(uri)
    assert SECRET not in str(raised.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "host:9000")
    with pytest.raises(ConfigError, match="https://HOST:PORT"):
        find_server(uri)


def test_a_profile_needs_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that is asked for and cannot be read is an error, and not left out."""
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setattr(profiles, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install boto3"):
        profiles.profile_settings(find_server(parse_uri("s3://bucket")))


def test_a_prefix_that_leaves_no_room_for_keys_is_refused() -> None:
    """Otherwise a run would fail with its first shard, and not before."""
    assert parse_uri(f"s3://bucket/{'x' * 900}").prefix == "x" * 900
    with pytest.raises(ConfigError, match=r"a prefix of 902 bytes leaves no room.*at most 900"):
        parse_uri(f"s3://bucket/{'ü' * 451}")
