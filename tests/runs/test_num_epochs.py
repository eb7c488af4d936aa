"""How long a run is: as timm's schedulers say."""
import itertools

import pytest
import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from seresnet_timm.engine.flags import train_parser
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.read import Run
from seresnet_timm.runs.settings import num_epochs

SCHEDULES = ('cosine', 'tanh', 'poly', 'step', 'multistep', 'plateau', 'constant', 'wsd', 'rsqrt', 'none')
CYCLES = ((1, 1.), (3, 1.), (2, 2.), (3, .5))


@pytest.mark.parametrize('sched', SCHEDULES)
def test_epochs_of_a_run_are_those_of_timms_scheduler(sched):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    for cooldown, prefix, (limit, factor), epochs in itertools.product((0, 4), (False, True), CYCLES, (10, 31)):
        argv = ['--sched', sched, '--epochs', epochs, '--warmup-epochs', 3, '--cooldown-epochs', cooldown,
                '--lr-cycle-limit', limit, '--lr-cycle-mul', factor, '--decay-epochs', 5, '--decay-milestones', 3, 6]
        args = train_parser().parse_args([str(a) for a in argv] + ['--warmup-prefix'] * prefix)
        _, expected = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=7)
        assert num_epochs(vars(args)) == expected, argv


def test_what_is_missing_has_timms_default():
    assert num_epochs({}) == 300 and num_epochs({'warmup_prefix': True, 'epochs': 10}) == 15


def test_a_report_counts_them_likewise(tmp_path):
    args = {'epochs': 10, 'cooldown_epochs': 2, 'sched': 'cosine'}
    assert Run(RunFolder(tmp_path), {'settings': {'args': args}}, []).epochs_planned == 12
    assert Run(RunFolder(tmp_path), {'settings': {'args': {}}}, []).epochs_planned is None
