#!/usr/bin/env bash
# SE-ResNet-50 on all devices of this machine for 100 epochs: accuracy.
# Usage: bash recipes/train_8p.sh --data_path=DIR [any option of train.py; --help lists them]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" train_8p "$@"
