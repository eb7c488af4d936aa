"""The launcher's flags, and the ModelZoo's names for flags

The flags are timm's names. The ModelZoo's names are translated in one table, `MODELZOO`; they mean what they mean
there, see `modelzoo`. Each has a `dest` of its own, so that what was typed under which name stays known.
"""
import argparse
from typing import Dict

# ModelZoo's name -> what becomes of it, for `--help` and docs/modelzoo-recipes.md
MODELZOO: Dict[str, str] = {
    '--data_path': '--data-dir',
    '--batch_size': '-b times the number of processes: all images of a step',
    '--train_epochs': '--epochs, counted with the warm-up',
    '--learning-rate': '--lr, and --warmup-lr = lr / (warm-up epochs + 1)',
    '--warm_up_epochs': '--warmup-epochs',
    '--mom': '--momentum',
    '--wd': '--weight-decay',
    '--print-freq': '--log-interval (train), --log-freq (validate)',
    '--evaluate': 'the verb validate, with --checkpoint for --resume',
    '--addr': '--master-addr',
    '--world-size': '--nnodes',
    '--rank': '--node-rank',
    '--device_list': '--nproc, and which devices the processes use',
    '--gpu': 'the index in --device, e.g. 3 for npu:3',
    '--opt-level': '--amp-level',
    '--multiprocessing-distributed': 'no effect: --nproc sets the number of processes',
    '--dist-url': 'no effect: --master-addr and --master-port set the address',
    '--dist-backend': 'no effect: always hccl on npu, nccl on cuda, gloo on cpu',
}
PREFIX = 'modelzoo_'  # of the dest of a ModelZoo name


def add_launcher_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that are not the script's. Where the script has a flag of the same name, this one replaces it."""
    group = parser.add_argument_group('Launcher')
    arg = group.add_argument
    arg('--preset', metavar='NAME', help='settings of a recipe as defaults; `seresnet-timm recipes` lists them')
    arg('--device', metavar='D',
        help='npu, cuda or cpu, or with an index, e.g. npu:3; auto: npu, else cuda, else cpu (default: auto)')
    arg('--devices', metavar='LIST',
        help='NPUs or GPUs of this node, one process each: numbers and ranges, such as 0,2-5 (default: all)')
    arg('--nproc', metavar='N', help='processes on this node; auto: one per device, one on the CPU (default: auto)')
    arg('--nnodes', metavar='N', type=int, help='number of nodes (default: 1)')
    arg('--node-rank', '--node_rank', metavar='R', type=int,
        help='number of this node, from 0 (default: from the scheduler, else 0)')
    arg('--master-addr', '--master_addr', metavar='HOST', help='address of node 0')
    arg('--master-port', '--master_port', metavar='PORT', type=int, help='port of node 0 (default: 29500)')
    arg('--local-addr', '--local_addr', metavar='ADDR', help='address of this node, on the network of --master-addr')
    arg('--rdzv-timeout', metavar='SEC', type=int,
        help='how many seconds nodes and ranks wait for each other (default: 300)')
    arg('--scripts', metavar='WHICH',
        help="script that runs: timm (timm's own), bundled, or the path of timm's scripts; auto: timm's own if it is "
             'on this machine, else the bundled one; `seresnet-timm scripts` shows it (default: auto)')
    arg('--loss-scale', metavar='S', type=float, help='fixed loss scale of float16 (default: dynamic, as with -1)')
    arg('--amp-level', '--opt-level', metavar='L', choices=('O0', 'O1', 'O2'),
        help='O0: float32, O1: mixed precision (--amp), O2: float16 weights with float32 copies; names of apex')
    arg('--cpu-affinity', choices=('auto', 'cores', 'none'),
        help='cores: an equal share of the cores for each process; auto: cores on npu, none elsewhere (default: auto)')
    arg('--fast-jpeg', choices=('auto', 'on', 'off'),
        help="on: decode only the part of a JPEG that its crop needs; off: timm's own loading, bit for bit; auto: on "
             'if possible (default: auto)')
    arg('--fast-step', choices=('auto', 'off'),
        help="auto: the fastest set-up of the step that is correct on the device, printed in the plan; off: timm's own "
             '(default: auto)')
    arg('--lean-se', choices=('auto', 'on', 'off'),
        help='on: SE blocks compute some activations twice, which saves memory; auto: on where a step would not fit '
             'into the memory of the device (default: auto)')
    arg('--graph', action='store_true',
        help='train: capture the kernels of a step once and start them together, on cuda and npu; the plan says where '
             'it is not possible (bundled train.py)')
    arg('--fuse-bn', choices=('auto', 'on', 'off'),
        help='validate: on: fold BatchNorm into the convolutions; auto: on in float32, except on npu (default: auto)')
    arg('--checkpoint-minutes', metavar='MIN', type=float,
        help='train: save the state in the middle of an epoch every MIN minutes, fractions allowed; 0: never '
             '(default: 10)')
    arg('--max-bad-steps', metavar='N', type=int,
        help='train: end the run after N steps in a row whose loss or gradients are not finite; such steps are '
             'skipped; only in the bundled train.py (default: 20)')
    arg('--max-bad-images', metavar='N',
        help='train: end the run when more images than this cannot be read: a number, or with %% a share of the '
             'training images; of a small dataset a share allows 10, but at most a quarter of its images, and at '
             'least one; 0: none (default: 0.1%%)')
    arg('--data-timeout', metavar='SEC', type=float,
        help='how many seconds to wait for a data folder that is gone, such as a network drive; 0: end at once '
             '(default: 600)')
    arg('--max-restarts', metavar='N', type=int,
        help='restart the processes after a failure of one, from the last checkpoint, at most N times (default: 0, '
             'in recipes for 8 devices 3)')
    arg('--hang-timeout', metavar='SEC', type=float,
        help='end the run when a process has not finished a step for so many seconds, and write the stacks of all; 0: '
             'never (default: 600)')
    arg('--freeze', metavar='LAYER', nargs='?', const='backbone',
        help='train: do not train the layers up to LAYER, e.g. layer2 or stages.1, nor their BatchNorm; without LAYER: '
             'all but the classifier')
    arg('--patience', metavar='N', type=int,
        help='train: print a line when the metric has had no new best for N epochs (default: never)')
    arg('--early-stop', action='store_true', help='train: end the run when --patience is exceeded')
    arg('--tensorboard', action='store_true',
        help="train: write losses, metrics, learning rate and images/s of each epoch for TensorBoard, into the run's "
             'folder')
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument('-q', '--quiet', dest='verbosity', action='store_const', const=-1,
        help='print one line per epoch, results and warnings only: no plan, no bars, no lines of steps')
    loudness.add_argument('-v', '--verbose', dest='verbosity', action='store_const', const=1,
        help='print the lines of a log beside the bars of a terminal too, and debug messages of timm')
    arg('--prof', metavar='DIR', nargs='?', const='prof',
        help='train: profile five steps, and write the trace to DIR (DIR without a value: prof)')
    arg('--dry-run', action='store_true', help='check everything, print the plan, start nothing')


def add_modelzoo_flags(parser: argparse.ArgumentParser) -> None:
    """Add the ModelZoo's names."""
    group = parser.add_argument_group("ModelZoo's names")

    def arg(*names: str, **kwargs) -> None:
        long = next(n for n in names if n in MODELZOO)
        group.add_argument(
            *names, dest=PREFIX + long.lstrip('-').replace('-', '_'), help=MODELZOO[long], **kwargs)

    arg('--data_path', metavar='DIR')
    arg('--batch_size', metavar='N', type=int)
    arg('--train_epochs', metavar='N', type=int)
    arg('--learning-rate', '--learning_rate', metavar='LR', type=float)
    arg('--warm_up_epochs', metavar='N', type=int)
    arg('--mom', metavar='M', type=float)
    arg('--wd', metavar='W', type=float)
    arg('-p', '--print-freq', '--print_freq', metavar='N', type=int)
    arg('-e', '--evaluate', action='store_true')
    arg('--addr', metavar='HOST')
    arg('--world-size', metavar='N', type=int)
    arg('--rank', metavar='R', type=int)
    arg('--device_list', metavar='0,1,..')
    arg('--gpu', metavar='I', type=int)
    arg('--multiprocessing-distributed', action='store_true')
    arg('--dist-url', metavar='URL')
    arg('--dist-backend', metavar='B')
