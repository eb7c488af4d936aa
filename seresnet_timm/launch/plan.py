"""The plan of a run: everything that is decided before a process starts, with its reason."""
import argparse
import datetime
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from seresnet_timm import argument_parser as arguments_argument_parser
from seresnet_timm.data.workers import default_workers
from seresnet_timm.engine import flags as arguments
from seresnet_timm.errors import UsageError
from seresnet_timm.launch import cluster
from seresnet_timm.launch import config_file as arguments_config_file
from seresnet_timm.launch import flags as options
from seresnet_timm.launch.recipes import CPU_IMAGES, CPU_SIZE, PRESET, RECIPES, Recipe
from seresnet_timm.runs.settings import RunSettings, Script
from seresnet_timm.step import fast as fast_step
from seresnet_timm.step import loss_scaler as devices_loss_scaler
from seresnet_timm.timm_scripts.find import find


@dataclass
class Plan:
    """What will run where. Attributes that are decided late have defaults."""
    verb: str
    opts: argparse.Namespace
    rest: List[str]
    recipe: Optional[Recipe]
    script: Script
    job: Optional[cluster.Cluster]
    nnodes: int = 1
    node_rank: int = 0
    master_addr: Optional[str] = None
    master_port: Optional[int] = None
    device: str = 'cpu'
    device_reason: str = ''
    nproc: int = 1
    nproc_reason: str = ''
    world_size: int = 1
    script_argv: List[str] = field(default_factory=list)
    args: Optional[argparse.Namespace] = None
    patches: List[Tuple[str, str]] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    config: Dict[str, Any] = field(default_factory=dict)
    workers_reason: str = ''
    decoder: str = ''
    is_named: bool = False
    record: Optional[str] = None

    @property
    def is_rank(self) -> bool:
        """This process is itself a rank of the job."""
        return self.job is not None and self.job.is_rank

    def rank(self, variable: str) -> int:
        """RANK or LOCAL_RANK of this process; 0 for a launcher."""
        return int((self.job.rank_env or os.environ)[variable]) if self.is_rank else 0

    @property
    def local_world_size(self) -> int:
        """Processes of the job on this node."""
        environment = (self.job.rank_env or os.environ) if self.is_rank else {}
        return int(environment.get('LOCAL_WORLD_SIZE', self.nproc))

    @property
    def own_config(self) -> Dict[str, Any]:
        """Settings of a config of the user's; those of a preset are not."""
        return self.config if self.opts.preset is None else {}

    @property
    def images_a_step(self) -> int:
        return self.args.batch_size * self.world_size * max(1, getattr(self.args, 'grad_accum_steps', 1))

    @property
    def output_dir(self) -> Optional[Path]:
        return Path(self.args.output or './output/train') / self.args.experiment if self.verb == 'train' else None


def make_plan(verb: str, argv: Sequence[str], recipe_name: Optional[str] = None) -> Plan:
    """Decide everything, from a command line.

    Args:
        verb: 'train' or 'validate'.
        argv: Command line after the verb.
        recipe_name: Recipe whose settings are the defaults.

    Raises:
        UsageError: The command line contradicts itself or the machine.
    """
    opts, rest = options.split(argv)
    recipe = RECIPES[recipe_name] if recipe_name else None
    if recipe and not (opts.data_path or options.has_flag(rest, '--data-dir')):
        raise UsageError(f'--data_path is missing. Usage: bash recipes/{recipe_name}.sh --data_path=DIR [options]; DIR '
                         'is the folder with train/ and val/ in it.')
    if opts.evaluate:
        verb = 'validate'
    if verb == 'validate':
        rest = options.evaluate_flags(rest)
    script = find(f'{verb}.py', opts.scripts)
    plan = Plan(verb, opts, rest, recipe, script, cluster.detect(os.environ))
    if script.path is None:
        parser = bundled_parser(verb)
    else:
        parser, plan.patches = _timms_parser(script)
    plan.config = _load_config(plan, parser)
    if script.path is None:
        _check_flags_early(plan, parser)
    _resolve_nodes(plan)
    _resolve_processes(plan)
    _resolve_script_argv(plan, parser)
    return plan


def _load_config(plan: Plan, parser: argparse.ArgumentParser) -> Dict[str, Any]:
    """Settings of the user's YAML config, taken off the command line, or of the preset."""
    opts = plan.opts
    for flag in ('-c', '--config') if plan.verb == 'train' else ():
        path = options.take_flag(plan.rest, flag)
        if path is not None:
            return arguments_config_file.load_config(path, parser)
    if plan.recipe and opts.preset is None:
        opts.preset = PRESET
    return options.load_preset(opts.preset) if opts.preset else {}


def _check_flags_early(plan: Plan, parser: argparse.ArgumentParser) -> None:
    """Refuse what the bundled script would refuse before torch is imported, which takes seconds."""
    any_size = argparse.Namespace(**dict(vars(plan.opts), batch_size=None))
    flags = options.as_flags(options.settings_for(plan.verb, any_size, 1, plan.config))
    _parse(parser, flags + plan.rest)


def _resolve_nodes(plan: Plan) -> None:
    """Nodes, and how they meet: options, else what the scheduler says."""
    opts, job = plan.opts, plan.job
    plan.nnodes = opts.nnodes if opts.nnodes is not None else (job.nnodes if job else 1)
    plan.node_rank = opts.node_rank if opts.node_rank is not None else (job.node_rank if job else 0)
    plan.master_addr = opts.master_addr or (job.master_addr if job else None)
    plan.master_port = opts.master_port or (job.master_port if job else None)
    if plan.nnodes < 1:
        raise UsageError(f'--nnodes is at least 1, got {plan.nnodes}.')
    if not 0 <= plan.node_rank < plan.nnodes:
        raise UsageError(f'--node-rank {plan.node_rank} is out of range: {plan.nnodes} node(s) have the numbers 0 to '
                         f'{plan.nnodes - 1}.')
    if plan.nnodes > 1 and not plan.master_addr and not plan.is_rank:
        raise UsageError(f'{plan.nnodes} nodes need --master-addr: the address of node 0, the same on every node.')


def _resolve_processes(plan: Plan) -> None:
    """Device, and processes on this node."""
    opts, job = plan.opts, plan.job
    for name, value in options.visible_devices(opts).items():
        os.environ[name] = value  # before torch looks for devices
    from seresnet_timm import device as devices

    requested = opts.device or plan.config.get('device') or 'auto'
    plan.device, plan.device_reason = devices.select_device(requested, must_exist=not opts.dry_run)
    kind, _, index = plan.device.partition(':')
    available = 0 if devices.why_unavailable(kind) else devices.device_count(kind)
    if plan.is_rank:
        plan.world_size = int((job.rank_env or os.environ)['WORLD_SIZE'])
        plan.nproc_reason = f'started by {job.kind}'
        return
    if opts.nproc != 'auto':
        plan.nproc, plan.nproc_reason = int(opts.nproc), '--nproc' if not opts.device_list else '--device_list'
    elif plan.recipe and plan.recipe.nproc:
        plan.nproc, plan.nproc_reason = plan.recipe.nproc, 'the recipe'
    elif job and job.nproc:
        plan.nproc, plan.nproc_reason = job.nproc, f'told by {job.kind}'
    elif kind == 'cpu' or index:
        plan.nproc, plan.nproc_reason = 1, f'one on {plan.device}'
    else:
        plan.nproc, plan.nproc_reason = max(1, available), f'one for each {kind}'
    if kind != 'cpu' and plan.nproc > max(1, available) and not opts.dry_run:
        raise UsageError(f'--nproc {plan.nproc} needs as many {kind} devices, this machine has {available}.')
    if index and plan.nproc > 1:
        raise UsageError(f'--device {plan.device} is one device, --nproc {plan.nproc} needs more: leave out the index.')
    plan.world_size = plan.nproc * plan.nnodes


def _resolve_script_argv(plan: Plan, parser: argparse.ArgumentParser) -> None:
    """The script's command line: config and recipe, the ModelZoo's names translated, then the user's flags."""
    opts, rest, recipe = plan.opts, plan.rest, plan.recipe
    if recipe:
        _apply_recipe(plan, recipe)
    elif any(o is not None for o in (opts.train_epochs, opts.learning_rate, opts.warm_up_epochs)) and options.has_flag(
            rest, '--epochs', '--lr', '--warmup-epochs', '--warmup-prefix', '--warmup-lr'):
        raise UsageError("The ModelZoo's names of the schedule (--train_epochs, --learning-rate, --warm_up_epochs) and "
                         "timm's (--epochs, --lr, --warmup-...) do not mix: use the one or the other.")
    settings = options.settings_for(plan.verb, opts, plan.world_size, plan.config)
    if recipe and plan.device == 'cpu':
        _shrink_for_cpu(plan, settings)
    settings['device'] = plan.device
    if plan.device != 'cpu':
        settings.setdefault('pin_mem', True)  # else the host waits for every copy to the device
    if 'workers' not in settings and not options.has_flag(rest, '-j', '--workers'):
        settings['workers'], plan.workers_reason = default_workers(plan.device, plan.local_world_size)
    plan.script_argv = options.as_flags(settings) + rest

    plan.args = _parse(parser, plan.script_argv)
    is_contiguous = getattr(plan.args, 'channels_last', None) is False  # None: the script has no such flag
    if opts.fast_step == 'auto' and is_contiguous and 'channels_last' not in settings:
        if fast_step.wants_channels_last(plan.args.model, plan.device)[0]:
            plan.script_argv.append('--channels-last')
            plan.args.channels_last = True
    from seresnet_timm.data.fast_jpeg import choose_decoder
    plan.decoder = choose_decoder(plan.args, opts.fast_jpeg)[1]
    if opts.amp_level == 'O2' and plan.verb == 'train' and plan.args.amp_dtype != 'float16':
        raise UsageError(f'--amp-level O2 computes in float16, --amp-dtype is {plan.args.amp_dtype}: leave one out.')
    if plan.device.startswith('npu') and getattr(plan.args, 'channels_last', False):
        raise UsageError('--channels-last is not for an NPU: torch_npu takes contiguous tensors only; leave it out.')
    plan.is_named = plan.verb == 'train' and bool(plan.args.experiment)
    if plan.verb == 'train' and not plan.args.experiment:
        # timm's own name for it, decided here so that the plan can show the folder
        size = plan.args.img_size or (plan.args.input_size or [224])[-1]
        now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
        plan.args.experiment = f'{now}-{re.sub("[^0-9a-zA-Z]", "_", plan.args.model)}-{size}'
        plan.script_argv += ['--experiment', plan.args.experiment]


def _apply_recipe(plan: Plan, recipe: Recipe) -> None:
    """Fill in what the recipe says and neither the user's flags nor the user's config do."""
    opts, rest = plan.opts, plan.rest
    own = plan.own_config
    images = recipe.batch_size
    if opts.batch_size is None and not options.has_flag(rest, '-b', '--batch-size') and 'batch_size' not in own:
        if plan.device == 'cpu':
            images = CPU_IMAGES * plan.world_size
        opts.batch_size = images
    if plan.verb == 'validate' or options.has_flag(rest, '--warmup-prefix', '--warmup-lr', '--sched') or 'sched' in own:
        return
    # a recipe's schedule is the ModelZoo's: its --epochs counts the warm-up, its --lr moves the warm-up too
    for name, flag, kind in (
            ('train_epochs', '--epochs', int), ('learning_rate', '--lr', float),
            ('warm_up_epochs', '--warmup-epochs', int)):
        value = options.take_flag(rest, flag)
        if value is not None:
            try:
                setattr(opts, name, kind(value))
            except ValueError:
                raise UsageError(f"{flag} takes a number, got '{value}'.")
    if opts.train_epochs is None and 'epochs' not in own:
        opts.train_epochs = recipe.epochs
    if opts.learning_rate is None and 'lr' not in own and not options.has_flag(rest, '--lr-base'):
        opts.learning_rate = recipe.lr * images / recipe.batch_size


def _shrink_for_cpu(plan: Plan, settings: Dict[str, Any]) -> None:
    """On a CPU a recipe shows that everything works: small images, float32, unless the user says otherwise."""
    own = plan.own_config
    shrunk = {k: v for k, v in CPU_SIZE.items()
              if k not in own and not options.has_flag(plan.rest, '--' + k.replace('_', '-'))}
    if options.has_flag(plan.rest, '--input-size') or 'input_size' in own:
        shrunk.pop('img_size', None)
    if options.has_flag(plan.rest, '-j'):
        shrunk.pop('workers', None)
    if plan.opts.amp_level is not None:
        shrunk.pop('amp', None)
    settings.update(shrunk)
    plan.notes.append(f'On a CPU the recipe shrinks ({", ".join(f"{k} {v}" for k, v in shrunk.items())}; learning rate '
                      'with the batch): a test that it works, not a training for ImageNet. Your flags win.')


def bundled_parser(verb: str, prog: Optional[str] = None) -> arguments_argument_parser.ArgumentParser:
    """Parser of the bundled script of a verb."""
    return arguments.train_parser(prog) if verb == 'train' else arguments.validate_parser(prog)


def _timms_parser(script: Script) -> Tuple[argparse.ArgumentParser, List[Tuple[str, str]]]:
    """Parser of timm's script, with one-sentence errors; and what the patches made of the script."""
    from seresnet_timm.timm_scripts.load import check, parser_of
    outcomes = check(script)
    return parser_of(script), outcomes


def _parse(parser: argparse.ArgumentParser, argv: List[str]) -> argparse.Namespace:
    return arguments_config_file.parse_args(parser, argv, suggestions=options.launcher_flags())[0]


def describe(plan: Plan) -> List[Tuple[str, str]]:
    """The plan as lines of label and text."""
    args, opts = plan.args, plan.opts
    nodes = f'{plan.nproc} on each of {plan.nnodes} nodes; ' if plan.nnodes > 1 and not plan.is_rank else ''
    lines = [
        ('device', f'{plan.device} ({plan.device_reason})'),
        ('processes', f'{plan.world_size} ({nodes}{plan.nproc_reason})'),
        ('script', plan.script.describe()),
    ]
    if plan.patches:
        lines.append(('patches', ', '.join(n if o == 'applied' else f'{n} ({o})' for n, o in plan.patches)))
    accumulated = f' x {args.grad_accum_steps} accumulated' if getattr(args, 'grad_accum_steps', 1) > 1 else ''
    lines.append(('batch', f'{plan.images_a_step} images a step: {args.batch_size} x {plan.world_size}{accumulated}'))
    if plan.verb == 'train':
        lines.append(('learning rate', learning_rate(plan)))
    lines.append(('precision', precision(plan)))
    lines.append(('step', fast_step.describe(plan.verb, args, plan.device, plan.world_size, opts.fast_step == 'auto')))
    if plan.verb == 'train':
        _, scaler = devices_loss_scaler.describe_loss_scaler(plan.device, args.amp, args.amp_dtype, opts.loss_scale)
        lines.append(('loss scaler', scaler))
    pinned = '; pinned memory, so that the host need not wait for copies' if args.pin_mem else ''
    lines.append(('workers', f'{args.workers} loader workers for each of {plan.world_size}, '
                             f'{plan.workers_reason or f"{os.cpu_count()} cores on this node"}{pinned}'))
    lines.append(('images', plan.decoder))
    if plan.device.startswith('npu'):
        from seresnet_timm.ascend.setup import describe as describe_npu
        lines.append(('torch_npu', describe_npu()))
    if plan.output_dir is not None:
        lines.append(('output', str(plan.output_dir)))
    return lines


def learning_rate(plan: Plan) -> str:
    args = plan.args
    if args.lr:
        lr = f'{args.lr:g}'
    else:
        from seresnet_timm.step.learning_rate import scaled_lr
        lr, reason = scaled_lr(args, plan.images_a_step)
        lr = f'{lr:g} ({reason})'
    epochs = args.epochs + (args.warmup_epochs if args.warmup_prefix else 0) + args.cooldown_epochs
    return f'{lr}, {args.opt}, {args.sched} over {epochs} epochs, {args.warmup_epochs} of warm-up'


def precision(plan: Plan) -> str:
    if plan.opts.amp_level == 'O2':
        return 'O2: fp16 weights, float32 masters and BatchNorm'
    return f'amp {plan.args.amp_dtype}' if plan.args.amp else plan.args.model_dtype or 'float32'


def settings_of(plan: Plan) -> RunSettings:
    """Settings for the ranks. Temporary: the plan becomes RunSettings itself."""
    from seresnet_timm.hub.pull import pull
    opts, args = plan.opts, {k: v for k, v in vars(plan.args).items() if k != 'config'}
    args['data_dir'] = args.pop('data', None) or args.get('data_dir')
    source, _, name = args['model'].partition(':')
    needs_weights = args.get('pretrained') or plan.verb == 'validate' and not args.get('checkpoint')
    pulled = pull(name, with_weights=bool(needs_weights)) if source in ('hf-hub', 'hf_hub') else None
    return RunSettings(
        verb=plan.verb,
        script=plan.script,
        args=dict(args, data=None),
        command=['seresnet-timm', plan.verb, *plan.script_argv],
        recipe=opts.preset,
        device=plan.device,
        nnodes=plan.nnodes,
        nproc=plan.nproc,
        world_size=plan.world_size,
        model_folder=None if pulled is None else str(pulled.folder),
        model_commit=None if pulled is None else pulled.commit,
        amp_level=opts.amp_level,
        loss_scale=opts.loss_scale,
        fast_jpeg=opts.fast_jpeg,
        fast_step=opts.fast_step == 'auto',
        fuse_bn=opts.fuse_bn,
        cpu_affinity=opts.cpu_affinity,
        prof=opts.prof,
        output=plan.record if plan.output_dir is None else str(plan.output_dir),
        reasons={'device': plan.device_reason},
        notes=plan.notes,
    )
