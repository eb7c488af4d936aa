"""Secrets in every form that logs, settings and start scripts have them in, and in every member of a bundle."""
import gzip
import json
import tarfile
import time

import pytest
from conftest import run_here

from seresnet_timm.doctor.secrets import Cleaner

HEX, MIXED, SHORT = '0123456789abcdef' * 2 + '01234567', 'wJa1rXUtnFEMIxK7MDENGxbPxRfiCYzzzzzzKEY1', 'S3cr3tP4ss'
FORMS = (
    'wandb: api key: {}', 'wandb.login(key="{}")', 'WANDB_KEY={}', 'wandb_api_key: {}', '{}',
     # W&B's keys are 40 digits
    'machine api.wandb.ai\n  login user\n  password {}', 'AK={}', 'OBS_SK={}', 'ak: {} sk: x', 'secretKey: {}',
    'accessKeyId={}', 'AccessKeySecret: {}', 'aws_secret_access_key = {}', 'CLEARML_API_SECRET_KEY={}',
    'SecurityToken={}',
    'MYSQL_PWD={}', 'pwd={}', 'passphrase: {}', '密码：{}', 'password is {}', 'Password for user: {}', 'token is {}',
    'Token {} is invalid', 'token -> {}', 'set HF_TOKEN {}', 'HF_TOKEN\t{}', '"auth": "{}"', '\\"token\\": \\"{}\\"',
    'authorization: token {}', 'Authorization: Basic {}', 'X-Api-Key: {}', 'curl -u user:{} https://x', 'sshpass -p '
    '{} ssh h',
    'env: [{{"name": "HF_TOKEN", "value": "{}"}}]', '- name: WANDB_API_KEY\n  value: {}', 'use_auth_token={}',
    'user:{}@proxy.corp:8080', 'ssh://root:{}@h', 'redis://:{}@h:6379/0', 'https://user:p@ss{}@host/x',
    'https://user:pa/ss{}@host', '-e HF_TOKEN={}', "['--token', '{}']")


@pytest.mark.parametrize('form', FORMS)
def test_form(form):
    for secret in (HEX, MIXED, SHORT) if form not in ('{}', 'wandb: api key: {}') else (HEX,):
        cleaned = Cleaner({}).clean(f'before\n{form.format(secret)}\nafter')
        assert secret not in cleaned and cleaned.startswith('before') and cleaned.endswith('after')


@pytest.mark.parametrize('text', [
    f'commit {HEX}', f'hf-hub:timm/resnet50.a1_in1k@{HEX}', f'"revision": "{HEX}"', 'sha256: ' + 'ab12' * 16,
    'key: layer4.2.downsample.0.weight', 'unexpected key module.layer4.2.conv3.weight in state_dict', 'asked 47',
    'KeyError: key conv_stem2.bn1.running_mean', 'the tokenizer is loaded: bert', 'worker@node', '0000:C1:00.0',
    'torch_npu/csrc/core/npu/NPUStream.cpp:435', 'seresnet50.ra2_in1k', 'token is missing', 'password authentication'])
def test_kept(text):
    assert Cleaner({}).clean(text) == text


def test_values_of_variables_in_other_forms():
    environ = {'MY_TOKEN': 'a/b+"c" d', 'https_proxy': 'http://me:pr0xy%21@proxy:8080'}
    for text in ('a/b+"c" d', 'a%2Fb%2B%22c%22%20d', r'a/b+\"c\" d', 'pr0xy%21'):
        assert Cleaner(environ).clean(f'say {text} here') == 'say <secret> here'


def test_long_lines_and_logs_take_no_time():
    start = time.process_time()
    for text in ('-' * 60000, 'a' * 60000, 'aB3_' * 15000, 'token ' * 9000, 'http://' * 6000, 'password' * 6000,
                 'Train: 3 [ 100/1251 (  8%)]  Loss: 6.9 (6.9)  Time: 0.3s\n' * 6000):
        Cleaner({}).clean(text)
    assert time.process_time() - start < 10


def test_every_member_of_a_bundle(tmp_path, monkeypatch):
    """run.json, settings, logs of each kind and their names, the record of an exception, plog, the environment."""
    monkeypatch.setenv('ASCEND_PROCESS_LOG_PATH', str(tmp_path / 'plog'))
    monkeypatch.setenv('WANDB_API_KEY', HEX)
    monkeypatch.setenv('HTTPS_PROXY', 'http://me:pr0xy4711@192.0.2.1:8080')
    run = tmp_path / 'run'
    log = run / 'logs/node0/none_x/attempt_0/1'
    log.mkdir(parents=True)
    (run / 'run.json').write_text(json.dumps({
        'command': ['train', '--hub-token', MIXED], 'settings': {'args': {'data_dir': f'https://u:{SHORT}@h/d'}},
        'started': '2025-11-19T11:00:00', 'environment': {'HF_TOKEN': MIXED}}))
    (run / 'args.yaml').write_text(f'data_dir: s3://u:{SHORT}@bucket\nhub_token: {MIXED}\nwandb_api_key: {HEX}\n')
    (run / 'summary.csv').write_text(f'epoch,note\n0,token={MIXED}\n')
    (log / 'stderr.log').write_bytes(b'\xff\xfe' + f'wandb: api key: {HEX}\nproxy pr0xy4711\n'.encode('utf-16-le'))
    (log / 'stdout.log.gz').write_bytes(gzip.compress(f'AWS_SECRET_ACCESS_KEY={MIXED}\n'.encode()))
    (run / 'logs' / 'hf_AbCdEfGhIjKlMnOpQr.log').write_text(f'"token": "{MIXED}"')
    (log / 'error.json').write_text(json.dumps({'message': {'message': f'RuntimeError: password is {SHORT}',
                                                            'extraInfo': {
        'py_callstack': f'Traceback:\nRuntimeError: password is {SHORT}', 'timestamp': '1763550898'}}}))
    plog = tmp_path / 'plog/debug/plog'
    plog.mkdir(parents=True)
    (run / 'logs/node0/pids.json').write_text('{"1": 77}')
    (plog / 'plog-77_20251119110150000.log').write_text(f'[ERROR] HCCL(77,python3):2025-11-19-11:14:58.516.606 '
                                                        f'[x.cc:7] [77]'
                                                        f'url http://u:{SHORT}@192.0.2.7/x\n')
    run_here('diagnose', run, '--bundle', tmp_path / 'a.tar.gz')
    with tarfile.open(tmp_path / 'a.tar.gz') as tar:
        texts = {m.name: tar.extractfile(m).read().decode() for m in tar if m.isfile()}
    assert len(texts) == 13 and any('plog-77' in name for name in texts)
    everything = '\n'.join([*texts, *texts.values()])
    for secret in (HEX, MIXED, SHORT, 'pr0xy4711', 'hf_AbCdEf', '192.0.2'):
        assert secret not in everything, [name for name, text in texts.items() if secret in text]
