"""What one host has created is waited for on another one.

Network file systems show a change of another host late: NFS lists a folder from a cache for up to a
minute. Some mounts, or a folder that is not shared at all, never show it; then the run must stop.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Set
from dataclasses import asdict

from pipeline.errors import StoreError, first_few
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.ledger import Claim
from pipeline.store.format.layout import ATTRIBUTES, ledger_key
from pipeline.store.index import committed_units

VISIBLE_S = 90.0
"""Seconds after which what another host has created must be seen."""
GONE_S = 5.0
"""The same while there is no store at all: it is not mounted here."""
LOOK_S = 0.25
_ADVICE = (
    "the store must be in a folder that all nodes share, and that shows each what others write"
)


def await_claim(store: Location, claim: Claim) -> None:
    """Wait until a worker sees the claim that the driver has made for its attempt.

    Raises:
        StoreError: It cannot be seen, or is that of another driver.
    """
    backend, key = open_backend(store), ledger_key(claim.slot)
    start_s = time.monotonic()
    while True:
        try:
            found = json.loads(backend.read(key))
        except (OSError, ValueError):
            found = None
        if found == asdict(claim):
            return
        limit_s = VISIBLE_S if backend.exists(ATTRIBUTES) else GONE_S
        if time.monotonic() - start_s > limit_s:
            break
        time.sleep(LOOK_S)
    seen = "cannot be seen" if found is None else "is the claim of another driver"
    raise StoreError(
        f"{backend.locate(key)}, which the driver has created, {seen} on {socket.gethostname()}; "
        f"{_ADVICE}"
    )


def await_commits(store: Location, units: Set[int]) -> None:
    """Wait until the driver sees the commits that its workers have reported.

    Raises:
        StoreError: Some cannot be seen.
    """
    end_s = time.monotonic() + VISIBLE_S
    while missing := units - set(committed_units(store)):
        if time.monotonic() > end_s:
            raise StoreError(
                f"the commits of {len(missing)} units (units {first_few(sorted(missing))}), which "
                f"workers have reported, cannot be seen on {socket.gethostname()} in "
                f"{open_backend(store)}; {_ADVICE}"
            )
        time.sleep(LOOK_S)
