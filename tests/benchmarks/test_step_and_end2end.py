"""`bench step` and `bench end2end`: that they measure what they say, on networks and runs of seconds."""
import inspect
import json
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import asdict

import end2end
import measure
import pytest
import step
import timm
import torch
from conftest import ROOT

from seresnet_timm.cli.main import main
from seresnet_timm.errors import RunError
from seresnet_timm.launch.plan import make_plan


def test_step_reports_ratios_of_the_same_run(tmp_path, capsys):
    report_file = tmp_path / 'r.json'
    main(['bench', 'step', '--device', 'cpu', '-b', '2', '--img-size', '32', '--rounds', '2', '--model',
          'seresnet18_ascend', '--rival', 'seresnet18', '--without-se', 'resnet18', '--json', str(report_file)])
    report = json.loads(report_file.read_text())
    for section in ('training', 'evaluation'):
        timms, ours = (report[section][name]['seconds'] for name in ('timm', 'seresnet_timm'))
        assert len(timms) == len(ours) == 2 and report[section]['timm']['ratio'] == 1
        assert report[section]['seresnet_timm']['ratio'] == pytest.approx(
            (timms[0] / ours[0] + timms[1] / ours[1]) / 2, rel=0.02)  # the median of two
    out = capsys.readouterr().out
    assert 'n = 2 interleaved rounds' in out and f'ratio {report["memory"]["ratio"]:.3f}' in out


def bench_flags(**more):
    return Namespace(**{**dict(
        device='cpu', batch_size=2, img_size=32, amp=False, amp_dtype='float16', model='seresnet18_ascend'), **more})


def test_settings_are_those_of_a_training(few_digits):
    """The command line of a training with the same flags gives the same settings, but for its folder and its data."""
    settings = step.train_settings(bench_flags(amp=True, amp_dtype='bfloat16'), 'seresnet18_ascend')
    plan = make_plan('train', [
        '--scripts', 'bundled', '--device', 'cpu', '-b', '2', '--img-size', '32', '--amp', '--amp-dtype', 'bfloat16',
        '--model', 'seresnet18_ascend', '--opt', 'momentum', '--momentum', '0.9', '--lr', '0.01', '--weight-decay',
        '1e-4', '--data-dir', str(few_digits), '--val-split', 'val'])
    ours, theirs = asdict(settings), asdict(plan.settings)
    of_data = {'args', 'command', 'output', 'class_names', 'num_images', 'reasons'}
    assert {k: v for k, v in ours.items() if k not in of_data} == {k: v for k, v in theirs.items() if k not in of_data}
    assert {k for k in ours['args'] if ours['args'][k] != theirs['args'][k]} - {'experiment'} == {
        'data_dir', 'val_split', 'num_classes'}
    assert settings.args['channels_last'] and settings.fast_step and settings.precision == 'amp bfloat16'


def test_evaluation_is_set_up_by_the_settings():
    for more, folded in ((dict(fast_step='off', fuse_bn='off'), False), ({}, True)):
        settings = step.validate_settings(bench_flags(), 'seresnet18_ascend', **more)
        values = inspect.getclosurevars(step._evaluation(settings)).nonlocals
        layers = [m for m in values['model'].modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert (not layers) is folded
        assert values['images'].is_contiguous(memory_format=torch.channels_last) is folded


def test_wrong_flags_are_refused_before_anything_is_measured(few_digits, capsys):
    for argv, words in (
            (['step', '--amp', '--img-size', '0'], '--img-size'),
            (['step', '--device', 'npu', '--model', 'seresnet18_ascend'], '--device npu cannot be used here'),
            (['step', '--device', 'cpu', '--model', 'vit_tiny_patch16_224', '--img-size', '32'],
             'does not take images'),
            (['step', '--device', 'cpu', '--rival', 'resnet17'], "'resnet17'"),
            (['end2end', '--data-dir', few_digits, '--device', 'npu'], '--device npu cannot be used here'),
            (['end2end', '--data-dir', few_digits, '--', '--sched', 'cosin'], '--sched cosin is unknown'),
            (['end2end', '--data-dir', few_digits, '--', '--num-classes', '3'],
             'The data has 10 classes, the model 3 outputs'),
            (['end2end', '--data-dir', few_digits / 'train'], '--data-dir')):
        scripts = ['--timm-scripts', ROOT / 'tests' / 'small_scripts'] if argv[0] == 'end2end' else []
        with pytest.raises(SystemExit) as e:
            main(['bench', argv[0], *map(str, [*scripts, *argv[1:]])])
        assert e.value.code == 2 and words in capsys.readouterr().err


def test_peak_memory_is_that_of_the_tensors():
    """A step whose peak is known: weights, their gradients and state, and one activation of 4 MiB."""
    model = torch.nn.Linear(1024, 1024, bias=False)  # 4 MiB
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)

    def one_step():
        x = torch.ones(1024, 1024)
        model(x).sum().backward()
        del x
        optimizer.step()
        optimizer.zero_grad()
    one_step.model, one_step.optimizer = model, optimizer
    # weights and momentum; then x, the output, the gradient of the weights
    assert 20 <= step.peak_memory(one_step, torch.device('cpu')) <= 24.5


def test_end2end_runs_both_scripts(few_digits, tmp_path, capsys):
    small = ROOT / 'tests' / 'small_scripts'
    args = type('Args', (), dict(device='cpu', img_size=32, batch_size=16, workers=0, epochs=1,
                                 model='seresnet18_ascend',
                                 timm_model='r', timm_scripts=str(small)))
    commands = end2end.commands(args, ['--seed', '3'], str(few_digits), str(tmp_path))
    assert list(commands) == [
        'timm', 'seresnet_timm, bundled script', "seresnet_timm, timm's script"]
    flags = [c[c.index('--data-dir'):c.index('--output')] for c in commands.values()]
    assert all(flags[0] == f[:len(flags[0])] for f in flags) and flags[0][-2:] == ['--seed', '3']
    assert flags[0][flags[0].index('--num-classes') + 1] == '10'
    assert commands['timm'][1] == str(small / 'train.py')
    with pytest.raises(SystemExit) as e:
        main(['bench', 'end2end', '--timm-scripts', str(tmp_path)])
    assert e.value.code == 2 and 'seresnet-timm scripts fetch' in capsys.readouterr().err


def test_drawn_images_are_like_imagenets(tmp_path):
    from PIL import Image
    folder = end2end.draw_images(tmp_path, 8)
    files = sorted(folder.glob('train/*/*.jpg'))
    assert len(files) == 8 and len(list(folder.glob('val/*/*.jpg'))) == 2
    assert Image.open(files[0]).size == (500, 375) and 50e3 < files[0].stat().st_size < 200e3


def test_processes_are_measured():
    spin = 'import time\nwhile time.process_time() < 0.5: pass\nprint("ready", flush=True)\ntime.sleep(300)'
    start = time.perf_counter()
    seconds = measure.run_until([sys.executable, '-c', spin], 'ready')
    assert 0.4 < seconds['cpu'] < 1.5 and time.perf_counter() - start < 150
    seconds = measure.run_process([sys.executable, '-c', spin.partition('print')[0]])
    assert 0.4 < seconds['cpu'] < 1.5
    with pytest.raises(RunError, match='no such thing'):
        measure.run_process([sys.executable, '-c', 'raise SystemExit("no such thing")'])
    with pytest.raises(RunError, match='ended without "ready"'):
        measure.run_until([sys.executable, '-c', 'print("steady")'], 'ready')


def test_rounds_take_turns():
    calls = []
    contenders = {n: lambda n=n: calls.append(n) or float(len(calls)) for n in 'ab'}
    times = measure.interleave(contenders, 2)
    assert calls == list('ababab') and times == {'a': [3., 5.], 'b': [4., 6.]}
    assert measure.ratio([2., 6., 2.], [1., 2., 2.]) == 2


@pytest.mark.slow
def test_import_adds_models_and_nothing_else():
    code = ('import sys, timm\nbefore = set(sys.modules)\nimport seresnet_timm\n'
            'print(*sorted(set(sys.modules) - before))')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ['seresnet_timm', *(f'seresnet_timm.{m}' for m in (
        'models', 'models.batch_counters', 'models.lean_se', 'models.light_se', 'models.seresnet', 'old_names',
        'version'))]
    assert timm.is_model('seresnet50_ascend')
