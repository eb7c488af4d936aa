"""A thousand steps need no more memory, descriptors or shared memory than a few hundred, with workers and saves."""
import json
import os

import pytest
from conftest import train_flags
from timm_scripts import SCRIPTS
from training import train

pytestmark = [pytest.mark.preloaded, pytest.mark.slow]

STEPS, EPOCHS, WARM_UP = 25, 42, 14  # steps of an epoch; epochs in all, and those in which caches may still grow
GROWTH = 8 << 20  # bytes, in 700 steps
# resident memory: what is private alone grows for as long as pages that were shared with the workers are written to

MEASURE = '''
import json, os, threading
import psutil
from seresnet_timm.engine.saving import Saving

original = Saving.after_epoch

def after_epoch(self):
    original(self)
    for thread in threading.enumerate():
        if thread.name == 'save':
            thread.join()
    this = psutil.Process()
    shared = [name for name in os.listdir('/dev/shm') if str(this.pid) in name]
    with open(os.environ['MEASURED'], 'a') as f:
        f.write(json.dumps(dict(
            rss=this.memory_info().rss, descriptors=this.num_fds(), threads=this.num_threads(), shared=len(shared),
            workers=[(p.num_fds(), p.memory_info().rss) for p in this.children()])) + '\\n')
Saving.after_epoch = after_epoch
'''
LOADING = {
    'processes': ('--workers', 2, '--aa', 'rand-m5-mstd0.5', '--reprob', 0.5),
    'threads': ('--workers', 2, '--color-jitter', 0),
    'timm': ('--workers', 2, '--fast-jpeg', 'off'),
}


@pytest.mark.parametrize('loading', LOADING)
@pytest.mark.parametrize('scripts', (pytest.param(None, id='bundled'), SCRIPTS[1]))
def test_nothing_grows(few_digits, tmp_path, scripts, loading):
    (tmp_path / 'measure_growth.py').write_text(MEASURE)
    measured = tmp_path / 'measured'
    engine = ('--scripts', scripts) if scripts else ()
    train(*train_flags(
        few_digits, tmp_path, *LOADING[loading], *engine, '-b', 4, '--epochs', EPOCHS, '--model-kwargs',
        'channels=(4,8,8,8)',
        'stem_width=4', '--checkpoint-hist', 1, '--checkpoint-minutes', 0.01, '--device-modules', 'measure_growth'),
        env={**os.environ, 'PYTHONPATH': str(tmp_path), 'MEASURED': str(measured)}, timeout=900)
    epochs = [json.loads(line) for line in measured.read_text().splitlines()]
    assert len(epochs) == EPOCHS and STEPS * EPOCHS > 1000
    before, after = epochs[WARM_UP:WARM_UP + 7], epochs[-7:]
    for key in ('descriptors', 'threads', 'shared'):
        # the fewest: a checkpoint may just be written in a thread
        assert min(e[key] for e in before) == min(e[key] for e in after), key
    assert median(after, 'rss') - median(before, 'rss') < GROWTH
    for i in range(len(after[0]['workers'])):
        assert after[-1]['workers'][i][0] <= before[0]['workers'][i][0]
        assert after[-1]['workers'][i][1] - before[0]['workers'][i][1] < GROWTH


def median(epochs, key):
    return sorted(e[key] for e in epochs)[len(epochs) // 2]
