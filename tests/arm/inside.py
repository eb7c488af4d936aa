"""What `make test-arm` runs in the emulated aarch64 machine: sources in /src, wheels in /wheels, unpacked; see run.sh.

pip resolves README's commands here, without installing. The package itself is installed for real, with its C decoder.
"""
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
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


def resolve(*command: str, **options) -> dict:
    """What a `pip install` would install: versions by name."""
    result = run(*PIP, 'install', '--dry-run', '--ignore-installed', '--quiet', '--report', '-', *command,
                 capture_output=True, **options)
    assert not result.returncode, result.stderr
    found = {i['metadata']['name'].lower().replace('-', '_'): i['metadata']['version']
             for i in json.loads(result.stdout)['install']}
    print(' ', shlex.join(command), ':', *(f'{n} {v}' for n, v in sorted(found.items()) if n.startswith('torch')))
    assert not [name for name in found if name.startswith(('nvidia', 'cuda', 'triton'))], found
    return found


def test_the_package_installs():
    """For real; the packages that it needs are unpacked already."""
    run(*PIP, 'install', '--quiet', '--no-index', '--no-deps', '--no-build-isolation', '--force-reinstall', '.',
        check=True)
    listed = {p['name'].lower(): p['version'] for p in json.loads(
        run(*PIP, 'list', '--format', 'json', check=True, capture_output=True).stdout)}
    assert not [name for name in listed if name.startswith(('nvidia', 'cuda'))], listed
    assert listed['torch'].startswith('2.10.0') and listed['torch_npu'].startswith('2.10.0'), listed
    code = ('import sys; sys.orig_argv = ["python", "seresnet-timm"]\nfrom seresnet_timm.ascend import wheels\n'
            'pair = wheels.installed_pair(); print(" ", pair)\n'
            'assert wheels.incompatibility(pair) is None and not pair.cuda')
    run(PYTHON, '-c', code, check=True, env=ALONE)


def test_readmes_offline_command_is_complete():
    """In a folder without the sources, as on a server."""
    name, = [p.name.partition('-')[0] for p in Path('/wheels').glob('seresnet_timm-*.whl')]
    found = resolve('--no-index', '--find-links', '/wheels', f'{name}[npu]', '-c', '/wheels/constraints.txt')
    assert found['torch'].startswith('2.10.0') and found['torch_npu'].startswith('2.10.0') and name in found, found


def test_readmes_first_command_brings_a_cpu_build():
    """From PyPI; setuptools, which builds the package, is there already."""
    found = resolve('--no-build-isolation', *readme_commands('README.md')[0])
    assert found['torch'].startswith('2.10.0') and found['torch_npu'].startswith('2.10.0'), found


def test_doctor_help_and_plan():
    """README's next commands, as far as a machine without NPU goes."""
    for command in (['--version'], ['env'], ['train', '--help']):
        result = run(PYTHON, '-m', 'seresnet_timm', *command, env=ALONE, capture_output=True)
        assert result.returncode == 0 and result.stdout.strip(), (command, result.stderr[-2000:])
        print(' ', *command, ':', result.stdout.strip().splitlines()[0])


def test_the_c_decoder_is_built():
    code = 'from seresnet_timm.data import _augment, _jpeg; print(_augment.__file__, _jpeg.__file__, _jpeg.paths)'
    found = run(PYTHON, '-c', code, check=True, capture_output=True, env=ALONE).stdout
    assert found.count('-aarch64-linux-gnu.so') == 2 and "('neon', 'scalar')" in found, found


def test_other_commands_bring_a_cpu_build_or_nothing():
    """PyTorch's CPU index may be out of reach."""
    if not os.environ.get('ARM_ALL'):
        print('  not run: ARM_ALL=1 runs it')
        return
    second = readme_commands('README.md')[1]
    without_index = [word for word in second if word != '--extra-index-url' and not word.startswith('https://')]
    for command in (second, without_index, [w.replace('2.13.0', '2.11.0') for w in without_index]):
        try:
            resolve('--retries', '0', *command)
        except AssertionError as e:
            assert 'No matching distribution' in str(e) or 'ResolutionImpossible' in str(e), e
            print('  refused:', shlex.join(command))


def test_decoders():
    """The tests of the C code as compiled in the installed package: NEON and plain C give the bits of AVX2."""
    files = [f'tests/data/test_{name}.py' for name in ('jpeg', 'jpeg_paths', 'augment')]
    result = run(PYTHON, '-m', 'pytest', '-q', '--timeout', '600', '-p', 'no:cacheprovider', '-m', 'not slow', *files,
                 capture_output=True, env=ALONE)
    print(' ', *result.stdout.splitlines()[-1:])
    assert result.returncode == 0 and 'skipped' not in result.stdout, result.stdout + result.stderr


def cpu_seconds() -> float:
    """Of this process and those that it has started."""
    return sum(os.times()[:4])


def main() -> None:
    failed = 0
    tests = [(name, test) for name, test in globals().items() if name.startswith('test_')]
    for name, test in tests:
        start, cpu, outcome = time.monotonic(), cpu_seconds(), 'passed'
        try:
            test()
        except (AssertionError, subprocess.CalledProcessError, OSError) as e:
            failed, outcome = failed + 1, f'FAILED: {e}'
        print(f'{name} {outcome} ({time.monotonic() - start:.0f} s, {cpu_seconds() - cpu:.0f} s of CPU)', flush=True)
    print(f'{len(tests) - failed} passed, {failed} failed')
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
