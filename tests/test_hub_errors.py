"""Errors of the way to the hub become a reason with what to do."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import huggingface_hub
import pytest

from pipeline.hub_errors import HubItem, explanation

ITEM = HubItem("model", "someone/hubert")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def reason_of(cause: OSError) -> str:
    """Return the reason for an error that another one has caused, as libraries raise it."""
    try:
        raise ConnectionError(str(cause)) from cause
    except ConnectionError as error:
        refusal = explanation(ITEM, error)
    assert refusal is not None
    assert refusal.is_unreachable
    return refusal.reason


def test_without_a_network_the_hub_is_named_and_the_way_out() -> None:
    """Instead of the error of the resolver, which says nothing to most users."""
    reason = reason_of(socket.gaierror(-2, "Name or service not known"))
    assert "there is no connection to the hub, http" in reason
    assert "HTTPS_PROXY" in reason
    assert "HF_HOME" in reason
    assert "Errno" not in reason
    assert "Name or service" not in reason
    refused = reason_of(ConnectionRefusedError(errno.ECONNREFUSED, "x"))
    assert "(Connection refused)" in refused


def test_other_errors_of_the_transport_keep_their_words() -> None:
    """A certificate that is refused is no missing network."""
    assert "CERTIFICATE" in reason_of(OSError(1, "CERTIFICATE_VERIFY_FAILED"))


def test_files_are_kept_only_if_some_were_fetched(cache: Path) -> None:
    """The advice to run again promises nothing about an empty cache."""
    error = socket.gaierror(-2, "Name or service not known")
    assert "kept" not in reason_of(error)
    blobs = cache / "models--someone--hubert" / "blobs"
    blobs.mkdir(parents=True)
    assert "kept" not in reason_of(error)
    (blobs / "0a1b").touch()
    assert "run the same command again: what was fetched is kept" in reason_of(error)
