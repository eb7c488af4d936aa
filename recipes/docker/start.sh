#!/usr/bin/env bash
# Runs a command with CANN's variables, which no login shell has set in a container: bash recipes/docker/start.sh COMMAND...
if [ -z "$ASCEND_HOME_PATH" ]; then
  for folder in cann ascend-toolkit; do # the first since CANN 8.5
    set_env=${ASCEND_INSTALL_PATH:-/usr/local/Ascend}/$folder/set_env.sh
    # shellcheck disable=SC1090
    if [ -f "$set_env" ]; then . "$set_env"; break; fi
  done
fi
exec "$@"
