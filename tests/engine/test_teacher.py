"""Distillation: the loss by its formula, the teacher left as it is, resumed runs, both scripts, and what is refused."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import NARROW, run_cli, run_here, train_flags
from test_resume_within_epoch import SMALL, run
from timm.models._hub import save_for_hf
from timm_scripts import NO_SCRIPTS, TIMM_SCRIPTS, run_script
from training import assert_same, bundled_settings, load, summary, valid_record

from seresnet_timm.engine import train as engine
from seresnet_timm.engine.teacher import create_task, load_teacher
from seresnet_timm.launch import trial

pytestmark = pytest.mark.preloaded

STUDENT = ('--model-kwargs', 'channels=(4,8,8,8)', 'stem_width=4')
TOKEN = ('--model', 'deit_tiny_distilled_patch16_224', '--opt', 'adamw', '--model-kwargs', 'img_size=32',
         'embed_dim=12', 'num_heads=3', 'depth=1')
KINDS = {
    'logit': ('--kd-temperature', 2, '--task-loss-weight', 0.3),
    'feature': ('--kd-distill-type', 'feature', '--distill-loss-weight', 3, '--model-ema', '--drop', 0.2),
    'token': ('--kd-distill-type', 'token', '--kd-token-distill-type', 'hard', *TOKEN),
}


@pytest.fixture(scope='module')
def teacher(few_digits, tmp_path_factory):
    """The run of a teacher, whose images have another normalization."""
    output = tmp_path_factory.mktemp('teacher')
    engine.main(bundled_settings(*train_flags(
        few_digits, output, '--epochs', 1, '--mean', 0.4, 0.4, 0.4, '--std', 0.3, 0.2, 0.1)))
    return output / 'run'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A teacher in a folder as the Hub has it, which timm's script takes too."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp('folder')
    save_for_hf(timm.create_model('seresnet18_ascend', num_classes=10, **NARROW), path, safe_serialization=True)
    return path


def task_of(kind: str, teacher, *flags):
    args = bundled_settings(*train_flags('d', 'o', '--kd-model-name', teacher, *KINDS[kind], *flags)).namespace()
    torch.manual_seed(0)
    student = timm.create_model(args.model, num_classes=10, **(
        args.model_kwargs if kind == 'token' else dict(channels=(4, 8, 8, 8))))
    loaded = load_teacher(str(teacher), None, {}, student)
    original = copy.deepcopy(loaded.model)
    config = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    device = torch.device('cpu')
    return create_task(args, student, loaded, config, device, None, verbose=False), student, original


@pytest.mark.parametrize('kind', KINDS)
def test_loss_is_that_of_the_formula(kind, teacher):
    """By torch alone; the teacher sees images in its own normalization, in evaluation mode, and gets no gradients."""
    task, student, teacher_net = task_of(kind, teacher)
    pixels, target = torch.rand(6, 3, 32, 32), torch.arange(6)
    images = (pixels - 0.5) / 0.25
    task.get_trainable_module().train()
    result = task(images, target)
    result['loss'].backward()
    assert not any(m.training for m in task.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    own_pixels = (pixels - torch.tensor([0.4, 0.4, 0.4]).view(3, 1, 1)) / torch.tensor([0.3, 0.2, 0.1]).view(3, 1, 1)
    with torch.no_grad():
        expected, features = teacher_net.eval()(own_pixels), teacher_net.forward_head(
            teacher_net.forward_features(own_pixels), pre_logits=True)
    assert all(torch.equal(a, b) for a, b in zip(teacher_net.buffers(), task.teacher.model.buffers()))
    own_loss = F.cross_entropy(result['output'], target, label_smoothing=0.1)
    if kind == 'logit':
        p, q = (expected / 2).softmax(1), (result['output'] / 2).softmax(1)
        loss = 0.3 * own_loss + 0.7 * 4 * (p * (p / q).log()).sum(1).mean()
    elif kind == 'feature':
        torch.manual_seed(1)
        student.drop_rate = 0.
        logits, projected = task.get_trainable_module()(images)
        loss = F.cross_entropy(logits, target, label_smoothing=0.1) + 3 * ((projected - features) ** 2).mean()
        result = task(images, target)
    else:
        second = student(images)[1]
        loss = own_loss + F.cross_entropy(second, expected.argmax(1))
    torch.testing.assert_close(result['loss'], loss, rtol=1e-5, atol=1e-5)


def test_stopped_run_goes_on_with_student_and_projection(few_digits, folder, tmp_path, monkeypatch):
    """In the middle of an epoch, to the same weights; no checkpoint holds the teacher."""
    flags = ('--kd-model-name', folder, *KINDS['feature'])
    assert run(few_digits, tmp_path / 'whole', *flags, monkeypatch=monkeypatch) == 0
    assert run(few_digits, tmp_path / 'b', *flags, stop_after=8, monkeypatch=monkeypatch) == 143
    last = tmp_path / 'b' / 'run' / 'last.pth.tar'
    assert run(few_digits, tmp_path / 'b', *flags, '--resume', last, monkeypatch=monkeypatch) == 0
    assert_same(tmp_path / 'whole' / 'run', tmp_path / 'b' / 'run')
    a, b = load(tmp_path / 'whole' / 'run' / 'last.pth.tar'), load(last)
    for key in ('task_state', 'task_state_ema'):
        assert a[key].keys() == {'projection'}
        assert all(torch.equal(a[key]['projection'][k], b[key]['projection'][k]) for k in ('weight', 'bias'))
    student = timm.create_model('seresnet18_ascend', num_classes=10, channels=(4, 8, 8, 8), stem_width=4)
    assert a['state_dict'].keys() == student.state_dict().keys()
    # what the run can go on from is found before it starts, with the projection
    assert run_here(*train_flags(few_digits, tmp_path / 'b', *SMALL, *flags, '--resume', last, '--epochs', 3,
                                 '--dry-run')).returncode == 0
    without = run_here(*train_flags(few_digits, tmp_path / 'b', *SMALL, '--resume', last, '--epochs', 3, '--dry-run'))
    assert without.returncode == 2 and '--kd-distill-type was feature and is logit' in without.stderr
    assert ' and is not given' in without.stderr


@pytest.mark.slow
def test_two_processes_distil_from_a_run_with_amp(few_digits, teacher, tmp_path):
    result = run_cli(*train_flags(
        few_digits, tmp_path, *STUDENT, '--kd-model-name', teacher, '--nproc', 2, '-b', 10, '--amp', '--amp-dtype',
        'bfloat16', '--model-ema', '--model-ema-warmup'))
    assert result.returncode == 0, result.stderr
    record = valid_record(tmp_path / 'run')
    assert record['settings']['args']['kd_model_name'] == str(teacher) and len(summary(tmp_path / 'run')) == 2


@pytest.mark.skipif(not TIMM_SCRIPTS, reason=NO_SCRIPTS)
@pytest.mark.parametrize('kind', KINDS)
def test_losses_are_those_of_timms_script(kind, few_digits, folder, tmp_path):
    """The bundled script, timm's under the launcher, and timm's alone."""
    flags = [*train_flags(few_digits, tmp_path / 'x', *STUDENT, '--mixup', 0.2, '--workers', 2, '-b', 20,
                          '--kd-model-name', f'local-dir:{folder}', *KINDS[kind])[1:]]
    plain = ('--fast-step', 'off', '--fast-jpeg', 'off')
    place = flags.index('--output') + 1
    results = []
    for name, start in (('timm', lambda f: run_script('train', '--device-modules', 'seresnet_timm', *f)),
                        ('own', lambda f: run_cli('train', *plain, *f)),
                        ('launched', lambda f: run_cli('train', *plain, '--scripts', TIMM_SCRIPTS, *f))):
        flags[place] = tmp_path / name
        result = start(flags)
        assert result.returncode == 0, result.stderr
        results.append([float(v) for row in summary(tmp_path / name / 'run') for v in row.values()])
    assert results[1] == pytest.approx(results[0], rel=1e-5) and results[2] == pytest.approx(results[0], rel=1e-5)


WRONG = (
    (('--kd-model-name', 'resnet18.a1_in1k'), 'has 1000 outputs, the student 10'),
    (('--kd-model-name', 'seresnet18_ascend'), 'no pretrained weights of seresnet18_ascend to teach with'),
    (('--kd-model-name', 'resnet8x'), '--kd-model-name resnet8x is unknown: did you mean resnet18?'),
    (('--kd-model-name', 'none/last.pth.tar'), 'none/last.pth.tar does not exist'),
    (('--kd-model-name', '{data}'), 'is neither the folder of a run nor one with a config.json'),
    (('--kd-model-name', '{teacher}', '--kd-distill-type', 'token'), 'needs a student with a distillation head'),
    (('--kd-model-name', '{teacher}', '--in-chans', '1'), 'takes images of 3 channels, the student of 1'),
    (('--kd-model-name', '{teacher}', '--kd-temperature', '0'), 'is too small: give more than 0'),
    (('--kd-model-name', '{teacher}', '--task-loss-weight', '1.5'), 'gives the distillation the weight -0.5'),
    (('--kd-model-name', '{teacher}', '--task-loss-weight', '1'), 'The distillation has the weight 0'),
    (('--kd-model-name', '{teacher}', '--kd-teacher-feature-dim', '8'), 'is for --kd-distill-type feature'),
    (('--kd-model-name', '{teacher}', '--kd-distill-type', 'feature', '--kd-teacher-feature-dim', '8'),
     'The features of the teacher have the shape [32], not a length of 8: give --kd-teacher-feature-dim 32'),
    (('--kd-model-name', '{teacher}', '--amp-level', 'O2'), 'use --amp-level O1'),
    (('--kd-distill-type', 'feature'), '--kd-distill-type needs a teacher: name one with --kd-model-name'),
    (('--kd-model-name', '{fixed}'), 'does not take images of 3 x 32 x 32'),
)


@pytest.mark.parametrize('flags, text', WRONG, ids=[' '.join(w[0])[:60] for w in WRONG])
def test_refused_before_it_starts(flags, text, few_digits, teacher, tmp_path):
    fixed = tmp_path / 'fixed'
    if '{fixed}' in flags:
        save_for_hf(timm.create_model('vit_tiny_patch16_224', num_classes=10, img_size=64, depth=1, embed_dim=12),
                    fixed, model_args=dict(img_size=64, depth=1, embed_dim=12), safe_serialization=True)
    flags = [f.format(data=few_digits, teacher=teacher, fixed=fixed) for f in flags]
    result = run_here(*train_flags(few_digits, tmp_path / 'output', *STUDENT, *flags, '--dry-run'))
    assert result.returncode == 2 and text in result.stderr, result.stderr
    assert 'Traceback' not in result.stderr and not (tmp_path / 'output').exists()


def test_classes_in_another_order_are_refused(few_digits, teacher, tmp_path):
    (tmp_path / 'order.txt').write_text('\n'.join(map(str, reversed(range(10)))))
    result = run_here(*train_flags(
        few_digits, tmp_path / 'o', *STUDENT, '--kd-model-name', teacher, '--class-map', tmp_path / 'order.txt',
        '--dry-run'))
    assert result.returncode == 2 and 'the same names in another order' in result.stderr


def test_plan_names_the_teacher(few_digits, teacher, tmp_path):
    result = run_here(*train_flags(
        few_digits, tmp_path / 'o', *STUDENT, '--kd-model-name', teacher, '--task-loss-weight', 0.25, '--dry-run'))
    assert result.returncode == 0, result.stderr
    assert 'distillation of logits (kl, temperature 4); loss = 0.25 x own + 0.75 x distillation' in result.stderr
    assert 'The teacher gets images in its own normalization: mean 0.4 0.4 0.4, std 0.3 0.2 0.1' in result.stderr


@pytest.mark.parametrize('flags, side', (
    (('--kd-model-name', 'resnet18.a1_in1k', '--kd-distill-type', 'feature'), 32), (('--train-img-sizes', 16, 40), 40)))
def test_measured_step_has_the_teacher_and_the_largest_size(flags, side, tmp_path, monkeypatch):
    """What tune and bench measure; the weights of the teacher are not needed for it."""
    shapes, random_batch = [], trial.random_batch

    def recorded(*args):
        shapes.append(random_batch(*args)[0].shape[-1])
        return random_batch(*args)
    monkeypatch.setattr(trial, 'random_batch', recorded)
    trial.training_step(bundled_settings(*train_flags('d', tmp_path, *STUDENT, *flags)))()
    assert shapes == [side]
