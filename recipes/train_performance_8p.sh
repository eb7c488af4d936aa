#!/usr/bin/env bash
# SE-ResNet-50 on all devices of this machine for 2 epochs: images/s.
# Usage: bash recipes/train_performance_8p.sh --data_path=DIR [any option of train.py; --help lists them]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" train_performance_8p "$@"
