"""--freeze: which layers a training leaves as they are, with both engines, and one's own data from folder to CSV."""
import copy
import csv
import json

import pytest
import timm
import torch
from conftest import NARROW, run_cli, run_here, train_flags
from recipe_runs import SCRIPTS
from training import load

from seresnet_timm.errors import UsageError
from seresnet_timm.step.freeze import BACKBONE, freeze, frozen_layers

pytestmark = pytest.mark.preloaded

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model('seresnet18_ascend', num_classes=4, drop_block_rate=0.1, **NARROW)


def trained_names(model) -> set:
    return {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('last, trained', (
    (BACKBONE, {'fc'}), ('layer4', {'fc'}), ('layer2', {'layer3', 'layer4', 'fc'}), ('global_pool', {'fc'}),
    ('conv1', {'bn1', 'layer1', 'layer2', 'layer3', 'layer4', 'fc'})))
def test_layers_up_to_the_named_one_are_frozen(model, last, trained):
    assert trained_names(freeze(model, last)) == trained


def test_a_layer_in_a_stage_freezes_the_first_part_of_the_stage(model):
    freeze(model, 'layer2.0')
    assert {n for n, p in model.named_parameters() if p.requires_grad and n.startswith('layer2')} == {
        n for n, _ in model.named_parameters() if n.startswith('layer2.1')}
    assert 'layer2' not in frozen_layers(model, 'layer2.0') and 'layer1' in frozen_layers(model, 'layer2.0')


@pytest.mark.parametrize('name, last, prefix', (
    ('convnext_atto', 'stages.1', 'stages.2'), ('vit_tiny_patch16_224', 'blocks.3', 'blocks.4'),
    ('efficientnet_b0', 'blocks.2', 'blocks.3'), ('regnetx_002', BACKBONE, 'head.fc')))
def test_models_of_other_families(name, last, prefix):
    model = freeze(timm.create_model(name), last)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained and trained[0].startswith(prefix)


def test_frozen_layers_give_the_same_features_in_training_and_keep_their_statistics(model):
    freeze(model, 'layer2')
    before = copy.deepcopy(model.state_dict())
    model.eval()
    features = []
    model.layer2.register_forward_hook(lambda *a: features.append(a[2].detach().clone()))
    with torch.no_grad():
        model(X)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model.train()
        model(X).sum().backward()
        optimizer.step()
    assert len(features) == 4 and all(torch.equal(f, features[0]) for f in features)
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {k.split('.')[0] for k in after if not torch.equal(after[k], before[k])}
    assert changed == {'layer3', 'layer4', 'fc'}


def test_a_copy_for_the_moving_average_is_frozen_too(model):
    copied = copy.deepcopy(freeze(model, BACKBONE)).train()
    before = copied.layer1[0].bn1.running_mean.clone()
    copied(X)
    assert torch.equal(copied.layer1[0].bn1.running_mean, before) and trained_names(copied) == {'fc'}


def test_what_is_no_layer_and_what_leaves_nothing(model):
    with pytest.raises(UsageError, match="'layer22' is no layer of this model: did you mean layer2"):
        freeze(model, 'layer22')
    with pytest.raises(UsageError, match='there are conv1, bn1, layer1, layer2, layer3, layer4, fc'):
        freeze(model, '????')
    with pytest.raises(UsageError, match='leaves no weights to train'):
        freeze(model, 'fc')
    with pytest.raises(UsageError, match='no classifier'):
        freeze(timm.create_model('seresnet18_ascend', num_classes=0, **NARROW), BACKBONE)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Weights to start from."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp('weights') / 'start.pth'
    torch.save(timm.create_model('seresnet18_ascend', num_classes=10, **NARROW).state_dict(), path)
    return path


@pytest.mark.parametrize('nproc', (1, 2))
@pytest.mark.parametrize('scripts', SCRIPTS)
def test_training_leaves_frozen_layers_bit_for_bit(few_digits, weights, tmp_path, scripts, nproc):
    result = run_cli(*train_flags(
        few_digits, tmp_path, '--epochs', 1, '--pretrained-path', weights, '--freeze', 'layer3', '--scripts', scripts,
        '--nproc', nproc))
    assert result.returncode == 0, result.stderr
    assert '--freeze layer3: ' in result.stderr and 'weights are trained' in result.stderr
    after, before = load(tmp_path / 'run' / 'last.pth.tar')['state_dict'], load(weights)
    changed = {k.split('.')[0] for k in before if not torch.equal(after[k], before[k])}
    assert changed == {'layer4', 'fc'}
    assert json.loads((tmp_path / 'run' / 'run.json').read_text())['settings']['freeze'] == 'layer3'
    if (scripts, nproc) == ('bundled', 1):  # another choice has other optimizer state
        refused = run_here(*train_flags(few_digits, tmp_path, '--epochs', 2, '--resume',
                                        tmp_path / 'run' / 'last.pth.tar', '--dry-run'))
        assert refused.returncode == 2 and '--freeze, --weight-decay' in refused.stderr


def test_what_is_refused_before_a_run(few_digits, weights, tmp_path):
    flags = train_flags(few_digits, tmp_path, '--dry-run')
    assert "'layer9' is no layer of this model: did you mean layer" in run_here(
        *flags, '--freeze', 'layer9', '--initial-checkpoint', weights).stderr
    assert 'no weights are loaded' in run_here(*flags, '--freeze').stderr
    assert run_here(*flags, '--freeze', '--initial-checkpoint', weights).returncode == 0
    assert '--freeze is a flag of train' in run_here(
        'validate', '--data-dir', few_digits, '--checkpoint', weights, '--model', 'seresnet18_ascend', '--num-classes',
        10, '--model-kwargs', 'channels=(8,16,24,32)', '--freeze', '--dry-run').stderr


def test_ones_own_data_from_a_folder_of_classes_to_a_csv(few_digits, weights, tmp_path, monkeypatch):
    """split, check-data, train --preset finetune, predict, one after the other."""
    monkeypatch.chdir(tmp_path)
    assert run_here('split', few_digits / 'train', 'photos', '--val', 0.2).returncode == 0
    assert run_here('check-data', 'photos', '--ignore', 'few-images').returncode == 0
    result = run_cli(
        'train', '--preset', 'finetune', '--data-dir', 'photos', '--output', 'output', '--experiment', 'mine',
        '--freeze', '--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(8,16,24,32)', '--pretrained-path',
        weights, '--img-size', 32, '--epochs', 2, '--workers', 0, '--device', 'cpu', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert '10 outputs' in result.stderr and 'Train: 1' in result.stderr
    result = run_cli('predict', 'output/mine', few_digits / 'val', '--csv', '--output', 'classes.csv', '--topk', 1,
                     '--device', 'cpu', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(open(tmp_path / 'classes.csv')))
    assert len(rows) == 70 and {row['label'] for row in rows} <= set('0123456789')
