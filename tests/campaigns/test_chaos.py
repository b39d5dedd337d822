"""A short form of campaigns/chaos, and tests of what it notices; the long form is run by hand."""

from __future__ import annotations

import ast
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import pipeline
from campaigns.chaos import campaign as campaign_module
from campaigns.chaos import checks, on_ray
from campaigns.chaos.__main__ import main
from campaigns.chaos.campaign import Campaign
from campaigns.chaos.corpus import LABELS, copy_corpus, read_store, read_table, write_table
from campaigns.chaos.damage import FILES, Damager
from campaigns.chaos.tally import Tally
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.run_log import RunLog, now
from pipeline.store.format.layout import index_key
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, extract
from tests.helpers.fake_store import FakeStore, make_store

QUICK = ("driver SIGKILL", "EIO on write", "short writes", "missing shard")


@pytest.mark.slow
def test_a_short_campaign_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of some faults strikes real drivers; the store ends as if undisturbed.

    The campaign runs in this process, which has imported what it needs. Its faults on Ray, for
    which two nodes would start, are in the long form; `test_a_dead_worker_is_replaced` kills a
    worker, `test_ray_cluster.py` takes a node away.
    """
    folder = write_folder(tmp_path / "clips", mixed_lengths(12))
    arguments = [str(folder), "--clips=12", "--seed=3", "--each-once"]
    arguments += [f"--faults={len(QUICK)}", "--ray-faults=0"]
    arguments += [f"--only={kind}" for kind in QUICK]
    monkeypatch.setattr(sys, "argv", ["campaigns.chaos", *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        code = main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    printed = capsys.readouterr().out
    assert code == 0, printed[-3000:]
    for kind in QUICK:
        assert re.search(rf"^{kind} +1 ", printed, re.MULTILINE), printed
    assert "unclean ends: 0" in printed, printed
    assert "problems: 0" in printed


def test_the_campaign_looks_for_messages_that_exist() -> None:
    """A message that is worded anew must be changed in the campaign, too."""
    texts = [
        node.value
        for path in Path(pipeline.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for words in (*campaign_module.REFUSED, *on_ray.CONTRADICTIONS, *checks.NO_OWNER):
        assert any(words in text for text in texts), words


class Still(Campaign):
    """A campaign without drivers."""

    def prepare(self) -> None:
        """Nothing to prepare."""

    def strike(self) -> None:
        """No driver is run."""


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of two labels, and a store of it."""
    work = tmp_path_factory.mktemp("extracted")
    corpus = work / "home" / "corpus"
    copy_corpus(write_folder(work / "clips", [1.0] * 8), corpus, 8)
    (work / "disk").mkdir()
    columns = f"dataset.columns=[{','.join(LABELS)}]"
    extract(
        work / "home" / "corpus",
        work / "disk" / "store",
        *INLINE,
        "plan.frames_per_unit=256",
        columns,
    )
    return work


@pytest.fixture
def still(extracted: Path, tmp_path: Path) -> Still:
    """A campaign whose store is what it expects."""
    work = shutil.copytree(extracted, tmp_path / "work")
    made = Still(work, work / "disk", None, random.Random(1))  # type: ignore[arg-type]
    made.expected = read_store(made.store)
    made.recent = ["a fault"]
    made.check(final=True)
    assert made.tally.problems == []
    return made


def test_wrong_features_and_labels_are_counted(still: Still) -> None:
    """For the latest fault, by the name of the utterance."""
    [first, second, *_] = still.expected.features
    still.expected.features[first][0, 0, 0] += 1
    still.expected.labels[second] = ("1", "another")
    still.check()
    assert still.tally.wrong["a fault"] == 2
    assert first in still.tally.problems[0]


def test_lost_utterances_are_counted(still: Still) -> None:
    """Those that were stored at the last check, and at the end those that are not stored."""
    still.store.joinpath(index_key(0)).unlink()
    still.store.joinpath("index.parquet").unlink(missing_ok=True)
    still.check()
    assert still.tally.lost["a fault"] > 0
    before = still.tally.lost["a fault"]
    still.check(final=True)
    assert still.tally.lost["a fault"] > before


def test_a_lost_foreign_file_is_counted(still: Still) -> None:
    """It is nobody's to delete."""
    still.foreign = {still.store / "notes.txt": b"hello"}
    still.check()
    assert still.tally.lost["a fault"] == 1


@pytest.mark.parametrize("name", FILES)
def test_damage_is_repaired_or_undone(still: Still, name: str) -> None:
    """A flipped bit in any file is harmless or reported; the next fault meets a sound store."""
    still.at_rest = [f"bit flipped in {name}"]
    for _ in range(3):
        still.damage()
    assert still.tally.problems == []
    if list(still.store.glob(FILES[name])):
        assert still.tally.tries.total() == 3


def test_unreported_damage_is_counted(still: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    """If verify is blind, a flipped bit in a shard is found by comparison."""

    class Blind:
        ok, damages, orphans = True, (), ()
        units_committed = units_total = 1

    monkeypatch.setattr(campaign_module, "verify_store", lambda store: Blind)
    monkeypatch.setattr(campaign_module, "repair_store", lambda store: None)
    still.at_rest = ["bit flipped in a shard"]
    for _ in range(20):
        still.damage()
    assert still.tally.wrong["bit flipped in a shard"] > 0


def test_kinds_are_known_by_name(still: Still) -> None:
    """A misspelt kind is refused with the nearest one."""
    with pytest.raises(SystemExit, match="did you mean missing shard"):
        still.only(["missing shrd"])
    still.only(["missing shard"])
    assert still.at_rest == ["missing shard"]


def test_the_corpus_is_restored(still: Still) -> None:
    """After any of its damages: the same files with the same bytes."""
    before = {p: p.read_bytes() for p in still.data.rglob("*") if p.is_file()}
    for damage in ("replaced", "rewritten", "truncated", "removed", "renamed", "relabelled"):
        getattr(still.corpus, damage)()
        after = {p: p.read_bytes() for p in still.data.rglob("*") if p.is_file()}
        assert after != before, damage
        still.corpus.restore()
        assert {p: p.read_bytes() for p in still.data.rglob("*") if p.is_file()} == before, damage


def test_labels_are_read_as_they_are_written(tmp_path: Path) -> None:
    """The table that a campaign edits."""
    labels = {"clips/a.wav": ("1", "s1"), "clips/b, c.wav": ("2", 's"2')}
    write_table(tmp_path, labels)
    assert read_table(tmp_path) == labels


def test_counts_of_legs_are_added(tmp_path: Path) -> None:
    """A tally on disk plus that of another leg."""
    one, other = Tally(), Tally()
    one.tries["disk full"], other.tries["disk full"], other.wrong["disk full"] = 2, 3, 1
    one.save(tmp_path / "tally.json")
    other.add(Tally.load(tmp_path / "tally.json"))
    assert re.search(r"^disk full +5 +0 +0 +1$", other.table(), re.MULTILINE)


@pytest.fixture
def finished(tmp_path: Path) -> FakeStore:
    """A store of three units, and the log of one run."""
    store = make_store(tmp_path / "s", [300, 300, 300])
    RunLog(store.root, "first").write("run_started")
    return store


def claim(store: FakeStore, run_id: str) -> None:
    Ledger.open(store.root, 3).claim(1, run_id, "ray", now())


def without_old_claims(found: list[str]) -> list[str]:
    """Leave out the claims of `make_store`, which come before any run."""
    return [line for line in found if not line.startswith("run run ")]


def test_the_campaign_sees_two_drivers_in_log_and_ledger(finished: FakeStore) -> None:
    """A run that logs or claims after the next has started is found; runs in turn are not."""
    claim(finished, "first")
    time.sleep(0.002)
    RunLog(finished.root, "second").write("run_started")
    time.sleep(0.002)
    claim(finished, "second")
    assert without_old_claims(checks.overlaps(finished.root)) == []
    claim(finished, "first")
    assert without_old_claims(checks.overlaps(finished.root)) == [
        "run first claimed slot 5 during another run"
    ]
    RunLog(finished.root, "first").write("unit_committed")
    assert "run first continued after run second had started" in checks.overlaps(finished.root)[0]


@pytest.mark.parametrize("damage", ["half-written", "dead attempt", "flipped bit", "lost unit"])
def test_the_campaign_sees_what_a_driver_left(finished: FakeStore, damage: str) -> None:
    """Garbage, damage and gaps are counted before a repair removes them."""
    undisturbed = checks.contents(finished.root)
    assert checks.compare(finished.root, undisturbed) == []
    shard = finished.path(finished.layout.shard_key(0, 1))
    if damage == "half-written":
        shard.with_name(f"0.{'ab' * 16}.partial").write_bytes(b"half")
    elif damage == "dead attempt":
        slot = finished.claim(1)
        orphan = finished.path(finished.layout.shard_key(0, slot))
        orphan.parent.mkdir(parents=True)
        orphan.write_bytes(b"orphan")
    elif damage == "flipped bit":
        raw = bytearray(shard.read_bytes())
        raw[9] ^= 1
        shard.write_bytes(raw)
    else:
        finished.path(index_key(1)).unlink()
    assert checks.compare(finished.root, undisturbed) != []


def test_every_damage_happens(still: Still) -> None:
    """None of the kinds silently does nothing on a finished store."""
    kinds = Damager(still.store, still.rng).kinds
    happened = {kind for kind in kinds if kind != "bit flipped in the index cache"}
    for kind in happened:
        work = shutil.copytree(still.store, still.work / "copy")
        assert Damager(work, random.Random(2)).kinds[kind](), kind
        shutil.rmtree(work)
