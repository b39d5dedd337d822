#!/usr/bin/env bash
# One strata command as a job on a Ray cluster that is there: RAY_API_SERVER_ADDRESS says where.
#   scripts/launch_ray_job.sh extract dataset.path=/data/clips store=/data/store
# Strata is installed on the cluster's nodes; the store and the dataset are seen by all of them.
set -euo pipefail
exec ray job submit --address "${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}" \
    --entrypoint-num-cpus 1 -- python -m pipeline "$@"
