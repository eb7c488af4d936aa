"""How much faster training reads a prepared copy: timm's loader on both trees in turn, CPU time of one process.

    python benchmarks/prepare.py                     # 480 images in ImageNet's sizes, made from two photographs
    python benchmarks/prepare.py --src ImageNet      # a sample of your own tree

Prints images/s per core on the source and on each copy, and the ratio: the median over the rounds. Each round reads
every tree once, one after the other. Loading is decoding, random crop to 224, flip and collation, as for
the ModelZoo's recipe, without worker processes; everything is in the page cache.
"""
import argparse
import contextlib
import io
import json
import os
import platform
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List

os.environ['OMP_NUM_THREADS'] = '1'

import PIL
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader

from seresnet_timm.datasets.prepare import prepare

# share, size and bytes of ImageNet's typical and large images
KINDS = ((0.9, (500, 375), 100_000), (0.1, (1600, 1200), 530_000))


def write_tree(root: Path, count: int) -> None:
    """JPEGs of ImageNet's sizes in pixels and bytes: random parts of two photographs, the quality chosen to fit."""
    from sklearn.datasets import load_sample_images
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    rng = random.Random(0)
    (root / 'train' / 'a').mkdir(parents=True)
    for i in range(count):
        _, size, num_bytes = KINDS[0] if i % 10 < round(10 * KINDS[0][0]) else KINDS[1]
        photo, side = rng.choice(photos), rng.uniform(0.6, 1)
        width, height = int(photo.width * side), int(photo.height * side)
        left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
        photo = photo.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
        low, high = 50, 100
        while high - low > 1:
            quality = (low + high) // 2
            buffer = io.BytesIO()
            photo.save(buffer, 'JPEG', quality=quality)
            low, high = (quality, high) if buffer.tell() < num_bytes else (low, quality)
        photo.save(root / 'train' / 'a' / f'{i:04d}.JPEG', quality=low)


def sample_tree(source: Path, root: Path, count: int) -> None:
    """Copy random training images of a tree."""
    folder = next((source / n for n in ('train', 'training') if (source / n).is_dir()), source)
    files = [p for p in sorted(folder.rglob('*')) if p.suffix.lower() in ('.jpg', '.jpeg', '.png')]
    (root / 'train' / 'a').mkdir(parents=True)
    for i, path in enumerate(random.Random(0).sample(files, min(count, len(files)))):
        shutil.copy(path, root / 'train' / 'a' / f'{i:04d}{path.suffix}')


def make_loader(root: Path, is_training: bool):
    """timm's loader as train.py or validate.py makes it, in this process."""
    return create_loader(
        create_dataset('', root=str(root), split='train', is_training=is_training), input_size=(3, 224, 224),
        batch_size=32, is_training=is_training, color_jitter=None, interpolation='bilinear', crop_pct=0.875,
        num_workers=0, use_prefetcher=True, device=torch.device('cpu'), persistent_workers=False)


def cpu_seconds_per_image(loader) -> float:
    count, start = 0, time.process_time()
    for batch, _ in loader:
        count += len(batch)
    return (time.process_time() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--src', type=Path, help='tree to take images from')
    parser.add_argument('--images', type=int, default=480)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--max-side', type=int, nargs='+', default=[512, 448, 400, 256])
    parser.add_argument('--quality', type=int, default=95)
    parser.add_argument('--json', type=Path, help='write the figures there too')
    args = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as tmp:
        trees = {'source': Path(tmp) / 'source'}
        if args.src:
            sample_tree(args.src, trees['source'], args.images)
        else:
            write_tree(trees['source'], args.images)
        making: Dict[str, float] = {}
        for side in args.max_side:
            trees[f'max-side {side}'] = Path(tmp) / str(side)
            before = resource.getrusage(resource.RUSAGE_SELF)
            with contextlib.redirect_stdout(sys.stderr):
                prepare(str(trees['source']), str(trees[f'max-side {side}']), side, args.quality, workers=1)
            after = resource.getrusage(resource.RUSAGE_SELF)
            making[f'max-side {side}'] = args.images / (
                after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        result: Dict[str, Dict[str, float]] = {}
        for what in ('training', 'evaluation'):
            loaders = {name: make_loader(root, what == 'training') for name, root in trees.items()}
            times: Dict[str, List[float]] = {name: [] for name in trees}
            for loader in loaders.values():
                cpu_seconds_per_image(loader)  # page cache, and the libraries' first use
            for _ in range(args.rounds):
                for name, loader in loaders.items():
                    times[name].append(cpu_seconds_per_image(loader))
            for name in trees:
                ratios = [a / b for a, b in zip(times['source'], times[name])]
                result.setdefault(name, {'MB': sum(f.stat().st_size for f in trees[name].rglob('*')) / 1e6}).update({
                    f'{what} images/s/core': 1 / statistics.median(times[name]),
                    f'{what} ratio': statistics.median(ratios), f'{what} min': min(ratios), f'{what} max': max(ratios)})

    versions = {'python': platform.python_version(), 'torch': torch.__version__, 'timm': timm.__version__,
                'pillow': PIL.__version__}
    print(f'{args.images} images, quality {args.quality}, {args.rounds} rounds, one process of {os.cpu_count()} cores, '
          + ', '.join(f'{k} {v}' for k, v in versions.items()))
    print('| tree | MB | training images/s/core | x source (min-max) | evaluation images/s/core | x source | '
          'made at images/s/core |\n|---|---|---|---|---|---|---|')
    for name, r in result.items():
        made = f'{making[name]:.0f}' if name in making else '-'
        print(f'| {name} | {r["MB"]:.1f} | {r["training images/s/core"]:.0f} | {r["training ratio"]:.2f} '
              f'({r["training min"]:.2f}-{r["training max"]:.2f}) | {r["evaluation images/s/core"]:.0f} | '
              f'{r["evaluation ratio"]:.2f} | {made} |')
    if args.json:
        figures = {'versions': versions, 'images': args.images, 'quality': args.quality, 'trees': result}
        args.json.write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
    main()
