"""The record of an export: what is exported, and which parts are complete.

    <out>/
      export.json       what is exported; `complete` is set last
      manifest.jsonl    an utterance a line, in order; written when all parts are complete
      .strata-export/   while it is incomplete: the lines of each complete part; and a lock

The file of a part's lines is created after its data is durable. It alone makes the part count, so
what a killed run has left of a part is written again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.errors import DamagedError, IdentityError, StoreBusyError, StoreError, first_few
from pipeline.store.backend.base import Backend, final_name
from pipeline.store.format.identity import compare
from pipeline.store.serialization import json_bytes
from pipeline.transforms.export.base import Entry, json_line

STATE = "export.json"
MANIFEST = "manifest.jsonl"
PRIVATE = ".strata-export"
VERSION = 1
_LOCK = f"{PRIVATE}/lock"
_LOCK_TIMEOUT_S = 1.0
_BLOCK_LINES = 10_000


class ExportRecord:
    """The record of one export, which holds its folder for one process while a `with` block runs.

    Attributes:
        is_complete: Whether everything is exported.
    """

    def __init__(self, out: Backend) -> None:
        self._out = out
        self._done: set[int] = set()
        self.is_complete = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Exclude other processes.

        Raises:
            StoreBusyError: Another process is exporting to the folder.
        """
        try:
            with self._out.leases.lock(_LOCK, _LOCK_TIMEOUT_S):
                yield
        except TimeoutError as error:
            raise StoreBusyError(
                f"another process is exporting to {self._out}; wait for it, or stop it and run "
                "again"
            ) from error

    def check_folder(self) -> None:
        """Check that the folder is empty or has an export.

        Raises:
            StoreError: It has something else.
        """
        names = [
            name for name in self._out.children("") if name != PRIVATE and final_name(name) != STATE
        ]
        if names and not self._out.exists(STATE):
            raise StoreError(
                f"{self._out} is not empty and holds no export, but {first_few(sorted(names))}; "
                "give the path of a new folder"
            )

    def open(self, settings: dict[str, Any], facts: dict[str, Any]) -> None:
        """Start the record, or read that of an earlier run and compare it.

        Args:
            settings: What determines the exported bytes.
            facts: Further facts for people.

        Raises:
            IdentityError: The folder has another export; the message has the difference.
            DamagedError: The record is no JSON object.
        """
        self.check_folder()
        self._settings, self._facts = settings, facts
        if not self._out.exists(STATE):
            self._write(is_complete=False)
            return
        stored = self._read()
        differences = compare(stored["settings"], json.loads(json.dumps(settings)))
        if differences:
            raise IdentityError(
                f"{self._out} holds another export: {'; '.join(differences)}. Use the same "
                "settings to complete it, give another path, or delete it"
            )
        self.is_complete = bool(stored["complete"])
        self._done = {int(name[5:-6]) for name in self._part_files() if final_name(name) is None}
        self._remove_leftovers()

    def is_done(self, part: int) -> bool:
        """Return whether a part is complete."""
        return part in self._done

    def complete_part(self, part: int, entries: Sequence[Entry]) -> None:
        """Record that a part is complete; its data must be durable."""
        self._out.put(_part_key(part), [json_line(entry) for entry in entries])

    def entries(self, n_parts: int) -> Iterator[Entry]:
        """Return the lines of all parts, in order, one part in memory at a time."""
        for part in range(n_parts):
            for line in self._out.read(_part_key(part)).splitlines():
                yield json.loads(line)

    def complete(self, n_parts: int) -> None:
        """Write the manifest, and record that everything is exported."""
        partial = self._out.open_partial(MANIFEST)
        at = 0
        try:
            for part in range(n_parts):
                lines = self._out.read(_part_key(part))
                partial.write(lines, at)
                at += len(lines)
            self._out.publish([partial])
        finally:
            partial.discard()
        self._write(is_complete=True)
        self.is_complete = True
        self._remove_leftovers()

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self._out.read(STATE))
            if stored["version"] > VERSION:
                raise StoreError(
                    f"{self._out.locate(STATE)} was written by a newer version of strata; use that "
                    "one, or give another path"
                )
            return {"settings": dict(stored["settings"]), "complete": stored["complete"]}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DamagedError(
                f"{self._out.locate(STATE)} is not the record of an export; delete the folder, or "
                "give another path"
            ) from error

    def _write(self, is_complete: bool) -> None:
        document = {
            "version": VERSION,
            "complete": is_complete,
            "settings": self._settings,
            **self._facts,
        }
        self._out.put(STATE, [json_bytes(document)])

    def _part_files(self) -> list[str]:
        return [name for name in self._out.children(PRIVATE) if name.startswith("part-")]

    def _remove_leftovers(self) -> None:
        """Remove half-written files of killed runs, and the record of parts if it is complete."""
        if not self.is_complete:
            leftovers = [name for name in self._out.list() if final_name(name) is not None]
        else:
            leftovers = [f"{PRIVATE}/{name}" for name in self._part_files()]
        for name in leftovers:
            self._out.delete(name)


def _part_key(part: int) -> str:
    return f"{PRIVATE}/part-{part:06d}.jsonl"
