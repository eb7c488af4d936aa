"""`seresnet-timm diagnose`: texts, logs of any kind, the logs of a run, and the bundle for a bug report."""
import gzip
import io
import json
import os
import shutil
import tarfile
import time

import pytest
from ascend.npu_texts import call, cann, err, out_of_memory, waits
from conftest import run_here

from seresnet_timm.doctor import long_logs, run_logs
from seresnet_timm.doctor.secrets import Cleaner

ECC = call('NPU', 'HBM MULTI BIT ECC ERROR', 507054, time='2025-11-19-11:05:00', pid=1003, device=3, rank=3)


@pytest.fixture(autouse=True)
def no_plog(monkeypatch, tmp_path):
    monkeypatch.setenv('ASCEND_PROCESS_LOG_PATH', str(tmp_path / 'no plog'))


def write(path, text, mode='w'):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, mode) as f:
        f.write(text)
    return path


def error_file(path, when, text, message='RuntimeError: x'):
    """What torchrun's ranks leave."""
    return write(path, json.dumps({'message': {'message': message, 'extraInfo': {
        'py_callstack': f'Traceback (most recent call last):\n  File "x.py", line 1\n{text}',
        'timestamp': str(int(when))}}}))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of two nodes with two processes each that failed: rank 3 lost its device, the others waited."""
    folder = tmp_path / 'run'
    record = {'schema': 1, 'started': '2025-11-19T11:00:00+0000', 'finished': None, 'diverged': None, 'faults': [],
              'command': ['seresnet-timm', 'train', '--data-dir', '/home/alice/data', '--hub-token',
              'hf_abcdefghijklmnop'],
              'settings': {'nproc': 2, 'nnodes': 2}, 'epochs': []}
    write(folder / 'run.json', json.dumps(record))
    write(folder / 'args.yaml', 'lr: 0.1\n')
    write(folder / 'last.pth.tar', 'weights')
    when = time.mktime(time.strptime('2025-11-19 11:30:01', '%Y-%m-%d %H:%M:%S'))
    for node in (0, 1):
        for local in (0, 1):
            rank = 2 * node + local
            base = folder / f'logs/node{node}/none_x/attempt_0/{local}'
            if rank == 3:
                write(base / 'stderr.log', f'loading\n{ECC}\n')
            else:
                error_file(base / 'error.json', when, waits(rank, remote=3))
            if local:
                write(base / 'stdout.log', 'hello\n')
    write(folder / 'logs/node1/pids.json', json.dumps({'2': 1002, '3': 1003}))
    plog = tmp_path / 'plog'
    write(plog / 'debug/plog/plog-1003_20251119110500000.log',
    '[ERROR] RUNTIME(1003,python):2025-11-19-11:04:59.000.001 '
          '[x.cc:1] hbm ecc error on device 3\n')
    write(plog / 'debug/plog/plog-77_20240101000000000.log', 'of another run: NPU error, error code is 507015\n')
    monkeypatch.setenv('ASCEND_PROCESS_LOG_PATH', str(plog))
    return folder


def test_text_on_standard_input(monkeypatch):
    text = call('NPU', 'c10_npu::SetDevice(device_id_)', 507033, cann('E30006', 'Failed to verify the OPP'))
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(text.encode())))
    result = run_here('diagnose', '-')
    assert result.returncode == 0
    assert 'OPP' in result.stdout and 'E30006' in result.stdout and 'ACL 507033' in result.stdout
    assert 'device 0; process 356; 2025-11-19 11:14:58; standard input, line 1' in result.stdout


@pytest.mark.parametrize('text, code, words', [
    ('', 1, 'No fault was found'), ('Gradient overflow. Skipping step\n', 1, 'No fault was found'),
    (call('NPU', 'x', 507998), 1, 'not known'), ('ValueError: x\n', 1, 'not known'), (out_of_memory(), 0, '')])
def test_exit_codes(tmp_path, text, code, words):
    result = run_here('diagnose', write(tmp_path / 'a.log', text))
    assert result.returncode == code and words in result.stderr
    assert result.stdout.startswith('Fault')


@pytest.mark.parametrize('make', [
    lambda data: data, lambda data: gzip.compress(data), lambda data: gzip.compress(data * 40)[:-30],
    lambda data: data.replace(b'\n', b'\r\n'), lambda data: b'\xff\xfe\x00\x80' * 20 + b'\n' + data,
    lambda data: '\ufeff'.encode() + data, lambda data: data.decode().encode('utf-16'),
    lambda data: data.decode().encode('utf-16-le'), lambda data: ('\ufeff' + data.decode()).encode('utf-16-be'),
    lambda data: '训练开始\n'.encode('gbk') + data, lambda data: '训练开始'.encode()[1:] + b'\n' + data,
    lambda data: json.dumps({'log': data.decode()}).encode(), lambda data: b'\x1b[1;31m' + data + b'\x1b[0m'])
def test_files_of_any_bytes(tmp_path, make):
    file = tmp_path / 'x.log'
    file.write_bytes(make(ECC.encode()))
    result = run_here('diagnose', file)
    assert result.returncode == 0 and 'damaged' in result.stdout and 'ECC' in result.stdout, result.stdout


def test_a_large_file(tmp_path, monkeypatch):
    """Its beginning and end are read, and the lines between them that name an error; lines keep their numbers."""
    for name, size in (('HEAD', 2000), ('MIDDLE', 3000), ('TAIL', 2000)):
        monkeypatch.setattr(long_logs, name, size)
    monkeypatch.setattr(run_logs, '_CHUNK', 700)
    for before, after in ((5, 3000), (1000, 2000), (3000, 5)):
        text = 'nothing here\n' * before + ECC + '\n' + 'nothing here\n' * after
        for data in (text.encode(), gzip.compress(text.encode())):
            file = tmp_path / 'x.log'
            file.write_bytes(data)
            result = run_here('diagnose', file)
            assert 'ECC' in result.stdout and f'x.log, line {before + 1}\n' in result.stdout
            assert 'of 0 MiB between them only the lines that name an error' in result.stdout


def test_what_is_kept_of_a_large_file(monkeypatch):
    lines = [f'line {i}' if i % 7 else f'Error {i}' for i in range(4000)]
    data = '\n'.join(lines).encode()
    monkeypatch.setattr(long_logs, 'HEAD', 3000)
    monkeypatch.setattr(long_logs, 'TAIL', 3000)
    for size in (1, 13, 512, 100000):
        kept = long_logs.shorten(iter([data[i:i + size] for i in range(0, len(data), size)]))
        got = kept.data.decode().split('\n')
        assert len(got) == len(lines) and all(g in (w, '') for g, w in zip(got, lines))
        assert all(got[i] == lines[i] for i in range(0, 4000, 7))
        assert ('line 2001' in got) == (size == 100000) and (kept.left_out > 20000) == (size < 100000)
    monkeypatch.setattr(long_logs, 'MIDDLE', 100)
    short = long_logs.shorten(iter([data[i:i + 512] for i in range(0, len(data), 512)])).data.decode().split('\n')
    assert len(short) == len(lines) and 'Error 2002' not in short and short[-1] == lines[-1]


def test_chinese_of_any_locale(tmp_path):
    for codec in ('utf-8', 'gbk', 'gb18030'):
        for text, word in (("训练开始\nOSError: [Errno 28] 设备上没有空间: '/数据/x.pth'", '/数据/x.pth'),
                           ('run.sh：第 3 行： 123 已杀死               python train.py', 'SIGKILL')):
            file = tmp_path / 'x.log'
            file.write_bytes(text.encode(codec))
            assert word in run_here('diagnose', file).stdout, (codec, text)


def test_lines_without_end_do_not_displace_a_fault(monkeypatch):
    """Words of an error are in every line of a large log."""
    for name, size in (('HEAD', 2000), ('MIDDLE', 20000), ('TAIL', 2000)):
        monkeypatch.setattr(long_logs, name, size)
    lines = [f'step {i}: memory {i * 7} MiB' for i in range(5000)] + [ECC] + ['step: memory'] * 500
    data = '\n'.join(lines).encode()
    kept = long_logs.shorten(iter([data[i:i + 700] for i in range(0, len(data), 700)]))
    assert ECC.splitlines()[0].encode() in kept.data and len(kept.data) < len(data) / 2
    assert kept.data.count(b'\n') == data.count(b'\n')


@pytest.mark.parametrize('target, words', [
    ('gone', 'does not exist'), ('empty', 'has no logs and no run.json'), ('half', 'its run.json is damaged')])
def test_nothing_to_read(tmp_path, target, words):
    (tmp_path / 'empty').mkdir()
    write(tmp_path / 'half' / 'run.json', '{"schema": 1, "comm')
    result = run_here('diagnose', tmp_path / target)
    assert result.returncode == 2 and words in result.stderr


def test_run(run):
    """The fault of rank 3 on the second node is named, with plog of its process; the others waited for it."""
    result = run_here('diagnose', run)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith('Fault      The memory of the device') and 'damaged' in lines[0]
    assert 'rank 3' in lines[1] and 'plog-1003' in lines[1] and 'plog-77' not in result.stdout
    then = [line for line in lines if line.startswith('Then')]
    assert len(then) == 1 and 'ranks 0, 1, 2, +1501 s: lost contact' in then[0]


@pytest.mark.parametrize('finished, code', [('2025-11-19T11:40:00+0000', 0), (None, 1)])
def test_run_without_a_fault(run, finished, code):
    """One that came to its end is fine; of another, no fault in its logs explains nothing."""
    shutil.rmtree(run / 'logs')
    shutil.rmtree(run.parent / 'plog')
    write(run / 'logs/node0/none_x/attempt_0/1/stderr.log', 'loading\n')
    write(run / 'run.json', json.dumps({**json.loads((run / 'run.json').read_text()), 'finished': finished}))
    result = run_here('diagnose', run)
    assert result.returncode == code and result.stdout.startswith('Fault      none was found')
    assert ('No fault was found' in result.stderr) == bool(code), result.stderr
    assert ('came to its end' in result.stdout.splitlines()[0]) == bool(finished)
    assert run_here('diagnose', run, '--json').returncode == code



def make_run(folder, started, fault, start='none_a'):
    """A run of one rank that failed an hour after its start."""
    when = time.mktime(time.strptime(started, '%Y-%m-%dT%H:%M:%S'))
    record = write(folder / 'run.json', json.dumps({'started': f'{started}+0000', 'settings': {'nproc': 1}}))
    log = write(folder / f'logs/node0/{start}/attempt_0/0/stderr.log', fault + '\n')
    for path in (record, log):
        os.utime(path, (when + 3600, when + 3600))
    os.utime(log.parents[2], (when, when))
    return folder


@pytest.mark.parametrize('named', ('.', 'train'))
def test_the_newest_of_several_runs_is_read(tmp_path, named):
    """And what was printed meanwhile into a file beside it, and logs of another machine; the others are named."""
    memory = out_of_memory()
    make_run(tmp_path / 'train/b-old', '2025-11-18T11:00:00', ECC)
    make_run(tmp_path / 'train/a-new', '2025-11-20T11:00:00', memory)
    make_run(tmp_path / 'train/c-older', '2025-11-17T11:00:00', ECC)
    for name, day in (('nohup.out', 20), ('old.log', 18), ('node1/logs/node1/none_z/attempt_0/0/stdout.log', 20)):
        file, when = write(tmp_path / 'train' / name, 'loading\n'), time.mktime((2025, 11, day, 11, 30, 0, 0, 0, -1))
        os.utime(file, (when, when))
    result = run_here('diagnose', tmp_path / named)
    assert result.returncode == 0 and 'out of memory' in result.stdout and 'damaged' not in result.stdout
    assert 'nohup.out' in result.stdout and 'node1/none_z' in result.stdout and 'old.log' not in result.stdout
    note = next(line for line in result.stdout.splitlines() if 'newest run' in line)
    assert 'a-new; 2 others are not read' in note and 'b-old' in note and 'c-older' in note
    assert 'damaged' in run_here('diagnose', tmp_path / 'train/b-old').stdout


def test_the_newest_start_of_a_run_is_read(tmp_path):
    make_run(tmp_path / 'run', '2025-11-18T11:00:00', ECC, start='none_z')
    make_run(tmp_path / 'run', '2025-11-19T11:00:00', out_of_memory(), start='none_a')
    result = run_here('diagnose', tmp_path / 'run')
    assert 'out of memory' in result.stdout and 'damaged' not in result.stdout
    assert '1 earlier start of its processes is not read' in result.stdout
    now = time.time()
    for path in (tmp_path / 'run').rglob('*'):  # unpacked: nothing tells which is newer
        os.utime(path, (now, now))
    assert 'damaged' in run_here('diagnose', tmp_path / 'run').stdout


def test_a_rank_that_wrote_nothing_is_named(run):
    (run / 'logs/node1/none_x/attempt_0/1/stderr.log').write_text('loading\n')
    (run / 'logs/node1/pids.json').unlink()
    for file in (run.parent / 'plog').rglob('plog-1003*'):
        file.unlink()
    result = run_here('diagnose', run)
    assert result.returncode == 0 and 'rank 3 did not take part' in result.stdout
    assert 'No error was found of rank 3: such a rank may hang, or was killed.' in result.stdout


def test_run_as_json(run):
    report = json.loads(run_here('diagnose', run, '--json').stdout)
    assert report['explained'] and report['first']['fault'] == 'ecc' and report['first']['rank'] == 3
    assert {e['rank'] for e in report['others'] if e['role'] == 'wait'} == {0, 1, 2}


def test_run_that_diverged(tmp_path):
    write(tmp_path / 'run.json', json.dumps({'started': 'x', 'diverged': 'The loss of epoch 3 is nan.',
    'settings': None}))
    result = run_here('diagnose', tmp_path)
    assert result.returncode == 0 and 'The loss of epoch 3 is nan' in result.stdout and '--lr' in result.stdout


@pytest.mark.parametrize('record', ['', '[]', '{"settings": 3}', '{"settings": {"nproc": "many"}, "started": []}',
'\x00'])
def test_run_with_a_damaged_record(tmp_path, record):
    write(tmp_path / 'run.json', record)
    write(tmp_path / 'train.log', ECC)
    result = run_here('diagnose', tmp_path)
    assert result.returncode == 0 and 'ECC' in result.stdout


def test_sentences_of_this_package(tmp_path):
    """A sentence that the launcher has printed already is the explanation, or names the code."""
    text = 'seresnet-timm: error: train.py: the GPU fell off the bus. Resume with: x\n'
    result = run_here('diagnose', write(tmp_path / 'a.log', text))
    assert result.returncode == 0 and 'The GPU fell off' in result.stdout.replace('Train.py: the', 'The')
    text = 'seresnet-timm: error: npu:1 stopped working (ACL 507010: the task scheduler lost the heartbeat).\n'
    assert 'another' not in run_here('diagnose', write(tmp_path / 'b.log', text)).stdout


# --- bundle -----------------------------------------------------------------------------------------------------------

SECRETS = {
    'token on a command line': ('--hub-token abc123def456', 'abc123def456'),
    'token with =': ('--token=abc123def456', 'abc123def456'),
    'list of arguments': ('["--hub-token", "abc123def456"]', 'abc123def456'),
    'Python list': ("['--password', 'p4ss w0rd']", 'p4ss w0rd'),
    'variable': ('export HF_TOKEN=zzz987zzz', 'zzz987zzz'),
    'JSON': ('{"api_key": "k-123-456", "x": 1}', 'k-123-456'),
    'YAML': ('password: geheim123', 'geheim123'),
    'Hugging Face': ('using hf_AbCdEfGhIjKlMnOp', 'hf_AbCdEfGhIjKlMnOp'),
    'GitHub': ('ghp_0123456789abcdefghij', 'ghp_0123456789abcdefghij'),
    'URL': ('https://bob:s3cret@host.example/x', 's3cret'),
    'user of a URL': ('https://bob:s3cret@host.example/x', 'bob'),
    'proxy': ('http_proxy=http://u:pw12@10.1.1.1:3128', 'pw12'),
    'header': ('Authorization: Bearer abc.def-ghi', 'abc.def-ghi'),
    'JWT': ('x eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.sig y', 'eyJhbGciOi'),
    'AWS': ('AKIAIOSFODNN7EXAMPLE', 'AKIAIOSFODNN7EXAMPLE'),
    'signed URL': ('https://x/y?X-Amz-Signature=abcdef0123456789', 'abcdef0123456789'),
    'home': ('/home/alice/data/train', 'alice'),
    'address': ('listen on ip[192.168.7.42]', '192.168.7.42'),
    'IPv6': ('connect to fe80::1ff:fe23:4567:890a failed', 'fe80::1ff:fe23'),
    'host of torchrun': ('  host      : gpu-box-17.lab', 'gpu-box-17'),
    'mail': ('from alice.b@example.org', 'alice.b'),
    'value of a secret variable': ('the key is my-own-odd-value', 'my-own-odd-value'),
    'key': ('-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----', 'MIIabc'),
}


@pytest.mark.parametrize('name', SECRETS)
def test_secrets_are_replaced(name):
    text, secret = SECRETS[name]
    cleaned = Cleaner({'MY_SECRET': 'my-own-odd-value', 'HOME': '/home/carol',
        'USER': 'carol'}).clean(f'before\n{text}\nafter')
    assert secret not in cleaned and 'before' in cleaned


@pytest.mark.parametrize('text', [
    err(rank=3), cann('EI0002', 'remote rank: [24]. base information: [streamID:[109]]'), '127.0.0.1:29500',
    '[::]:29500',
    '2025-11-19 11:14:58,123', 'CANN 8.0.RC1, driver 25.0.rc1.1', 'firmware 7.1.0.6.220', 'token embedding', 'lr: 0.1',
    'tokens/s: 3', 'secretary', 'port[60000]', 'error code = 0x800000', 'version 1.2.3', 'rank 3: 10:15:20'])
def test_what_a_reader_needs_is_kept(text):
    kept = Cleaner({}).clean(text)
    assert kept == text or text.startswith('tokens')


def test_one_address_has_one_number():
    cleaned = Cleaner({}).clean('10.0.0.1 10.0.0.2 10.0.0.1')
    assert cleaned == '<address 1> <address 2> <address 1>'


def test_bundle(run, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'a-token-of-mine')
    monkeypatch.setenv('HCCL_EXEC_TIMEOUT', '1200')
    write(run / 'logs/node0/none_x/attempt_0/1/stderr.log', 'token a-token-of-mine at 192.0.2.5 in /home/alice/x\n')
    (run / 'logs/link.log').symlink_to('/etc/hostname')
    for name in ('a.tar.gz', 'b.tar.gz'):
        result = run_here('diagnose', run, '--bundle', tmp_path / name)
        assert result.returncode == 0 and 'Replaced in it:' in result.stdout, result.stderr
    data = (tmp_path / 'a.tar.gz').read_bytes()
    assert data == (tmp_path / 'b.tar.gz').read_bytes()
    with tarfile.open(tmp_path / 'a.tar.gz') as tar:
        texts = {m.name: tar.extractfile(m).read().decode() for m in tar if m.isfile()}
    assert all(name.startswith('diagnosis/') for name in texts)
    names = {name.removeprefix('diagnosis/') for name in texts}
    assert {'diagnosis.txt', 'diagnosis.json', 'run.json', 'args.yaml', 'environment.txt', 'versions.txt', 'README.txt',
            'logs/node1/none_x/attempt_0/1/stderr.log',
            'plog/debug/plog/plog-1003_20251119110500000.log'} <= names
    assert not any('pth' in name or 'link' in name for name in names)
    everything = '\n'.join(texts.values())
    for secret in ('a-token-of-mine', 'alice', '192.0.2.5', 'hf_abcdef'):
        assert secret not in everything
    environment = texts['diagnosis/environment.txt']
    assert 'HCCL_EXEC_TIMEOUT=1200' in environment and 'HF_TOKEN=<secret>' in environment
    assert 'damaged' in texts['diagnosis/diagnosis.txt'] and 'secret' in texts['diagnosis/README.txt']


@pytest.mark.parametrize('name, words', [('x.zip', 'ends in .tar.gz'), ('no/folder/x.tar.gz', 'does not exist')])
def test_bundle_that_cannot_be_written_is_refused_first(run, tmp_path, name, words):
    result = run_here('diagnose', run, '--bundle', tmp_path / name)
    assert result.returncode == 2 and words in result.stderr and not result.stdout
    assert sorted(os.listdir(tmp_path)) == ['plog', 'run']
