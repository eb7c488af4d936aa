"""The patches on timm's scripts: on those of tests/small_scripts, and on timm's own where they are at hand."""
import ast
import inspect
import json
import os
import subprocess
from pathlib import Path

import preloaded
import pytest
import torch
from conftest import ROOT, run_cli, train_flags
from timm_scripts import TIMM_SCRIPTS
from training import evaluate_plainly, load, summary
from training import train as run

from seresnet_timm.errors import UsageError
from seresnet_timm.timm_scripts import patches
from seresnet_timm.timm_scripts.find import find
from seresnet_timm.timm_scripts.load import load as load_script
from seresnet_timm.timm_scripts.load import patched_tree

SMALL = ROOT / 'tests' / 'small_scripts'
SCRIPTS = [pytest.param(SMALL, id='small'), pytest.param(
    Path(TIMM_SCRIPTS or '.'), id='timm', marks=pytest.mark.skipif(
        not TIMM_SCRIPTS, reason="TIMM_SCRIPTS does not name a folder with timm's train.py and validate.py"))]


# --- matching ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('folder', SCRIPTS)
@pytest.mark.parametrize('name', patches.PATCHES)
def test_every_patch_applies_and_the_file_is_not_changed(folder, name):
    path = folder / name
    before = path.read_bytes()
    _, outcomes = patched_tree(find(name, str(folder)))
    assert outcomes == [(p.__name__, patches.APPLIED) for p in patches.PATCHES[name]]
    module = load_script(find(name, str(folder)))
    assert callable(module.main) and module.__file__ == str(path)
    assert path.read_bytes() == before


def apply(patch, source: str) -> str:
    tree = ast.parse(source)
    outcome = patch(tree)
    return outcome, ast.unparse(ast.fix_missing_locations(tree))


def train_source() -> str:
    return (SMALL / 'train.py').read_text()


@pytest.mark.parametrize('patch', (*patches.PATCHES['train.py'], *patches.PATCHES['validate.py']))
def test_every_patch_is_documented(patch):
    doc = inspect.getdoc(patch)
    assert 'Upstream (line' in doc and 'Without:' in doc and 'Checked by:' in doc


@pytest.mark.parametrize('patch, old, fixed', (
    (patches.allow_ddp_on_cpu, 'device_ids=[device]', "device_ids=[device] if device.type == 'cuda' else None"),
    (patches.keep_losses_on_device, 'losses_m.update(loss.item() * accum_steps, batch_size)',
     'losses_m.update(loss.detach() * accum_steps, batch_size)'),
    (patches.continue_history, "with open(os.path.join(output_dir, 'args.yaml'), 'w') as f:",
     "saver.load_state_dict_from_checkpoint(args.resume)\n        with open(os.path.join(output_dir, 'a'), 'w') as f:"),
))
def test_upstream_fix_is_recognised(patch, old, fixed):
    source = train_source()
    assert source.count(old) == 1
    outcome, code = apply(patch, source.replace(old, fixed))
    assert outcome == patches.FIXED and code == ast.unparse(ast.parse(source.replace(old, fixed)))


def test_upstream_npu_scaler_still_gets_the_right_one():
    source = train_source().replace("device.type in ('cuda',)", "device.type in ('cuda', 'npu')")
    outcome, code = apply(patches.scale_loss_on_npu, source)
    assert outcome == patches.APPLIED and '_seresnet_timm.create_loss_scaler(device)' in code


@pytest.mark.parametrize('old, new, patch', (
    ("device.type in ('cuda',)", "device.type == 'cuda'", 'scale_loss_on_npu'),
    ('NativeScaler(device=device.type)', 'NativeScaler()', 'scale_loss_on_npu'),
    ('model = create_model(', 'model = make_model(', 'offer_half_weights'),
    ('loss.item() * accum_steps', 'loss.item()', 'keep_losses_on_device'),
    ('losses_m = utils.AverageMeter()', 'losses_m = Meter()', 'keep_losses_on_device'),
    ('model, loader, loss_fn, args, device=None', 'model, loader, args, device=None', 'evaluate_exactly'),
    ('loader_train = create_loader(', 'train_loader = loader_train = create_loader(', 'seed_shuffle'),
    ('saver = utils.CheckpointSaver(', 'saver = Saver(', 'save_atomically'),
    ('utils.update_summary(', 'write_summary(', 'continue_history'),
    ('def train_one_epoch(\n        epoch, model,', 'def train_one_epoch(\n        model, epoch,', 'record_epochs'),
))
def test_other_code_is_refused(tmp_path, old, new, patch):
    source = train_source()
    assert old in source
    (tmp_path / 'train.py').write_text(source.replace(old, new))
    with pytest.raises(UsageError) as e:
        patched_tree(find('train.py', str(tmp_path)))
    message = str(e.value)
    assert f'{tmp_path}/train.py: patch {patch} does not match' in message
    assert '--scripts bundled' in message and 'scripts fetch' in message


def test_code_found_twice_is_refused(tmp_path):
    line = '    model.to(device)\n'
    source = train_source().replace(line, line + "    x = device.type in ('cuda',)\n")
    (tmp_path / 'train.py').write_text(source)
    with pytest.raises(UsageError, match='scale_loss_on_npu does not match .2 x'):
        patched_tree(find('train.py', str(tmp_path)))


def test_refused_from_the_command_line(few_digits, tmp_path):
    (tmp_path / 'train.py').write_text('def main():\n    pass\n')
    result = run_cli(*train_flags(few_digits, tmp_path / 'out', '--scripts', tmp_path))
    assert result.returncode == 2 and 'does not match' in result.stderr and not (tmp_path / 'out').exists()
    (tmp_path / 'train.py').write_text('<html>')
    result = run_cli(*train_flags(few_digits, tmp_path / 'out', '--scripts', tmp_path))
    assert result.returncode == 2 and 'line 1, is not Python' in result.stderr


# --- runs -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('folder', SCRIPTS)
@pytest.mark.parametrize('processes', (pytest.param(1, marks=pytest.mark.slow), 2))
def test_run_equals_the_bundled_scripts(few_digits, tmp_path, folder, processes):
    """Same losses, accuracies and learning rates, with shuffling, workers and augmentation."""
    flags = ('-b', 16 // processes, '--nproc', processes, '--workers', 1, '--seed', 7, '--smoothing', 0,
             '--color-jitter', 0, '--train-interpolation', 'bilinear')
    rows = {}
    for scripts in (folder, 'bundled'):
        output = tmp_path / Path(scripts).name
        run(*train_flags(few_digits, output, *flags, '--scripts', scripts))
        rows[scripts] = summary(output / 'run')
        record = json.loads((output / 'run' / 'run.json').read_text())
        assert [e['images'] for e in record['epochs']] == [96, 96] and record['epochs'][0]['fps'] > 0
    for own, bundled in zip(*rows.values()):
        assert own.keys() == bundled.keys()
        assert [float(v) for v in own.values()] == pytest.approx([float(v) for v in bundled.values()], rel=1e-5)


@pytest.mark.parametrize('folder', SCRIPTS)
def test_resumed_run_keeps_history(few_digits, tmp_path, folder):
    """Into its own folder: one header, the best metric, and the evaluation of what was saved."""
    flags = train_flags(few_digits, tmp_path, '--scripts', folder)
    run(*flags)
    last = tmp_path / 'run' / 'last.pth.tar'
    checkpoint = load(last)
    checkpoint['saver']['best_metric'], checkpoint['saver']['pending'] = 99.9, (None, None)
    torch.save(checkpoint, last)
    run(*flags, '--epochs', 3, '--resume', last)
    assert [r['epoch'] for r in summary(tmp_path / 'run')] == ['0', '1', '2']
    assert load(last)['saver']['best_metric'] == 99.9  # not replaced by the third epoch's
    assert [e['epoch'] for e in json.loads((tmp_path / 'run' / 'run.json').read_text())['epochs']] == [0, 1, 2]
    assert 'run_state' in load(last)


@pytest.mark.slow
@pytest.mark.parametrize('folder', SCRIPTS)
def test_loss_scaler(few_digits, tmp_path, folder):
    """A fixed loss scale in float16, on the CPU, stays and is saved."""
    run(*train_flags(few_digits, tmp_path, '--scripts', folder, '--amp', '--loss-scale', 1024, '--epochs', 1,
                     '--img-size', 16, '-b', 4, '--train-split', 'val'), timeout=280)
    state = load(tmp_path / 'run' / 'last.pth.tar')['amp_scaler']
    assert state['scale'] == 1024 and state['_growth_tracker'] == 0


READS = '''
import sys, torch
sys.argv = sys.argv[1:]
counts = {'train': 0}
inside = []
original = torch.Tensor.item
tolist = torch.Tensor.tolist
def is_loader(frame):  # the loader draws its shuffle and seeds on the host
    return 'torch/utils/data' in frame.f_code.co_filename
def item(self):
    counts['train'] += bool(inside) and not is_loader(sys._getframe(1))
    return original(self)
def to_list(self):
    counts['train'] += bool(inside) and not is_loader(sys._getframe(1))
    return tolist(self)
torch.Tensor.item, torch.Tensor.tolist = item, to_list
from pathlib import Path
import seresnet_timm
from seresnet_timm.timm_scripts.find import find
from seresnet_timm.timm_scripts.load import load
module = load(find('train.py', sys.argv[0]))
train = module.train_one_epoch
def counted(*args, **kwargs):
    inside.append(1)
    result = train(*args, **kwargs)
    inside.clear()
    return result
module.train_one_epoch = counted
module.main()
print('READS', counts['train'])
'''


@pytest.mark.parametrize('folder, reads', [pytest.param(*SCRIPTS[0].values, 1, id='small'), pytest.param(
    *SCRIPTS[1].values, 4, id='timm', marks=SCRIPTS[1].marks)])
def test_training_does_not_wait_for_the_device(few_digits, tmp_path, folder, reads):
    """12 steps: the small script reads the epoch's mean; timm's also logs, at steps 0, 5, 10 and 11."""
    flags = [str(f) for f in train_flags(few_digits, tmp_path, '-b', 8, '--epochs', 1, '--log-interval', 5)][1:]
    (tmp_path / 'reads.py').write_text(READS)
    result = subprocess.run([preloaded.python(), '-m', 'reads', str(folder), *flags], capture_output=True, text=True,
                            cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split('READS')[1]) == reads


# --- validate.py ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def modelzoo_checkpoint(tmp_path_factory):
    from reference_network import _formats
    _, formats = _formats()
    path = tmp_path_factory.mktemp('modelzoo') / 'model_best.pth.tar'
    torch.save(formats['ModelZoo'], path)
    return path, formats['timm']


@pytest.fixture(scope='module')
def expected(modelzoo_checkpoint, few_digits):
    import timm
    model = timm.create_model('seresnet18_ascend', num_classes=10)
    model.load_state_dict(modelzoo_checkpoint[1])
    return evaluate_plainly(model, few_digits)


@pytest.mark.parametrize('folder', [*SCRIPTS, pytest.param('bundled', id='bundled')])
@pytest.mark.parametrize('processes', (1, 3))
def test_evaluation_counts_every_image_once(few_digits, tmp_path, modelzoo_checkpoint, expected, folder, processes):
    """A ModelZoo checkpoint, 70 images on 1 and 3 processes, against every image by itself."""
    result = run(
        'validate', '--data-dir', few_digits, '--model', 'seresnet18_ascend', '--num-classes', 10, '--img-size', 32,
        '-b', 16, '--workers', 0, '--device', 'cpu', '--nproc', processes, '--scripts', folder,
        '--fast-jpeg', 'off', '--checkpoint', modelzoo_checkpoint[0],
        '--results-file', tmp_path / 'r.json', '--results-format', 'json')
    printed = json.loads(result.stdout.split('--result')[1])
    assert printed == json.loads((tmp_path / 'r.json').read_text())
    assert printed['top1'] == pytest.approx(expected[0], abs=1e-4)
    if folder == 'bundled':
        assert printed['loss'] == pytest.approx(expected[1], rel=1e-5)
