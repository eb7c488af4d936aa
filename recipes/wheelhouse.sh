#!/usr/bin/env bash
# Collects all wheels that an Ascend server without internet needs: this package, torch_npu, the CPU build of torch.
#   bash recipes/wheelhouse.sh --machine aarch64 --python 3.11 --torch-npu 2.10.0.post7 --out DIR
# Run it in a checkout, on any Linux machine with pip and internet; copy DIR to the server. At the end it tries the
# installation without internet, and prints the command that installs there. Options:
#   --machine NAME      of the server, as `uname -m` prints it: aarch64 (default) or x86_64
#   --python X.Y        of the server (3.11)
#   --torch-npu VERSION X.Y.Z, or X.Y.Z.postN: the one that belongs to the server's CANN
#   --out DIR           new folder, or one that this script has filled before
#   --extras A,B        extras of this package besides npu, e.g. demo,export
#   --also A,B          further packages, e.g. those that CANN's guide names
#   --cpu-index URL     PyTorch's CPU index or a mirror of it; used where PyPI has no CPU build of torch
#   --dry-run           only print which wheels these are
# Environment: PYTHON (python3), whose pip collects; pip's own configuration.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
constraints=$checkout/seresnet_timm/ascend/constraints
python=${PYTHON:-python3}
machine=aarch64 version=3.11 torch_npu='' out='' extras=npu also='' dry_run=''
cpu_index=https://download.pytorch.org/whl/cpu

fail() { echo "wheelhouse.sh: $*" >&2; exit 2; }

while (($#)); do
  case $1 in
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
    --dry-run) dry_run=yes; shift; continue ;;
    --machine | --python | --torch-npu | --out | --extras | --also | --cpu-index) ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
    *) fail "unknown option $1; --help lists them" ;;
  esac
  [ -n "${2:-}" ] || fail "$1 needs a value"
  case $1 in
    --machine) machine=$2 ;;
    --python) version=$2 ;;
    --torch-npu) torch_npu=$2 ;;
    --out) out=$2 ;;
    --extras) extras=npu,$2 ;;
    --also) also=$2 ;;
    --cpu-index) cpu_index=$2 ;;
  esac
  shift 2
done

# All mistakes at once
problems=()
case $machine in aarch64 | x86_64) ;; *) problems+=("--machine $machine: Ascend servers are aarch64 or x86_64") ;; esac
[[ $version =~ ^3\.[0-9]+$ ]] && ((${version#3.} >= 10)) || problems+=("--python $version: name 3.10 or newer as X.Y")
release=$(grep -oE '^[0-9]+\.[0-9]+\.[0-9]+(\.post[0-9]+)?$' <<<"$torch_npu" | grep -oE '^[0-9]+\.[0-9]+\.[0-9]+' || true)
file=$constraints/torch_npu-$release.txt
if [ ! -f "$checkout/setup.cfg" ]; then
  problems+=("$checkout is not a checkout of this package: run the script that is in one")
elif [ ! -f "$file" ]; then
  known=$(cd "$constraints" && printf '%s\n' torch_npu-*.txt | sed 's/torch_npu-//; s/\.txt//' | sort -V | paste -sd' ')
  problems+=("--torch-npu ${torch_npu:-is missing}: name one of $known, or a post release of one, e.g. 2.10.0.post7")
fi
if [ -f "$checkout/setup.cfg" ]; then
  known=$(sed -n '/^\[options.extras_require\]/,/^\[/ s/^\([a-z]*\) =$/\1/p' "$checkout/setup.cfg")
  for extra in ${extras//,/ }; do
    grep -qx -- "$extra" <<<"$known" || problems+=("--extras: $extra is none of $(paste -sd' ' <<<"$known")")
  done
fi
[ -n "$out" ] || [ -n "$dry_run" ] || problems+=('--out is missing: name a folder for the wheels')
if [ -n "$out" ] && [ -e "$out" ] && [ ! -f "$out/constraints.txt" ] && [ -n "$(ls -A "$out" 2>&1)" ]; then
  problems+=("--out $out exists and is not a folder that this script has filled: name a new one")
fi
if ((${#problems[@]} == 0)) && ! "$python" -m pip --version >/dev/null 2>&1; then
  problems+=("$python has no pip: name a Python that has with PYTHON=")
fi
if ((${#problems[@]})); then
  printf 'wheelhouse.sh: %s\n' "${problems[@]}" >&2
  exit 2
fi

# pip takes wheels of another machine, but evaluates the markers of requirements for the one that it runs on: torch's
# CUDA libraries are `; platform_machine == "x86_64"`. So it is told the server's.
pip_for_server() {
  "$python" -c '
import platform, runpy, sys
machine, python = sys.argv[1:3]
version = (*python.split("."), "0")
platform.machine = lambda: machine
platform.python_version = lambda: ".".join(version)
platform.python_version_tuple = lambda: version
sys.argv[:] = ["pip", *sys.argv[3:]]
runpy.run_module("pip", run_name="__main__", alter_sys=True)' "$machine" "$version" "$@"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
server=(--only-binary=:all: --implementation cp --python-version "$version")
for glibc in 28 27 26 25 24 23 22 21 20 19 18 17; do server+=(--platform "manylinux_2_${glibc}_$machine"); done
server+=(--platform "manylinux2014_$machine" --platform "linux_$machine")
[ "$machine" = aarch64 ] || server+=(--platform manylinux2010_x86_64 --platform manylinux1_x86_64)
more=(-c "$file")
if grep -v '^#' "$file" | grep -v 'platform_machine != "aarch64"' | grep -q '+cpu' || [ "$machine" != aarch64 ]; then
  more+=(--extra-index-url "$cpu_index")
fi

# This package without its C decoder, which runs on one machine only: PyPI's simplejpeg decodes in its place.
for name in setup.cfg setup.py MANIFEST.in pyproject.toml README.md LICENSE seresnet_timm recipes; do
  cp -r "$checkout/$name" "$work/"
done
find "$work/seresnet_timm" \( -name '_jpeg*.so' -o -name '_augment*.so' \) -delete
CC=/nonexistent/cc "$python" -m pip wheel --quiet --no-deps -w "$work/wheel" "$work"
package=$(ls "$work"/wheel/*.whl)
# setuptools builds the package from a checkout on the server, where the C decoder is wanted
read -ra also <<<"${also//,/ }"
wanted=("${package}[$extras]" "torch_npu==$torch_npu" 'setuptools>=69' "${also[@]}")
[ "$torch_npu" != "$release" ] || wanted[1]="torch_npu==$release.*"

if [ -n "$dry_run" ]; then
  pip_for_server install --dry-run --ignore-installed --quiet --report "$work/report" --target "$work/none" \
    "${server[@]}" "${more[@]}" "${wanted[@]}"
  "$python" -c '
import json, sys
for item in sorted(json.load(open(sys.argv[1]))["install"], key=lambda i: i["metadata"]["name"].lower()):
    print(item["metadata"]["name"] + "==" + item["metadata"]["version"])' "$work/report"
  exit
fi

mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out"/*.whl  # of an earlier call: pip must not have a choice
cp "$file" "$out/constraints.txt"
pip_for_server download --dest "$out" "${server[@]}" "${more[@]}" "${wanted[@]}"
name=$(basename "$package")
offline=(--no-index --find-links "$out" "$out/${name}[$extras]" "${also[@]}" -c "$out/constraints.txt")
pip_for_server install --dry-run --ignore-installed --quiet --target "$work/none" "${server[@]}" "${offline[@]}"
cat <<END

$(find "$out" -name '*.whl' | wc -l) wheels, $(du -sh "$out" | cut -f1), complete for $machine with Python $version. Copy $out to the server, then:
  pip install --no-index --find-links DIR 'seresnet_timm[$extras]'${also[*]:+ ${also[*]}} -c DIR/constraints.txt
With a C compiler and libjpeg-turbo's header there, the same in a checkout also builds the fast JPEG decoder:
  pip install --no-index --find-links DIR '.[$extras]'${also[*]:+ ${also[*]}} -c DIR/constraints.txt
END
