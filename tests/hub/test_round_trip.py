"""A model that was pushed is the model that timm, validate, predict and pull see."""
import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_files import save_modelzoo
from hub_store import Fault
from safetensors.torch import load_file

import seresnet_timm  # noqa: F401  (registers the models)
from hub.commands import EVERY_PUSH, FLAGS, SMALL, USE, logits, logits_of, one_sentence

pytestmark = pytest.mark.xdist_group('hub')  # one Hub and one client process for all


def test_push_then_timm_then_pull(hub, client, checkpoint):
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 0, result.err
    files = hub.repos['me/x'].files()
    assert set(files) == EVERY_PUSH and not hub.repos['me/x'].private
    assert files['model.safetensors'].is_lfs and files['model.safetensors'].blob in result.out

    client.forget()
    expected = logits_of(checkpoint, num_classes=3, **SMALL)
    assert client.python(USE.format(name='hf-hub:me/x')).code == 0
    assert torch.equal(torch.load(client.folder / 'logits.pt', weights_only=True), expected)

    client.forget()
    result = client.run('pull', 'me/x')
    assert result.code == 0, result.err
    commit = hub.repos['me/x'].branches['main']
    assert f'me/x: commit {commit}' in result.out and 'import seresnet_timm, timm' in result.out
    for name in EVERY_PUSH:
        assert f'sha256 {hashlib.sha256(hub.read("me/x", name)).hexdigest()} verified' in result.out
    folder = next(Path(line) for line in result.out.splitlines() if line.startswith('/'))
    assert (folder / 'model.safetensors').read_bytes() == hub.read('me/x', 'model.safetensors')
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert torch.equal(logits(model), expected)


def test_evaluation_of_what_was_pushed(hub, client, run, few_digits):
    """validate on the Hub's model, verified, has the top-1 of the run's own checkpoint."""
    assert client.run('push', run, 'me/digits', *FLAGS).code == 0
    client.forget()
    flags = ['--data-dir', few_digits, '--workers', 0, '-b', 16, '--device', 'cpu']
    result = client.run('validate', '--model', 'hf-hub:me/digits', *flags)
    assert result.code == 0, result.err
    own = client.run(
        'validate', '--model', 'seresnet18_ascend', '--model-kwargs', 'channels=(8,16,32,64)', '--img-size', 32,
        '--num-classes', 10, '--checkpoint', run / 'model_best.pth.tar', *flags)
    figures = [json.loads(r.out.split('--result\n')[1]) for r in (result, own)]
    for key in ('top1', 'top5', 'loss', 'img_size', 'crop_pct', 'interpolation'):
        assert figures[0][key] == figures[1][key]

    # damaged on the way, twice: nothing is evaluated
    client.forget()
    hub.faults.append(Fault('GET /_cdn/', 'flip'))
    one_sentence(client.run('validate', '--model', 'hf-hub:me/digits', *flags), 1, 'me/digits', 'arrived damaged twice')


def test_modelzoo_checkpoint(hub, client, few_digits, tmp_path):
    """A file of the ModelZoo's main.py is evaluated, converted and pushed; pulled anew, its top-1 is the same.

    Its `arch` is wrong, as in all of theirs: the weights tell what it is.
    """
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=10)
    torch.nn.init.normal_(model.fc.weight)
    save_modelzoo(model, tmp_path / 'm.pth.tar')
    flags = ['--data-dir', few_digits, '--workers', 0, '-b', 16, '--device', 'cpu', '--img-size', 32]
    named = ['--model', 'seresnet18_ascend', '--num-classes', 10, '--checkpoint']
    assert client.run('convert', tmp_path / 'm.pth.tar', tmp_path / 'm.safetensors').code == 0
    assert client.run('push', tmp_path / 'm.pth.tar', 'me/m', *FLAGS).code == 0
    config = json.loads(hub.read('me/m', 'config.json'))
    assert (config['architecture'], config['num_classes']) == ('seresnet18_ascend', 10)
    sent = load_file(hub.blob(hub.repos['me/m'].files()['model.safetensors'].blob))
    assert all(torch.equal(v, sent[k]) for k, v in model.state_dict().items())
    client.forget()
    results = [client.run('validate', *flags, *more) for more in (
        [*named, tmp_path / 'm.pth.tar'], [*named, tmp_path / 'm.safetensors'], ['--model', 'hf-hub:me/m'])]
    assert [r.code for r in results] == [0] * 3, [r.err for r in results]
    # set up as the architecture that it is, under each name
    assert len({line for r in results for line in r.err.splitlines() if line.startswith('  step ')}) == 1
    figures = [json.loads(r.out.split('--result\n')[1]) for r in results]
    assert figures[0]['top1'] > 0 and len({(f['top1'], f['top5'], f['loss']) for f in figures}) == 1, figures


def test_predict_from_the_hub(pushed, client, checkpoint, few_digits):
    """What predict says of a model on the Hub is what it says of the file; a damaged download is not used."""
    image = next((few_digits / 'val' / '3').iterdir())
    results = []
    for model in ('hf-hub:me/x', checkpoint):
        result = client.run('predict', model, image, '--json', '--device', 'cpu')
        assert result.code == 0, result.err
        assert '32 x 32' in result.err and 'mean 0.4, 0.5, 0.6' in result.err
        results.append(json.loads(result.out))
    assert results[0] == results[1] and len(results[0][0]['predictions']) == 3

    client.forget()
    pushed.faults.append(Fault('GET /_cdn/', 'flip'))
    result = client.run('predict', 'hf-hub:me/x', image, '--json', '--device', 'cpu')
    one_sentence(result, 1, 'me/x', 'arrived damaged twice')
    assert result.out == ''
