"""Compile the optional C code; without a compiler Strata works without it, but more slowly.

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

STORE, HEADS = "pipeline/store/native", "pipeline/probing/trainers/native"
KERNELS = "pipeline/encoders/kernels/native"
INCLUDES = (f"-I{sysconfig.get_paths()['include']}",)
FAST = ("-ffp-contract=fast", "-fno-math-errno")  # where no bits are promised
LIBRARIES = {
    "libint8.native": (STORE, ("int8.c",), ()),  # not .so, which Python would import
    "librows.native": (STORE, ("rows.c",), ()),
    "_mapped.abi3.so": (STORE, ("mapped.c", "int8.c", "rows.c"), INCLUDES),
    "libheads.native": (HEADS, ("heads.c",), (*FAST, "-lm")),
    "libattention.native": (KERNELS, ("attention.c",), ()),
}
"""Folder and sources of each library, and further options."""
LINUX_ONLY = "_mapped.abi3.so"
STABLE_SINCE = "cp311"  # the oldest Python whose stable interface has what mapped.c uses
FLAGS = ("-O3", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra")
COMPILERS = ("cc", "gcc", "clang")


def compile_all(root: Path) -> list[Path]:
    """Compile every library into its folder; return those that were compiled."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        print(
            "no C compiler: without C code Strata extracts, reads and trains more slowly",
            file=sys.stderr,
        )
        return []
    libraries = []
    for name, (folder, sources, options) in LIBRARIES.items():
        if name == LINUX_ONLY and sys.platform != "linux":
            continue
        library = root / folder / name
        partial = library.with_suffix(".partial")
        paths = [str(root / folder / source) for source in sources]
        command = [*compiler.split(), *FLAGS, *paths, *options, "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{name} was not compiled: {done.stderr.strip()[-500:]}", file=sys.stderr)
            continue
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
            is_extension = any(path.name.endswith(".abi3.so") for path in libraries)
            python = f"{STABLE_SINCE}-abi3" if is_extension else "py3-none"
            build_data["tag"] = f"{python}-{platform}"


if __name__ == "__main__":
    n_expected = len(LIBRARIES) - (sys.platform != "linux")
    sys.exit(len(compile_all(Path(__file__).resolve().parents[1])) < n_expected)
