"""The model card: what it says of a run, and that nothing in a checkpoint can write into it."""
import csv
import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hub.commands import EVERY_PUSH, FLAGS, TOKEN, one_sentence
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.hub.card import command

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
    assert 'seresnet-timm train' in card and 'opt: momentum' in card and torch.__version__ in card
    assert str(run.parent) not in card and str(few_digits) not in card  # folders of this machine
    assert TOKEN not in card and TOKEN not in json.dumps(config)


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


def test_command_is_what_the_user_typed():
    """Of a record with settings, and of an older one; never the internal file of a process of the launcher."""
    typed = ['/home/me/.venv/bin/seresnet-timm', 'train', '--data-dir', '/data/me/digits', '--output=/tmp/me/out']
    shown = 'seresnet-timm train --data-dir digits --output=out'
    assert command({'settings': {'command': typed}, 'command': ['rank.py', '/tmp/job.json']}) == shown
    assert command({'settings': {'command': []}, 'command': typed}) == shown
    assert command({'command': typed}) == shown
    assert command({'command': ['/x/seresnet_timm/worker.py', '/tmp/job-train.json']}) is None
    assert command({'command': None}) is None
    assert command({'command': ['seresnet-timm', 'train', 'a\n```\n<b>']}) == r"seresnet-timm train 'a\x0a```\x0a<b>'"
