"""From what was typed, a recipe, a config file and the machine to RunSettings: every decision, with its reason

Settings come from the script's defaults, then recipe or preset, then the checkpoint that is evaluated, then the config
file, then the command line: what comes later wins. Nothing is decided after this.
"""
import datetime
import itertools
import os
import re
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from seresnet_timm.errors import UsageError, refuse
from seresnet_timm.launch import cluster, modelzoo
from seresnet_timm.launch.combinations import find_contradictions
from seresnet_timm.launch.config_file import load_config, read_yaml
from seresnet_timm.launch.dataset import decide_classes, examine, fit_batch, name_outputs
from seresnet_timm.launch.first_look import refuse_wrong_values
from seresnet_timm.launch.parse import CommandLine, parse
from seresnet_timm.launch.recipes import Recipe, load_recipe
from seresnet_timm.runs.settings import RunSettings

# flags of a training preset or config that evaluation shares
SHARED_WITH_VALIDATION = (
    'data_dir', 'dataset', 'class_map', 'model', 'num_classes', 'in_chans', 'img_size', 'input_size', 'crop_pct',
    'mean', 'std', 'interpolation', 'batch_size', 'workers', 'pin_mem', 'channels_last', 'amp', 'amp_dtype',
    'model_kwargs', 'gp', 'log_freq', 'device_modules', 'device')


@dataclass(frozen=True)
class Node:
    """This node's part in a run: what differs from node to node.

    Attributes:
        rank: Number of this node.
        master_addr: Address of node 0; None on one node.
        master_port: Port of node 0.
        local_addr: Address of this node, on the network of node 0.
        rdzv_timeout: Seconds that nodes wait for each other.
        job: Who started this process, if it is a scheduler or torchrun.
        knows_output: The folder of the run has the same name on all nodes.
    """
    rank: int = 0
    master_addr: Optional[str] = None
    master_port: Optional[int] = None
    local_addr: Optional[str] = None
    rdzv_timeout: int = 300
    job: Optional[cluster.Cluster] = None
    knows_output: bool = False

    @property
    def is_rank(self) -> bool:
        """This process is itself a rank of the job."""
        return self.job is not None and self.job.is_rank

    @property
    def is_first(self) -> bool:
        """This process speaks for the run: the launcher of node 0, or rank 0."""
        return self.job.variable('RANK') == 0 if self.is_rank else self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        """This process checks and pulls for its node: the launcher, or local rank 0."""
        return not self.is_rank or self.job.variable('LOCAL_RANK') == 0


@dataclass(frozen=True)
class Plan:
    """What will run where.

    Attributes:
        settings: Settings of the run.
        node: This node's part.
        dry_run: Check and print everything, start nothing.
        problems: Faults of the data, each a sentence.
        checkpoints: Checkpoints that were read, by their path.
    """
    settings: RunSettings
    node: Node
    dry_run: bool
    problems: List[str]
    checkpoints: Dict[str, Any]


@dataclass
class Sources:
    """Where settings come from, while the plan is made: later ones win.

    Attributes:
        recipe: The recipe that runs.
        preset: Settings of the recipe, or of `--preset`.
        config: Settings of `--config`.
        flags: What was typed, by timm's names.
        modelzoo: What was typed under the ModelZoo's names, and what a recipe says in their terms.
        options: The launcher's options.
        typed_modelzoo: The ModelZoo's names that were typed.
        reasons: Why a value is what it is.
        notes: Sentences for the plan.
        checkpoints: Checkpoints that were read, by their path.
        lr_of_recipe: The learning rate is the recipe's, for its batch.
    """
    recipe: Optional[Recipe]
    preset: Dict[str, Any]
    config: Dict[str, Any]
    flags: Dict[str, Any]
    modelzoo: Dict[str, Any]
    options: Dict[str, Any]
    typed_modelzoo: Sequence[str] = ()
    reasons: Dict[str, str] = field(default_factory=dict)
    notes: List[str] = field(default_factory=list)
    checkpoints: Dict[str, Any] = field(default_factory=dict)
    lr_of_recipe: bool = False

    def asked(self, *names: str) -> bool:
        """True if the user gave one of the flags, typed or in a config file."""
        return any(n in self.flags or n in self.config for n in names)

    def asked_or_typed(self, *names: str) -> bool:
        """Likewise, or under a ModelZoo name."""
        return self.asked(*names) or any(n in self.typed_modelzoo for n in names)

    def base(self) -> Dict[str, Any]:
        return {**self.preset, **self.config}


def make_plan(verb: str, argv: Sequence[str], recipe_name: Optional[str] = None) -> Plan:
    """Decide everything, from a command line.

    Args:
        verb: 'train' or 'validate'.
        argv: Command line after the verb.
        recipe_name: Recipe whose settings are the defaults.

    Raises:
        UsageError: The command line contradicts itself or the machine.
    """
    line = parse(verb, argv)
    try:
        return _make_plan(line, verb, argv, recipe_name)
    except UsageError as e:
        refuse([*line.problems, e])


def _make_plan(line: CommandLine, verb: str, argv: Sequence[str], recipe_name: Optional[str]) -> Plan:
    sources = collect(line, recipe_name)
    job, note = cluster.decide(cluster.detect(os.environ), os.environ, what_was_asked(sources.options))
    sources.notes += [note] if note else []
    node, nnodes = resolve_nodes(sources.options, job)
    refuse_wrong_values(line, sources)
    device, nproc, world_size = resolve_processes(sources, node, nnodes)
    args = merge(line, sources, device, world_size)
    local_world_size = node.job.variable('LOCAL_WORLD_SIZE', nproc) if node.is_rank else nproc
    decide_for_device(line, sources, args, device, local_world_size)
    output, is_named = resolve_output(line.verb, args, is_recipe=recipe_name is not None)
    data = name_outputs(line.verb, sources, args, examine(line.verb, args))
    sources.reasons.update((f'images_{split}', text) for split, text in data.files.items() if text)
    fit_batch(sources, args, data, world_size)
    problems = [
        *line.problems, *find_contradictions(line.verb, args, sources.asked_or_typed, world_size), *data.problems,
        *decide_classes(line.verb, sources, args, data)]
    options = sources.options
    settings = RunSettings(
        verb=line.verb,
        script=line.script,
        args=plain(args),
        command=typed_command(verb, argv, recipe_name, node.job),
        recipe=recipe_name or options.get('preset'),
        device=device,
        nnodes=nnodes,
        nproc=nproc,
        world_size=world_size,
        amp_level=options.get('amp_level'),
        loss_scale=options.get('loss_scale'),
        fast_jpeg=options.get('fast_jpeg', 'auto'),
        fast_step=options.get('fast_step', 'auto') == 'auto',
        fuse_bn=options.get('fuse_bn', 'auto'),
        cpu_affinity=options.get('cpu_affinity', 'auto'),
        max_restarts=max_restarts(sources, nnodes, is_named),
        hang_timeout=options.get('hang_timeout', 600),
        prof=options.get('prof'),
        output=output,
        class_names=data.class_names,
        num_images=data.num_images,
        reasons=sources.reasons,
        notes=sources.notes,
    )
    node = replace(node, knows_output=is_named or node.rank == 0)
    return Plan(settings, node, bool(options.get('dry_run')), problems, sources.checkpoints)


# --- sources ----------------------------------------------------------------------------------------------------------

def collect(line: CommandLine, recipe_name: Optional[str]) -> Sources:
    """Read recipe, preset and config file, and resolve the launcher's options."""
    flags = dict(line.flags)
    config_path = flags.pop('config', None) or line.options.get('config')
    if 'data' in flags:  # timm's positional argument
        flags['data_dir'] = flags.pop('data') or flags.get('data_dir')
    if recipe_name and not ('data_path' in line.modelzoo or flags.get('data_dir')):
        raise UsageError(f'--data_path is missing. Usage: bash recipes/{recipe_name}.sh --data_path=DIR [options]; DIR '
                         'is the folder with train/ and val/ in it.')
    has_nodes = 'nnodes' in line.options or 'world_size' in line.modelzoo
    if recipe_name == 'train_multinode' and not has_nodes and cluster.detect(os.environ) is None:
        raise UsageError('--nnodes is missing: how many machines train together. Start the recipe on each of them with '
                         'the same --nnodes=N and --master_addr=HOST, and its own --node_rank=R (0 to N-1); on one '
                         'machine use recipes/train_8p.sh.')
    modelzoo.check_names(line.modelzoo, flags, is_recipe=recipe_name is not None)
    options = modelzoo.launcher_options(line.modelzoo, line.options, flags)
    recipe = load_recipe(recipe_name) if recipe_name else None
    preset = load_recipe(options['preset']) if options.get('preset') else recipe
    settings = dict(preset.settings) if preset else {}
    if line.verb == 'validate':
        settings = for_validation(settings)
    config = load_config_of(line, config_path) if config_path else {}
    return Sources(recipe, settings, config, flags, dict(line.modelzoo), options, tuple(line.modelzoo))


def load_config_of(line: CommandLine, path: str) -> Dict[str, Any]:
    """Settings of a config file. Evaluation takes the file of a training too."""
    if line.verb == 'train':
        return load_config(path, line.parser, line.defaults)
    from seresnet_timm.engine.flags import train_parser
    keys = read_yaml(path)
    parser = train_parser()
    defaults = vars(parser.parse_args([]))
    if set(keys) <= set(defaults) and not set(keys) <= set(line.defaults):
        return for_validation(load_config(path, parser, defaults))
    return load_config(path, line.parser, line.defaults)


def for_validation(settings: Dict[str, Any]) -> Dict[str, Any]:
    """The part of a training's settings that evaluation shares, by the names of validate.py."""
    result = {k: v for k, v in settings.items() if k in SHARED_WITH_VALIDATION}
    if 'val_split' in settings:
        result['split'] = settings['val_split']
    return result


def merge(line: CommandLine, sources: Sources, device: str, world_size: int) -> Dict[str, Any]:
    """Every flag of the script: defaults < recipe or preset < evaluated checkpoint < config < command line."""
    if sources.recipe is not None:
        apply_recipe(sources, sources.recipe, line.verb, device, world_size)
    if line.verb == 'validate':
        apply_checkpoint(sources)
    base = sources.base()
    args = {
        **{k: v for k, v in line.defaults.items() if k not in ('config', 'data')},
        **base, **modelzoo.translate(sources.modelzoo, base, line.verb, world_size), **sources.flags}
    if 'amp_level' in sources.options:
        args['amp'] = sources.options['amp_level'] != 'O0'
    args['device'] = device
    if 'data' in line.defaults:
        args['data'] = None
    if set(':/') & set(args['model']):
        from seresnet_timm.hub.client import hub_name
        repository = hub_name(args['model'])
        args['model'] = args['model'] if repository is None else f'hf-hub:{repository}'
    if line.verb == 'validate':
        args['pretrained'] = bool(args['pretrained'] or not args['checkpoint'])
    return args


def apply_recipe(sources: Sources, recipe: Recipe, verb: str, device: str, world_size: int) -> None:
    """Fill in what a recipe says in the ModelZoo's terms and the user does not."""
    zoo, flags = sources.modelzoo, sources.flags
    images = recipe.global_batch_size
    if 'batch_size' not in zoo and not sources.asked('batch_size') and images:
        if device == 'cpu' and recipe.cpu:
            images = recipe.cpu['images'] * world_size
        zoo['batch_size'] = images
    if device == 'cpu' and recipe.cpu:
        _shrink_for_cpu(sources, recipe.cpu)
    if verb == 'validate' or {'warmup_prefix', 'warmup_lr'} & set(flags) or sources.asked('sched'):
        return
    # a recipe's schedule is the ModelZoo's: its --epochs counts the warm-up, its --lr moves the warm-up too
    for name, flag in (('train_epochs', 'epochs'), ('learning_rate', 'lr'), ('warm_up_epochs', 'warmup_epochs')):
        if flag in flags:
            zoo[name] = flags.pop(flag)
    if 'train_epochs' not in zoo and 'epochs' not in sources.config and recipe.epochs is not None:
        zoo['train_epochs'] = recipe.epochs
    if 'learning_rate' not in zoo and not sources.asked('lr') and 'lr_base' not in flags and recipe.lr is not None:
        zoo['learning_rate'] = recipe.lr * images / recipe.global_batch_size
        sources.lr_of_recipe = True


def _shrink_for_cpu(sources: Sources, cpu: Dict[str, Any]) -> None:
    """On a CPU a recipe shows that everything works: small images, float32, unless the user says otherwise."""
    shrunk = {k: v for k, v in cpu.items() if k != 'images' and not sources.asked(k)}
    if sources.asked('input_size'):
        shrunk.pop('img_size', None)
    if 'amp_level' in sources.options:
        shrunk.pop('amp', None)
    sources.preset.update(shrunk)
    sources.notes.append(
        f'On a CPU the recipe shrinks ({", ".join(f"{k} {v}" for k, v in shrunk.items())}; learning rate with the '
        'batch): a test that it works, not a training for ImageNet. Flags on the command line override this.')


def apply_checkpoint(sources: Sources) -> None:
    """Take network and preprocessing of an evaluation from the checkpoint that it evaluates."""
    path = sources.flags.get('checkpoint') or sources.config.get('checkpoint')
    if not path:
        return
    from seresnet_timm.checkpoints.read import read_checkpoint
    from seresnet_timm.runs.folder import RunFolder
    file = Path(path)
    if file.is_dir():  # all of its checkpoints are of one network
        file = RunFolder(path).checkpoint() or next(iter(sorted(file.glob('*.pth*'))), None)
    if file is None or not file.is_file():
        return  # the checks say so
    try:
        checkpoint = read_checkpoint(file)
    except UsageError:
        return  # likewise
    sources.checkpoints[str(file)] = checkpoint
    asked_model = sources.flags.get('model') or sources.config.get('model')
    try:
        info = checkpoint.info
    except UsageError as e:  # the flags alone describe the network
        repeated = sources.asked('model_kwargs') and checkpoint.info_without_kwargs()
        if not repeated and not asked_model:
            raise UsageError(f'{str(e).rstrip(".")}. Name the network yourself: --model NAME --model-kwargs KEY=VALUE.')
        if not repeated:
            sources.notes.append(f'{str(e).rstrip(".")}: nothing but its weights is taken.')
            return
        sources.notes.append(f'{str(e).rstrip(".")}: the arguments of --model-kwargs are taken instead.')
        info = repeated
    if info.name is None and not asked_model and 'model' not in sources.preset:
        raise UsageError(f'{file} does not say which network it holds: name it with --model.')
    is_other = bool(asked_model and info.name and asked_model.split('.')[0] not in (info.name.split('.')[0], checkpoint.arch))
    found = dict(
        mean=info.mean, std=info.std, interpolation=info.interpolation, crop_pct=info.crop_pct,
        crop_mode=info.crop_mode,
        input_size=None if sources.asked('img_size', 'input_size') else info.input_size)
    if not is_other:
        kwargs = dict(info.kwargs)
        found.update(
            model=info.name, num_classes=info.num_classes, in_chans=info.in_chans,
            gp=kwargs.pop('global_pool', None), model_kwargs=kwargs or None)
        for given in (sources.config, sources.flags):
            if isinstance(given.get('model_kwargs'), dict):  # those that were not given stay the file's
                given['model_kwargs'] = {**kwargs, **given['model_kwargs']}
    taken = {k: v for k, v in found.items() if v is not None and not sources.asked(k)}
    unknown = [k for k in info.unknown_preprocessing() if not sources.asked(k.replace(' ', '_'))]
    if unknown:
        sources.notes.append(f"{file} does not hold its preprocessing ({', '.join(unknown)}): the model's own is taken; "
                             'flags change it.')
    for name in taken:
        sources.reasons[name] = f'from {file}'
    given = {**sources.config, **sources.flags}
    overridden = [k for k, v in found.items() if v is not None and k in given and plain(given[k]) != plain(v)]
    if info.input_size and sources.asked('img_size', 'input_size'):
        overridden.append('input_size')
    if overridden:
        sources.notes.append(f'From the command line or --config, not from the checkpoint: {", ".join(overridden)}.')
    if 'input_size' in taken:
        sources.preset.pop('img_size', None)
    sources.preset.update(taken)


# --- machine ----------------------------------------------------------------------------------------------------------

def what_was_asked(options: Dict[str, Any]) -> cluster.Asked:
    """Processes and nodes that were typed. A device with an index, as in `cuda:1`, is one process."""
    nproc = None if options['nproc'] == 'auto' else int(options['nproc'])
    if nproc is None and ':' in (options['device'] or ''):
        nproc = 1
    return cluster.Asked(nproc, options.get('nnodes'))


def resolve_nodes(options: Dict[str, Any], job: Optional[cluster.Cluster]) -> Tuple[Node, int]:
    """Nodes, and how they meet: options, else what the scheduler says."""
    nnodes = options.get('nnodes', job.nnodes if job else 1)
    rank = options.get('node_rank', job.node_rank if job else 0)
    node = Node(
        rank, options.get('master_addr') or (job.master_addr if job else None),
        options.get('master_port') or (job.master_port if job else None), options.get('local_addr'),
        options.get('rdzv_timeout', 300), job)
    if nnodes < 1:
        raise UsageError(f'--nnodes is at least 1, got {nnodes}.')
    if not 0 <= rank < nnodes:
        raise UsageError(f'--node-rank {rank} is out of range: {nnodes} node(s) have the numbers 0 to {nnodes - 1}.')
    if nnodes > 1 and not node.master_addr and not node.is_rank:
        raise UsageError(f'{nnodes} nodes need --master-addr: the address of node 0, the same on every node.')
    return node, nnodes


def resolve_processes(sources: Sources, node: Node, nnodes: int) -> Tuple[str, int, int]:
    """Device, processes of this node, and processes of all nodes."""
    options, reasons = sources.options, sources.reasons
    for name, value in modelzoo.visible_devices(sources.modelzoo).items():
        os.environ[name] = value  # before torch looks for devices
    from seresnet_timm import device as devices

    requested = options['device'] or sources.base().get('device') or 'auto'
    must_exist = not options.get('dry_run')
    device, reasons['device'] = devices.select_device(requested, must_exist=must_exist)
    if node.is_rank:
        reasons['nproc'] = f'started by {node.job.kind}'
        world_size = node.job.variable('WORLD_SIZE')
        asked = options['nproc']
        if asked != 'auto' and int(asked) * nnodes != world_size:
            raise UsageError(
                f'{node.job.kind} started this process as one of {world_size} ranks, --nproc {asked} on {nnodes} '
                f'node(s) asks for {int(asked) * nnodes}: leave out --nproc, or start as many ranks with '
                f'{node.job.kind}.')
        return device, node.job.variable('LOCAL_WORLD_SIZE', world_size // nnodes), world_size
    kind, _, index = device.partition(':')
    available = 0 if devices.why_unavailable(kind) else devices.device_count(kind)
    nproc, reasons['nproc'] = _processes(sources, node.job, kind, index, available)
    if kind != 'cpu' and nproc > max(1, available) and must_exist:
        raise UsageError(f'--nproc {nproc} needs as many {kind} devices, this machine has {available}.')
    if index and nproc > 1:
        raise UsageError(f'--device {device} is one device, --nproc {nproc} needs more: leave out the index.')
    return device, nproc, nproc * nnodes


def _processes(
        sources: Sources, job: Optional[cluster.Cluster], kind: str, index: str, available: int) -> Tuple[int, str]:
    """Processes of this node, and the reason."""
    if sources.options['nproc'] != 'auto':
        return int(sources.options['nproc']), '--device_list' if 'device_list' in sources.modelzoo else '--nproc'
    if sources.recipe and sources.recipe.processes:
        return sources.recipe.processes, 'the recipe'
    if job and job.nproc:
        return job.nproc, f'told by {job.kind}'
    if kind == 'cpu' or index:
        return 1, f'one on {kind}{":" if index else ""}{index}'
    return max(1, available), f'one for each {kind}'


def decide_for_device(
        line: CommandLine, sources: Sources, args: Dict[str, Any], device: str, local_world_size: int) -> None:
    """Settings of the script that depend on the device, where the user leaves them open."""
    from seresnet_timm.data.workers import default_workers
    from seresnet_timm.step import fast
    named = {**sources.base(), **sources.flags}
    if device != 'cpu' and 'pin_mem' not in named:
        args['pin_mem'] = True  # else the host waits for every copy to the device
    if 'workers' not in named:
        args['workers'], sources.reasons['workers'] = default_workers(device, local_world_size)
    is_open = args.get('channels_last') is False and 'channels_last' not in named  # absent: the script has no such flag
    if is_open and sources.options.get('fast_step', 'auto') == 'auto':
        args['channels_last'] = fast.wants_channels_last(args['model'], device)[0]


def resolve_output(verb: str, args: Dict[str, Any], is_recipe: bool) -> Tuple[Optional[str], bool]:
    """Folder of the run, and whether the user named it."""
    if verb == 'validate':
        folder = Path('output/validate') / time.strftime(f'%Y%m%d-%H%M%S-{os.getpid()}')
        return (str(folder) if is_recipe else None), False
    is_named = bool(args['experiment'])
    if not is_named:
        # timm's own name for it, decided here so that the plan can show the folder
        size = args.get('img_size') or (args.get('input_size') or [224])[-1]
        now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
        name = f'{now}-{re.sub("[^0-9a-zA-Z]", "_", args["model"])}-{size}'
        parent = Path(args['output'] or './output/train')
        names = (f'{name}-{i}' if i else name for i in itertools.count())
        args['experiment'] = next(n for n in names if not (parent / n).exists())
    return str(Path(args['output'] or './output/train') / args['experiment']), is_named


def max_restarts(sources: Sources, nnodes: int, is_named: bool) -> int:
    """How often the processes are restarted after a failure, at most."""
    value = sources.options.get('max_restarts', sources.recipe.max_restarts if sources.recipe else 0)
    if value and nnodes > 1 and not is_named:
        raise UsageError('--max-restarts on several nodes needs --experiment NAME, the same on each: every node looks '
                         'there for the last checkpoint.')
    return value


def typed_command(
        verb: str, argv: Sequence[str], recipe_name: Optional[str], job: Optional[cluster.Cluster]) -> List[str]:
    """The command as the user typed it, or as near as a process can tell."""
    if recipe_name:
        return ['bash', f'recipes/{recipe_name}.sh', *argv]
    if job is not None and job.is_rank and job.kind == 'torchrun':
        nproc = os.environ.get('LOCAL_WORLD_SIZE', '1')
        return ['torchrun', f'--nproc-per-node={nproc}', '-m', 'seresnet_timm', verb, *argv]
    if job is not None and job.is_rank:
        return ['srun', os.path.basename(sys.executable), '-m', 'seresnet_timm', verb, *argv]
    return ['seresnet-timm', verb, *argv]


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples become lists.

    Raises:
        UsageError: It is nothing that JSON has.
    """
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError(f'{value!r} is not a plain value (number, text, true, false, list or mapping).')
