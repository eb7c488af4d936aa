"""Over a thousand damaged and hostile files: no wrong weights unnoticed, no code run, one sentence each."""
import io
import os
import pickle
import random
import resource
import struct
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from checkpoint_files import (
    save_foreign_safetensors,
    save_modelzoo,
    save_moskomule,
    save_run,
    save_timm,
    tiny_model,
)

from seresnet_timm.checkpoints.convert import convert
from seresnet_timm.checkpoints.fit import describe_misfit, weights_for
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.errors import UsageError

MUTATIONS = 180  # of a file of each format


@pytest.fixture(scope='module')
def model():
    return tiny_model()


@pytest.fixture(scope='module')
def files(model, tmp_path_factory):
    """One file of each format."""
    folder = tmp_path_factory.mktemp('files')
    run = save_run(model, folder)
    paths = {'run.pth.tar': run, 'ours.safetensors': folder / 'ours.safetensors'}
    convert(str(run), str(paths['ours.safetensors']))
    for name, save in (('modelzoo.pth.tar', save_modelzoo), ('timm.pth.tar', save_timm),
                       ('moskomule.pkl', save_moskomule), ('foreign.safetensors', save_foreign_safetensors),
                       ('npu.pth.tar', lambda m, p: save_modelzoo(m, p, old_npu=True))):
        paths[name] = folder / name
        save(model, paths[name])
    return paths


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_bits_near_an_end(data: bytearray, rng: random.Random) -> None:
    """Where pickles, headers and the directory of an archive lie."""
    position = rng.randrange(min(4000, len(data)))
    data[position if rng.random() < 0.5 else -1 - position] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)):]


def truncate_and_fill(data: bytearray, rng: random.Random) -> None:
    """As a file system leaves a file whose blocks never reached the disk."""
    start = rng.randrange(len(data) - 1)
    data[start:] = bytes(len(data) - start)


def overwrite(data: bytearray, rng: random.Random) -> None:
    start, length = rng.randrange(len(data)), rng.choice((4, 64, 4096))
    data[start:start + length] = rng.randbytes(len(data[start:start + length]))


def insert(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = rng.randbytes(rng.choice((1, 8, 100)))


def delete(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start:start + rng.choice((1, 8, 100))]


def swap_blocks(data: bytearray, rng: random.Random) -> None:
    """Two stretches of 64 bytes in each other's place, as of two weights."""
    a, b = sorted(rng.sample(range(0, len(data) - 64, 64), 2))
    data[a:a + 64], data[b:b + 64] = data[b:b + 64], data[a:a + 64]


WAYS = (flip_bits, flip_bits_near_an_end, truncate, truncate_and_fill, overwrite, insert, delete, swap_blocks)


def read(path: Path, model) -> dict:
    checkpoint = read_checkpoint(path)
    weights = weights_for(checkpoint, model)
    misfit = describe_misfit(weights, model)
    if misfit:
        raise UsageError(f'Checkpoint {path} does not fit: {misfit}.')
    return weights, checkpoint.holds_checksum


FORMATS = ('run.pth.tar', 'ours.safetensors', 'modelzoo.pth.tar', 'timm.pth.tar', 'moskomule.pkl',
           'foreign.safetensors', 'npu.pth.tar')


@pytest.mark.parametrize('name, mutations', [
    *((name, MUTATIONS) for name in FORMATS[:-1]),
    (FORMATS[-1], MUTATIONS // 3), pytest.param(FORMATS[-1], MUTATIONS, marks=pytest.mark.slow)])  # the slowest to read
def test_damaged_files(files, model, tmp_path, name, mutations):
    """Refused in one sentence that names the file, or the very weights; a file without a checksum says so."""
    original, expected = files[name].read_bytes(), model.state_dict()
    weights, has_checksum = read(files[name], model)
    assert all(torch.equal(weights[k], expected[k]) for k in expected)
    assert has_checksum == (name not in ('moskomule.pkl', 'foreign.safetensors', 'npu.pth.tar'))
    path, rng, outcomes = tmp_path / name, random.Random(name), Counter()
    for i in range(mutations):
        mutate = WAYS[i % len(WAYS)]
        data = bytearray(original)
        mutate(data, rng)
        path.write_bytes(data)
        try:
            weights, checked = read(path, model)
        except UsageError as e:
            outcomes['refused'] += 1
            assert str(path) in str(e) and '\n' not in str(e), (mutate, i)
            continue
        if all(torch.equal(weights[k], expected[k]) for k in expected):
            outcomes['whole'] += 1  # e.g. a flipped bit of a date
            continue
        assert not checked, (mutate.__name__, i)
        outcomes['values without a checksum'] += 1
        assert all(weights[k].dtype == expected[k].dtype or name.startswith('npu') for k in expected)
    print(name, dict(outcomes))
    assert outcomes['refused'] > mutations / (2 if has_checksum else 4), outcomes
    assert not has_checksum or outcomes['values without a checksum'] == 0
    assert os.listdir(tmp_path) == [name]


def test_swapped_members_with_right_checksums(files, model, tmp_path):
    """Two weights of one size in each other's place, as an archive without a fault: our own checkpoint notices."""
    path = tmp_path / 'c.pth.tar'
    with zipfile.ZipFile(files['run.pth.tar']) as z, zipfile.ZipFile(path, 'w') as out:
        names = [i.filename for i in z.infolist() if '/data/' in i.filename]
        size = {n: z.getinfo(n).file_size for n in names}
        a, b = next((a, b) for a in names for b in names
                    if a < b and size[a] == size[b] > 64 and z.read(a) != z.read(b))
        for info in z.infolist():
            out.writestr(info.filename, z.read({a: b, b: a}.get(info.filename, info.filename)))
    with zipfile.ZipFile(path) as z:
        assert z.testzip() is None
    with pytest.raises(UsageError, match='SHA-256 of state_dict'):
        read_checkpoint(path)


# --- hostile files ----------------------------------------------------------------------------------------------------

class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self._call = function, args

    def __reduce__(self):
        return self._call


def hostile(canary: Path) -> dict:
    """Objects whose unpickling would create the canary, and what a refusal should name."""
    command = f'touch {canary}'
    import subprocess

    import torch.hub
    objects = {
        'posix.system': Call(os.system, command),
        'builtins.exec': Call(exec, f'open({str(canary)!r}, "w")'),
        'builtins.eval': Call(eval, f'open({str(canary)!r}, "w")'),
        'subprocess.Popen': Call(subprocess.Popen, ['touch', str(canary)]),
        'builtins.getattr': Call(getattr, 'text', 'upper'),
        'pickle.loads': Call(pickle.loads, pickle.dumps(Call(os.system, command))),
        'torch.hub.load': Call(torch.hub.load, str(canary.parent), 'x'),
        'io.open': Call(open, str(canary), 'w'),
        'torch.serialization.load': Call(torch.load, str(canary)),
    }
    return {name: {'state_dict': {'fc.weight': torch.ones(2)}, 'extra': o} for name, o in objects.items()}


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_hostile_pickles_run_nothing(tmp_path, legacy):
    canary = tmp_path / 'canary'
    for name, content in hostile(canary).items():
        path = tmp_path / 'c.pth.tar'
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UsageError) as e:
            read_checkpoint(path)
        assert name in str(e.value) and 'no code in it was run' in str(e.value), name
        path.rename(tmp_path / 'c.safetensors')
        with pytest.raises(UsageError):
            read_checkpoint(tmp_path / 'c.safetensors')
        assert not canary.exists(), name
    os.system(f'touch {canary}')  # that the payload would have worked
    assert canary.exists()


def test_whole_models_and_raw_pickles_are_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / 'model.pth')
    with pytest.raises(UsageError, match=r'torch\.nn\.modules\.linear\.Linear.* Save the state_dict'):
        read_checkpoint(tmp_path / 'model.pth')
    (tmp_path / 'raw.pkl').write_bytes(pickle.dumps(Call(os.system, f'touch {tmp_path}/canary'), protocol=4))
    with pytest.raises(UsageError, match='posix.system'):
        read_checkpoint(tmp_path / 'raw.pkl')
    assert not (tmp_path / 'canary').exists()


def test_numpy_names_reach_no_numpy(tmp_path):
    """Object arrays and odd dtypes by NumPy's names: refused by our stand-ins."""
    import numpy as np
    for i, value in enumerate((np.array([1, 'x'], dtype=object), np.dtype([('a', 'i4')]), np.str_('x'),
                               np.datetime64('2020-01-01'), np.ones(3))):
        torch.save({'fc.weight': torch.ones(1), 'x': value}, tmp_path / f'{i}.pth')
        with pytest.raises(UsageError):
            read_checkpoint(tmp_path / f'{i}.pth')


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_bombs_take_no_memory(files, tmp_path):
    """Small files that say they are gigabytes: refused before the memory is taken."""
    def rezip(path, method, extra=()):
        with zipfile.ZipFile(files['timm.pth.tar']) as z, zipfile.ZipFile(path, 'w', method) as out:
            for info in z.infolist():
                out.writestr(info.filename, z.read(info.filename))
            for name, data in extra:
                out.writestr(name, data)

    before = peak_mb()
    zeros = tmp_path / 'deflated.pth'
    with zipfile.ZipFile(zeros, 'w', zipfile.ZIP_DEFLATED) as out, out.open('c/data.pkl', 'w', force_zip64=True) as f:
        for _ in range(400):
            f.write(bytes(1 << 20))
    assert zeros.stat().st_size < 1 << 20
    with pytest.raises(UsageError, match='compressed archive'):
        read_checkpoint(zeros)

    rezip(tmp_path / 'same_name.pth', zipfile.ZIP_STORED, [('c/data.pkl', b'x'), ('c/data.pkl', b'y')])
    with pytest.raises(UsageError, match='overlap'):
        read_checkpoint(tmp_path / 'same_name.pth')

    pickled = io.BytesIO()
    torch.save({'fc.weight': torch.ones(3)}, pickled, _use_new_zipfile_serialization=False)
    small = pickled.getvalue()
    count = small.index(b'cpu') + len(b'cpu') + 2
    assert small[count:count + 2] == b'K\x03', 'the number of elements of the storage'
    huge = small[:count] + b'\x8a\x06' + (1 << 40).to_bytes(6, 'little') + small[count + 2:]
    (tmp_path / 'huge.pth').write_bytes(huge)
    header = b'{"fc.weight":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    (tmp_path / 'huge.safetensors').write_bytes(struct.pack('<Q', len(header)) + header + bytes(16))
    (tmp_path / 'header.safetensors').write_bytes(struct.pack('<Q', 1 << 60) + b'{' + bytes(100))
    (tmp_path / 'nested.pth').write_bytes(b'\x80\x02' + b'(' * 1_000_000 + b'.')
    for name in ('huge.pth', 'huge.safetensors', 'header.safetensors', 'nested.pth'):
        with pytest.raises(UsageError) as e:
            read_checkpoint(tmp_path / name)
        assert name in str(e.value) and '\n' not in str(e.value)
    assert peak_mb() - before < 100
