"""Tar files for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def write_tar(
    path: Path, members: Mapping[str, bytes | str], kind: int = tarfile.USTAR_FORMAT
) -> Path:
    """Write a tar file with members in this order, as the WebDataset library does.

    Args:
        path: The file.
        members: Content of each member by its name.
        kind: Form of its headers: `tarfile.USTAR_FORMAT`, `GNU_FORMAT` or `PAX_FORMAT`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as file:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.25  # type: ignore[assignment]  # which PAX states in a header of its own
            file.addfile(info, io.BytesIO(data))
    return path
