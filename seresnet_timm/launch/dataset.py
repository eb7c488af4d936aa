"""What a run's data folder holds: classes, images, faults; and how many outputs the model gets for it."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from seresnet_timm.errors import UsageError, first_names
from seresnet_timm.images import EXTENSIONS, describe_left_out

MAX_NAMED = 3  # names of classes that one sentence lists


@dataclass(frozen=True)
class DataFacts:
    """What was found.

    Attributes:
        class_names: Names of the classes by index; None where the data are not folders of images.
        num_images: Images by split: 'train', 'val'.
        files: What is to say on the files of a split, as from `ClassTree.describe_files`.
        problems: Faults, each a sentence.
        mapped: A class map says which folders count, and as what.
    """
    class_names: Optional[List[str]] = None
    num_images: Dict[str, int] = field(default_factory=dict)
    files: Dict[str, str] = field(default_factory=dict)
    problems: List[str] = field(default_factory=list)
    mapped: bool = False


def examine(verb: str, args: Dict[str, Any]) -> DataFacts:
    """Look at the data folder that a script's flags name. Nothing is written."""
    if args.get('dataset'):
        return DataFacts()  # not a tree of folders
    try:
        root = _root(args)
        if root.is_file():  # a tar, which only timm reads
            return DataFacts()
        trees = _read_splits(verb, root, args)
    except UsageError as e:
        return DataFacts(problems=[str(e)])
    names = {split: tree.names for split, (_, tree) in trees.items()}
    problems = []
    mapped = bool(args.get('class_map'))
    if len(trees) == 2 and not mapped:
        problems = _different_classes(*trees['train'], *trees['val'])
    return DataFacts(
        class_names=list(names.get('train') or names['val']),
        num_images={split: tree.num_images for split, (_, tree) in trees.items()},
        files={split: tree.describe_files() for split, (_, tree) in trees.items()},
        problems=problems,
        mapped=mapped,
    )


def _root(args: Dict[str, Any]) -> Path:
    root = args.get('data_dir')
    if not root:
        raise UsageError('No dataset: give its root folder with --data-dir, the one with train/ and val/ in it.')
    root = Path(root)
    if root.is_file() and root.suffix == '.tar':
        return root
    if not root.exists():
        raise UsageError(f'Dataset {root} does not exist: check --data-dir.')
    if not root.is_dir():
        raise UsageError(f'Dataset {root} is a file: --data-dir takes the folder with train/ and val/ in it.')
    if not any(root.iterdir()):
        raise UsageError(f'Dataset {root} is empty: it should have train/<class>/* and val/<class>/* in it.')
    class_map = args.get('class_map')
    if class_map and not Path(class_map).exists() and not (root / class_map).exists():
        raise UsageError(f'Class map {class_map} does not exist: check --class-map.')
    return root


def _read_splits(verb: str, root: Path, args: Dict[str, Any]) -> Dict[str, Tuple[Path, Any]]:
    """Folder and classes of every split that the run reads."""
    if verb == 'validate':
        return {'val': _read_split(root, '--split', args['split'], args)}
    trees = {'train': _read_split(root, '--train-split', args['train_split'], args)}
    if args['val_split']:  # --val-split '' trains without evaluation
        trees['val'] = _read_split(root, '--val-split', args['val_split'], args)
    return trees


def _read_split(root: Path, flag: str, split: str, args: Dict[str, Any]) -> Tuple[Path, Any]:
    from seresnet_timm.data.classes import read_classes, split_folder, split_names
    folder = split_folder(root, split)
    if folder is None:
        # a folder that is itself a split is fine for validate; else timm would read the root, training images included
        if flag == '--split' and not any(split_folder(root, s) for s in ('train', 'validation')) and (
                set(read_classes(root).names) - {''}):
            folder = root
        else:
            way_out = " or train without evaluation (--val-split '')" if flag == '--val-split' else ''
            wanted = ' or '.join(split_names(split)[:3])
            raise UsageError(f'Dataset {root} has no folder {wanted}: add it, name it with {flag}{way_out}.')
    if not folder.is_dir():
        raise UsageError(f'{folder} is a file, not a folder of classes.')
    tree = read_classes(folder, args.get('class_map') or None)
    if tree.stray:
        # timm makes them a class of their own, before all others
        raise UsageError(f'{tree.stray[0]} is outside the class folders of {folder}: move it into one, or away.')
    if not tree.names:
        others = f'; {describe_left_out(tree.left_out)}' if tree.left_out else ''
        raise UsageError(f'{folder} has no image ({", ".join(EXTENSIONS)}) in class folders{others}: check --data-dir.')
    if tree.class_map and tree.unmapped and not tree.num_images:
        raise UsageError(f'Class map {tree.class_map} names none of the folders with images in {folder}: check '
                         '--class-map.')
    if tree.ties:
        # timm sorts them as equals, in an order that differs from process to process
        pairs = ', '.join(f'{a} and {b}' for a, b in tree.ties[:MAX_NAMED])
        raise UsageError(f'{folder} has class folders whose order is undefined ({pairs}): rename one of each pair.')
    if tree.loops:
        raise UsageError(f'{tree.loops[0]} is a link to a folder above it, which timm would follow without end: remove '
                         'it.')
    if tree.empty and not args.get('class_map'):
        # timm numbers only folders with images in them, so that a missing class shifts the labels after it
        raise UsageError(f'{first_names(sorted(tree.empty), MAX_NAMED)} has no image in it: fill or remove it, as '
                         'classes would be numbered differently in train and val.')
    return folder, tree


def _different_classes(train_folder: Path, train: Any, val_folder: Path, val: Any) -> List[str]:
    only_train = [n for n in train.names if n not in set(val.names)]
    only_val = [n for n in val.names if n not in set(train.names)]
    parts = [f'{first_names(names, MAX_NAMED)} only in {folder}'
             for names, folder in ((only_train, train_folder), (only_val, val_folder)) if names]
    if not parts:
        return []
    return [f'Train and val have different classes: {"; ".join(parts)}: make the class folders the same.']


def decide_classes(verb: str, sources: Any, args: Dict[str, Any], data: DataFacts) -> List[str]:
    """Set the number of outputs where the user leaves it open; faults, each a sentence.

    Args:
        verb: 'train' or 'validate'.
        sources: Where the settings come from, as in `plan`; a reason is added.
        args: Flags of the script; `num_classes` may be set.
        data: What the data folder holds.
    """
    if data.class_names is None or data.problems:
        return []
    count = len(data.class_names)
    asked = sources.asked('num_classes')
    if args.get('num_classes'):
        sources.reasons.setdefault('num_classes', '--num-classes' if 'num_classes' in sources.flags else (
            '--config' if asked else 'the preset'))
    outputs = args.get('num_classes') or _outputs_of(args['model'])
    if verb == 'train' and not asked and not data.mapped:
        if outputs != count:
            owner = 'the recipe' if args.get('num_classes') else args['model']
            was = f', where {owner} has {outputs}' if outputs else ''
            args['num_classes'] = count
            sources.reasons['num_classes'] = f'as many as the data has classes{was}'
        return []
    if outputs is None or data.mapped:
        return []
    if outputs < count:
        return [f'The data has {count} classes, the model {outputs} outputs: give --num-classes {count}.']
    has_weights = any(args.get(k) for k in ('resume', 'initial_checkpoint', 'pretrained_path'))
    if verb == 'train' and outputs > count and not has_weights:
        return [f'--num-classes {outputs}, but the data has {count} classes: give --num-classes {count}, or leave it '
                'out.']
    if outputs > count:
        sources.notes.append(f'The model has {outputs} outputs, the data {count} classes: the first {count} outputs '
                             'are compared with them.')
    return []


def _outputs_of(model: str) -> Optional[int]:
    """Outputs of a model by default; None where only its creation tells."""
    import timm
    from timm.models import get_pretrained_cfg, split_model_name_tag
    arch = split_model_name_tag(model)[0]
    if not timm.is_model(arch):
        return None
    cfg = get_pretrained_cfg(arch, allow_unregistered=True)
    return cfg.num_classes if cfg else None
