"""One Hub on the loopback interface and one client for all tests of this folder, emptied before each."""
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from conftest import train_flags
from hub_server import HubServer

import seresnet_timm  # noqa: F401  (registers the models)
from hub.commands import FLAGS, SMALL, TOKEN, Client


@pytest.fixture(scope='package')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hub')
    (folder / 'tmp').mkdir()
    with HubServer(folder / 'blobs', users={TOKEN: 'me', 'hf_tokenofother': 'other'}) as hub:
        client = Client(folder, hub.url)
        yield hub, client
        client.process.stdin.close()
        client.process.wait()


@pytest.fixture
def hub(world):
    """The Hub, empty."""
    hub = world[0]
    hub.repos.clear()
    hub.faults.clear()
    hub.requests.clear()
    for blob in hub.folder.iterdir():
        blob.unlink()
    return hub


@pytest.fixture
def client(world):
    """The client, with an empty HF_HOME."""
    client = world[1]
    if client.is_running:  # a test failed before its command ended
        client.wait()
    client.forget()
    yield client
    assert client.leftovers() == []


@pytest.fixture(scope='package')
def checkpoint(tmp_path_factory) -> Path:
    """A small SE-ResNet of three classes, as timm's train.py saves it."""
    torch.manual_seed(0)
    model = timm.create_model('seresnet18_ascend', num_classes=3, **SMALL)
    for name, buffer in model.named_buffers():
        if 'running' in name:
            buffer.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp('checkpoint') / 'c.pth.tar'
    args = Namespace(model='seresnet18_ascend', num_classes=3, model_kwargs=SMALL, img_size=32, mean=[0.4, 0.5, 0.6])
    torch.save({'state_dict': model.state_dict(), 'arch': 'seresnet18_ascend', 'epoch': 4, 'args': args}, path)
    return path


@pytest.fixture(scope='package')
def run(world, few_digits, tmp_path_factory) -> Path:
    """The folder of a real training of two epochs."""
    output = tmp_path_factory.mktemp('runs')
    result = world[1].run(*train_flags(few_digits, output, '--model-kwargs', 'channels=(8,16,32,64)'))
    assert result.code == 0, result.err
    return output / 'run'


@pytest.fixture
def pushed(hub, client, checkpoint):
    """me/x on the Hub."""
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 0, result.err
    hub.requests.clear()
    return hub
