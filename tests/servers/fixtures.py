"""Fixtures of running servers, for tests/conftest.py. Each starts when a test needs it first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.azurite import azurite_bucket
from tests.servers.base import Bucket
from tests.servers.gcs import gcs_bucket
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
