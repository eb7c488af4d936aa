"""What a data set of timm's other readers holds: `--dataset torch/`, `hfds/`, `hfids/`, `wds/`, `tfds/`

One on this machine is opened before the run, by timm or its package: nothing is downloaded, and nothing is written.
"""
import importlib.util
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from seresnet_timm.errors import RunError, UsageError, counted, did_you_mean, first_line, first_names, printable
from seresnet_timm.launch.combinations import BANDS, channels_of

MAX_NAMED = 3  # names that one sentence lists
# timm's readers of --dataset by the part before the slash, and the package that each needs
READERS = {'torch': 'torchvision', 'tfds': 'tensorflow_datasets', 'hfds': 'datasets', 'hfids': 'datasets',
           'wds': 'webdataset'}
# of torchvision, with one class for training and test images: timm takes any unknown split for the test images
TWO_SPLITS = ('cifar10', 'cifar100', 'mnist', 'kmnist', 'fashion_mnist', 'qmnist')
FOLDERS = ('image_folder', 'folder')
TORCH_DATASETS = (*TWO_SPLITS, 'imagenet', 'inaturalist', 'inat', 'places365', *FOLDERS)


def check_name(args: Dict[str, Any]) -> None:
    """Refuse a --dataset that timm would silently read as folders.

    Raises:
        UsageError: timm has no such reader.
    """
    name = args.get('dataset') or ''
    prefix, slash, rest = name.partition('/')
    if slash and prefix.lower() not in READERS:
        raise UsageError(f"--dataset {printable(name)}: timm has no reader '{printable(prefix)}', "
                         f'{did_you_mean(prefix.lower(), READERS)} Leave it out for folders of images.')
    if not slash and name.lower() in TORCH_DATASETS[:-2]:
        raise UsageError(f'--dataset {name} means folders of images to timm: for the dataset of torchvision, give '
                         f'--dataset torch/{name.lower()}; leave it out for folders.')
    if prefix.lower() == 'torch' and name.split('/', 2)[-1].lower() not in TORCH_DATASETS:
        rest = name.split('/', 2)[-1].lower()
        raise UsageError(f"--dataset {printable(name)}: timm has no dataset '{printable(rest)}' of torchvision, "
                         f'{did_you_mean(rest, TORCH_DATASETS)}')


def kind_of(args: Any) -> str:
    """timm's reader of --dataset; '' for folders of images."""
    prefix, slash, _ = (args.get('dataset') or '').partition('/')
    return prefix.lower() if slash else ''


def examine(verb: str, args: Dict[str, Any]) -> Dict[str, Any]:
    """Fields of `DataFacts`.

    Args:
        verb: 'train' or 'validate'.
        args: Flags of the script.
    """
    kind = kind_of(args)
    problems = list(_faults(args))
    splits = _splits(verb, args)
    if kind == 'torch' and not problems:
        problems = list(_faults_of_torch_splits(args, splits))
    if problems or args.get('dataset_download'):
        return dict(problems=problems)
    try:
        return dict(_open(kind, args, splits))
    except UsageError as e:
        return dict(problems=[str(e)])


def _splits(verb: str, args: Dict[str, Any]) -> Dict[str, str]:
    """Flag and name of every split that the run reads."""
    found = {'--split': args['split']} if verb == 'validate' else {
        '--train-split': args['train_split'], '--val-split': args['val_split']}
    return {flag: split for flag, split in found.items() if split}


def _faults(args: Dict[str, Any]) -> Iterator[str]:
    """What can be told of a dataset without its package."""
    name, kind, root = args['dataset'], kind_of(args), args.get('data_dir')
    rest = name.partition('/')[2]
    package = READERS[kind]
    for needed in (package, *(['tensorflow'] if kind == 'tfds' else [])):
        spec = importlib.util.find_spec(needed)
        if spec is None or spec.origin is None:  # a folder of that name is no package
            yield f'--dataset {name} needs {needed}: pip install {needed.replace("_", "-")}.'
    if kind == 'torch' and args.get('class_map'):
        yield f'--class-map has no effect on --dataset {name}: leave one of the two out.'
    if kind in ('torch', 'wds') and not root:
        yield f'--dataset {name} needs the folder of its files: name it with --data-dir.'
    elif root and kind in ('torch', 'wds') and '://' not in str(root) and not Path(root).is_dir() and not args.get(
            'dataset_download'):
        yield f'Dataset {printable(root)} does not exist: check --data-dir.'
    if kind in ('hfds', 'hfids', 'tfds') and not rest:
        yield f'--dataset {name} names no dataset: write it after the slash.'
    if args.get('class_map'):
        from seresnet_timm.data.label_files import read_class_map
        try:
            read_class_map(args['class_map'], str(root or ''))
        except UsageError as e:
            yield str(e)


def _faults_of_torch_splits(args: Dict[str, Any], splits: Dict[str, str]) -> Iterator[str]:
    from seresnet_timm.data.classes import EVAL_NAMES, TRAIN_NAMES, split_folder
    name = args['dataset'].split('/', 2)[-1].lower()
    for flag, split in splits.items():
        if name in TWO_SPLITS and split not in (*TRAIN_NAMES, *EVAL_NAMES, 'test'):
            yield (f"{flag} {printable(split)}: --dataset {args['dataset']} has the splits train and validation; timm "
                   'would take the test images for any other name.')
        elif name in FOLDERS and not split_folder(args['data_dir'], split):
            yield (f'{flag} {printable(split)}: {printable(args["data_dir"])} has no such folder, and timm would take '
                   'all images in it, those of other splits included.')


def _open(kind: str, args: Dict[str, Any], splits: Dict[str, str]) -> Iterator[Any]:
    """Open every split of a data set that is on this machine.

    Raises:
        UsageError: One cannot be opened.
    """
    names: Dict[str, Optional[List[str]]] = {}
    images: Dict[str, int] = {}
    for flag, split in splits.items():
        try:
            found = _open_split(kind, args, flag, split)
        except UsageError:
            raise
        except RunError as e:  # an image of torchvision's folders
            raise UsageError(str(e)) from e
        except Exception as e:  # of readers, packages and the file system
            hint = _hint(e, flag)
            raise UsageError(f'{flag} {printable(split)} of --dataset {printable(args["dataset"])} cannot be opened '
                             f'({printable(first_line(e))}): {hint}.')
        if found is None:
            return
        names[flag], images['train' if flag == '--train-split' else 'val'] = found
    yield 'problems', list(_differences(args, names))
    if kind == 'wds':
        asked = f'give --num-classes, if it is not {args.get("num_classes") or "that of the model"}'
        yield 'notes', [f'--dataset {args["dataset"]} has no class names, only their numbers: {asked}.']
    known = next((n for n in names.values() if n), None)
    yield 'class_names', known
    yield 'mapped', bool(args.get('class_map'))
    yield 'is_fixed', kind == 'hfids'
    yield 'num_images', {split: count for split, count in images.items() if count}


def _open_split(kind: str, args: Dict[str, Any], flag: str, split: str) -> Any:
    """Names of the classes, or None, and number of images, or 0; None for a split that is not opened here."""
    name = args['dataset'].partition('/')[2]
    if kind == 'torch' and name.split('/')[-1].lower() not in (*TWO_SPLITS, *FOLDERS):
        return None  # torchvision may unpack its archives
    if kind in ('hfds', 'hfids'):
        return _names_of_hugging_face(name, args, split) if Path(name).exists() else None
    if kind == 'tfds':
        return _names_of_tensorflow(name, args, split)
    if kind == 'wds' and '://' in str(args['data_dir']):
        return None
    from seresnet_timm.data.classes import names_of_dataset
    from seresnet_timm.data.loaders import create_dataset
    count = args.get({'--train-split': 'train_num_samples', '--val-split': 'val_num_samples'}.get(flag, 'num_samples'))
    dataset = create_dataset(
        name=args['dataset'], root=args['data_dir'], split=split, class_map=args.get('class_map'), class_names=None,
        is_training=flag == '--train-split', num_samples=count, target_key=args.get('target_key'))
    if kind == 'torch':
        mode, channels = dataset[0][0].mode if len(dataset) else 'RGB', channels_of(args)
        if BANDS.get(mode, channels) != channels:
            raise UsageError(f'--dataset {args["dataset"]} has images of {counted(BANDS[mode], "channel")}, the '
                             f'network takes {channels}: give --in-chans {BANDS[mode]}.')
        return names_of_dataset(dataset), len(dataset)
    reader = dataset.reader
    missing = [f for f in reader.split_info.filenames if '://' not in f and not f.startswith('pipe:') and not (
        Path(reader.root) / f).is_file()]
    if missing:
        raise UsageError(f'{flag} {printable(split)} of --dataset {args["dataset"]}: {len(missing)} of its '
                         f'{len(reader.split_info.filenames)} files are missing in {printable(reader.root)}: '
                         f'{first_names(missing, MAX_NAMED)}.')
    if not reader.num_samples:
        raise ValueError('num_samples is not known')
    _check_first_of_webdataset(reader, args)
    return names_of_dataset(dataset), reader.num_samples


def _check_first_of_webdataset(reader: Any, args: Dict[str, Any]) -> None:
    """Refuse shards whose samples timm would skip one by one; what is a stream is not looked into.

    Raises:
        UsageError: The first sample has no file that timm takes for the image, or none for the class.
    """
    import tarfile
    path = Path(reader.root) / reader.split_info.filenames[0]
    if not path.is_file():
        return
    wanted = (args.get('input_key') or reader.input_key).split(';')
    kinds: List[str] = []
    first, picture = None, b''
    with tarfile.open(path) as tar:  # also a compressed one, as webdataset
        for member in tar:
            folder, _, name = member.name.rpartition('/')
            stem, dot, kind = name.partition('.')
            if not member.isfile() or not dot or name.startswith('.'):
                continue
            if first not in (None, (folder, stem)):
                break
            first = folder, stem
            kinds.append(kind.lower())
            content = tar.extractfile(member) if kinds[-1] in wanted and not picture else None
            picture = content.read() if content else picture
    what = (f'{printable(path)}: its first sample has the files {first_names((f".{k}" for k in kinds), MAX_NAMED)}'
            if kinds else f'{printable(path)} has no samples (NAME.jpg with NAME.cls)')
    if not set(kinds) & set(wanted):
        raise UsageError(f'{what}; timm takes the image from {first_names((f".{k}" for k in wanted), 9)}: name others '
                         'with --input-key, several with a semicolon between them.')
    _refuse_16_bits(picture, args)
    target = args.get('target_key') or reader.split_info.alt_label
    needed = 'json' if target else 'cls'
    if needed not in kinds:
        why = f'the field {printable(target)} of' if target else 'the number in'
        raise UsageError(f'{what}; timm takes the class from {why} .{needed}: ' + (
            'leave --target-key out for .cls.' if target else 'name a field of .json with --target-key.'))


def _refuse_16_bits(data: bytes, args: Dict[str, Any]) -> None:
    """Refuse images of more than 8 bits, which the reader itself decodes, and clips at 255.

    Raises:
        UsageError: The first image has more.
    """
    import io

    from PIL import Image
    try:
        mode = Image.open(io.BytesIO(data)).mode
    except Exception:  # damaged, which the run names and counts
        return
    if mode == 'F' or mode.startswith('I'):
        raise UsageError(f'--dataset {printable(args["dataset"])} has images of more than 8 bits a channel, which its '
                         'reader in timm clips at 255: save them with 8 bits; in folders they are read right.')


def _check_fields(args: Dict[str, Any], features: Any) -> None:
    """Refuse a table of Hugging Face without the fields of the image and the class, or with classes as texts.

    Raises:
        UsageError: Names what it has.
    """
    if not features:
        return  # known once its rows are read
    shown = printable(args['dataset'])
    for flag, key in (('--input-key', args.get('input_key') or 'image'),
                      ('--target-key', args.get('target_key') or 'label')):
        for part in key.split(','):
            if part not in features and part.split('/')[0] not in features:
                raise UsageError(f"--dataset {shown} has no field '{printable(part)}': it has "
                                 f'{first_names(map(str, features), MAX_NAMED)}; name it with {flag}.')
    target = args.get('target_key') or 'label'
    if getattr(features.get(target), 'dtype', None) in ('string', 'large_string') and not args.get('class_map'):
        raise UsageError(f"--dataset {shown}: the field '{printable(target)}' holds texts, timm takes the numbers of "
                         'classes: list the texts in the order of the classes in a file for --class-map.')


def _names_of_hugging_face(path: str, args: Dict[str, Any], split: str) -> Any:
    """Names of the classes of a folder or file that the package `datasets` reads; its cache is not written."""
    import tempfile

    import datasets
    from timm.data.readers._hfds import get_class_labels

    from seresnet_timm.files import temporary_folder
    with temporary_folder(tempfile.gettempdir(), 'seresnet-timm-dataset-') as cache:
        builder = datasets.load_dataset_builder(path, cache_dir=str(cache))
        if args.get('class_map') and kind_of(args) == 'hfids' and builder.info.features is None:
            raise UsageError(f'--class-map: the reader of --dataset {printable(args["dataset"])} does not know its '
                             'classes by name; use hfds/ in place of hfids/.')
        found = builder.as_streaming_dataset()
    base = re.split(r'[\[+]', split)[0]
    if base not in found:
        raise UsageError(f"--dataset {printable(args['dataset'])} has no split '{printable(base)}': it has "
                         f'{first_names(map(str, found), MAX_NAMED)}; name them with --train-split, --val-split or '
                         '--split.')
    _check_fields(args, found[base].features)
    if kind_of(args) == 'hfids':
        key = args.get('input_key') or 'image'
        for row in found[base].cast_column(key, datasets.Image(decode=False)).take(1):
            image = row.get(key) or {}
            _refuse_16_bits(image.get('bytes') or Path(image.get('path') or os.devnull).read_bytes(), args)
    labels = get_class_labels(found[base], args.get('target_key') or 'label')
    return sorted(labels, key=labels.__getitem__) or None, 0


def _names_of_tensorflow(name: str, args: Dict[str, Any], split: str) -> Any:
    """Names of the classes and number of images of a data set that tensorflow_datasets has prepared."""
    import tensorflow_datasets as tfds
    builder = tfds.builder(name, data_dir=args.get('data_dir'))
    shown, found = printable(args['dataset']), list(builder.info.splits)
    if not found:
        raise UsageError(f'--dataset {shown} is not prepared in {printable(builder.data_dir)}: name the folder of its '
                         'files with --data-dir, or download it with --dataset-download.')
    base = re.split(r'[\[+]', split)[0]
    if base not in found:
        raise UsageError(f"--dataset {shown} has no split '{printable(base)}': it has "
                         f'{first_names(found, MAX_NAMED)}; name them with --train-split, --val-split or --split.')
    features = builder.info.features
    image, target = args.get('input_key') or 'image', args.get('target_key') or 'label'
    for flag, key in (('--input-key', image), ('--target-key', target)):
        if '/' not in key and ',' not in key and key not in features:
            raise UsageError(f"--dataset {shown} has no field '{printable(key)}': it has "
                             f'{first_names(features, MAX_NAMED)}; name it with {flag}.')
    label = features[target] if target in features else None
    return getattr(label, 'names', None), builder.info.splits[split].num_examples


def _differences(args: Dict[str, Any], names: Dict[str, Optional[List[str]]]) -> Iterator[str]:
    from seresnet_timm.data.classes import describe_difference
    if len(names) == 2 and not args.get('class_map'):
        (flag, train), (_, val) = names.items()
        difference = describe_difference(train, val, 'training', 'validation')
        if difference:
            yield f'Training and validation of --dataset {printable(args["dataset"])} have different classes ' \
                  f'({difference}): make them the same.'


def _hint(error: Exception, flag: str) -> str:
    if 'num_samples' in str(error):
        count = {'--split': '--num-samples'}.get(flag, flag.replace('split', 'num-samples'))
        return f'give its number of images with {count}'
    if isinstance(error, KeyError):
        return 'its _info.json has no such entry, which timm needs'
    return f'check --dataset, --data-dir and {flag}; --dataset-download downloads what torchvision offers'
