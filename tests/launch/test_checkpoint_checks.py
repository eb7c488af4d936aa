"""What a run resumes or starts from: refused or told before anything is written, in a dry run too."""
import json
import re
import shutil

import pytest
import timm
import torch
from conftest import run_here
from PIL import Image
from safetensors.torch import save_file
from training import load

from seresnet_timm import cli
from seresnet_timm.errors import UsageError
from seresnet_timm.launch.newest import newest_checkpoint
from seresnet_timm.models.create import create_model
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.runs.folder import RunFolder

pytestmark = pytest.mark.preloaded
MODEL = ['--model', 'seresnet18_ascend', '--model-kwargs', 'channels=[4,8,8,8]', 'stem_width=8']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    for split in ('train', 'val'):
        for i, name in enumerate(('ant', 'bee', 'cow')):
            (root / split / name).mkdir(parents=True)
            for n in range(3):
                Image.new('RGB', (32, 32), (60 * i, 9 * n, 90)).save(root / split / name / f'{n}.png')
    return root


def train(data, output, *more, act='silu'):
    cli.main([
        'train', '--data-dir', str(data), *MODEL, f'act_layer={act}', '--img-size', '32', '-b', '4', '--epochs', '2',
        '--workers', '0', '--warmup-epochs', '0', '--lr', '0.01', '--opt', 'momentum', '--weight-decay', '0.0001',
        '--device', 'cpu', '--nproc', '1', '--output', str(output), '--experiment', 'run', *map(str, more)])


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    """A training of two epochs: its folder, and its last checkpoint as a dictionary."""
    output = tmp_path_factory.mktemp('out')
    train(data, output)
    return output / 'run', load(output / 'run' / 'last.pth.tar')


def refused(capsys, data, tmp_path, *more):
    with pytest.raises(SystemExit) as e:
        train(data, tmp_path / 'new', '--dry-run', '--epochs', '3', *more)
    assert e.value.code == 2 and not (tmp_path / 'new').exists()
    return capsys.readouterr().err


def told(capsys, data, tmp_path, *more, **network):
    train(data, tmp_path / 'new', '--dry-run', '--epochs', '3', *more, **network)
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.parametrize('change, words', [
    (lambda c: {'state_dict': c['state_dict'], 'epoch': 1}, 'holds no optimizer state.*--initial-checkpoint'),
    (lambda c: c['state_dict'], 'holds no optimizer state'),
    (lambda c: {'state_dict': c['state_dict'], 'optimizer_states': []}, 'Lightning'),
    (lambda c: {'model_state_dict': c['state_dict'], 'optimizer': c['optimizer']}, '--initial-checkpoint'),
    (lambda c: dict(c, optimizer={}), 'no parameter groups'),
    (lambda c: dict(c, epoch='two'), "its epoch is 'two'"),
    (lambda c: dict(c, epoch=-5), 'its epoch is -5'),
    (lambda c: {k: v for k, v in c.items() if k != 'epoch'}, '--start-epoch'),
    (lambda c: dict(c, state_dict={k: v * float('nan') if v.is_floating_point() else v for k, v in
                                   c['state_dict'].items()}, weights_sha256=None), 'not finite.*conv1.weight'),
    (lambda c: dict(c, optimizer=dict(c['optimizer'], state={0: {'momentum_buffer': torch.tensor([float('inf')])}})),
     'optimizer state is not finite'),
], ids=['weights', 'bare', 'lightning', 'other key', 'no groups', 'epoch text', 'epoch', 'no epoch', 'nan', 'inf'])
def test_files_that_a_run_cannot_resume_from(capsys, data, run, tmp_path, change, words):
    torch.save(change(dict(run[1])), tmp_path / 'x.pth.tar')
    text = refused(capsys, data, tmp_path, '--resume', tmp_path / 'x.pth.tar')
    assert re.search(words, text) and 'x.pth.tar' in text


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


RUN_STATES = {
    'no epoch': (lambda s: without(s, 'epoch'), 'no epoch'),
    'no world size': (lambda s: without(s, 'world_size'), 'no world_size'),
    'no generators': (lambda s: without(s, 'rng'), 'no rng'),
    'text': (lambda s: dict(s, epoch='1'), 'epoch is of the type str, not a whole number'),
    'list': (lambda s: [1], 'it is of the type list, not a dictionary'),
    'generators': (lambda s: dict(s, rng=[{}]), r'no rng\[0\].torch'),
    'ranks': (lambda s: dict(s, world_size=2), 'rng has 1 entries for 2 processes'),
    'loader': (lambda s: dict(s, ranks=[dict(s['ranks'][0], loader={})]), r'no ranks\[0\].loader.seeds'),
    'within': (lambda s: dict(s, batches=1), r'ranks\[0\].losses is of the type NoneType, not a dictionary'),
    'trained': (lambda s: dict(s, is_trained=True), 'trained is of the type NoneType, not a dictionary'),
    'negative': (lambda s: dict(s, batches=-1), 'batches is -1'),
}


@pytest.mark.parametrize('change, words', RUN_STATES.values(), ids=RUN_STATES)
def test_a_run_state_that_lacks_something(capsys, data, run, tmp_path, change, words):
    file = tmp_path / 'x.pth.tar'
    torch.save(dict(run[1], run_state=change(dict(run[1]['run_state']))), file)
    text = refused(capsys, data, tmp_path, '--resume', file)
    assert re.search(rf'x.pth.tar: its run_state cannot be resumed from \(.*({words})\)', text)
    assert '--no-resume-opt' in text and 'the optimizer starts' in told(
        capsys, data, tmp_path, '--resume', file, '--no-resume-opt')


def test_resume_auto_leaves_out_a_file_whose_run_state_lacks_something(run, tmp_path):
    folder = RunFolder(tmp_path)
    for name in ('checkpoint-0.pth.tar', 'last.pth.tar'):
        shutil.copy(run[0] / name, tmp_path / name)
    torch.save(dict(run[1], run_state=without(run[1]['run_state'], 'rng')), folder.last)
    found, notes = newest_checkpoint(folder)
    assert found.path.endswith('checkpoint-0.pth.tar') and 'no rng' in notes[0] and len(notes) == 1


def test_a_file_without_version(capsys, data, run, tmp_path):
    """timm reads the epoch of such a file as the one to go on with; with `run_state` the two do not agree."""
    file = tmp_path / 'x.pth.tar'
    torch.save(without(run[1], 'version'), file)
    text = refused(capsys, data, tmp_path, '--resume', file)
    assert 'epoch (1) and version (None) do not belong to its run_state, which goes on with epoch 2' in text
    assert ' version' not in told(capsys, data, tmp_path, '--resume', file, '--start-epoch', '2')
    torch.save(without(without(run[1], 'version'), 'run_state'), file)
    text = told(capsys, data, tmp_path, '--resume', file)
    assert 'its epoch 1 is the one to go on with' in text and 'add --start-epoch 2.' in text
    assert 'has no version' not in told(capsys, data, tmp_path, '--resume', file, '--start-epoch', '2')


@pytest.mark.parametrize('flags, words', [
    (['--weight-decay', '0'], 'other parameter groups.*--weight-decay was 0.0001 and is 0'),
    (['--layer-decay', '0.5'], 'other parameter groups.*--layer-decay'),
    (['--opt', 'adamw'], r'another optimizer than --opt adamw \(--opt momentum\)'),
    (['--opt', 'rmsproptf'], 'another optimizer than --opt rmsproptf'),
    (['--initial-checkpoint', 'LAST'], 'leave out --initial-checkpoint'),
    (['--resume', 'FOLDER'], 'name its last checkpoint, --resume .*last.pth.tar'),
])
def test_flags_that_a_checkpoint_contradicts(capsys, data, run, tmp_path, flags, words):
    last = str(run[0] / 'last.pth.tar')
    flags = [f.replace('LAST', last).replace('FOLDER', str(run[0])) for f in flags]
    assert re.search(words, refused(capsys, data, tmp_path, '--resume', last, *flags))


@pytest.mark.parametrize('flags, words', [
    (['--epochs', '2'], '2 epochs are complete, of 2: nothing is left'),
    (['--model-ema'], 'holds no moving average'),
    (['--lr', '0.5'], r'not from the flags: lr 0.01 \(given: 0.5\)'),
    (['--weight-decay', '0.5'], r'weight decay 0.0001 \(given: 0.5\)'),
    (['--mean', '0.5', '0.5', '0.5'], 'other images than this run has: mean'),
    (['--no-resume-opt'], 'the optimizer starts without the state'),
])
def test_what_a_resumed_run_takes_from_the_file_is_told(capsys, data, run, tmp_path, flags, words):
    text = told(capsys, data, tmp_path, '--resume', run[0] / 'last.pth.tar', *flags)
    assert re.search(words, text), text


def test_a_resume_that_fits_is_not_commented(capsys, data, run, tmp_path):
    text = told(capsys, data, tmp_path, '--resume', run[0] / 'last.pth.tar')
    other = told(capsys, data, tmp_path, '--resume', run[0] / 'last.pth.tar', act='gelu')
    assert 'was trained with act_layer silu, this run has gelu: --model-kwargs act_layer=silu keeps it' in other
    assert 'was trained with' not in text and 'holds no' not in text and 'not from the flags' not in text


def test_pretrained_path_with_a_prefix(capsys, data, run, tmp_path):
    """timm would leave out all weights whose names have a prefix, and say so nowhere."""
    weights = run[1]['state_dict']
    torch.save({'state_dict': {f'model.{k}': v for k, v in weights.items()}}, tmp_path / 'prefix.pth')
    torch.save({f'other.{k}.more': v for k, v in weights.items()}, tmp_path / 'foreign.pth')
    assert 'does not fit' in refused(capsys, data, tmp_path, '--pretrained-path', tmp_path / 'foreign.pth')
    names = {k.replace('layer1.', 'layer1._orig_mod.'): v for k, v in weights.items()}  # a part that was compiled
    torch.save({'state_dict': names}, tmp_path / 'part.pth')
    for name in ('prefix', 'part'):
        train(data, tmp_path / name, '--pretrained-path', tmp_path / f'{name}.pth', '--epochs', '1', '--lr', '1e-30')
        trained = load(tmp_path / name / 'run' / 'last.pth.tar')['state_dict']
        assert torch.equal(trained['layer1.0.conv1.weight'], weights['layer1.0.conv1.weight'])


def test_evaluation_with_arguments_of_both(capsys, data, run, tmp_path):
    """Arguments of the file that are not typed again stay those of the file."""
    evaluate = ['validate', '--data-dir', str(data), '--device', 'cpu', '--workers', '0', '-b', '4', '--checkpoint']
    cli.main([*evaluate, str(run[0] / 'last.pth.tar'), '--model-kwargs', 'drop_rate=0.1'])
    loss = float(re.search(r'"loss": ([\d.]+)', capsys.readouterr().out)[1])
    rows = (run[0] / 'summary.csv').read_text().splitlines()
    assert loss == pytest.approx(float(dict(zip(rows[0].split(','), rows[-1].split(',')))['eval_loss']), abs=1e-4)
    odd = dict(run[1], model_info=dict(run[1]['model_info'], kwargs=dict(run[1]['model_info']['kwargs'], odd={})))
    torch.save(odd, tmp_path / 'odd.pth.tar')
    with pytest.raises(SystemExit):
        cli.main([*evaluate, str(tmp_path / 'odd.pth.tar')])
    assert '--model-kwargs' in capsys.readouterr().err
    cli.main([*evaluate, str(tmp_path / 'odd.pth.tar'), *MODEL, 'act_layer=silu'])
    assert float(re.search(r'"loss": ([\d.]+)', capsys.readouterr().out)[1]) == pytest.approx(loss)
    with pytest.raises(SystemExit):
        cli.main(['predict', str(tmp_path / 'odd.pth.tar'), str(data / 'val')])
    assert 'Only `seresnet-timm validate`' in capsys.readouterr().err


def test_weights_of_a_folder_that_are_not_finite(few_digits, tmp_path):
    """As of a model on the Hub: neither a training nor an evaluation starts with them, nor does timm load them."""
    network = timm.create_model('seresnet18_ascend', num_classes=10, channels=(8, 16, 24, 32))
    weights = network.state_dict()
    weights['conv1.weight'][0, 0, 0, 0] = float('nan')
    save_file(weights, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps({
        'architecture': 'seresnet18_ascend', 'num_classes': 10, 'model_args': {'channels': [8, 16, 24, 32]},
        'pretrained_cfg': {'input_size': [3, 32, 32], 'num_classes': 10, 'first_conv': 'conv1', 'classifier': 'fc'}}))
    name = f'local-dir:{tmp_path}'
    common = ('--model', name, '--data-dir', few_digits, '--device', 'cpu', '--dry-run')
    for argv in (('validate', *common), ('train', '--pretrained', '--output', tmp_path / 'out', '-b', 8, *common)):
        result = run_here(*argv)
        assert result.returncode == 2 and 'not finite (NaN or infinity): conv1.weight' in result.stderr, result.stderr
    with pytest.raises(UsageError, match='weights that are not finite'):
        create_model(name, pretrained=True)


def test_model_of_a_folder_is_evaluated_as_a_checkpoint_is(few_digits, tmp_path):
    """With the size, mean, std, crop and order of classes that its config.json says, as a Hub model has it."""
    network = timm.create_model('seresnet18_ascend', num_classes=10, channels=(8, 16, 24, 32))
    names = [str(i) for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
    seen = {'input_size': [3, 48, 48], 'mean': [.3, .2, .1], 'std': [.4] * 3, 'crop_pct': .8,
            'interpolation': 'bicubic'}
    save_file(network.state_dict(), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps({
        'architecture': 'seresnet18_ascend', 'num_classes': 10, 'model_args': {'channels': [8, 16, 24, 32]},
        'label_names': names,
        'pretrained_cfg': {'num_classes': 10, 'first_conv': 'conv1', 'classifier': 'fc', **seen}}))
    info = ModelInfo(name='seresnet18_ascend', kwargs={'channels': [8, 16, 24, 32]}, num_classes=10, in_chans=3,
                     class_names=names, crop_mode='center', **seen)
    torch.save({'state_dict': network.state_dict(), 'model_info': info.to_dict()}, tmp_path / 'c.pth.tar')
    found = []
    for source in (('--model', f'local-dir:{tmp_path}'), ('--checkpoint', tmp_path / 'c.pth.tar')):
        target = tmp_path / 'result.json'
        result = run_here('validate', *source, '--data-dir', few_digits, '--device', 'cpu', '--workers', 0,
                          '--results-file', target, '--results-format', 'json')
        assert result.returncode == 0 and 'at its default' not in result.stderr, result.stderr
        found.append({**json.loads(target.read_text()), 'model': ''})
    assert found[0] == found[1] and found[0]['img_size'] == 48 and found[0]['crop_pct'] == .8


def test_a_folder_without_checkpoints_is_refused_and_one_of_safetensors_names_its_network(few_digits, tmp_path):
    common = ('--data-dir', few_digits, '--device', 'cpu', '--dry-run')
    for name in ('empty', 'others'):
        (tmp_path / name).mkdir()
    (tmp_path / 'others' / 'notes.txt').write_text('none')
    (tmp_path / 'others' / 'tmp.pth.tar').write_bytes(b'unfinished')
    for name in ('empty', 'others'):
        result = run_here('validate', '--checkpoint', tmp_path / name, *common)
        assert result.returncode == 2 and f'{name} holds no checkpoint (.pth.tar' in result.stderr, result.stderr
    kwargs = {'channels': [8, 16, 24, 32]}
    network = timm.create_model('seresnet18_ascend', num_classes=10, **kwargs)
    info = ModelInfo(name='seresnet18_ascend', kwargs=kwargs, num_classes=10, in_chans=3)
    torch.save({'state_dict': network.state_dict(), 'model_info': info.to_dict()}, tmp_path / 'c.pth.tar')
    (tmp_path / 'safe').mkdir()
    assert run_here('convert', tmp_path / 'c.pth.tar', tmp_path / 'safe' / 'c.safetensors').returncode == 0
    result = run_here('validate', '--checkpoint', tmp_path / 'safe', *common)
    assert result.returncode == 0 and 'Plan: validate seresnet18_ascend' in result.stderr, result.stderr
