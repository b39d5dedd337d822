"""A release works where nothing else of this repository is: built, installed and run elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import wave
import zipfile
from pathlib import Path

import pytest

import pipeline

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: object, cwd: Path) -> str:
    """Run a command without this repository on its path; return its standard output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_the_wheel_has_the_compiled_code(wheel: Path) -> None:
    """Then it is for this platform; without a compiler it is for any, and has none."""
    has_compiler = any(map(shutil.which, ("cc", "gcc", "clang")))
    has_headers = (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
    is_extended = has_compiler and has_headers and sys.platform == "linux"
    with zipfile.ZipFile(wheel) as files:
        compiled = {Path(n).name for n in files.namelist() if n.endswith((".native", ".so"))}
    libraries = {f"lib{name}.native" for name in ("int8", "rows", "heads", "attention")}
    assert libraries & compiled == (libraries if has_compiler else set())
    assert ("_mapped.abi3.so" in compiled) == is_extended
    assert ("py3-none-any" in wheel.name) != has_compiler
    assert ("cp311-abi3" in wheel.name) == is_extended


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution alone."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=sdist)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a fresh environment: the wheel in it, its dependencies from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--no-compile", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    # a path in a .pth file comes last, and the .pth files there, an editable Strata's, do not count
    dependencies = Path(packages.strip()) / "dependencies.pth"
    dependencies.write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_source_distribution_has_what_a_contributor_needs(sdist):
    """All of the repository's folders, and the documents at its root."""
    names = {path.name for path in sdist.iterdir()}
    folders = [
        "benchmarks",
        "campaigns",
        "conf",
        "docs",
        "examples",
        "pipeline",
        "scripts",
        "tests",
    ]
    assert {*folders, "LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names
    assert (sdist / "examples" / "demo" / "corpus.py").exists()
    assert (sdist / "tests" / "data" / "format-1").is_dir()


def test_the_wheel_holds_the_package_and_its_configuration(wheel):
    """Every module, conf/ and the marker of a typed package, and nothing beside the package."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").rglob("*.py")}
    conf = {f"pipeline/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "conf").rglob("*.yaml")}
    assert modules | conf | {"pipeline/py.typed"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pipeline", "strata_speech"}


def test_the_package_is_imported_from_the_wheel(programs, tmp_path):
    """Every public name, from another directory."""
    code = "import pipeline\nfor name in pipeline.__all__: getattr(pipeline, name)\n"
    printed = run(programs / "python", "-c", code + "print(pipeline.__file__)", cwd=tmp_path)
    assert Path(printed.strip()).is_relative_to(programs.parent)
    assert not Path(printed.strip()).is_relative_to(Path(pipeline.__file__).parent)


def test_the_command_finds_its_configuration(programs, tmp_path):
    """`strata --help`, and a plan, which reads conf/, from another directory."""
    assert "extract" in run(programs / "strata", "--help", cwd=tmp_path)
    (tmp_path / "clips").mkdir()
    with wave.open(str(tmp_path / "clips" / "one.wav"), "wb") as clip:
        clip.setparams((1, 2, 16_000, 0, "NONE", ""))
        clip.writeframes(bytes(2 * 16_000))
    command = (programs / "strata", "plan", "dataset=audiofolder", "dataset.path=clips")
    printed = run(*command, "model=tiny", "store=features", "--json", cwd=tmp_path)
    assert json.loads(printed)["utterances"] == 1
