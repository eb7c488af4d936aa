"""recipes/docker: what the Dockerfiles say can be parsed, and what they call exists. No Docker is needed."""
import json
import os
import re
import shlex
import shutil
import subprocess

import pytest
from conftest import ROOT

from seresnet_timm.cli.main import make_parser, module_of

FOLDER = ROOT / 'recipes' / 'docker'
FILES = sorted(FOLDER.glob('*.Dockerfile'))
INSTRUCTIONS = {'ARG', 'FROM', 'SHELL', 'RUN', 'COPY', 'WORKDIR', 'ENV', 'HEALTHCHECK', 'ENTRYPOINT', 'CMD'}


def instructions(path):
    """Pairs of instruction and arguments, as Docker reads them: comments gone, lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith('#')]
    text = re.sub(r'\\\n\s*', '', '\n'.join(lines))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def argument(path, name):
    [(_, text)] = [i for i in instructions(path) if i[0] == name]
    return text


def test_there_is_one_for_npus_and_one_for_gpus():
    assert [f.stem for f in FILES] == ['cuda', 'npu']


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_instructions(path):
    found = instructions(path)
    names = [name for name, _ in found]
    assert set(names) <= INSTRUCTIONS and names[:2] == ['ARG', 'FROM'] and names.count('FROM') == 1
    declared = set()
    for name, text in found:
        if name == 'ARG':
            declared.add(text.split('=')[0])
        elif name in ('FROM', 'RUN'):
            used = set(re.findall(r'\$\{(\w+)', text))
            assert used <= declared, used - declared
            declared -= set() if name == 'RUN' else declared  # they end at FROM
        if name in ('SHELL', 'ENTRYPOINT', 'CMD'):
            assert all(isinstance(word, str) for word in json.loads(text))
        if name == 'RUN':
            assert subprocess.run(['bash', '-n', '-c', text], capture_output=True).returncode == 0
            assert 'apt-get install' not in text or 'rm -rf /var/lib/apt/lists' in text
            assert 'pip install' not in text or '--no-cache-dir' in text
    assert [text for name, text in found if name == 'COPY'] == ['. /tmp/seresnet_timm']


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_the_health_check_is_doctor(path):
    options, _, command = argument(path, 'HEALTHCHECK').partition(' CMD ')
    assert {o.split('=')[0] for o in options.split()} == {'--interval', '--timeout', '--start-period', '--retries'}
    words = json.loads(command)
    start = words.index('seresnet-timm')
    assert words[:start] in ([], ['bash', '/opt/seresnet_timm/recipes/docker/start.sh'])
    args = make_parser('doctor', module_of('doctor')).parse_args(words[start + 1:])
    assert args.device == path.stem and args.timeout < 300


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_the_commands_in_the_comments_name_files_that_exist(path):
    text = path.read_text()
    for name in re.findall(r'(?<!seresnet_timm/)(recipes/[\w/.]+\w)', text):
        assert (ROOT / name).exists(), name
    for version in re.findall('TORCH_NPU=([0-9.]+)', text):
        assert (ROOT / 'seresnet_timm/ascend/constraints' / f'torch_npu-{version}.txt').is_file()


def test_the_build_context_has_what_the_build_needs():
    lines = (ROOT / '.dockerignore').read_text().split()
    kept = {line[1:] for line in lines if line.startswith('!')}
    assert all((ROOT / name).exists() for name in kept)
    assert {'seresnet_timm', 'recipes', 'setup.py', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'} <= kept


def stub(tmp_path):
    program = tmp_path / 'docker'
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    return {'PATH': f'{tmp_path}:{os.environ["PATH"]}'}


def run_npu(tmp_path, *words, **env):
    return subprocess.run(['bash', str(FOLDER / 'run_npu.sh'), *words], capture_output=True, text=True, cwd=tmp_path,
                          env={**stub(tmp_path), **env}, timeout=30)


def test_run_npu(tmp_path):
    dev = tmp_path / 'dev'
    dev.mkdir()
    (tmp_path / 'my data').mkdir()
    words = ('image', 'my data', 'out', 'bash', 'recipes/run.sh', 'train_8p', '--data_path=/data')
    result = run_npu(tmp_path, *words, DEV=str(dev))
    assert result.returncode == 2 and 'davinci_manager does not exist' in result.stderr
    for name in ('davinci_manager', 'devmm_svm', 'hisi_hdc'):
        (dev / name).touch()
    result = run_npu(tmp_path, *words, DEV=str(dev))
    assert result.returncode == 2 and 'no NPU in' in result.stderr
    for number in (0, 1, 10):
        (dev / f'davinci{number}').touch()
    lines = run_npu(tmp_path, *words, DEV=str(dev)).stdout.splitlines()
    assert {x.split('/')[-1] for x in lines if x.startswith('--device=')} == {
        'davinci0', 'davinci1', 'davinci10', 'davinci_manager', 'devmm_svm', 'hisi_hdc'}
    assert f'{tmp_path}/my data:/data:ro' in lines and f'{tmp_path}/out:/output' in lines
    assert lines[-5:] == [words[0], *words[3:]] and {'--rm', '--init'} <= set(lines)
    lines = run_npu(tmp_path, *words, DEV=str(dev), NPUS='1').stdout.splitlines()
    assert 'davinci1' in {x.split('/')[-1] for x in lines} and not {'davinci0', 'davinci10'} & {
        x.split('/')[-1] for x in lines}
    assert run_npu(tmp_path, *words, DEV=str(dev), NPUS='7').returncode == 2
    assert run_npu(tmp_path, 'image').returncode == 2


def test_start_sets_the_variables_of_cann(tmp_path):
    toolkit = tmp_path / 'ascend-toolkit'
    toolkit.mkdir()
    (toolkit / 'set_env.sh').write_text('export ASCEND_HOME_PATH=/from/set_env\n')
    command = ['bash', str(FOLDER / 'start.sh'), 'bash', '-c', 'echo "$ASCEND_HOME_PATH $0 $1"', 'a b', 'c']
    for env, expected in (({'ASCEND_INSTALL_PATH': str(tmp_path)}, '/from/set_env a b c'),
                          ({'ASCEND_HOME_PATH': '/mine', 'ASCEND_INSTALL_PATH': str(tmp_path)}, '/mine a b c'),
                          ({'ASCEND_INSTALL_PATH': '/nowhere'}, ' a b c')):
        result = subprocess.run(command, capture_output=True, text=True, env={'PATH': os.environ['PATH'], **env})
        assert result.stdout.rstrip('\n') == expected, shlex.join(command)
    newer = tmp_path / 'cann'  # since CANN 8.5
    newer.mkdir()
    (newer / 'set_env.sh').write_text('export ASCEND_HOME_PATH=/from/cann\nfalse\n')
    for _ in range(2):  # beside an older one, and alone
        result = subprocess.run(command, capture_output=True, text=True, env={
            'PATH': os.environ['PATH'], 'ASCEND_INSTALL_PATH': str(tmp_path)})
        assert result.stdout == '/from/cann a b c\n'
        shutil.rmtree(toolkit, ignore_errors=True)
