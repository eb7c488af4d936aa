"""What can be refused of a distillation before it starts: the teacher, and what it shares with the student"""
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple

import torch
from timm.data import resolve_data_config

from seresnet_timm.checkpoints.fit import describe_not_finite, weights_for
from seresnet_timm.data.loading import for_channels
from seresnet_timm.engine import teacher as teachers
from seresnet_timm.errors import UsageError, first_line, printable


def check_teacher(run: Any) -> Iterator[str]:
    """Compare the teacher with the student, by their shapes; what it is given is told in a note."""
    name = run.flag('kd_model_name')
    if not name or run.model is None:
        return
    file = teachers.file_of(name)
    checkpoint = None if file is None else run.read(str(file))
    teacher = teachers.load_teacher(name, run.settings.teacher_folder, run.checkpoints, run.model, meta=True)
    if checkpoint is not None:
        weights = weights_for(checkpoint, teacher.model, use_ema=True)
        yield from filter(None, [describe_not_finite(checkpoint, weights, teacher.model)])
        run.notes += checkpoint.notes_of_choice(use_ema=True)
    if run.settings.class_names is None or teacher.class_names is None or teacher.is_guess:
        run.notes.append('The names of the classes of teacher and data cannot be compared: their order is taken to be '
                         'the same.')
    found = teachers.differences(teacher, run.model, run.settings.class_names, run.args.kd_distill_type)
    if run.settings.half_weights:
        found.append('--amp-level O2 is for one network, not for a student and its teacher: use --amp-level O1.')
    yield from found
    if not found:
        run.teacher = teacher
        yield from _features(run, teacher)
        run.notes += list(_normalization(run, teacher))


def _features(run: Any, teacher: teachers.Teacher) -> Iterator[str]:
    """Lengths of features that were given, against those of the networks."""
    if run.args.kd_distill_type != 'feature':
        return
    try:
        found = teachers.feature_dims(run.args, teacher.model, run.model)
    except ValueError:
        yield ('The length of the features of teacher or student is not known: give --kd-student-feature-dim and '
               '--kd-teacher-feature-dim.')
        return
    run.notes.append(f'Features: {found[0]} of the student, {found[1]} of the teacher'
                     + (', by a linear layer that is trained with the student and kept in its checkpoints.'
                        if found[0] != found[1] else '.'))


def _normalization(run: Any, teacher: teachers.Teacher) -> Iterator[str]:
    config = resolve_data_config(vars(run.args), model=run.model)
    channels = config['input_size'][0]
    own, other = ([for_channels(v, channels) for v in pair]
                  for pair in ((config['mean'], config['std']), (teacher.mean, teacher.std)))
    if own != other:
        yield (f'The teacher gets images in its own normalization: mean {_numbers(other[0])}, std '
               f'{_numbers(other[1])}; the student has mean {_numbers(own[0])}, std {_numbers(own[1])}.')


def _numbers(values: Any) -> str:
    return ' '.join(f'{v:g}' for v in values)


def check_teacher_takes(run: Any, args: Any, shape: Tuple[int, ...]) -> None:
    """Put images of a shape through the teacher, by shapes only.

    Args:
        run: The run, as in `checks`; `check_teacher` has found its teacher.
        args: Flags of train.py.
        shape: Of a batch.

    Raises:
        UsageError: The teacher does not take them, or its features cannot be compared with those of the student.
    """
    teacher = getattr(run, 'teacher', None)
    if teacher is None:
        return
    name, size = printable(teacher.name), ' x '.join(map(str, shape[1:]))
    images = torch.zeros(shape, device='meta')
    with torch.no_grad():
        try:
            output = teacher.model.eval()(images)
        except NotImplementedError:
            return  # an operator that needs numbers
        except Exception as e:
            raise UsageError(f'The teacher {name} does not take images of {size} ({printable(first_line(e))}): it gets '
                             'the same images as the student; choose another teacher or another --img-size.') from e
        if args.kd_distill_type != 'feature' or not isinstance(output, torch.Tensor):
            return
        problem = _compare_features(args, teacher, run.model, images)
    if problem:
        raise UsageError(problem)


def _compare_features(args: Any, teacher: teachers.Teacher, student: Any, images: torch.Tensor) -> Optional[str]:
    for who, model in (('student', student), ('teacher', teacher.model)):
        if not hasattr(model, 'forward_features') or not hasattr(model, 'forward_head'):
            return (f'--kd-distill-type feature needs forward_features and forward_head, which {type(model).__name__} '
                    f'(the {who}) does not have: use --kd-distill-type logit.')
    for who, model, length in zip(('student', 'teacher'), (student, teacher.model),
                                  teachers.feature_dims(args, teacher.model, student)):
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        if features.ndim != 2 or features.shape[1] != length:
            return (f'The features of the {who} have the shape {list(features.shape[1:])}, not a length of {length}: '
                    f'give --kd-{who}-feature-dim {features.shape[-1]}, or use --kd-distill-type logit.')
    return None


def describe(settings: Any) -> str:
    """Teacher and loss of a distillation, as a line of the plan."""
    args = settings.namespace()
    name = printable(args.kd_model_name)
    if teachers.is_timm_name(args.kd_model_name):
        name += ', pretrained'
    elif Path(args.kd_model_name).is_dir():
        name += f' ({printable(teachers.file_of(args.kd_model_name) or "")})'.replace(' ()', '')
    kinds = {'logit': f'logits ({args.kd_loss_type}, temperature {args.kd_temperature:g})', 'feature': 'features (mse)',
             'token': f'a second classifier ({args.kd_token_distill_type}, temperature {args.kd_temperature:g})'}
    own, other = teachers.weights_of_losses(args)
    return f'{name}; distillation of {kinds[args.kd_distill_type]}; loss = {own:g} x own + {other:g} x distillation'
