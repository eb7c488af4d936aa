"""What a run shares with others or can run out of: its folder, the disk, shared memory, open files, loader workers."""
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

import preloaded
import pytest
from conftest import WIDE, run_cli, train_flags
from torch.utils.data import DataLoader, Dataset
from training import bundled_settings, summary, valid_record

from seresnet_timm import cli
from seresnet_timm.checkpoints.save import AtomicCheckpointSaver
from seresnet_timm.data.worker_errors import end_worker_at_queue_error, explain, raise_where_loader_waits
from seresnet_timm.errors import UsageError
from seresnet_timm.launch import resources
from seresnet_timm.launch.checks import Checked
from seresnet_timm.launch.resources import check_resources
from seresnet_timm.models.create import create_from_args
from seresnet_timm.runs.folder import RunFolder

pytestmark = pytest.mark.preloaded

HOLD = '''
import os, sys, time
sys.orig_argv = ['python', 'seresnet-timm']  # so that torch is not imported
from seresnet_timm.runs.folder import RunFolder
with RunFolder(sys.argv[1]).exclusive():
    if not os.fork():  # a loader worker, which outlives a killed run by some seconds
        time.sleep(60)
        os._exit(0)
    print('held', flush=True)
    sys.stdin.read()
'''


def hold(folder):
    """A process that writes into a folder."""
    process = subprocess.Popen([sys.executable, '-c', HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, start_new_session=True)
    assert process.stdout.readline() == 'held\n'
    return process


def fail(capsys, *argv, code):
    with pytest.raises(SystemExit) as e:
        cli.main([*map(str, argv)])
    assert e.value.code == code
    return capsys.readouterr().err


# --- the folder -------------------------------------------------------------------------------------------------------

def test_second_run_in_a_folder_is_refused(few_digits, tmp_path, capsys):
    folder = RunFolder(tmp_path / 'run')
    process = hold(folder.path)
    try:
        for flags in ((), ('--dry-run',), ('--nproc', 2)):
            error = fail(capsys, *train_flags(few_digits, tmp_path, *flags), code=2)
            assert f'Another training is writing into {folder.path}' in error and '--experiment' in error
        # with other problems, all at once
        error = fail(capsys, *train_flags(few_digits, tmp_path, '-b', 500), code=2)
        assert '2 problems' in error and 'Another training' in error
        assert os.listdir(folder.path) == ['.run.lock']
        with pytest.raises(UsageError, match='Another training'), folder.exclusive():
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert folder.why_busy() is None  # a run that was killed blocks nobody, though its loader worker lives on
        with folder.exclusive():
            pass
        assert not folder.lock.exists()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_the_lock_leaves_nothing_behind(tmp_path):
    folder = RunFolder(tmp_path / 'a' / 'run')
    with folder.exclusive():
        assert folder.lock.exists()
    assert not folder.path.exists()
    with pytest.raises(RuntimeError), folder.exclusive():
        folder.summary.touch()
        raise RuntimeError
    assert os.listdir(folder.path) == ['summary.csv']
    with folder.exclusive():  # two others one after the other, each waiting for this one
        os.unlink(folder.lock)
    with folder.exclusive():
        pass


@pytest.mark.slow
def test_second_run_while_ranks_train(few_digits, tmp_path):
    flags = [*map(str, train_flags(few_digits, tmp_path, '--epochs', 300, '--nproc', 2))]
    env = {**os.environ, 'TIMM_SCRIPTS': ''}
    first = subprocess.Popen([sys.executable, '-m', 'seresnet_timm', *flags], env=env, stderr=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not (tmp_path / 'run' / 'run.json').exists():
            time.sleep(0.1)
            assert first.poll() is None, first.stderr.read()
        for more in ((), ('--nproc', 2)):
            second = run_cli(*train_flags(few_digits, tmp_path, *more))
            assert second.returncode == 2 and 'Another training is writing into' in second.stderr
    finally:
        os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    last = tmp_path / 'run' / 'last.pth.tar'  # which the first run may not have reached
    third = run_cli(*train_flags(few_digits, tmp_path, '--epochs', 1, *(('--resume', last) if last.exists() else ())))
    assert third.returncode == 0, third.stderr


# --- the disk ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('script', ('bundled', 'small'))
def test_no_save_succeeds(few_digits, tmp_path, capsys, monkeypatch, script):
    """Every checkpoint is larger than the limit of the process: the run trains to its end, and says what is missing."""
    from timm_scripts import SMALL
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = AtomicCheckpointSaver._save

    def slowly(self, *args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, old[1]))
        time.sleep(0.5)  # the last save fails when the script's `main` has returned
        save(self, *args)
    monkeypatch.setattr(AtomicCheckpointSaver, '_save', slowly)
    try:
        error = fail(capsys, *train_flags(
            few_digits, tmp_path, '--scripts', 'bundled' if script == 'bundled' else SMALL, *WIDE), code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    run = tmp_path / 'run'
    # status.json says to `watch` that the run failed
    assert sorted(os.listdir(run)) == ['args.yaml', 'run.json', 'status.json', 'summary.csv']
    assert len(summary(run)) == 2
    record = valid_record(run)
    assert len(record['epochs']) == 2 and record['best'] is None and record['finished']
    assert [(f['kind'], f['epoch']) for f in record['faults']] == [('save', 0), ('save', 1)]
    assert error.count('NOT SAVED: Epoch') == 2
    assert 'The training has ended, but not everything was saved: Epoch 1 could not be saved' in error


def can_mount():
    return shutil.which('unshare') and not subprocess.run(
        ['unshare', '-m', 'true'], capture_output=True).returncode


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason='needs the right to mount')
@pytest.mark.parametrize('script', ('bundled', 'small'))
def test_full_disk(few_digits, tmp_path, script):
    """A real file system that has space for the three files of one epoch, of 90 MB each, and more after epoch 1."""
    from timm_scripts import SMALL
    out = tmp_path / 'out'
    out.mkdir()
    flags = train_flags(few_digits, out, '--epochs', 4, '--checkpoint-hist', 1, *WIDE,
                        '--scripts', 'bundled' if script == 'bundled' else SMALL)
    command = f'''mount -t tmpfs -o size=330M tmpfs {out} || exit 77
(while ! grep -q "NOT SAVED: Epoch 1" {tmp_path}/stderr 2>/dev/null; do sleep 0.02; done
mount -o remount,size=1G {out}) &
{sys.executable} -m seresnet_timm {shlex.join(map(str, flags))} 2> {tmp_path}/stderr; code=$?
ls -A {out}/run > {tmp_path}/names; cp {out}/run/run.json {out}/run/summary.csv {tmp_path}; exit $code'''
    code = subprocess.run(['unshare', '-m', 'bash', '-c', command], env={**os.environ, 'TIMM_SCRIPTS': ''}).returncode
    error = (tmp_path / 'stderr').read_text()
    assert code == 0, error
    assert 'NOT SAVED: Epoch 1' in error and 'No space left on device' in error
    assert 'Saved again' in error
    assert [row['epoch'] for row in summary(tmp_path)] == ['0', '1', '2', '3']
    assert valid_record(tmp_path)['faults'][0]['epoch'] == 1
    assert not [n for n in (tmp_path / 'names').read_text().split() if 'tmp' in n]


def test_events_that_could_not_be_written_come_later(tmp_path, caplog):
    """A file stands where the folder belongs, then it is gone."""
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from seresnet_timm.engine.events import EpochEvents
    folder = RunFolder(tmp_path)
    folder.tensorboard.touch()
    events = EpochEvents(folder, 0)
    for epoch in range(4):
        if epoch == 2:
            assert caplog.text.count('NOT SAVED: events of TensorBoard') == 2
            folder.tensorboard.unlink()
        events.add(epoch, {'loss': epoch + 1.}, None, 0.1, None)
    events.close()
    read = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(e.step, e.value) for e in read.Scalars('loss/train')] == [(0, 1.), (1, 2.), (2, 3.), (3, 4.)]


@pytest.mark.parametrize('code, words', ((5, 'check the disk'), (116, 'drive'), (30, 'make the folder writable'),
                                         (13, 'give this user the rights'), (122, 'free disk space')))
def test_errors_of_the_file_system_are_sentences(code, words):
    from seresnet_timm.launch.explain import explain
    settings = bundled_settings('train', '--model', 'seresnet18_ascend', '--device', 'cpu', output='/tmp/run')
    text = explain(OSError(code, os.strerror(code), '/data/args.yaml'), settings)
    assert '/data/args.yaml cannot be' in text and os.strerror(code) in text and words in text


def test_status_that_cannot_be_written_leaves_nothing(tmp_path):
    from seresnet_timm.runs.status import Status, write_status
    (tmp_path / 'status.json').mkdir()
    with pytest.raises(OSError):
        write_status(tmp_path / 'status.json', Status())
    assert os.listdir(tmp_path) == ['status.json']


# --- loader workers ---------------------------------------------------------------------------------------------------

class _Killed(Dataset):
    """A dataset whose worker kills itself, or meets an error where it hands over a batch."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if isinstance(self.how, int):
            os.kill(os.getpid(), self.how)
        return _Unsendable(self.how)


class _Unsendable:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


@pytest.mark.parametrize('how, words', (
    (signal.SIGKILL, 'was killed, most likely because memory ran out'),
    (signal.SIGBUS, '/dev/shm is full'),
    (signal.SIGSEGV, 'was ended by a signal (Segmentation fault'),
    (RuntimeError('unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)'),
     '/dev/shm is full'),
    (OSError(24, 'Too many open files'), 'ulimit -n'),
), ids=('killed', 'bus', 'segv', 'shm', 'files'))
def test_dead_worker_is_explained(how, words):
    """Real worker processes; without `end_worker_at_queue_error` the last two wait for ever."""
    end_worker_at_queue_error()
    raise_where_loader_waits()
    loader = DataLoader(_Killed(how), num_workers=1, batch_size=2, collate_fn=list)
    with pytest.raises((RuntimeError, OSError)) as e:
        list(loader)
    text = explain(e.value, 8)
    assert words in text and '-j 4 instead of 8' in text or how == signal.SIGSEGV


DIES_ELSEWHERE = '''
import os, signal, time
from torch.utils.data import DataLoader, Dataset
from seresnet_timm.data.worker_errors import explain, raise_where_loader_waits

class Numbers(Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        return index

class Slow:
    def __del__(self):
        wait()

def wait():
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        time.sleep(0.01)

raise_where_loader_waits()
batches = iter(DataLoader(Numbers(), num_workers=3, prefetch_factor=1, batch_size=2))
next(batches)
for worker, where in zip(batches._workers, ('here', 'destructor')):
    os.kill(worker.pid, signal.SIGSEGV)
    if where == 'here':
        wait()
    else:
        slow = Slow()
        del slow
try:
    list(batches)
except RuntimeError as e:
    print(explain(e, 3))
'''


def test_worker_that_dies_while_nobody_waits():
    """torch itself raises its error at once: from `wait` here, and prints a traceback from the destructor."""
    result = subprocess.run([preloaded.python(), '-c', DIES_ELSEWHERE], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and 'Traceback' not in result.stderr, result.stderr
    assert 'was ended by a signal (Segmentation fault' in result.stdout


def test_other_errors_are_not_of_workers():
    for error in (RuntimeError('CUDA error'), OSError(2, 'No such file'), OSError(28, 'No space left', 'a.txt')):
        assert explain(error, 2) is None
    assert '-j 0' in explain(RuntimeError('DataLoader worker (pid(s) 7, 8) exited unexpectedly'), 1)
    assert 'process 7, 8' in explain(RuntimeError('DataLoader worker (pid(s) 7, 8) exited unexpectedly'), 1)


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason='needs the right to mount')
def test_small_shared_memory(few_digits, tmp_path):
    """A real /dev/shm that does not take a batch: one sentence, where the run waited for ever."""
    flags = train_flags(few_digits, tmp_path, '-j', 2, '--fast-jpeg', 'off', '-b', 32)
    command = f'''mount -t tmpfs -o size=400k tmpfs /dev/shm || exit 77
exec {sys.executable} -m seresnet_timm {shlex.join(map(str, flags))}'''
    result = subprocess.run(['unshare', '-m', 'bash', '-c', command], capture_output=True, text=True, timeout=200,
                            env={**os.environ, 'TIMM_SCRIPTS': ''})
    assert result.returncode == 1 and '/dev/shm is full' in result.stderr, result.stderr
    assert 'Traceback' not in result.stderr, result.stderr


# --- checked before the start -----------------------------------------------------------------------------------------

GIB = 2 ** 30


def checked(*flags, verb='train', **settings):
    run = Checked(bundled_settings(verb, '--model', 'seresnet18_ascend', '--device', 'cpu', *flags,
                                   **{'output': '/tmp/run', **settings} if verb == 'train' else settings), {})
    run.model = create_from_args(run.args, meta=True)
    return list(check_resources(run)), run.notes


@pytest.fixture
def machine(monkeypatch):
    """Function that says what the machine has: bytes free on the disk and in /dev/shm, open files."""
    def set_up(disk=100 * GIB, shm=8 * GIB, files=65536, file_size=resource.RLIM_INFINITY):
        usage = type('usage', (), {})
        monkeypatch.setattr(resources.shutil, 'disk_usage', lambda path: (
            setattr(usage, 'free', shm if str(path) == '/dev/shm' else disk),
            setattr(usage, 'total', usage.free), usage)[-1])
        monkeypatch.setattr(resources.resource, 'getrlimit', lambda kind: (
            (file_size if kind == resource.RLIMIT_FSIZE else files),) * 2)
    return set_up


def test_enough_of_everything(machine):
    machine()
    assert checked('-j', 8, '--no-prefetcher') == ([], [])


@pytest.mark.parametrize('flags, mib', (
    (['--opt', 'momentum'], 90), (['--opt', 'adamw'], 135), (['--opt', 'sgd', '--momentum', '0'], 45),
    (['--opt', 'momentum', '--model-ema'], 135)))
def test_size_of_a_checkpoint_is_a_lower_bound(machine, flags, mib):
    """seresnet18 has 11.9 million weights of 4 bytes."""
    machine(disk=(mib - 5) * 10 ** 6)
    (problem,), _ = checked(*flags)
    assert 'A checkpoint needs at least' in problem and '--output' in problem
    machine(disk=(mib + 10) * 10 ** 6)
    problems, (note,) = checked(*flags)
    assert problems == [] and '--checkpoint-hist' in note


def test_limit_on_the_size_of_a_file(machine):
    machine(file_size=10 ** 7)
    (problem,), _ = checked()
    assert 'ulimit -f' in problem


def test_open_files(machine):
    machine(files=100)
    (problem,), _ = checked('-j', 16, '--no-prefetcher')
    assert 'need at least 224 open files, the limit is 100' in problem and 'ulimit -n' in problem
    machine(files=300)
    problems, (note,) = checked('-j', 16, '--no-prefetcher')
    assert problems == [] and 'At most 300 files' in note
    assert checked('-j', 0, '--no-prefetcher') == ([], [])


@pytest.mark.parametrize('flags, processes_of', (
    ((), 'train'), (('--color-jitter', 0, '--hflip', 0.5), None), (('--color-jitter', 0, '--mixup', 0.1), 'train'),
    (('--color-jitter', 0, '--aa', 'ta_wide'), 'train'), (('--fast-jpeg', 'off'), 'both'),
    (('--no-prefetcher',), 'both'),
))
def test_files_of_workers_that_are_processes(machine, few_digits, flags, processes_of):
    """What is counted is what the loaders of a run start."""
    from seresnet_timm.data.loaders import LoaderSetup, eval_loader, train_loader
    from seresnet_timm.data.loading import ThreadedLoader, inner_loader
    machine(files=66)
    off = {'fast_jpeg': 'off'} if '--fast-jpeg' in flags else {}
    flags = () if off else flags
    problems, _ = checked('-j', 3, '-b', 8, '--img-size', 32, *flags, **off)
    need = {None: 67, 'train': 79, 'both': 94}[processes_of]
    assert len(problems) == 1 and f'need at least {need} open files, the limit is 66' in problems[0]

    settings = bundled_settings('train', '--model', 'seresnet18_ascend', '--device', 'cpu', '--data-dir', few_digits,
                                '--img-size', 32, '-b', 8, '-j', 3, *flags)
    args = settings.namespace()
    args.distributed, args.rank = False, 0
    config = resources.resolve_data_config(vars(args))
    decoder, _ = resources.choose_decoder(args, off.get('fast_jpeg', 'auto'))
    setup = LoaderSetup(args, config, resources.torch.device('cpu'), decoder=decoder)
    inner = [inner_loader(loader) for loader in (train_loader(setup)[0], eval_loader(setup, 'val', 8))]
    threads = [isinstance(getattr(loader, 'loader', loader), ThreadedLoader) for loader in inner]
    assert threads == {None: [True, True], 'train': [False, True], 'both': [False, False]}[processes_of]


def test_number_of_workers(machine, monkeypatch):
    machine(files=10 ** 6)
    monkeypatch.setattr(resources.os, 'sched_getaffinity', lambda pid: set(range(8)))
    monkeypatch.setattr(resources.psutil, 'virtual_memory', lambda: type('memory', (), {'total': 32 * GIB}))
    monkeypatch.setattr(resources.limits, 'most_processes', lambda: 10000)
    threads, processes = ('--color-jitter', 0), ('--no-prefetcher',)
    for flags in (threads, processes):
        assert checked('-j', 32, *flags) == ([], [])
        problems, (note,) = checked('-j', 33, *flags)
        assert problems == [] and '33 loader workers are many for 8 cores' in note
        (problem,), _ = checked('-j', 6000, *flags)
        assert 'more than the 10000 processes' in problem
        (problem,), _ = checked('-j', 1025, *flags)
        assert '1,025 loader workers are too many for 8 cores' in problem
    monkeypatch.setattr(resources.psutil, 'virtual_memory', lambda: type('memory', (), {'total': 16 * GIB}))
    (problem,), _ = checked('-j', 1000, *processes)
    assert 'take at least 20,000 MiB of memory, this machine has 16,384 MiB' in problem
    with monkeypatch.context() as m:
        m.setattr(resources.process, 'memory_limits', lambda: [2 * GIB, 2 ** 63])
        (problem,), _ = checked('-j', 200, *processes)
        assert 'take at least 4,000 MiB of memory, the container allows 2,048 MiB' in problem
    problems, (note,) = checked('-j', 9, nproc=4, world_size=4)
    assert problems == [] and '9 loader workers for each of 4' in note


def test_shared_memory(machine):
    machine(shm=2 * 2 ** 20)
    flags = ('-j', 4, '-b', 256)
    (problem,), _ = checked(*flags, fast_jpeg='off')
    assert 'A batch has 36.8 MiB' in problem and '--shm-size' in problem and '-j 0' in problem
    (problem,), _ = checked(*flags, fast_jpeg='off', verb='validate')
    machine(shm=64 * 2 ** 20)  # docker's default
    problems, (note,) = checked(*flags, fast_jpeg='off', nproc=2, world_size=2)
    assert problems == [] and 'take up to 588 MiB' in note and '--shm-size' in note
    assert checked('-j', 0, '-b', 256, fast_jpeg='off') == ([], [])


def test_refused_before_the_start(few_digits, tmp_path, machine, capsys):
    """Through the command line, with --dry-run too, and nothing written."""
    machine(disk=10 ** 6)
    for more in ((), ('--dry-run',)):
        assert 'A checkpoint needs at least' in fail(capsys, *train_flags(few_digits, tmp_path, *WIDE, *more), code=2)
    assert not (tmp_path / 'run').exists()
