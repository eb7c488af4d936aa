"""Shared fixtures: the demo digits as data, and the command line as a user runs it."""
import gc
import importlib.util
import io
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.util import get_temp_dir
from pathlib import Path
from unittest import mock

import preloaded
import pytest
from filelock import FileLock
from PIL import Image

# one thread a process: results do not depend on the machine's cores, and test processes run side by side
os.environ['OMP_NUM_THREADS'] = '1'

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / 'benchmarks'))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs):
    """Several test processes: torch and timm are imported once for all of them, and for what they start."""
    preloaded.share()
    for spec in specs:
        spec.python = preloaded.python()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's
def pytest_collection_modifyitems(items):
    """Tests that share a fixture of their module run in one test process, so that it is made once.

    Files of few tests, which are the long ones, come first, and files of hundreds last: no test process is still busy
    with a long one when the others have ended.
    """
    tests_of = Counter(item.path for item in items)
    items.sort(key=lambda item: tests_of[item.path])
    for item in items:
        scopes = {fixtures[-1].scope for fixtures in item._fixtureinfo.name2fixturedefs.values()}
        if 'module' in scopes and item.get_closest_marker('xdist_group') is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split('::')[0]))


def pytest_collection_finish():
    """Modules and tests stay: Python's collections need not go through them, and copy no page of a forked process."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Choose how command lines start, before the fixtures, which may run some too."""
    preloaded.wanted = item.get_closest_marker('preloaded') is not None


@pytest.fixture(scope='session', autouse=True)
def temporary_files(tmp_path_factory):
    """All temporary files, those of started processes too, lie in pytest's own folder, which goes with the session."""
    folder = tmp_path_factory.mktemp('tmp')
    get_temp_dir()  # multiprocessing removes its own when Python ends: pytest's has gone by then
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TMPDIR', str(folder))
        patch.setattr(tempfile, 'tempdir', None)  # Python read the variable before
        # timm's scripts that the user has fetched are not what the tests mean by the bundled ones
        patch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
        patch.setenv('TIMM_SCRIPTS', '')  # nor are these; tests/timm_scripts.py has read their folder
        yield
        preloaded.stop()


@pytest.fixture(autouse=True)
def log_of_this_test():
    """A command line that ran in this process leaves no handler that writes to a stream which is closed then."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler and h not in before]:
        root.removeHandler(handler)


def run_cli(*argv, cwd=None, env=None, timeout=240, torchrun=0, fresh=None):
    """Run `python -m seresnet_timm ...`, under torchrun on n processes; bundled scripts unless others are named.

    Args:
        fresh: Start Python anew (True), or in a process that has torch and timm imported, and its ranks too (False);
            None for what the test's marker says. Tests about starting, importing, the tree of processes or signals
            need True, see preloaded/__init__.py.
    """
    if fresh is None:
        fresh = not preloaded.wanted
    launcher = [sys.executable if fresh else preloaded.python(), '-m']
    if torchrun:
        launcher += ['torch.distributed.run', '--standalone', f'--nproc-per-node={torchrun}', '-m']
    environ = dict(os.environ) if fresh else preloaded.environment()
    return subprocess.run(
        [*launcher, 'seresnet_timm', *map(str, argv)],
        cwd=cwd, env={**environ, 'TIMM_SCRIPTS': '', **(env or {})}, capture_output=True, text=True, timeout=timeout,
    )


def run_here(*argv):
    """What run_cli returns, without a process: for command lines that are refused, or print a plan or a text."""
    from seresnet_timm.cli.main import main
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), mock.patch.dict(os.environ, TIMM_SCRIPTS=''):
        try:
            main([str(a) for a in argv])
        except SystemExit as e:
            code = e.code or 0
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def sample_photos() -> list:
    """The two photos of scikit-learn's `load_sample_images`, 640 x 427, without its import, which takes 2 s."""
    folder = Path(importlib.util.find_spec('sklearn').origin).parent / 'datasets' / 'images'
    return [Image.open(folder / name).convert('RGB') for name in ('china.jpg', 'flower.jpg')]


def subset(source: Path, target: Path, num_train: int, num_val: int) -> Path:
    """Copy the first images of every class."""
    for split, count in (('train', num_train), ('val', num_val)):
        for folder in sorted((source / split).iterdir()):
            (target / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, target / split / folder.name)
    return target


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    """The whole demo dataset: 1,438 training and 359 validation images; the test processes write it once, for all."""
    base = tmp_path_factory.getbasetemp()
    written = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'digits'
    with FileLock(f'{written}.lock'):
        if not written.exists():
            from seresnet_timm.datasets.demo import write_demo_data
            write_demo_data(str(written))
    # a folder of its own, as some tests move the data away
    return Path(shutil.copytree(written, tmp_path_factory.mktemp('data') / 'digits', copy_function=os.link))


@pytest.fixture(scope='session')
def few_digits(digits, tmp_path_factory) -> Path:
    """100 training and 70 validation images, which no world size from 2 to 4 divides evenly by batches of 16."""
    return subset(digits, tmp_path_factory.mktemp('few') / 'digits', 10, 7)


# an eighth of the channels: an epoch of the few digits takes 0.3 s of CPU time instead of 1.3 s
NARROW = {'channels': (8, 16, 24, 32)}
MODEL = ('--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(8,16,24,32)', '--num-classes', 10,
         '--img-size', 32)
WIDE = ('--model-kwargs', 'channels=(64,128,256,512)')  # all of them


def load_file(path: Path):
    """A file of Python outside the packages, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def file_size_limit(size):
    """Files of this process cannot grow beyond a size."""
    old, writes_nothing = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python would keep the part of a compiled module that fits
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        sys.dont_write_bytecode = writes_nothing


def train_flags(data, output, *more) -> list:
    """A training of a second on the few digits."""
    return [
        'train', '--data-dir', data, *MODEL, '--val-split', 'val', '-b', 16, '--workers', 0, '--device', 'cpu',
        '--opt', 'momentum', '--lr', 0.01, '--warmup-epochs', 0, '--epochs', 2, '--output', output,
        '--experiment', 'run', '--log-interval', 2, *more,
    ]


@pytest.fixture(scope='session')
def digits_run(few_digits, tmp_path_factory) -> Path:
    """A training of two epochs on the few digits; its network has lean SE blocks."""
    output = tmp_path_factory.mktemp('trained')
    result = run_cli(*train_flags(few_digits, output), fresh=False)
    assert result.returncode == 0, result.stderr
    return output / 'run'


@pytest.fixture
def dead_workers_are_told(monkeypatch):
    """Dead loader workers are told in this process as in a rank, and as before after the test."""
    from torch.utils.data._utils import signal_handling

    from seresnet_timm.data.worker_errors import raise_where_loader_waits
    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(signal_handling, '_SIGCHLD_handler_set', False)
    raise_where_loader_waits()
    yield
    signal.signal(signal.SIGCHLD, before)
