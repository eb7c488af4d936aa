"""All mistakes of one command come in one refusal: flags, keys of a config file, paths, names, outputs; with lines."""
import os

import pytest
from conftest import run_here

from seresnet_timm.launch.config_file import load_config
from seresnet_timm.launch.parse import parse


def sentences(*argv) -> list:
    """The sentences of a command that is refused."""
    result = run_here(*argv)
    assert result.returncode == 2, (result.returncode, result.stderr)
    lines = result.stderr.splitlines()
    if len(lines) == 1:
        return [lines[0].removeprefix('seresnet-timm: error: ')]
    assert lines[0] == f'seresnet-timm: error: {len(lines) - 1} problems:'
    assert all(line.startswith('  - ') for line in lines[1:]), lines
    return [line[4:] for line in lines[1:]]


def assert_told(found, *expected):
    assert len(found) == len(expected) and all(any(words in f for f in found) for words in expected), '\n'.join(found)


CONFIG = '''# a comment
lr: -1

smoothing: 2
aa: foo
epochs: "ten"
modle: x
scale: [0.5, 0.1]
mixup: .nan
seed: 010
'''


@pytest.mark.parametrize('verb', ('train', 'validate'))
def test_keys_flags_paths_and_names(tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'c.yaml').write_text(CONFIG)
    expected = [f'Config c.yaml, line {line}: {words}' for line, words in (
        (2, 'lr -1 is too small'), (4, 'smoothing 2 is too large'), (5, 'aa foo is unknown'),
        (6, 'epochs must be a whole number'), (7, "unknown key 'modle', did you mean model?"),
        (8, 'scale [0.5, 0.1] is not in ascending order'), (9, 'mixup nan is not a finite number'))]
    flag = '--resume' if verb == 'train' else '--checkpoint'
    found = sentences(
        verb, '--config', 'c.yaml', '--data-dir', '/nowhere', '--class-map', '/no/map.txt', flag, '/no.pth',
        '-b', '0', '--bogus', '--model', 'resnet5O', '--scripts', '--dry-run')
    assert_told(found, *expected, 'c.yaml, line 10: YAML reads 010 as 8', 'Dataset /nowhere does not exist',
                'Class map /no/map.txt does not exist', f'{flag} /no.pth does not exist', '--batch-size 0 is too small',
                "Unknown flag '--bogus'", "Unknown model 'resnet5O': did you mean resnet50?",
                'Argument --scripts: expected one argument')
    assert os.listdir() == ['c.yaml']


def test_a_sentence_on_a_key_that_is_found_later_names_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'c.yaml').write_text('lr: 0.1\nmodel: resnet5O\nopt: adamm\ndata_dir: /nowhere\n')
    found = sentences('train', '--config', 'c.yaml')
    assert_told(found, '(data_dir is set in c.yaml, line 4.)', '(model is set in c.yaml, line 2.)',
                '(opt is set in c.yaml, line 3.)')
    # what was typed is not the file's
    assert not any('c.yaml' in f for f in sentences('train', '--config', 'c.yaml', '--lr', '-3') if '--lr' in f)


@pytest.mark.parametrize('content, words', (
    (b'lr: 0.1\nlr: 0.2\nmodel_kwargs:\n  a: 1\n  a: 2\n', ('lr is given twice, the second time in line 2',
                                                           'a is given twice, the second time in line 5')),
    (bytes(range(256)), ('is not a text of YAML',)), ('lr: -1\n'.encode('utf-16'), ('line 1: lr -1 is too small',)),
    ('lr: 0.1\n'.encode('utf-32'), ('is not a text of YAML',)), (b'- 1\n', ('must be a mapping',)),
    (b'lr: 0.1\n\tepochs: 3\n', ('line 2 is not valid YAML',)), (b'lr: 0.1\n---\nlr: 0.2\n', ('line 2',)),
    (b'[' * 5000, ('nested too deeply',)), (b'model_kwargs: &a {x: *a}\n', ('holds itself',)),
    (b'a: &a [x, x, x, x, x, x, x, x, x, x]\n' + b''.join(
        b'%c: &%c [%s]\n' % (c, c, b', '.join([b'*%c' % (c - 1)] * 10)) for c in range(98, 106)), ('aliases',)),
    (b'lr: !!python/object/apply:os.system ["x"]\n', ('line 1 is not valid YAML',)),
    (b'experiment: 2024-13-45\n', ('is not valid YAML',)),
))
def test_files_that_are_no_config(tmp_path, content, words):
    (tmp_path / 'c.yaml').write_bytes(content)
    line = parse('train', [])
    config = load_config(str(tmp_path / 'c.yaml'), line.parser, line.defaults)
    assert_told([p for p in config.problems if 'unknown key' not in p], *words)
    assert all(p.startswith(f'Config {tmp_path}/c.yaml') and '\n' not in p and len(p) < 400 for p in config.problems)


@pytest.mark.parametrize('make, words', (
    (lambda p: None, 'Cannot read config c.yaml: No such file'), (lambda p: p.mkdir(), 'it is a folder'),
    (lambda p: os.mkfifo(p), 'it is a pipe'),
    (lambda p: p.symlink_to('gone'), 'Cannot read config c.yaml'),
))
def test_a_config_that_cannot_be_read_is_told_with_the_rest(tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / 'c.yaml')
    # the data folder may be named in the file, so that nothing is said of it
    assert_told(sentences('train', '-c', 'c.yaml', '--lr', '-1'), words, '--lr -1')
    assert_told(sentences('train', '-c', 'c.yaml', '--model', 'resnet5O'), words, 'resnet5O')


def test_nodes_presets_and_data_of_one_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_told(sentences('train', '/nowhere', '--preset', 'rsb_a9', '--nnodes', '2', '--lr', '-1'),
                "No preset 'rsb_a9'", '2 nodes need --master-addr', '--lr -1', 'Dataset /nowhere does not exist')
    assert_told(sentences('recipe', 'train_multinode', '--batch_size', '0', '--config', 'no.yaml'),
                '--data_path is missing', '--nnodes is missing', '--batch_size 0', 'Cannot read config no.yaml')
    # empty variables of a shell, with which a training would begin with the defaults
    assert_told(sentences('train', '--preset', '', '--config', ''), "No preset ''", '--config names no file')
    assert_told(sentences('tune', '--tuned-file', '/proc/x', '--seconds', '--allow', 'foo', '--lr', '-1', '/nowhere'),
                '--tuned-file /proc/x', 'Argument --seconds: expected one argument', '--allow foo', '--lr -1',
                'Dataset /nowhere')


NO_TEXT, NO_OUT = '/no/names.txt does not exist', 'the folder /no does not exist'


@pytest.mark.parametrize('argv, words', (
    (('predict', '/a.pth', 'HERE', '/b.jpg', '--class-names', '/no/names.txt', '--output', '/no/x'),
     ('MODEL /a.pth', '/b.jpg', NO_TEXT, NO_OUT)),
    (('predict', 'resnet5O', '/b.jpg'), ('MODEL resnet5O is unknown: did you mean resnet50?', '/b.jpg')),
    (('predict', 'runs/a', '/b.jpg'), ('MODEL runs/a does not exist', '/b.jpg')),
    (('explain', './a', '/b.jpg', '/c', '--output', '/proc/x'), ('MODEL ./a', '/b.jpg', '/c', '/proc/x')),
    (('export', 'a.safetensors', '/no/x.onnx', '--soc', 'bla', '--model', 'resnet5O'),
     ('a.safetensors', NO_OUT, '--soc bla', '--model resnet5O is unknown')),
    (('convert', 'no.pth', 'x.pth', '--to', 'safetensors'), ('no.pth', 'wrong ending')),
    (('export', 'no.pth', 'x.bin'), ('no.pth', 'name it .onnx or .pt2')),
    (('convert', '/a.pth', '/no/x.pth', '--to', 'tim', '--dtype', 'int3'),
     ('/a.pth', NO_OUT, '--to tim', '--dtype int3')),
    (('average', '/a.pth', '/b.pth', '--data-dir', '/d', '--out', '/no/x'), ('/a.pth', '/b.pth', '/d', NO_OUT)),
    (('compare', '/a.pth', '/b.pth', '--data-dir', '/d', '--against', '/e', '--dump', '/no/x'),
     ('/a.pth', '/b.pth', '/d', '/e', NO_OUT, 'takes one MODEL', '--data-dir is taken')),
    (('report', '/a', '/b', '--html', '/no/x', '--output', '/proc/x', '--data-dir', '/d'),
     ('/a', '/b', '/d', NO_OUT, '/proc/x')),
    (('diagnose', '/a', '--bundle', '/no/x.tar.gz'), ('/a does not exist', NO_OUT)),
    (('push', '/a', 'x', '--class-names', '/no/names.txt', '--license', 'My Licence'),
     ('/a does not exist', NO_TEXT, 'My Licence is not an identifier', 'ORG/NAME x is not the name')),
    (('inspect', '/a', '/b.pth', 'c', '--model', 'resnet5O'), ('/a', '/b.pth', 'c does not exist', 'resnet5O')),
    (('watch', '/a', '--interval', '-1'), ('/a', '--interval -1')),
    (('split', '/a', '/proc/x', '--val', '2'), ('/a', '/proc/x', '--val 2')),
    (('check-data', '/a', '--json', '/no/x', '--ignore', 'foo', '-j', '0'),
     ('/a', NO_OUT, '--ignore foo', '--workers 0')),
    (('prepare', '/a', '/proc/x', '--quality', '0'), ('/a', '/proc/x', '--quality 0')),
    (('prepare-imagenet', '--from', '/a', '/proc/x'), ('/a', '/proc/x')),
    (('weights', 'fetch', 'resnet50', '--from', '/a', '--sha256', 'zz'), ('/a', '--sha256 zz')),
    (('scripts', 'fetch', '--from', '/a', '--sha256', 'x=1'), ('/a', '--sha256 x=1')),
))
def test_every_missing_path_and_wrong_value_of_the_other_verbs(tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'HERE').write_bytes(b'')
    assert_told(sentences(*argv), *words)
    assert os.listdir() == ['HERE']


def test_what_may_be_on_the_hub_is_not_taken_for_a_path():
    from seresnet_timm.engine.values import rules_of
    rule = rules_of('predict')['model']
    for name in ('hf-hub:org/name', 'https://huggingface.co/org/name', 'huggingface.co/org/name', 'modelscope:org/name',
                 'resnet50.a1_in1k', 'seresnet50_ascend'):
        assert rule.missing(name) is rule.likely_wrong(name) is None
    assert rule.missing('local-dir:/no/such') and rule.missing('org/name') and rule.missing('')


def test_an_abbreviated_flag_is_told_as_it_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentences('train', '--batch-siz', '0', '/nowhere')[0].startswith('--batch-siz (--batch-size) 0 is too small')
    assert 'Argument --smooth (--smoothing): expected one argument.' in sentences('train', '/nowhere', '--smooth')
    assert sentences('predict', 'resnet50', '.', '--topk', '1', '--out', '/proc/x')[-1].startswith(
        '--out (--output) /proc/x cannot be written')
    found = sentences('train', '/nowhere', '--jsd', '--aug-spl', '0')  # a contradiction, found after the parsing
    assert any('--jsd (--jsd-loss)' in f for f in found), found


def test_nothing_is_pulled_for_a_run_that_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    for more in (('--lr', '-1'), ('--kd-model-name', 'hf-hub:org/teacher', '--kd-distill-type', 'logit')):
        found = sentences('train', '/nowhere', '--model', 'hf-hub:org/name', '--pretrained', *more)
        assert any('Dataset /nowhere' in f for f in found) and not any('127.0.0.1' in f for f in found)
    assert os.listdir() == []


def test_findings_are_those_of_check_data():
    from seresnet_timm.data.check import KINDS
    from seresnet_timm.engine.values import FINDINGS
    assert FINDINGS == tuple(KINDS)


@pytest.mark.parametrize('flag', ('--config', '--data-dir', '--lr', '--scale', '--model', '--scripts', '--preset',
                                  '--output', '--nproc', '--resume', '--train-img-sizes'))
def test_a_flag_without_its_value_is_told_with_the_rest(tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    found = sentences('train', '/nowhere', '--epochs', '0', flag)
    assert_told(found, 'Dataset /nowhere', '--epochs 0', f'{flag}: expected')


@pytest.mark.parametrize('variables, words', (
    ({'SLURM_STEP_NUM_TASKS': 'two'}, "SLURM_STEP_NUM_TASKS is 'two', which is not a number"),
    ({'SLURM_STEP_NUM_TASKS': '2', 'SLURM_PROCID': 'x', 'SLURM_STEP_NODELIST': 'localhost'}, "SLURM_PROCID is 'x'"),
    ({'PET_NNODES': '1:4', 'PET_NODE_RANK': '0'}, "PET_NNODES is '1:4', which is not a number"),
))
def test_variables_of_a_scheduler_are_told_with_the_other_mistakes(tmp_path, monkeypatch, variables, words):
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = sentences('train', '--data-dir', '/nowhere', '--lr', 'x', '--model', 'resnet5O')
    assert_told(found, "--lr 'x' is not a number", words, 'Dataset /nowhere does not exist', "Unknown model 'resnet5O'")


def test_addresses_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = sentences('train', '--data-dir', 's3://bucket/x', '--resume', 'https://host/x.pth.tar', '--model',
                      'resnet18')
    assert_told(found, 'Dataset s3://bucket/x is an address, not a folder on this machine',
                '--resume https://host/x.pth.tar is an address, not a path on this machine: download it')
    found = sentences('predict', 'https://host/x.pth.tar', 'http://host/i.jpg')
    assert any('http://host/i.jpg is an address' in f for f in found), found
