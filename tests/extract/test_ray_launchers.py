"""The launch scripts and RAY_ADDRESS, against clusters that `ray start` makes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.helpers.corpus import write_folder
from tests.helpers.extraction import INLINE, contents, extract, overrides
from tests.helpers.forked import finish, forked_strata
from tests.helpers.ray_start import clean_environment, free_port, ray_start

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SECRET = "the-token-of-this-cluster"
STAND_INS = {
    "scontrol": 'test "$*" = "show hostnames first,second" && printf "first\\nsecond\\n"',
    "hostname": "echo 127.0.0.1",
    # Runs the command here, whatever the node, and records what it was asked for; without what
    # Ray starts besides for people.
    "srun": """
while [ "${1#-}" != "$1" ]; do
    [ "$1" = -w ] && { shift; node=$1; }
    shift
done
echo "$node ${RAY_AUTH_MODE:-} ${#RAY_AUTH_TOKEN} $*" >>"$HOME/srun.log"
case "$*" in *" start "*) set -- "$@" --include-log-monitor=false ;; esac
case "$*" in *--head*) set -- "$@" --include-dashboard=false --no-monitor ;; esac
exec "$@"
""",
}
"""SLURM's commands, as far as the script uses them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", [2.0] * 8)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    store = tmp_path_factory.mktemp("undisturbed") / "s"
    extract(folder, store, *INLINE)
    return contents(store)


@dataclass(frozen=True)
class Started:
    """A cluster that runs.

    Attributes:
        address: Of its head node.
        environment: Of the user: where the cluster is. The home folder holds the token.
    """

    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A cluster as `ray start --head` makes it where there is a token."""
    work = tmp_path_factory.mktemp("cluster")
    (work / "home").mkdir()
    environment = clean_environment(work / "home")
    (work / "home" / ".ray").mkdir()
    (work / "home" / ".ray" / "auth_token").write_text(SECRET)
    port = free_port()
    with ray_start(work / "ray", environment, dashboard_port=port) as address:
        mine = {
            "RAY_ADDRESS": address,
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
            "STRATA_PYTHON": sys.executable,
        }
        yield Started(address, environment | mine)


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=170)


def arguments(folder: Path, store: Path) -> list[str]:
    ray = ("engine=ray", "engine.workers=1", "engine.threads=1")
    return ["extract", *overrides(folder, store, *ray)]


def test_extract_and_a_job_use_a_cluster(
    started: Started, folder: Path, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """With its token, which nobody mentions; the stores equal an inline one.

    `test_metrics_are_exported` has a new process and a cluster without a token.
    """
    command = arguments(folder, tmp_path / "extract")
    finish(forked_strata(*command, environment=started.environment), 170)
    assert contents(tmp_path / "extract") == undisturbed
    job = [str(ROOT / "scripts/launch_ray_job.sh"), *arguments(folder, tmp_path / "job")]
    done = run(job, started.environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert contents(tmp_path / "job") == undisturbed


def test_a_refusal_names_the_remedy(started: Started, folder: Path, tmp_path: Path) -> None:
    """In one line, for `extract` and for the job: a token of another cluster, or none."""
    without = started.environment | {"HOME": str(tmp_path)}
    another = started.environment | {"RAY_AUTH_TOKEN": "of another"}
    process = forked_strata(*arguments(folder, tmp_path / "s"), environment=without)
    ends = [(process.communicate()[1], process.returncode)]
    job = [str(ROOT / "scripts/launch_ray_job.sh"), *arguments(folder, tmp_path / "s")]
    for environment in (without, another):
        done = run(job, environment)
        ends.append((done.stderr, done.returncode))
    for printed, code in ends:
        assert code == 1, printed
        last = printed.splitlines()[-1]
        for words in ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"):
            assert words in last, printed
        assert "Traceback" not in printed
    assert not (tmp_path / "s").exists()


class Version(BaseHTTPRequestHandler):
    """The answer of the dashboard of a cluster without a token."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/version" else 404)
        self.end_headers()

    def log_request(self, *arguments: object) -> None:
        """Print nothing."""


PYTHON = """#!/usr/bin/env bash
[ "$1" = - ] && exec "$REAL_PYTHON" "$@"
echo "${RAY_AUTH_MODE:-no mode}" "$@"
"""
"""Asks the dashboard, and prints what else it would run."""


def test_a_job_uses_a_cluster_without_a_token(tmp_path: Path) -> None:
    """The script does not demand one; the command is that of the job above, which really runs."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    with HTTPServer(("127.0.0.1", 0), Version) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        environment = clean_environment(tmp_path) | {
            "RAY_API_SERVER_ADDRESS": address,
            "STRATA_PYTHON": str(tmp_path / "python"),
            "REAL_PYTHON": sys.executable,
        }
        done = run([str(ROOT / "scripts/launch_ray_job.sh"), "plan", "store=s"], environment)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"no mode -m ray.scripts.scripts job submit --address {address} "
        "--entrypoint-num-cpus 1 -- python -m pipeline plan store=s\n"
    )


def test_a_job_without_a_cluster_names_the_address(folder: Path, tmp_path: Path) -> None:
    """Nobody listens where the dashboard should be."""
    address = f"http://127.0.0.1:{free_port()}"
    environment = clean_environment(tmp_path) | {"RAY_API_SERVER_ADDRESS": address}
    done = run([str(ROOT / "scripts/launch_ray_job.sh"), "status", "s"], environment)
    assert done.returncode == 1
    assert f"no Ray cluster at {address}" in done.stderr
    assert "RAY_API_SERVER_ADDRESS" in done.stderr


def test_a_slurm_job_starts_a_guarded_cluster(
    folder: Path, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """On all of its nodes, with one token; SLURM's own commands are stand-ins."""
    home = tmp_path / "home"
    commands = tmp_path / "bin"
    for made in (home, commands):
        made.mkdir()
    for name, text in STAND_INS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)
    environment = clean_environment(home)
    environment |= {
        "PATH": f"{commands}:{environment['PATH']}",
        "RAY_PORT": str(free_port()),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_NODELIST": "first,second",
    }
    store = tmp_path / "store"
    done = run([str(ROOT / "scripts/launch_slurm.sh"), *arguments(folder, store)], environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "fewer nodes" not in done.stderr
    assert contents(store) == undisturbed
    log = [line.split() for line in (home / "srun.log").read_text().splitlines()]
    starts = [words for words in log if "start" in words]
    assert [words[0] for words in starts] == ["first", "second"]
    assert all(words[1:3] == ["token", "64"] for words in starts)
