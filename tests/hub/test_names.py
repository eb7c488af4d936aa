"""Requests that are refused: names, revisions, options."""
import subprocess

import pytest
from huggingface_hub import constants

from hub.commands import FLAGS, one_sentence
from seresnet_timm.engine.rules import is_revision
from seresnet_timm.errors import UsageError
from seresnet_timm.hub.client import split_name

pytestmark = pytest.mark.xdist_group('hub')  # one Hub and one client process for all


@pytest.mark.parametrize('argv, parts', (
    (['push', 'CKPT', 'me/x'], ('me/x', '--license')),
    (['push', 'CKPT', 'me', *FLAGS], ("'me'", 'organisation/name')),
    (['push', 'CKPT', 'me/x/y', *FLAGS], ("'me/x/y'",)),
    (['push', 'CKPT', '../x', *FLAGS], ("'../x'",)),
    (['push', 'CKPT', 'me/x@dev', *FLAGS], ('--revision',)),
    (['push', 'CKPT', 'me/x', '--license', 'My Licence'], ('--license', 'apache-2.0')),
    (['push', 'CKPT', 'me/x', *FLAGS, '--model', 'resnet18'], ('does not fit resnet18',)),
    (['push', 'CKPT', 'me/x', *FLAGS, '--num-classes', '7'], ('3 classes',)),
    (['push', 'CKPT', 'me/x', *FLAGS, '--model', 'seresnet18_ascent'], ('did you mean seresnet18_ascend',)),
    (['push', '/nowhere.pth', 'me/x', *FLAGS], ('/nowhere.pth does not exist',)),
    (['push', '/tmp', 'me/x', *FLAGS], ('run.json',)),
    (['pull', 'x'], ("'x'", 'organisation/name')),
    (['pull', 'me/x@'], ('org/name@revision',)),
    (['pull', 'me/x', 'w.safetensors'], ('OUT is a folder',)),
    (['pull', 'me/x', '/no/such/folder'], ('/no/such does not exist',)),
), ids=lambda a: ' '.join(a) if isinstance(a, list) else '')
def test_wrong_request(hub, client, checkpoint, argv, parts):
    one_sentence(client.run(*(checkpoint if a == 'CKPT' else a for a in argv)), 2, *parts)
    assert not hub.repos


COMMIT = '0123456789' * 4


@pytest.mark.parametrize('text, repo_id, revision', (
    ('me/x', 'me/x', None), ('me/x@v1', 'me/x', 'v1'), ('hf-hub:me/x', 'me/x', None),
    ('HF-HUB:me/x@a/b', 'me/x', 'a/b'),
        ('me/x/', 'me/x', None), ('hf://me/x@v1', 'me/x', 'v1'), ('hf-hub:HOST/me/x', 'me/x', None),
    ('HOST/me/x', 'me/x', None), ('HOST/me/x/', 'me/x', None), ('HOST/me/x/tree/main', 'me/x', None),
    ('HOST/me/x/tree/a/b', 'me/x', 'a/b'), ('HOST/me/x/blob/v1/model.safetensors', 'me/x', 'v1'),
    (f'HOST/me/x/commit/{COMMIT}', 'me/x', COMMIT), ('HOST/me/x/resolve/main/a.bin?download=true', 'me/x', None),
))
def test_name_in_any_form(text, repo_id, revision):
    host = constants._HF_DEFAULT_ENDPOINT
    for hub in (host, host.partition('://')[2], constants.ENDPOINT):
        assert split_name(text.replace('HOST', hub)) == (repo_id, revision)


@pytest.mark.parametrize('text', (
    '', 'x', '@main', 'me/x@', 'me//x', 'me/x//', '/me/x', 'a/b/c', ' me/x', 'me/my x', 'me/..', '../x', 'me\\x',
    'me/x:y', '-me/x', 'me/x-', 'm\u00e9/x', 'me/' + 'x' * 300, 'hf-hub:', 'hf-hub:x', 'hf-hub:hf-hub:me/x',
    'HOST', 'HOST/x', 'HOST/datasets/me/x', 'HOST/me/%2e%2e', 'HOST/me/x/tree/a/../../b', 'HOST/me/x/discussions/1', 'https://[me/x',
    'https://example.org/me/x', 'me/x@v1 '))
def test_name_that_cannot_be(text):
    with pytest.raises(UsageError, match='org/name|organisation|git does not allow') as error:
        split_name(text.replace('HOST', constants._HF_DEFAULT_ENDPOINT))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize('name', ('hf-hub:my org/x', 'hf_hub:me', 'HOST/datasets/me/x', 'hf-hub:me/x@..'))
def test_every_verb_refuses_a_name_without_the_network(client, hub, few_digits, tmp_path, name):
    name = name.replace('HOST', constants._HF_DEFAULT_ENDPOINT)
    for argv in (['predict', name, tmp_path], ['export', name, tmp_path / 'x.onnx'], ['weights', 'fetch', name],
                 ['pull', name], ['push', '/nowhere.pth', name, *FLAGS],
                 ['train', '--model', name, '--data-dir', few_digits, '--output', tmp_path / 'o', '--device', 'cpu'],
                 ['validate', '--model', name, '--data-dir', few_digits, '--device', 'cpu']):
        result = client.run(*argv)
        assert result.code == 2 and result.err.count('error:') == 1 and 'Traceback' not in result.err, (argv, result)
    assert not hub.requests and not list(tmp_path.iterdir())


def files_outside(client) -> set:
    """Files in the folder of the client that are not in the cache of the Hub."""
    return {p for p in client.folder.rglob('*')
            if p.is_file() and client.home not in p.parents and p.name not in ('out', 'err')
            and p.parent.name != 'blobs'}


@pytest.mark.parametrize('revision', (
    '../../../../escaped', '/escaped', 'a/../../../../../escaped', r'..\..\escaped', 'a\x01b', 'a\x1b[31mb', 'a//b',
    '-x', '.hidden', 'a/.b', 'x.lock', 'a..b', 'a b', 'main\n', 'a\u202eb', 'x' * 300,
))
def test_revision_that_git_does_not_allow(pushed, client, revision):
    """A revision becomes the name of a file in the cache, which must not be elsewhere: it is refused, and no request
    is made, even to a Hub that would know it."""
    pushed.repos['me/x'].tags[revision] = pushed.repos['me/x'].branches['main']
    before = files_outside(client)
    for argv in (
            ('pull', f'me/x@{revision}'), ('predict', f'hf-hub:me/x@{revision}', '/etc/hostname', '--device', 'cpu')):
        result = client.run(*argv)
        one_sentence(result, 2, 'me/x', 'git does not allow')
        assert revision not in result.err or revision.isprintable()
    for flag in ('--revision', '--tag'):
        one_sentence(client.run('push', __file__, 'me/x', f'{flag}={revision}'), 2, flag)
    assert files_outside(client) == before and not pushed.requests


def test_revisions_are_those_of_git():
    """The same answer as `git check-ref-format`, but for a leading hyphen, which git's commands take for a flag."""
    names = ['main', 'v1.0', 'refs/pr/1', 'a/b/c', 'feature-x', 'a-', 'a@b', '@', 'a@{b', 'a.', 'a/', '/a', 'a//b',
             '.a', 'a/.b', 'a.lock', 'a.lock/b', 'a..b', 'a b', 'a~b', 'a^b', 'a:b', 'a?b', 'a*b', 'a[b', 'a\\b',
             'a\tb', 'a\x7fb', '\u00e9', '', 'HEAD', 'a.b', 'a/b.lock', '0123abc']
    for name in names:
        git = subprocess.run(['git', 'check-ref-format', '--allow-onelevel', name])
        assert is_revision(name) == (git.returncode == 0), name


@pytest.mark.parametrize('name', (
    'me/x\n', 'me/\x1b[31mx', 'me\\x', '/etc/passwd', '../me/x', 'me/..', 'm\u00e9/x', ''))
def test_name_that_is_no_repository(hub, client, name):
    result = client.run('pull', name)
    one_sentence(result, 2, 'is not the name of a model on the Hub')
    assert '\x1b' not in result.err and not hub.requests
