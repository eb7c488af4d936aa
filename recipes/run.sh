#!/usr/bin/env bash
# Runs the recipe that is named, for the scripts beside this one: bash recipes/run.sh NAME [options]
# It runs the installed package, and the package of this checkout only if none is installed: the compiled JPEG decoder is
# in the installed one. The plan shows the folder of the package.
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
# `python -m` looks in the current folder first, which may be a checkout; Python 3.10 always does
[ -d seresnet_timm ] && export PYTHONSAFEPATH=1
if [ -d "$checkout/seresnet_timm" ] && ! "$python" -c \
    'import importlib.util, sys; sys.exit(importlib.util.find_spec("seresnet_timm") is None)'; then
  export PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$python" -m seresnet_timm recipe "$@"
