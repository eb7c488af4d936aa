"""The end of a training of whose images too many cannot be read: see `data.image_files`"""
from typing import Any, Optional

from seresnet_timm.data.image_files import MAX_SAID, allowed_images, image_files_of, tell_found
from seresnet_timm.errors import RunError, printable, shell_line
from seresnet_timm.runs.folder import resume_hint
from seresnet_timm.runs.settings import RunSettings


class BadImages:
    """Counts the training images that cannot be read, each once in the run, by all ranks.

    Args:
        dataset: Dataset of the training loader; nothing is counted if it does not tell.
        settings: Settings of the run.
    """

    def __init__(self, dataset: Any, settings: RunSettings):
        self._files, self._settings = image_files_of(dataset), settings
        self.allowed = 0 if self._files is None else allowed_images(settings.max_bad_images, len(self._files))

    def new(self) -> int:
        """Number of those that this rank has found, and the others do not know of yet."""
        return 0 if self._files is None else len(set(self._files.found()) - self._files.known)

    def check_alone(self, record: Optional[Any] = None, epoch: Optional[int] = None) -> None:
        """`check` of what this rank has found, when the others do not call it."""
        self.check(self.new(), record, epoch, alone=True)

    def check(
            self,
            new: float,
            record: Optional[Any] = None,
            epoch: Optional[int] = None,
            alone: bool = False,
    ) -> None:
        """End the run if there are too many. All ranks must call it together.

        Args:
            new: Sum of `new` over the ranks. An image that two of them found counts twice in it.
            record: The run's record, on the rank that writes it.
            epoch: Number of the epoch.
            alone: This rank calls it alone.

        Raises:
            RunError: There are too many.
        """
        files = self._files
        if files is None or len(files.known) + round(new) <= self.allowed:
            return
        names = list(tell_found(files, alone).values()) if round(new) else []
        count, total = len(files.known), len(files)
        if count <= self.allowed:
            return
        names = names or [printable(files.path(i)) for i in sorted(files.known)]
        more = count - min(len(names), MAX_SAID)
        listed = ', '.join(names[:MAX_SAID]) + (f' and {more} more' if more else '')
        folder = shell_line([self._settings.args.get('data_dir') or 'DIR'])
        text = (f'{count} of {total} training images cannot be read so far ({100 * count / total:.2g} %), and '
                f'--max-bad-images {self._settings.max_bad_images} allows {self.allowed}: {listed}. Repair or remove '
                f'them (`seresnet-timm check-data {folder}` lists all), or allow more with --max-bad-images.')
        if record is not None:
            record.add_fault('bad_images', epoch, text)
        raise RunError(text + resume_hint(self._settings))
