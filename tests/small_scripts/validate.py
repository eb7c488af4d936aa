"""An evaluation script in the manner of timm's, as small as the launcher's changes allow; see train.py beside it."""
import argparse
import glob
import json
import os
from collections import OrderedDict
from contextlib import suppress

import torch
import torch.nn as nn
from timm import utils
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model, load_checkpoint
from timm.utils import AverageMeter, ParseKwargs, accuracy, setup_default_logging

parser = argparse.ArgumentParser()
for flag, default in {
        'data-dir': None, 'dataset': '', 'class-map': '', 'split': 'validation', 'model': 'dpn92', 'checkpoint': '',
        'gp': None, 'device': 'cuda', 'amp-dtype': 'float16', 'model-dtype': None, 'interpolation': '',
        'results-file': '', 'results-format': 'csv', 'real-labels': '', 'metrics-avg': None}.items():
    parser.add_argument('--' + flag, default=default)
for flag, default in {'num-classes': None, 'img-size': None, 'in-chans': None, 'log-freq': 10}.items():
    parser.add_argument('--' + flag, type=int, default=default)
parser.add_argument('-b', '--batch-size', type=int, default=256)
parser.add_argument('-j', '--workers', type=int, default=4)
parser.add_argument('--crop-pct', type=float, default=None)
parser.add_argument('--input-size', type=int, nargs=3, default=None)
parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs)
for flag in ('amp', 'use-ema', 'pretrained', 'pin-mem'):
    parser.add_argument('--' + flag, action='store_true')


def validate(args):
    device = torch.device(args.device)
    amp_autocast = suppress
    model_dtype = getattr(torch, args.model_dtype) if args.model_dtype else None
    model = create_model(args.model, num_classes=args.num_classes, **args.model_kwargs)
    if args.checkpoint:
        load_checkpoint(model, args.checkpoint, args.use_ema)
    data_config = resolve_data_config(vars(args), model=model, use_test_size=True)
    model = model.to(device=device, dtype=model_dtype)
    criterion = nn.CrossEntropyLoss()
    dataset = create_dataset('', root=args.data_dir, split=args.split)
    loader = create_loader(
        dataset, input_size=data_config['input_size'], batch_size=args.batch_size, num_workers=args.workers,
        crop_pct=data_config['crop_pct'], interpolation=data_config['interpolation'], mean=data_config['mean'],
        std=data_config['std'], device=device, pin_memory=args.pin_mem)
    losses = AverageMeter()
    top1 = AverageMeter()
    top5 = AverageMeter()
    model.eval()
    with torch.inference_mode(), amp_autocast():
        for input, target in loader:
            output = model(input)
            loss = criterion(output, target)
            batch_size = output.shape[0]
            acc1, acc5 = accuracy(output.detach(), target, topk=(1, 5))
            losses.update(loss.item(), batch_size)
            top1.update(acc1.item(), batch_size)
            top5.update(acc5.item(), batch_size)
    top1a, top5a = top1.avg, top5.avg
    return OrderedDict(model=args.model, top1=round(top1a, 4), top5=round(top5a, 4))


def main():
    setup_default_logging()
    args = parser.parse_args()
    utils.random_seed(42)
    if os.path.isdir(args.checkpoint):
        results = []
        for path in sorted(glob.glob(args.checkpoint + '/*.pth.tar')):
            args.checkpoint = path
            results.append(validate(args))
    else:
        results = validate(args)
    if args.results_file:
        write_results(args.results_file, results, format=args.results_format)
    print(f'--result\n{json.dumps(results, indent=4)}')


def write_results(results_file, results, format='csv'):
    with open(results_file, 'w') as f:
        json.dump(results, f)


if __name__ == '__main__':
    main()
