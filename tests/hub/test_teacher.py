"""The teacher of a distillation from the Hub: downloaded once, before the run, and not at all in a dry run."""
import pytest
import timm
import torch
from conftest import NARROW
from timm.models._hub import save_for_hf
from training import load

from hub.commands import one_sentence

pytestmark = pytest.mark.xdist_group('hub')  # one Hub and one client process for all

NAME = 'test_resnet.r160_in1k'  # the smallest of timm that has weights on the Hub


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Two teachers as the Hub has them: of timm, and of the ten digits."""
    torch.manual_seed(1)
    found = [tmp_path_factory.mktemp(name) for name in ('timm', 'own')]
    save_for_hf(timm.create_model('test_resnet'), found[0], safe_serialization=True)
    save_for_hf(timm.create_model('seresnet18_ascend', num_classes=10, **NARROW), found[1], safe_serialization=True,
                model_args={k: list(v) for k, v in NARROW.items()})
    return found


@pytest.fixture
def train(few_digits, tmp_path, hub, folders):
    for repository, folder in ((f'timm/{NAME}', folders[0]), ('me/teacher', folders[1])):
        hub.write(repository, {p.name: p.read_bytes() for p in folder.iterdir()})
    hub.requests.clear()
    return ['train', '--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(4,8,8,8)', 'stem_width=4',
            '--data-dir', few_digits, '--img-size', 32, '-b', 50, '--workers', 0, '--device', 'cpu', '--nproc', 1,
            '--epochs', 1, '--warmup-epochs', 0, '--output', tmp_path / 'runs', '--experiment', 'x']


@pytest.mark.parametrize('flags', (('--kd-model-name', NAME, '--kd-distill-type', 'feature'),
                                   ('--kd-model-name', 'hf-hub:me/teacher')), ids=('timm', 'own'))
def test_downloaded_once_and_never_in_a_dry_run(hub, client, train, tmp_path, flags):
    client.forget()
    result = client.run(*train, *flags, '--dry-run')
    assert result.code == 0 and 'teacher ' in result.err, result.err
    assert not any('_cdn' in r for r in hub.requests)
    assert not list(client.home.rglob('*.safetensors')) and not list((client.folder / 'tmp').iterdir())
    result = client.run(*train, *flags)
    assert result.code == 0, result.err
    assert sum('_cdn' in r and r.startswith('GET') for r in hub.requests) == 1
    held = load(tmp_path / 'runs/x/last.pth.tar')
    assert all(v.shape[0] <= 10 for k, v in held['state_dict'].items() if k == 'fc.weight')
    hub.requests.clear()
    assert client.run(*train[:-1], 'again', *flags).code == 0 and not any('_cdn' in r for r in hub.requests)


def test_a_teacher_that_does_not_exist(client, train, tmp_path):
    result = client.run(*train, '--kd-model-name', 'hf-hub:me/none')
    one_sentence(result, 1, 'me/none')
    assert result.code == 1 and not (tmp_path / 'runs').exists()
