"""Files that appear whole or not at all."""
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Union


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[str]:
    """Temporary path beside `path` to write to; becomes `path` when the block ends without an error.

    The content is on disk (fsync) before the name is: after a crash `path` holds the old content or the new.
    """
    path = Path(path)
    fd, tmp = tempfile.mkstemp(prefix=f'.{path.name}.', suffix=path.suffix, dir=path.parent)
    os.close(fd)
    try:
        yield tmp
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(tmp, 0o666 & ~umask)  # mkstemp's 0600 would hide the result from other users
        fsync(tmp)
        os.replace(tmp, path)
    except BaseException:
        if os.path.exists(tmp):
            os.unlink(tmp)
        raise
    fsync(path.parent)


def fsync(path: Union[str, Path]) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Union[str, Path], value: Any) -> None:
    with atomic_path(path) as tmp:
        with open(tmp, 'w') as f:
            json.dump(value, f, indent=2)
            f.write('\n')
