"""`seresnet-timm doctor` says whether a training would run, and why not, on machines that tests can make."""
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_cli, run_here
from ports import free_ports

from seresnet_timm.ascend import hccl_network, installation, npu_users
from seresnet_timm.ascend.environment import DEAD, VARIABLES
from seresnet_timm.ascend.wheels import Pair
from seresnet_timm.doctor.general import check_torch
from seresnet_timm.doctor.machine import Machine
from seresnet_timm.doctor.npu import (
    check_cann,
    check_home,
    check_interface,
    check_npu_smi,
    check_npus,
    check_ports,
    check_values,
    import_remedy,
)
from seresnet_timm.doctor.probe_processes import Probe, error_summary, run_smoke_test
from seresnet_timm.doctor.system import System, check_system, this_system
from seresnet_timm.errors import UsageError
from seresnet_timm.launch.devices import check_visible

pytestmark = pytest.mark.preloaded

# A torch of a few lines, for machines that are about torch_npu; `import torch` loads backends as torch's does.
SMALL_TORCH = '''
import importlib.metadata, os
from torch.version import __version__, cuda as _cuda
class cuda:
    device_count = staticmethod(lambda: 0)
if os.environ.get('TORCH_DEVICE_BACKEND_AUTOLOAD', '1') == '1':
    for e in importlib.metadata.entry_points(group='torch.backends'):
        try:
            e.load()()
        except Exception as err:
            raise RuntimeError(f'Failed to load the backend extension: {e.name}.') from err
'''
# A torch_npu that works, on two NPUs of which one is half full
SMALL_TORCH_NPU = '''
import torch
class npu:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    mem_get_info = staticmethod(lambda i: ((60 - 40 * i) << 30, 64 << 30))
    get_device_name = staticmethod(lambda i: 'Ascend910A')
    is_bf16_supported = staticmethod(lambda: False)
torch.npu = npu
__version__ = '2.9.0.post9'
def _autoload(): pass
'''
NO_CANN = 'raise ImportError("libhccl.so: cannot open shared object file: No such file or directory. [ERROR] 0\\nERR")'
SETTINGS = ('ASCEND', 'HCCL', 'TORCH_DEVICE', 'PYTORCH')


def site(folder: Path, torch_npu: str, torch_version='2.9.0+cpu', cuda=None, version='2.9.0.post9', with_torch=True):
    """A folder for PYTHONPATH that holds a torch_npu of this source, as pip installs it, and a small torch."""
    sources = {'torch_npu/__init__.py': torch_npu}
    if with_torch:
        sources.update({
            'torch/__init__.py': SMALL_TORCH,
            'torch/version.py': f'__version__ = {torch_version!r}\ncuda = {cuda!r}\n'})
    info = f'torch_npu-{version}.dist-info'
    pin = torch_version.split('+')[0]
    sources.update({
        f'{info}/METADATA': f'Name: torch_npu\nVersion: {version}\nRequires-Dist: torch =={pin}\n\n'
                            '| CANN 8.5.0 | 2.9.0 | 2.9.0 |\n|  | 2.8.0 | 2.8.0 |\n| CANN 8.3.RC1 | 2.8.0 | 2.8.0 |\n',
        f'{info}/entry_points.txt': '[torch.backends]\ntorch_npu = torch_npu:_autoload\n'})
    for name, text in sources.items():
        path = folder / 'site' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / 'site'


def clean_environ(**more) -> dict:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS) and k not in DEAD}
    return {**environ, **{k: str(v) for k, v in more.items()}}


def examine(root=Path('/nonexistent'), device='auto', **environ) -> dict:
    """What doctor finds, in a process of its own, on a machine whose files are below `root`."""
    code = ('import sys; sys.orig_argv = ["python", "seresnet-timm"]\nfrom pathlib import Path\n'
            'from seresnet_timm.doctor.doctor import as_json, examine\n'
            f'print(as_json(examine({device!r}, root=Path({str(root)!r}))))')
    path = os.pathsep.join(filter(None, (str(environ.pop('PYTHONPATH', '')), str(ROOT))))
    result = subprocess.run(
        [sys.executable, '-c', code], env=clean_environ(PYTHONPATH=path, **environ), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    keys = [(c['section'], c['name']) for c in report['checks']]
    assert len(set(keys)) == len(keys), 'names are unique in a section'
    assert report['ok'] == (not any(c['status'] == 'error' for c in report['checks']))
    for check in report['checks']:
        assert (check['remedy'] is not None) == (check['status'] in ('warning', 'error')), check
    return dict(report, found=dict(zip(keys, report['checks'])))


def status(report: dict, section: str, name: str) -> tuple:
    check = report['found'][section, name]
    return check['status'], check['value'], check['remedy'] or ''


def test_a_cpu_passes():
    """Really computes: two processes, products and all-reduces over gloo."""
    result = run_cli('doctor', '--device', 'cpu', '--json', '--seconds', 0.2)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert list(report) == ['schema', 'ok', 'device', 'device_reason', 'checks']
    assert (report['schema'], report['ok'], report['device']) == (1, True, 'cpu')
    assert all(list(c) == ['section', 'name', 'status', 'value', 'remedy'] for c in report['checks'])
    checks = {(c['section'], c['name']): c for c in report['checks']}
    assert checks['versions', 'torch']['value'].startswith(torch.__version__)
    assert [name for section, name in checks if section == 'smoke test'] == ['process 0', 'process 1']
    for rank in (0, 1):
        assert 'all-reduce of 2 over gloo' in checks['smoke test', f'process {rank}']['value']
    assert 'Pillow' in checks['data', 'jpeg decoder']['value']
    assert 'bundled train.py' in checks['data', 'train.py']['value']


@pytest.mark.slow
def test_an_abort_of_torch_npu_is_a_finding(tmp_path):
    """The real torch, which loads a torch_npu that aborts: doctor ends well, with the remedy.

    Beside a CUDA build it is known before: the commands of this package keep it out, and a training runs on the CPU.
    """
    path = site(tmp_path, 'import os, sys\nprint("what():  Duplicated key", file=sys.stderr, flush=True)\nos.abort()\n',
                torch.__version__, version=torch.__version__.split('+')[0], with_torch=False)
    env = clean_environ(PYTHONPATH=f'{path}{os.pathsep}{ROOT}')
    result = run_cli('doctor', '--seconds', 0.2, env=env)
    if torch.version.cuda is not None:
        assert result.returncode == 0, result.stderr
        assert 'is a CUDA build, with which torch_npu' in result.stdout
        assert '-m pip install torch==' in result.stdout and '+cpu' in result.stdout
        assert 'A training on cpu runs here.' in result.stdout
        for device, expected in (('auto', f'{tmp_path} has no'), ('npu', '--device npu cannot be used here: torch ')):
            flags = ('--data-dir', tmp_path, '--model', 'seresnet18_ascend', '--device', device)
            result = run_cli('train', *flags, env=env)
            assert result.returncode == 2 and expected in result.stderr, result.stderr
        return
    assert result.returncode == 1, result.stderr
    assert '`import torch` fails because of torch_npu: killed by SIGABRT (Duplicated key)' in result.stdout
    assert '-> ' in result.stdout and 'export TORCH_DEVICE_BACKEND_AUTOLOAD=0' in result.stdout
    assert 'Pillow' in result.stdout and 'not run: fix the errors above first' in result.stdout
    assert 'error: a training on cpu would fail here' in result.stderr


@pytest.mark.parametrize('torch_npu, versions, problem, remedy', (
    pytest.param(NO_CANN, {}, 'does not import: ImportError: libhccl.so: cannot open', 'set_env.sh', id='no CANN'),
    pytest.param('import no_such_package_of_theirs', {}, "No module named 'no_such_package_of_theirs'",
                 'pip install no_such_package_of_theirs', id='no module', marks=pytest.mark.slow),
    pytest.param('raise ImportError("libtorch_npu.so: undefined symbol: _ZN3c10")', {}, 'undefined symbol',
                 'torch==2.9.0', id='other torch', marks=pytest.mark.slow),
    pytest.param('import os; os.abort()', {}, 'does not import: killed by SIGABRT', 'torch_npu==2.9.0.post9',
                 id='abort', marks=pytest.mark.slow),
    pytest.param(SMALL_TORCH_NPU, dict(torch_version='2.10.0+cu128', cuda='12.8', version='2.10.0.post7'),
                 'torch 2.10.0+cu128 is a CUDA build, with which torch_npu 2.10.0.post7 aborts',
                 'pip install torch==2.10.0', id='CUDA build'),
))
def test_torch_npu_that_does_not_load(torch_npu, versions, problem, remedy, tmp_path):
    """An error where the NPU is asked for, a warning where a training would take the CPU."""
    path = site(tmp_path, torch_npu, **versions)
    named = examine(device='npu', PYTHONPATH=path)
    for report, expected in ((named, 'error'), (examine(PYTHONPATH=path), 'warning')):
        found = status(report, 'versions', 'torch_npu')
        assert found[0] == expected and problem in found[1] and remedy in found[2], found
    assert not named['ok'] and status(named, 'devices', 'chosen')[0] == 'error'


def test_npu_that_works_is_chosen(tmp_path):
    report = examine(PYTHONPATH=site(tmp_path, SMALL_TORCH_NPU), ASCEND_RT_VISIBLE_DEVICES='0,1',
                     PYTORCH_NPU_ALLOC_CONF='x', PTCOPY_ENABLE=1)
    assert (report['device'], report['device_reason']) == ('npu', 'found Ascend910A')
    assert status(report, 'versions', 'torch_npu')[0] == 'ok'
    assert status(report, 'versions', 'autoload')[:2] == ('ok', 'on; `import torch` loads torch_npu')
    assert status(report, 'devices', 'npu')[1] == (
        '2 x Ascend910A, 64 GiB each, no bfloat16: use float16, ASCEND_RT_VISIBLE_DEVICES=0,1')
    assert status(report, 'devices', 'npu memory')[:2] == ('warning', 'less than half is free on NPU 1')
    assert status(report, 'environment', 'PTCOPY_ENABLE') == (
        'warning', 'set to 1, no effect: torch_npu no longer reads it', 'unset PTCOPY_ENABLE')
    assert status(report, 'environment', 'PYTORCH_NPU_ALLOC_CONF')[0] == 'note'
    off = examine(PYTHONPATH=tmp_path / 'site', TORCH_DEVICE_BACKEND_AUTOLOAD=0)
    assert status(off, 'versions', 'autoload')[1] == 'off by TORCH_DEVICE_BACKEND_AUTOLOAD'


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize('failure, words', (
    ('ImportError: libhccl.so: cannot open shared object file: No such file or directory', 'set_env.sh'),
    ('ImportError: libascend_hal.so: cannot open shared object file', '/usr/local/Ascend/driver'),
    ('ImportError: libdcmi.so: cannot open shared object file', '/usr/local/Ascend/driver'),
    ('ImportError: libtorch_npu.so: undefined symbol: _ZN3c1010ValueErrorC1Ev', 'torch==2.9.0'),
    ('ImportError: libtorch_npu.so: undefined symbol: aclrtGetDeviceInfo', 'the CANN that belongs to this torch_npu'),
    ('ImportError: /usr/lib/libgomp.so.1: cannot allocate memory in static TLS block', 'LD_PRELOAD=/usr/lib/libgomp'),
    ("ImportError: /lib64/libstdc++.so.6: version `GLIBCXX_3.4.29' not found", 'newer system'),
    ('RuntimeError: Two accelerators cannot be used at the same time in PyTorch: npu and cuda.', 'torch==2.9.0'),
    ("ModuleNotFoundError: No module named 'decorator'", 'pip install decorator'),
    ('killed by SIGSEGV', '--force-reinstall --no-deps torch_npu==2.9.0.post9')))
def test_remedy_of_an_import(failure, words):
    assert words in import_remedy(Pair('2.9.0', None, '2.9.0.post9', 'torch==2.9.0'), failure)


def found_of(checks):
    return {check.name: (check.status, check.value, check.remedy) for check in checks}


def machine_of(root, npu=True, **environ):
    devices = [{'name': 'Ascend910B3', 'total_memory': 64 << 30, 'free_memory': 60 << 30}] * 2
    return Machine('auto', root, environ, Pair('2.9.0', None, '2.9.0.post9', 'torch==2.9.0'),
                   *installation.device_nodes(root), npu=Probe({'devices': devices if npu else [], 'bf16': True}, None))


@pytest.mark.parametrize('value, words', (
    ('0,1', None), ('1', None), (None, None), ('a,b', 'not a list of NPUs'), ('', 'not a list of NPUs'),
    ('1,0', 'not ascending'), ('0,0', 'not ascending'), ('0-1', 'not a list of NPUs'), ('0,8', 'names 8, but this')))
def test_visible_npus_are_judged_as_by_a_training(tmp_path, value, words):
    root = write(tmp_path, **{'dev/davinci0': '', 'dev/davinci1': ''})
    environ = {} if value is None else {'ASCEND_RT_VISIBLE_DEVICES': value}
    for npu in (True, False):
        found = found_of(check_npus(machine_of(root, npu, **environ)))
        assert ('visible' in found) == (words is not None)
        assert words is None or found['visible'][0] == 'warning' and words in found['visible'][1]
        assert ('npu' in found) == (npu or words is None)  # a wrong list is told once
    assert (words is None) == (not list(refused(check_visible, environ, root)))


def refused(check, *arguments):
    try:
        check(*arguments)
    except UsageError as e:
        yield str(e)


def test_torch_that_takes_too_long_to_import_is_not_installed_again(tmp_path):
    machine = Machine('auto', tmp_path, {}, Pair('2.10.0+cpu', None, None, None),
                      without_backends=Probe({}, 'not finished after 180 s'))
    status, value, remedy = found_of(check_torch(machine))['torch']
    assert status == 'error' and 'not finished' in value and 'less busy' in remedy and 'pip' not in remedy


def test_two_versions_of_cann(tmp_path):
    """Half of the variables are of another one, as after the set_env.sh of both; links of the installer count."""
    base = tmp_path / 'usr/local/Ascend/ascend-toolkit'
    for version in ('8.1.RC1', '8.3.RC1'):
        write(base / version, **{'toolkit/version.info': f'Version={version}\n', 'opp/x': ''})
    write(base / 'latest', **{'version.cfg': 'toolkit_running_version=[7.7.0:8.3.RC1]\n'})
    (base / 'latest/opp').symlink_to('../8.3.RC1/opp')
    for home, opp, is_mixed in (
            ('8.1.RC1', '8.1.RC1', False), ('latest', 'latest', False), ('latest', '8.3.RC1', False),
            ('8.1.RC1', '8.3.RC1', True), ('8.1.RC1', 'latest', True), ('latest', 'gone', False)):
        machine = machine_of(tmp_path, ASCEND_HOME_PATH=str(base / home), ASCEND_OPP_PATH=str(base / opp / 'opp'))
        found = found_of(check_cann(machine))
        assert ('two versions' in found) == is_mixed, (home, opp)
        assert not is_mixed or 'is of 8.1.RC1, but ASCEND_OPP_PATH=' in found['two versions'][1]
    status, value, remedy = found_of(check_cann(machine_of(tmp_path, ASCEND_HOME_PATH='/gone')))['cann']
    assert status == 'warning' and '/gone does not exist' in value and 'new shell' in remedy


@pytest.mark.parametrize('environ, is_told', (
    ({'HOME': '/nonexistent'}, True), ({'HOME': '/etc/hostname'}, True), ({}, False), ({'HOME': '/tmp'}, False),
    ({'HOME': '/nonexistent', 'ASCEND_WORK_PATH': '/tmp'}, False),
    ({'HOME': '/nonexistent', 'ASCEND_PROCESS_LOG_PATH': '/tmp', 'ASCEND_CACHE_PATH': '/tmp'}, False)))
def test_home_folder(tmp_path, environ, is_told):
    assert bool(check_home(machine_of(tmp_path, **environ))) == is_told
    assert check_home(machine_of(tmp_path, npu=False, **environ)) == []


def test_files_of_a_server(tmp_path):
    """CANN, driver, device nodes, npu-smi, network settings and ports, each with its fault."""
    root = write(tmp_path / 'root', **{
        'etc/Ascend/ascend_cann_install.info': 'Install_Path=/opt/Ascend\n',
        'opt/Ascend/ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info': 'version=8.3.RC1\narch=aarch64\n',
        'opt/Ascend/ascend-toolkit/set_env.sh': '',
        'usr/local/Ascend/driver/version.info': 'Version=25.2.0\nascendhal_version=7.35.23\n',
        'proc/sys/net/ipv4/ip_local_port_range': '32768\t60999\n',
        'proc/sys/net/ipv4/ip_local_reserved_ports': '60000-60007\n',
        'dev/davinci0': '', 'dev/davinci1': '', 'dev/davinci_manager': '', 'dev/devmm_svm': '',
    })
    tool = write(tmp_path, **{'bin/npu-smi': '#!/bin/sh\necho "| npu-smi 25.2.0 |"; echo "| 0 910B3 | Alarm | 93.1 |"; '
                     'echo "| 0 | 0000:C1:00.0 | 0 |"\n'})
    (tool / 'bin' / 'npu-smi').chmod(0o755)
    path = site(tmp_path, SMALL_TORCH_NPU)
    base = free_ports(32)
    with socket.socket() as s:
        s.bind(('', base + 3))
        s.listen()
        report = examine(
            root, PYTHONPATH=path, PATH=f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}', HCCL_IF_IP='203.0.113.9',
            HCCL_IF_BASE_PORT=base)
    assert status(report, 'cann', 'cann')[:2] == (
        'ok', f'8.3.RC1 in {root}/opt/Ascend/ascend-toolkit/latest ({root}/etc/Ascend/ascend_cann_install.info)')
    assert 'not sourced' in status(report, 'cann', 'set_env.sh')[1]
    assert status(report, 'cann', 'pairing')[:2] == (
        'note', "Ascend's table does not name torch_npu 2.9.0.post9; 2.9.0.post6, the nearest before it, belongs to "
        'CANN 9.1.0')
    assert status(report, 'cann', 'driver')[:2] == ('ok', '25.2.0')
    assert status(report, 'devices', 'nodes') == (
        'warning', f'2 NPUs in {root}/dev, but no /dev/hisi_hdc', 'start the container with --device=/dev/hisi_hdc')
    assert status(report, 'devices', 'npu-smi')[:2] == ('warning', 'NPU 0 reports Alarm')
    assert status(report, 'hccl', 'interface')[0] == 'warning'
    assert '203.0.113.9 is not an address of this machine' in status(report, 'hccl', 'interface')[1]
    assert status(report, 'hccl', 'ports')[:2] == ('warning', f'{base + 3} of {base}-{base + 31} in use')
    assert hccl_network.exposed_ports(root, 60000, 16) == list(range(60008, 60016))
    sourced = examine(root, PYTHONPATH=path, ASCEND_HOME_PATH=f'{root}/opt/Ascend/ascend-toolkit/latest',
                      HCCL_SOCKET_IFNAME='lo')
    assert ('cann', 'set_env.sh') not in sourced['found']
    assert status(sourced, 'hccl', 'interface')[:2] == ('ok', 'lo 127.0.0.1, by HCCL_SOCKET_IFNAME=lo')


@pytest.mark.parametrize('files, version', (
    ({'ascend_toolkit_install.info': 'package_name=Ascend-cann-toolkit\nversion=8.0.RC3\n'}, '8.0.RC3'),
    ({'version.cfg': '# version: 1.0\nruntime_running_version=[7.5.0.1.129:8.0.0]\n'}, '8.0.0'),
    ({'compiler/version.info': 'Version=7.6.0.1.220\n'}, '7.6.0.1.220'),
    ({'readme.txt': 'version=1\n'}, None),
))
def test_cann_version(files, version, tmp_path):
    assert installation.cann_version(write(tmp_path, **files)) == version


@pytest.mark.parametrize('setting, name, fits', (
    ('eth', 'eth0', True), ('=eth', 'eth0', False), ('=eth0', 'eth0', True), ('^eth', 'eth0', False),
    ('^eth', 'enp1', True), ('^=eth', 'eth0', True), ('ib,enp', 'enp1', True), ('ib,enp', 'eth0', False),
))
def test_socket_ifname(setting, name, fits):
    assert hccl_network.matches_interface(setting, name) == fits


@pytest.mark.parametrize('text, words', (
    ('terminate called\n  what():  Duplicated key x\nframe #0: y\n', 'Duplicated key x'),
    ('Traceback\nImportError: libhccl.so: no\n\nThe above\nTraceback\nRuntimeError: Failed to load the backend '
     'extension: torch_npu.\n', 'ImportError: libhccl.so: no'),
    ('Traceback\n  File "x"\nValueError: bad\n[ERROR] 2026 (PID:1)\n', 'ValueError: bad'),
    ('Segmentation fault\n', 'Segmentation fault'), ('', ''),
))
def test_error_summary(text, words):
    assert error_summary(text) == words


@pytest.mark.parametrize('act, failure', (
    pytest.param('os.kill(os.getpid(), 9)', 'killed by SIGKILL', id='killed'),
    pytest.param('time.sleep(99)', 'not finished after', id='hangs', marks=pytest.mark.slow),
))
def test_smoke_test_ends_when_a_rank_does_not(act, failure, tmp_path):
    """Rank 1 is killed or hangs in the all-reduce: rank 0, which waits for it there, is ended too."""
    write(tmp_path, **{'sitecustomize.py': f'''
import os, sys, time
class Output:
    def write(self, text):
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        if os.environ.get('RANK') == '1' and 'all-reduce' in text: {act}
    def flush(self): pass
sys.stdout = Output()
'''})
    ranks = run_smoke_test('cpu', [0, 1], clean_environ(PYTHONPATH=tmp_path), seconds=0.2, timeout=60)
    assert ranks[1].failure.startswith(failure), ranks
    assert ranks[0].data['tflops'] > 0 and ranks[0].data['phase'] == 'all-reduce'
    expected = 'waited for a rank that failed' if 'kill' in act else 'not finished after'
    assert ranks[0].failure.startswith(expected), ranks


def test_unknown_device_is_a_usage_error():
    result = run_cli('doctor', '--device', 'tpu')
    assert result.returncode == 2 and '--device tpu is unknown' in result.stderr


def test_environment_tables():
    """The reference's variables are either live or dead, each with a reason."""
    assert not set(VARIABLES) & set(DEAD)
    assert all(v.reason and v.source for v in VARIABLES.values()) and all(DEAD.values())
    assert {'TASK_QUEUE_ENABLE', 'HCCL_WHITELIST_DISABLE', 'COMBINED_ENABLE', 'PTCOPY_ENABLE'} <= {*VARIABLES, *DEAD}


def test_operators_need_torch_npu():
    result = run_here('doctor', '--operators')
    assert result.returncode == 1 and 'torch_npu, which is not installed here' in result.stderr


@pytest.mark.parametrize('system, environ, found', (
    (System((2, 28), 4096, False), {}, []),
    (System((2, 17), 4096, False), {}, [('C library', 'error', 'glibc 2.17')]),
    (System(None, 4096, False), {}, [('C library', 'error', 'musl')]),
    (System((2, 38), 65536, False), {}, [('page size', 'note', '64 KiB')]),
    (System((2, 38), 65536, False), {'LD_PRELOAD': '/usr/lib64/libjemalloc.so.2'},
     [('page size', 'warning', 'libjemalloc.so.2 may be built for 4 KiB')]),
    (System((2, 38), 16384, True), {}, [('free threads', 'error', 'no wheels'), ('page size', 'note', '16 KiB')]),
))
def test_what_wheels_need_of_the_system(system, environ, found):
    machine = Machine('npu', Path('/nonexistent'), environ, Pair(None, None, None, None))
    checks = check_system(machine, system)
    assert [(c.name, c.status) for c in checks] == [f[:2] for f in found]
    assert all(words in check.value for check, (_, _, words) in zip(checks, found))
    assert all(check.remedy for check in checks if check.status != 'note')
    assert this_system().page_size == int(subprocess.check_output(['getconf', 'PAGESIZE']))
    works = Machine('npu', Path('/nonexistent'), environ, Pair(None, None, None, None),
                    imports=Probe({'torch': '2'}, None))
    assert not [c for c in check_system(works, system) if c.name == 'C library' and c.status == 'error']


def test_npu_smi_that_hangs_in_a_child_is_given_up(tmp_path, monkeypatch):
    """A script whose child waits: the pipe of its output stays open when the script alone is killed."""
    tool = tmp_path / 'npu-smi'
    tool.write_text('#!/bin/sh\nsleep 60\necho late\n')
    tool.chmod(0o755)
    monkeypatch.setattr(npu_users, 'TIMEOUT', .5)
    start = time.monotonic()
    machine = Machine('npu', tmp_path, {'PATH': f'{tmp_path}:{os.environ["PATH"]}'}, Pair(None, None, None, None))
    checks = check_npu_smi(machine)
    assert time.monotonic() - start < 10
    assert 'no answer within 0.5 s' in checks[0].value and checks[0].remedy


def test_npu_smi_prints_bytes_of_another_encoding(tmp_path):
    tool = tmp_path / 'npu-smi'
    tool.write_bytes('#!/bin/sh\necho "驱动未加载"; exit 1\n'.encode('gbk'))
    tool.chmod(0o755)
    machine = Machine('npu', tmp_path, {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'LANG': 'C'},
                      Pair(None, None, None, None))
    assert '`npu-smi info` fails' in check_npu_smi(machine)[0].value


@pytest.mark.parametrize('environ, status, words', (
    ({'HCCL_IF_IP': '::1'}, 'ok', '::1, by HCCL_IF_IP'),
    ({'HCCL_IF_IP': 'eth0'}, 'warning', "'eth0' is not an IP address"),
    ({'HCCL_SOCKET_IFNAME': '=lo'}, 'ok', 'lo 127.0.0.1, by HCCL_SOCKET_IFNAME==lo'),
    ({'HCCL_SOCKET_IFNAME': 'none7'}, 'warning', "HCCL_SOCKET_IFNAME='none7' allows none of"),
    ({}, 'note', 'HCCL chooses from'),
))
def test_interface_is_judged_as_by_a_training(environ, status, words):
    if environ.get('HCCL_IF_IP') == '::1' and '::1' not in hccl_network.all_addresses().get('lo', []):
        pytest.skip('this machine has no IPv6')
    check, = check_interface(Machine('npu', Path('/nonexistent'), environ, Pair(None, None, None, None)))
    assert check.status == status and words in check.value
    assert bool(check.remedy) == (status == 'warning')


@pytest.mark.parametrize('base, is_port', (
    ('６００００', False), ('', False), ('99999', False), ('1e4', False), ('60000 ', True)))
def test_base_port_is_judged_as_by_a_training(base, is_port):
    machine = Machine('npu', Path('/nonexistent'), {'HCCL_IF_BASE_PORT': base}, Pair(None, None, None, None))
    check = check_ports(machine, 'npu')[0]
    assert ('is not a port' not in check.value) == is_port


@pytest.mark.parametrize('name, value, words', (
    ('HCCL_CONNECT_TIMEOUT', 'x', 'is not a number of seconds from 120 to 7200'),
    ('HCCL_CONNECT_TIMEOUT', '', 'is not a number of seconds'), ('HCCL_EXEC_TIMEOUT', '-1', 'is not a number'),
    ('HCCL_EVENT_TIMEOUT', '1000', 'has to be above HCCL_EXEC_TIMEOUT'),
    ('HCCL_HOST_SOCKET_PORT_RANGE', '60050-60000', 'ends before it begins'),
    ('HCCL_NPU_SOCKET_PORT_RANGE', '', 'not a list of ports'),
    ('HCCL_HOST_SOCKET_PORT_RANGE', 'auto', None), ('HCCL_CONNECT_TIMEOUT', '1800', None)))
def test_values_of_hccl_are_judged_as_by_a_training(name, value, words):
    checks = check_values(Machine('npu', Path('/nonexistent'), {name: value}, Pair(None, None, None, None)))
    assert [c.status for c in checks] == ['warning'] * bool(words)
    assert words is None or words in checks[0].value and name in checks[0].value and 'unset it' in checks[0].remedy or (
        'lower' in checks[0].remedy)


def test_hccl_address_with_the_name_of_its_interface():
    """A link-local address, as `ip -6 addr` and getaddrinfo write it."""
    own = [(name, a) for name, here in hccl_network.all_addresses().items() for a in here if a.startswith('fe80:')]
    if not own:
        pytest.skip('this machine has no link-local address')
    name, address = own[0]
    environ = {'HCCL_IF_IP': f'{address}%{name}'}
    check, = check_interface(Machine('npu', Path('/nonexistent'), environ, Pair(None, None, None, None)))
    assert check.status == 'ok' and address in check.value
