#!/usr/bin/env bash
# From an empty TPU pod slice to a tuned state file, with gcloud alone. See docs/pods.md.
#
#   scripts/tpu_vm.sh create                  a slice
#   scripts/tpu_vm.sh setup                   this repository and its packages on every host
#   scripts/tpu_vm.sh mount BUCKET            a bucket as /mnt/runs on every host, the shared output folder
#   scripts/tpu_vm.sh run ARGUMENTS...        the same command on every host, e.g. -m rwkv7_jax tune --config gsm8k ...
#   scripts/tpu_vm.sh fetch FROM TO           a file or folder from the first host
#   scripts/tpu_vm.sh delete                  the slice
#
# Settings, from the environment: TPU_NAME, ZONE, and for create ACCELERATOR (v5litepod-256, v5p-128, v6e-16), RUNTIME;
# PYTHON_VERSION (3.12) for setup.
set -euo pipefail
PYTHON_VERSION=${PYTHON_VERSION:-3.12}

usage() {
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

need() {
    for name in "$@"; do
        [[ -n "${!name:-}" ]] || { echo "error: set $name, for example: export $name=..." >&2; exit 2; }
    done
}

on_all() {
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$1"
}

[[ $# -ge 1 ]] || usage
command -v gcloud > /dev/null || { echo "error: no gcloud: install the Google Cloud CLI and log in" >&2; exit 2; }
need TPU_NAME ZONE
action=$1
shift
case "$action" in
    create)
        need ACCELERATOR RUNTIME
        gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" --accelerator-type="$ACCELERATOR" --version="$RUNTIME"
        ;;
    setup)
        archive=$(mktemp --suffix=.tar.gz)
        trap 'rm -f "$archive"' EXIT
        git archive --format=tar.gz --prefix=rwkv7-jax/ -o "$archive" HEAD
        gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:rwkv7-jax.tar.gz" --zone="$ZONE" --worker=all
        # Images come with Pythons from 3.10 on: uv brings the version that is asked for.
        on_all "tar xzf rwkv7-jax.tar.gz && cd rwkv7-jax && python3 -m pip install -q --user uv &&
            python3 -m uv venv -q --clear --python $PYTHON_VERSION .venv &&
            python3 -m uv pip install -q --python .venv/bin/python --constraint constraints.txt -e '.[tpu]'"
        ;;
    mount)
        [[ $# -eq 1 ]] || usage
        on_all "sudo mkdir -p /mnt/runs && sudo chown \$USER /mnt/runs && mountpoint -q /mnt/runs || gcsfuse --implicit-dirs --rename-dir-limit 100000 $1 /mnt/runs"
        ;;
    run)
        [[ $# -ge 1 ]] || usage
        on_all "cd rwkv7-jax && .venv/bin/python $(printf '%q ' "$@")"
        ;;
    fetch)
        [[ $# -eq 2 ]] || usage
        gcloud compute tpus tpu-vm scp --recurse "$TPU_NAME:$1" "$2" --zone="$ZONE" --worker=0
        ;;
    delete)
        gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$ZONE"
        ;;
    *)
        usage
        ;;
esac
