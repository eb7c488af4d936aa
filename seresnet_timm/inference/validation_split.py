"""Predictions of a run's model for the images of its validation split, by class name."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from PIL import Image
from tqdm import tqdm

from seresnet_timm.data.classes import read_classes, split_folder
from seresnet_timm.data.images import UnreadableImage, read_image
from seresnet_timm.errors import UsageError, first_names, printable
from seresnet_timm.inference.load import LoadedModel, load_model
from seresnet_timm.inference.predict import probabilities
from seresnet_timm.runs.predictions import UNREADABLE, Predictions
from seresnet_timm.runs.read import Run
from seresnet_timm.runs.settings import RunSettings

MAX_NAMED = 3


@dataclass(frozen=True)
class Split:
    """The images of a validation split.

    Attributes:
        folder: Its folder.
        images: Its images by class name.
        names: Names of the model's classes, by index.
        index: Index of each class of the images.
    """
    folder: Path
    images: Dict[str, List[str]]
    names: List[str]
    index: Dict[str, int]

    @property
    def count(self) -> int:
        return sum(map(len, self.images.values()))


def load_with_images(run: Run, data_dir: str, split: Optional[str]) -> Tuple[LoadedModel, Split]:
    """The model of a run, and the images to predict.

    Args:
        run: The run.
        data_dir: Root of the dataset.
        split: Name of the split; None for that of the run.

    Raises:
        UsageError: One of them cannot be read, or the model does not have the classes.
    """
    folder, images = list_images(data_dir, split or split_of(run), class_map_of(run))
    loaded = load_run(run)
    return loaded, Split(folder, images, *targets_of(loaded, images, folder))


def list_images(data_dir: str, split: str, class_map: Optional[str] = None) -> Tuple[Path, Dict[str, List[str]]]:
    """The folder of a split, as timm finds it, and its images by class name.

    Raises:
        UsageError: It cannot be read, or has no image in it.
    """
    folder = split_folder(data_dir, split) or Path(data_dir)
    if not folder.is_dir():
        raise UsageError(f'--data-dir {printable(data_dir)}: there is no such folder.' if not folder.exists() else
                         f'--data-dir {printable(data_dir)} is not a folder: unpack it.')
    files: Dict[Optional[str], List[str]] = {}
    read_classes(folder, class_map, files)
    images = {name: sorted(paths) for name, paths in sorted(files.items(), key=lambda i: i[0] or '')
              if name is not None}
    if not images:
        raise UsageError(f'{printable(folder)} has no folder of a class with images in it.')
    return folder, images


def split_of(run: Run) -> str:
    """The name of the validation split in the settings of a run."""
    return run.record['settings']['args'].get('val_split') or 'validation'


def decoder_of(run: Run) -> str:
    """`--fast-jpeg` for the images of a run, so that the predictions are those of its evaluation."""
    return 'off' if run.record['settings'].get('fast_jpeg') == 'off' else 'auto'


def class_map_of(run: Run) -> Optional[str]:
    """The class map of a run, if its file is still there."""
    path = run.record['settings']['args'].get('class_map')
    return path if path and Path(path).is_file() else None


def load_run(run: Run) -> LoadedModel:
    """The best model of a run, else the last; the moving average where that is what the run has evaluated."""
    args = run.record['settings']['args']
    return load_model(
        str(run.folder.path), use_ema=bool(args.get('model_ema')) and not args.get('model_ema_force_cpu'))


def targets_of(loaded: LoadedModel, images: Dict[str, List[str]], folder: Path) -> Tuple[List[str], Dict[str, int]]:
    """The names of a model's classes, and the index of each class of the images.

    Raises:
        UsageError: The model does not have all of them.
    """
    names, count = loaded.info.class_names, loaded.info.num_classes
    if names is None:
        if len(images) != count:
            raise UsageError(f'{printable(folder)} has {len(images)} classes, the model has {count} without names: '
                             'the classes cannot be matched.')
        names = list(images)
    elif not loaded.class_names_origin.startswith('names from') and not set(images) <= set(names):
        names = list(images) if len(images) == count else names  # ImageNet's, by their number only
    index = {part: i for i, name in enumerate(names) for part in name.split(', ')}  # a class of several folders
    index.update({name: i for i, name in enumerate(names)})
    unknown = [name or '(images outside of the folders of classes)' for name in images if name not in index]
    if unknown:
        raise UsageError(f'{printable(folder)} has classes that the model does not have: '
                         f'{printable(first_names(unknown, MAX_NAMED))}. Name the data of the run with --data-dir.')
    return list(names), {name: index[name] for name in images}


def predict_split(settings: RunSettings, loaded: LoadedModel, split: Split) -> Predictions:
    """Predict every image once.

    Args:
        settings: Settings as those of `predict`: device, workers, batch size.
        loaded: The model; moved to the device.
        split: The images.

    Raises:
        RunError: The device is out of memory.
    """
    pairs = [(file, split.index[name]) for name, paths in split.images.items() for file in paths]
    files, targets = [file for file, _ in pairs], [target for _, target in pairs]
    rows: List[Tuple[int, float, float, bool]] = [(UNREADABLE, 0., 0., False)] * len(files)
    with tqdm(total=len(files), unit='image', disable=None, leave=False) as bar:
        for indices, batch, errors in probabilities(settings, loaded, files):
            bar.update(len(indices) + len(errors))
            if batch is not None:
                for i, row in zip(indices, _rows(batch, [targets[i] for i in indices])):
                    rows[i] = row
    predicted, probability, of_target, in_top5 = zip(*rows)
    return Predictions(
        loaded.origin, str(split.folder), split.names, files, targets, list(predicted), list(probability),
        list(of_target), list(in_top5), open_image)


def open_image(file: str) -> Optional[Image.Image]:
    try:
        return read_image(file)
    except UnreadableImage:
        return None


def _rows(batch: Any, targets: List[int]) -> List[Tuple[int, float, float, bool]]:
    """Most likely class, its probability, that of the target, and whether that is among the first five."""
    top = batch.topk(min(5, batch.shape[1]), dim=1)
    own = batch[range(len(targets)), targets]
    return list(zip(
        top.indices[:, 0].tolist(), top.values[:, 0].tolist(), own.tolist(),
        [target in row for target, row in zip(targets, top.indices.tolist())]))
