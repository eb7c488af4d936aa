"""What a file is that is no checkpoint: pointers, web pages, archives, other formats"""
import re
import tarfile
import zipfile
from typing import List, Optional

from seresnet_timm.errors import first_names, printable
from seresnet_timm.files import from_json

HEAD = 4096
MAX_NAMED = 3
# first bytes, and what the file is
MAGIC = (
    (b'version https://git-lfs.github.com', 'a Git LFS pointer, not the file that it stands for: run `git lfs pull` in '
     'its repository, or download the file itself'),
    (b'/annex/objects/', 'a git-annex pointer, not the file that it stands for: run `git annex get` in its repository'),
    (b'\x1f\x8b', 'compressed with gzip: unpack it first (gunzip)'),
    (b'BZh', 'compressed with bzip2: unpack it first (bunzip2)'),
    (b'\xfd7zXZ\0', 'compressed with xz: unpack it first (unxz)'),
    (b'\x28\xb5\x2f\xfd', 'compressed with zstd: unpack it first (unzstd)'),
    (b'7z\xbc\xaf\x27\x1c', 'a 7z archive: unpack it first'),
    (b'Rar!', 'a RAR archive: unpack it first'),
    (b'\x89HDF\r\n', 'an HDF5 file, as Keras and TensorFlow write it: save the state_dict of a PyTorch model instead'),
    (b'\x93NUMPY', 'a NumPy array (.npy), not the weights of a model'),
    (b'\x89PNG', 'a picture (PNG), not a checkpoint'),
    (b'\xff\xd8\xff', 'a picture (JPEG), not a checkpoint'),
    (b'%PDF', 'a PDF document, not a checkpoint'),
    (b'\x7fELF', 'a program, not a checkpoint'),
    (b'GGUF', 'a GGUF file of llama.cpp, not the state_dict of a PyTorch model'),
    (b'\x08\x01\x12', 'a TensorFlow SavedModel, not the state_dict of a PyTorch model'),
)
# likewise, where more than the first bytes tells it
PATTERNS = (
    (rb'(?s).{4}TFL3', 'a TensorFlow Lite model, not the state_dict of a PyTorch model'),
    (rb'(?s)\x08[\x03-\x14][\x12:"]', 'an ONNX model: name the checkpoint that it was exported from'),
    (rb'(?s)\x0a[\x80-\xff]{0,4}[\0-\x7f]\x0a[\x01-\x7f][\w./-]+[\x12\x1a"]', 'a MindSpore checkpoint: write its '
     'values as a state_dict of PyTorch, whose names may be others: torch.save({k: torch.tensor(v.asnumpy()) for k, v '
     'in mindspore.load_checkpoint(FILE).items()}, OUT)'),
)
PADDLE = ('.pdparams', '.pdopt', '.pdiparams', '.pdmodel')
SHARD = re.compile(r'-(\d{5})-of-(\d{5})\.(safetensors|bin)$')
JOIN = ('join them first: safetensors.torch.save_file({k: v for f in FILES for k, v in '
        'safetensors.torch.load_file(f).items()}, OUT)')
PAGES = (b'<!doctype', b'<html', b'<head', b'<?xml', b'<!--', b'<body')


def other_kind(path: str) -> Optional[str]:
    """What a file is, with a remedy, as the end of a sentence; None if it may be a checkpoint."""
    with open(path, 'rb') as f:
        head = f.read(HEAD)
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    for pattern, kind in PATTERNS:
        if re.match(pattern, head):
            return kind
    if path.endswith(PADDLE):
        return 'a file of PaddlePaddle, not the state_dict of a PyTorch model'
    shard = SHARD.search(path)
    if shard and int(shard[2]) > 1:
        return f'part {int(shard[1])} of {int(shard[2])} of a checkpoint in several files: {JOIN}'
    if path.endswith('.json') and b'"weight_map"' in head:
        return f'the list of a checkpoint in several files: {JOIN}'
    if head and not head.strip(b'\0'):
        return 'only zeros at its beginning, not a checkpoint: copy or download it again'
    if head.startswith(b'PK'):
        return _kind_of_zip(path)
    if head.lstrip(b'\xef\xbb\xbf \t\r\n').lower().startswith(PAGES):
        return 'a web page (HTML or XML), not a checkpoint: a login or error page was saved. Download the file itself'
    if head[257:262] == b'ustar' or path.endswith('.tar') and tarfile.is_tarfile(path):
        return _kind_of_tar(path)
    return _kind_of_text(head)


def _kind_of_zip(path: str) -> Optional[str]:
    try:
        with zipfile.ZipFile(path) as z:
            names = z.namelist()
    except Exception:  # cut off or damaged: its reader says so
        return None
    ends = {n.partition('/')[2] for n in names}
    if 'constants.pkl' in ends:
        return ('a TorchScript program, which only running it would load: save the state_dict of the model instead: '
                'torch.save(torch.jit.load(FILE).state_dict(), OUT)')
    if any('exported_program' in n or n.endswith('archive_format') for n in names):
        return 'a torch.export program: name the checkpoint that it was made from'
    if any(n == 'data.pkl' or n.endswith('/data.pkl') for n in names):
        return None
    if names and all(n.endswith('.npy') for n in names):
        return 'a NumPy archive (.npz), not the state_dict of a PyTorch model'
    return (f'a zip archive of other files ({printable(first_names(names, MAX_NAMED)) or "none"}): unpack it and name '
            'the checkpoint in it')


def _kind_of_tar(path: str) -> Optional[str]:
    try:
        with tarfile.open(path) as t:
            names: List[str] = [m.name for m in t.getmembers()]
    except (tarfile.TarError, OSError, EOFError):
        return None
    if {'storages', 'tensors', 'pickle'} <= set(names):
        return ('in the tar format of torch before 0.2, which only running code from the file would load: load it with '
                'that torch, and save its state_dict again')
    return (f'a tar archive of other files ({printable(first_names(names, MAX_NAMED)) or "none"}): unpack it and name '
            'the checkpoint in it')


def _kind_of_text(head: bytes) -> Optional[str]:
    if not re.search(rb'\s|^[{\[]', head) or re.search(rb'[\x00-\x08\x0e-\x1f]', head):
        return None
    try:
        text = head.decode('utf-8')
    except UnicodeDecodeError as e:
        if e.start < len(head) - 4:  # else a character that the end of the head cuts
            return None
        text = head[:e.start].decode('utf-8')
    if not text.strip():
        return None
    begins = printable(text.strip().splitlines()[0][:60])
    try:
        from_json(text)
        return f'JSON text, not a checkpoint; it begins with {begins}'
    except ValueError:
        return f'a text file, not a checkpoint; it begins with {begins}'
