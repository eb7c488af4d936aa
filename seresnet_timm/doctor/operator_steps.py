"""The steps that `doctor --operators` runs on the NPU: what the recipes and the flags of a training compute, small.

Each is made of the functions that a training calls, on a narrow network and random images. An export computes on the
CPU on every machine, and is not among them.
"""
import argparse
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data.loader import PrefetchLoader
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import ClassificationTask, DistillationTeacher, FeatureDistillationTask, LogitDistillationTask
from timm.utils import ModelEmaV3, accuracy

import seresnet_timm.models  # noqa: F401  (registers them)
from seresnet_timm.ascend import optim
from seresnet_timm.ascend.runtime import supports_bfloat16
from seresnet_timm.models.create import create_model
from seresnet_timm.models.lean_se import set_block_end
from seresnet_timm.step.backward import backward
from seresnet_timm.step.bad_steps import BadSteps
from seresnet_timm.step.fast import create_optimizer
from seresnet_timm.step.freeze import freeze
from seresnet_timm.step.fuse_bn import fuse_batch_norms
from seresnet_timm.step.half_weights import use_half_weights
from seresnet_timm.step.loss_scaler import create_loss_scaler
from seresnet_timm.step.moving_average import copy_counters_at_once

CLASSES, IMAGES, SIZE = 8, 4, 64
# those of the recipes and of docs/, with the arguments that choose another implementation of torch
OPTIMIZERS = (
    ('momentum', {}), ('sgd', dict(foreach=False)), (optim.NAME, {}), ('adam', {}), ('adamw', {}),
    ('adamw', dict(foreach=False)), ('adamw', dict(fused=True)), ('nadam', {}), ('radam', {}), ('rmsprop', {}),
    ('rmsproptf', {}), ('lamb', {}), ('lambc', {}), ('lars', {}), ('larc', {}), ('lion', {}), ('adabelief', {}),
    ('adan', {}), ('adafactor', {}), ('adopt', {}), ('lookahead_momentum', {}),
)


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        model: Name of the network.
        opt: timm's name of the optimizer.
        opt_kwargs: Its further arguments.
        dtype: Dtype of mixed precision; '' for float32.
        half: O2: fp16 weights with float32 masters.
        loss: Key of `_loss`.
        clip_mode: Mode of gradient clipping; '' for none.
        block_end: How residual blocks end, as for `set_block_end`.
        model_kwargs: Further arguments of the network.
        teacher: 'logits' or 'features' for a distillation; '' for none.
        accumulate: Batches of an optimizer step.
        frozen: Last layer that is not trained.
    """
    model: str = 'seresnet18_ascend'
    opt: str = 'momentum'
    opt_kwargs: Tuple[Tuple[str, Any], ...] = ()
    dtype: str = ''
    half: bool = False
    loss: str = 'plain'
    clip_mode: str = ''
    block_end: str = 'light'
    model_kwargs: Tuple[Tuple[str, Any], ...] = ()
    teacher: str = ''
    accumulate: int = 1
    frozen: Optional[str] = None


def steps(device: str) -> Iterator[Tuple[str, Callable[[], Any]]]:
    """The steps, by name; a function runs one."""
    large = 'seresnet50_ascend'
    trainings = {
        'training in float32': Step(large),
        'training with amp float16': Step(large, dtype='float16'),
        **({'training with amp bfloat16': Step(large, dtype='bfloat16')} if supports_bfloat16() else {}),
        'training with O2': Step(large, dtype='float16', half=True),
        '--lean-se on': Step(large, block_end='lean'),
        '--fast-step off': Step(large, block_end='timm'),
        '--drop, --drop-path, --drop-block': Step(
            model_kwargs=(('drop_rate', 0.2), ('drop_path_rate', 0.2), ('drop_block_rate', 0.2))),
        '--freeze': Step(frozen='layer1'),
        '--grad-accum-steps': Step(accumulate=2),
        **{f'--clip-mode {mode}': Step(clip_mode=mode) for mode in ('norm', 'value', 'agc')},
        '--clip-grad, amp float16': Step(dtype='float16', clip_mode='norm'),
        **{name: Step(loss=name) for name in _LOSSES},
        **{f'--kd-model-name, {what}': Step(teacher=what) for what in ('logits', 'features')},
        **{' '.join((f'--opt {opt}', *(f'{k}={v}' for k, v in more.items()))): Step(
            opt=opt, opt_kwargs=tuple(more.items())) for opt, more in OPTIMIZERS},
    }
    target = torch.device(device)
    for name, step in trainings.items():
        yield name, lambda step=step: train(step, target)
    for name, run in (('loader', load), ('evaluation', evaluate), ('evaluation with --fuse-bn on', evaluate_folded),
                      ('prediction', predict), ('teacher', teach), ('average --update-bn', average),
                      ('explain', explain)):
        yield name, lambda run=run: run(target)


def network(device: torch.device, step: Step = Step('seresnet50_ascend')) -> nn.Module:
    model = create_model(step.model, num_classes=CLASSES, channels=(8, 8, 8, 8), **dict(step.model_kwargs)).to(device)
    return freeze(model, step.frozen) if step.frozen else model


def batch(device: torch.device) -> Tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(IMAGES, 3, SIZE, SIZE).to(device), torch.arange(IMAGES).to(device)


def train(step: Step, device: torch.device) -> None:
    """Two optimizer steps, with the moving average of the weights."""
    set_block_end(step.block_end)
    try:
        model = network(device, step)
        model = use_half_weights(model) if step.half else model
        task = task_of(step, model, device)
        average_of_weights = ModelEmaV3(model, use_warmup=step.accumulate > 1)
        copy_counters_at_once(average_of_weights)
        optimizer = create_optimizer(
            task.get_trainable_module(), step.opt, lr=0.1, momentum=0.9, weight_decay=1e-4, **dict(step.opt_kwargs))
        scaler = create_loss_scaler(
            device, bool(step.dtype), step.dtype or 'float16', 1024. if step.half else None)[0]
        guard = BadSteps(task.get_trainable_module(), optimizer, device, scaler)
        guard.start_epoch()
        flags = argparse.Namespace(clip_grad=0.1 if step.clip_mode else None, clip_mode=step.clip_mode or 'norm')
        for index in range(2 * step.accumulate):
            images, targets = batch(device)
            autocast = torch.autocast(
                device.type, getattr(torch, step.dtype or 'float16'), enabled=bool(step.dtype) and not step.half)
            with autocast:
                loss = task(images, _targets(step.loss, targets))['loss']
            need_update = (index + 1) % step.accumulate == 0
            backward(loss / step.accumulate, task, optimizer, flags, scaler, need_update, guard)
            if need_update:
                guard.count()
                optimizer.zero_grad()
                average_of_weights.update(model, step=index)
        float(loss)
    finally:
        set_block_end('light')


_LOSSES = ('--smoothing', '--mixup', '--bce-loss', '--bce-target-thresh', '--bce-sum', '--jsd-loss')


def _loss(name: str) -> nn.Module:
    return {
        'plain': nn.CrossEntropyLoss,
        '--smoothing': lambda: LabelSmoothingCrossEntropy(0.1),
        '--mixup': SoftTargetCrossEntropy,
        '--bce-loss': lambda: BinaryCrossEntropy(smoothing=0.1),
        '--bce-target-thresh': lambda: BinaryCrossEntropy(target_threshold=0.2),
        '--bce-sum': lambda: BinaryCrossEntropy(smoothing=0.1, sum_classes=True),
        '--jsd-loss': lambda: JsdCrossEntropy(num_splits=2, smoothing=0.1),
    }[name]()


def _targets(loss: str, targets: torch.Tensor) -> torch.Tensor:
    if loss in ('--mixup', '--bce-target-thresh'):  # as the loader mixes them
        return mixup_target(targets, CLASSES, lam=0.3, smoothing=0.1)
    return targets[:IMAGES // 2] if loss == '--jsd-loss' else targets


def task_of(step: Step, model: nn.Module, device: torch.device) -> Any:
    """timm's task: the network with its loss, and its teacher."""
    loss = _loss(step.loss).to(device)
    if not step.teacher:
        return ClassificationTask(model, criterion=loss, device=device, verbose=False)
    teacher = DistillationTeacher(network(device, step).eval().requires_grad_(False), device=device).eval()
    cls = LogitDistillationTask if step.teacher == 'logits' else FeatureDistillationTask
    return cls(model, teacher_model=teacher, criterion=loss, device=device, verbose=False)


def load(device: torch.device) -> None:
    """What the loader does on the device: normalisation and random erasing."""
    batches = [(torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), dtype=torch.uint8), torch.arange(IMAGES))]
    for mode in ('const', 'rand', 'pixel'):
        loader = PrefetchLoader(batches, device=device, re_prob=1., re_mode=mode, re_count=2)
        for images, targets in loader:
            F.cross_entropy(network(device)(images), targets)


def evaluate(device: torch.device) -> None:
    images, targets = batch(device)
    with torch.inference_mode():
        output = network(device).eval()(images)
        accuracy(output, targets, topk=(1, 5))
        F.cross_entropy(output, targets).item()


def evaluate_folded(device: torch.device) -> None:
    model = network(device).eval()
    with torch.inference_mode():
        fuse_batch_norms(model)
        model(batch(device)[0])


def predict(device: torch.device) -> None:
    with torch.inference_mode():
        output = network(device).eval()(batch(device)[0])
        [x.cpu() for x in output.float().softmax(dim=1).topk(5)]


def average(device: torch.device) -> None:
    """BatchNorm's statistics for the average of checkpoints."""
    torch.optim.swa_utils.update_bn([batch(device) for _ in range(2)], network(device))


def teach(device: torch.device) -> None:
    """The forward pass of a network of the teacher's kind, of the recipe distill."""
    with torch.no_grad():
        create_model('resnetv2_50x1_bit', num_classes=CLASSES).eval().to(device)(batch(device)[0])


def explain(device: torch.device) -> None:
    """Gradients of a class score by the last feature map."""
    model = network(device).eval()
    features = model.forward_features(batch(device)[0])
    features.retain_grad()
    model.forward_head(features)[:, 0].sum().backward()
    weights = features.grad.mean(dim=(2, 3), keepdim=True)
    F.interpolate((weights * features).sum(dim=1, keepdim=True).relu(), size=(SIZE, SIZE), mode='bilinear').cpu()
