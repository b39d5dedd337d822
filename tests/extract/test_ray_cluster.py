"""A cluster of two nodes, simulated on this machine: nodes are added, drained and lost."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.extract.executors import ray as ray_module
from pipeline.extract.worker import UnitReport
from pipeline.store.coordination.worker_failures import read_failures
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import write_folder
from tests.helpers.extraction import contents, extract, overrides
from tests.helpers.forked import Forked, finish
from tests.helpers.ray_workers import RayWorkers

pytestmark = [pytest.mark.ray, pytest.mark.slow]

N_CLIPS = 24
PREEMPTION = 2
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
"""Nobody reads the logs."""
RAY = ("engine=ray", "engine.workers=2", "engine.threads=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with one clip per unit."""
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", [4.9] * N_CLIPS)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "s"
    extract(folder, store, "engine=inline", "engine.threads=1", "plan.frames_per_unit=256")
    return store


@pytest.fixture(scope="module")
def cluster(ray_workers: RayWorkers) -> Iterator[Any]:
    """A head node with one CPU; tests add and remove nodes."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()  # the Ray that other tests share has one node
    with ray_workers.forked():
        made = Cluster(
            initialize_head=True,
            head_node_args={
                **NODE,
                "include_dashboard": False,  # an agent of the node exports the metrics
                "_system_config": {"metrics_report_interval_ms": 500},
            },
        )
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


class Watch(Observer):
    """Calls a function once both nodes have committed units; records which worker worked when."""

    def __init__(self, act) -> None:
        self.act = act
        self.acted_s = 0.0
        self.workers: list[tuple[float, str]] = []
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def unit_committed(self, report: UnitReport) -> None:
        self.workers.append((time.monotonic(), report.worker))
        if not self.acted_s and len({worker for _, worker in self.workers}) == 2:
            self.act()
            self.acted_s = time.monotonic()


def slow_decode(audio, rate_hz):
    """A slow decoder, so that both nodes have work and units are in flight during the fault."""
    import time

    from pipeline.audio.decode import decode

    time.sleep(0.4)
    return decode(audio, rate_hz)


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    """Ship this module's functions to workers, which cannot import it."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def configured(folder: Path, store: Path):
    return load_config(overrides(folder, store, *RAY, "plan.frames_per_unit=256"))


def test_a_lost_node_is_no_failure_of_a_unit(
    folder: Path, undisturbed: Path, tmp_path: Path, cluster: Any
) -> None:
    """Its unit is retried on the other node, where no second worker has room."""
    second = cluster.add_node(**NODE)
    watch = Watch(lambda: cluster.remove_node(second, allow_graceful=False))
    status = run.extract(configured(folder, tmp_path / "s"), watch, decode=slow_decode)
    assert watch.acted_s
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
    assert len({worker for when, worker in watch.workers if when > watch.acted_s + 5}) <= 1
    assert not read_failures(tmp_path / "s"), watch.notes
    assert contents(tmp_path / "s") == contents(undisturbed)
    assert verify_store(tmp_path / "s").ok


def test_a_draining_node_gets_no_further_unit(
    folder: Path, undisturbed: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its unit in flight completes; no attempt is lost, and the other node does the rest."""
    from ray._private.worker import global_worker

    from pipeline.store.coordination.ledger import read_claims

    monkeypatch.setattr(ray_module, "DRAIN_CHECK_S", 0.2)
    second = cluster.add_node(**NODE)

    def give_notice() -> None:
        deadline_ms = int((time.time() + 120) * 1000)
        accepted, why = global_worker.gcs_client.drain_node(
            second.node_id, PREEMPTION, "spot instance is needed", deadline_ms
        )
        assert accepted, why

    watch = Watch(give_notice)
    status = run.extract(configured(folder, tmp_path / "s"), watch, decode=slow_decode)
    late = {worker for when, worker in watch.workers if when > watch.acted_s + 2}
    assert len(late) == 1
    assert status.utterances_ok == N_CLIPS
    assert {claim.attempt for claim in read_claims(tmp_path / "s")} == {1}
    assert contents(tmp_path / "s") == contents(undisturbed)
    cluster.remove_node(second)


DRIVER = """
import sys
from pipeline.config import load_config
from pipeline.extract import run
run.extract(load_config(sys.argv[1:]))
print("done", flush=True)
sys.stdin.read()
"""


def test_metrics_are_exported(folder: Path, tmp_path: Path, cluster: Any) -> None:
    """Units, audio seconds and real-time factor per worker, where Prometheus looks for them.

    The driver is a new process: before 2.60, Ray exports the metrics of a process only for the
    first session in it. It lives until the metrics have been read.
    """
    one = ("engine=ray", "engine.workers=1", "engine.threads=1")
    settings = overrides(folder, tmp_path / "s", *one, "plan.frames_per_unit=256")
    driver = Forked(DRIVER, *settings, environment=os.environ | {"RAY_ADDRESS": cluster.address})
    assert driver.stdout.readline() == "done\n"
    _check_metrics()
    finish(driver)


def _check_metrics() -> None:
    import ray

    wanted = {"ray_strata_units", "ray_strata_audio_seconds", "ray_strata_realtime_factor"}
    end = time.monotonic() + 60
    while True:
        node = next(node for node in ray.nodes() if node["Alive"])  # its port is known late
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = ""
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            text = answer.read().decode()
        lines = [line for line in text.splitlines() if line.startswith("ray_strata_units")]
        n_units = sum(float(line.split()[-1]) for line in lines if "_created" not in line)
        if n_units >= N_CLIPS and all(name in text for name in wanted):
            return
        assert time.monotonic() < end, f"{n_units} units; {wanted} expected at {address}: {text}"
        time.sleep(0.5)
