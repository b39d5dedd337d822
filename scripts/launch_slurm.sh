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

start_ray() { # node, further arguments of ray start
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --overlap -w "$node" \
        "$python" -m ray.scripts.scripts start --block --num-cpus="$SLURM_CPUS_PER_TASK" \
        --object-store-memory=1000000000 "$@" &
}

start_ray "$head" --head --node-ip-address="$address" --port="$port"
sleep 15
for node in "${nodes[@]:1}"; do start_ray "$node" --address="$RAY_ADDRESS"; done
sleep 15

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
