"""A run's folder: what is in it, who writes into it, and the command that goes on with it."""
import io
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from seresnet_timm.cli.main import fail
from seresnet_timm.errors import print_any_text
from seresnet_timm.runs.folder import RunFolder, resume_hint
from seresnet_timm.runs.settings import RunSettings, Script

SETTINGS = RunSettings(verb='train', script=Script('train.py'), args=dict(model='m', batch_size=8, device='cpu'))


@pytest.mark.parametrize('name, holds', (
    ('summary.csv', True), ('last.pth.tar', True), ('model_best.pth.tar', True), ('checkpoint-3.pth.tar', True),
    ('recovery-0-5.pth.tar', True), ('logs', False), ('args.yaml', False), ('run.json', False), ('notes.txt', False)))
def test_results_of_a_run(tmp_path, name, holds):
    """A run that has saved nothing leaves nothing that another one could mix with."""
    (tmp_path / name).write_text('')
    assert RunFolder(tmp_path).holds_a_run() == holds


@pytest.mark.parametrize('command', (
    ['seresnet-timm', 'train', '--data-dir', 'my data', '--output', 'x', '--experiment', 'y'],
    ['bash', 'recipes/train_8p.sh', '--data_path=my data', '--nproc', '2'],
    ['torchrun', '--nproc-per-node=2', '-m', 'seresnet_timm', 'train', '--data-dir', 'my data'],
    ['srun', '--output', 'log', 'python', '-m', 'seresnet_timm', 'train', '--config', 'my data/c.yaml']))
def test_pasted_command_goes_on_in_the_folder(tmp_path, monkeypatch, command):
    """Pasted in another folder, a shell makes these words of it, in the folder where the run was started."""
    here = tmp_path / 'a folder'
    (here / 'my data').mkdir(parents=True)
    (here / 'my data' / 'c.yaml').write_text('')
    monkeypatch.chdir(here)
    settings = replace(SETTINGS, command=command, output='out put/run 1')
    assert resume_hint(settings) == ''  # nothing was saved
    folder = RunFolder(here / 'out put' / 'run 1')
    folder.path.mkdir(parents=True)
    folder.last.write_text('')
    pasted = resume_hint(settings).removeprefix(' Resume with: ')
    place, _, line = pasted.partition(' && ')
    where = subprocess.run(f'{place} && pwd', shell=True, capture_output=True, text=True, cwd='/').stdout.strip()
    words = shlex.split(line)
    assert where == str(here)
    assert words[-6:] == ['--output', str(here / 'out put'), '--experiment', 'run 1', '--resume', str(folder.last)]
    if command[0] == 'bash':
        assert words[:5] == [sys.executable, '-m', 'seresnet_timm', 'recipe', 'train_8p'] and words[5:8] == command[2:]
    else:
        given = [word for word in command[1:] if command[0] == 'srun' or word not in (
            '--output', 'x', '--experiment', 'y')]
        assert words[:-6][-len(given):] == given


@pytest.mark.parametrize('encoding', ('utf-8', 'ascii'))
@pytest.mark.parametrize('name', (
    'two words', "it's", 'say "hi"', '100 % $HOME `id`', 'two\nlines', '\x1b[31mred', 'caf\u00e9 \u732b',
    os.fsdecode(b'\xff'),
    'a\u202eb', 'back\\slash', '!bang', '*[star]?', 'a && b; c | d', '\ttab '))
def test_names_of_any_bytes_are_pasted_as_they_are(tmp_path, monkeypatch, name, encoding):
    """bash gets the words of the command from what was printed on stderr."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    folder = RunFolder(tmp_path / name / 'run')
    folder.path.mkdir()
    folder.last.write_text('')
    stderr = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, 'stderr', stderr)
    print_any_text()
    command = ['torchrun', 'train', '--data-dir', name, f'--aa={name}']
    with pytest.raises(SystemExit):
        fail(f'It ended.{resume_hint(replace(SETTINGS, command=command, output=str(folder.path)))}')
    stderr.flush()
    pasted = stderr.buffer.getvalue().partition(b' Resume with: ')[2]
    place, _, line = pasted.partition(b' && ' + b'torchrun')
    result = subprocess.run([b'bash', b'-c', place + b' && printf "%s\\0" "$PWD"' + line], capture_output=True, cwd='/')
    words = [os.fsdecode(w) for w in result.stdout.split(b'\0')[:-1]]
    assert words == [str(tmp_path), *command[1:], '--output', str(tmp_path / name), '--experiment', 'run',
                     '--resume', str(folder.last)]


def test_command_without_files_needs_no_folder(tmp_path):
    settings = replace(SETTINGS, command=['seresnet-timm', 'train', '-b', '8'], output=str(tmp_path))
    (tmp_path / 'last.pth.tar').write_text('')
    assert 'cd ' not in resume_hint(settings)
    assert resume_hint(replace(settings, verb='validate')) == ''
