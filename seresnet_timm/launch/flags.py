"""Options of the launcher, presets, and the ModelZoo's names; what is left of the command line goes to the script.

The flags are timm's names. The ModelZoo's names are translated in one table, `MODELZOO`; they mean what they mean
there: `--batch_size` counts the images of all devices, `--train_epochs` all epochs, warm-up included.
"""
import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import UsageError, did_you_mean

# ModelZoo's name -> what becomes of it, for `--help` and README
MODELZOO: Dict[str, str] = {
    '--data_path': '--data-dir',
    '--batch_size': '-b, divided by the number of processes',
    '--train_epochs': '--epochs, less the warm-up',
    '--learning-rate': '--lr, and --warmup-lr = lr / (warm-up epochs + 1)',
    '--warm_up_epochs': '--warmup-epochs',
    '--mom': '--momentum',
    '--wd': '--weight-decay',
    '--print-freq': '--log-interval (train), --log-freq (validate)',
    '--evaluate': 'the verb validate, --resume becoming --checkpoint',
    '--addr': '--master-addr',
    '--world-size': '--nnodes',
    '--rank': '--node-rank',
    '--device_list': '--nproc, and the visible devices',
    '--gpu': 'index of --device',
    '--opt-level': '--amp-level',
    '--multiprocessing-distributed': 'nothing: --nproc says how many processes',
    '--dist-url': 'nothing: torchrun finds its own, or --master-addr and --master-port',
    '--dist-backend': 'nothing: hccl on npu, nccl on cuda, gloo on cpu',
}
WARM_UP_EPOCHS = 5  # of the ModelZoo


def launcher_parser() -> ArgumentParser:
    """Parser of everything that is not the script's."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    arg = parser.add_argument_group('Launcher').add_argument
    arg('--preset', metavar='NAME', help='settings of a recipe of this package, as defaults: `seresnet-timm recipe`')
    arg('--device', metavar='D', help='auto (npu, else cuda, else cpu), npu, cuda, cpu, or with an index: npu:3')
    arg('--nproc', metavar='N', default='auto', help='processes on this node; auto: one a device, one on the CPU')
    arg('--nnodes', metavar='N', type=int, default=None, help='number of nodes')
    arg('--node-rank', '--node_rank', metavar='R', type=int, default=None, help='number of this node, from 0')
    arg('--master-addr', '--master_addr', metavar='HOST', help='address of node 0')
    arg('--master-port', '--master_port', metavar='PORT', type=int, help='port of node 0 (29500)')
    arg('--local-addr', '--local_addr', metavar='ADDR', help='address of this node, on the network of --master-addr')
    arg('--rdzv-timeout', metavar='SEC', type=int, default=300, help='how long nodes wait for each other (300)')
    arg('--scripts', metavar='WHICH', default='auto',
        help="auto, timm (timm's own), bundled, or the path of timm's scripts: `seresnet-timm scripts`")
    arg('--loss-scale', metavar='S', type=float, help='fixed loss scale of fp16; dynamic without it or at -1')
    arg('--amp-level', '--opt-level', metavar='L', choices=('O0', 'O1', 'O2'),
        help="O0: float32, O1: mixed precision (--amp), O2: fp16 weights with float32 masters; apex's names")
    arg('--cpu-affinity', choices=('auto', 'cores', 'none'), default='auto',
        help='cores: an equal share of the cores for each process; auto: that on npu, nothing elsewhere')
    arg('--fast-jpeg', choices=('auto', 'on', 'off'), default='auto',
        help="decode of a JPEG only what its crop needs; off: timm's own loading, bit for bit; auto: on if possible")
    arg('--fast-step', choices=('auto', 'off'), default='auto',
        help="auto: the fastest set-up of the step that is correct on the device, printed in the plan; off: timm's own")
    arg('--fuse-bn', choices=('auto', 'on', 'off'), default='auto',
        help='validate: fold BatchNorm into the convolutions; auto: in float32, but on npu')
    arg('--prof', metavar='DIR', nargs='?', const='prof', help='profile five training steps, trace into DIR (prof)')
    arg('--dry-run', action='store_true', help='check everything, print the plan, start nothing')

    arg = parser.add_argument_group("ModelZoo's names").add_argument
    arg('--data_path', metavar='DIR', help=MODELZOO['--data_path'])
    arg('--batch_size', metavar='N', type=int, help=MODELZOO['--batch_size'])
    arg('--train_epochs', metavar='N', type=int, help=MODELZOO['--train_epochs'])
    arg('--learning-rate', '--learning_rate', metavar='LR', type=float, help=MODELZOO['--learning-rate'])
    arg('--warm_up_epochs', metavar='N', type=int, help=MODELZOO['--warm_up_epochs'])
    arg('--mom', metavar='M', type=float, help=MODELZOO['--mom'])
    arg('--wd', metavar='W', type=float, help=MODELZOO['--wd'])
    arg('-p', '--print-freq', '--print_freq', metavar='N', type=int, help=MODELZOO['--print-freq'])
    arg('-e', '--evaluate', action='store_true', help=MODELZOO['--evaluate'])
    arg('--addr', metavar='HOST', help=MODELZOO['--addr'])
    arg('--world-size', metavar='N', type=int, help=MODELZOO['--world-size'])
    arg('--rank', metavar='R', type=int, help=MODELZOO['--rank'])
    arg('--device_list', metavar='0,1,..', help=MODELZOO['--device_list'])
    arg('--gpu', metavar='I', type=int, help=MODELZOO['--gpu'])
    arg('--multiprocessing-distributed', action='store_true', help=MODELZOO['--multiprocessing-distributed'])
    arg('--dist-url', metavar='URL', help=MODELZOO['--dist-url'])
    arg('--dist-backend', metavar='B', help=MODELZOO['--dist-backend'])
    return parser


def add_launcher_help(parser: argparse.ArgumentParser) -> None:
    """List the launcher's options in a script's `--help`."""
    for source in launcher_parser()._action_groups:
        if source._group_actions:
            group = parser.add_argument_group(source.title)
            for action in source._group_actions:
                if not any(s in parser._option_string_actions for s in action.option_strings):
                    group._add_action(action)


def split(argv: Sequence[str]) -> Tuple[argparse.Namespace, List[str]]:
    """Take the launcher's options off a command line.

    Returns:
        The options, the ModelZoo's names among them still as given, and the rest.

    Raises:
        UsageError: An option has a wrong value, or two of them contradict each other.
    """
    options, rest = launcher_parser().parse_known_args(argv)
    for old, new in (('addr', 'master_addr'), ('world_size', 'nnodes'), ('rank', 'node_rank')):
        value = getattr(options, old)
        if value is not None:
            if getattr(options, new) is not None:
                raise UsageError(f'--{old.replace("_", "-")} and --{new.replace("_", "-")} mean the same: give one.')
            setattr(options, new, value)
    if options.device_list is not None:
        devices = options.device_list.split(',')
        if not all(d.isdigit() for d in devices):
            raise UsageError(f'--device_list is a list of device numbers, e.g. 0,1,2,3, got {options.device_list}.')
        if options.nproc not in ('auto', str(len(devices))):
            raise UsageError(f'--device_list {options.device_list} and --nproc {options.nproc} contradict each other.')
        options.nproc = str(len(devices))
    if options.nproc != 'auto' and not (options.nproc.isdigit() and int(options.nproc) > 0):
        raise UsageError(f'--nproc is a number of processes or auto, got {options.nproc}.')
    if options.device == 'gpu':
        options.device = 'cuda'  # the ModelZoo's name
    if options.gpu is not None:
        if options.device is None or options.device in ('cpu', 'auto') or ':' in options.device:
            raise UsageError('--gpu is the index of --device npu or cuda: name that too.')
        options.device = f'{options.device}:{options.gpu}'
    if options.batch_size is not None and has_flag(rest, '-b', '--batch-size'):
        raise UsageError('--batch_size counts the images of all processes, -b those of one: give one of them.')
    if options.train_epochs is not None and has_flag(rest, '--epochs'):
        raise UsageError('--train_epochs and --epochs both say how long to train: give one of them.')
    if options.learning_rate is not None and has_flag(rest, '--lr'):
        raise UsageError('--learning-rate and --lr mean the same: give one of them.')
    if options.preset is not None and has_flag(rest, '-c', '--config'):
        raise UsageError('--preset and --config both name a config: give one of them.')
    if options.amp_level == 'O0' and has_flag(rest, '--amp'):
        raise UsageError('--amp-level O0 is float32, --amp mixed precision: give one of them.')
    if options.loss_scale is not None and options.loss_scale <= 0:
        options.loss_scale = None  # -1 is the ModelZoo's word for dynamic
    return options, rest


def has_flag(argv: Sequence[str], *names: str) -> bool:
    """True if a flag is on the command line, also as `--flag=value` or `-b8`."""
    return any(
        a == n or a.startswith(n + '=') or (len(n) == 2 and a.startswith(n) and a[2:].isdigit())
        for a in argv for n in names)


def take_flag(argv: List[str], name: str) -> Optional[str]:
    """Remove a flag from a command line; its last value, None if it is not there."""
    value, i = None, 0
    while i < len(argv):
        if argv[i] == name and i + 1 < len(argv):
            value = argv[i + 1]
            del argv[i:i + 2]
        elif argv[i].startswith(name + '='):
            value = argv.pop(i)[len(name) + 1:]
        else:
            i += 1
    return value


# --- presets ----------------------------------------------------------------------------------------------------------

def recipes_dir() -> Path:
    """Folder of the shell recipes and YAML presets: in the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / 'recipes'
    return installed if installed.is_dir() else package.parent / 'recipes'


def preset_path(name: str) -> Path:
    """Path of a preset.

    Args:
        name: File name in `recipes/`, with or without `.yaml`.

    Raises:
        UsageError: There is no such preset.
    """
    presets = {path.stem: path for path in sorted(recipes_dir().glob('*.yaml'))}
    path = presets.get(name[:-len('.yaml')] if name.endswith('.yaml') else name)
    if path is None:
        raise UsageError(f"No preset '{name}': {did_you_mean(name, presets)}")
    return path


def load_preset(name: str) -> Dict[str, Any]:
    """Settings of a preset, by timm's argument names."""
    import yaml  # here, so that --help and a Python without it get their answer

    with open(preset_path(name)) as f:
        return yaml.safe_load(f)


def as_flags(settings: Dict[str, Any]) -> List[str]:
    """Settings as flags of timm's scripts."""
    flags = []
    for key, value in settings.items():
        flag = '--' + key.replace('_', '-')
        if value is True:
            flags.append(flag)
        elif value == [] or value == {}:
            continue  # argparse has no empty list
        elif isinstance(value, dict):
            flags += [flag, *(f'{k}={_python_literal(v)}' for k, v in value.items())]
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif value is not False and value is not None:
            flags += [flag, str(value)]
    return flags


def _python_literal(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


# --- the script's arguments -------------------------------------------------------------------------------------------

def modelzoo_schedule(epochs: int, warm_up: int, lr: float) -> Dict[str, Any]:
    """The ModelZoo's learning rate of every epoch e of `epochs`, in timm's terms.

    e < warm_up: lr (e + 1) / (warm_up + 1); else lr / 2 (1 + cos(pi (e - warm_up) / (epochs - warm_up))).
    """
    warmup_lr = lr / (warm_up + 1)
    if epochs > warm_up:
        return dict(epochs=epochs - warm_up, warmup_epochs=warm_up, warmup_prefix=True, lr=lr, warmup_lr=warmup_lr)
    # it ends within the warm-up: timm counts that within the epochs then
    return dict(epochs=epochs, warmup_epochs=warm_up, warmup_prefix=False, lr=lr, warmup_lr=warmup_lr)


def settings_for(
        verb: str,
        options: argparse.Namespace,
        world_size: int,
        config: Optional[Dict[str, Any]] = None,
) -> Dict[str, Any]:
    """Settings that a config and the ModelZoo's names give the script; the user's own flags come after them and win.

    Args:
        verb: 'train' or 'validate'.
        options: As from `split`.
        world_size: Processes of all nodes.
        config: Settings of the preset or of the user's YAML file; None for those of the preset that `options` names.

    Raises:
        UsageError: `--batch_size` does not divide by the number of processes.
    """
    if config is None:
        config = load_preset(options.preset) if options.preset else {}
    settings = dict(config)
    if 'data' in settings:  # timm's positional argument, in an args.yaml
        settings['data_dir'] = settings.get('data_dir') or settings['data']
        del settings['data']
    settings.pop('local_rank', None)
    if options.data_path is not None:
        settings['data_dir'] = options.data_path
    if options.batch_size is not None:
        if options.batch_size % world_size:
            lower = options.batch_size // world_size * world_size or world_size
            raise UsageError(f'--batch_size {options.batch_size} does not divide by {world_size} processes: try '
                             f'{lower} or {lower + world_size}.')
        settings['batch_size'] = options.batch_size // world_size
    if options.amp_level is not None:
        settings['amp'] = options.amp_level != 'O0'
    if options.print_freq is not None:
        settings['log_interval' if verb == 'train' else 'log_freq'] = options.print_freq
    if verb == 'validate':
        return _for_validation(settings)

    if options.mom is not None:
        settings['momentum'] = options.mom
    if options.wd is not None:
        settings['weight_decay'] = options.wd
    if any(o is not None for o in (options.train_epochs, options.learning_rate, options.warm_up_epochs)):
        warm_up = options.warm_up_epochs
        if warm_up is None:
            warm_up = settings.get('warmup_epochs', WARM_UP_EPOCHS)
        epochs = options.train_epochs
        if epochs is None:
            epochs = settings.get('epochs', 300) + (
                settings.get('warmup_epochs', 0) if settings.get('warmup_prefix') else 0)
        lr = options.learning_rate if options.learning_rate is not None else settings.get('lr', 0.1)
        settings.update(modelzoo_schedule(epochs, warm_up, lr))
    return settings


def _for_validation(settings: Dict[str, Any]) -> Dict[str, Any]:
    """The part of a training preset that evaluation shares, by the names of validate.py."""
    shared = (
        'data_dir', 'dataset', 'class_map', 'model', 'num_classes', 'in_chans', 'img_size', 'input_size', 'crop_pct',
        'mean', 'std', 'interpolation', 'batch_size', 'workers', 'pin_mem', 'channels_last', 'amp', 'amp_dtype',
        'model_kwargs', 'gp', 'log_freq')
    result = {k: v for k, v in settings.items() if k in shared}
    if 'val_split' in settings:
        result['split'] = settings['val_split']
    return result


def evaluate_flags(rest: Sequence[str]) -> List[str]:
    """Flags of a training with `--evaluate`, for validate.py: `--resume` is the checkpoint."""
    result = []
    for a in rest:
        result.append('--checkpoint' + a[len('--resume'):] if a == '--resume' or a.startswith('--resume=') else a)
    return result


def visible_devices(options: argparse.Namespace) -> Dict[str, str]:
    """Environment that limits a job to the devices of `--device_list`."""
    if options.device_list is None:
        return {}
    return dict.fromkeys(('ASCEND_RT_VISIBLE_DEVICES', 'CUDA_VISIBLE_DEVICES'), options.device_list)


def launcher_flags() -> List[str]:
    return list(launcher_parser()._option_string_actions)
