"""Recordings that are named on a command line: audio files, and folders of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.sources.folder import is_audio, list_files


def find_recordings(paths: Sequence[str | Path]) -> list[Path]:
    """Return audio files, each once: files in the given order, those of a folder sorted.

    A folder is searched with its subfolders for the extensions of audio files. A file that is named
    itself may have any extension.

    Raises:
        ConfigError: A path does not exist, or there are no audio files.
    """
    found: dict[Path, None] = {}
    for item in paths:
        path = Path(item)
        if path.is_dir():
            names = sorted(name for name in list_files(path) if is_audio(name))
            found |= dict.fromkeys(path / name for name in names)
        elif path.exists():
            found[path] = None
        else:
            raise ConfigError(f"there is no recording {path}; give audio files or folders of them")
    if not found:
        given = ", ".join(str(item) for item in paths) or "nothing"
        raise ConfigError(f"no audio files in {given}; give audio files or folders of them")
    return list(found)
