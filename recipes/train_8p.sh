#!/usr/bin/env bash
# SE-ResNet-50 on all devices of this machine for 100 epochs: accuracy.
# Usage: bash recipes/train_8p.sh --data_path=DIR [any option of train.py; --help lists them]
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -d "$here/../seresnet_timm" ] && export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"  # in a checkout
exec "${PYTHON:-python3}" -m seresnet_timm recipe train_8p "$@"
