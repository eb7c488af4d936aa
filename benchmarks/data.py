"""Input pipeline: images/s per core of the loader against timm's loader, in the same run (`seresnet-timm bench data`)

Each round runs all contenders in turn over the same files: timm's loader, this package's loader with each decoder, and
as the limit the decoding alone of what the crops need. The measure is the CPU time of one process (all its threads),
from the file to the collated uint8 batch (with mixup, where a recipe has it), so that neither other programs nor the
number of cores matter. The figure of a contender is the median of its rounds, a ratio is the median of the rounds'
ratios. Normalisation and random erasing run on the device, timm's and ours, and are not measured.
"""
import math
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import measure

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.engine.values import rules_of
from seresnet_timm.errors import UsageError
from seresnet_timm.files import write_json

EXAMPLES = (
    'seresnet-timm bench data',
    'seresnet-timm bench data --data-dir ImageNet --rounds 3')
NEXT = (
    'seresnet-timm prepare ImageNet ImageNet-512   # smaller images decode faster',
    'seresnet-timm train --preset seresnet50_ascend --data-dir ImageNet-512 -b 128 --nproc auto')
GOALS = {  # ratios to timm's loader, and PSNR in dB: mean, minimum
    'train': {'simplejpeg': 1.8, 'c': 3.4},
    'eval': {'simplejpeg': 2.2, 'c': 3.7},
}
PRESET_GOALS = {'c': 2.0}
PSNR_GOALS = {'simplejpeg': (50, 31), 'c': (50, 36)}
LEVELS = {'pillow': 'Pillow, seeded', 'simplejpeg': 'A: simplejpeg', 'c': 'B: C extension'}


def main(argv: List[str]) -> None:
    """Measure, and print a table.

    Raises:
        UsageError: There are no images, or the output cannot be written.
    """
    parser = ArgumentParser(
        prog='seresnet-timm bench data',
        description="Measure images/s per core of the loader against timm's loader in the same run, on ImageNet-like "
                    'JPEGs (nine of ten about 500x375 near 100 KB, the tenth 1600x1200) or on your own images.')
    parser.rules = rules_of('bench')
    parser.examples, parser.next_steps = EXAMPLES, NEXT
    parser.add_argument('--data-dir', metavar='DIR', help='your own images: an ImageNet-style tree, its train folder')
    parser.add_argument('--images', type=int, default=200, metavar='N', help='number of images')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='number of rounds, whose median is printed')
    parser.add_argument('--preset', metavar='NAME', help='the whole pipeline of a recipe, on both sides: augmentation, '
                        'mixup, image size (`seresnet-timm recipes` lists them); without it, crop and flip')
    parser.add_argument('--img-size', type=int, metavar='N',
        help="side of the images in pixels (default: 224, with --preset the recipe's)")
    parser.add_argument('-b', '--batch-size', type=int, default=32, metavar='N', help='images per batch')
    parser.add_argument('--target', type=float, default=10400, metavar='R',
                        help='images/s for which the needed cores are computed; 8 Ascend 910B need 10400')
    parser.add_argument('--workers', type=int, default=0, metavar='N',
                        help='also compare N worker threads with N worker processes')
    parser.add_argument('--json', metavar='FILE', help='write the figures to FILE')
    args = parser.parse_args(argv)
    for name in ('images', 'rounds', 'img_size', 'batch_size'):
        if (getattr(args, name) or 1) < 1 or getattr(args, name) == 0:
            raise UsageError(f'--{name.replace("_", "-")} is at least 1, got {getattr(args, name)}.')
    measure.check_json(args.json)

    import torch
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix='seresnet_timm-') as folder:
        report = run(args, folder)
    print_report(report)
    if args.json:
        write_json(args.json, report)


# --- what is measured -------------------------------------------------------------------------------------------------

def run(args, folder: str) -> Dict[str, Any]:
    """Run all rounds.

    Returns:
        The figures, as JSON values.
    """
    from photographs import photographs, write_images
    from timm.data import create_dataset

    from seresnet_timm.data import jpeg
    if args.data_dir:
        source = args.data_dir
        _link_some(source, Path(folder), args.images)
    else:
        source = f'mosaics of {len(photographs())} photographs of scikit-learn and scikit-image'
        write_images(Path(folder) / 'train' / 'photographs', args.images)
    dataset = create_dataset('', root=folder, split='train')
    files = [Path(dataset.filename(i, absolute=True)).read_bytes() for i in range(len(dataset))]
    args.batch_size = min(args.batch_size, len(files))
    setup = loader_setup(args, folder)
    args.img_size = setup.data_config['input_size'][-1]
    decoders = jpeg.decoders() + (jpeg.PILLOW,)

    report = {
        **measure.report_head('data'), 'versions': versions(),
        'images': {'count': len(files), 'mean_bytes': round(statistics.mean(map(len, files))), 'source': source},
        'preset': args.preset, 'img_size': args.img_size, 'rounds': args.rounds,
        'target': args.target, 'modes': {}, 'psnr': {}, 'workers': {},
    }
    for mode in ('train', 'eval'):
        contenders: Dict[str, Callable[[int], None]] = {'timm': _loader(setup, dataset, mode, None)}
        for decoder in decoders:
            contenders[decoder.name] = _loader(setup, dataset, mode, decoder)
        if not args.preset:
            contenders['limit'] = _bare_decode(args, files, mode)
        report['modes'][mode] = rates(contenders, len(files), args.rounds)
    if not args.preset:
        report['psnr'] = {d.name: quality(files, d, args.img_size) for d in decoders if d.name != 'pillow'}
    if args.workers:
        report['workers'] = compare_workers(args, setup, dataset)
    return report


def _link_some(root: str, folder: Path, count: int) -> None:
    """Link images of a tree, evenly spaced, into a folder, so that all contenders read the same."""
    from timm.data import create_dataset
    if not Path(root).is_dir():
        raise UsageError(f'Dataset {root} is not a folder: --data-dir takes an ImageNet-style tree.')
    try:
        dataset = create_dataset('', root=root, split='train')
    except RuntimeError as e:
        raise UsageError(f'No images in {root}: {e}')
    for i in range(0, len(dataset), max(1, len(dataset) // count))[:count]:
        path = Path(dataset.filename(i, absolute=True)).absolute()
        link = folder / 'train' / path.parent.name / f'{i:08d}{path.suffix}'
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)


def loader_setup(args, folder: str) -> Any:
    """What the loaders of `seresnet-timm train` have in common on a CPU: with a preset, or with crop and flip only."""
    import torch
    from timm.data import resolve_data_config

    from seresnet_timm.data.fast_jpeg import choose_decoder
    from seresnet_timm.data.loaders import LoaderSetup
    recipe = dict(preset=args.preset, no_prefetcher=False) if args.preset else dict(
        color_jitter=0., train_interpolation='bilinear', interpolation='bilinear', crop_pct=0.875)
    settings = measure.settings_of('train', dict(
        data_dir=folder, device='cpu', img_size=args.img_size or (None if args.preset else 224),
        batch_size=args.batch_size, workers=args.workers, seed=0, **recipe))
    flags = settings.namespace()
    flags.distributed, flags.rank, flags.world_size = False, 0, 1
    flags.train_img_sizes = None  # a recipe of several sizes is measured at the one of its evaluation
    decoder, _ = choose_decoder(flags, settings.fast_jpeg)
    return LoaderSetup(flags, resolve_data_config(vars(flags)), torch.device(settings.device), decoder=decoder)


def _create(setup, mode: str, decoder, num_workers: int = 0, dataset=None):
    """The loader as the bundled scripts make it, with one of the decoders; timm's if there is none.

    Args:
        setup: As from `loader_setup`.
        mode: 'train' or 'eval'.
        decoder: Decoder; None for timm's loader.
        num_workers: Number of loader workers.
        dataset: The images; it gets the transforms in a copy.
    """
    import copy
    from argparse import Namespace

    from seresnet_timm.data import loaders
    from seresnet_timm.data.trivial_augment import create_loader  # timm's, and torchvision's TrivialAugment
    args, config, dataset = Namespace(**vars(setup.args)), setup.data_config, copy.copy(dataset)
    args.workers = num_workers
    setup = replace(setup, args=args, decoder=decoder)
    if decoder is None:
        augmentation = dict(interpolation=config['interpolation'], crop_pct=config['crop_pct'])
        if mode == 'train':
            augmentation = dict(collate_fn=loaders.mixup_of(args), **loaders.augmentation_kwargs(setup))
        return create_loader(
            dataset, batch_size=args.batch_size, is_training=mode == 'train', num_workers=num_workers, **augmentation,
            **setup.common_kwargs())
    if mode == 'train':
        return loaders.train_loader(setup, dataset)[0]
    return loaders.eval_loader(setup, 'val', args.batch_size, dataset=dataset, crop_pct=config['crop_pct'])


def _loader(setup, dataset, mode: str, decoder) -> Callable[[int], None]:
    """Function of the round that loads every image once, in batches, as a loader without workers does."""
    from seresnet_timm.data.loading import inner_loader
    loader = inner_loader(_create(setup, mode, decoder, dataset=dataset))
    indices = list(range(len(dataset)))
    size = setup.args.batch_size
    batches = [indices[i:i + size] for i in range(0, len(indices), size)]
    source, collate = loader.dataset, loader.collate_fn
    # what torch's loader does with a batch of indices
    fetch = getattr(source, '__getitems__', None) or (lambda batch: [source[i] for i in batch])

    def run(round_number: int) -> None:
        random.seed(round_number)
        if hasattr(source, 'set_epoch'):
            source.set_epoch(round_number)
        for batch in batches:
            collate(fetch(batch))
    return run


def _crops(files: List[bytes], mode: str, img_size: int, round_number: int) -> List[Tuple[bytes, Any]]:
    from timm.data import create_transform

    from seresnet_timm.data.fast_jpeg import Pipeline
    from seresnet_timm.data.images import read_image
    pipeline = Pipeline(create_transform(
        img_size, is_training=mode == 'train', color_jitter=0., interpolation='bilinear', crop_pct=0.875,
        use_prefetcher=True))
    chance = random.Random(round_number)
    drawn = [(data, pipeline.draw(*read_image(data, None).size, chance)) for data in files]
    return [(data, d[0]) for data, d in drawn if d is not None]


def _bare_decode(args, files: List[bytes], mode: str) -> Callable[[int], None]:
    """Decode only the crops' regions at the DCT scale that suffices; without the C extension, whole images."""
    from seresnet_timm.data import jpeg
    from seresnet_timm.data.images import read_image
    crops = {}

    def prepare(round_number: int) -> None:
        crops[round_number] = _crops(files, mode, args.img_size, round_number)

    def run(round_number: int) -> None:
        for data, crop in crops[round_number]:
            if jpeg._jpeg is not None:
                jpeg._jpeg.decode(data, None, crop.box, crop.size, crop.window)
            elif jpeg.simplejpeg is not None:
                jpeg.simplejpeg.decode_jpeg(data)
            else:
                read_image(data, 'RGB')
    run.prepare = prepare
    return run


def rates(contenders: Dict[str, Callable[[int], None]], count: int, rounds: int) -> Dict[str, Dict[str, Any]]:
    """Images per second of CPU time, and ratios to timm's loader, after a round that is not measured."""
    seconds: Dict[str, List[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, run in contenders.items():
            if hasattr(run, 'prepare'):
                run.prepare(round_number)
            start = time.process_time()
            run(round_number)
            if round_number:
                seconds[name].append(time.process_time() - start)
    result = {}
    for name, times in seconds.items():
        result[name] = {
            'images_per_core_second': round(count / statistics.median(times), 1),
            'ratio': round(statistics.median(t / s for t, s in zip(seconds['timm'], times)), 3),
            'ratios': [round(t / s, 3) for t, s in zip(seconds['timm'], times)],
        }
    return result


def quality(files: List[bytes], decoder, img_size: int) -> Dict[str, float]:
    """PSNR of training crops against Pillow's antialiased bilinear resize of the whole decoded image, in dB."""
    import numpy as np
    from photographs import psnr

    from seresnet_timm.data import jpeg
    from seresnet_timm.data.images import read_image
    values = []
    for data, crop in _crops(files, 'train', img_size, 0):
        decoded = decoder.decode(data, crop, False)
        if decoded is not None:
            values.append(psnr(decoded, np.asarray(jpeg.crop_and_resize(read_image(data, 'RGB'), crop))))
    if not values:
        return {'images': 0}
    return {'images': len(values), 'mean': round(statistics.mean(values), 1), 'min': round(min(values), 1)}


def compare_workers(args, setup, dataset) -> Dict[str, Dict[str, float]]:
    """CPU (all processes) and wall milliseconds per image of the training loader, with threads and with processes."""
    from seresnet_timm.data import jpeg, loading
    kinds = {'timm, processes': (None, False)}
    for decoder in jpeg.decoders():
        kinds[f'{decoder.name}, processes'] = (decoder, False)
        if decoder.releases_gil:
            kinds[f'{decoder.name}, threads'] = (decoder, True)
    figures: Dict[str, List[Tuple[float, float]]] = {}
    for _ in range(args.rounds):
        for name, (decoder, threads) in kinds.items():
            loader = loading.inner_loader(_create(setup, 'train', decoder, args.workers, dataset))
            if isinstance(loader, loading.ThreadedLoader) and not threads:
                loader = loader._loader
            images = 0
            for epoch in range(4):
                if epoch == 1:  # the first one starts the workers
                    images, cpu, wall = 0, _cpu_of(loader), time.perf_counter()
                loading.set_epoch(loader, epoch)
                images += sum(len(target) for _, target in loader)
            figures.setdefault(name, []).append(
                (1e3 * (_cpu_of(loader) - cpu) / images, 1e3 * (time.perf_counter() - wall) / images))
            del loader
    return {name: dict(zip(('cpu_ms', 'wall_ms'), (round(statistics.median(c), 3) for c in zip(*values))))
            for name, values in figures.items()}


def _cpu_of(loader) -> float:
    """CPU seconds of this process and of a loader's worker processes."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    total = usage.ru_utime + usage.ru_stime
    for worker in getattr(getattr(loader, '_iterator', None), '_workers', []):
        fields = Path(f'/proc/{worker.pid}/stat').read_text().rsplit(')', 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    return total


# --- report -----------------------------------------------------------------------------------------------------------

def versions() -> Dict[str, str]:
    import PIL

    from seresnet_timm.data import jpeg
    found = {**measure.versions(), 'pillow': PIL.__version__}
    if jpeg.simplejpeg is not None:
        found['simplejpeg'] = jpeg.simplejpeg.__version__
    if jpeg._jpeg is not None:
        found['libjpeg_turbo'] = jpeg._jpeg.libjpeg_turbo
    return found


def print_report(report: Dict[str, Any], file=None) -> None:
    file = file or sys.stdout
    images, target = report['images'], report['target']
    print(f'{images["count"]} JPEGs, {images["mean_bytes"] / 1024:.0f} KB on average ({images["source"]}); median of '
          f'{report["rounds"]} rounds of each, in turn', file=file)
    print(f'{report["machine"]["cpu"]}, {report["machine"]["cores"]} cores; '
          + ', '.join(f'{k} {v}' for k, v in report['versions'].items()), file=file)
    for mode, rows in report['modes'].items():
        title = f'training ({report["preset"] or "crop, flip"})' if mode == 'train' else (
            'evaluation (resize, centre crop)')
        print(f'\n{title + " at " + str(report["img_size"]):<40}{"images/s/core":>14}{"x timm":>8}{"goal":>6}'
              f'{f"cores for {target:g}/s":>20}', file=file)
        for name, row in rows.items():
            label = {'timm': "timm's loader", 'limit': 'limit: decoding alone'}.get(name) or LEVELS[name]
            goal = (PRESET_GOALS if report['preset'] and mode == 'train' else GOALS[mode]).get(name)
            print(f'  {label:<38}{row["images_per_core_second"]:>14.1f}{row["ratio"]:>8.2f}'
                  f'{goal or "":>6}{math.ceil(target / row["images_per_core_second"]):>20}', file=file)
    if report['psnr']:
        print('\nagainst Pillow, bilinear with antialias: PSNR in dB', file=file)
    for name, row in report['psnr'].items():
        if row['images']:
            mean, least = PSNR_GOALS[name]
            print(f'  {LEVELS[name]:<38}mean {row["mean"]} (goal {mean}), minimum {row["min"]} (goal {least}), '
                  f'n = {row["images"]}', file=file)
    if report['workers']:
        print('\nworkers, training: ms per image', file=file)
        for name, row in report['workers'].items():
            print(f'  {name:<38}CPU {row["cpu_ms"]:.3f}, wall {row["wall_ms"]:.3f}', file=file)


if __name__ == '__main__':
    from seresnet_timm.cli.main import main as seresnet_timm
    seresnet_timm(['bench', 'data', *sys.argv[1:]])
