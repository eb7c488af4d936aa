#!/usr/bin/env bash
# SE-ResNet-50 on several machines; run it on each, with its --node_rank.
# Usage: bash recipes/train_multinode.sh --data_path=DIR --batch_size=TOTAL --nnodes=N --node_rank=R --local_addr=IP --master_addr=IP [any option of train.py; --help lists them]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" train_multinode "$@"
