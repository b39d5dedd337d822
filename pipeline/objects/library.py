"""obstore, imported when it is first needed, and once more in a process that was forked.

obstore runs its requests in threads that do not survive a fork: in the child every request would
wait for ever, also of an object that was made there. The threads belong to the compiled module, so
a child loads that module a second time, from a copy of its file: a module of the same file would
share the dead threads. The copy is in memory and takes about 20 ms.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

_NATIVE = "obstore._obstore"


class _State:
    """What this process has loaded.

    Attributes:
        generation: Number of forks between the first process and this one.
        obstore: The library, once it is loaded.
        is_stale: Whether the process that this one was forked from had loaded it.
    """

    generation = 0
    obstore: Any = None
    is_stale = False
    guard = threading.Lock()


def generation() -> int:
    """Return a number that is another one in a fork of this process."""
    return _State.generation


def load_obstore() -> Any:
    """Return the module `obstore` that works in this process.

    Raises:
        ConfigError: It is not installed.
    """
    if _State.obstore is None:
        with _State.guard:
            if _State.obstore is None:
                _State.obstore = _reload() if _State.is_stale else _import()
    return _State.obstore


def _import() -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise ConfigError(
            "buckets (s3://, gs://, az://) need the library obstore, which is not installed: "
            'pip install "strata-speech[cloud]"'
        ) from error
    return obstore


def _reload() -> Any:
    path = sys.modules[_NATIVE].__file__
    assert path is not None
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        del sys.modules[name]
    copy = _copy(Path(path))
    loader = importlib.machinery.ExtensionFileLoader(_NATIVE, copy)
    spec = importlib.util.spec_from_file_location(_NATIVE, copy, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path  # a child of this process copies it again
    sys.modules[_NATIVE] = module
    loader.exec_module(module)
    return _import()


def _copy(path: Path) -> str:
    """Copy a file to memory, or where that is not possible to a folder for temporary files."""
    try:
        descriptor = os.memfd_create("obstore")  # stays open with the process, as the module does
    except (AttributeError, OSError):
        with tempfile.NamedTemporaryFile(suffix=path.suffix, delete=False) as file:
            shutil.copyfile(path, file.name)
        return file.name
    with path.open("rb") as source, os.fdopen(os.dup(descriptor), "wb") as target:
        shutil.copyfileobj(source, target, 1 << 22)
    return f"/proc/self/fd/{descriptor}"


def _after_fork() -> None:
    _State.generation += 1
    _State.is_stale |= _State.obstore is not None
    _State.obstore = None
    _State.guard = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)
