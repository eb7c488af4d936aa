#!/usr/bin/env bash
# Runs a command with CANN's variables, which no login shell has set in a container: bash recipes/docker/start.sh COMMAND...
set_env=${ASCEND_INSTALL_PATH:-/usr/local/Ascend}/ascend-toolkit/set_env.sh
# shellcheck disable=SC1090
[ -z "$ASCEND_HOME_PATH" ] && [ -f "$set_env" ] && . "$set_env"
exec "$@"
