#!/usr/bin/env bash
# A container with the NPUs of this machine, which `docker run` does not give by itself. It needs no Ascend Docker Runtime.
# Usage: bash recipes/docker/run_npu.sh IMAGE DATA OUTPUT COMMAND...
#   bash recipes/docker/run_npu.sh seresnet-timm:npu /data/imagenet output bash recipes/run.sh train_8p --data_path=/data --output /output
# DATA is /data in the container, read-only; OUTPUT is /output. NPUS=0,1 gives these NPUs only.
set -euo pipefail
fail() { echo "run_npu.sh: $*" >&2; exit 2; }
[ $# -ge 4 ] || fail 'usage: run_npu.sh IMAGE DATA OUTPUT COMMAND...'
image=$1 data=$2 output=$3
shift 3
dev=${DEV:-/dev}
[ -d "$data" ] || fail "$data is not a folder"
mkdir -p "$output"

options=()
for name in davinci_manager devmm_svm hisi_hdc; do
  [ -e "$dev/$name" ] || fail "$dev/$name does not exist: install the driver of the NPU on this machine"
  options+=("--device=$dev/$name")
done
wanted=${NPUS:-}
for npu in "$dev"/davinci[0-9]*; do
  number=${npu##*/davinci}
  if [ -e "$npu" ] && { [ -z "$wanted" ] || [[ ",$wanted," == *",$number,"* ]]; }; then
    options+=("--device=$npu")
    given=yes
  fi
done
[ -n "${given:-}" ] || fail "no NPU in $dev${wanted:+ of NPUS=$wanted}"
# what belongs to the driver, and is not in the image
for path in /usr/local/Ascend/driver /usr/local/dcmi /usr/local/bin/npu-smi /etc/ascend_install.info /etc/hccn.conf; do
  [ ! -e "$path" ] || options+=(-v "$path:$path:ro")
done
# the host's network: HCCL uses its interfaces; its shared memory: loader workers fill it. --init: signals reach the
# command from the start, and the processes that it leaves are collected
exec docker run --rm --init --network=host --ipc=host --stop-timeout=300 "${options[@]}" \
  -v "$(realpath "$data"):/data:ro" -v "$(realpath "$output"):/output" "$image" "$@"
