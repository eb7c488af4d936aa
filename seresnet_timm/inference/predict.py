"""`seresnet-timm predict`: the most likely classes of images, preprocessed as in validation."""
import csv
import io
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import torch
from PIL import Image
from timm.data import create_transform
from timm.utils.misc import natural_key
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from seresnet_timm.data.classes import is_foreign
from seresnet_timm.data.fast_jpeg import FastJpegDataset, decoder_for
from seresnet_timm.data.images import (
    EXTENSIONS,
    UnreadableImage,
    count_by_suffix,
    describe_left_out,
    is_image,
    list_folder,
    read_file,
    read_image,
    silence_pillow,
)
from seresnet_timm.errors import RunError, UsageError, counted, first_names, note_replaced, printable
from seresnet_timm.files import as_json, atomic_path
from seresnet_timm.inference.load import LoadedModel
from seresnet_timm.runs.settings import RunSettings

NOT_FINITE = 'the network has outputs for it that are not finite (NaN or infinity)'
COLUMNS = ('file', 'rank', 'index', 'label', 'description', 'probability')


def find_images(paths: Sequence[str]) -> List[str]:
    """The files that are named, and the images in folders that are named, at any depth.

    What a folder has besides is told on stderr.

    Raises:
        UsageError: A path does not exist, or a folder cannot be read or has no image in it.
    """
    files: List[str] = []
    for path in paths:
        if os.path.isdir(path):
            found: List[str] = []
            others: List[str] = []
            foreign: List[str] = []
            try:
                above = {(s.st_dev, s.st_ino) for s in map(os.stat, Path(path).resolve().parents)}
                _list_folder(path, found, others, foreign, above)
            except OSError as e:
                raise UsageError(f'{e.filename} cannot be read ({e.strerror}).')
            told = describe_left_out(count_by_suffix(others))
            if not found:
                raise UsageError(f'{path} has no image in it ({", ".join(EXTENSIONS)}){told and "; " + told}.')
            if told:
                print(printable(f'{path}: {told}'), file=sys.stderr)
            hidden = sorted(filter(is_image, others))
            if hidden:
                print(printable(f'{path}: {counted(len(hidden), "hidden file is", "hidden files are")} left out: '
                                f'{first_names(hidden, 3)}'), file=sys.stderr)
            if foreign:
                print(printable(f'{path}: {counted(len(foreign), "folder")} of other programs left out: '
                                f'{first_names(sorted(foreign), 3)}'), file=sys.stderr)
            found.sort()
            try:
                found.sort(key=natural_key)
            except ValueError:  # of '²' and the like: digits, and no numbers for timm
                pass
            files += found
        elif os.path.lexists(path):
            files.append(path)
        else:
            raise UsageError(f'Image {path} does not exist.')
    return files


def _list_folder(
        folder: str, images: List[str], others: List[str], foreign: List[str], seen: Set[Tuple[int, int]]) -> None:
    """List a folder at any depth, each folder once whatever links lead to it; not what other programs left.

    Args:
        folder: The folder.
        images: Gets the image files.
        others: Gets the other files.
        foreign: Gets the folders that other programs left.
        seen: Folders to pass by, by device and inode: those above, so that no link leads out, and those visited.
    """
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    found = list_folder(folder)
    images.extend(entry.path for entry in found.images)
    others.extend(entry.path for entry in found.others)
    for entry in sorted(found.folders, key=lambda e: (e.is_symlink(), e.name)):  # links last
        if is_foreign([entry.name]):
            foreign.append(entry.path)
        else:
            _list_folder(entry.path, images, others, foreign, seen)


class ImageFiles(Dataset):
    """Images by file; one that cannot be read is a sentence instead of a tensor.

    What `FastJpegDataset` needs of a dataset, it has: `load`, `transform`, `input_img_mode` and `is_training`.
    """
    is_training = False

    def __init__(self, files: List[str], data_config: Dict[str, Any], image_mode: Optional[str] = None):
        self.files = files
        self.input_img_mode = _checked_mode(data_config['input_size'][0], image_mode)
        self.transform = create_transform(**data_config, is_training=False)
        silence_pillow()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tuple[int, Union[torch.Tensor, str]]:
        return self.load(index, lambda data: self._transformed(read_image(data, self.input_img_mode)))

    def load(self, index: int, make: Callable[[bytes], torch.Tensor]) -> Tuple[int, Union[torch.Tensor, str]]:
        """Number and image of a file; `make` makes the image from its bytes, or raises UnreadableImage."""
        try:
            return index, make(read_file(self.files[index]))
        except UnreadableImage as e:
            return index, str(e)

    def _transformed(self, image: Image.Image) -> torch.Tensor:
        try:
            return self.transform(image)
        except MemoryError:
            raise UnreadableImage(f'there is too little memory to resize it ({image.width} x {image.height} pixels)')


def _checked_mode(channels: int, image_mode: Optional[str]) -> str:
    """Pillow's mode to read images in: that of the training, else grey or RGB."""
    mode = image_mode or {1: 'L', 3: 'RGB'}.get(channels, '')
    try:
        bands = len(Image.new('RGB', (1, 1)).convert(mode).getbands()) if mode else 0
    except (ValueError, KeyError):
        bands = 0
    if bands != channels:
        how = f'the checkpoint names the mode {printable(image_mode)}' if image_mode else (
            'the checkpoint does not tell their mode')
        raise UsageError(f'The network takes images of {channels} channels, and {how}: evaluate it with '
                         '`seresnet-timm validate --input-img-mode MODE`.')
    return mode


def collate(batch: List[Tuple[int, Any]]) -> Tuple[List[int], Optional[torch.Tensor], Dict[int, str]]:
    good = [(i, x) for i, x in batch if isinstance(x, torch.Tensor)]
    images = torch.stack([x for _, x in good]) if good else None
    return [i for i, _ in good], images, {i: x for i, x in batch if not isinstance(x, torch.Tensor)}


def predict(settings: RunSettings, loaded: LoadedModel, files: List[str]) -> Iterator[Dict[str, Any]]:
    """The most likely classes of images.

    Args:
        settings: Settings of the verb: device, workers, batch size, number of classes for each image.
        loaded: The model; moved to the device.
        files: Image files.

    Yields:
        For each file, in order: `{'file', 'predictions': [{'index', 'label', 'description', 'probability'}, ...]}` with
        the most likely first, `label` and `description` only where known; or `{'file', 'error'}`.

    Raises:
        RunError: The device is out of memory.
    """
    topk = min(settings.args['topk'], loaded.model.num_classes)
    for indices, batch, errors in probabilities(settings, loaded, files):
        results = {i: {'file': files[i], 'error': error} for i, error in errors.items()}
        if batch is not None:
            for i, p, c in zip(indices, *(t.tolist() for t in batch.topk(topk))):
                results[i] = {'file': files[i], 'predictions': [_named(loaded, *pair) for pair in zip(c, p)]}
        for i in sorted(results):
            yield results[i]


def probabilities(
        settings: RunSettings, loaded: LoadedModel, files: List[str],
) -> Iterator[Tuple[List[int], Optional[torch.Tensor], Dict[int, str]]]:
    """The probabilities of all classes, batch by batch.

    Args:
        settings: Settings of the verb: device, workers, batch size.
        loaded: The model; moved to the device.
        files: Image files.

    Yields:
        The numbers of the files that could be read, their probabilities (number of files x classes) on the CPU, None
        for no file; and why the others could not be read, by number.

    Raises:
        RunError: The device is out of memory.
    """
    device, batch_size = settings.device, settings.args['batch_size']
    images = ImageFiles(files, loaded.data_config, loaded.image_mode)
    decoder, _ = decoder_for(settings.fast_jpeg, image_mode=images.input_img_mode)
    loader = DataLoader(
        images if decoder is None else FastJpegDataset(images, decoder),
        batch_size=batch_size, num_workers=settings.args['workers'],
        collate_fn=collate)
    model = loaded.model.to(device)
    for indices, images, errors in loader:
        batch = None
        if images is not None:
            with torch.inference_mode():
                try:
                    output = model(images.to(device))
                except torch.OutOfMemoryError:
                    raise RunError(f'{device} is out of memory with -b {batch_size}: try -b {max(1, batch_size // 2)}.')
                output = output[0] if isinstance(output, (tuple, list)) else output
                batch = output.float().softmax(dim=1).cpu()
            finite = batch.isfinite().all(dim=1)
            if not finite.all():  # finite weights can overflow
                errors.update({i: NOT_FINITE for i, good in zip(indices, finite.tolist()) if not good})
                indices, batch = [i for i in indices if i not in errors], batch[finite] if finite.any() else None
        yield indices, batch, errors


def _named(loaded: LoadedModel, index: int, probability: float) -> Dict[str, Any]:
    result: Dict[str, Any] = {'index': index}
    if loaded.info.class_names is not None:
        result['label'] = loaded.info.class_names[index]
    if loaded.class_descriptions is not None:
        result['description'] = loaded.class_descriptions[index]
    return dict(result, probability=round(probability, 6))


def run(settings: RunSettings, loaded: LoadedModel, files: List[str]) -> None:
    """Predict, write the result, and name the files that could not be read.

    Args:
        settings: Settings of the verb; those of `predict`, the format, and the file to write, None for stdout.
        loaded: The model.
        files: Image files.

    Raises:
        RunError: Files could not be read; all others are in the result.
    """
    format, output = settings.args['format'], settings.args['output']
    if output is not None and (os.path.isdir(output) or not Path(output).absolute().parent.is_dir()):
        raise UsageError(f'--output {output}: ' + (
            'it is a folder, name a file.' if os.path.isdir(output) else 'its folder does not exist.'))
    note_replaced(output, '--output')
    bad, overflows = 0, False
    results = predict(settings, loaded, files)
    shown = output is None and sys.stdout.isatty()  # the result itself moves on the terminal
    bar = tqdm(total=len(files), unit='image', disable=shown or None, leave=False)
    with bar, _destination(output, format) as out:
        write = _writer(format, out)
        for result in results:
            bar.update()
            if 'error' in result:
                bad += 1
                reason = result['error'].rstrip('.')
                overflows = overflows or reason == NOT_FINITE
                what = '' if reason == NOT_FINITE else 'cannot be read: '
                bar.write(printable(f'{result["file"]}: {what}{reason}'), file=sys.stderr)
            write(result)
        write(None)
    if output is not None:
        print(printable(f'{output}: {counted(len(files) - bad, "image")}'), file=sys.stderr)
    if bad:
        what = 'have no result' if overflows else 'could not be read'
        raise RunError(f'{bad} of {len(files)} files {what}, see above; the result has the others.')


@contextmanager
def _destination(output: Optional[str], format: str) -> Iterator[Any]:
    if output is None and format == 'csv' and not sys.stdout.isatty():
        yield from _as_bytes(sys.stdout)
        return
    if output is None:
        errors = getattr(sys.stdout, 'errors', None)
        if hasattr(sys.stdout, 'reconfigure'):
            sys.stdout.reconfigure(errors='backslashreplace')  # letters that its encoding does not have
        try:
            yield sys.stdout
        finally:
            if hasattr(sys.stdout, 'reconfigure'):
                sys.stdout.reconfigure(errors=errors)
        return
    with atomic_path(output) as tmp:
        with open(tmp, 'w', newline='', encoding='utf-8', errors='surrogateescape') as f:
            yield f


def _as_bytes(stream: Any) -> Iterator[Any]:
    """A text stream in UTF-8 that gives back names of any bytes, whatever the encoding of `stream`."""
    if not hasattr(stream, 'buffer'):  # replaced, by a test for instance
        yield stream
        return
    stream.flush()
    text = io.TextIOWrapper(stream.buffer, encoding='utf-8', errors='surrogateescape', newline='')
    try:
        yield text
        text.flush()
    finally:
        text.detach()


def _writer(format: str, out: Any):
    """Function that writes the result for a file, and None at the end."""
    started = False

    def write_table(result: Optional[Dict[str, Any]]) -> None:
        if result is not None and 'predictions' in result:
            out.write(format_table(result) + '\n')

    def write_csv(result: Optional[Dict[str, Any]]) -> None:
        nonlocal started
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
        if not started:
            writer.writeheader()
            started = True
        for rank, row in enumerate((result or {}).get('predictions', ()), 1):
            row = {'file': result['file'], 'rank': rank, **row}
            writer.writerow({k: printable(v) for k, v in row.items()} if out.isatty() else row)
        out.write(text.getvalue())

    def write_json(result: Optional[Dict[str, Any]]) -> None:
        nonlocal started
        if result is None:
            out.write('\n]\n' if started else '[]\n')
            return
        out.write((',\n' if started else '[\n') + _as_json(result, _takes_letters(out)))
        started = True

    return {'table': write_table, 'csv': write_csv, 'json': write_json}[format]


def _as_json(result: Dict[str, Any], takes_letters: bool = True) -> str:
    """JSON with readable letters if the output takes them; what a terminal would interpret is escaped."""
    text = as_json(result, ensure_ascii=not takes_letters)
    return ''.join(c if printable(c) == c else json.dumps(c)[1:-1] for c in text)


def _takes_letters(stream: Any) -> bool:
    return (getattr(stream, 'encoding', None) or 'utf-8').lower().replace('-', '').startswith('utf')


def format_table(result: Dict[str, Any]) -> str:
    """Predictions for a file as lines of percent, index, name and description."""
    lines = [printable(result['file'])]
    for p in result['predictions']:
        names = [p[k] for k in ('label', 'description') if k in p and (k == 'label' or p[k] != p.get('label'))]
        lines.append(f'  {100 * p["probability"]:6.2f} %  {p["index"]:>5}  {"  ".join(map(printable, names))}'.rstrip())
    return '\n'.join(lines)
