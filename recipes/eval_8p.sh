#!/usr/bin/env bash
# Evaluates --resume=CHECKPOINT on all devices of this machine, every image once.
# Usage: bash recipes/eval_8p.sh --data_path=DIR --resume=model_best.pth.tar [any option of validate.py; --help lists them]
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -d "$here/../seresnet_timm" ] && export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"  # in a checkout
exec "${PYTHON:-python3}" -m seresnet_timm recipe eval_8p "$@"
