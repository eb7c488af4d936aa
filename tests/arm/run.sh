#!/usr/bin/env bash
# `make test-arm`: a selection of the tests on an aarch64 Debian that QEMU emulates, for machines that are not aarch64.
# The system is made once, in $ARM_ROOT (0.7 GB, then 1 GB of Python packages), and kept; a run takes about five minutes
# then. Needs root for chroot. What it runs is in inside.py. Where it is not possible, one sentence says why, with exit
# code 0, and 1 where CI is set.
# Environment: ARM_ROOT, ARM_MIRROR (of Debian; the one that apt uses), QEMU_CPU (neoverse-n1, the nearest to a Kunpeng 920;
# on QEMU 7.2's own choice, `max`, torch 2.10 ends with SIGILL).
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
root=${ARM_ROOT:-$HOME/.cache/seresnet_timm/aarch64}
packages=python3,python3-venv,python3-dev,gcc,libjpeg62-turbo-dev,ca-certificates
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
  echo "Making $root, five minutes ..."
  unshare --mount --pid --fork --kill-child debootstrap --arch=arm64 --variant=minbase --include="$packages" bookworm \
    "$root.new" ${mirror:+"$mirror"} >"$root.log" 2>&1 || skip "debootstrap failed, see $root.log"
  mv "$root.new" "$root"
fi

# the sources as git knows them, changes included, and what pip needs of this machine
rm -rf --one-file-system "$root/src"
mkdir -p "$root/src"
git -C "$checkout" ls-files -z --cached --others --exclude-standard |
  (cd "$checkout" && tar --null --files-from - --ignore-failed-read --create 2>/dev/null) | tar -x -C "$root/src"
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/xdg/pip /etc/ssl/certs/ca-certificates.crt; do
  [ ! -e "$file" ] || { mkdir -p "$root$(dirname "$file")" && cp -rL "$file" "$root$(dirname "$file")/"; }
done
keep=()
for name in $(compgen -e | grep -E '^(PIP_(INDEX_URL|EXTRA_INDEX_URL|CERT|DEFAULT_TIMEOUT)|.*_CA_BUNDLE|SSL_CERT_FILE|.*_(proxy|PROXY))$' || true); do
  keep+=("$name=${!name}")
done
# shellcheck disable=SC2016  # "$@" is for the inner shell
exec nice -n 10 unshare --mount --pid --fork --kill-child sh -c '
  mount --make-rprivate / && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && shift && exec "$@"' sh "$root" \
  chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  QEMU_CPU="${QEMU_CPU:-neoverse-n1}" "${keep[@]}" python3 /src/tests/arm/inside.py "$@"
