"""Names that are replaced in timm's scripts: checked against the way the script calls them, before anything runs."""
import inspect
import os
from argparse import Namespace

import pytest
import timm
import torch
import torch.nn as nn
from timm import utils
from timm_scripts import SCRIPTS, SMALL, known_files
from training import valid_record

from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.errors import UsageError
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.runs.settings import RunSettings, Script
from seresnet_timm.timm_scripts import load
from seresnet_timm.timm_scripts.find import find
from seresnet_timm.timm_scripts.train_overrides import TrainOverrides


def overrides_of(name: str, **settings):
    args = settings.pop('args', {})
    return load.make_overrides(RunSettings(verb='train', script=Script(name), args=args, **settings))


def check_source(tmp_path, name: str, source: str):
    (tmp_path / name).write_text(source)
    return load.check(find(name, str(tmp_path)))


# --- checks before the run --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('folder', SCRIPTS)
@pytest.mark.parametrize('name', ('train.py', 'validate.py'))
def test_every_name_is_replaced(folder, name):
    replaced = [change for change, outcome in load.check(find(name, str(folder))) if outcome == load.REPLACED]
    assert replaced == [*overrides_of(name).names(), *(['prepare_distributed'] if name == 'train.py' else [])]


@pytest.mark.parametrize('name', ('train.py', 'validate.py'))
def test_every_override_is_documented(name):
    overrides = overrides_of(name)
    for function in [o.replacement for o in overrides.names().values()] + [TrainOverrides.task_class]:
        doc = inspect.getdoc(function)
        assert 'line' in doc and 'Without:' in doc and 'Checked by:' in doc, function


@pytest.mark.parametrize('tag, file', known_files('train.py') + known_files('validate.py'))
def test_known_scripts_are_accepted(tag, file):
    assert load.is_known(find(file.name, str(file))) and load.check(find(file.name, str(file)))


@pytest.mark.parametrize('name, old, new, change, hint', (
    ('train.py', 'from timm.models import create_model', 'from timm import models',
     'create_model', 'is not defined at module level'),
    ('train.py', 'model = create_model(', 'model = make_model(', 'create_model', 'main() does not call `create_model`'),
    ('train.py', '    device = utils.init', '    create_loader = partial(create_loader)\n    device = utils.init',
     'create_loader', 'has a local `create_loader`'),
    ('train.py', 'saver = utils.CheckpointSaver(', 'saver = Saver(', 'utils.CheckpointSaver', 'does not call'),
    ('train.py', 'CheckpointSaver(\n            model=model,', 'CheckpointSaver(\n            model,',
     'utils.CheckpointSaver', 'calls `utils.CheckpointSaver` in another way'),
    ('train.py', 'args=args, amp_scaler', 'amp_scaler', 'utils.CheckpointSaver', "'args'"),
    ('train.py', 'utils.update_summary(', 'write_summary(', 'utils.update_summary', 'does not call'),
    ('train.py', 'epoch, model, loader_train,', 'model, loader_train,', 'train_one_epoch', "'args'"),
    ('train.py', 'output_dir=output_dir, amp', 'amp', 'train_one_epoch', "'output_dir'"),
    ('train.py', 'CrossEntropyLoss(), args, device=device,', 'CrossEntropyLoss(), args,', 'validate', "'device'"),
    ('train.py', 'task = ClassificationTask(', 'task = make_task(', 'prepare_distributed', 'creates no task'),
    ('train.py', 'task.prepare_distributed(', 'task.wrap(', 'prepare_distributed', 'does not call'),
    ('train.py', 'prepare_distributed(device_ids', 'prepare_distributed(device, device_ids', 'prepare_distributed',
     "multiple values for argument 'device_ids'"),
    ('train.py', 'args, args_text = _parse_args()', 'args, args_text = _parse_args(None)', '_parse_args',
     'too many positional'),
    ('validate.py', 'load_checkpoint(model, args.checkpoint, args.use_ema)',
     'load_checkpoint(model, args.checkpoint, strict=False)', 'load_checkpoint', "'strict'"),
    ('validate.py', 'parser.parse_args()', 'parser.parse_known_args()[0]', 'parser.parse_args', 'does not call'),
    ('validate.py', 'write_results(args.results_file, results, format=args.results_format)', 'save(results)',
     'write_results', 'does not call'),
))
def test_another_use_of_a_name_is_refused(tmp_path, name, old, new, change, hint):
    source = (SMALL / name).read_text()
    assert source.count(old) == 1
    with pytest.raises(UsageError) as e:
        check_source(tmp_path, name, source.replace(old, new))
    message = str(e.value)
    assert f'{tmp_path}/{name}: the change {change} does not match' in message and hint in message
    assert '--scripts bundled' in message and '\n' not in message


def test_arguments_known_only_at_run_time_are_accepted(tmp_path):
    source = (SMALL / 'train.py').read_text().replace('is_training=True, no_aug', '**extra, no_aug')
    assert ('create_loader', load.REPLACED) in check_source(tmp_path, 'train.py', source)


def test_a_script_that_is_not_known_is_checked_without_executing_it(tmp_path, monkeypatch):
    source = (SMALL / 'train.py').read_text().replace(
        '_logger = logging', "open('executed', 'w').close()\n_logger = logging", 1)
    monkeypatch.chdir(tmp_path)
    check_source(tmp_path, 'train.py', source)
    script = find('train.py', str(tmp_path))
    assert not load.is_known(script) and not os.path.exists('executed')
    assert load.parser_of(script).parse_args(['-b', '7']).batch_size == 7 and os.path.exists('executed')
    assert load.is_known(find('train.py', 'bundled'))


def test_errors_of_the_parser_are_one_sentence():
    with pytest.raises(UsageError, match=r'^Argument -b/--batch-size: invalid int value: .x.\.$'):
        load.parser_of(find('train.py', str(SMALL))).parse_args(['-b', 'x'])


def test_a_script_that_was_changed_since_the_plan_is_refused(tmp_path):
    (tmp_path / 'train.py').write_text((SMALL / 'train.py').read_text())
    script = find('train.py', str(tmp_path))
    (tmp_path / 'train.py').write_text((SMALL / 'train.py').read_text() + '\n')
    with pytest.raises(UsageError, match='has another content than when this run was planned'):
        load.run(RunSettings(verb='train', script=script, args={}))


# --- what they do -----------------------------------------------------------------------------------------------------

def test_a_module_that_the_script_imported_is_not_changed_for_others():
    module = load._execute(find('train.py', str(SMALL)))
    saver = utils.CheckpointSaver
    overrides = overrides_of('train.py')
    overrides.install(module)
    assert module.utils.CheckpointSaver == overrides.create_saver and utils.CheckpointSaver is saver
    assert module.utils.is_primary is utils.is_primary
    assert module.create_model == overrides.create_model and timm.models.create_model.__module__ != overrides.__module__
    assert issubclass(module.ClassificationTask, timm.task.ClassificationTask)


@pytest.mark.parametrize('name', ('train.py', 'validate.py'))
def test_a_model_of_the_hub_comes_from_its_folder(tmp_path, name):
    """No network: the launcher has pulled the model and names its folder."""
    from safetensors.torch import save_file
    weights = timm.create_model('resnet18', num_classes=3).state_dict()
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text('{"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {}}')
    overrides = overrides_of(name, args={'model': 'hf-hub:org/name', 'resume': ''}, model_folder=str(tmp_path))
    overrides.install(load._execute(find(name, str(SMALL))))
    model = overrides.create_model('hf-hub:org/name', pretrained=True)
    assert model.num_classes == 3 and torch.equal(model.fc.weight, weights['fc.weight'])
    assert overrides.create_model('resnet18', num_classes=5).num_classes == 5


def test_a_saver_without_a_task(tmp_path):
    """The scripts up to v1.0.26 give model and moving average to the saver."""
    model = timm.create_model('resnet18', num_classes=3)
    ema = utils.ModelEmaV3(model)
    args = Namespace(model='resnet18', resume='', start_epoch=None, batch_size=1, amp=False, model_dtype=None)
    overrides = overrides_of('train.py', args=vars(args))
    overrides._originals = {'create_model': lambda name: model}
    overrides.create_model('resnet18')
    saver = overrides.create_saver(
        model=model, model_ema=ema, optimizer=torch.optim.SGD(model.parameters(), 0.1), args=args, amp_scaler=None,
        checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path), decreasing=False, max_history=2)
    nn.init.constant_(ema.module.fc.weight, 0.5)
    saver.save_recovery(0, 3)
    saver.wait()  # it writes in a thread
    checkpoint = read_checkpoint(tmp_path / 'recovery-0-3.pth.tar').content
    assert checkpoint['state_dict'].keys() == checkpoint['state_dict_ema'].keys() == model.state_dict().keys()
    assert torch.equal(checkpoint['state_dict']['fc.weight'], model.fc.weight)
    assert (checkpoint['state_dict_ema']['fc.weight'] == 0.5).all()


def test_interrupted_runs_are_not_finished():
    """The script's `main` returns after Ctrl-C."""
    overrides = overrides_of('train.py')
    finished = []
    overrides._outputs = Namespace(
        saver=Namespace(wait=lambda: None), record=None, finish=lambda: finished.append(True))

    def train_epoch(*args):
        raise KeyboardInterrupt
    overrides._training = Namespace(train_epoch=train_epoch)

    def main():
        try:
            overrides.train_one_epoch(
                0, None, Namespace(dataset=None), None, None, device=torch.device('cpu'), output_dir=None)
        except KeyboardInterrupt:
            pass
    with pytest.raises(KeyboardInterrupt):
        overrides.run(main)
    assert not finished


@pytest.mark.parametrize('folder', SCRIPTS)
def test_an_evaluation_with_a_folder_is_recorded(few_digits, tmp_path, monkeypatch, folder):
    """Figures and model in run.json, from flags that `sys.argv` does not have."""
    monkeypatch.setattr('sys.argv', ['validate.py', '--no-such-flag'])
    script = find('validate.py', str(folder))
    torch.save(timm.create_model('resnet18', num_classes=10).state_dict(), tmp_path / 'weights.pth')
    args = load.parser_of(script).parse_args([
        '--checkpoint', str(tmp_path / 'weights.pth'),
        '--data-dir', str(few_digits), '--model', 'resnet18', '--num-classes', '10', '--img-size', '32', '--split',
        'val', '-b', '16', '--workers', '0', '--device', 'cpu'])
    load.run(RunSettings(verb='validate', script=script, args=vars(args), output=str(tmp_path / 'run')))
    record = valid_record(tmp_path / 'run')
    assert record['finished'] and record['evaluation']['images'] == 70 and record['evaluation']['top1'] is not None
    assert record['model_info']['name'] == 'resnet18' and record['model_info']['class_names'] == list('0123456789')


def test_a_checkpoint_of_other_classes_is_refused(few_digits, tmp_path):
    """By validate.py, and by train.py before anything is written."""
    from timm.data import create_dataset
    names = [str(i) for i in range(9)] + ['other']
    model = timm.create_model('resnet18', num_classes=10)
    info = ModelInfo.of_model(model, class_names=names).to_dict()
    torch.save({'state_dict': model.state_dict(), 'model_info': info, 'arch': 'resnet18'}, tmp_path / 'c.pth.tar')
    args = dict(model='resnet18', data_dir=str(few_digits), class_map='', resume=str(tmp_path / 'c.pth.tar'),
                distributed=False, seed=1)
    dataset = create_dataset('', root=str(few_digits), split='val')
    validate = overrides_of('validate.py', args=args)
    validate.load_checkpoint(model, tmp_path / 'c.pth.tar')
    for create_loader in (validate.create_loader, overrides_of('train.py', args=args).create_loader):
        with pytest.raises(UsageError, match='was trained with other classes'):
            create_loader(dataset, input_size=(3, 32, 32), batch_size=2, is_training=True)


@pytest.mark.parametrize('name', ('train.py', 'validate.py'))
def test_datasets_of_both_scripts_have_the_classes_of_the_plan(tmp_path, name):
    """The way both scripts call it; folders of other programs and classes without images change no label."""
    for file in ('val/bee/1.png', 'val/cow/1.png', 'val/.ipynb_checkpoints/1.png'):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(b'')
    overrides = overrides_of(name, class_names=['cow', 'ant', 'bee'])
    for call in (lambda create, **kwargs: create('', **kwargs), lambda create, **kwargs: create(name='', **kwargs)):
        dataset = call(overrides.create_dataset, root=str(tmp_path), split='validation', class_map='', download=False)
        assert dataset.reader.samples == [(f'{tmp_path}/val/bee/1.png', 2), (f'{tmp_path}/val/cow/1.png', 0)]
    (tmp_path / 'map.txt').write_bytes('bee\r\ncow\r\n'.encode('utf-8-sig'))
    dataset = overrides.create_dataset('', root=str(tmp_path), split='val', class_map=str(tmp_path / 'map.txt'))
    assert [label for _, label in dataset.reader.samples] == [0, 1]
