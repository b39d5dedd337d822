"""Compile the optional C code; without a compiler Strata works without it, but reads int8 slower.

pip runs this when it installs or builds Strata (the hook of hatchling in pyproject.toml). To
compile in a checkout that is not installed: `python scripts/build_native.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("pipeline/store/native/int8.c",)
FLAGS = ("-O3", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra")
COMPILERS = ("cc", "gcc", "clang")


def compile_all(root: Path) -> list[Path]:
    """Compile every source beside itself; return the libraries, none if there is no compiler."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        print("no C compiler: int8 features are decoded by torch, which is slower", file=sys.stderr)
        return []
    libraries = []
    for source in SOURCES:
        path = root / source
        library = path.with_name(f"lib{path.stem}.native")  # Python would import a .so
        partial = library.with_suffix(".partial")
        command = [*compiler.split(), *FLAGS, str(path), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{source} was not compiled: {done.stderr.strip()[-500:]}", file=sys.stderr)
            return []
        partial.replace(library)  # a process that has loaded the old one keeps it
        libraries.append(library)
    return libraries


class NativeCode(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the libraries to a wheel, which is then one for this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files of the wheel are collected."""
        root = Path(self.root)
        if libraries := compile_all(root):
            build_data["artifacts"] += [f"/{path.relative_to(root)}" for path in libraries]
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"


if __name__ == "__main__":
    sys.exit(0 if compile_all(Path(__file__).resolve().parents[1]) else 1)
