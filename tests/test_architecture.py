"""Which package may import which, and which file may import a heavy library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import pipeline
from tests.helpers.fake_store import FakeStore

ROOT = Path(pipeline.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """Path within the package."""
    return path.relative_to(ROOT).as_posix()


BOTTOM = {
    *("delimited", "devices", "errors", "events", "exclusive", "files", "hub_errors", "native"),
    "threads",
}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "threads": set(),
    "devices": {"errors"},
    "delimited": {"errors"},
    "events": {"errors"},
    "exclusive": {"errors", "files"},
    "files": {"errors"},
    "hub_errors": set(),
    "native": set(),
    "config": {"errors"},
    "store/format": {"errors"},
    "objects": {"errors", "files"},
    "store": {"store/format", "objects", *BOTTOM},
    "sources": {"store/format", "objects", "config", *BOTTOM},
    "audio": {"sources", "store/format", *BOTTOM},
    "encoders": {"store/format", "config", *BOTTOM},
    "testing": {"encoders", "store/format", "config", *BOTTOM},
    "heads": {"config", *BOTTOM},
    "feed": {"heads", "store", "store/format", "config", *BOTTOM},
    "spans": {"store", "store/format", "config", *BOTTOM},
    "transforms": {"store", "store/format", "config", *BOTTOM},
    "probing": {"feed", "heads", "spans", "store", "store/format", "tokens", "config", *BOTTOM},
    "comparing": {"probing", "store", "store/format", "config", *BOTTOM},
    "tokens": {"feed", "spans", "store", "store/format", "config", "objects", *BOTTOM},
    "extract": {"encoders", "audio", "sources", "store", "store/format", "config", *BOTTOM},
    "online": {"encoders", "extract", "feed", "store", "store/format", "config", *BOTTOM},
    "predict": {
        *("audio", "config", "encoders", "extract", "heads", "sources", "store", "store/format"),
        *("spans", "transforms", *BOTTOM),
    },
}
"""The packages that each package may import: cli → online, predict → probing, transforms, feed,
spans, extract → heads, encoders, audio, sources, store → config → errors. What is not listed
(`cli`, the public names) may import everything."""
CONFINED = {
    "datasets": {
        "sources/hub.py",
        "sources/repository/files.py",
        "sources/repository/source.py",
        "feed/hf.py",
    },
    "huggingface_hub": {
        "encoders/hub/checkpoint.py",
        "hub_errors.py",
        "sources/repository/converted.py",
        "sources/repository/files.py",
        "sources/repository/remote.py",
        "sources/repository/source.py",
        "transforms/push/hub.py",
    },
    "fsspec": {"objects/filesystem.py"},
    "ray": {
        "extract/executors/ray.py",
        "extract/executors/ray_access.py",
        "extract/executors/ray_cluster.py",
        "extract/planning/ray_probing.py",
        "online/code_transfer.py",  # its cloudpickle
    },
    "grpc": {"extract/executors/ray_access.py"},
    "obstore": {"objects/library.py", "objects/profiles.py"},
    "boto3": {"objects/profiles.py"},
    "botocore": {"objects/profiles.py"},
    "hydra": {"config/loading.py"},
    "omegaconf": {"config/loading.py"},
    "matplotlib": {"probing/report/charts.py"},
    "soundfile": {"audio/backends/soundfile.py"},
    "torchcodec": {"audio/backends/torchcodec.py", "sources/torchcodec_stand_in.py"},
    "pytest": {"testing/encoders.py", "testing/suite.py"},
    "transformers": {"encoders/wav2vec2/huggingface.py"},
}
LAZY = {
    "feed/hf.py",
    "sources/hub.py",
    "sources/repository/files.py",
    "sources/repository/source.py",
}
"""Modules that import a confined library, and that no other module imports when it is loaded."""
PURE = (
    *sorted(name_of(path) for path in (ROOT / "store" / "format").glob("*.py")),
    "encoders/windows.py",
    "store/read/selection.py",
    "store/read/where.py",
)
INPUT_OUTPUT = {
    "os", "io", "pathlib", "shutil", "tempfile", "subprocess", "socket", "fcntl", "mmap", "zarr",
    "pyarrow.parquet", "pyarrow.dataset", "pyarrow.fs", "torch", "time", "random",
}  # fmt: skip


def module_of(path: Path) -> str:
    """`pipeline/store/index.py` → pipeline.store.index; a folder's `__init__.py` is the folder."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path, *, lazy: bool = True) -> tuple[str, ...]:
    """Full names of the modules that a file imports.

    Args:
        path: The file.
        lazy: Also inside of functions, and by `import_module`. What only type checkers see never
            counts.
    """
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8")), path, lazy))


def _imports(tree: ast.AST, path: Path, lazy: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{item.name}" for item in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.args[0].value
        yield from _imports(node, path, lazy)


def package_of(module: str) -> str:
    """`pipeline.store.index` → store; `pipeline.store.format.plan` → store/format."""
    parts = module.split(".")[1:]
    return "store/format" if parts[:2] == ["store", "format"] else (parts or [""])[0]


def test_imports_point_one_way() -> None:
    """A package imports only those that `MAY_IMPORT` lists for it."""
    wrong = {}
    for path in FILES:
        own = package_of(module_of(path))
        found = {package_of(name) for name in imports(path) if name.split(".")[0] == "pipeline"}
        wrong[name_of(path)] = found - {"", own} - MAY_IMPORT.get(own, found)
    assert {name: packages for name, packages in wrong.items() if packages} == {}


def test_programs_import_names_that_exist() -> None:
    """Mypy does not read benchmarks, campaigns and examples, and most of them run by hand only."""
    known = {module_of(path): path for path in FILES}
    programs = (
        ROOT.parent / folder for folder in ("benchmarks", "campaigns", "examples", "scripts")
    )
    missing = []
    for path in (file for folder in programs for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "pipeline"
            ):
                continue
            assert node.module is not None
            text = known[node.module].read_text() if node.module in known else ""
            missing += [
                f"{path.name}: {node.module}.{item.name}"
                for item in node.names
                if f"{node.module}.{item.name}" not in known
                and not re.search(rf"\b{re.escape(item.name)}\b", text)
            ]
    assert missing == []


def test_every_package_is_listed() -> None:
    """A new package needs an entry in `MAY_IMPORT` and a docstring."""
    folders = {path.parent for path in FILES} - {ROOT}
    assert {path.relative_to(ROOT).parts[0] for path in folders} <= {*MAY_IMPORT, "cli"}
    for folder in folders:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_the_allowed_imports_have_no_cycle() -> None:
    """`MAY_IMPORT` itself allows no import cycle."""
    left = dict(MAY_IMPORT)
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"a cycle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_folders_and_files_are_small() -> None:
    """No folder has more than about a dozen modules, and no module more than 400 lines."""
    for folder in {path.parent for path in FILES}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 13, f"{folder} has {len(modules)} modules"
    for path in FILES:
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        assert n_lines <= 400, f"{name_of(path)} has {n_lines} lines: split it by meaning"


FILE_SYSTEM = {"os", "pathlib", "shutil", "fcntl", "tempfile", "mmap"}
MAY_USE_FILES = {
    "store/coordination/lease.py": {"os"},  # which process holds it
    "store/coordination/processes.py": {"os", "pathlib"},  # reads /proc
    "store/native/int8.py": {"pathlib"},  # the compiled code beside it
    "store/native/rows.py": {"pathlib"},  # the same
    "store/read/facts.py": {"pathlib"},  # the type of `FeatureStore.root`
    "transforms/collapse.py": {"pathlib"},  # the type of a path to weights
    "transforms/copy/settings.py": {"pathlib"},  # the user's file of ids
    "transforms/layer_weights.py": {"pathlib"},  # the user's file of weights
    "transforms/push/hub.py": {"pathlib"},  # the type of a file that the hub's library reads
}


def test_only_backends_touch_the_file_system() -> None:
    """Every other module of `store` and `transforms` accesses a store through its backend."""
    for path in FILES:
        name = name_of(path)
        if not name.startswith(("store/", "transforms/")) or name.startswith("store/backend/"):
            continue
        used = {found.split(".")[0] for found in imports(path)} & FILE_SYSTEM
        assert used <= MAY_USE_FILES.get(name, set()), name
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert "open" not in {ast.unparse(call.func) for call in calls}, name


def test_heavy_libraries_are_confined() -> None:
    """Few files import each, so that few change when the library does."""
    for path in FILES:
        for name in imports(path):
            allowed = CONFINED.get(name.split(".")[0])
            assert allowed is None or name_of(path) in allowed, (name_of(path), name)


@pytest.mark.parametrize("library", sorted(CONFINED))
def test_confined_libraries_are_used_where_they_may_be(library: str) -> None:
    """Each confined library has a user; else its entry in `CONFINED` would be out of date."""
    users = {name_of(p) for p in FILES for name in imports(p) if name.split(".")[0] == library}
    assert users <= CONFINED[library]
    assert users


@pytest.mark.parametrize("name", PURE)
def test_pure_files_do_no_input_or_output(name: str) -> None:
    """They import no module that does input or output, and do not call `open` or the like."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    found = set(imports(ROOT / name))
    assert not {
        item for item in found if item in INPUT_OUTPUT or item.split(".")[0] in INPUT_OUTPUT
    }
    inside = {item for item in found if item.startswith("pipeline.")}
    pure = ("pipeline.errors", *(f"pipeline.{p[:-3].replace('/', '.')}" for p in PURE))
    assert all(item.startswith(pure) for item in inside)
    called = {
        n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and hasattr(n.func, "id")
    }
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


MAY_NAME_THE_CODEC = {
    "store/format/codecs.py",
    "config/schema.py",  # the default of a setting
    "store/native/int8.py",  # the destinations of code in C
    "encoders/settings.py",  # the precision of a computation, not of what is stored
    "encoders/checkpoints/tensors.py",  # what a file of weights holds
}
CODEC_NAMES = re.compile(r"half|half_|<?f2|65504(\.0)?|.*\bfloat16\b.*", re.DOTALL)


def test_only_the_codec_names_float16() -> None:
    """Elsewhere the dtype, its size and its range come from the store's codec.

    Docstrings may name it; attributes (`np.float16`, `tensor.half()`), names and strings may not.
    """
    for path in FILES:
        if name_of(path) in MAY_NAME_THE_CODEC:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = None  # a docstring, or the explanation of a constant
            elif isinstance(node, ast.Attribute):
                found.append(node.attr)
            elif isinstance(node, ast.Name):
                found.append(node.id)
            elif isinstance(node, ast.Constant):
                found.append(str(node.value))
        assert [text for text in found if CODEC_NAMES.fullmatch(text)] == [], name_of(path)


def test_modules_have_no_import_cycle() -> None:
    """Modules can be sorted so that each imports only earlier ones, counting lazy imports."""
    graph = {}
    names = {module_of(path): path for path in FILES}
    for name, path in names.items():
        if path.name != "__init__.py":  # the public names are imported when they are used
            graph[name] = {found for found in imports(path) if found in names} - {name}
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"a cycle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


@pytest.mark.parametrize("name", ["store", "feed", "heads", "spans"])
def test_reading_imports_nothing_heavy(name: str) -> None:
    """`store`, `feed`, `heads` and `spans` import neither ray, datasets nor torchaudio."""
    heavy = {"ray", "datasets", "torchaudio"}
    for path in FILES:
        if name_of(path).startswith(f"{name}/") and name_of(path) not in LAZY:
            assert not heavy & {found.split(".")[0] for found in imports(path)}, name_of(path)


TRAINER = """
import importlib, pkgutil, sys
import pipeline
store = pipeline.open_store(sys.argv[1])
store.read(0), store.metadata, store.quarantined
early = {"pandas"} & sys.modules.keys()
for name in pipeline.__all__:
    if name not in ("Predictor", "SpeechEncoder", "load_encoder"):
        getattr(pipeline, name)
import pipeline.feed, pipeline.heads, pipeline.probing, pipeline.spans, pipeline.store
homes = pipeline.store, pipeline.feed, pipeline.heads, pipeline.probing, pipeline.spans
for package in homes:
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in sys.argv[2:]:
            importlib.import_module(module.name)
store.read_many([1, 0]); store.weighted_sum(0, [1, 0, 1]); store.pooled()
store.metadata, store.quarantined, store.record(0)
from pipeline.store.maintain.verify import verify_store
from pipeline.store.maintain.status import read_status
verify_store(store._root), read_status(store._root)
heavy = {"ray", "datasets", "torchaudio", "transformers", "hydra", "soundfile", "torchcodec"}
print(sorted(early | heavy & sys.modules.keys()))
"""


@pytest.mark.slow
def test_a_trainer_loads_no_heavy_library(store: FakeStore) -> None:
    """Opening, reading, verifying and training never load ray, datasets or torchaudio.

    Opening and reading a store does not load pandas either, which pyarrow would load.
    """
    lazy = [module_of(ROOT / name) for name in LAZY]
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, str(store.root), *lazy], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("first", "last", "heavy"),
    [
        ("extract.worker", "extract.stages.decode", {"datasets", "pandas"}),
        ("extract.run", "sources.opening", {"ray", "datasets", "pandas"}),
        ("cli.app", "cli.verbs.predictions", {"torch", "ray", "datasets", "pandas"}),
    ],
)
def test_programs_start_without_heavy_libraries(first: str, last: str, heavy: set[str]) -> None:
    """Workers, extraction and the command line import them only where they are needed."""
    paths = {module_of(path): path for path in FILES}
    left, seen = [f"pipeline.{first}"], set()
    while left:
        name = left.pop()
        if name in paths and name not in seen:
            seen.add(name)
            found = imports(paths[name], lazy=False)
            assert not heavy & {one.split(".")[0] for one in found}, name
            left += found
    assert f"pipeline.{last}" in seen


@pytest.mark.parametrize("name", pipeline.__all__)
def test_public_names_are_there(name: str) -> None:
    """Every name in `__all__` can be imported."""
    assert getattr(pipeline, name).__module__.startswith("pipeline.")


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    """As for any module."""
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = pipeline.nothing_such
    assert set(pipeline.__all__) <= set(dir(pipeline))
