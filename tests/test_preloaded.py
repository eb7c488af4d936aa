"""The preloaded Python of tests/preloaded is what a Python that has just started is, to the module that it runs."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import preloaded
import pytest
from conftest import ROOT, run_cli

FACTS = """
import atexit, json, logging, os, random, signal, sys, threading
def facts():
    import __main__
    return dict(
        argv=sys.argv, name=__name__, spec=getattr(__spec__, 'name', None), file=vars(__main__).get('__file__'),
        globals=sorted(vars(__main__)),
        cwd=os.getcwd(), environ={k: v for k, v in os.environ.items() if k != '_'}, path=sys.path, umask=os.umask(0o22),
        files=sorted(f for f in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{f}')),
        handlers={s.name: str(signal.getsignal(s)) for s in signal.valid_signals() if hasattr(s, 'name')},
        threads=threading.active_count(), tasks=len(os.listdir('/proc/self/task')), stdin=sys.stdin.read(),
        buffering=[sys.stdout.write_through, sys.stdout.line_buffering, sys.stderr.line_buffering],
        loggers=[str(h) for h in logging.root.handlers], package='seresnet_timm' in sys.modules,
        processes=__import__('multiprocessing').active_children(), affinity=sorted(os.sched_getaffinity(0)))
"""
PROBE = FACTS + """
print(json.dumps(facts()))
print('to stderr', file=sys.stderr)
atexit.register(print, 'at exit')
sys.exit(7)
"""


def run(python, folder, source, *argv, flags=(), code=False, **kwargs):
    (folder / 'probe.py').write_text(source)
    env = {**os.environ, 'PYTHONPATH': str(folder), 'OF_THE_CALL': 'ä=1', **kwargs.pop('env', {})}
    program = ('-c', source) if code else ('-m', 'probe')
    return subprocess.run([python, *flags, *program, *argv], env=env, capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize('code', (False, True), ids=('module', 'code'))
def test_equals_a_real_start(tmp_path, code):
    """All that a program can see of its start, exit code, streams and atexit."""
    (tmp_path / 'here').mkdir()
    results = [run(python, tmp_path, PROBE, '--flag', 'ü', flags=flags, code=code,
                   cwd=tmp_path / 'here', input='typed')
               for python in (sys.executable, preloaded.python()) for flags in ((), ('-u',))]
    real, real_u, own, own_u = results
    assert [r.returncode for r in results] == [7] * 4 and {r.stderr for r in results} == {'to stderr\n'}
    assert own.stdout.endswith('at exit\n')
    for a, b in ((own, real), (own_u, real_u)):
        a, b = (json.loads(r.stdout.splitlines()[0]) for r in (a, b))
        assert a == b
    assert a['spec'] == (None if code else 'probe') and a['stdin'] == 'typed' and a['environ']['OF_THE_CALL'] == 'ä=1'


def test_calls_share_nothing(digits, tmp_path):
    """Random numbers differ as between two processes; and it is there at once, whatever this process has imported."""
    source = ('import random, sys, time\nfresh = "torch" not in sys.modules\nimport numpy, torch\n'
              'print(random.random(), numpy.random.rand(), torch.rand(1).item(), time.process_time(), fresh)\n')
    pythons = sys.executable, preloaded.python(), preloaded.python()
    real, *own = [run(python, tmp_path, source).stdout.split() for python in pythons]
    assert all(len({r[i] for r in (real, *own)}) == 3 for i in range(3))
    assert real[4] == 'True' and own[0][4] == 'False' and float(own[0][3]) < float(real[3]) / 4


@pytest.mark.parametrize('source, code', (
    ('import os; os.kill(os.getpid(), 9)', -signal.SIGKILL), ('import os; os.kill(os.getpid(), 15)', -signal.SIGTERM),
    ('raise ValueError("x")', 1), ('import os; os._exit(3)', 3), ('import nothing_of_that_name', 1)))
def test_how_it_ends(tmp_path, source, code):
    result = run(preloaded.python(), tmp_path, source)
    assert result.returncode == code
    assert (code == 1) == ('Error' in result.stderr)


@pytest.mark.preloaded
def test_the_marker_chooses_it(tmp_path):
    """`run_cli` in a marked test has torch imported from the start; with fresh=True it has not."""
    (tmp_path / 'seresnet_timm').mkdir()
    (tmp_path / 'seresnet_timm' / '__init__.py').write_text('')
    (tmp_path / 'seresnet_timm' / '__main__.py').write_text('import sys; print("torch" in sys.modules)')
    assert [run_cli(cwd=tmp_path, fresh=fresh).stdout for fresh in (None, False, True)] == [
        'True\n', 'True\n', 'False\n']


WAIT = 'import os, signal, sys, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n'


@pytest.mark.parametrize('signum', (signal.SIGTERM, signal.SIGINT, signal.SIGKILL))
def test_signals_reach_it(tmp_path, signum):
    (tmp_path / 'probe.py').write_text(WAIT)
    process = subprocess.Popen(
        [preloaded.python(), '-m', 'probe'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': str(tmp_path)}, preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler))
    pid = int(process.stdout.readline())
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signum and ('KeyboardInterrupt' in stderr) == (signum == signal.SIGINT)
    deadline = time.time() + 60
    while os.path.exists(f'/proc/{pid}') and time.time() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f'/proc/{pid}')


def test_a_caller_that_is_gone_before_it_is_answered():
    """Its process ends, and the next one starts as ever."""
    python = preloaded.python()
    os.kill(preloaded._pid, signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(Path(python).with_name('socket')))
        socket.send_fds(connection, [b'.'], [0, 1, 2])
        connection.sendall(json.dumps(dict(
            argv=['-c', WAIT], unbuffered=False, environ=dict(os.environ), cwd='/', umask=0o22,
            ignores_interrupts=False)).encode() + b'\n')
    os.kill(preloaded._pid, signal.SIGCONT)
    assert subprocess.run([python, '-c', 'print(1)'], capture_output=True, text=True, timeout=60).stdout == '1\n'
    deadline = time.time() + 60
    while preloaded.running() and time.time() < deadline:
        time.sleep(0.01)
    assert not preloaded.running()


@pytest.mark.parametrize('what', ({'PYTHONHASHSEED': '0'}, {'OMP_NUM_THREADS': '2'}, 'sitecustomize.py', 'torch'))
def test_what_is_read_at_the_start_has_a_real_start(tmp_path, what):
    if isinstance(what, str):
        (tmp_path / what).write_text('') if '.' in what else (tmp_path / what).mkdir()
    result = run(preloaded.python(), tmp_path, 'import sys; print("torch" in sys.modules)',
                 env=what if isinstance(what, dict) else {})
    assert result.stdout == 'False\n', result.stderr


def test_the_package_is_imported_anew(tmp_path):
    """From PYTHONPATH, as `python -m seresnet_timm` does."""
    (tmp_path / 'seresnet_timm').mkdir()
    (tmp_path / 'seresnet_timm' / '__init__.py').write_text('')
    (tmp_path / 'seresnet_timm' / '__main__.py').write_text('print(__file__)')
    for path in (tmp_path, f'{tmp_path}{os.pathsep}{ROOT}'):
        result = subprocess.run([preloaded.python(), '-m', 'seresnet_timm'], capture_output=True, text=True, cwd='/',
                                env={**os.environ, 'PYTHONPATH': str(path)})
        assert result.stdout == f'{tmp_path}/seresnet_timm/__main__.py\n', result.stderr


@pytest.mark.slow
def test_test_processes_share_one_import(tmp_path):
    """Each has its own server, forked from the first one, that ends with the test process, also if that is killed."""
    code = """
import os, signal, subprocess, sys
import preloaded
facts = 'import json, os, sys; print(json.dumps([os.getppid(), os.environ.get("IT"), "timm" in sys.modules]))'
done = subprocess.run([preloaded.python(), '-c', facts], env={**os.environ, 'IT': 'x'}, capture_output=True, text=True)
assert preloaded.running() == []
print(preloaded._pid, done.stdout, flush=True)
if sys.argv[1] == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
"""
    program = """
import glob, json, os, subprocess, sys, time
import preloaded
preloaded.share()
for end in ('killed', 'normal'):
    done = subprocess.run([sys.executable, '-c', sys.argv[1], end], capture_output=True, text=True)
    pid, facts = done.stdout.split(' ', 1)
    assert json.loads(facts) == [int(pid), 'x', True], done
    while os.path.exists(f'/proc/{pid}'):
        time.sleep(0.02)
assert preloaded.running() == [] and len(glob.glob(os.environ['TMPDIR'] + '/preloaded-*')) == 1
"""
    env = {**os.environ, 'PYTHONPATH': str(ROOT / 'tests'), 'TMPDIR': str(tmp_path)}
    done = subprocess.run([sys.executable, '-c', program, code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob('preloaded-*'))
