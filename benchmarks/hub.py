"""Push and pull of a 112 MB model against the bare huggingface_hub client, on a Hub on the loopback interface

    python benchmarks/hub.py [--n 7] [--mbit 1000]

Each operation runs in a forked process of its own, ours and the client's by turns; libraries are imported before.
Both disable progress bars. The bare client gets config.json and card ready, and of a checkpoint does what one has to do
without this package: torch.load, save_file, create_commit. Ours also makes those two, and verifies what has arrived.
Printed: medians of wall and CPU seconds of the process and of their ratios pair by pair, for wall also the ratio of the
best of each (what is left where other programs disturb the medians), the most
anonymous memory, and the most disk besides the source and what is kept, in copies of the weights.
"""
import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def disk(folders) -> int:
    """Bytes on disk below folders; files that go away meanwhile count as none."""
    total = 0
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(parent, name)).st_blocks * 512
                except OSError:
                    pass
    return total


def measure(operation, folders) -> dict:
    """Run an operation in a forked process; its seconds, memory and disk."""
    reader, writer = os.pipe()
    before = disk(folders)
    pid = os.fork()
    if pid == 0:
        peak, done = [status('RssAnon')], threading.Event()
        start_memory = peak[0]

        def watch() -> None:
            while not done.wait(0.005):
                peak[0] = max(peak[0], status('RssAnon'))
        threading.Thread(target=watch, daemon=True).start()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            operation()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            done.set()
            os.write(writer, json.dumps(dict(wall=wall, cpu=cpu, memory=peak[0] - start_memory)).encode())
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    peak = 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        peak = max(peak, disk(folders) - before)
        time.sleep(0.01)
    result = json.loads(os.read(reader, 1000))
    os.close(reader)
    return dict(result, disk=peak, kept=disk(folders) - before)


def measure_pairs(
        count: int, operations: Sequence[Callable[[], Any]], prepare: Callable[[], Any], tmp: Path,
        folders: Sequence[Path]) -> List[Dict[str, Dict[str, float]]]:
    """Measure ours and the bare client in turn; the first pair warms up and is left out."""
    pairs = []
    for i in range(count + 1):
        pair = {}
        for which, operation in list(zip(('ours', 'bare'), operations))[::1 if i % 2 else -1]:
            prepare()
            tmp.mkdir(exist_ok=True)
            pair[which] = measure(operation, folders)
        pairs.append(pair)
    return pairs[1:]


def row_of(label: str, pairs: List[Dict[str, Dict[str, float]]], size: int) -> str:
    """A row of the table: medians, ratios, and memory and disk in sizes of the model."""
    row = f'{label:<22}'
    for key in ('wall', 'cpu'):
        a, b = ([p[w][key] for p in pairs] for w in ('ours', 'bare'))
        ratio = statistics.median(x / y for x, y in zip(a, b))
        row += f'{statistics.median(a):>8.3f}{statistics.median(b):>8.3f}{ratio:>7.2f}'
        row += f'{min(a) / min(b):>7.2f}' if key == 'wall' else ''
    for w in ('ours', 'bare'):
        row += f'{max(p[w]["memory"] for p in pairs) / size:>{9 if w == "ours" else 7}.2f}'
    for w in ('ours', 'bare'):
        row += f'{max(p[w]["disk"] for p in pairs) / size:>7.2f}'
    return row


def start_server(work: Path, mbit: Optional[str]) -> subprocess.Popen:
    """Start a Hub on the loopback interface, and name it to the clients of this process."""
    command = [sys.executable, str(ROOT / 'tests' / 'hub_server.py'), str(work / 'blobs')]
    server = subprocess.Popen(command + ([mbit] if mbit else []), stdout=subprocess.PIPE, text=True)
    os.environ.update(
        HF_ENDPOINT=server.stdout.readline().strip(), HF_TOKEN='hf_tokenofme', HF_HUB_DISABLE_XET='1',
        HF_HUB_DISABLE_PROGRESS_BARS='1', OMP_NUM_THREADS='1')
    return server


def write_files(checkpoint: Path, ready: Path) -> None:
    """Write a checkpoint, and the files that a push makes of it."""
    import timm
    import torch

    from seresnet_timm import hub
    torch.save({'state_dict': timm.create_model('seresnet50_ascend').state_dict(), 'arch': 'seresnet50_ascend'},
               checkpoint)
    ready.mkdir()
    with open(os.devnull, 'w') as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        hub.push(checkpoint, 'me/model', license='mit')
        pulled = hub.pull('me/model')
    for name in pulled.sha256:
        shutil.copyfile(pulled.folder / name, ready / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=7, help='measurements of each')
    parser.add_argument('--mbit', help='speed of the link, megabits a second; default: as fast as the loopback goes')
    args = parser.parse_args()

    work = Path(tempfile.mkdtemp(prefix='hub-benchmark-'))
    home, tmp, out = work / 'home', work / 'tmp', work / 'out'
    tmp.mkdir()
    server = start_server(work, args.mbit)
    os.environ.update(HF_HOME=str(home), TMPDIR=str(tmp))
    tempfile.tempdir = None
    import huggingface_hub
    import torch
    from safetensors.torch import save_file

    from seresnet_timm import hub
    from seresnet_timm.hub import pull
    torch.set_num_threads(1)

    checkpoint, ready = work / 'model.pth.tar', work / 'ready'
    write_files(checkpoint, ready)
    size = (ready / 'model.safetensors').stat().st_size
    print(f'{size / 1e6:.1f} MB, huggingface_hub {huggingface_hub.__version__}, n={args.n}, {os.cpu_count()} cores, '
          f'link {args.mbit + " Mbit/s" if args.mbit else "unlimited"}')

    count = iter(range(10_000))

    def bare_push() -> None:
        api = huggingface_hub.HfApi()
        api.create_repo(name := f'me/m{time.time_ns()}')
        api.upload_folder(repo_id=name, folder_path=str(ready))

    def forget(names) -> None:
        for name in names:
            shutil.rmtree(work / name, ignore_errors=True)

    def forget_blobs() -> None:
        for blob in (work / 'blobs').iterdir():
            blob.unlink()

    def name() -> str:
        return f'me/n{time.time_ns()}-{next(count)}'

    def convert_and_push() -> None:
        save_file(torch.load(checkpoint, mmap=True, weights_only=True)['state_dict'], tmp / 'model.safetensors')
        api = huggingface_hub.HfApi()
        api.create_repo(name := f'me/m{time.time_ns()}')
        files = [ready / 'config.json', ready / 'README.md', tmp / 'model.safetensors']
        api.create_commit(
            name, [huggingface_hub.CommitOperationAdd(f.name, str(f)) for f in files], commit_message='Add')
        (tmp / 'model.safetensors').unlink()

    cases = {
        'push of a checkpoint': (lambda: hub.push(checkpoint, name(), license='mit'), convert_and_push, forget_blobs),
        'push of safetensors': (
            lambda: hub.push(ready / 'model.safetensors', name(), license='mit', model='seresnet50_ascend'),
            bare_push, forget_blobs),
        'pull': (
            lambda: pull('me/model'), lambda: huggingface_hub.snapshot_download('me/model'),
            lambda: forget(['home'])),
        'pull to a folder': (
            lambda: pull('me/model', out),
            lambda: huggingface_hub.snapshot_download('me/model', local_dir=str(out)), lambda: forget(['home', 'out'])),
    }
    blobs = {p.name: p.read_bytes() for p in (work / 'blobs').iterdir()}
    folders = (home, tmp, out)
    print(f'{"":<22}{"wall s":>8}{"bare":>8}{"ratio":>7}{"best":>7}{"CPU s":>8}{"bare":>8}{"ratio":>7}'
          f'{"memory":>9}{"bare":>7}{"disk":>7}{"bare":>7}')
    for label, (ours, bare, prepare) in cases.items():
        if label.startswith('pull'):
            for blob, data in blobs.items():
                (work / 'blobs' / blob).write_bytes(data)
        pairs = measure_pairs(args.n, (ours, bare), prepare, tmp, folders)
        print(row_of(label, pairs, size), flush=True)
    server.terminate()
    shutil.rmtree(work)


if __name__ == '__main__':
    main()
