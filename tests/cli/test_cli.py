"""The command line: immediate help, verbs, flags, errors, exit codes."""
import importlib
import io
import os
import pkgutil
import py_compile
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
from conftest import run_cli

from seresnet_timm import cli
from seresnet_timm.cli.main import VERBS, main, make_parser

COMMANDS = [[], *([verb] for verb in VERBS), ['scripts', 'fetch'], ['bench', 'data']]


def refused(capsys, *argv) -> str:
    """The one sentence with which a wrong command line ends."""
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert e.value.code == 2 and err.startswith('seresnet-timm: error: ') and err.count('\n') == 1
    return err


def parse(verb: str, *argv):
    module = importlib.import_module(f'seresnet_timm.cli.{verb.replace("-", "_")}')
    return make_parser(verb, module).parse_args([verb, *argv])


@pytest.mark.parametrize('command', COMMANDS, ids=lambda c: ' '.join(c) or 'top')
def test_help_loads_neither_torch_nor_timm(command):
    code = ('import sys; sys.orig_argv = ["python", "seresnet-timm"]; from seresnet_timm import cli\n'
            f'try: cli.main({[*command, "--help"]})\n'
            'except SystemExit as e: assert not e.code\n'
            'assert not {"torch", "timm", "numpy"} & set(sys.modules)')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f'usage: {" ".join(["seresnet-timm", *command])}' in result.stdout


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


def test_help_imports_what_it_needs():
    """Each of these takes 10 ms or more, and would pass unnoticed in the time of a whole process."""
    result = subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', 'seresnet_timm', 'train', '--help'], capture_output=True, text=True)
    imported = {line.rpartition('|')[2].strip() for line in result.stderr.splitlines()}
    assert result.returncode == 0 and 'seresnet_timm.launch.parse' in imported
    assert not imported & {'torch', 'timm', 'numpy', 'yaml', 'filelock', 'psutil', 'logging', 'importlib.metadata'}


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


def test_every_verb_has_a_file_and_every_file_a_verb(capsys):
    files = {name for _, name, _ in pkgutil.iter_modules(cli.__path__)} - {'main', 'model_argument', 'flag_help'}
    assert files == {verb.replace('-', '_') for verb in VERBS}
    main(['help'])
    text = capsys.readouterr().out
    assert all(f'\n  {verb} ' in text for verb in VERBS)


def test_verbs(capsys):
    assert "Unknown verb 'trian': did you mean train?" in refused(capsys, 'trian')
    assert "Unknown verb 'x': there are train, validate" in refused(capsys, 'x')
    assert "Unknown benchmark 'dta': did you mean data?" in refused(capsys, 'bench', 'dta')
    assert "Unknown recipe 'train_1': did you mean train_1p?" in refused(capsys, 'recipe', 'train_1')
    assert "Unknown flag '--versoin': did you mean --version?" in refused(capsys, '--versoin')
    with pytest.raises(SystemExit) as e:
        main([])
    out, err = capsys.readouterr()
    assert e.value.code == 2 and 'usage: seresnet-timm' in out
    assert 'Name a verb, for example `seresnet-timm doctor`' in err
    for flag in ('--version', '-V'):
        with pytest.raises(SystemExit) as e:
            main([flag])
        assert not e.value.code and capsys.readouterr().out == '0.1.0\n'


def test_flags_of_a_verb(capsys):
    """An abbreviation is the full flag or is refused; an unknown flag brings the nearest one."""
    args = parse('predict', 'm', 'i.jpg', '--top', '3', '--use-em')
    assert args.topk == 3 and args.use_ema
    assert 'Ambiguous option: --m could match --model, --message.' in refused(
        capsys, 'push', __file__, 'b/c', '--m', 'x')
    assert "Unknown flag '--topl': did you mean --topk?" in refused(capsys, 'predict', 'resnet18', __file__, '--topl=3')
    assert "Unknown flag '--tga': did you mean --tag?" in refused(capsys, 'scripts', 'fetch', '--tga', 'v1')
    assert "Unexpected argument 'b'" in refused(capsys, 'demo-data', 'a', 'b')
    assert 'required: FILE.' in refused(capsys, 'inspect')
    for value in ('0', '-1'):
        assert f'--topk {value} is too small: give at least 1.' in refused(
            capsys, 'predict', 'resnet18', __file__, f'--topk={value}')
    for value in ('1.5', 'x', ''):
        assert f"--topk '{value}' is not a whole number: give at least 1." in refused(
            capsys, 'predict', 'resnet18', __file__, f'--topk={value}')


def test_the_moving_average_has_one_flag_and_its_old_names():
    for verb, name in (('convert', 'b.pth'), ('push', 'b/c')):
        for flag, value in (('--use-ema', True), ('--ema', True), ('--no-use-ema', False), ('--no-ema', False)):
            assert parse(verb, 'a', name, flag).use_ema is value
        assert parse(verb, 'a', name).use_ema is None


def test_arguments_of_train_reach_the_launcher_unchanged():
    """Also what argparse treats specially: --help, --, flags before all else, glued and empty arguments."""
    argv = ['-b8', '--help', '--opt-kwargs', 'a=1', '--', '-h', '', '--version', '-V', 'x y', '--no-such-flag']
    for verb in ('train', 'validate', 'recipe', 'bench', 'help'):
        assert parse(verb, *argv).argv == argv and parse(verb).argv == []


def test_errors_show_no_control_characters(capsys):
    error = refused(capsys, 'inspect', 'a\x1b]0;title\x07b\u202egnp.pth')
    assert r'a\x1b]0;title\x07b\u202egnp.pth does not exist' in error


def test_a_closed_pipe_ends_quietly():
    command = f'{sys.executable} -m seresnet_timm scripts | true; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert result.returncode in (0, 1) and not result.stderr


@pytest.mark.parametrize('error, words', (
    ('ModuleNotFoundError("x", name="torch")', 'torch is not installed for'),
    ('ModuleNotFoundError("x", name="torchvision")', '-m pip install torch=='),  # never a newer torch
    ('RuntimeError("operator torchvision::nms does not exist")', 'torchvision does not belong to this torch: '),
    ('RuntimeError("Failed to load the backend extension: torch_npu.")', 'torch_npu does not load')))
def test_a_broken_installation_is_one_sentence(tmp_path, error, words):
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text(f'raise {error}')
    (tmp_path / 'torch' / 'version.py').write_text('__version__ = "2.10.0+cpu"')
    (tmp_path / 'x.pth').write_text('')
    result = run_cli('inspect', 'x.pth', cwd=tmp_path, env={'PYTHONPATH': str(tmp_path)}, fresh=True)
    assert result.returncode == 1 and words in result.stderr and result.stderr.count('\n') == 1


def test_a_damaged_compiled_module_is_named(tmp_path):
    """A module that Python compiled on a full disk: it kept the part that fitted."""
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text('x = 1')
    (tmp_path / 'torch' / 'version.py').write_text('__version__ = "2.10.0+cpu"')
    compiled = Path(py_compile.compile(str(tmp_path / 'torch' / '__init__.py')))
    compiled.write_bytes(compiled.read_bytes()[:20])
    (tmp_path / 'x.pth').write_text('')
    result = run_cli('inspect', 'x.pth', cwd=tmp_path, env={'PYTHONPATH': str(tmp_path)}, fresh=True)
    assert result.returncode == 1 and f'({compiled}): remove it' in result.stderr and result.stderr.count('\n') == 1


def test_ctrl_c_while_a_verb_starts_is_one_sentence(tmp_path):
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text(
        'import os, signal, time\n'
        'signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it\n'
        'os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)')
    (tmp_path / 'torch' / 'version.py').write_text('__version__ = "2.10.0+cpu"')
    (tmp_path / 'x.pth').write_text('')
    result = run_cli('inspect', 'x.pth', cwd=tmp_path, env={'PYTHONPATH': str(tmp_path)}, fresh=True)
    assert result.returncode == 130 and result.stderr == 'seresnet-timm: error: Stopped by Ctrl-C.\n'


def test_import_registers_models_without_the_engine():
    code = ('import sys, seresnet_timm, timm\n'
            'assert timm.is_model("seresnet152_ascend")\n'
            'assert not [m for m in sys.modules if m.startswith(("seresnet_timm.engine", "torch_npu", "sklearn"))]')
    subprocess.run([preloaded.python(), '-c', code], check=True)


@pytest.mark.skipif(os.name != 'posix' or os.getuid() != 0, reason='needs root')
def test_a_user_without_a_home_folder():
    """As in a container that runs under a number which no user has: no traceback, and no folder called `~`."""
    code = ('import os; from seresnet_timm.cli.main import give_home; from seresnet_timm.timm_scripts.known import '
            'cache_dir; os.setuid(54321); del os.environ["HOME"]; give_home(); print(cache_dir())')
    env = {k: v for k, v in os.environ.items() if k != 'XDG_CACHE_HOME'}
    result = subprocess.run([sys.executable, '-c', code], env={**env, 'HOME': '/x'}, capture_output=True, text=True)
    assert result.stdout.startswith('/.cache/seresnet_timm'), result.stderr


@pytest.mark.parametrize('closed', ('<&-', '>&-', '2>&-', '<&- >&- 2>&-'))
def test_streams_that_are_closed(closed):
    command = f'"{sys.executable}" -m seresnet_timm recipes {closed}'
    result = subprocess.run(['sh', '-c', command], capture_output=True, text=True)
    assert result.returncode == 0 and 'Traceback' not in result.stderr
    assert bool(result.stdout) == ('>&-' not in closed.replace('2>&-', ''))


def test_working_folder_that_was_removed(tmp_path):
    (tmp_path / 'gone').mkdir()
    command = f'rmdir "{tmp_path}/gone"; "{sys.executable}" -m seresnet_timm train --data-dir x'
    result = subprocess.run(['sh', '-c', command], cwd=tmp_path / 'gone', capture_output=True, text=True)
    assert result.returncode == 2 and 'The working folder was removed' in result.stderr


def test_full_stdout_without_a_buffer(monkeypatch, capsys):
    """As with PYTHONUNBUFFERED=1, where no text is left to flush after the error."""
    with io.TextIOWrapper(open('/dev/full', 'wb', buffering=0), write_through=True) as full:
        monkeypatch.setattr(sys, 'stdout', full)
        with pytest.raises(SystemExit) as e:
            main(['recipes'])
    assert e.value.code == 1 and 'cannot be written to stdout (No space left' in capsys.readouterr().err
