"""Commands of a user of the Hub in real processes, and what they must say."""
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Sequence

import pytest
import timm
import torch
from conftest import ROOT

import seresnet_timm  # noqa: F401  (registers the models)
from seresnet_timm.checkpoints.read import read_checkpoint

TOKEN = 'hf_tokenofme'
SMALL = dict(channels=[8, 16, 32, 64])
FLAGS = ['--license', 'apache-2.0']
EVERY_PUSH = {'model.safetensors', 'config.json', 'README.md'}
# requests that a fault spoils
INFO, CDN, HEAD = 'GET /api/models/me/x', 'GET /_cdn/', 'HEAD /me/x/resolve/.*/model.safetensors'
CREATE, PUT, BATCH, COMMIT = '/api/repos/create', 'PUT', 'objects/batch', '/commit/'
# what a user does with a pushed model, in an environment that has nothing else of it
USE = '''
import seresnet_timm, timm, torch
model = timm.create_model('{name}', pretrained=True).eval()
with torch.no_grad():
    torch.save(model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)), 'logits.pt')
'''


class Client:
    """Commands in real processes, see hub_client.py. `home` is their HF_HOME."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.home, self.is_running = folder, folder / 'home', False
        self.environment = {
            **os.environ, 'HF_ENDPOINT': url, 'HF_HOME': str(self.home), 'HF_TOKEN': TOKEN, 'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_DOWNLOAD_TIMEOUT': '3', 'HF_HUB_ETAG_TIMEOUT': '3', 'TMPDIR': str(folder / 'tmp'),
            'SSL_CERT_DIR': str(folder / 'tmp'),  # no certificates, which take 0.1 s of each command to read
            'HTTP_PROXY': '', 'http_proxy': '', 'ALL_PROXY': '', 'TIMM_SCRIPTS': '',
            'TORCHINDUCTOR_CACHE_DIR': str(folder / 'inductor'),  # torch makes this folder when it is imported
            'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
        for name in ('HUGGINGFACE_HUB_CACHE', 'HF_HUB_CACHE', 'HF_HUB_OFFLINE'):
            self.environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / 'tests' / 'hub_client.py')],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, text=True)
        assert self.process.stdout.readline() == 'ready\n'

    def start(self, *argv, **request) -> int:
        """Start a command; its process id. `wait` has to follow."""
        request = {
            'argv': list(map(str, argv)), 'cwd': str(self.folder), 'stdout': str(self.folder / 'out'),
            'stderr': str(self.folder / 'err'), **request}
        self.process.stdin.write(json.dumps(request) + '\n')
        self.process.stdin.flush()
        self.is_running = True
        return self._answer('pid')

    def wait(self) -> SimpleNamespace:
        code = self._answer('exit')
        self.is_running = False
        out, err = ((self.folder / name).read_text() for name in ('out', 'err'))
        assert TOKEN not in out + err and 'secretsignature' not in out + err
        return SimpleNamespace(code=code, out=out, err=err)

    def _answer(self, word: str) -> int:
        first, number = self.process.stdout.readline().split()
        assert first == word
        return int(number)

    def run(self, *argv, **request) -> SimpleNamespace:
        self.start(*argv, **request)
        return self.wait()

    def python(self, code: str, **request) -> SimpleNamespace:
        return self.run(code=code, **request)

    def forget(self) -> None:
        """Empty HF_HOME: a fresh machine."""
        shutil.rmtree(self.home, ignore_errors=True)

    def leftovers(self) -> list:
        """Files that no finished command should leave: parts of downloads, and what pushes write before they send."""
        return [*self.home.rglob('*.incomplete'), *(self.folder / 'tmp').glob('seresnet-timm-*')]


def one_sentence(result, code: int, *parts: str) -> None:
    """A command failed with this exit code, and says so in one line with these parts in it."""
    assert result.code == code, (result.code, result.out, result.err)
    lines = [line for line in result.err.splitlines() if line.startswith('seresnet-timm: error')]
    assert len(lines) == 1 and 'Traceback' not in result.err, result.err
    for part in parts:
        assert part in lines[0], lines[0]
    if 'HUB_SENTENCES' in os.environ:  # to read them
        with open(os.environ['HUB_SENTENCES'], 'a') as f:
            f.write(lines[0] + '\n')


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))


def logits_of(path: Path, **kwargs) -> torch.Tensor:
    model = timm.create_model('seresnet18_ascend', **kwargs)
    model.load_state_dict(read_checkpoint(path).content['state_dict'])
    return logits(model)


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mostly_slow(cases: Sequence, every: int = 6) -> list:
    """Parameters of a test: `make test` runs every sixth, the others are variants for `make test-slow`."""
    return [case if i % every == 0 else pytest.param(*(case if isinstance(case, tuple) else (case,)),
                                                     marks=pytest.mark.slow)
            for i, case in enumerate(cases)]
