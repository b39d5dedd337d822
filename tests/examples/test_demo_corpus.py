"""The demo's corpus is labelled, balanced and reproducible."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.audio.decode import decode
from pipeline.config import DatasetConfig
from pipeline.sources.opening import open_source
from tests.helpers.pages import ROOT, run_program

pytest.importorskip("espeakng_loader")

pytestmark = pytest.mark.slow
PROGRAM = "examples/demo/corpus.py"


def make(out: Path) -> int:
    """Run the program in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit) as end:
        run_program(monkeypatch, PROGRAM, str(out))
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> list[Path]:
    """Make two corpora, in a process of its own and in this one."""
    root = tmp_path_factory.mktemp("corpora")
    command = [sys.executable, ROOT / PROGRAM, root / "one"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert make(root / "two") == 0
    assert sorted(path.name for path in root.iterdir()) == ["one", "two"]
    return [root / "one", root / "two"]


def test_it_is_reproducible_to_the_byte(corpora):
    """Two runs write the same files."""
    files = [{path.name: path.read_bytes() for path in root.iterdir()} for root in corpora]
    assert files[0] == files[1]


def test_every_voice_says_every_word_in_every_split(corpora):
    """The corpus opens as a source, its labels are balanced, and its clips decode."""
    source = open_source(DatasetConfig("disk", str(corpora[0]), id_column="id"))
    table = source.metadata(range(len(source)))
    assert [column.name for column in source.columns] == ["word", "voice", "language", "split"]
    cells = Counter(
        zip(*(table[name].to_pylist() for name in ("word", "voice", "split")), strict=True)
    )
    assert set(cells.values()) == {1}
    assert len(cells) == len(source) == 14 * 9 * 3
    decoded = [decode(source.segment(row), 16_000).waveform for row in range(0, len(source), 7)]
    assert all(4_000 < len(waveform) < 32_000 for waveform in decoded)
    assert all(waveform.abs().max() > 0.05 for waveform in decoded)


def test_a_second_run_changes_nothing(corpora, capsys):
    """An existing corpus is kept and reported; another directory is refused."""
    before = (corpora[0] / "state.json").stat().st_mtime_ns
    assert make(corpora[0]) == 0
    assert "already there" in capsys.readouterr().out
    assert (corpora[0] / "state.json").stat().st_mtime_ns == before
    assert make((ROOT / PROGRAM).parent) == 1
