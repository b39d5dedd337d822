#!/usr/bin/env bash
# Ray on the nodes of a SLURM job, and one strata command on it:
#   sbatch --nodes=8 scripts/launch_slurm.sh extract dataset.path=/data/clips store=/data/store
# The store and the dataset must be on a file system that all nodes see.
#SBATCH --job-name=strata
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

python=${STRATA_PYTHON:-python}          # of an environment that all nodes see
port=${RAY_PORT:-6379}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')
export RAY_ADDRESS="$address:$port" RAY_USAGE_STATS_ENABLED=0

# Anybody who can connect to a port of Ray can run code there, so this one asks for a token (Ray 2.52
# or newer).
# srun gives the environment to all nodes.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
if [ "$RAY_AUTH_MODE" = token ] && [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then
    RAY_AUTH_TOKEN=$("$python" -c 'import secrets; print(secrets.token_hex(32))')
    export RAY_AUTH_TOKEN
fi

start_ray() { # node, further arguments of ray start
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --overlap --export=ALL -w "$node" \
        "$python" -m ray.scripts.scripts start --block --num-cpus="$SLURM_CPUS_PER_TASK" \
        --object-store-memory=1000000000 "$@" &
}

wait_for_nodes() { # number of nodes; fails after two minutes
    "$python" - "$1" <<'PYTHON'
import os
import sys
import time

import ray

wanted, end = int(sys.argv[1]), time.monotonic() + 120
alive, problem = 0, None
while time.monotonic() < end:
    try:
        if not ray.is_initialized():
            ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
        alive = sum(node["Alive"] for node in ray.nodes())
    except Exception as error:
        problem = error
    if alive >= wanted:
        sys.exit(0)
    time.sleep(0.5)
print(f"{alive} of {wanted} nodes run Ray after two minutes", file=sys.stderr)
if problem:
    print(problem, file=sys.stderr)
sys.exit(1)
PYTHON
}

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
start_ray "$head" --head --node-ip-address="$address" --port="$port"
if ! wait_for_nodes 1; then
    echo "error: Ray did not start on $head at $RAY_ADDRESS: see the lines above; if the port is in" \
        "use, set RAY_PORT" >&2
    exit 1
fi
for node in "${nodes[@]:1}"; do start_ray "$node" --address="$RAY_ADDRESS"; done
wait_for_nodes "${#nodes[@]}" || echo "warning: this run goes on with fewer nodes" >&2

# SLURM sends SIGTERM to this script two minutes before it ends the job; strata lets the units in
# flight end and says how to resume. A requeued job resumes by itself: the command is the same.
"$python" -m pipeline "$@" &
strata=$!
trap 'kill -TERM "$strata"' TERM INT
status=0
wait "$strata" || status=$?
if kill -0 "$strata" 2>/dev/null; then # the trap has ended the first wait
    status=0
    wait "$strata" || status=$?
fi
exit "$status"
