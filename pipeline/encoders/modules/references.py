"""References to code of the user: functions by name, in this process and in others."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import ConfigError, EncoderError, did_you_mean

_MAIN = "__main__"


class Reference:
    """A function or another object of the user, which is pickled by name where that is possible.

    Another process imports it when it is first used, and not when it is unpickled, so that a module
    that is missing there is an error with a name. What has no importable name, such as a function
    of a program or a notebook, is pickled by value, which Ray and cloudpickle can do.

    Attributes:
        name: Its name, "package.module:function"; part of the identity of an encoder. A program has
            the name of its file, so that it may also be imported under that name.
    """

    def __init__(self, value: Any) -> None:
        """Refer to an object of this process."""
        named = value.func if isinstance(value, functools.partial) else value
        if not hasattr(named, "__qualname__"):
            named = type(named)
        module, path = named.__module__, named.__qualname__
        self.name = f"{_name_of(module)}:{path}"
        self._value: Any = value
        self._place = (module, path, _folder_of(module)) if _is_importable(value) else None

    def get(self) -> Any:
        """Return the object; import it if it is not known in this process.

        Raises:
            EncoderError: It cannot be imported here.
        """
        if self._value is None and self._place is not None:
            module, path, folder = self._place
            add_folder(folder)
            try:
                self._value = _look_up(importlib.import_module(module), path)
            except (ImportError, AttributeError) as error:
                raise EncoderError(
                    f"{self.name} cannot be imported in this process ({error}); install the "
                    "package on every machine of the run, or put it into a folder that all share "
                    "and name that in PYTHONPATH"
                ) from error
        return self._value

    @property
    def is_by_value(self) -> bool:
        """Whether it is pickled by value."""
        return self._place is None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be imported."""
        state = dict(self.__dict__)
        if self._place is not None:
            state["_value"] = None
        return state


def import_target(target: str, folder: str | None = None) -> Any:
    """Import what `model.target` names. This runs the code of its module.

    Args:
        target: "package.module:name".
        folder: Searched after all of `sys.path`; for commands the current folder.

    Raises:
        ConfigError: The target has another form, or there is no such module or name.
        EncoderError: The module fails when it is imported.
    """
    module_name, colon, path = target.partition(":")
    parts = [*module_name.split("."), *path.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ConfigError(
            f"model.target is {target!r:.80}; expected PACKAGE.MODULE:FACTORY, such as "
            "my_encoders.toy:make"
        )
    add_folder(folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(
                f"model.target={target}: there is no module {missing!r}; modules are searched in "
                f"the installed packages, PYTHONPATH and {folder or 'sys.path'}"
                f"{_without_suffix(module_name, path)}"
            ) from error
        raise EncoderError(failure(f"importing {module_name}", error)) from error
    except (Exception, SystemExit) as error:
        raise EncoderError(failure(f"importing {module_name}", error)) from error
    try:
        return _look_up(module, path)
    except AttributeError as error:
        names = [name for name, value in vars(module).items() if callable(value)]
        place = getattr(module, "__file__", None) or "a package without a file"
        raise ConfigError(
            f"model.target={target}: {module_name} ({place}) has no {path!r}"
            f"{did_you_mean(path, [name for name in names if not name.startswith('_')])}"
        ) from error


def failure(what: str, error: BaseException) -> str:
    """Return one line about an exception in the user's code."""
    text = " ".join(str(error).split())
    return f"{what} failed: {type(error).__name__}{f': {text}' if text else ''}"


def add_folder(folder: str | None) -> None:
    """Search a folder for modules, after all others, so that it hides no installed package."""
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)


def _look_up(module: ModuleType, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _without_suffix(module_name: str, path: str) -> str:
    """Return a hint for the name of a file where that of a module belongs."""
    stem = module_name.removesuffix(".py")
    return f"; did you mean {stem}:{path}?" if stem != module_name else ""


def _is_importable(value: Any) -> bool:
    """Whether the object is found under its name, in a module that is not the program itself."""
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module in (None, _MAIN) or path is None or "<" in path:
        return False
    try:
        return _look_up(sys.modules[module], path) is value
    except (KeyError, AttributeError):
        return False


def _name_of(module: str) -> str:
    """Return the name of a module, and for the program that of its file."""
    main = sys.modules.get(_MAIN)
    if module != _MAIN or main is None:
        return module
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else module


def _folder_of(module: str) -> str | None:
    """Return the folder that a module is imported from; None if it has no file."""
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:
        return None
    path = Path(file).resolve()
    depth = module.count(".") + (path.name == "__init__.py")
    return str(path.parents[depth])
