#!/usr/bin/env bash
# Evaluates --resume=CHECKPOINT on all devices of this machine, every image once.
# Usage: bash recipes/eval_8p.sh --data_path=DIR --resume=model_best.pth.tar [any option of validate.py; --help lists them]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" eval_8p "$@"
