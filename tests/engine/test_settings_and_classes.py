"""Both scripts take everything from RunSettings; class names that travel, and data with other classes."""
import json
import os
import shutil
import sys
import tarfile
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from conftest import MODEL, subset, train_flags
from PIL import Image
from timm.data import create_transform
from training import bundled_settings, load, summary, valid_record

from seresnet_timm import cli
from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.engine import train, validate
from seresnet_timm.engine.model_info import describe_other_classes, describe_other_start
from seresnet_timm.errors import RunError, UsageError
from seresnet_timm.inference.load import load_model
from seresnet_timm.inference.predict import find_images, predict
from seresnet_timm.launch import processes as launch_processes
from seresnet_timm.launch.plan import Node, plan_prediction
from seresnet_timm.models.info import ModelInfo

DIGITS = [str(i) for i in range(10)]


@pytest.fixture(scope='module')
def run(few_digits, tmp_path_factory):
    """A run of two epochs with a moving average."""
    output = tmp_path_factory.mktemp('run')
    train.main(bundled_settings(*train_flags(few_digits, output, '--model-ema')))
    return output / 'run'


def evaluation_of(checkpoint, data, **settings):
    return bundled_settings(
        'validate', '--data-dir', data, *MODEL,
        '--device', 'cpu', '--workers', 0, '--checkpoint', checkpoint, **settings)


def with_renamed_class(data, folder):
    """A copy of a dataset in which class 3 is called `three`."""
    for split in ('train', 'val'):
        (folder / split).mkdir(parents=True)
        for source in (data / split).iterdir():
            (folder / split / ('three' if source.name == '3' else source.name)).symlink_to(source)
    return folder


@pytest.mark.slow
def test_resume_reads_its_checkpoint_twice(run, few_digits, tmp_path, monkeypatch):
    """By the package, which checks it, and by timm's function: with moving average, history and random state."""
    reads, original = [], torch.load

    def counted(file, *args, **kwargs):
        reads.append(str(file))
        return original(file, *args, **kwargs)
    monkeypatch.setattr(torch, 'load', counted)
    last = run / 'last.pth.tar'
    train.main(bundled_settings(*train_flags(few_digits, tmp_path, '--model-ema', '--epochs', 3, '--resume', last)))
    assert reads.count(str(last)) == 2
    assert [r['epoch'] for r in summary(tmp_path / 'run')] == ['2']


def test_nothing_on_the_command_line_counts(run, few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['pytest', '--epochs', '7', '--no-such-flag'])
    settings = bundled_settings(*train_flags(few_digits, tmp_path, '--epochs', 1))
    command = ['seresnet-timm', 'train', '-b8']
    train.main(replace(settings, command=command))
    record = valid_record(tmp_path / 'run')
    assert len(record['epochs']) == 1 and record['command'] == command


@pytest.mark.parametrize('processes', (1, pytest.param(2, marks=pytest.mark.slow)))
def test_record_of_an_evaluation(run, few_digits, tmp_path, processes):
    settings = evaluation_of(run / 'last.pth.tar', few_digits, output=str(tmp_path / 'eval'))
    if processes == 1:
        validate.main(settings)
    else:
        launch_processes.run(replace(settings, nproc=2, world_size=2), Node())
    record = valid_record(tmp_path / 'eval')
    assert record['settings']['verb'] == 'validate' and record['settings']['world_size'] == processes
    assert record['evaluation']['images'] == 70 and record['finished'] and record['epochs'] == []
    assert 0 < record['evaluation']['top1'] <= record['evaluation']['top5'] <= 100
    assert record['model_info']['class_names'] == DIGITS and record['model_info']['input_size'] == [3, 32, 32]


def test_evaluation_of_a_folder_records_the_best(run, few_digits, tmp_path, capsys):
    validate.main(evaluation_of(run, few_digits, output=str(tmp_path)))
    figures = valid_record(tmp_path)['evaluation']
    assert f'"top1": {round(figures["top1"], 4)}' in capsys.readouterr().out.split('}')[0]


def test_other_classes_are_refused(run, few_digits, tmp_path):
    """By an evaluation and by a run that resumes, before anything is written; a checkpoint without names passes."""
    data = with_renamed_class(few_digits, tmp_path / 'data')
    with pytest.raises(UsageError, match="'3' only in the checkpoint; 'three' only in the data.*--class-map"):
        validate.main(evaluation_of(run / 'last.pth.tar', data))
    flags = train_flags(data, tmp_path / 'out', '--model-ema', '--epochs', 3, '--resume', run / 'last.pth.tar')
    with pytest.raises(UsageError, match='was trained with other classes'):
        train.main(bundled_settings(*flags))
    assert not (tmp_path / 'out').exists()
    torch.save(load(run / 'last.pth.tar')['state_dict'], tmp_path / 'weights.pth')
    validate.main(evaluation_of(tmp_path / 'weights.pth', data))


def test_class_map_says_which_class_a_new_name_is(run, few_digits, tmp_path):
    data = with_renamed_class(few_digits, tmp_path / 'data')
    (tmp_path / 'map.txt').write_text('\n'.join('three' if n == '3' else n for n in DIGITS) + '\n')
    results = []
    for folder, args in ((few_digits, {}), (data, {'class_map': str(tmp_path / 'map.txt')})):
        settings = evaluation_of(run / 'last.pth.tar', folder, output=str(tmp_path / 'out'))
        validate.main(replace(settings, args={**settings.args, **args}))
        results.append(valid_record(tmp_path / 'out')['evaluation']['top1'])
    assert results[0] == results[1]


def test_classes_of_the_plan_are_those_of_the_run(few_digits, tmp_path):
    settings = bundled_settings(*train_flags(few_digits, tmp_path / 'out'), class_names=DIGITS[:9] + ['nine'])
    with pytest.raises(RunError, match="'nine' in the plan of this run is '9' in the data folder now"):
        train.main(settings)
    assert not (tmp_path / 'out').exists()


# --- evaluation by name, through the whole command line ---------------------------------------------------------------

def top1_of(capsys, checkpoint, data, *flags) -> float:
    cli.main(['validate', '--checkpoint', str(checkpoint), '--data-dir', str(data), '--device', 'cpu', '--workers', '0',
              *map(str, flags)])
    captured = capsys.readouterr()
    top1_of.told = captured.err
    return json.loads(captured.out.partition('--result')[2])['top1']


@pytest.fixture(scope='module')
def sharp(run, few_digits, tmp_path_factory):
    """The checkpoint of the run with a classifier that tells its images apart: fitted by least squares."""
    loaded = load_model(str(run / 'last.pth.tar'))
    transform = create_transform(**loaded.data_config)
    files = find_images([str(few_digits / 'val')])
    with torch.inference_mode():
        images = torch.stack([transform(Image.open(f).convert('RGB')) for f in files])
        features = loaded.model.forward_head(loaded.model.forward_features(images), pre_logits=True)
        inputs = torch.cat([features, torch.ones(len(files), 1)], dim=1).double()
        classes = torch.tensor([int(f.split(os.sep)[-2]) for f in files])
        solution = torch.linalg.pinv(inputs, rtol=1e-5) @ torch.nn.functional.one_hot(classes, 10).double()
    content = load(run / 'last.pth.tar')
    content['state_dict']['fc.weight'] = solution[:-1].T.float().contiguous()
    content['state_dict']['fc.bias'] = solution[-1].float()
    for key in ('weights_sha256', 'state_dict_ema'):
        del content[key]
    path = tmp_path_factory.mktemp('sharp') / 'sharp.pth.tar'
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def some(sharp, few_digits, tmp_path_factory):
    """Three of the ten classes, and their top-1 by the name of each image's folder."""
    root = subset(few_digits, tmp_path_factory.mktemp('some') / 'data', 1, 7)
    for name in set(DIGITS) - {'3', '7', '9'}:
        shutil.rmtree(root / 'val' / name)
    loaded = load_model(str(sharp))
    hits = []
    files = find_images([str(root / 'val')])
    settings = plan_prediction(dict(device='cpu', workers=None, batch_size=32, topk=5), len(files))
    for result in predict(settings, loaded, files):
        hits.append(result['predictions'][0]['label'] == result['file'].split(os.sep)[-2])
    assert len(hits) == 21
    return root, 100 * sum(hits) / len(hits)


def test_labels_of_some_classes_are_those_of_the_training(sharp, some, tmp_path, capsys):
    root, expected = some
    assert 30 < expected
    for folder in ('.ipynb_checkpoints', '@eaDir/3'):
        (root / 'val' / folder).mkdir(parents=True)
        shutil.copy(next((root / 'val' / '7').iterdir()), root / 'val' / folder / '1.jpg')
    with tarfile.open(tmp_path / 'val.tar', 'w') as tar:
        tar.add(root / 'val', arcname='.')
    for data in (root, tmp_path / 'val.tar'):
        assert top1_of(capsys, sharp, data) == pytest.approx(expected, abs=1e-3)
        assert '3 of the 10 classes of the checkpoint; they are evaluated by name' in top1_of.told


def test_order_of_a_training_with_a_class_map(sharp, few_digits, tmp_path, capsys):
    """The outputs are numbered by a map; the evaluation has no map, or the same, or one that contradicts."""
    content = load(sharp)
    order = [3, 1, 2, 0, *range(4, 10)]
    content['model_info']['class_names'] = [str(i) for i in order]
    for key in ('fc.weight', 'fc.bias'):
        content['state_dict'][key] = content['state_dict'][key][order]
    moved = tmp_path / 'moved.pth.tar'
    torch.save(content, moved)
    expected = top1_of(capsys, sharp, few_digits)
    assert 30 < expected and top1_of(capsys, moved, few_digits) == expected
    assert 'numbered in the order of the checkpoint, not in that of the folders' in top1_of.told
    (tmp_path / 'map.txt').write_bytes('\r\n'.join(str(i) for i in order).encode('utf-16'))
    assert top1_of(capsys, moved, few_digits, '--class-map', tmp_path / 'map.txt') == expected
    (tmp_path / 'map.txt').write_text('\n'.join(DIGITS))
    with pytest.raises(SystemExit) as e:
        top1_of(capsys, moved, few_digits, '--class-map', tmp_path / 'map.txt')
    assert e.value.code == 2 and 'another order' in capsys.readouterr().err


@pytest.mark.parametrize('flag, remedy', (('--initial-checkpoint', '--pretrained-path'), ('--resume', '--class-map')))
def test_a_training_from_weights_of_other_classes(run, few_digits, tmp_path, capsys, flag, remedy):
    data = with_renamed_class(few_digits, tmp_path / 'data')
    flags = [str(f) for f in train_flags(data, tmp_path / 'out', flag, run / 'last.pth.tar', '--dry-run')]
    with pytest.raises(SystemExit) as e:
        cli.main(flags)
    error = capsys.readouterr().err
    assert e.value.code == 2 and "'3' only in the checkpoint; 'three' only in the data" in error and remedy in error
    content = load(run / 'last.pth.tar')
    del content['model_info'], content['weights_sha256']
    torch.save(content, tmp_path / 'old.pth.tar')
    flags[flags.index(flag) + 1] = str(tmp_path / 'old.pth.tar')
    cli.main(flags)
    assert 'old.pth.tar holds no class names: its classes cannot be compared' in capsys.readouterr().err


def test_a_start_from_the_same_classes():
    flags = Namespace(data_dir='D', class_map='')
    checkpoint = checkpoint_of(['a', 'b'])
    assert describe_other_start(checkpoint, ['a', 'b'], flags) is None
    assert 'another order' in describe_other_start(checkpoint, ['b', 'a'], flags)
    assert "renamed: 'b' in the checkpoint is 'c' in the data" in describe_other_start(checkpoint, ['a', 'c'], flags)


def checkpoint_of(names) -> Checkpoint:
    info = ModelInfo(name='seresnet18_ascend', num_classes=len(names), class_names=names)
    return Checkpoint('a.pth.tar', 'zip', {'model_info': info.to_dict(), 'state_dict': {}})


def test_names_are_compared_whatever_else_the_file_holds():
    """A run with an argument of the network that is not taken from files can be resumed: flags describe the network."""
    checkpoint = checkpoint_of(['a', 'b'])
    checkpoint.content['model_info']['kwargs'] = {'act_layer': 'silu', 'no_such': {}}
    flags = Namespace(data_dir='D', class_map='')
    assert describe_other_classes(checkpoint, ['a', 'b'], flags) is None
    assert 'another order' in describe_other_classes(checkpoint, ['b', 'a'], flags)
    checkpoint.content['model_info']['class_names'] = 'ab'  # damaged
    assert describe_other_classes(checkpoint, ['b', 'a'], flags) is None


@pytest.mark.parametrize('names, flags, refused', (
    (None, {}, None),
    (['a', 'b', 'c'], {}, None),
    (['a', 'b'], {}, None),  # a part, with the same indices
    (['b', 'c'], {}, 'only in the checkpoint'),
    (['b', 'c'], {'valid_labels': '1\n2\n'}, None),
    (['c', 'b'], {'valid_labels': '1\n2\n'}, 'another order'),
    (['b', 'a', 'c'], {}, 'another order'),
    (['a', 'b', 'c', 'd'], {}, "'d' only in the data"),
    (['a', 'B', 'c'], {}, 'look alike'),
    (['a', 'new', 'c'], {}, "renamed: 'b' in the checkpoint is 'new' in the data"),
    (['a', 'new', 'c'], {'class_map': 'map.txt'}, None),
    (['b', 'a', 'c'], {'class_map': 'map.txt'}, 'another order'),
    (['new', 'a', 'c'], {'class_map': 'map.txt'}, 'was trained with other classes'),
    (['a', 'b', 'c', 'd'], {'class_map': 'map.txt'}, "'d' only in the data"),
    (['a', 'c'], {'class_map': 'map.txt'}, "'b' in the checkpoint is 'c' in the data"),  # a map that leaves b out
    (['a, b', 'c'], {'class_map': 'map.txt'}, "'b' in the checkpoint is 'c' in the data"),  # two folders of one index
    (['a', 'new'], {'class_map': 'map.txt'}, None),
))
def test_which_differences_of_classes_are_refused(tmp_path, names, flags, refused):
    """Outputs have indices, not names: what an index means must be the same."""
    if 'valid_labels' in flags:
        (tmp_path / 'labels.txt').write_text(flags['valid_labels'])
        flags = {'valid_labels': str(tmp_path / 'labels.txt')}
    sentence = describe_other_classes(
        checkpoint_of(['a', 'b', 'c']), names, Namespace(**{'data_dir': 'D', 'class_map': '', **flags}))
    assert (refused in sentence) if refused else sentence is None
