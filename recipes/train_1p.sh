#!/usr/bin/env bash
# SE-ResNet-50 on 1 device for 1 epoch: images/s.
# Usage: bash recipes/train_1p.sh --data_path=DIR [any option of train.py; --help lists them]
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -d "$here/../seresnet_timm" ] && export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"  # in a checkout
exec "${PYTHON:-python3}" -m seresnet_timm recipe train_1p "$@"
