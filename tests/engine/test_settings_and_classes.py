"""Both scripts take everything from RunSettings; class names that travel, and data with other classes."""
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from conftest import train_flags
from training import bundled_settings, load, summary, valid_record

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.engine import train, validate
from seresnet_timm.engine.model_info import describe_other_classes
from seresnet_timm.errors import RunError, UsageError
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
        'validate', '--data-dir', data, '--model', 'seresnet18_ascend', '--num-classes', 10, '--img-size', 32,
        '--device', 'cpu', '--workers', 0, '--checkpoint', checkpoint, **settings)


def with_renamed_class(data, folder):
    """A copy of a dataset in which class 3 is called `three`."""
    for split in ('train', 'val'):
        (folder / split).mkdir(parents=True)
        for source in (data / split).iterdir():
            (folder / split / ('three' if source.name == '3' else source.name)).symlink_to(source)
    return folder


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
        (tmp_path / 'settings.json').write_text(replace(settings, nproc=2, world_size=2).to_json())
        subprocess.run(
            [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m',
             'seresnet_timm.launch.rank', str(tmp_path / 'settings.json')], check=True, env=os.environ)
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
))
def test_which_differences_of_classes_are_refused(tmp_path, names, flags, refused):
    """Outputs have indices, not names: what an index means must be the same."""
    if 'valid_labels' in flags:
        (tmp_path / 'labels.txt').write_text(flags['valid_labels'])
        flags = {'valid_labels': str(tmp_path / 'labels.txt')}
    sentence = describe_other_classes(
        checkpoint_of(['a', 'b', 'c']), names, Namespace(**{'data_dir': 'D', 'class_map': '', **flags}))
    assert (refused in sentence) if refused else sentence is None
