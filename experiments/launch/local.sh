#!/usr/bin/env bash
# One run in several processes on this machine: to try out what many hosts do.
#
#   experiments/launch/local.sh 2 --config=configs/mnist_hinton.py --workdir=runs/two
#
# Each process takes what devices its environment shows it; on a machine with GPUs, one each:
#
#   DEVICES=gpu experiments/launch/local.sh 8 --config=... --workdir=...
#
# Ctrl-C or SIGTERM stops all of them at one step, with the state saved.
set -uo pipefail

count="${1:-}"
if ! [[ "$count" =~ ^[1-9][0-9]*$ ]]; then
    echo "local.sh: expected the number of processes, then the arguments of distill-jax train" >&2
    exit 2
fi
shift
port="${PORT:-$((20000 + RANDOM % 20000))}"

processes=()
trap 'kill -TERM "${processes[@]:0:1}" 2>/dev/null' TERM INT # one is enough
for ((number = 0; number < count; number++)); do
    if [[ "${DEVICES:-}" == gpu ]]; then
        export CUDA_VISIBLE_DEVICES="$number"
    fi
    "${DISTILL_JAX:-distill-jax}" train "$@" --coordinator="localhost:$port" \
        --num_processes="$count" --process_id="$number" &
    processes+=($!)
done

code=0
for process in "${processes[@]}"; do
    # A signal ends `wait` before the process has ended.
    while
        wait "$process"
        ended=$?
        kill -0 "$process" 2>/dev/null
    do :; done
    if [[ $code -eq 0 ]]; then code=$ended; fi
done
exit "$code"
