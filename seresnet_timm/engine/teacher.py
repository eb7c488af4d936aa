"""The teacher of a distillation: which network `--kd-model-name` means, and what it has to share with the student

It is a timm name with pretrained weights, as in timm's script; or a model on the Hub (`hf-hub:org/name`) or on
ModelScope (`modelscope:org/name`), a folder with a config.json, a checkpoint file, or the folder of a run. The teacher
is never trained and never saved.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
import torch.nn as nn
from timm.models import get_pretrained_cfg
from timm.task import (
    ClassificationTask,
    DistillationTeacher,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from timm.task.distillation import FeatureDistillationTrainableModule

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.fit import model_of
from seresnet_timm.checkpoints.read import read_once
from seresnet_timm.data.classes import describe_difference
from seresnet_timm.data.loading import for_channels
from seresnet_timm.engine.loss import training_loss
from seresnet_timm.engine.model_info import imagenet_names
from seresnet_timm.errors import UsageError, counted, printable
from seresnet_timm.models.create import check_model_name, create_from_info, create_model, read_model_config
from seresnet_timm.runs.folder import RunFolder

FLAG = '--kd-model-name'


@dataclass
class Teacher:
    """A teacher, and what is known of it.

    Attributes:
        model: The network, in evaluation mode and without gradients; shapes only for a check.
        name: As the user named it.
        mean: Mean of its normalization.
        std: Standard deviation of its normalization.
        class_names: Name of every class, by index; None if not known.
        is_guess: They are those of ImageNet, of which it has the number.
    """
    model: nn.Module
    name: str
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    class_names: Optional[List[str]] = None
    is_guess: bool = False

    def for_task(self, in_chans: int, device: torch.device, dtype: Optional[torch.dtype]) -> DistillationTeacher:
        """The teacher as timm's tasks take it."""
        model = self.model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        teacher = DistillationTeacher(model, device=device, dtype=dtype).eval()
        for buffer, values in ((teacher.mean_kd, self.mean), (teacher.std_kd, self.std)):
            buffer.data = buffer.new_tensor(for_channels(values, in_chans)).view(1, -1, 1, 1)
        return teacher


# --- which network ----------------------------------------------------------------------------------------------------

def file_of(name: str) -> Optional[Path]:
    """The checkpoint that a teacher's name means; None for a name of timm, of the Hub, or a folder with a config.json.

    Raises:
        UsageError: There is no such file, and the name looks like one; or the folder holds no checkpoint.
    """
    path = Path(name)
    if name.startswith(('hf-hub:', 'modelscope:', 'local-dir:')):
        return None
    if path.is_dir():
        file = RunFolder(path).checkpoint()
        if file is None and not (path / 'config.json').is_file():
            raise UsageError(f'{FLAG} {printable(name)} is neither the folder of a run nor one with a config.json: '
                             'name a checkpoint file.')
        return file
    if path.is_file():
        return path
    if '/' in name or name.endswith(('.pth', '.tar', '.pt', '.safetensors')):
        raise UsageError(f'{FLAG} {printable(name)}: there is no such file. A model on the Hub is hf-hub:org/name.')
    return None


def is_timm_name(name: str) -> bool:
    """The teacher has timm's pretrained weights of this name."""
    return ':' not in name and not Path(name).exists()


def load_teacher(
        name: str,
        folder: Optional[str],
        checkpoints: Mapping[str, Checkpoint],
        student: nn.Module,
        meta: bool = False,
) -> Teacher:
    """Make the teacher.

    Args:
        name: `--kd-model-name`.
        folder: Folder of the model on the Hub that it names, once it was pulled.
        checkpoints: Checkpoints that were read, by their path.
        student: The network that is trained.
        meta: Shapes only, without memory and without weights.

    Raises:
        UsageError: There is no such network, or it has no weights.
    """
    file = file_of(name)
    if file is not None:
        return _of_file(name, read_once(str(file), checkpoints), meta)
    if is_timm_name(name):
        check_model_name(name, FLAG)
        cfg = get_pretrained_cfg(name, allow_unregistered=True)
        if cfg is None or not cfg.has_weights:
            raise UsageError(f'There are no pretrained weights of {printable(name)} to teach with: name a checkpoint '
                             f'file or the folder of a run with {FLAG}.')
        # the arguments that timm's script gives, so that both draw the same random numbers
        kwargs = {} if meta else dict(pretrained=True, num_classes=student.num_classes)
        model, names = create_model(name, meta=meta, in_chans=_in_chans(student), **kwargs), None
    else:
        local = folder or name.partition('local-dir:')[2] or name
        config = read_model_config(local)
        names = config.get('label_names') or config.get('pretrained_cfg', {}).get('label_names')
        model = create_model(name, local, meta=meta, **({} if meta else dict(pretrained=True)))
    is_guess = not isinstance(names, list)
    cfg = model.pretrained_cfg
    return Teacher(model, name, tuple(cfg['mean']), tuple(cfg['std']),
                   imagenet_names(model.num_classes) if is_guess else names, is_guess)


def _of_file(name: str, checkpoint: Checkpoint, meta: bool) -> Teacher:
    info = checkpoint.info
    if info.name is None:
        raise UsageError(f'{FLAG} {printable(name)} does not say which network it holds: write the name into it with '
                         '`seresnet-timm convert FILE NEW --to timm --model NAME`.')
    model = create_from_info(info, checkpoint.path, meta=True) if meta else model_of(checkpoint, info, use_ema=True)[0]
    cfg = model.pretrained_cfg
    return Teacher(model, name, tuple(info.mean or cfg['mean']), tuple(info.std or cfg['std']), info.class_names)


def _in_chans(model: nn.Module) -> int:
    return int(getattr(model, 'in_chans', 3))


# --- what teacher and student share -----------------------------------------------------------------------------------

def differences(teacher: Teacher, student: nn.Module, class_names: Optional[List[str]], kind: str) -> List[str]:
    """Why a teacher cannot teach a student, a sentence each.

    Args:
        teacher: The teacher, with shapes at least.
        student: The network that is trained.
        class_names: Names of the data's classes, by index; None if not known.
        kind: `--kd-distill-type`.
    """
    name, found = printable(teacher.name), []
    outputs, own = int(teacher.model.num_classes), int(student.num_classes)
    channels = _in_chans(teacher.model)
    if channels != _in_chans(student):
        found.append(f'The teacher {name} takes images of {counted(channels, "channel")}, the student of '
                     f'{_in_chans(student)}: name another with {FLAG}.')
    if kind == 'feature':  # the classifier of the teacher is not used
        return found
    if outputs != own:
        found.append(f'The teacher {name} has {outputs} outputs, the student {own}: name a teacher of the same classes '
                     f'with {FLAG}, or compare features only with --kd-distill-type feature.')
    elif teacher.class_names is not None and class_names is not None:
        known = teacher.class_names[:len(class_names)]
        difference = describe_difference(known, class_names, 'the teacher', 'the data')
        if difference and (set(known) & set(class_names) or not teacher.is_guess):
            found.append(f'The teacher {name} knows other classes than the data has ({difference}): name a teacher of '
                         f'the same classes with {FLAG}, or give the order of the teacher with --class-map.')
    if kind == 'token' and not hasattr(student, 'set_distilled_training'):
        found.append(f'--kd-distill-type token needs a student with a distillation head, such as '
                     f'deit_tiny_distilled_patch16_224; {type(student).__name__} has none: use logit or feature.')
    return found


def feature_dims(args: Any, teacher: nn.Module, student: nn.Module) -> Tuple[int, int]:
    """Lengths of the features that are compared, of the student and of the teacher."""
    detect = FeatureDistillationTask._detect_feature_dim
    return (args.kd_student_feature_dim or detect(student), args.kd_teacher_feature_dim or detect(teacher))


def trainable_shapes(args: Any, teacher: nn.Module, student: nn.Module) -> nn.Module:
    """What a feature distillation trains, with shapes only: the student and the projection of its features."""
    own, other = feature_dims(args, teacher, student)
    projection = nn.Linear(own, other, device='meta') if own != other else None
    return FeatureDistillationTrainableModule(student, projection)


# --- the task ---------------------------------------------------------------------------------------------------------

def weights_of_losses(args: Any) -> Tuple[float, float]:
    """Weights of the student's own loss and of the distillation, as timm's tasks take the flags."""
    task, distill = args.task_loss_weight, args.distill_loss_weight
    if distill is not None:
        return (1. if task is None else task), distill
    return (1., 1.) if task is None else (task, 1. - task)


def create_task(
        args: Any,
        student: nn.Module,
        teacher: Optional[Teacher],
        data_config: Dict[str, Any],
        device: torch.device,
        dtype: Optional[torch.dtype],
        verbose: bool,
) -> TrainingTask:
    """timm's task of a training: classification, or distillation from a teacher.

    Args:
        args: Flags of train.py.
        student: The network that is trained.
        teacher: Its teacher; None for a training without one.
        data_config: Preprocessing of the student's images.
        device: Device of both.
        dtype: Dtype of both; None for float32.
        verbose: Log what the task is.
    """
    common = dict(criterion=training_loss(args).to(device), device=device, dtype=dtype, verbose=verbose)
    if teacher is None:
        return ClassificationTask(student, **common)
    common.update(
        student_model=student, teacher_model=teacher.for_task(_in_chans(student), device, dtype),
        distill_loss_weight=args.distill_loss_weight, task_loss_weight=args.task_loss_weight)
    if args.kd_distill_type == 'logit':
        task = LogitDistillationTask(loss_type=args.kd_loss_type, temperature=args.kd_temperature, **common)
    elif args.kd_distill_type == 'feature':
        task = FeatureDistillationTask(
            student_feature_dim=args.kd_student_feature_dim, teacher_feature_dim=args.kd_teacher_feature_dim, **common)
    else:
        task = TokenDistillationTask(
            distill_type=args.kd_token_distill_type, temperature=args.kd_temperature, **common)
    set_normalization(task, data_config, _in_chans(student))
    return task


def set_normalization(task: TrainingTask, data_config: Mapping[str, Any], in_chans: int) -> None:
    """Tell a distillation task how the images are normalised: timm's tasks take the student's default for it."""
    for buffer, values in ((task.student_mean, data_config['mean']), (task.student_std, data_config['std'])):
        buffer.data = buffer.new_tensor(for_channels(values, in_chans)).view(1, -1, 1, 1)
