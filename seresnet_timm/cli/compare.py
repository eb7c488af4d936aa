"""`seresnet-timm compare`: the same weights and batch on two sides, module by module."""
import argparse
import os
import sys
from typing import List

from seresnet_timm.argument_parser import ArgumentParser, KeyValues

EXAMPLES = (
    'seresnet-timm compare output/run --device npu         # against the CPU in float32',
    'seresnet-timm compare a.pth.tar b.pth.tar             # two checkpoints: weights, then outputs')
NEXT = ('seresnet-timm help compare --rtol                     # how much may differ',)
EPILOG = '''
Two passes are compared with the reference. In the local one each module, and each operation between two modules, gets
the values and gradients of the reference: the first that differs is the cause. In the accumulated one the network runs
as it is. Figures: max = max |b - a| / max |a|, mean = mean |b - a| / mean |a|, cosine = a.b / (|a||b|), with a of the
reference. Allowed, by the precision of the tested side (HF32 and TF32 count as float16):
local: float32 1e-4, float16 5e-3, bfloat16 4e-2, of max (gradients in half precision: twice as much, of mean);
accumulated: float32 1e-3, float16 5e-2, bfloat16 0.4, of mean; weights of two checkpoints: 1e-6 of max.
If random changes of the size of the rounding change a value of the reference by more, ten times as much is allowed.
Exit code: 0 equal within tolerance, 1 they differ (or the comparison failed), 2 the command is wrong.
'''


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Compare a network on a device, in a precision or of another checkpoint with the same network on the CPU in '
        'float32, module by module, forward and backward, and name the first module that differs.')
    parser.epilog = EPILOG
    arg = parser.add_argument
    arg('checkpoints', nargs='*', metavar='MODEL',
        help='timm name with pretrained weights, hf-hub:org/name, checkpoint file, or output folder of a run; two are '
        'compared with each other')
    arg('--model', dest='model_name', metavar='NAME',
        help='architecture of the checkpoint; without one, this network with random weights')
    arg('--checkpoint', metavar='FILE', help='another way to name MODEL')
    arg('--model-kwargs', nargs='+', default={}, action=KeyValues, metavar='K=V',
        help='arguments of a network with random weights')
    arg('--num-classes', type=int, metavar='N', help='number of classes')
    arg('--img-size', type=int, metavar='N', help='image size in pixels')
    arg('--use-ema', action='store_true', help='take the moving average of the weights')

    arg = parser.add_argument_group('what is compared').add_argument
    arg('--device', default='auto', metavar='D',
        help='the tested device: auto (npu, else cuda, else cpu), npu, cuda or cpu')
    arg('--precision', choices=('float32', 'float16', 'bfloat16', 'amp'), default='float32',
        help='number format of the tested side: float16 and bfloat16 convert weights and values, amp is autocast '
             '(default: %(default)s)')
    arg('--amp-dtype', choices=('float16', 'bfloat16'), default='float16',
        help='number format of --precision amp (default: %(default)s)')
    arg('--loss-scale', type=float, metavar='S', help='factor of the loss, for gradients in float16 (default: 1024)')
    arg('--hf32', action='store_true', help='allow HF32 on npu and TF32 on cuda for float32, as a training does')
    arg('--reference-device', default='cpu', metavar='D',
        help='device of the reference, in float32 (default: %(default)s)')
    arg('--lean-se', action='store_true', help='the ends of residual blocks as one operation, as in a training; they '
        'are not compared one by one then')
    arg('--eval', action='store_true', help='modules in evaluation mode, not in training mode')
    arg('--forward-only', action='store_true', help='no backward pass')
    arg('--dump', metavar='FILE', help='store network, batch and what --device computes, for --against')
    arg('--against', metavar='FILE', help='compare with what --dump stored, on this or another machine; MODEL is the '
        'one in FILE unless it is given')

    arg = parser.add_argument_group('batch').add_argument
    arg('--data-dir', metavar='DIR', help='folder of images, at any depth; without it random numbers')
    arg('-b', '--batch-size', type=int, metavar='N',
        help='number of images (default: 2; 8 for images below 128 pixels)')
    arg('--seed', type=int, default=42, metavar='N',
        help='seed of the random batch, classes and weights (default: %(default)s)')

    arg = parser.add_argument_group('output').add_argument
    arg('--rtol', type=float, metavar='X', help='one relative tolerance for all values, instead of those below')
    arg('--top', type=int, default=10, metavar='N',
        help='places in each table of largest errors (default: %(default)s)')
    arg('--json', action='store_true', help='print one JSON object with all places instead of text')


def problems(args: argparse.Namespace) -> List[str]:
    """What is wrong with the flags, a sentence each."""
    found = []
    sources = args.checkpoints + ([args.checkpoint] if args.checkpoint else [])
    if len(sources) > 2 or args.checkpoint and len(args.checkpoints) > 1:
        found.append(f'{len(sources)} models are named: compare takes one, or two.')
    if not sources and not args.model_name and not args.against:
        found.append('Name a MODEL, or --model NAME for a network with random weights, or --against FILE.')
    if len(sources) > 1 and (args.dump or args.against):
        found.append(f'{"--dump" if args.dump else "--against"} takes one MODEL, not two.')
    if args.dump and args.against:
        found.append('--dump stores a reference, --against compares with one: give one of them.')
    if args.model_kwargs and sources:
        found.append('--model-kwargs is for a network with random weights: a checkpoint has its own.')
    if args.use_ema and not sources:
        found.append('--use-ema needs a checkpoint.')
    if args.against:
        fixed = {'--data-dir': args.data_dir, '-b': args.batch_size, '--eval': args.eval,
                 '--forward-only': args.forward_only, '--lean-se': args.lean_se}
        found += [f'{flag} is taken from the file of --against: leave it out.' for flag, v in fixed.items() if v]
    if (args.dump or args.against) and args.reference_device != 'cpu':
        found.append('--reference-device is for comparisons in one process; with --dump and --against, --device names '
                     'the device.')
    halves = {args.precision, args.amp_dtype if args.precision == 'amp' else ''}
    if args.loss_scale is not None and 'float16' not in halves:
        found.append('--loss-scale is for gradients in float16: give --precision float16 or amp.')
    if args.amp_dtype == 'bfloat16' and args.precision != 'amp':
        found.append('--amp-dtype is for --precision amp.')
    if args.hf32 and args.device.startswith('cpu'):
        found.append('--hf32 is for npu and cuda: a CPU has no such arithmetic.')
    return found


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.ascend import setup as npu_setup
    npu_setup.set_environment(os.environ)
    from seresnet_timm.inference import compare_verb
    if not compare_verb.run(args):
        sys.stdout.flush()
        sys.exit(1)
