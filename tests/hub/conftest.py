"""One Hub on the loopback interface and one client for all tests of this folder, emptied before each."""
import copy
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


def emptied(hub):
    hub.repos.clear()
    hub.faults.clear()
    hub.requests.clear()
    for blob in hub.folder.iterdir():
        blob.unlink()
    return hub


def forgetful(client):
    if client.is_running:  # a test failed before its command ended
        client.wait()
    client.forget()
    return client


@pytest.fixture
def hub(world):
    """The Hub, empty."""
    return emptied(world[0])


@pytest.fixture
def client(world):
    """The client, with an empty HF_HOME."""
    client = forgetful(world[1])
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


@pytest.fixture(scope='package')
def repository(world, checkpoint):
    """What a push leaves on the Hub: the repository, and the content of its blobs; on the client it leaves nothing."""
    hub, client = emptied(world[0]), forgetful(world[1])
    result = client.run('push', checkpoint, 'me/x', *FLAGS)
    assert result.code == 0 and not client.home.exists(), result.err
    return hub.repos['me/x'], {blob.name: blob.read_bytes() for blob in hub.folder.iterdir()}


@pytest.fixture
def pushed(repository, hub, client):
    """me/x on the Hub, as its push has left it."""
    repo, blobs = repository
    hub.repos['me/x'] = copy.deepcopy(repo)
    for name, content in blobs.items():
        hub.blob(name).write_bytes(content)
    return hub
