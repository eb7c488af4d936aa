"""Files that are no checkpoints are called what they are; strings of Python 2 are read."""
import gzip
import json
import os
import pickle
import struct
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from seresnet_timm.checkpoints.convert import convert
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.errors import UsageError
from seresnet_timm.inference.export import check_target


def zip_of(**members):
    def write(path):
        with zipfile.ZipFile(path, 'w') as z:
            for name, content in members.items():
                z.writestr(name, content)
    return write


def tar_of(*names):
    def write(path):
        with tarfile.open(path, 'w') as t:
            for name in names:
                t.add(__file__, arcname=name)
    return write


def text(content):
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize('write, words', [
    (text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'), 'a Git LFS pointer.*git lfs pull'),
    (text('<!DOCTYPE html><title>Sign in</title>'), 'a web page'),
    (text('\n  <html lang="en">'), 'a web page'),
    (text('{"error": "Repository not found"}'), 'JSON text.*Repository not found'),
    (text('{"error":"Unauthorized"}'), 'JSON text.*Unauthorized'),
    (text('epoch,train_loss\n0,1.5\n'), 'a text file.*epoch,train_loss'),
    (text('/annex/objects/SHA256E-s9--0.pth\n'), 'git-annex'),
    (text(gzip.compress(b'x')), 'compressed with gzip'),
    (text(b'\x89HDF\r\n\x1a\n' + bytes(99)), 'an HDF5 file'),
    (text(bytes(99)), 'only zeros'),
    (text(b'\x89PNG\r\n\x1a\n' + bytes(99)), 'a picture'),
    (lambda path: np.save(path.open('wb'), np.ones(3)), 'a NumPy array'),
    (lambda path: np.savez(path.open('wb'), a=np.ones(3)), 'a NumPy archive'),
    (zip_of(**{'readme.txt': 'x', 'w.pth': 'y'}), r'a zip archive of other files \(readme.txt, w.pth\)'),
    (zip_of(**{'m/data.pkl': 'x', 'm/constants.pkl': 'y', 'm/code/a.py': ''}), 'a TorchScript program'),
    (tar_of('a.jpg', 'b.jpg'), r'a tar archive of other files \(a.jpg, b.jpg\)'),
    (text(b'GGUF\3' + bytes(99)), 'a GGUF file'),
    (text(b'\x1c\0\0\0TFL3' + bytes(99)), 'a TensorFlow Lite model'),
    (text(b'\x08\x01\x12\x07' + bytes(99)), 'a TensorFlow SavedModel'),
    (text(b'\x08\x08\x12\x07pytorch\x1a\x052.1.0' + bytes(99)), 'an ONNX model'),
    (text(b'\x0a\xc0\x93\x02\x0a\x0cconv1.weight\x12\x90\x93\x02' + bytes(99)), 'a MindSpore checkpoint.*asnumpy'),
    (tar_of('sys_info', 'pickle', 'storages', 'tensors'), 'the tar format of torch before'),
    (lambda path: torch.save({'w': [torch.ones(1), 'é' * 3]}, path, pickle_protocol=4), 'protocol 4'),
    (lambda path: torch.save({'fc.weight': torch.ones(1), 'x': np.str_('x')}, path), 'refused'),
], ids=lambda v: v if isinstance(v, str) else '')
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_named_for_what_it_is(tmp_path, write, words, suffix):
    path = tmp_path / f'x{suffix}'
    write(path)
    with pytest.raises(UsageError, match=words) as e:
        read_checkpoint(path)
    assert 'damaged' not in str(e.value) and str(path) in str(e.value)


@pytest.mark.parametrize('name, words', [
    ('m-00001-of-00002.safetensors', 'part 1 of 2 of a checkpoint in several files: join them'),
    ('pytorch_model-00002-of-00003.bin', 'part 2 of 3'), ('model.pdparams', 'a file of PaddlePaddle'),
    ('model.safetensors.index.json', 'the list of a checkpoint in several files'),
])
def test_named_by_its_name(tmp_path, name, words):
    if name.endswith('.json'):
        names = {f'layer{i}.weight': 'm-00001-of-00002.safetensors' for i in range(500)}
        (tmp_path / name).write_text(json.dumps({'metadata': {'total_size': 1}, 'weight_map': names}))
    else:
        torch.save({'fc.weight': torch.ones(1)}, tmp_path / name)
    with pytest.raises(UsageError, match=words):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize('is_zip', [True, False])
def test_a_file_of_torch_under_the_name_of_safetensors(tmp_path, is_zip):
    path = tmp_path / 'x.safetensors'
    torch.save({'fc.weight': torch.arange(3.)}, path, _use_new_zipfile_serialization=is_zip)
    assert read_checkpoint(path).weights['fc.weight'].tolist() == [0, 1, 2]


def test_only_what_is_cut_is_called_damaged(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'fc.weight': torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UsageError, match='incomplete or damaged'):
        read_checkpoint(path)


class Python2Pickler(pickle._Pickler):
    """Writes text as the byte strings of Python 2."""
    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, value):
        data = value.encode('latin-1')
        self.write((b'U' + bytes([len(data)]) if len(data) < 256 else b'T' + struct.pack('<i', len(data))) + data)
        self.memoize(value)
    dispatch[str] = save_str


def save_as_python2(content, path):
    module = types.ModuleType('pickle2')
    module.Pickler, module.dump = Python2Pickler, lambda v, f, protocol=2: Python2Pickler(f, protocol).dump(v)
    torch.save(content, path, pickle_module=module, pickle_protocol=2, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize('author', ['Ann', 'Andr\xe9', '\xff\xfe', 'long ' * 99, 'caf\xc3\xa9 ' * 99])
def test_strings_of_python_2(tmp_path, author):
    path, weights = tmp_path / 'x.pth.tar', OrderedDict(a=torch.randn(3), b=torch.arange(4))
    save_as_python2({'epoch': 7, 'author': author, 'state_dict': weights}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.epoch == 7 and all(torch.equal(checkpoint.weights[k], v) for k, v in weights.items())


def test_code_in_a_file_of_python_2_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.mkdir, (tmp_path / 'ran',)
    path = tmp_path / 'x.pth.tar'
    save_as_python2({'author': 'Andr\xe9', 'x': Evil(), 'state_dict': {'a': torch.ones(1)}}, path)
    with pytest.raises(UsageError, match='no code in it was run'):
        read_checkpoint(path)
    assert not (tmp_path / 'ran').exists()


def test_paths_and_dictionaries_of_other_packages(tmp_path, monkeypatch):
    """They are read as text and as dictionaries; the packages are not imported."""
    import sys
    module = types.ModuleType('easydict')
    module.EasyDict = type('EasyDict', (dict,), {'__module__': 'easydict'})
    path = tmp_path / 'x.pth'
    with monkeypatch.context() as m:
        m.setitem(sys.modules, 'easydict', module)
        torch.save({'state_dict': {'a': torch.ones(2)}, 'args': module.EasyDict(model='x', lr=1),
                    'out': PurePosixPath('a/b')}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.args == {'model': 'x', 'lr': 1} and checkpoint.content['out'] == 'a/b'
    assert 'easydict' not in sys.modules


@pytest.mark.parametrize('name', ['x.pth.tar', 'x.safetensors', 'X.SAFETENSORS'])
def test_a_path_that_is_not_utf8(tmp_path, name):
    """A run can be written there, so it is read there; torch and safetensors alone take no such path."""
    folder = tmp_path / os.fsdecode(b'caf\xe9')
    folder.mkdir()
    weights = {'fc.weight': torch.arange(6.).reshape(2, 3)}
    torch.save({'state_dict': weights, 'epoch': 4}, tmp_path / 'x.pth')
    convert(str(tmp_path / 'x.pth'), str(folder / name))
    found = read_checkpoint(folder / name)
    assert torch.equal(found.weights['fc.weight'], weights['fc.weight'])
    assert found.format == ('zip' if name.endswith('tar') else 'safetensors')
    assert found.content['weights_sha256']
    with pytest.raises(UsageError, match='not UTF-8, which exporters need'):
        check_target(folder / 'x.onnx', None)
