"""Checks before a run starts: every cheap mistake is found at once, with path and remedy, and nothing is written."""
import importlib
import os
import sys
from pathlib import Path
from typing import List, Optional, Set, Tuple

import timm
from timm.data.readers.img_extensions import get_img_extensions
from timm.layers import convert_splitbn_model
from timm.models import clean_state_dict, get_pretrained_cfg, parse_model_name, split_model_name_tag
from timm.optim import list_optimizers

from seresnet_timm.ascend import optim  # registers the NPU's optimizer
from seresnet_timm.checkpoints.fit import describe_misfit, weights_for
from seresnet_timm.checkpoints.read import read_checkpoint
from seresnet_timm.data.classes import EVAL_NAMES, TRAIN_NAMES, ClassTree, read_classes, split_folder, split_names
from seresnet_timm.errors import UsageError, did_you_mean, first_names
from seresnet_timm.hub.pull import folder_of, pull
from seresnet_timm.models.create import check_model_name, create_from_args

MAX_NAMED = 3  # names of classes that one sentence lists
SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'constant', 'plateau', 'poly', 'wsd', 'rsqrt', 'none')


def check(verb: str, args, bundled: bool = True) -> None:
    """Check the arguments of a script against the machine, the data and the files they name.

    Args:
        verb: 'train' or 'validate'.
        args: Parsed arguments of the script.
        bundled: The script is the package's own, not timm's.

    Raises:
        UsageError: Something is wrong; every problem found is named.
    """
    for module in getattr(args, 'device_modules', None) or []:
        try:
            importlib.import_module(module)  # may register models and optimizers
        except ImportError as e:
            raise UsageError(f'--device-modules {module} does not import: {e}.')

    if verb == 'validate' and (args.model == 'all' or set('*?[') & set(args.model) or os.path.isfile(args.model)):
        if bundled:
            raise UsageError(f"--model {args.model}: the bundled validate.py evaluates one model; timm's takes several "
                             '(--scripts timm).')
        return  # timm's script finds the models, and what they need

    problems: List[str] = []
    for step in (_check_model, _check_data) + (
            (_check_optimizer, _check_output, _check_train_weights) if verb == 'train' else
            (_check_results_file, _check_labels, _check_checkpoint)):
        try:
            step(args)
        except UsageError as e:
            problems.append(str(e))
    if len(problems) == 1:
        raise UsageError(problems[0])
    if problems:
        raise UsageError(f'{len(problems)} problems:\n' + '\n'.join(f'  - {p}' for p in problems))


def _check_model(args) -> None:
    try:
        source, name = parse_model_name(args.model)
    except ValueError as e:
        raise UsageError(f'--model: {e}')
    if source == 'hf-hub':
        needs_weights = args.pretrained or hasattr(args, 'checkpoint') and not args.checkpoint
        pulled = pull(name, with_weights=needs_weights)  # for timm's script too, which checks nothing
        print(f'Model: {pulled.repo_id} on the Hub, commit {pulled.commit}, verified', file=sys.stderr)
        return
    if source is not None:
        return  # a folder, read when the model is made
    check_model_name(name)
    cfg = get_pretrained_cfg(name, allow_unregistered=True)
    has_weights = cfg is not None and cfg.has_weights
    if args.pretrained and not getattr(args, 'pretrained_path', None) and not has_weights:
        raise UsageError(f'There are no pretrained weights for {args.model}: leave out --pretrained.')
    if hasattr(args, 'checkpoint') and not args.checkpoint and not has_weights:
        raise UsageError(f'There are no pretrained weights of {args.model} to evaluate: name some with --checkpoint.')


def _num_classes(args) -> Optional[int]:
    """Number of outputs of the model; None where only its creation tells."""
    if args.num_classes is not None:
        return args.num_classes
    arch = split_model_name_tag(args.model)[0]
    if not timm.is_model(arch):
        return None
    cfg = get_pretrained_cfg(arch, allow_unregistered=True)
    return cfg.num_classes if cfg else None


def _check_data(args) -> None:
    if args.dataset:
        return  # not a tree of folders
    root = args.data_dir or args.data
    if not root:
        raise UsageError('No dataset: give its root folder with --data-dir, the one with train/ and val/ in it.')
    root = Path(root)
    if root.is_file() and root.suffix == '.tar':
        return
    if not root.exists():
        raise UsageError(f'Dataset {root} does not exist: check --data-dir.')
    if not root.is_dir():
        raise UsageError(f'Dataset {root} is a file: --data-dir takes the folder with train/ and val/ in it.')
    if not any(root.iterdir()):
        raise UsageError(f'Dataset {root} is empty: it should have train/<class>/* and val/<class>/* in it.')
    if args.class_map and not os.path.exists(args.class_map) and not (root / args.class_map).exists():
        raise UsageError(f'Class map {args.class_map} does not exist: check --class-map.')

    splits = {'--split': args.split} if hasattr(args, 'split') else {
        '--train-split': args.train_split, '--val-split': args.val_split}
    classes = {}
    for flag, split in splits.items():
        if split or flag != '--val-split':  # --val-split '' trains without evaluation
            classes[flag] = _check_split(root, flag, split, args)
    if args.class_map:
        return  # the map says which folders count, and as what
    if len(classes) == 2:
        _check_same_classes(classes['--train-split'], classes['--val-split'])
    num_classes = _num_classes(args)
    for folder, names in classes.values():
        if num_classes is not None and len(names) > num_classes:
            raise UsageError(
                f'{folder} has {len(names)} classes, the model {num_classes} outputs: give --num-classes {len(names)}.')


def _check_split(root: Path, flag: str, split: str, args) -> Tuple[Path, Set[str]]:
    """Folder of a split, and the names of its classes."""
    folder = split_folder(root, split)
    if folder is None:
        has_split = any((root / n).exists() for n in TRAIN_NAMES + EVAL_NAMES)
        if flag == '--split' and not has_split and _labels(read_classes(root)):
            return _check_folder(root, args)  # validate on a folder that is itself a split
        # timm would read the whole of the root instead, training images included
        way_out = " or train without evaluation (--val-split '')" if flag == '--val-split' else ''
        wanted = ' or '.join(split_names(split)[:3])
        raise UsageError(f'Dataset {root} has no folder {wanted}: add it, name it with {flag}{way_out}.')
    return _check_folder(folder, args)


def _check_folder(folder: Path, args) -> Tuple[Path, Set[str]]:
    if not folder.is_dir():
        raise UsageError(f'{folder} is a file, not a folder of classes.')
    tree = read_classes(folder, args.class_map or None)
    labels, empty = _labels(tree), tree.empty
    if tree.stray:
        # timm makes them a class of their own, before all others
        raise UsageError(f'{tree.stray[0]} lies outside the class folders of {folder}: move it into one, or away.')
    if tree.unmapped and not tree.num_images:
        raise UsageError(f'Class map {args.class_map} names none of the folders with images in {folder} '
                         f'({first_names(tree.unmapped, MAX_NAMED)}): it takes a folder name a line.')
    if not labels:
        kinds = ', '.join(get_img_extensions())
        raise UsageError(f'{folder} has no image ({kinds}) in class folders: check --data-dir.')
    if empty and not args.class_map:
        # timm numbers only folders with images in them, so that a missing class shifts the labels after it
        raise UsageError(f'{first_names(sorted(empty), MAX_NAMED)} has no image in it: fill or remove it, as classes '
                         'would be numbered differently in train and val.')
    return folder, labels


def _labels(tree: ClassTree) -> Set[str]:
    return set(tree.names) - {''}


def _check_same_classes(train: Tuple[Path, Set[str]], val: Tuple[Path, Set[str]]) -> None:
    only_train, only_val = sorted(train[1] - val[1]), sorted(val[1] - train[1])
    if only_train or only_val:
        parts = [f'{first_names(names, MAX_NAMED)} only in {folder}'
                 for names, folder in ((only_train, train[0]), (only_val, val[0])) if names]
        raise UsageError(f'Train and val have different classes: {"; ".join(parts)}: make the class folders the same.')



def _check_optimizer(args) -> None:
    if args.eval_metric not in ('loss', 'top1', 'top5'):
        raise UsageError(f"Unknown --eval-metric '{args.eval_metric}': there are top1, top5 and loss.")
    name = args.opt.lower()
    known = list_optimizers()
    if (name[len('lookahead_'):] if name.startswith('lookahead_') else name) not in known:
        hint = did_you_mean(name, known, 'timm.optim.list_optimizers() names them all.')
        raise UsageError(f"Unknown optimizer --opt '{args.opt}': {hint}")
    if name == optim.NAME and not args.device.startswith('npu'):
        raise UsageError(f'--opt {optim.NAME} needs an NPU, the device is {args.device}: use --opt momentum, the same '
                         'steps on any device.')
    if args.sched not in SCHEDULES:
        raise UsageError(f"Unknown schedule --sched '{args.sched}': {did_you_mean(args.sched, SCHEDULES)}")


def _check_writable(path: Path, flag: str) -> None:
    """Check that `path` can be created or written to, without creating anything."""
    for parent in (path, *path.parents):
        if parent.exists():
            if not parent.is_dir():
                raise UsageError(f'Cannot write to {path}: {parent} is not a folder; name another with {flag}.')
            if not os.access(parent, os.W_OK | os.X_OK):
                raise UsageError(f'Cannot write to {path}: {parent} is not writable; name another with {flag}.')
            return


def _check_output(args) -> None:
    folder = Path(args.output or './output/train').absolute()
    _check_writable(folder / args.experiment if args.experiment else folder, '--output')


def _check_results_file(args) -> None:
    if args.results_file:
        path = Path(args.results_file).absolute()
        if not path.parent.is_dir():
            raise UsageError(f'Cannot write {path}: the folder {path.parent} does not exist.')
        _check_writable(path.parent, '--results-file')


def _check_labels(args) -> None:
    real, valid = getattr(args, 'real_labels', ''), getattr(args, 'valid_labels', '')
    for flag, path in (('--real-labels', real), ('--valid-labels', valid)):
        if path and not os.path.isfile(path):
            raise UsageError(f'{flag} {path} does not exist.')
    if valid:
        with open(valid) as f:
            lines = [line.strip() for line in f if line.strip()]
        num_classes = _num_classes(args)
        bad = next((x for x in lines if not x.isdigit() or num_classes is not None and int(x) >= num_classes), None)
        if bad is not None or not lines:
            raise UsageError(f"--valid-labels {valid}: class indices below {num_classes}, one a line, got '{bad}'.")


def _check_train_weights(args) -> None:
    if args.resume:
        _check_fits(args.resume, args, resume=True)
    if args.initial_checkpoint:
        _check_fits(args.initial_checkpoint, args, use_ema=True)
    if args.pretrained_path:
        read_checkpoint(args.pretrained_path)  # the head adapts, the rest is timm's to check


def _check_checkpoint(args) -> None:
    if args.checkpoint and not os.path.isdir(args.checkpoint):
        _check_fits(args.checkpoint, args, use_ema=args.use_ema)


def _check_fits(path: str, args, resume: bool = False, use_ema: bool = False) -> None:
    checkpoint = read_checkpoint(path)
    try:
        source, name = parse_model_name(args.model)
    except ValueError:
        return  # reported by _check_model
    if source is None and not timm.is_model(split_model_name_tag(name)[0]):
        return
    model = create_from_args(args, folder_of(args.model, with_weights=False))
    if resume and getattr(args, 'split_bn', False):
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    weights = weights_for(checkpoint, model, use_ema)
    misfit = describe_misfit(weights, model, checkpoint.arch_unlike(args.model))
    if misfit:
        new_head = ('; --pretrained-path takes its other weights and starts a new classifier'
                    if path == getattr(args, 'initial_checkpoint', None) and misfit.startswith('it has ') else '')
        raise UsageError(f'Checkpoint {path} does not fit {args.model}: {misfit}{new_head}.')
    if resume and weights.keys() != clean_state_dict(checkpoint.weights).keys():
        raise UsageError(f'Checkpoint {path} names its weights as the ModelZoo does, whose optimizer state does not '
                         'carry over: start from it with --initial-checkpoint instead of --resume.')
