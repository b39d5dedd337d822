"""`open_or_extract` with a process beside the trainer, and real kills.

`test_an_interrupted_trainer_leaves_no_process` starts the program as users do. Elsewhere it runs in
a process that is forked, and that need not import torch.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import soundfile
import torch

import pipeline
from pipeline.errors import ConfigError, IdentityError, RunError, SourceError, StoreNotFoundError
from pipeline.online import opening
from pipeline.online.extraction import _environment
from pipeline.store.coordination.lease import live_holder
from pipeline.store.coordination.ledger import read_claims
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import RATE_HZ, mixed_lengths, voice, write_folder
from tests.helpers.extraction import INLINE, contents, extract
from tests.helpers.forked import Forked, fork_beside

pytestmark = pytest.mark.slow
TINY = {
    "model": "tiny",
    "engine": {"kind": "inline", "threads": 1},
    "plan": {"frames_per_unit": 512},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A minute of audio: eight units."""
    return write_folder(tmp_path_factory.mktemp("online") / "clips", mixed_lengths(40))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Audio that takes ten seconds to encode or longer, in files that are the same."""
    folder = tmp_path_factory.mktemp("many") / "clips"
    folder.mkdir()
    soundfile.write(folder / "clip-0000.wav", voice(9.9, 1), RATE_HZ)
    for i in range(1, 400):
        (folder / f"clip-{i:04d}.wav").hardlink_to(folder / "clip-0000.wav")
    return folder


def opened(clips, store, **options):
    return pipeline.open_or_extract(store, **{**TINY, "dataset": {"path": str(clips)}, **options})


@pytest.fixture
def forked(monkeypatch):
    fork_beside(monkeypatch)


def is_running(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def until_gone(pid, seconds=20):
    end_s = time.monotonic() + seconds
    while is_running(pid):
        assert time.monotonic() < end_s, f"process {pid} still runs"
        time.sleep(0.05)


def test_training_beside_the_extraction(forked, clips, tmp_path, capfd, monkeypatch):
    """The store is that of `extract`, the features those of the store, and progress is shown.

    When the store is complete, no process is started.
    """
    dataset = opened(clips, tmp_path / "store", columns=["speaker"], layers=[3])
    loader = pipeline.make_loader(dataset, max_frames_per_batch=300)
    found = {}
    for batch in loader:
        for i, name in enumerate(batch.ids):
            found[name] = batch.features[i, 0, : batch.lengths[i]].clone()
    extract(clips, tmp_path / "reference", *INLINE)
    assert contents(tmp_path / "store") == contents(tmp_path / "reference")
    store = pipeline.open_store(tmp_path / "reference")
    assert sorted(found) == sorted(store.ids)
    for name, features in found.items():
        assert torch.equal(features, store.read(name, layers=[3])[0])
    lines = capfd.readouterr().err
    assert "the first unit is committed" in lines
    assert re.search(r"ended after .*: 7 new units, 7 of 7 committed", lines)
    assert live_holder(tmp_path / "store") is None
    monkeypatch.setattr(opening, "Extraction", None)
    assert len(opened(clips, tmp_path / "store")) == len(store)
    with pytest.raises(IdentityError, match="layers"):
        opened(clips, tmp_path / "store", extract={"layers": [1]})


def test_settings_are_checked_before_a_process_starts(tmp_path, monkeypatch):
    """With the names that the command has."""
    monkeypatch.setattr(opening, "Extraction", None)
    for given, message in [
        (([], {"detaset": {}}), "unknown setting detaset"),
        ((["dataset.pth=x"], {}), "unknown setting dataset.pth"),
        (([], {"rank": 2, "world_size": 2}), "rank is 2; expected 0 to 1"),
        (([], {"config": pipeline.config.load_config(), "model": "tiny"}), "both given"),
    ]:
        with pytest.raises(ConfigError, match=message):
            pipeline.open_or_extract(tmp_path / "store", *given[0], **given[1])
    with pytest.raises(StoreNotFoundError, match="no kind of store"):
        pipeline.open_or_extract("sftq://host/store")
    with pytest.raises(ConfigError, match="expected its path"):
        pipeline.open_or_extract(["a", "b"])


def test_an_extraction_that_cannot_start_is_an_error(forked, tmp_path):
    """At once, with the error of `strata extract`."""
    with pytest.raises(SourceError, match="nowhere"):
        opened(tmp_path / "nowhere", tmp_path / "store")


TRAINER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
import pipeline
from tests.online.test_process import opened
dataset = opened(sys.argv[1], sys.argv[2])
if not os.fork():
    dataset.stop()
    os._exit(0)
os.wait()
print(dataset._extraction.pid, flush=True)
for batch in pipeline.make_loader(dataset, max_frames_per_batch=512):
    print(batch.ids[0], flush=True)
"""


FORKING_TRAINER = (
    """
import os, runpy, subprocess, sys
real = subprocess.Popen

def popen(command, **options):
    def run():
        os.closerange(3, 1024)  # else the other process waits for this one to start a program
        sys.argv = command[2:]
        os.environ.update(options["env"])
        try:
            runpy.run_module(command[2], run_name="__main__")
        finally:
            os._exit(0)
    return real(command, preexec_fn=run, **options)

subprocess.Popen = popen
"""
    + TRAINER
)
"""A trainer that forks the process beside it."""


def wait_for_batch(trainer):
    """Wait until a trainer has a batch; return the process that extracts beside it."""
    pid = int(trainer.stdout.readline())
    trainer.stdout.readline()
    return pid


def n_lost(store):
    """Units that were begun and are not committed."""
    return len(read_claims(store)) - len(list(store.glob("index/unit-*.parquet")))


def test_an_interrupted_trainer_leaves_no_process(many, tmp_path):
    """Ctrl-C ends both; the store is free and sound, without the units in hand.

    A process that inherits the dataset, such as a worker of a DataLoader, does not stop it.
    """
    store = tmp_path / "store"
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(many), str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    pid = wait_for_batch(trainer)
    assert is_running(pid)
    os.killpg(trainer.pid, signal.SIGINT)
    _, lines = trainer.communicate(timeout=30)
    assert not is_running(pid)
    assert "KeyboardInterrupt" in lines
    assert live_holder(store) is None
    assert n_lost(store) <= 2  # one that was encoded, one that was decoded
    assert verify_store(store).ok


def test_a_job_reads_what_another_one_commits_and_takes_over(forked, many, tmp_path, capfd):
    """When the other one is killed, its extraction ends, too; no unit that it committed is lost."""
    store = tmp_path / "store"
    first = Forked(FORKING_TRAINER, many, store)
    pid = wait_for_batch(first)
    dataset = opened(many, store)
    batches = iter(pipeline.make_loader(dataset, max_frames_per_batch=512))
    lines = capfd.readouterr().err
    while "in use by process" not in lines:
        next(batches)
        lines += capfd.readouterr().err
    assert f"is in use by process {pid} on" in lines
    first.kill()
    first.communicate(timeout=30)
    until_gone(pid)
    n_then = len(read_claims(store))
    while len(read_claims(store)) < n_then + 3:
        next(batches)
    batches.close()
    assert dataset._extraction.pid is None
    assert live_holder(store) is None
    claims = Counter(claim.unit for claim in read_claims(store))
    assert sum(n > 1 for n in claims.values()) <= 2  # the units in hand of the first job
    assert verify_store(store).ok


def test_a_killed_extraction_is_an_error_and_can_be_continued(forked, many, tmp_path):
    """The loader says so, and does not hang; a new iteration starts it again."""
    dataset = opened(many, tmp_path / "store")
    pid = dataset._extraction.pid
    loader = pipeline.make_loader(dataset, max_frames_per_batch=512)
    batches = iter(loader)
    next(batches)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunError, match=r"was killed by signal 9.*run the same program again"):
        list(batches)
    loader.set_epoch(0)
    for _ in loader:
        again = dataset._extraction.pid
        assert is_running(again)
        break
    assert again != pid
    assert not is_running(again)


def ray_environment(pid):
    """Environment of the Ray that a process has started, as far as it is about access."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"gcs_server" in (path / "cmdline").read_bytes():
                lines = (path / "environ").read_text().split("\0")
                return [line for line in lines if line.startswith("RAY_AUTH")]
    raise AssertionError(f"process {pid} runs no Ray")


@pytest.mark.ray
def test_ray_extracts_beside_the_trainer(forked, clips, tmp_path, monkeypatch):
    """All utterances come in epoch 0, and Ray ends with it; RAY_AUTH_MODE=disabled is obeyed."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    engine = {"kind": "ray", "workers": 1, "threads": 1}
    dataset = opened(clips, tmp_path / "store", engine=engine)
    pid = dataset._extraction.pid
    assert ray_environment(pid) == ["RAY_AUTH_MODE=disabled"]
    loader = pipeline.make_loader(dataset, max_frames_per_batch=300)
    names = [name for batch in loader for name in batch.ids]
    assert sorted(names) == pipeline.open_store(tmp_path / "store").ids
    assert len(names) == 40
    until_gone(pid)
    assert verify_store(tmp_path / "store").ok


def test_a_rank_extracts_on_its_own_gpu(monkeypatch):
    """The process sees only the GPU of its trainer; a process without ranks sees all."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in _environment()
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert _environment()["CUDA_VISIBLE_DEVICES"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    assert _environment()["CUDA_VISIBLE_DEVICES"] == "7"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert _environment()["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_complete_store_is_extended_where_settings_ask_for_it(forked, tmp_path):
    """Files that were fixed are retried, and dropped utterances restored; without that, neither."""
    clips = write_folder(tmp_path / "clips", mixed_lengths(4))
    broken = sorted(clips.glob("*.wav"))[2]
    content = broken.read_bytes()
    broken.write_bytes(b"no sound")
    store = tmp_path / "store"
    extract(clips, store, *INLINE, "run.max_quarantined=1")
    dropped = pipeline.open_store(store).ids[0]
    pipeline.drop(store, ids=[dropped], confirm=True)
    broken.write_bytes(content)
    lenient = {"run": {"max_quarantined": 1.0}}
    assert len(opened(clips, store, **lenient)) == 2
    asked = {"retry_quarantined": True, "restore_dropped": True}
    loader = pipeline.make_loader(opened(clips, store, **asked), max_frames_per_batch=300)
    found = [name for batch in loader for name in batch.ids]
    assert sorted(found) == sorted(path.name for path in clips.glob("*.wav"))
