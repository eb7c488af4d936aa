"""What a run's data folder holds: classes, images, faults; and how many outputs the model gets for it."""
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence

from seresnet_timm.data.images import EXTENSIONS, TIMM_EXTENSIONS, describe_kinds, describe_left_out
from seresnet_timm.errors import UsageError, counted, first_names, printable, refuse, shell_line
from seresnet_timm.files import is_address
from seresnet_timm.launch.combinations import uses_mixup

MAX_NAMED = 3  # names of classes that one sentence lists


@dataclass(frozen=True)
class DataFacts:
    """What was found.

    Attributes:
        class_names: Names of the classes by index; None where the data are not folders of images.
        num_images: Images by split: 'train', 'val'.
        files: Suffixes of a split that may surprise, by split, as a clause.
        problems: Faults, each a sentence.
        notes: What a user may not expect, each a sentence.
        mapped: A class map says which folders count, and as what.
        is_fixed: The classes keep the numbers that their reader gives them.
        nested: Class folders that are not directly in the folder of their split.
    """
    class_names: Optional[List[str]] = None
    num_images: Dict[str, int] = field(default_factory=dict)
    files: Dict[str, str] = field(default_factory=dict)
    problems: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    mapped: bool = False
    is_fixed: bool = False
    nested: List[str] = field(default_factory=list)


def examine(verb: str, args: Dict[str, Any]) -> DataFacts:
    """Look at the data that a script's flags name. Nothing is written."""
    from seresnet_timm.data.loaders import is_folder_dataset
    from seresnet_timm.launch import reader_dataset
    try:
        reader_dataset.check_name(args)
        if not is_folder_dataset(args.get('dataset')):
            return DataFacts(**reader_dataset.examine(verb, args))
        refuse(missing_root(verb, args))
        splits = _find_splits(verb, _root(verb, args), args)
    except UsageError as e:
        return DataFacts(problems=list(e.problems or [str(e)]))
    from seresnet_timm.data.classes import read_classes
    trees, problems = {}, []
    for split, folder in splits.items():
        try:
            tree = read_classes(folder, args.get('class_map') or None)
        except UsageError as e:
            problems.append(str(e))
            continue
        faults = list(faults_of_classes(tree))
        problems += faults
        if not faults:
            trees[split] = tree
    if not trees:
        return DataFacts(problems=problems)
    if len(trees) == 2 and trees['train'].folder != trees['val'].folder:
        problems += _faults_of_both(trees['train'], trees['val'])
    names = {split: tree.names for split, tree in trees.items()}
    notes = [note for tree in trees.values() for note in _notes(tree)]
    if len(trees) == 2 and trees['train'].folder == trees['val'].folder:
        notes.append(f'{trees["train"].folder} is the split for training and for validation: the run is evaluated on '
                     'its training images.')
    return DataFacts(
        class_names=list(names.get('train') or names['val']),
        num_images={split: tree.num_images for split, tree in trees.items()},
        files={split: _describe_files(tree) for split, tree in trees.items()},
        problems=list(dict.fromkeys(problems)),
        notes=list(dict.fromkeys(notes)),
        mapped=bool(args.get('class_map')),
        nested=next(iter(trees.values())).nested,
    )


# --- folders and tars -------------------------------------------------------------------------------------------------

def _root(verb: str, args: Dict[str, Any]) -> Path:
    root = args.get('data_dir')
    if not root:
        raise UsageError('No dataset: give its root folder with --data-dir, the one with train/ and val/ in it.')
    if is_address(root) and not os.path.exists(root):
        raise UsageError(f'Dataset {printable(root)} is an address, not a folder on this machine: download or mount '
                         'it, and name the folder with --data-dir.')
    root = Path(root)
    if root.is_file() and root.suffix == '.tar':
        if verb == 'train':
            raise UsageError(
                f'Dataset {root} is one tar: timm would train and evaluate on the same images, as it knows no splits '
                'in a tar. Unpack it; or put train.tar and val.tar into a folder and give --data-dir FOLDER '
                '--train-split train.tar --val-split val.tar.')
        return root
    if not root.exists():
        from seresnet_timm.launch.reader_dataset import READERS
        is_reader = root.parts[0] in READERS
        reader = f", or give --dataset {root} if a data set of timm's readers is meant" if is_reader else ''
        raise UsageError(f'Dataset {root} does not exist: check --data-dir{reader}.')
    if not root.is_dir():
        raise UsageError(f'Dataset {root} is a file: --data-dir takes the folder with train/ and val/ in it, and '
                         'validate also a .tar.')
    if not any(root.iterdir()):
        raise UsageError(f'Dataset {root} is empty: it should have train/<class>/* and val/<class>/* in it.')
    return root


def _find_splits(verb: str, root: Path, args: Dict[str, Any]) -> Dict[str, Path]:
    """Folder or tar of every split that the run reads."""
    if verb == 'validate':
        splits = {'val': root if root.is_file() else _find_split(root, '--split', args['split'])}
    else:
        splits = {'train': _find_split(root, '--train-split', args['train_split'])}
        if args['val_split']:  # --val-split '' trains without evaluation
            splits['val'] = _find_split(root, '--val-split', args['val_split'])
    refuse(_missing_class_map(args, splits.values()))
    return splits


def _find_split(root: Path, flag: str, split: str) -> Path:
    from seresnet_timm.data.classes import read_classes, split_folder, split_names
    folder = split_folder(root, split)
    if folder is None:
        # a folder that is itself a split is fine for validate; else timm would read the root, training images included
        if flag == '--split' and not any(split_folder(root, s) for s in ('train', 'validation')) and not any(
                _is_split_but_for_case(name) for name in _subfolders(root)) and set(read_classes(root).names) - {''}:
            return root
        wanted = ' or '.join(split_names(split)[:3])
        found = _subfolders(root)
        has = f' (it has {first_names(sorted(found), MAX_NAMED)})' if found else ''
        hint = _hint(root, flag, split)
        raise UsageError(f'Dataset {printable(root)} has no folder {wanted}{has}: add it, name it with {flag}{hint}.')
    if not folder.is_dir() and folder.suffix != '.tar':
        raise UsageError(f'{folder} is a file, not a folder of classes.')
    return folder


def _subfolders(root: Path) -> List[str]:
    return [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith('.')]


def _is_split_but_for_case(name: str) -> bool:
    from seresnet_timm.data.classes import EVAL_NAMES, TRAIN_NAMES
    return name.strip().lower() in TRAIN_NAMES + EVAL_NAMES


def _hint(root: Path, flag: str, split: str) -> str:
    """What else may help where a split has no folder."""
    from seresnet_timm.data.classes import EVAL_NAMES, TRAIN_NAMES, split_folder, split_names
    tar = next((f'{n}.tar' for n in split_names(split) if (root / f'{n}.tar').is_file()), None)
    if tar:
        return f'; timm reads {root / tar} with {flag} {tar}'
    if root.name in TRAIN_NAMES + EVAL_NAMES:
        return f'; --data-dir takes the folder above, {root.parent}'
    deeper = next((root / n for n in sorted(_subfolders(root)) if split_folder(root / n, split)), None)
    if deeper:
        return f'; or give --data-dir {shell_line([str(deeper)])}, which has one'
    if any(root.glob('*.parquet')):
        return f'; its .parquet files are read with --dataset {shell_line([f"hfds/{root}"])}'
    if any(root.glob('*.mdb')):
        return '; LMDB is not read, write its images into folders'
    if any(root.glob('*.tar')):
        return '; .tar files in a folder are not read, unpack them'
    return " or train without evaluation (--val-split '')" if flag == '--val-split' else ''


def _describe_files(tree: Any) -> str:
    """Images that timm alone would leave out, and files that are left out; '' for neither."""
    more = {suffix: n for suffix, n in tree.suffixes.items() if suffix not in TIMM_EXTENSIONS}
    clauses = (more and f'with {describe_kinds(more)}, which timm alone leaves out', describe_left_out(tree.left_out))
    return '; '.join(filter(None, clauses))


def faults_of_classes(tree: Any, has_class_map: bool = True) -> Iterator[str]:
    """What is wrong with the classes of a split, each a sentence.

    Args:
        tree: The split.
        has_class_map: The verb has `--class-map`, which some of them name.
    """
    folder = printable(tree.folder)

    def or_by_map(if_so: str = '') -> str:
        return (f'; or{if_so} list the classes in a file for --class-map: class folders that it names are taken as '
                'they are' if has_class_map else '')
    if tree.stray:
        # timm makes them a class of their own, before all others
        yield f'{tree.stray[0]} is outside the class folders of {folder}: move it into one, or away.'
    elif not tree.names and not tree.left_in_tar:
        tars = (f' .tar files in a folder, such as {tree.tars[0]}, are not read: unpack them, or put all classes of '
                'the split into one tar.' if tree.tars else '')
        others = f'; {describe_left_out(tree.left_out)}' if tree.left_out else ''
        yield (f'{folder} has no image ({", ".join(EXTENSIONS)}) in class folders{others}: name the folder of the '
               f'images.{tars}')
    elif tree.class_map and not tree.num_images:
        yield (f'Class map {tree.class_map} names none of the folders with images in {folder} (it names '
               f'{named(tree.missing)}, there are {named(tree.unmapped)}{_alike_in_map(tree)}): check --class-map.')
    elif tree.class_map and _alike_in_map(tree):
        yield (f'Class map {printable(tree.class_map)} does not name a folder as it is written'
               f'{_alike_in_map(tree)}: write the name of the folder.')
    if tree.ties and not tree.class_map:
        # timm sorts them as equals, in an order that differs from process to process
        pairs = ', '.join(f'{a} and {b}' for a, b in tree.ties[:MAX_NAMED])
        yield f'{folder} has class folders whose order is undefined ({pairs}): rename one of each pair.'
    from seresnet_timm.data.alike import describe_alike, is_written_twice
    alike = [pair for pair in tree.alike if is_written_twice(*pair)]
    if alike and not tree.class_map:
        yield (f'{folder} has a class twice: {describe_alike(*alike[0], "one folder", "another")}: move the images '
               f'into one of them{or_by_map(", if these are two classes,")}.')
    if tree.loops:
        yield f'{tree.loops[0]} is a link to a folder above it, which timm would follow without end: remove it.'
    if tree.dangling and not tree.class_map:
        yield (f'{first_names(tree.dangling, MAX_NAMED)} is a link to what does not exist: if it is a class, bring its '
               'folder back, as classes are numbered differently without it; else remove the link.')
    if tree.left_in_tar:
        yield (f'{folder} has images or folders that timm would leave out or count twice, '
               f'for they are links or in it twice ({len(tree.left_in_tar)}): '
               f'{first_names(tree.left_in_tar, MAX_NAMED)}. Unpack it, and use the folder or pack it anew '
               '(tar -ch --hard-dereference).')
    if tree.same:
        a, b = tree.same[0]
        yield f'{a} and {b} are one folder, by a link: its images would count twice; remove the link.'
    if tree.inside and not tree.class_map:
        yield (f'{first_names(tree.inside, MAX_NAMED)} has images and is inside of a class folder with images; timm '
               f'would make it a class of its own: move its images into the class folder{or_by_map()}.')
    merged = next(iter(tree.merged.items()), None)
    if merged and not tree.class_map:
        yield (f'{first_names(merged[1], MAX_NAMED)} would be one class {merged[0]!r}, as timm takes the name of the '
               f'last folder for the class: give them names of their own{or_by_map(", if they are one class,")}'
               f'{_or_move_up(tree.folder, merged[1])}.')
    if tree.empty and not tree.class_map:
        # timm numbers only folders with images in them, so that a missing class shifts the labels after it
        tars = '; .tar files in it are not read, unpack them' if any(
            t.startswith(tree.empty[0]) for t in tree.tars) else ''
        yield (f'{first_names(sorted(tree.empty), MAX_NAMED)} has no image in it: fill or remove it, as classes would '
               f'be numbered differently in train and val{tars}.')


def _or_move_up(root: Path, folders: Sequence[str]) -> str:
    """The remedy where the folders above may be the classes (class/images/*, as in Tiny ImageNet); '' elsewhere."""
    above = {str(Path(folder).parent) for folder in folders}
    return ('; or, if the folders above them are the classes, move the images up into those'
            if len(above) == len(folders) and str(root) not in above else '')


def _alike_in_map(tree: Any) -> str:
    """That a name of a class map without a folder looks like a folder that the map leaves out, as a clause, or ''."""
    from seresnet_timm.data.alike import describe_alike, looks
    quoted = next((name for name in tree.missing if name.strip('"\'') in tree.unmapped), None)
    if quoted:
        return f'; the class map has {quoted} with its quotation marks'
    unmapped = {looks(name, fold=True): name for name in tree.unmapped}
    pairs = ((name, unmapped.get(looks(name, fold=True))) for name in tree.missing)
    return next((f'; {describe_alike(a, b, "the class map", str(tree.folder))}' for a, b in pairs if b), '')


def named(names: Sequence[str]) -> str:
    from seresnet_timm.data.label_files import quote
    return first_names(map(quote, names), MAX_NAMED) or 'none'


def _notes(tree: Any) -> Iterator[str]:
    """What a user may not expect of one split, each a sentence."""
    folder = tree.folder
    if tree.hidden:
        yield (f'{folder}: {counted(len(tree.hidden), "folder")} of other programs left out: '
               f'{first_names(tree.hidden, MAX_NAMED)}. To keep one, name it in a file for --class-map.')
    if tree.foreign_files:
        yield (f'{folder}: {counted(len(tree.foreign_files), "hidden file")} left out (the name begins with a full '
               f'stop): {first_names(tree.foreign_files, MAX_NAMED)}.')
    if tree.nested:
        yield (f'{folder}: the last folder is the class, not the first: {first_names(tree.nested, MAX_NAMED)}.')
    if tree.unmapped:
        yield (f'{folder}: --class-map leaves out {counted(len(tree.unmapped), "folder")} with '
               f'{counted(sum(tree.unmapped.values()), "image")}: {named(tree.unmapped)}.')
    if tree.missing:
        yield (f'{folder}: {counted(len(tree.missing), "name")} of --class-map without a folder with images: '
               f'{named(tree.missing)}.')
    if tree.unnamed:
        yield (f'--class-map {printable(tree.class_map)} has no name for {len(tree.unnamed)} of the {len(tree.names)} '
               f'indices 0 to {len(tree.names) - 1}: {first_names(map(str, tree.unnamed), MAX_NAMED)}. They are '
               'outputs without images; indices begin at 0.')
    if tree.alike:
        from seresnet_timm.data.alike import describe_alike
        yield f'{folder}: {describe_alike(*tree.alike[0], "one folder", "another")}; they are two classes.'
    if len(tree.names) == 1:
        yield f'{folder} has one class ({named(tree.names)}): top-1 is 100, whatever the model learns.'


def _faults_of_both(train: Any, val: Any) -> Iterator[str]:
    """What is wrong between training and validation."""
    from seresnet_timm.data.classes import describe_difference
    shared = next((i for i in val.identities if i in train.identities), None)
    if shared is not None:
        yield (f'{val.identities[shared]} is {train.identities[shared]}, by a link: the run would be evaluated on its '
               "training images; remove the link, or train without evaluation (--val-split '').")
    if train.class_map:
        return
    difference = describe_difference(sorted(train.names), sorted(val.names), str(train.folder), str(val.folder))
    if difference and 'look alike' in difference:
        yield f'Train and val have different classes: {difference}: give the folders the same name.'
    elif difference:
        only_train = [n for n in train.names if n not in set(val.names)]
        only_val = [n for n in val.names if n not in set(train.names)]
        parts = [f'{first_names(names, MAX_NAMED)} only in {tree.folder}'
                 for names, tree in ((only_train, train), (only_val, val)) if names]
        yield f'Train and val have different classes: {"; ".join(parts)}: make the class folders the same.'


def missing_root(verb: str, args: Dict[str, Any]) -> List[str]:
    """The faults of the names of data folder and class map, a sentence each. Needs no timm."""
    try:
        if not args.get('dataset'):
            _root(verb, args)
    except UsageError as e:
        return [str(e), *_missing_class_map(args, [])]
    return _missing_class_map(args, []) if os.path.isabs(args.get('class_map') or '') else []


def _missing_class_map(args: Dict[str, Any], splits: Iterable[Path]) -> List[str]:
    """That there is no class map of that name, neither here nor in every split."""
    class_map, splits = args.get('class_map'), list(splits)
    if not class_map or Path(class_map).exists() or splits and all((f / class_map).exists() for f in splits):
        return []
    return [f'Class map {printable(class_map)} does not exist: check --class-map.']


def fit_batch(sources: Any, args: Dict[str, Any], data: DataFacts, world_size: int) -> None:
    """Lower a batch size that nobody asked for, where the training split has fewer images than one batch.

    Args:
        sources: Where the settings come from, as in `plan`; a note is added.
        args: Flags of the script; `batch_size` may be lowered, and with it a recipe's learning rate.
        data: What the data folder holds.
        world_size: Processes of all nodes.
    """
    images, before = data.num_images.get('train'), args['batch_size']
    fits = (images or 0) // world_size
    if uses_mixup(args):
        fits -= fits % 2
    if images is None or fits < 1 or fits >= before or sources.asked_or_typed('batch_size'):
        return
    args['batch_size'] = fits
    if 'grad_accum_steps' in args and not sources.asked('grad_accum_steps'):
        args['grad_accum_steps'] = 1
    sources.reasons.pop('batch_size', None)
    sources.notes.append(f'-b {fits}, not {before}: the training split has {images} images. -b N overrides this.')
    if sources.lr_of_recipe:  # which goes with its batch
        for name in ('lr', 'warmup_lr'):
            args[name] *= fits / before
