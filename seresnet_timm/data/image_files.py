"""Images of a dataset that cannot be read: replaced in training, wrong in evaluation, named once by their path

timm's ImageDataset takes the next image for one whose decoder raises OSError, in evaluation too, logs its index, and
ends with any other error. `ImageFiles` reads in its place, with timm's own loading and with fast decoding.
"""
import hashlib
import math
import os
import tarfile
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple, Union

import torch
import torch.distributed as dist
from PIL import Image
from timm.data import AugMixDataset
from timm.data.dataset import ImageDataset
from timm.data.readers.reader_image_folder import ReaderImageFolder

from seresnet_timm.data import images
from seresnet_timm.data.data_folder import DataFolder
from seresnet_timm.data.images import UnreadableImage
from seresnet_timm.errors import RunError, first_line, printable

IGNORED_TARGET = -100  # of an image that cannot be read: no class, and torch's losses leave it out
MAX_TRIES = 1000  # images in a row; more than a damaged class folder, less than a dataset whose disk is gone
MAX_LISTED = 20  # names in run.json
MAX_SAID = 5  # names in a log line


class ImageFiles(ImageDataset):
    """timm's ImageDataset, which counts images that cannot be read.

    In training the next image that can be read takes the place of one that cannot. In evaluation it is an empty
    picture, whose target is `IGNORED_TARGET`.

    Args:
        dataset: timm's dataset; not changed.
        is_training: For training.
        data_timeout: Seconds to wait for a data folder that is gone, at most.

    Attributes:
        known: Indices of the images that any process could not read, when they last told each other.
        names_hash: Hash of the names, see `images_of`; None if it is not known yet.
    """

    def __init__(self, dataset: ImageDataset, is_training: bool, data_timeout: float = 0.):
        vars(self).update(vars(dataset))
        self.is_training = is_training
        self.folder = DataFolder(data_timeout)
        self._unreadable = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()  # the workers write to it
        self._named: Set[int] = set()
        self._restored: List[int] = []
        self.known: Set[int] = set()
        self.names_hash: Optional[str] = None
        images.silence_pillow()

    def __getitem__(self, index: int) -> Tuple:
        return self.load(index, self._picture)

    def _picture(self, source: Union[bytes, Image.Image]) -> Any:
        picture = images.read_image(source, self.input_img_mode) if isinstance(source, bytes) else source
        return picture if self.transform is None else self.transform(picture)

    def load(self, index: int, make: Callable[[Union[bytes, Image.Image]], Any]) -> Tuple:
        """Sample of an image, or of what takes its place.

        Args:
            index: Index of the image.
            make: Makes the input of the model from the bytes of a file, or from a picture; raises UnreadableImage.

        Raises:
            RunError: No image can take its place.
        """
        for i in self._candidates(index):
            try:
                data, target, *features = self._read(i)
                made = make(data)
            except UnreadableImage:
                self._unreadable[i] = 1
                if not self.is_training:
                    return make(Image.new(self.input_img_mode or 'RGB', (64, 64))), IGNORED_TARGET
                continue
            if target is None:
                target = -1  # as timm
            elif self.target_transform is not None:
                target = self.target_transform(target)
            return (made, target) if self.additional_features is None else (made, target, *features)
        raise RunError(self._nothing_readable(index))

    def _candidates(self, index: int) -> Iterator[int]:
        """The image itself, then those after it that are not known to be unreadable."""
        yield index
        for i in range(index + 1, index + min(len(self), MAX_TRIES)):
            i %= len(self)
            if not self._unreadable[i]:
                yield i

    def _read(self, index: int) -> Tuple:
        """Bytes, target and features of an image, once the data folder is there."""
        if isinstance(self.reader, ReaderImageFolder):
            path, target = self.reader.samples[index]
            return self.folder.read(lambda: images.read_file(path), os.path.dirname(path)), target
        root = getattr(self.reader, 'root', None)
        return self.folder.read(lambda: self._read_item(index), None if root is None else str(root))

    def _read_item(self, index: int) -> Tuple:
        try:
            file, *others = self.reader[index]
            with file:
                return (file.read(), *others)
        except (OSError, tarfile.TarError, MemoryError) as e:
            raise UnreadableImage(images.why(e)) from e
        except Exception as e:  # of a table that is damaged there, or lacks a field
            raise UnreadableImage(f'its entry cannot be read ({type(e).__name__}: {first_line(e)})') from e

    def path(self, index: int) -> str:
        """The path of an image, or its name in an archive."""
        if isinstance(self.reader, ReaderImageFolder):
            return self.reader.samples[index][0]
        try:
            name = self.filename(index)
        except Exception:  # a table whose images have no names
            name = f'image {index}'
        return os.path.join(str(getattr(self.reader, 'root', None) or ''), name)

    def reason(self, index: int) -> str:
        """Why an image cannot be read, by another try."""
        try:
            images.read_image(self._read(index)[0], self.input_img_mode)
        except UnreadableImage as e:
            return str(e)
        return 'it could be read at a second try'

    def _nothing_readable(self, index: int) -> str:
        tries = min(len(self), MAX_TRIES)
        what = f'None of the {len(self)} images' if tries == len(self) else f'{tries} images in a row, none of which'
        return (f'{what} can be read, {printable(self.path(index))} for example: {printable(self.reason(index))}. '
                'Check the files, and that their disk is still there.')

    def take_unreadable(self) -> List[int]:
        """Indices of the images that could not be read since the last call, by all workers of this process."""
        indices = self.unreadable()
        self._unreadable.zero_()
        self._restored = []
        return indices

    def unreadable(self) -> List[int]:
        """The same, which still count."""
        return sorted({*self.found(), *self._restored})

    def found(self) -> List[int]:
        """Those of them that were found since this process started."""
        return self._unreadable.numpy().nonzero()[0].tolist()

    def add_unreadable(self, indices: List[int]) -> None:
        """Count images that an earlier process could not read; they may be repaired by now."""
        self._restored = [i for i in indices if i < len(self)]

    def not_named(self, indices: List[int]) -> List[int]:
        """Those that have not been named yet; they count as named from now on."""
        new = [i for i in indices if i not in self._named]
        self._named.update(new)
        return new


def count_unreadable(dataset: Any, is_training: bool, data_timeout: float = 0.) -> Any:
    """Put `ImageFiles` in the place of timm's ImageDataset, also inside an AugMixDataset; other datasets stay."""
    if isinstance(dataset, AugMixDataset):
        dataset.dataset = count_unreadable(dataset.dataset, is_training, data_timeout)
        return dataset
    if not isinstance(dataset, ImageDataset) or isinstance(dataset, ImageFiles) or dataset.load_bytes:
        return dataset
    return ImageFiles(dataset, is_training, data_timeout)


def allowed_images(limit: str, total: int) -> int:
    """Images that may be unreadable.

    Args:
        limit: Their number, or a share such as '0.1%'; where that is not 0 a small dataset is allowed 10, but not
            more than a quarter of its own, and at least one.
        total: Number of images.
    """
    if not limit.endswith('%'):
        return int(limit)
    share = float(limit[:-1]) / 100
    return max(1, math.floor(share * total + 1e-9), min(10, total // 4)) if share else 0


@dataclass(frozen=True)
class Unreadable:
    """Images that could not be read in an epoch or evaluation, by all processes.

    Attributes:
        count: Number of images.
        total: Images of the dataset.
        new: Path and reason of those that were not reported before, at most `MAX_LISTED` of each process.
        num_new: Number of those that were not reported before.
        files: Their paths, at most `MAX_LISTED`.
    """
    count: int
    total: int
    new: List[str]
    num_new: int
    files: List[str]

    def describe(self, where: str, consequence: str) -> str:
        """A sentence on their number and the new names.

        Args:
            where: Such as 'of epoch 3'; may be empty.
            consequence: What follows, such as 'others take their place'.
        """
        what = ' '.join(f'{self.count} of {self.total} images {where} cannot be read, {consequence}'.split())
        if not self.num_new:
            return f'{what} (named before)'
        more = self.num_new - min(len(self.new), MAX_SAID)
        return f'{what}: {", ".join(self.new[:MAX_SAID])}' + (f' and {more} more' if more else '')


def image_files_of(dataset: Any) -> Optional[ImageFiles]:
    """The ImageFiles inside a dataset; None if it has none, as iterable ones."""
    while dataset is not None and not isinstance(dataset, ImageFiles):
        dataset = getattr(dataset, 'dataset', None)
    return dataset


def images_of(dataset: Any) -> Optional[Dict[str, Any]]:
    """Number of images of a dataset, and a hash of their names and order; None for datasets that do not tell them."""
    files = image_files_of(dataset)
    if files is None:
        return None
    if files.names_hash is None:
        is_folder = isinstance(files.reader, ReaderImageFolder)
        paths = [path for path, _ in files.reader.samples] if is_folder else []
        start = len(str(files.reader.root)) if is_folder else 0  # the data may be moved between two runs
        text = '\n'.join(path[start:].lstrip(os.sep) for path in paths)
        files.names_hash = hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()
    return dict(count=len(files), names=files.names_hash)


def take_unreadable(dataset: Any) -> Optional[Unreadable]:
    """What could not be read since the last call. All ranks must call it together.

    Args:
        dataset: Dataset of a loader.

    Returns:
        None if the dataset does not tell it, as iterable ones.
    """
    dataset = image_files_of(dataset)
    if dataset is None:
        return None
    found = dataset.found()
    own = dataset.take_unreadable()
    new = dataset.not_named(own)
    gathered = _gather((own, found, new, _explained(dataset, new)))
    every = sorted(_union(indices for indices, _, _, _ in gathered))
    dataset.known |= _union(indices for _, indices, _, _ in gathered)
    all_new = _union(indices for _, _, indices, _ in gathered)
    dataset.not_named(list(all_new))
    names = dict(pair for _, _, _, pairs in gathered for pair in pairs)
    return Unreadable(
        count=len(every),
        total=len(dataset),
        new=[names[i] for i in sorted(names)],
        num_new=len(all_new),
        files=[printable(dataset.path(i)) for i in every[:MAX_LISTED]],
    )


def tell_found(dataset: ImageFiles, alone: bool = False) -> Dict[int, str]:
    """Let all ranks know what any of them could not read so far. All ranks must call it together.

    Args:
        dataset: The dataset.
        alone: This rank calls it alone, and learns nothing from the others.

    Returns:
        Path and reason of some, by index.
    """
    found = dataset.found()
    own = found, _explained(dataset, found[:MAX_SAID])
    gathered = [own] if alone else _gather(own)
    dataset.known |= _union(indices for indices, _ in gathered)
    return dict(sorted(pair for _, pairs in gathered for pair in pairs))


def _explained(dataset: ImageFiles, indices: List[int]) -> List[Tuple[int, str]]:
    # each process explains its own: another machine may have sound copies of the files
    return [(i, f'{printable(dataset.path(i))} ({printable(dataset.reason(i))})') for i in indices[:MAX_LISTED]]


def _gather(own: Tuple) -> List[Any]:
    """What every rank gives."""
    if not dist.is_available() or not dist.is_initialized():
        return [own]
    gathered: List[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def _union(lists: Iterable[List[int]]) -> Set[int]:
    return set().union(*lists)
