"""The model card: what it says of a run, and that nothing in a checkpoint can write into it."""
import csv
import json
import re

import pytest
import torch
import yaml
from conftest import ROOT
from safetensors.torch import load_file

from hub.commands import EVERY_PUSH, FLAGS, TOKEN, one_sentence
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.hub.card import command
from seresnet_timm.runs.record import read_record

pytestmark = pytest.mark.xdist_group('hub')  # one Hub and one client process for all


def test_push_of_a_run(hub, client, run, few_digits):
    result = client.run('push', run, 'me/digits', *FLAGS, '--message', 'First', '--tag', 'v1', '--private')
    assert result.code == 0, result.err
    repo = hub.repos['me/digits']
    head = repo.branches['main']
    assert repo.private and repo.tags == {'v1': head} and repo.messages[head] == 'First'
    assert set(repo.files()) == EVERY_PUSH | {'curves.png'}
    config = json.loads(hub.read('me/digits', 'config.json'))
    assert config['label_names'] == sorted(p.name for p in (few_digits / 'train').iterdir())

    best = read_checkpoint(run / 'model_best.pth.tar').content
    weights = load_file(hub.blob(repo.files()['model.safetensors'].blob))
    assert all(torch.equal(v, weights[k]) for k, v in best['state_dict'].items())
    with open(run / 'summary.csv') as f:
        row = next(r for r in csv.DictReader(f) if int(float(r['epoch'])) == best['epoch'])
    card = hub.read('me/digits', 'README.md').decode()
    metadata = yaml.safe_load(card.split('---')[1])
    assert metadata['license'] == 'apache-2.0' and metadata['library_name'] == 'timm'
    figures = metadata['model-index'][0]['results'][0]
    assert figures['metrics'][0]['value'] == round(float(row['eval_top1']), 4)
    assert figures['dataset']['name'] == 'digits'
    assert f'Top-1 {float(row["eval_top1"]):.3f} %' in card and '](curves.png)' in card
    assert 'import seresnet_timm' in card and "create_model('hf-hub:me/digits', pretrained=True)" in card
    assert 'seresnet-timm train' in card and 'opt: momentum' in card and torch.__version__.split('+')[0] in card
    assert str(run.parent) not in card and str(few_digits) not in card  # folders of this machine
    assert TOKEN not in card and TOKEN not in json.dumps(config)


@pytest.mark.slow
def test_card_on_the_hub_is_kept(hub, client, checkpoint):
    card = b'---\nlicense: mit\n---\n# By hand\n'
    hub.write('me/x', {'README.md': card})
    result = client.run('push', checkpoint, 'me/x')  # the licence is the card's
    assert result.code == 0 and 'card: the one on the Hub is kept' in result.out, result.err
    assert hub.read('me/x', 'README.md') == card
    assert json.loads(hub.read('me/x', 'config.json'))['pretrained_cfg']['license'] == 'mit'
    one_sentence(client.run('push', checkpoint, 'me/x', '--license', 'apache-2.0'), 2, 'says license: mit')
    hub.write('me/y', {'README.md': b'# No licence\n'})
    one_sentence(client.run('push', checkpoint, 'me/y'), 2, 'me/y', '--license')


HOSTILE = 'x\n---\nlicense: mit\ntags: [evil]\n---\n<script>alert(1)</script> ![a](http://e/x) `b` \x1b[31m\u202e'
FENCE = 'x\n```\n<script>alert(2)</script>\n```bash\n'


def test_nothing_in_a_checkpoint_writes_into_the_card(hub, client, checkpoint, tmp_path):
    """Texts of a file that others wrote stay one line, and are neither YAML, nor Markdown, nor HTML, nor a command of
    the terminal."""
    saved = read_checkpoint(checkpoint).content
    long = 'a' * 100 + ' ``` ' + '<script>alert(3)</script> ' * 10
    for name, value in (('data_dir', f'/data/{HOSTILE}'), ('opt', FENCE), ('sched', long), ('pretrained', True),
                        ('opt_kwargs', {FENCE: FENCE, '? ```': long}), ('experiment', HOSTILE)):
        setattr(saved['args'], name, value)
    torch.save(saved, tmp_path / 'c.pth.tar')
    result = client.run('push', tmp_path / 'c.pth.tar', 'me/x', *FLAGS)
    assert result.code == 0, result.err
    assert not set('\x1b\u202e') & set(result.out + result.err)
    card = hub.read('me/x', 'README.md').decode()
    _, front, body = card.split('---\n', 2)
    assert yaml.safe_load(front)['license'] == 'apache-2.0' and 'evil' not in yaml.safe_load(front)['tags']
    assert all(c == '\n' or c.isprintable() for c in card) and '\u202e' not in card
    text, code = [], []
    for line in body.splitlines():  # by CommonMark: a fence is indented by at most three spaces
        fence = re.fullmatch(r' {0,3}```(\w*)', line)
        if fence and (not code or code[-1] is None):
            code.append('')
        elif fence and not fence[1]:
            code.append(None)
        elif code and code[-1] is not None:
            code[-1] += line + '\n'
        else:
            text.append(line)
    assert len(code) == 4 and code[1] is code[3] is None  # what to do in Python, and the settings
    assert yaml.safe_load(code[2])['opt_kwargs'] and 'script' in code[2]
    assert not re.search(r'<script|(?<!\\)!?\[a|(?<!\\)`b', '\n'.join(text))


def test_command_of_older_records(tmp_path):
    """What a rank of an older version recorded, an internal file, is not shown."""
    plan = dict(model='m', device='cpu', world_size=2, precision='float32', global_batch_size=4)
    typed = ['/home/me/bin/seresnet-timm', 'train', '--data-dir', '/data/me/digits', '--output=/tmp/me/out',
             'a\n```\n<b>']
    for argv, shown in (
            (typed, r"seresnet-timm train --data-dir digits --output=out 'a\n```\n<b>'"),
            (['/x/seresnet_timm/worker.py', '/tmp/seresnet-1/job.json'], None), (None, None)):
        record = dict(plan=plan, command=argv, versions={}, started='', epochs=[], best=None)
        (tmp_path / 'run.json').write_text(json.dumps(record))
        assert command(read_record(tmp_path)) == shown


@pytest.mark.slow
def test_push_of_a_run_from_before_the_schema(hub, client):
    """Its record has no number, its checkpoint no model_info: weights, card and preprocessing are those of the run."""
    old = ROOT / 'tests' / 'golden' / 'run_before_restructuring' / 'run'
    result = client.run('push', old, 'me/old', *FLAGS)
    assert result.code == 0 and 'class names: unknown' in result.out, result.err
    config = json.loads(hub.read('me/old', 'config.json'))
    assert (config['architecture'], config['num_classes']) == ('seresnet18_ascend', 3)
    cfg = config['pretrained_cfg']
    assert (cfg['input_size'], cfg['mean'], cfg['std'], cfg['crop_pct'], cfg['interpolation']) == (
        [3, 32, 32], [0.5] * 3, [0.25] * 3, 0.9, 'bilinear')
    saved = read_checkpoint(old / 'model_best.pth.tar').content['state_dict_ema']
    sent = load_file(hub.blob(hub.repos['me/old'].files()['model.safetensors'].blob))
    assert all(torch.equal(v, sent[k]) for k, v in saved.items())  # of which the run reports the top-1
    card = hub.read('me/old', 'README.md').decode()
    assert 'moving average of the weights' in card and '| 1p-CPU' in card and 'seresnet-timm train --data-dir' in card
