"""From what was typed, a recipe, a config file and the machine to RunSettings: every decision, with its reason

Settings come from the script's defaults, then recipe or preset, then the checkpoint that is evaluated, then the config
file, then the command line: what comes later wins. Nothing is decided after this.
"""
import argparse
import datetime
import itertools
import os
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from seresnet_timm.errors import UsageError, counted, refuse, reworded
from seresnet_timm.launch import cluster, modelzoo
from seresnet_timm.launch.combinations import find_contradictions, find_without_effect
from seresnet_timm.launch.dataset import DataFacts, examine, fit_batch
from seresnet_timm.launch.devices import set_visible
from seresnet_timm.launch.first_look import missing_files, refuse_wrong_values
from seresnet_timm.launch.network import check_host
from seresnet_timm.launch.outputs import decide_classes, name_outputs
from seresnet_timm.launch.parse import CommandLine, parse
from seresnet_timm.launch.sources import Sources, collect, merge, plain
from seresnet_timm.launch.tuned import describe as describe_tuned
from seresnet_timm.runs.settings import RunSettings, Script


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

    def processes(self, nproc: int) -> int:
        """Processes of the run on this node: `nproc`, unless somebody else started them."""
        return self.job.variable('LOCAL_WORLD_SIZE', nproc) if self.is_rank else nproc


@dataclass(frozen=True)
class Plan:
    """What will run where.

    Attributes:
        settings: Settings of the run.
        node: This node's part.
        dry_run: Check and print everything, start nothing.
        problems: Faults of the data, each a sentence.
        checkpoints: Checkpoints that were read, by their path.
        as_typed: Gives a sentence the flags' names as they were typed.
    """
    settings: RunSettings
    node: Node
    dry_run: bool
    problems: List[str]
    checkpoints: Dict[str, Any]
    as_typed: Callable[[str], str] = str


def make_plan(
        verb: str, argv: Sequence[str], recipe_name: Optional[str] = None, has_data: Optional[bool] = True) -> Plan:
    """Decide everything, from a command line.

    Args:
        verb: 'train' or 'validate'.
        argv: Command line after the verb.
        recipe_name: Recipe whose settings are the defaults.
        has_data: There is a data folder; a benchmark may have none. None: if the settings name one.

    Raises:
        UsageError: The command line contradicts itself or the machine.
    """
    line = parse(verb, argv)
    try:
        sources = collect(line, recipe_name)

        def as_typed(text: str) -> str:
            return text if text in line.problems else sources.as_typed(text)
        with reworded(as_typed):
            return replace(_make_plan(line, sources, verb, argv, recipe_name, has_data), as_typed=as_typed)
    except UsageError as e:
        refuse([*line.problems, e])


def _make_plan(
        line: CommandLine, sources: Sources, verb: str, argv: Sequence[str], recipe_name: Optional[str],
        has_data: Optional[bool]) -> Plan:
    try:
        asked = what_was_asked(sources.options)
        job, note = cluster.decide(cluster.detect(os.environ, asked), os.environ, asked)
        node, nnodes = resolve_nodes(sources.options, job)
    except UsageError as e:  # nothing can be planned: all else that is known is said
        line.problems.append(str(e))
        refuse_wrong_values(line, sources, has_data)
        refuse(line.problems)
    sources.notes += [note] if note else []
    refuse_wrong_values(line, sources, has_data)
    device, nproc, world_size = resolve_processes(sources, node, nnodes)
    args = merge(line, sources, device, world_size)
    decide_for_device(sources, args, device, node.processes(nproc))
    given, missing = dict(args), dict(missing_files(line.verb, args))
    args.update(dict.fromkeys(missing, ''))  # nothing more is said of them
    img_sizes, wrong_sizes = several_sizes(sources, args)
    set_channels(line.verb, args)
    output, is_named = resolve_output(line.verb, args, is_recipe=recipe_name is not None)
    command = typed_command(verb, argv, recipe_name, node.job)
    if line.verb == 'train' and (is_named or args.get('resume') == 'auto'):
        from seresnet_timm.launch.newest import resolve_resume
        resume = resolve_resume(sources, args.get('resume'), str(output), command)
        if resume != args.get('resume'):  # it may need fewer files
            args['resume'], given['resume'] = resume, resume
            still_missing = dict(missing_files(line.verb, given))
            args.update((name, given[name]) for name in missing.keys() - still_missing)
            missing = still_missing
    has_data = (names_data(args) if has_data is None else has_data) and sources.knows_data(args)
    data = name_outputs(line.verb, sources, args, examine(line.verb, args) if has_data else DataFacts())
    sources.reasons.update((f'images_{split}', text) for split, text in data.files.items() if text)
    fit_batch(sources, args, data, world_size)
    if sources.tuned:
        sources.notes += describe_tuned(
            sources.tuned, line.flags.get('config') or 'The config file', os.environ, device)
    problems = [
        *line.problems, *missing.values(), *wrong_sizes,
        *find_contradictions(line.verb, args, sources.asked_or_typed, world_size),
        *data.problems, *decide_classes(line.verb, sources, args, data)]
    sources.notes += find_without_effect(line.verb, args, sources.asked_or_typed, sources.options)
    options = sources.options
    decided = dict(
        verb=line.verb,
        script=line.script,
        args=plain(args),
        command=command,
        recipe=recipe_name or options.get('preset'),
        img_sizes=img_sizes,
        device=device,
        nnodes=nnodes,
        nproc=nproc,
        world_size=world_size,
        fast_step=options.get('fast_step', 'auto') == 'auto',
        graph=decide_graph(line, sources, args, device, world_size),
        max_bad_images=str(options.get('max_bad_images', '0.1%')),
        max_restarts=max_restarts(sources, node, nnodes, world_size, is_named),
        output=output,
        class_names=data.class_names,
        num_images=data.num_images,
        reasons=sources.reasons,
        notes=sources.notes,
    )
    settings = RunSettings(**{**of_settings(options), **decided})
    settings = decide_for_network(settings, node, open_for_network(settings, sources))
    node = replace(node, knows_output=is_named or node.rank == 0)
    return Plan(settings, node, bool(options.get('dry_run')), problems, sources.checkpoints)


def names_data(args: Dict[str, Any]) -> bool:
    """Whether flags of the script name a dataset."""
    return bool(args.get('data_dir') or args.get('dataset'))


def of_settings(options: Dict[str, Any]) -> Dict[str, Any]:
    """The launcher's options that are settings as they are; the others have RunSettings' defaults."""
    return {f.name: options[f.name] for f in fields(RunSettings) if f.name in options}


def plan_prediction(flags: Dict[str, Any], num_images: int, fast_jpeg: str = 'off') -> RunSettings:
    """Settings of `predict`: the weights' own precision (float32) and layout.

    Args:
        flags: The arguments of the verb, by name.
        num_images: Number of images.
        fast_jpeg: As in RunSettings; 'off' is Pillow's decoder.

    Raises:
        UsageError: The device does not exist.
    """
    from seresnet_timm import device as devices
    from seresnet_timm.data.workers import workers_for_images
    device, device_reason = devices.select_device(flags['device'])
    workers, workers_reason = flags['workers'], '--workers'
    if workers is None:
        workers, workers_reason = workers_for_images(num_images, flags['batch_size'])
    return RunSettings(
        verb='predict',
        script=Script('predict', reason='a verb of this package'),
        args=plain({**flags, 'device': device, 'workers': workers, 'amp': False, 'channels_last': False}),
        device=device,
        fast_jpeg=fast_jpeg,
        fast_step=False,
        fuse_bn='off',
        num_images={'images': num_images},
        reasons={'device': device_reason, 'workers': workers_reason},
    )


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
        raise UsageError(f'--node-rank {rank} is out of range: {cluster.describe_nodes(nnodes)}.')
    if nnodes > 1 and not node.master_addr and not node.is_rank:
        unset = f' ({job.kind} does not say it: {job.master_variable} is not set)' if job else ''
        raise UsageError(f'{nnodes} nodes need --master-addr: the address of node 0, the same on every node{unset}.')
    if node.master_addr and not node.is_rank:
        check_host(node.master_addr, '--master-addr' if options.get('master_addr') else job.master_variable)
    return node, nnodes


def resolve_processes(sources: Sources, node: Node, nnodes: int) -> Tuple[str, int, int]:
    """Device, processes of this node, and processes of all nodes."""
    options, reasons = sources.options, sources.reasons
    for name, value in modelzoo.visible_devices(sources.modelzoo).items():
        os.environ[name] = value  # before torch looks for devices
    set_visible(options)
    from seresnet_timm import device as devices

    requested = options['device'] or sources.base().get('device') or 'auto'
    must_exist = not options.get('dry_run')
    device, reasons['device'] = devices.select_device(requested, must_exist=must_exist)
    if node.is_rank:
        reasons['nproc'] = f'started by {node.job.kind}'
        world_size = node.job.variable('WORLD_SIZE')
        asked = options['nproc']
        if asked != 'auto' and int(asked) * nnodes != world_size:
            flag = f'--devices {options["devices"]}' if 'devices' in options else f'--nproc {asked}'
            raise UsageError(
                f'{node.job.kind} started this process as one of {world_size} ranks, {flag} on '
                f'{counted(nnodes, "node")} asks for {int(asked) * nnodes}: leave out {flag.split()[0]}, or '
                f'start as many ranks with {node.job.kind}.')
        return device, node.job.variable('LOCAL_WORLD_SIZE', world_size // nnodes), world_size
    kind, _, index = device.partition(':')
    if kind == 'cpu' and 'devices' in options:
        raise UsageError(f'--devices {options["devices"]} picks NPUs or GPUs, and there are none here '
                         f'({reasons["device"]}): leave it out.')
    available = 0 if devices.why_unavailable(kind) else devices.device_count(kind)
    nproc, reasons['nproc'] = _processes(sources, node.job, kind, index, available)
    if 'devices' in options and nproc > available and must_exist:
        raise UsageError(f'--devices {options["devices"]} names {nproc} {kind} devices, of which {available} exist: '
                         'name those.')
    if kind != 'cpu' and nproc > max(1, available) and must_exist:
        raise UsageError(f'--nproc {nproc} needs as many {kind} devices, this machine has {available}.')
    if index and nproc > 1:
        raise UsageError(f'--device {device} is one device, --nproc {nproc} needs more: leave out the index.')
    return device, nproc, nproc * nnodes


def _processes(
        sources: Sources, job: Optional[cluster.Cluster], kind: str, index: str, available: int) -> Tuple[int, str]:
    """Processes of this node, and the reason."""
    if sources.options['nproc'] != 'auto':
        flag = '--device_list' if 'device_list' in sources.modelzoo else '--nproc'
        named = sources.options.get('devices')
        return int(sources.options['nproc']), f'--devices {named}' if named else flag
    if sources.recipe and sources.recipe.processes:
        return sources.recipe.processes, 'the recipe'
    if job and job.nproc:
        return job.nproc, f'told by {job.kind}'
    if kind == 'cpu' or index:
        return 1, f'one on {kind}{":" if index else ""}{index}'
    return max(1, available), f'one for each {kind}'


def decide_for_device(
        sources: Sources, args: Dict[str, Any], device: str, local_world_size: int) -> None:
    """Settings of the script that depend on the device, where the user leaves them open."""
    from seresnet_timm.data.workers import default_workers
    named = {**sources.base(), **sources.flags}
    if device != 'cpu' and 'pin_mem' not in named:
        args['pin_mem'] = True  # else the host waits for every copy to the device
    if 'workers' not in named:
        args['workers'], sources.reasons['workers'] = default_workers(device, local_world_size)


def open_for_network(settings: RunSettings, sources: Sources) -> List[str]:
    """Settings that depend on the network and that the user leaves open."""
    named = {**sources.base(), **sources.flags}
    is_layout_open = settings.fast_step and 'channels_last' not in named
    return [
        # absent: the script has no such flag
        *(['channels_last'] if is_layout_open and settings.args.get('channels_last') is False else []),
        *(['lean_se'] if settings.verb == 'train' and settings.lean_se == 'auto' else [])]


def decide_for_network(settings: RunSettings, node: Node, names: Sequence[str]) -> RunSettings:
    """Decide what depends on the network: the layout of tensors, and whether SE blocks save memory ('on' or 'off').

    Args:
        settings: The other settings; of a Hub model the network is known once it was pulled.
        node: This node's part.
        names: What is open, of 'channels_last' and 'lean_se'.
    """
    if not names:
        return settings
    from seresnet_timm import device as devices
    from seresnet_timm.data.scheduled import most_pixels
    from seresnet_timm.models.create import architecture_of
    from seresnet_timm.step.fast import wants_channels_last
    from seresnet_timm.step.kept_memory import decide_lean_se
    architecture = architecture_of(settings.args['model'], settings.model_folder)
    args, lean_se, reasons = dict(settings.args), settings.lean_se, dict(settings.reasons)
    if 'channels_last' in names:
        args['channels_last'], reasons['channels_last'] = wants_channels_last(architecture, settings.device)
    if 'lean_se' in names:
        memory: Optional[float] = devices.total_memory(settings.device)
        if memory is not None and settings.device == 'cpu':
            memory /= node.processes(settings.nproc)
        flags = settings.namespace()
        wanted, reasons['lean_se'] = decide_lean_se(
            flags, architecture, most_pixels(flags), settings.device, memory, settings.fast_step)
        lean_se = 'on' if wanted else 'off'
    return replace(settings, args=args, lean_se=lean_se, reasons=reasons)


def decide_graph(
        line: CommandLine, sources: Sources, args: Dict[str, Any], device: str, world_size: int) -> bool:
    """Whether a step is captured and replayed; the reason, if it was asked for and is not."""
    if line.verb != 'train' or not sources.options.get('graph'):
        return bool(sources.options.get('graph'))  # which an evaluation refuses
    reason = why_no_graph(args, device, world_size, line.script.is_bundled, sources.options.get('amp_level') == 'O2')
    sources.reasons['graph'] = 'asked for with --graph' if reason is None else reason
    return reason is None


def why_no_graph(
        args: Dict[str, Any], device: str, world_size: int, is_bundled: bool, half_weights: bool) -> Optional[str]:
    """Why the steps of a training on the device of this machine are not captured, as a clause; None if they are."""
    from seresnet_timm import device as devices
    from seresnet_timm.step.graph import why_not_captured
    kind = device.partition(':')[0]
    module = None if devices.why_unavailable(kind) else devices.device_module(kind)
    flags = argparse.Namespace(**{**args, 'distributed': world_size > 1})
    return why_not_captured(flags, device, module, is_bundled, half_weights)


def several_sizes(sources: Sources, args: Dict[str, Any]) -> Tuple[Optional[List[int]], List[str]]:
    """Sizes of the images of an evaluation that has several, and what is wrong with them.

    `img_size` becomes the largest of them, by which memory is judged.
    """
    sizes = args.get('img_size')
    if not isinstance(sizes, (list, tuple)):
        return None, []
    args['img_size'] = max(sizes)
    found, text = [], f'--img-size {" ".join(map(str, sizes))}'
    if sources.asked('input_size'):
        found.append(f'{text} and --input-size contradict each other: give one of them.')
    elif args.get('input_size'):  # of a preset
        args['in_chans'], args['input_size'] = args.get('in_chans') or args['input_size'][0], None
    if len(set(sizes)) < len(sizes):
        found.append(f'{text} names a size twice: leave out one.')
    return list(sizes), found


def set_channels(verb: str, args: Dict[str, Any]) -> None:
    """Set the size of the input where the user gives its channels only: timm would take 3 with the model's own size."""
    from timm.models import get_pretrained_cfg

    from seresnet_timm.models.create import is_known
    if args.get('in_chans') in (None, 3) or args.get('img_size') or args.get('input_size') or not is_known(
            args['model']):
        return
    cfg = get_pretrained_cfg(args['model'], allow_unregistered=True)
    if cfg is not None:
        of_test = verb == 'validate' and not args.get('use_train_size') and cfg.test_input_size
        args['input_size'] = [args['in_chans'], *(of_test or cfg.input_size)[1:]]


def resolve_output(verb: str, args: Dict[str, Any], is_recipe: bool) -> Tuple[Optional[str], bool]:
    """Folder of the run, and whether the user named it."""
    if verb == 'validate':
        folder = Path('output/validate') / time.strftime(f'%Y%m%d-%H%M%S-{os.getpid()}')
        return (str(folder) if is_recipe else None), False
    is_named = bool(args['experiment'])
    if not is_named:
        # timm's own name for it, decided here so that the plan can show the folder; the size of a model of the Hub is
        # not known yet
        from seresnet_timm.models.create import folder_name, native_size
        size = (args.get('input_size') or [args.get('img_size')])[-1] or (native_size(args['model']) or [None])[-1]
        now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
        name = '-'.join(filter(None, (now, folder_name(args['model']), str(size or ''))))
        parent = Path(args['output'] or './output/train')
        names = (f'{name}-{i}' if i else name for i in itertools.count())
        args['experiment'] = next(n for n in names if not (parent / n).exists())
    return str(Path(args['output'] or './output/train') / args['experiment']), is_named


def max_restarts(sources: Sources, node: Node, nnodes: int, world_size: int, is_named: bool) -> int:
    """How often the processes are restarted after a failure, at most: those that this launcher starts."""
    is_asked = 'max_restarts' in sources.options
    value = sources.options['max_restarts'] if is_asked else sources.recipe.max_restarts if sources.recipe else 0
    if world_size == 1 or node.is_rank:
        if value and is_asked:
            why = f'with processes that {node.job.kind} starts' if node.job and node.is_rank else (
                'with one process, which has no launcher')
            sources.notes.append(f'--max-restarts has no effect {why}.')
        return 0
    if not value or nnodes == 1 or is_named:
        return value
    if is_asked:
        raise UsageError('--max-restarts on several nodes needs --experiment NAME, the same on each: every node looks '
                         'there for the last checkpoint.')
    sources.notes.append('No restart after a failure: on several nodes that needs --experiment NAME, the same on each.')
    return 0


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
