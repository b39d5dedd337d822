#!/usr/bin/env bash
# One strata command as a job on a Ray cluster that is there: RAY_API_SERVER_ADDRESS says where.
#   scripts/launch_ray_job.sh extract dataset.path=/data/clips store=/data/store
# Strata is installed on the cluster's nodes; the store and the dataset are seen by all of them.
set -euo pipefail
python=${STRATA_PYTHON:-python}
address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
remedy="set RAY_AUTH_MODE=token, and put the token of the cluster into RAY_AUTH_TOKEN, into the file"
remedy+=" that RAY_AUTH_TOKEN_PATH names, or into ~/.ray/auth_token (\`ray get-auth-token\` on its head"
remedy+=" node prints it)"

ask() { # print the status of the cluster's answer, with this user's token if RAY_AUTH_MODE=token
    "$python" - "$address/api/version" <<'PYTHON'
import sys
import urllib.error
import urllib.request

headers = {}
try:
    from ray._private.authentication import http_token_authentication

    headers = http_token_authentication.get_auth_headers_if_auth_enabled({})
except ImportError:  # Ray before 2.52, without tokens
    pass
except Exception:
    print("no token")
    sys.exit()
try:
    request = urllib.request.Request(sys.argv[1], headers=headers)
    print(urllib.request.urlopen(request, timeout=30).status)
except urllib.error.HTTPError as error:
    print(error.code)
except (OSError, ValueError) as error:
    print(f"no answer: {error}")
PYTHON
}

status=$(ask)
if [ "$status" = 401 ] && [ -z "${RAY_AUTH_MODE:-}" ]; then # `ray job submit` sends no token unasked
    export RAY_AUTH_MODE=token
    status=$(ask)
fi
case $status in
200) ;;
401 | 403 | "no token")
    echo "error: the Ray cluster at $address refuses this user ($status): $remedy" >&2
    exit 1
    ;;
*)
    echo "error: no Ray cluster at $address ($status): set RAY_API_SERVER_ADDRESS to the address of" \
        "its dashboard, which needs ray[default] there" >&2
    exit 1
    ;;
esac
exec "$python" -m ray.scripts.scripts job submit --address "$address" \
    --entrypoint-num-cpus 1 -- python -m pipeline "$@"
