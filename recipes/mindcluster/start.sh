#!/usr/bin/env bash
# A container of a MindCluster (Volcano) job: runs a recipe on all NPUs of the job, which it reads from the job's
# RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A whole job: recipes/k8s/ascendjob.yaml.
# Usage: bash recipes/mindcluster/start.sh RECIPE --data_path=DIR [any option of train.py]
recipes=$(dirname "${BASH_SOURCE[0]}")/..
exec bash "$recipes/docker/start.sh" bash "$recipes/run.sh" "$@"
