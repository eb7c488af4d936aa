#!/usr/bin/env bash
# `make test-arm`: a selection of the tests on an aarch64 Debian that QEMU emulates, for machines that are not aarch64.
# The system is made once, in $ARM_ROOT (0.7 GB), and its Python packages are collected once, by README's offline command,
# in $ARM_ROOT.wheels (0.4 GB); both are kept. This machine unpacks them (1 GB), as pip takes half an hour under emulation.
# Needs root for chroot. What runs in the system is in inside.py; its pip resolves README's commands. Where all that is
# not possible, one sentence says why, with exit code 0, and 1 where CI is set.
# Environment: ARM_ROOT, ARM_MIRROR (of Debian; the one that apt uses), QEMU_CPU (neoverse-n1, the nearest to a Kunpeng 920;
# on QEMU 7.2's own choice, `max`, torch 2.10 ends with SIGILL), PYTHON (python3), ARM_ALL=1 (also resolves the command for
# newer versions, which is slow).
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
root=${ARM_ROOT:-$HOME/.cache/seresnet_timm/aarch64}
wheels=$root.wheels
python=${PYTHON:-python3}
packages=python3,python3-venv,python3-dev,gcc,libjpeg62-turbo-dev,ca-certificates
torch_npu=2.10.0.post7
registered=/proc/sys/fs/binfmt_misc/qemu-aarch64

skip() {
  echo "THE TESTS ON AN EMULATED AARCH64 MACHINE DO NOT RUN HERE: $*" >&2
  exit $((${#CI} > 0))
}

CI=${CI:-}
[ "$(uname -m)" != aarch64 ] || skip 'this machine is aarch64: make test is more'
[ "$(id -u)" = 0 ] || skip 'they need root, for chroot'
missing=()
for program in qemu-aarch64-static:qemu-user-static update-binfmts:binfmt-support debootstrap:debootstrap git:git; do
  PATH=$PATH:/usr/sbin command -v "${program%:*}" >/dev/null || missing+=("${program#*:}")
done
((${#missing[@]} == 0)) || skip "not installed: ${missing[*]} (Debian: apt-get install ${missing[*]})"

# the kernel starts aarch64 programs with QEMU; flag F: also where QEMU itself is not in sight
[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc 2>/dev/null ||
  skip 'binfmt_misc cannot be mounted here'
[ -e $registered ] || update-binfmts --enable qemu-aarch64 2>/dev/null || true
grep -q '^flags:.*F' $registered 2>/dev/null || skip 'the kernel does not know qemu-aarch64 (update-binfmts --enable)'

if [ ! -f "$root/etc/debian_version" ]; then
  mirror=${ARM_MIRROR:-$(grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list* 2>/dev/null | head -n 1 | tr -d ' ' || true)}
  rm -rf --one-file-system "$root.new"
  mkdir -p "$root.new"
  echo "Making $root, about five minutes; the tests take five minutes of CPU time, more on a busy machine ..."
  unshare --mount --pid --fork --kill-child debootstrap --arch=arm64 --variant=minbase --include="$packages" bookworm \
    "$root.new" ${mirror:+"$mirror"} >"$root.log" 2>&1 || skip "debootstrap failed, see $root.log"
  mv "$root.new" "$root"
fi
version=$(basename "$(readlink "$root/usr/bin/python3")")  # python3.11
venv=$root/opt/seresnet_timm

# README's offline command, for this system's Python; with what the tests need
stamp=$(cat "$checkout/setup.cfg" "$checkout/seresnet_timm/ascend/constraints/torch_npu-2.10.0.txt" <(echo "$torch_npu $version") |
  sha256sum)
if [ "$(cat "$wheels/.made" 2>/dev/null)" != "$stamp" ]; then
  echo "Collecting its packages in $wheels ..."
  PYTHON=$python bash "$checkout/recipes/wheelhouse.sh" --machine aarch64 --python "${version#python}" \
    --torch-npu $torch_npu --also pip,wheel,pytest,pytest-timeout,scikit-learn --out "$wheels"
  echo "$stamp" >"$wheels/.made"
fi
if [ "$(cat "$venv/.made" 2>/dev/null)" != "$stamp" ]; then
  echo "Unpacking them in $venv ..."
  rm -rf --one-file-system "$venv"
  chroot "$root" "/usr/bin/$version" -m venv --without-pip /opt/seresnet_timm
  mapfile -t files < <(find "$wheels" -maxdepth 1 -name '*.whl' ! -name 'seresnet_timm-*')
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --only-binary=:all: --implementation cp \
    --python-version "${version#python}" --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_26_aarch64 --platform manylinux_2_24_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux2014_aarch64 --platform linux_aarch64 \
    --target "$venv/lib/$version/site-packages" "${files[@]}"
  echo "$stamp" >"$venv/.made"
fi

# the sources as git knows them, changes included; the wheels; what pip needs of this machine
rm -rf --one-file-system "$root/src" "$root/wheels"
mkdir -p "$root/src"
git -C "$checkout" ls-files -z --cached --others --exclude-standard |
  (cd "$checkout" && tar --null --files-from - --ignore-failed-read --create 2>/dev/null) | tar -x -C "$root/src"
cp -rl "$wheels" "$root/wheels" 2>/dev/null || cp -r "$wheels" "$root/wheels"
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/xdg/pip /etc/ssl/certs/ca-certificates.crt; do
  [ ! -e "$file" ] || { mkdir -p "$root$(dirname "$file")" && cp -rL "$file" "$root$(dirname "$file")/"; }
done
keep=()
for name in $(compgen -e | grep -E '^(ARM_ALL|PIP_(INDEX_URL|EXTRA_INDEX_URL|CERT|DEFAULT_TIMEOUT)|.*_CA_BUNDLE|SSL_CERT_FILE|.*_(proxy|PROXY))$' || true); do
  keep+=("$name=${!name}")
done
# shellcheck disable=SC2016  # "$@" is for the inner shell
exec nice -n 10 unshare --mount --pid --fork --kill-child sh -c '
  mount --make-rprivate / && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && shift && exec "$@"' sh "$root" \
  chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  QEMU_CPU="${QEMU_CPU:-neoverse-n1}" "${keep[@]}" python3 /src/tests/arm/inside.py "$@"
