"""Data sets of timm's other readers: --dataset torch/, hfds/, hfids/, wds/."""
import importlib.util
import io
import json
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL, run_here, subset, train_flags
from PIL import Image

from seresnet_timm.launch.combinations import find_contradictions
from seresnet_timm.launch.dataset import examine
from seresnet_timm.launch.sources import dataset_in

pytestmark = pytest.mark.preloaded


def skip_without(package):
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # tests/datasets is no package
        pytest.skip(f'{package} is not installed')


def look(verb='validate', **args):
    return examine(verb, {'split': 'validation', 'train_split': 'train', 'val_split': 'validation', **args})


@pytest.fixture(scope='module')
def named(few_digits, tmp_path_factory):
    """Ten classes n1 to n10: their natural order is another than that of text, in which other readers number them."""
    root = tmp_path_factory.mktemp('named') / 'data'
    subset(few_digits, root, 3, 3)
    for folder in sorted(root.glob('*/*')):
        folder.rename(folder.parent / f'n{int(folder.name) + 1}')
    return root


@pytest.fixture(scope='module')
def run(named, tmp_path_factory):
    """A training on these folders, and its evaluation on them."""
    output = tmp_path_factory.mktemp('run')
    flags = train_flags(named, output, '-b', 10, '--epochs', 4, '--lr', 0.05)
    assert run_here(*flags).returncode == 0
    return output / 'run' / 'last.pth.tar', evaluate(output / 'run' / 'last.pth.tar', data_dir=named)


def evaluate(checkpoint, **flags):
    """top1, top5 and loss of a checkpoint."""
    target = Path(checkpoint).parent / 'result.json'
    argv = [f'--{k.replace("_", "-")}={v}' for k, v in flags.items()]
    result = run_here('validate', '--checkpoint', checkpoint, '--device', 'cpu', '-b', 8, '--workers', 0,
                      '--fast-jpeg', 'off', '--results-file', target, '--results-format', 'json', *argv)
    assert result.returncode == 0, result.stderr
    found = json.loads(target.read_text())
    return {k: pytest.approx(found[k], abs=2e-3) for k in ('top1', 'top5', 'loss') if k in found}


def test_classes_of_torchvision_folders_are_evaluated_by_name(run, named):
    checkpoint, expected = run
    assert evaluate(checkpoint, dataset='torch/image_folder', data_dir=named) == expected


def test_classes_of_hugging_face_are_evaluated_by_name(run, named, tmp_path):
    skip_without('datasets')
    checkpoint, expected = run
    assert evaluate(checkpoint, dataset=f'hfds/{named}', data_dir=tmp_path / 'cache') == expected
    assert evaluate(checkpoint, data_dir=f'hfds:{named}') == expected
    result = run_here('validate', '--checkpoint', checkpoint, '--device', 'cpu', '--num-samples', 30,
                      '--dataset', f'hfids/{named}')  # whose reader has no names of a local folder to number them by
    assert result.returncode == 2 and "class 1 is 'n2' in the checkpoint and 'n10' in the data" in result.stderr


@pytest.mark.parametrize('data_dir, flags', (
    ('hfds:org/name', {'dataset': 'hfds/org/name', 'data_dir': None}),
    ('wds:a/b', {'dataset': 'wds/', 'data_dir': 'a/b'}),
    ('hfids:x', {'dataset': 'hfids/x', 'data_dir': None}), ('hfds:', {}), ('wds://x', {}), ('a:b', {}), ('', {})))
def test_datasets_that_are_named_as_a_folder(data_dir, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dataset_in(data_dir) == flags
    if flags:
        (tmp_path / data_dir).mkdir(parents=True)  # a folder of that name
        assert dataset_in(data_dir) == {}


def test_unknown_split_of_hugging_face(named, tmp_path):
    skip_without('datasets')
    problem, = look(dataset=f'hfds/{named}', data_dir=str(tmp_path), split='tst').problems
    assert "has no split 'tst': it has train, validation" in problem and not any(tmp_path.iterdir())


def test_splits_of_torchvision_that_timm_would_take_for_others(named, tmp_path):
    """timm takes any name but train for the test images, and the root for a folder that is not there."""
    problem, = look('train', dataset='torch/mnist', data_dir=str(named), train_split='train[:50%]').problems
    assert 'timm would take the test images' in problem
    (tmp_path / 'x').mkdir()
    problem, = look('train', dataset='torch/image_folder', data_dir=str(named), val_split='tst').problems
    assert 'those of other splits included' in problem


def test_classes_of_torchvision_that_differ(named, tmp_path):
    root = shutil.copytree(named, tmp_path / 'data')
    shutil.rmtree(root / 'val' / 'n3')
    problem, = look('train', dataset='torch/image_folder', data_dir=str(root)).problems
    assert "'n3' only in training" in problem


def test_images_of_torchvisions_folders_are_read_as_all_others(named, tmp_path):
    """16 bits are scaled, which torchvision clips at 255; a file that is none is named."""
    from seresnet_timm.data.loaders import create_dataset
    for name, values in (('a', np.full((4, 4), 100 * 257, np.uint16)), ('b', np.full((4, 4), 100, np.uint8))):
        (tmp_path / 'val' / name).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / 'val' / name / '1.png')
    dataset = create_dataset('torch/image_folder', str(tmp_path), 'val', '', None)
    assert [np.unique(image).tolist() for image, _ in dataset] == [[100], [100]]
    (tmp_path / 'val' / 'a' / '1.png').write_text('<html>')
    problem, = look(dataset='torch/image_folder', data_dir=str(tmp_path)).problems
    assert problem.startswith(f'{tmp_path}/val/a/1.png cannot be read (it is a web page')


@pytest.mark.parametrize('reader', ('hfds', 'hfids'))
def test_fields_of_a_table_of_hugging_face(tmp_path, reader):
    """A field that is not there, and classes as texts: timm would read every image, and fail at each."""
    skip_without('datasets')
    import pyarrow
    import pyarrow.parquet
    picture = io.BytesIO()
    Image.new('RGB', (4, 4)).save(picture, 'PNG')
    rows = pyarrow.table({'img': [{'bytes': picture.getvalue(), 'path': '1.png'}], 'species': ['ant'], 'number': [0]})
    pyarrow.parquet.write_table(rows, tmp_path / 'validation.parquet')
    args = dict(dataset=f'{reader}/{tmp_path}', data_dir=str(tmp_path / 'cache'))
    for more, words in (({}, "has no field 'image': it has img, species, number; name it with --input-key"),
                        ({'input_key': 'img'}, "has no field 'label'"),
                        ({'input_key': 'img', 'target_key': 'species'}, "'species' holds texts")):
        problem, = look(**args, **more).problems
        assert words in problem
    assert look(**args, input_key='img', target_key='number').problems == []
    problem, = look(dataset='', data_dir=str(tmp_path)).problems
    assert f'its .parquet files are read with --dataset hfds/{tmp_path}' in problem


def test_gray_images_of_torchvision(tmp_path):
    """Those of a training are evaluated with the average of the mean and std that the file holds for three channels."""
    folder = tmp_path / 'MNIST' / 'raw'
    folder.mkdir(parents=True)
    for name in ('train', 't10k'):
        pixels = np.zeros((20, 28, 28), 'uint8')
        (folder / f'{name}-images-idx3-ubyte').write_bytes(struct.pack('>4I', 2051, *pixels.shape) + pixels.tobytes())
        labels = np.arange(20, dtype='uint8') % 10
        (folder / f'{name}-labels-idx1-ubyte').write_bytes(struct.pack('>2I', 2049, 20) + labels.tobytes())
    problem, = look(dataset='torch/mnist', data_dir=str(tmp_path)).problems
    assert 'give --in-chans 1' in problem
    found = look('train', dataset='torch/mnist', data_dir=str(tmp_path), in_chans=1)
    assert found.num_images == {'train': 20, 'val': 20} and found.class_names[0] == '0 - zero' and not found.problems
    flags = train_flags(tmp_path, tmp_path, '--dataset', 'torch/mnist', '--in-chans', 1, '-b', 10, '--epochs', 1)
    assert run_here(*flags).returncode == 0
    found = evaluate(tmp_path / 'run' / 'last.pth.tar', dataset='torch/mnist', data_dir=tmp_path, workers=1)
    assert found['top1'].expected == 10


@pytest.mark.parametrize('dataset', ('wds/x', 'tfds/mnist', 'hfids/a/b'))
def test_streams_are_not_evaluated_on_several_processes(dataset):
    """Their readers share whole files: some images would count twice, and others never."""
    def problems(verb, world_size, **args):
        found = find_contradictions(verb, {'dataset': dataset, 'epochs': 1, **args}, lambda *names: False, world_size)
        return [p for p in found if dataset in p]
    assert '--nproc 1' in problems('validate', 2)[0] and not problems('validate', 1)
    assert "--val-split ''" in problems('train', 2, val_split='validation')[0]
    assert not problems('train', 2, val_split='')


# --- webdataset -------------------------------------------------------------------------------------------------------

@pytest.fixture
def shards(named, tmp_path):
    """The validation images in two tars, with the index of each in the natural order of the classes."""
    skip_without('webdataset')
    files = sorted((named / 'val').glob('*/*'))
    names = ['val-0.tar', 'val-1.tar']
    for k, name in enumerate(names):
        with tarfile.open(tmp_path / name, 'w') as tar:
            for i, file in enumerate(files[k::2]):
                index = int(file.parent.name[1:]) - 1
                for suffix, data in ((file.suffix, file.read_bytes()), ('.cls', b'%d' % index)):
                    member = tarfile.TarInfo(f'{i:04d}{suffix}')
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    split = dict(name='validation', num_samples=len(files), filenames=names, shard_lengths=[15, 15])
    (tmp_path / '_info.json').write_text(json.dumps({'splits': {'validation': split}}))
    return tmp_path


def test_webdataset_counts_every_image_once(run, shards):
    checkpoint, expected = run
    assert evaluate(checkpoint, dataset='wds/x', data_dir=shards) == expected
    assert evaluate(checkpoint, dataset='wds/x', data_dir=shards, workers=3) == expected


def test_images_that_webdataset_skips_count_as_wrong(run, shards):
    checkpoint, expected = run
    found = evaluate(checkpoint, dataset='wds/x', data_dir=shards, num_samples=60)
    assert found['top1'].expected == pytest.approx(expected['top1'].expected / 2, abs=2e-3)


def test_shards_that_cannot_be_read(run, shards):
    (shards / 'val-1.tar').unlink()
    problem, = look(dataset='wds/x', data_dir=str(shards)).problems
    assert '1 of its 2 files are missing' in problem and 'val-1.tar' in problem
    problem, = look(dataset='wds/x', data_dir=str(shards), split='val-{0..0}.tar').problems
    assert 'give its number of images with --num-samples' in problem
    problem, = look('train', dataset='wds/x', data_dir=str(shards)).problems
    assert '--train-split train of --dataset wds/x cannot be opened' in problem


@pytest.mark.parametrize('kinds, args, words', (
    (('jpeg', 'cls'), {}, 'the files .jpeg, .cls; timm takes the image from .jpg, .png, .webp: name others with'),
    (('png', 'label'), {}, 'the class from the number in .cls'),
    (('png', 'cls'), {'target_key': 'species'}, 'the field species of .json: leave --target-key out'),
    ((), {}, 'has no samples'), (('JPEG', 'CLS'), {'input_key': 'jpg;jpeg'}, None)))
def test_shards_whose_samples_timm_would_skip(shards, kinds, args, words):
    """timm warns of each sample, goes on with none, and the top-1 would be 0."""
    with tarfile.open(shards / 'val-0.tar', 'w') as tar:
        for i in range(2):
            for kind in kinds:
                tar.addfile(tarfile.TarInfo(f'x/{i:04d}.{kind}'))
    problems = look(dataset='wds/x', data_dir=str(shards), **args).problems
    assert words is None and problems == [] or words in problems[0]


def test_16_bits_that_a_reader_would_clip(shards, tmp_path):
    """timm's readers of WebDataset and of streams decode themselves: all would be white."""
    for values, bits in ((np.full((4, 4), 25700, np.uint16), 16), (np.full((4, 4), 100, np.uint8), 8)):
        picture = io.BytesIO()
        Image.fromarray(values).save(picture, 'PNG')
        for name in ('ant', 'bee'):
            folder = tmp_path / str(bits) / 'validation' / name
            folder.mkdir(parents=True)
            (folder / '1.png').write_bytes(picture.getvalue())
        with tarfile.open(shards / 'val-0.tar', 'w') as tar:
            for name, data in (('0.png', picture.getvalue()), ('0.cls', b'0')):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        problems = look(dataset='wds/x', data_dir=str(shards)).problems
        if importlib.util.find_spec('datasets').origin:
            problems += look(dataset=f'hfids/{tmp_path / str(bits)}', data_dir=str(tmp_path)).problems
            assert look(dataset=f'hfds/{tmp_path / str(bits)}', data_dir=str(tmp_path)).problems == []
        assert problems == [] if bits == 8 else problems and all('more than 8 bits' in p for p in problems)


def test_no_image_of_webdataset(run, shards):
    """All are damaged: no result, in place of a top-1 of 0."""
    for name in ('val-0.tar', 'val-1.tar'):
        with tarfile.open(shards / name, 'w') as tar:
            for kind in ('png', 'cls'):
                tar.addfile(tarfile.TarInfo(f'0.{kind}'))
    result = run_here('validate', '--checkpoint', run[0], '--device', 'cpu', '--workers', 0, '--dataset', 'wds/x',
                      '--data-dir', shards)
    assert result.returncode == 1 and 'All 30 images to evaluate were skipped' in result.stderr and not result.stdout


def test_label_that_the_model_does_not_have(run, shards):
    result = run_here('validate', *MODEL[:4], '--num-classes', 3, '--checkpoint', run[0], '--dataset', 'wds/x',
                      '--device', 'cpu', '--data-dir', shards)
    assert result.returncode in (1, 2) and 'Traceback' not in result.stderr


# --- tensorflow_datasets ----------------------------------------------------------------------------------------------

def test_tensorflow_datasets_needs_two_packages(monkeypatch, tmp_path):
    import importlib.util
    known = importlib.util.find_spec

    def without_tensorflow(name, *more):
        return None if name.startswith('tensorflow') else known(name, *more)
    monkeypatch.setattr(importlib.util, 'find_spec', without_tensorflow)
    problems = look(dataset='tfds/mnist', data_dir=str(tmp_path)).problems
    assert [p.split(': ')[-1] for p in problems] == [
        'pip install tensorflow-datasets.', 'pip install tensorflow.']


@pytest.mark.slow
def test_a_prepared_data_set_of_tensorflow(tmp_path):
    pytest.importorskip('tensorflow', reason='tensorflow is not installed (600 MB)')
    tfds = pytest.importorskip('tensorflow_datasets')

    class ThreeClasses(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {'image': tfds.features.Image(shape=(None, None, 3)),
                        'label': tfds.features.ClassLabel(names=['zebra', 'ape', 'cat'])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {'train': self._generate_examples(12), 'validation': self._generate_examples(6)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {'image': np.full((8, 8, 3), 80 * (i % 3), np.uint8), 'label': i % 3}
    ThreeClasses(data_dir=tmp_path).download_and_prepare()
    args = dict(dataset='tfds/three_classes', data_dir=str(tmp_path))
    found = look('train', **args)
    assert found.class_names == ['zebra', 'ape', 'cat'] and found.num_images == {'train': 12, 'val': 6}
    for more, words in (({'split': 'nope'}, "has no split 'nope': it has train, validation"),
                        ({'input_key': 'pic'}, "has no field 'pic'"),
                        ({'data_dir': str(tmp_path / 'none')}, 'cannot be opened')):
        problem, = look(**{**args, **more}).problems
        assert words in problem
