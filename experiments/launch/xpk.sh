#!/usr/bin/env bash
# One run on TPU slices by XPK, which makes a job set like that of tpu_jobset.yaml itself.
#
#   CLUSTER=mine IMAGE=region-docker.pkg.dev/project/images/distill TPU=v5litepod-16 \
#       experiments/launch/xpk.sh NAME --config=configs/lm_logits.py --workdir=/shared/runs/lm
#
# SLICES (1) slices of the kind TPU. /shared is a storage of the cluster (`xpk storage create`).
# XPK starts the pods again as often as RESTARTS (100) says, and the run goes on from its checkpoint.
set -euo pipefail

for name in CLUSTER IMAGE TPU; do
    if [[ -z "${!name:-}" ]]; then
        echo "xpk.sh: expected the variable $name; see the head of this file" >&2
        exit 2
    fi
done
if [[ $# -lt 2 || "$1" == --* ]]; then
    echo "xpk.sh: expected the name of the workload, then the arguments of distill-jax train" >&2
    exit 2
fi
workload="$1"
shift

printf -v command '%q ' distill-jax train "$@"
exec "${XPK:-xpk}" workload create --workload="$workload" --cluster="$CLUSTER" \
    --docker-image="$IMAGE" --tpu-type="$TPU" --num-slices="${SLICES:-1}" \
    --max-restarts="${RESTARTS:-100}" --command="${command% }"
