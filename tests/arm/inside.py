"""What `make test-arm` runs in the emulated aarch64 machine, whose sources are in /src; see run.sh.

README's command for a Kunpeng host installs package, torch_npu and torch for real, the first time (four minutes), into
an environment that is kept; later runs install the package anew. Its other commands are resolved by pip, not installed.
"""
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import venv
from pathlib import Path

SRC, VENV = Path('/src'), Path('/opt/seresnet_timm')
PYTHON = str(VENV / 'bin' / 'python')
PIP = [PYTHON, '-m', 'pip']
# the installed package, not /src, and no torch_npu, which needs CANN
ALONE = {**os.environ, 'TORCH_DEVICE_BACKEND_AUTOLOAD': '0', 'PYTHONSAFEPATH': '1', 'OMP_NUM_THREADS': '1'}


def run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=SRC, text=True, **options)


def readme_commands(readme: str) -> list:
    """The pip commands for torch_npu, as README shows them."""
    text = (SRC / readme).read_text(encoding='utf-8').replace('\\\n', ' ')
    found = re.findall(r'^pip install .*-c seresnet_timm/ascend/constraints.*$', text, re.M)
    return [shlex.split(line, comments=True)[2:] for line in found]


def test_this_is_aarch64():
    assert platform.machine() == 'aarch64', platform.machine()


def test_readmes_show_the_same_commands():
    english = readme_commands('README.md')
    assert len(english) == 2 and english == readme_commands('README.zh-CN.md'), english


def test_readmes_first_command_installs_a_cpu_build():
    """For real; PyPI alone."""
    if not Path(PYTHON).exists():
        venv.create(VENV, with_pip=True)
        run(*PIP, 'install', '--quiet', '--upgrade', 'pip', check=True)
    run(*PIP, 'uninstall', '--quiet', '-y', 'seresnet_timm')
    run(*PIP, 'install', '--quiet', *readme_commands('README.md')[0], check=True)
    listed = {p['name'].lower(): p['version'] for p in json.loads(
        run(*PIP, 'list', '--format', 'json', check=True, capture_output=True).stdout)}
    assert not [name for name in listed if name.startswith(('nvidia', 'cuda'))], listed
    assert listed['torch'].startswith('2.10.0') and listed['torch_npu'].startswith('2.10.0'), listed
    code = ('import sys; sys.orig_argv = ["python", "seresnet-timm"]\nfrom seresnet_timm.ascend import wheels\n'
            'pair = wheels.installed_pair(); print(" ", pair)\n'
            'assert wheels.incompatibility(pair) is None and not pair.cuda')
    run(PYTHON, '-c', code, check=True, env=ALONE)


def test_the_c_decoder_is_built():
    code = 'from seresnet_timm.data import _augment, _jpeg; print(_augment.__file__, _jpeg.__file__, _jpeg.paths)'
    found = run(PYTHON, '-c', code, check=True, capture_output=True, env=ALONE).stdout
    assert found.count('-aarch64-linux-gnu.so') == 2 and "('neon', 'scalar')" in found, found


def test_other_commands_bring_a_cpu_build_or_nothing():
    """Dry runs; PyTorch's CPU index may be out of reach."""
    first, second = readme_commands('README.md')
    without_index = [word for word in second if word != '--extra-index-url' and not word.startswith('https://')]
    for command in (first, second, without_index, [w.replace('2.13.0', '2.11.0') for w in without_index]):
        result = run(
            *PIP, 'install', '--dry-run', '--ignore-installed', '--quiet', '--report', '-', '--retries', '0', *command,
            capture_output=True)
        if result.returncode:
            assert 'No matching distribution' in result.stderr or 'ResolutionImpossible' in result.stderr, result.stderr
            print('  refused:', shlex.join(command))
            continue
        found = {i['metadata']['name'].lower(): i['metadata']['version'] for i in json.loads(result.stdout)['install']}
        print(' ', shlex.join(command), ':', *(f'{n} {v}' for n, v in sorted(found.items()) if n.startswith('torch')))
        assert not [name for name in found if name.startswith(('nvidia', 'cuda', 'triton'))], found


def test_decoders():
    """The tests of the C code as compiled in the installed package: NEON and plain C give the bits of AVX2."""
    run(*PIP, 'install', '--quiet', 'pytest', 'pytest-timeout', 'scikit-learn', check=True)
    files = [f'tests/data/test_{name}.py' for name in ('jpeg', 'jpeg_paths', 'augment')]
    result = run(PYTHON, '-m', 'pytest', '-q', '--timeout', '600', '-p', 'no:cacheprovider', '-m', 'not slow', *files,
                 capture_output=True, env=ALONE)
    print(' ', *result.stdout.splitlines()[-1:])
    assert result.returncode == 0 and 'skipped' not in result.stdout, result.stdout + result.stderr


def main() -> None:
    failed = 0
    tests = [(name, test) for name, test in globals().items() if name.startswith('test_')]
    for name, test in tests:
        start, outcome = time.monotonic(), 'passed'
        try:
            test()
        except (AssertionError, subprocess.CalledProcessError, OSError) as e:
            failed, outcome = failed + 1, f'FAILED: {e}'
        print(f'{name} {outcome} ({time.monotonic() - start:.0f} s)', flush=True)
    print(f'{len(tests) - failed} passed, {failed} failed')
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
