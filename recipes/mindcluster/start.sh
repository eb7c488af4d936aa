#!/usr/bin/env bash
# A container of a MindCluster (Volcano) job: runs a recipe on all NPUs of the job, which it reads from the job's
# RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
# Usage: bash recipes/mindcluster/start.sh RECIPE --data_path=DIR [any option of train.py]
set_env=${ASCEND_INSTALL_PATH:-/usr/local/Ascend}/ascend-toolkit/set_env.sh
# a container's entry point starts no login shell, which would have sourced it
# shellcheck disable=SC1090
[ -z "$ASCEND_HOME_PATH" ] && [ -f "$set_env" ] && . "$set_env"
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" "$@"
