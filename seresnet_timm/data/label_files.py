"""Text files about classes that users write: `--class-map`, `--class-names`, `--valid-labels`, `--real-labels`

A byte order mark, UTF-16, line ends of Windows, empty lines and white space around a name do not count.
"""
import codecs
import json
import os
import re
from pathlib import Path
from typing import Any, Collection, Dict, Iterable, List, Optional, Tuple, Union

from timm.data.readers.class_map import load_class_map

from seresnet_timm.errors import UsageError, first_line, first_names, printable
from seresnet_timm.files import from_json, why_not_text

# UTF-32 first: its mark begins with that of UTF-16
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, 'utf-32'), (codecs.BOM_UTF32_BE, 'utf-32'), (codecs.BOM_UTF8, 'utf-8-sig'),
    (codecs.BOM_UTF16_LE, 'utf-16'), (codecs.BOM_UTF16_BE, 'utf-16'))
MAX_NAMED = 3  # names that one sentence lists
MAX_SHOWN = 300  # characters of a name; those of folders have at most 255
_INDICES = (r'^{}[ ,;:]', r'[,;:] ?{}$')  # as tables and lists of other tools have them


def read_text(path: Union[str, Path], what: str) -> str:
    """Text of a file in the encoding that its byte order mark names, else in UTF-8.

    Args:
        path: The file.
        what: What it is, for the message: '--class-names'.

    Raises:
        UsageError: It cannot be read, or is not text.
    """
    reason = why_not_text(path)
    if reason:
        raise UsageError(f'{what} {printable(path)} cannot be read: {reason}.')
    try:
        raw = Path(path).read_bytes()
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS if raw.startswith(mark)), 'utf-8')
        text = raw.decode(encoding)
    except UnicodeError as e:
        raise UsageError(f'{what} {printable(path)} cannot be read ({printable(first_line(e))}): save it as UTF-8.')
    except FileNotFoundError:
        raise UsageError(f'{what} {printable(path)} does not exist.')
    except (OSError, ValueError) as e:  # ValueError: a path with a zero byte
        raise UsageError(f'{what} {printable(path)} cannot be read ({printable(first_line(e))}).')
    if '\0' in text:
        raise UsageError(f'{what} {printable(path)} is not a text file: save it as UTF-8.')
    return text


def read_lines(path: Union[str, Path], what: str) -> List[str]:
    """Lines of a text file that are not empty, without their ends; only LF, CR LF and CR end a line."""
    lines = read_text(path, what).replace('\r\n', '\n').replace('\r', '\n').split('\n')
    return [line for line in lines if line.strip()]


def find_class_map(path: str, folder: str) -> str:
    """The file that `--class-map` means: timm looks for it in the folder of the split too."""
    return path if os.path.exists(path) else os.path.join(folder, path)


def read_class_map(path: str, folder: str, found: Collection[str] = ()) -> Dict[Any, int]:
    """Index by name of a class map.

    It has one name per line in the order of the indices, or `name<TAB>index` or `index<TAB>name` in every line.

    Args:
        path: A .txt, or a .pkl of a dictionary.
        folder: Folder of the split.
        found: Names of class folders. A name with white space at its ends is taken as it is written if there is such a
            folder.

    Raises:
        UsageError: The file cannot be read, names no classes, or one twice.
    """
    hint = 'it takes .txt, the name of a class folder a line, in the order of the indices'
    what = f'Class map {printable(path)}'
    extension = os.path.splitext(path)[1].lower()
    reason = why_not_text(find_class_map(path, folder))
    if reason:
        raise UsageError(f'{what} cannot be read: {reason}.')
    if extension == '.txt':
        indices = _parse_class_map(read_lines(find_class_map(path, folder), 'Class map'), what, set(found))
    else:
        try:
            indices = load_class_map(path, folder)  # of a pickle too, which timm reads with a restricted unpickler
        except Exception as e:
            raise UsageError(f'{what} cannot be read ({printable(first_line(e))}): {hint}.')
    valid = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices.values())
    if not indices or not valid:
        raise UsageError(f'{what} names no classes: {hint}.')
    if max(indices.values()) >= 2 * len(indices) + 1000:
        raise UsageError(f'{what} has {len(indices)} names and the index {max(indices.values())}: indices begin at 0.')
    return indices


def _parse_class_map(lines: List[str], what: str, found: Collection[str]) -> Dict[str, int]:
    comment = next((line for line in lines if line.startswith('# ') and line.strip() not in found), None)
    if comment is not None:
        raise UsageError(f'{what} has a comment ({quote(comment)}), which would be a class: remove the line.')
    names, indices = _split_indices(lines, what) or (lines, list(range(len(lines))))
    names = [name if name in found else name.strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UsageError(f'{what} names {first_names(map(quote, twice), MAX_NAMED)} more than once: a class has one '
                         'index; remove the other line.')
    return dict(zip(names, indices))


def _split_indices(lines: List[str], what: str) -> Optional[Tuple[List[str], List[int]]]:
    """Names and indices of lines `name<TAB>index`, or of lines `index<TAB>name`; None for names alone.

    Raises:
        UsageError: Some of the lines have an index and others have none.
    """
    for pairs in ([line.rsplit('\t', 1) for line in lines], [line.split('\t', 1)[::-1] for line in lines]):
        has_index = [len(p) == 2 and p[1].strip().isdecimal() for p in pairs]
        if lines and all(has_index):
            return [p[0] for p in pairs], [int(p[1]) for p in pairs]
        if any(has_index):
            with_one, without = lines[has_index.index(True)], lines[has_index.index(False)]
            raise UsageError(f'{what} has lines with an index ({quote(with_one)}) and without one ({quote(without)}): '
                             'give all lines one, after a tab, or none.')
    return None


def read_class_names(path: Union[str, Path], num_classes: int) -> List[str]:
    """Names of classes from a file with one name per line, in the order of their indices, or `name<TAB>index`.

    Raises:
        UsageError: The file cannot be read, or does not have as many names as the model has classes.
    """
    what = f'--class-names {printable(path)}'
    names = [line.strip() for line in read_lines(path, '--class-names')]
    if names and (names[0][0], names[-1][-1]) in (('{', '}'), ('[', ']')) and len(names) != num_classes:
        raise UsageError(f'{what} is JSON: write the names alone, one a line, in the order of their indices.')
    indexed = _split_indices(names, what)
    if indexed is not None:
        by_index = {index: name.strip() for name, index in zip(*indexed)}
        if sorted(by_index) != list(range(len(names))):
            raise UsageError(f'{what}: the indices of its {len(names)} names are not 0 to {len(names) - 1}, each once.')
        names = [by_index[i] for i in range(len(names))]
    elif len(names) > 1 and any(all(re.search(pattern.format(i), name) for i, name in enumerate(names))
                                for pattern in _INDICES):
        raise UsageError(f'{what} has an index in each line ({quote(names[1])}): write the names alone, or '
                         'name<TAB>index.')
    if len(names) != num_classes:
        raise UsageError(f'{what} has {len(names)} names, the model has {num_classes} classes.')
    return names


def read_valid_labels(path: Union[str, Path], num_classes: Optional[int] = None) -> List[int]:
    """Class indices that count in an evaluation, from the file of `--valid-labels`: one per line.

    Args:
        path: The file.
        num_classes: Number of outputs of the model; None if not known.

    Raises:
        UsageError: The file cannot be read, or holds something else.
    """
    lines = [line.strip() for line in read_lines(path, '--valid-labels')]
    below = '' if num_classes is None else f' below {num_classes}'
    bad = next((x for x in lines if not x.isdecimal() or num_classes is not None and int(x) >= num_classes), None)
    if bad is not None or not lines:
        raise UsageError(f"--valid-labels {printable(path)}: class indices{below}, one per line, got '"
                         f"{printable(bad or '')}'.")
    labels = [int(line) for line in lines]
    if len(set(labels)) < len(labels):
        twice = next(i for i in labels if labels.count(i) > 1)
        raise UsageError(f'--valid-labels {printable(path)} has the index {twice} more than once: remove one line.')
    return labels


def valid_labels_of_timm(path: Union[str, Path]) -> Optional[List[int]]:
    """The indices as timm's validate.py reads them; None if it cannot."""
    try:
        with open(path) as f:
            return [int(line.rstrip()) for line in f]
    except ValueError:
        return None


def check_real_labels(path: Union[str, Path], num_classes: Optional[int] = None) -> List[List[int]]:
    """The content of the file of `--real-labels`, as timm reads it: a JSON list of the labels of every image.

    Args:
        path: The file.
        num_classes: Number of outputs of the model; None if not known.

    Raises:
        UsageError: timm could not read it, or would count a label as never right.
    """
    what = f'--real-labels {printable(path)}'
    text = read_text(path, '--real-labels')
    if not Path(path).read_bytes().startswith(text[:1].encode()):
        raise UsageError(f'{what} has a byte order mark, which timm cannot read: save it as UTF-8 without one.')
    try:
        labels = from_json(text)
    except ValueError as e:
        raise UsageError(f'{what} is not JSON ({printable(first_line(e))}).')
    if not isinstance(labels, list) or not all(isinstance(x, list) for x in labels):
        raise UsageError(f'{what} is not a JSON list of the labels of every image.')
    for i, label in ((i, label) for i, of_image in enumerate(labels) for label in of_image):
        below = '' if num_classes is None else f' below {num_classes}'
        if type(label) is not int or label < 0 or num_classes is not None and label >= num_classes:
            raise UsageError(f'{what}: a label of image {i + 1} is {printable(json.dumps(label)[:40])}, labels are '
                             f'class indices{below}.')
    if not any(labels):
        raise UsageError(f'{what} has no label of any image.')
    return labels


def wrong_real_name(names: Iterable[str], count: int) -> Optional[str]:
    """The first file name that `--real-labels` has no labels for, as a sentence; None if there is none.

    Args:
        names: Names of the images, without their folders.
        count: Images that the file has labels of.
    """
    known = {f'ILSVRC2012_val_{i + 1:08d}.JPEG' for i in range(count)}
    wrong = next((name for name in names if name not in known), None)
    return None if wrong is None else (
        f'--real-labels: {printable(wrong)} is not one of the images ILSVRC2012_val_00000001.JPEG to '
        f'ILSVRC2012_val_{count:08d}.JPEG, by whose names timm finds the labels: name the original validation images '
        'of ImageNet with --data-dir.')


def quote(name: str) -> str:
    name = name if len(name) <= MAX_SHOWN else f'{name[:MAX_SHOWN]}...'
    return f"'{printable(name)}'"
