"""Bad input: one clear sentence, exit code 2, nothing written."""
import importlib.util
import logging
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from conftest import WIDE, run_cli, run_here, subset, train_flags
from timm_scripts import NO_SCRIPTS, SCRIPTS, TIMM_SCRIPTS

from seresnet_timm import cli

pytestmark = pytest.mark.preloaded


@pytest.fixture
def tree(few_digits, tmp_path) -> Path:
    return subset(few_digits, tmp_path / 'data', 2, 2)


def refuse(capsys, *argv) -> str:
    """Run the command line in this process and return the sentence it refuses with."""
    with pytest.raises(SystemExit) as e:
        cli.main([str(a) for a in argv])
    captured = capsys.readouterr()
    assert e.value.code == 2, captured.err
    assert 'Traceback' not in captured.err and captured.out == ''
    _, _, sentence = captured.err.partition('seresnet-timm: error: ')  # log lines may come before it
    return sentence.strip()


@pytest.fixture(autouse=True)
def fresh_logging():
    """The command line sets up logging once a process; here many run in one."""
    yield
    logging.root.handlers = [h for h in logging.root.handlers if type(h) is not logging.StreamHandler]


def refuse_train(capsys, data, tmp_path, *more) -> str:
    message = refuse(capsys, *train_flags(data, tmp_path / 'out', *more))
    assert not (tmp_path / 'out').exists()
    return message


def test_missing_data_folder(capsys, tmp_path):
    message = refuse_train(capsys, tmp_path / 'nowhere', tmp_path)
    assert message == f'Dataset {tmp_path}/nowhere does not exist: check --data-dir.'
    assert 'check --data-dir, or give --dataset tfds/cifar10 if' in refuse_train(capsys, 'tfds/cifar10', tmp_path)


def test_no_data_folder_given(capsys, tmp_path):
    assert '--data-dir' in refuse(capsys, 'train', '--model', 'resnet18', '--output', tmp_path / 'out')


def test_empty_data_folder(capsys, tmp_path):
    (tmp_path / 'data').mkdir()
    assert 'is empty' in refuse_train(capsys, tmp_path / 'data', tmp_path)


def test_data_folder_is_a_file(capsys, tmp_path):
    (tmp_path / 'data').write_text('x')
    assert 'is a file' in refuse_train(capsys, tmp_path / 'data', tmp_path)


@pytest.mark.parametrize('verb', ('train', 'validate'))
def test_no_validation_split_never_evaluates_on_training_images(capsys, tree, tmp_path, verb):
    shutil.rmtree(tree / 'val')
    if verb == 'train':
        message = refuse_train(capsys, tree, tmp_path, '--val-split', 'validation')
        assert "--val-split ''" in message
    else:
        message = refuse(capsys, 'validate', '--data-dir', tree, '--model', 'resnet18', '--num-classes', 10)
    assert 'has no folder validation or val' in message and str(tree) in message


def test_no_training_split(capsys, tree, tmp_path):
    shutil.rmtree(tree / 'train')
    assert 'has no folder train' in refuse_train(capsys, tree, tmp_path)


def test_validation_folder_itself_can_be_named(capsys, tree):
    """timm accepts `--data-dir ImageNet/val`; so do the checks (the model, not the data, is refused here)."""
    message = refuse(capsys, 'validate', '--data-dir', tree / 'val', '--model', 'resnet18x')
    assert message.startswith('Unknown model')


@pytest.mark.parametrize('split', ('train', 'val'))
def test_empty_class_folder(capsys, tree, tmp_path, split):
    for file in (tree / split / '3').iterdir():
        file.unlink()
    assert f'{tree}/{split}/3 has no image in it' in refuse_train(capsys, tree, tmp_path)


def test_different_classes(capsys, tree, tmp_path):
    shutil.rmtree(tree / 'val' / '3')
    (tree / 'val' / '9').rename(tree / 'val' / 'nine')
    message = refuse_train(capsys, tree, tmp_path)
    assert f'3, 9 only in {tree}/train' in message and f'nine only in {tree}/val' in message


@pytest.mark.parametrize('path', ('train/stray.jpg', 'val/stray.jpg'))
def test_image_outside_the_classes(capsys, tree, tmp_path, path):
    """timm would number it as a class of its own and shift the labels of that split."""
    shutil.copy(next((tree / 'val' / '0').iterdir()), tree / path)
    message = refuse_train(capsys, tree, tmp_path)
    assert f'{tree}/{path} is outside the class folders' in message


@pytest.mark.parametrize('folder', ('0/more', '0/9/8'))
def test_folder_that_only_timm_takes_for_a_class(capsys, tree, tmp_path, folder):
    (tree / 'train' / folder).mkdir(parents=True)
    shutil.copy(next((tree / 'val' / '0').iterdir()), tree / 'train' / folder)
    message = refuse_train(capsys, tree, tmp_path)
    assert f'{tree}/train/{folder} has images and is inside of a class folder' in message and '--class-map' in message


def test_empty_class_folder_with_a_class_map(capsys, tree, tmp_path):
    (tree / 'train' / 'lost').mkdir()
    (tmp_path / 'map.txt').write_text('\n'.join(str(i) for i in range(10)))
    message = refuse_train(capsys, tree, tmp_path, '--class-map', tmp_path / 'map.txt', '--opt', 'adamww')
    assert 'did you mean adamw?' in message and 'lost' not in message


@pytest.mark.parametrize('content, message', [
    ('\ufeff0\n1\n0\n', "names '0' more than once"), ('0\t1000000\n', 'indices begin at 0'),
    ('0\n"1"\n2\n', 'the class map has "1" with its quotation marks'),
    ('zero\tone\n', 'names none of the folders with images in'),
])
def test_class_map_that_leaves_classes_out(capsys, tree, tmp_path, content, message):
    """timm would leave the images of the first class out, or number one class more, without a word."""
    (tmp_path / 'map.txt').write_text(content, encoding='utf-8')
    assert message in refuse_train(capsys, tree, tmp_path, '--class-map', tmp_path / 'map.txt')


def test_no_images(capsys, tree, tmp_path):
    for file in tree.rglob('*.jpg'):
        file.rename(file.with_suffix('.svg'))
    assert 'has no image' in refuse_train(capsys, tree, tmp_path)


def test_more_classes_than_outputs(capsys, tree, tmp_path):
    message = refuse_train(capsys, tree, tmp_path, '--num-classes', 9)
    assert 'has 10 classes, the model 9 outputs: give --num-classes 10' in message
    message = refuse_train(capsys, tree, tmp_path, '--num-classes', 1000)
    assert '--num-classes 1000, but the data has 10 classes: give --num-classes 10' in message


@pytest.mark.parametrize('name, hint', (
    ('seresnet50_asend', 'did you mean seresnet50_ascend?'),
    ('seresnet50_ascend.imagenet', 'there are moskomule_in1k'),
    ('org/name', "'hf-hub:org/name'"),
))
def test_unknown_model(capsys, tree, tmp_path, name, hint):
    assert hint in refuse_train(capsys, tree, tmp_path, '--model', name)


def test_no_pretrained_weights(capsys, tree, tmp_path):
    assert 'no pretrained weights for seresnet18_ascend' in refuse_train(capsys, tree, tmp_path, '--pretrained')


@pytest.mark.parametrize('flags, hint', (
    (('--opt', 'npu_fused_sgd'), "Unknown optimizer --opt 'npu_fused_sgd'"),
    (('--opt', 'adamww'), 'did you mean adamw?'),
    (('--sched', 'cosin'), 'did you mean cosine?'),
    (('--eval-metric', 'acc1'), '--eval-metric acc1 is unknown: there are top1'),
    (('--amp-level', 'O2', '--amp-dtype', 'bfloat16'), '--amp-level O2 computes in float16'),
    (('--warm_up_epochs', '3'), 'do not mix'),
    (('--label-smoothing', '0.1'), "Unknown flag '--label-smoothing': did you mean"),
    (('--epochs', 'two'), "--epochs 'two' is not a whole number"),
    (('--naflex-loader',), "--naflex-loader is a flag of timm's train.py that the bundled script does not have"),
    (('--opt-kwargs', 'nesterov'), 'takes key=value pairs'),
    (('--model-kwargs', 'depth=3'), "does not take 'depth'"),
    (('--amp', '--model-dtype', 'float16'), '--amp needs float32 weights'),
    (('--jsd-loss',), '--aug-splits'),
    (('--mixup', '0.2', '-b', '15'), 'even batch size'),
    (('--aug-splits', '1'), '--aug-splits 1 is too small: give at least 2, or 0'),
    (('-b', '4096'), 'One training batch needs 4096 images'),
    (('-b', '0'), '--batch-size 0 is too small: give at least 1'),
    (('--log-wandb',), '--log-wandb needs wandb: pip install wandb'),
    (('--amp', '--amp-level', 'O2', '--model', 'test_vit', '--model-kwargs', '--img-size', '160'),
     'use --amp-level O1'),
    (('--model-kwargs', 'nonsense=1'), 'leave out nonsense=1 of --model-kwargs'),
    (('--num-classes', '20'), '--num-classes 20, but the data has 10 classes'),
    (('--log-interval', '0'), '--log-interval 0 is too small: give at least 1'),
    (('--val-interval', '0'), '--val-interval 0 is too small'),
    (('--smoothing', '2'), '--smoothing 2 is too large: give at least 0 and less than 1'),
    (('--aa', 'nonsense'), '--aa nonsense is unknown: there are rand'),
    (('--aa', 'rand-m9-mstd'), "--aa rand-m9-mstd: timm would ignore 'mstd', which has no number"),
    (('--train-interpolation', 'foo'), '--train-interpolation foo is unknown: there are nearest'),
    (('--interpolation', 'foo'), '--interpolation foo is unknown: there are nearest'),
    (('--crop-pct', '0'), '--crop-pct 0 is too small: give more than 0 and at most 1'),
    (('--color-jitter', '1', '2'), "Unexpected argument '2': --data-dir"),
    (('--sched', 'wsd'), 'The learning rate cannot follow --sched wsd (wsd schedule requires'),
    (('-j', '-1'), '--workers -1 is too small: give at least 0'),
    (('--tta', '3'), '--tta 3 takes the mean of 3 outputs in a row, -vb 16 is no multiple of it'),
    (('--tta', '8'), 'the 20 validation images on 1 process do not divide by it: leave out --tta'),
    *((('--aa', aa, '--train-interpolation', name), f'which Pillow cannot do with --train-interpolation {name}')
      for aa, name in (('rand-m9-mstd0.5', 'lanczos'), ('v0', 'box'), ('originalr', 'hamming'), ('augmix-m5', 'box'))),
    (('--model-kwargs', 'num_classes=7'), 'num_classes=7 has a flag of its own: give it as --num-classes'),
    (('--model', 'resnet18', '--model-kwargs', 'pretrained=True'), 'give it as --pretrained'),
    (('--device-modules', 'json', 'no_such.part'), '--device-modules no_such.part does not import'),
    (('--device-modules', './x.py'), '--device-modules ./x.py is not the name of a module'),
))
@pytest.mark.parametrize('dry_run', ((), ('--dry-run',)), ids=('run', 'dry run'))
def test_wrong_flags(capsys, tree, tmp_path, flags, hint, dry_run):
    """Refused before anything starts, by a dry run too."""
    if importlib.util.find_spec('wandb') and '--log-wandb' in flags:
        pytest.skip('wandb is installed')
    assert hint in refuse_train(capsys, tree, tmp_path, *flags, *dry_run)


@pytest.mark.parametrize('scripts', SCRIPTS)
@pytest.mark.parametrize('verb', ('train', 'validate'))
def test_an_argument_that_timms_script_would_give_twice(capsys, tree, tmp_path, scripts, verb):
    flags = (*train_flags(tree, tmp_path / 'out')[1:],) if verb == 'train' else (
        '--data-dir', tree, '--model', 'test_vit', '--device', 'cpu')
    message = refuse(capsys, verb, *flags, '--scripts', scripts, '--dry-run', '--model-kwargs', 'num_classes=10',
                     'drop_rate=0.1')
    assert '--model-kwargs num_classes=10 has a flag of its own: give it as --num-classes.' in message
    assert ('give it as --drop.' in message) == (verb == 'train')


@pytest.mark.skipif(not TIMM_SCRIPTS, reason=NO_SCRIPTS)
@pytest.mark.parametrize('verb', ('train', 'validate'))
def test_loader_of_naflex_with_another_network(capsys, tree, verb):
    message = refuse(capsys, verb, '--scripts', TIMM_SCRIPTS, '--data-dir', tree, '--model', 'test_resnet', '--device',
                     'cpu', '-b', 16, '--naflex-loader', '--dry-run', *(['--val-split', 'val'] * (verb == 'train')),
                     *(['--checkpoint', tree / 'none.pth'] * (verb == 'validate')))
    assert '--naflex-loader is for networks such as naflexvit_base_patch16_gap, not for test_resnet' in message


def test_dry_run_imports_no_module(capsys, tree, tmp_path, monkeypatch):
    """A config of a stranger can name any module: it is shown, and imported by a real run only."""
    (tmp_path / 'evil_module.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")')
    (tmp_path / 'c.yaml').write_text('device_modules: [evil_module]\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    cli.main([str(a) for a in train_flags(tree, tmp_path / 'out', '-c', tmp_path / 'c.yaml', '--dry-run')])
    assert 'evil_module (--device-modules, imported when the run starts)' in capsys.readouterr().err
    assert not (tmp_path / 'ran').exists()


def test_dry_run_executes_no_unknown_script(capsys, tree, tmp_path):
    script = tmp_path / 'scripts' / 'train.py'
    script.parent.mkdir()
    script.write_text(f'open({str(tmp_path / "ran")!r}, "w")\n')
    message = refuse_train(capsys, tree, tmp_path, '--scripts', script.parent, '--dry-run')
    assert str(script) in message and not (tmp_path / 'ran').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
@pytest.mark.parametrize('device', ('cuda', 'cuda:1', 'npu', 'npu:0', 'tpu', 'cpu:x'))
def test_device_that_is_not_there(capsys, tree, tmp_path, device):
    assert f'--device {device}' in refuse_train(capsys, tree, tmp_path, '--device', device)


def test_synchronised_batch_norm_on_a_cpu(capsys, tree, tmp_path):
    flags = ('--sync-bn', '--nproc', 2, '-b', 4)
    assert '--sync-bn: torch has no synchronised BatchNorm for CPUs' in refuse_train(capsys, tree, tmp_path, *flags)


def test_output_not_writable(capsys, tree, tmp_path):
    (tmp_path / 'file').write_text('x')
    message = refuse(capsys, *train_flags(tree, tmp_path / 'file' / 'out'))
    assert f'{tmp_path}/file is not a folder' in message


@pytest.mark.parametrize('text, hint', (
    ('batch_sise: 3', "unknown key 'batch_sise', did you mean batch_size?"),
    ('batch-size: 3', "unknown key 'batch-size', did you mean batch_size?"),
    ('learning_rate: 1', "unknown key 'learning_rate', did you mean lr?"),
    ('batch_size: many', "batch_size must be a whole number, got 'many'"),
    ('batch_size: 1.5', 'batch_size must be a whole number, got 1.5'),
    ('amp: 1', 'amp must be true or false, got 1'),
    ('scale: 0.5', 'scale must be a list, each item a number, got 0.5'),
    ('input_size: [3, 32]', 'input_size must be a list of 3 items'),
    ('amp_dtype: fp16', "amp_dtype must be one of 'float16', 'bfloat16'"),
    ('opt_kwargs: [a]', 'opt_kwargs must be a mapping'),
    ('epochs: null', 'epochs must be set or left out'),
    ('naflex_max_seq_len: 64', "naflex_max_seq_len: 64 is a flag of timm's train.py"),
    ('- a', 'must be a mapping of flags to values, got list'),
    ('lr: [', 'line 1 is not valid YAML'),
))
def test_config(capsys, tree, tmp_path, text, hint):
    config = tmp_path / 'config.yaml'
    config.write_text(text)
    message = refuse_train(capsys, tree, tmp_path, '-c', config)
    assert message.startswith(f'Config {config}') and hint in message


def test_all_config_problems_at_once(capsys, tree, tmp_path):
    (tmp_path / 'c.yaml').write_text('lrr: 1\nepochs: x\n')
    message = refuse_train(capsys, tree, tmp_path, '-c', tmp_path / 'c.yaml')
    assert "'lrr'" in message and 'epochs must be' in message


def test_missing_config_and_preset(capsys, tree, tmp_path):
    assert 'No such file' in refuse_train(capsys, tree, tmp_path, '-c', tmp_path / 'nowhere.yaml')
    assert 'did you mean seresnet50_ascend?' in refuse_train(capsys, tree, tmp_path, '--preset', 'seresnet50_asend')


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('weights')
    model = timm.create_model('seresnet34_ascend', num_classes=10)
    torch.save({'arch': 'seresnet34_ascend', 'state_dict': model.state_dict()}, folder / 'depth34.pth.tar')
    torch.save({'arch': 'resnext101_32x8d', 'best_acc1': 1., 'state_dict': model.state_dict()},
               folder / 'modelzoo34.pth.tar')
    model = timm.create_model('seresnet18_ascend', num_classes=20)
    torch.save({'arch': 'seresnet18_ascend', 'state_dict': model.state_dict()}, folder / 'classes20.pth.tar')
    data = (folder / 'classes20.pth.tar').read_bytes()
    (folder / 'truncated.pth.tar').write_bytes(data[:len(data) // 2])
    (folder / 'empty.pth.tar').write_bytes(b'')
    (folder / 'text.pth.tar').write_text('<html>Not found</html>')
    (folder / 'truncated.safetensors').write_bytes(b'\x10\0\0\0\0\0\0\0{"a')
    return folder


@pytest.mark.parametrize('file, hint', (
    ('depth34.pth.tar', 'it was saved from seresnet34_ascend (--model seresnet34_ascend)'),
    ('modelzoo34.pth.tar', 'it was saved from seresnet34_ascend (--model seresnet34_ascend)'),  # by its weights
    ('classes20.pth.tar', 'it has 20 classes (--num-classes 20)'),
    ('truncated.pth.tar', 'is incomplete or damaged'),
    ('empty.pth.tar', 'is empty'),
    ('text.pth.tar', 'is a web page (HTML or XML), not a checkpoint'),
    ('truncated.safetensors', 'is incomplete or damaged'),
    ('nowhere.pth.tar', 'does not exist'),
    ('', 'is a folder'),
))
@pytest.mark.parametrize('flag', ('--resume', '--initial-checkpoint', '--checkpoint'))
def test_checkpoint(capsys, tree, tmp_path, weights, file, hint, flag):
    if flag == '--checkpoint':
        if not file:
            pytest.skip('validate evaluates all checkpoints of a folder')
        message = refuse(capsys, 'validate', '--data-dir', tree, '--model', 'seresnet18_ascend', '--num-classes', 10,
                         '--img-size', 32, '--device', 'cpu', flag, weights / file)
    else:
        message = refuse_train(capsys, tree, tmp_path, flag, weights / file, *WIDE)
    assert hint in message and str(weights / file).rstrip('/') in message


class Evil:
    def __reduce__(self):
        return os.system, ('touch /tmp/seresnet_timm_evil',)


def test_checkpoint_that_would_run_code(capsys, tree, tmp_path):
    torch.save({'state_dict': {}, 'extra': Evil()}, tmp_path / 'evil.pth')
    message = refuse_train(capsys, tree, tmp_path, '--initial-checkpoint', tmp_path / 'evil.pth')
    assert 'is refused, and no code in it was run: beside weights it holds posix.system, which' in message
    assert not Path('/tmp/seresnet_timm_evil').exists()


def test_every_problem_is_named(capsys, tmp_path):
    (tmp_path / 'file').write_text('x')
    message = refuse(capsys, *train_flags(tmp_path / 'nowhere', tmp_path / 'file' / 'out', '--model', 'resnet5O'))
    assert message.startswith('3 problems:')
    assert 'Unknown model' in message and 'does not exist' in message and 'is not a folder' in message


@pytest.mark.parametrize('flags, hint', (
    ((), 'no pretrained weights of seresnet18_ascend to evaluate: name some with --checkpoint'),
    (('--model', 'resnet1*'), 'the bundled validate.py evaluates one model'),
    (('--valid-labels', 'nowhere.txt'), '--valid-labels nowhere.txt does not exist'),
    (('--real-labels', 'nowhere.json'), '--real-labels nowhere.json does not exist'),
    (('--pretrained', '--metrics-avg', 'macro', '--nproc', '2'), 'needs all predictions in one place'),
    (('--amp', '--model-dtype', 'float16'), '--amp needs float32 weights'),
    (('--amp-level', 'O2', '--amp-dtype', 'bfloat16'), '--amp-level O2 computes in float16'),
    (('--model-kwargs', 'in_chans=3'), '--model-kwargs in_chans=3 has a flag of its own: give it as --in-chans'),
))
def test_validate(capsys, tree, flags, hint):
    assert hint in refuse(capsys, 'validate', '--data-dir', tree, '--model', 'seresnet18_ascend', '--num-classes', 10,
                          '--device', 'cpu', *flags)


def test_valid_labels_out_of_range(capsys, tree, tmp_path):
    (tmp_path / 'labels.txt').write_text('1\n10\n')
    message = refuse(capsys, 'validate', '--data-dir', tree, '--model', 'resnet18', '--num-classes', 10,
                     '--device', 'cpu', '--valid-labels', tmp_path / 'labels.txt')
    assert "class indices below 10, one per line, got '10'" in message


def test_exit_code_of_the_process(tmp_path):
    """The same through a real process."""
    result = run_cli(*train_flags(tmp_path / 'nowhere', tmp_path / 'out'))
    assert result.returncode == 2 and result.stdout == ''
    assert result.stderr == f'seresnet-timm: error: Dataset {tmp_path}/nowhere does not exist: check --data-dir.\n'


def test_batch_larger_than_the_training_split(few_digits, tmp_path):
    result = run_here(*train_flags(few_digits, tmp_path / 'out', '-b', 500))
    assert result.returncode == 2 and not (tmp_path / 'out').exists()
    assert 'One training batch needs 500 images' in result.stderr and 'lower -b' in result.stderr


def test_loss_that_is_not_finite(few_digits, tmp_path):
    """A failure, not bad input: exit code 1, and no checkpoint of broken weights."""
    result = run_here(*train_flags(few_digits, tmp_path, '--lr', '1e30'))
    assert result.returncode == 1
    assert 'The loss became' in result.stderr and 'lower the learning rate' in result.stderr
    assert 'Traceback' not in result.stderr
    assert not list((tmp_path / 'run').glob('*.pth.tar'))
