#!/usr/bin/env bash
# SE-ResNet-50 on 1 device for 1 epoch: images/s.
# Usage: bash recipes/train_1p.sh --data_path=DIR [any option of train.py; --help lists them]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" train_1p "$@"
