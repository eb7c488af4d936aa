"""The command line: immediate help, verbs, presets."""
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_cli

COMMANDS = ([], ['train'], ['validate'], ['demo-data'], ['prepare'], ['prepare-imagenet'], ['inspect'], ['convert'],
            ['push'], ['pull'], ['export'], ['predict'], ['bench'], ['bench', 'data'],
            ['doctor'], ['report'])


@pytest.mark.parametrize('command', COMMANDS, ids=lambda c: ' '.join(c) or 'top')
def test_help_loads_neither_torch_nor_timm(command):
    code = ('import sys; sys.orig_argv = ["python", "seresnet-timm"]; from seresnet_timm.cli import main as cli\n'
            f'try: cli.main({[*command, "--help"]})\n'
            'except SystemExit as e: assert not e.code\n'
            'assert not {"torch", "timm", "numpy"} & set(sys.modules)')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 'usage: seresnet-timm' in result.stdout


@pytest.mark.parametrize('command', COMMANDS[:2], ids=('top', 'train'))
def test_help_is_quick(command):
    """In CPU time, which other processes on the machine change little."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_cli(*command, '--help', fresh=True).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(times) < 0.6


def test_installed_command_is_the_module():
    command = Path(sys.executable).with_name('seresnet-timm')
    script = subprocess.run([command, '--help'], capture_output=True, text=True)
    assert script.stdout == run_cli('--help', fresh=True).stdout


def test_help_lists_every_flag_that_is_implemented():
    from seresnet_timm.engine.flags import flags_of, train_parser
    text = run_cli('train', '--help').stdout
    hidden = {'--local_rank', '--drop-connect'}
    assert not [f for f in flags_of(train_parser()) if f not in text and f not in hidden]
    assert '--preset' in text and 'naflex' not in text


def test_verbs():
    result = run_cli('trian')
    assert result.returncode == 2 and "Unknown verb 'trian': did you mean train?" in result.stderr
    result = run_cli('bench', 'dta')
    assert result.returncode == 2 and "Unknown benchmark 'dta': did you mean data?" in result.stderr
    result = run_cli()
    assert result.returncode == 2 and 'Name a verb' in result.stderr
    assert run_cli('--version').stdout.strip() == '0.1.0'


def test_import_registers_models_without_the_engine():
    code = ('import sys, seresnet_timm, timm\n'
            'assert timm.is_model("seresnet152_ascend")\n'
            'assert not [m for m in sys.modules if m.startswith(("seresnet_timm.engine", "torch_npu", "sklearn"))]')
    subprocess.run([sys.executable, '-c', code], check=True)
