"""Fixtures of running servers, for tests/conftest.py. Each starts when a test needs it first."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.servers.azurite import azurite_bucket
from tests.servers.base import Bucket
from tests.servers.gcs import gcs_bucket
from tests.servers.localbucket import BUCKET, LocalBucket, environment, start_localbucket
from tests.servers.proxy import Proxy, start_proxy
from tests.servers.rclone import rclone_bucket


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A bucket of rclone; tests share it, each under keys of its own."""
    with rclone_bucket(tmp_path_factory.mktemp("rclone")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A container of Azurite; tests share it, each under keys of its own."""
    with azurite_bucket(tmp_path_factory.mktemp("azurite")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A bucket of fake-gcs-server; tests share it, each under keys of its own."""
    with gcs_bucket(tmp_path_factory.mktemp("gcs")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def localbucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBucket]:
    """The S3 server of this test process."""
    pytest.importorskip("localbucket", reason="needs localbucket")
    pytest.importorskip("obstore", reason="needs obstore")
    with start_localbucket(tmp_path_factory.mktemp("localbucket")) as server:
        yield server


@pytest.fixture
def s3(localbucket: LocalBucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a prefix that no other test uses; the environment leads to its server."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in environment(localbucket.url).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def s3_of_module(localbucket: LocalBucket) -> Iterator[str]:
    """The URI of a prefix for all tests of a module, for which the environment is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_PROFILE", raising=False)
        for name, value in environment(localbucket.url).items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def proxy(localbucket: LocalBucket, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the S3 server, to which the environment now leads."""
    with start_proxy(localbucket.url) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running
