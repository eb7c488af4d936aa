"""The sources of a run's settings, and how they are merged: later ones win

Script's defaults < recipe or preset < the checkpoint that is evaluated < config file < command line.
"""
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Collection, Dict, List, Optional, Sequence

from seresnet_timm.argument_parser import with_typed_names
from seresnet_timm.engine.flags import bundled_only_message
from seresnet_timm.errors import UsageError, printable
from seresnet_timm.launch import cluster, modelzoo
from seresnet_timm.launch.config_file import Config, bundled_defaults, load_config
from seresnet_timm.launch.parse import CommandLine
from seresnet_timm.launch.recipes import Recipe, divide_batch, load_recipe
from seresnet_timm.launch.tuned import options_of

# flags of a training preset or config that evaluation shares
SHARED_WITH_VALIDATION = (
    'data_dir', 'dataset', 'class_map', 'model', 'num_classes', 'in_chans', 'img_size', 'input_size', 'crop_pct',
    'mean', 'std', 'interpolation', 'batch_size', 'workers', 'pin_mem', 'channels_last', 'amp', 'amp_dtype',
    'model_kwargs', 'gp', 'log_freq', 'device_modules', 'device')

# settings that a sentence may name by their value alone
NAMES = ('model', 'opt', 'dataset', 'data_dir', 'class_map', 'kd_model_name', 'resume', 'initial_checkpoint',
         'pretrained_path', 'checkpoint')
_FLAG = r'(?<![\w/.-])--[a-z][\w-]*(?![\w/.-]*/)'  # a whole word, not a part of a path


def _holds(text: str, value: str) -> bool:
    """Whether a sentence holds a value as a whole word."""
    return bool(value) and re.search(rf'(?<![\w/.-]){re.escape(value)}(?![\w/-])', text) is not None


@dataclass
class Sources:
    """Where settings come from, while the plan is made: later ones win.

    Attributes:
        recipe: The recipe that runs.
        preset_recipe: The recipe of `--preset`.
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
        config_path: The file of `--config`.
        verb: 'train' or 'validate'.
        tuned: What `seresnet-timm tune` wrote into the config file, beside settings of the script.
        config_lines: Numbers of the lines of its keys.
        abbreviated: Flags that were abbreviated, and how.
        refused: Names of flags and keys whose values are wrong and therefore nowhere else; 'config' for a file that
            cannot be read.
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
    tuned: Optional[Dict[str, Any]] = None
    preset_recipe: Optional[Recipe] = None
    config_path: str = ''
    verb: str = 'train'
    config_lines: Dict[Any, int] = field(default_factory=dict)
    abbreviated: Dict[str, str] = field(default_factory=dict)
    refused: Collection[str] = ()

    def as_typed(self, text: str) -> str:
        """A sentence with the ModelZoo's names that were typed, and with the keys that the config file sets."""
        names = modelzoo.typed_names(self.typed_modelzoo, self.verb)
        said = re.findall(_FLAG, text)
        keys = [flag[2:].replace('-', '_') for flag in dict.fromkeys(said) if flag not in names]
        keys = [key for key in keys if key in self.config] + [
            key for key in NAMES if isinstance(self.config.get(key), str) and _holds(text, self.config[key])]
        keys = [key for key in dict.fromkeys(keys) if key not in self.flags and key not in self.refused]
        text = with_typed_names([re.sub(_FLAG, lambda m: names.get(m[0], m[0]), text)], self.abbreviated)[0]
        if keys and printable(self.config_path) not in text:
            verb = 'is' if len(keys) == 1 else 'are'
            text += f' ({", ".join(keys)} {verb} set in {printable(self.config_path)}{self._lines_of(keys)}.)'
        return text

    def _lines_of(self, keys: Sequence[str]) -> str:
        lines = [str(self.config_lines[key]) for key in keys if key in self.config_lines]
        return f', {"line" if len(lines) == 1 else "lines"} {", ".join(lines)}' if lines else ''

    @property
    def is_config_read(self) -> bool:
        """Whether there is no config file, or it could be read."""
        return 'config' not in self.refused

    def knows_data(self, args: Dict[str, Any]) -> bool:
        """Whether settings say which the data folder is, or that there is none; a wrong value may have said it."""
        return bool(args.get('data_dir') or not {'config', 'data_dir', 'data', 'data_path'} & set(self.refused))

    def asked(self, *names: str) -> bool:
        """True if the user gave one of the flags, typed or in a config file."""
        return any(n in self.flags or n in self.config for n in names)

    def asked_or_typed(self, *names: str) -> bool:
        """Likewise, or under a ModelZoo name."""
        return self.asked(*names) or any(n in self.typed_modelzoo for n in names)

    def base(self) -> Dict[str, Any]:
        return {**self.preset, **self.config}


def collect(line: CommandLine, recipe_name: Optional[str]) -> Sources:
    """Read recipe, preset and config file, and resolve the launcher's options."""
    flags = dict(line.flags)
    config_path = flags.pop('config', line.options.get('config'))
    refused, problems = set(line.refused), line.problems
    if 'data' in flags:  # timm's positional argument
        if flags['data'] and flags.get('data_dir', flags['data']) != flags['data']:
            problems.append(f"Unexpected argument '{printable(flags['data'])}': --data-dir "
                            f"{printable(flags['data_dir'])} names the dataset already.")
            flags['data'] = ''
        flags['data_dir'] = flags.pop('data') or flags.get('data_dir')
    if recipe_name and not ('data_path' in line.modelzoo or flags.get('data_dir') or 'data_path' in refused):
        problems.append(f'--data_path is missing. Usage: bash recipes/{recipe_name}.sh --data_path=DIR [options]; DIR '
                        'is the folder with train/ and val/ in it.')
        refused.add('data_path')
    has_nodes = 'nnodes' in line.options or 'world_size' in line.modelzoo or {'nnodes', 'world_size'} & refused
    if recipe_name == 'train_multinode' and not has_nodes and cluster.detect(os.environ) is None:
        problems.append('--nnodes is missing: how many machines train together. Start the recipe on each of them with '
                        'the same --nnodes=N and --master_addr=HOST, and its own --node_rank=R (0 to N-1); on one '
                        'machine use recipes/train_8p.sh.')
    modelzoo.check_names(line.modelzoo, flags, is_recipe=recipe_name is not None)
    options = modelzoo.launcher_options(line.modelzoo, line.options, flags)
    recipe = load_recipe(recipe_name) if recipe_name else None
    preset = None
    try:
        preset = load_recipe(options['preset']) if options.get('preset') is not None else None
    except UsageError as e:
        problems.append(str(e))
    settings = dict((preset or recipe).settings) if preset or recipe else {}
    if line.verb == 'validate':
        settings = for_validation(settings)
    if preset and line.verb == 'train' and not line.script.is_bundled:
        refuse_missing_flags(settings, line.defaults, preset.name)
    config = Config() if config_path is None else load_config_of(line, config_path)
    problems.extend(config.problems)
    if config.tuned:
        options = {**options_of(config.tuned, line.verb), **options}
    refused.update(key for key in config.lines if key not in config.values)
    if config.problems and not config.lines:
        refused.add('config')
    return Sources(recipe, settings, config.values, flags, dict(line.modelzoo), options, tuple(line.modelzoo),
                   tuned=config.tuned, preset_recipe=preset, config_path=str(config_path or ''), verb=line.verb,
                   config_lines=config.lines, abbreviated=line.abbreviated, refused=refused)


def refuse_missing_flags(settings: Dict[str, Any], defaults: Dict[str, Any], preset: str) -> None:
    """Refuse a preset with settings that the script does not have, which it would leave out without a word."""
    bundled = bundled_defaults(defaults)
    missing = [k for k in settings if k in bundled and settings[k] != bundled[k]]
    if missing:
        raise UsageError(f'--preset {preset}: ' + bundled_only_message(
            ', '.join(f'{k}: {settings[k]}' for k in missing), 'train.py'))


def load_config_of(line: CommandLine, path: str) -> Config:
    """What a config file says. Evaluation takes the file of a training too."""
    config = load_config(path, line.parser, line.defaults)
    if line.verb == 'train':
        return config
    from seresnet_timm.engine.flags import train_parser
    parser = train_parser()
    defaults = vars(parser.parse_args([]))
    if len(set(config.lines) - set(defaults)) >= len(set(config.lines) - set(line.defaults)):
        return config
    config = load_config(path, parser, defaults)
    config.values = for_validation(config.values)
    return config


def for_validation(settings: Dict[str, Any]) -> Dict[str, Any]:
    """The part of a training's settings that evaluation shares, by the names of validate.py."""
    result = {k: v for k, v in settings.items() if k in SHARED_WITH_VALIDATION}
    if 'val_split' in settings:
        result['split'] = settings['val_split']
    return result


def merge(line: CommandLine, sources: Sources, device: str, world_size: int) -> Dict[str, Any]:
    """Every flag of the script: defaults < recipe or preset < evaluated checkpoint < config < command line."""
    typed = dict(sources.modelzoo)
    if sources.recipe is not None:
        apply_recipe(sources, sources.recipe, line.verb, device, world_size)
    elif sources.preset_recipe is not None and line.verb == 'train':
        apply_preset(sources, sources.preset_recipe, world_size)
    if line.verb == 'validate':
        apply_checkpoint(sources)
    if 'batch_size' in typed:
        sources.reasons['batch_size'] = f'--batch_size {typed["batch_size"]}, which counts the images of all processes'
    base = sources.base()
    args = {
        **{k: v for k, v in line.defaults.items() if k not in ('config', 'data')},
        **base, **modelzoo.translate(sources.modelzoo, base, line.verb, world_size), **sources.flags}
    if 'amp_level' in sources.options:
        args['amp'] = sources.options['amp_level'] != 'O0'
    args['device'] = device
    if 'data' in line.defaults:
        args['data'] = None
    if not args.get('dataset'):
        args.update(dataset_in(args.get('data_dir') or ''))
    for key in ('model', 'kd_model_name'):
        if set(':/') & set(args.get(key) or ''):
            from seresnet_timm.hub.names import remote_name
            args[key] = remote_name(args[key]) or args[key]
    if line.verb == 'validate':
        if args['checkpoint'] and sources.asked('pretrained'):
            sources.notes.append('--pretrained has no effect with --checkpoint, whose weights are evaluated.')
        args['pretrained'] = not args['checkpoint']
    return args


def dataset_in(data_dir: str) -> Dict[str, Any]:
    """timm's flags for a data folder that names a dataset: `hfds:NAME`, `hfids:NAME`, `wds:FOLDER`; {} for others."""
    kind, _, rest = data_dir.partition(':')
    if kind not in ('hfds', 'hfids', 'wds') or not rest or rest.startswith('//') or os.path.exists(data_dir):
        return {}
    return {'dataset': 'wds/', 'data_dir': rest} if kind == 'wds' else {'dataset': f'{kind}/{rest}', 'data_dir': None}


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


def apply_preset(sources: Sources, preset: Recipe, world_size: int) -> None:
    """Divide the batch of a preset among the processes; leave out what one process cannot do."""
    if sources.preset.get('aug_repeats') and world_size == 1 and not sources.asked('aug_repeats'):
        sources.preset['aug_repeats'] = 0
        sources.notes.append(f'One process shows an image once an epoch: {preset.name} has repeated augmentation '
                             f'(--aug-repeats {preset.settings["aug_repeats"]}) on several processes.')
    total = preset.global_batch_size
    if total is None or preset.verb is not None:  # a recipe of the ModelZoo is a preset for each process
        return
    asked = {**sources.config, **sources.flags}
    accumulated = asked.get('grad_accum_steps') or None
    if sources.asked_or_typed('batch_size'):
        images = sources.modelzoo.get('batch_size') or asked['batch_size'] * world_size
        now = images * (accumulated or 1)
        if now != total and not sources.asked_or_typed('lr', 'lr_base', 'learning_rate'):
            sources.notes.append(f"The batch is {now:,} images per step, the preset's learning rate is for {total:,}: "
                                 'leave out -b, or give --lr too.')
        return
    batch = divide_batch(total, world_size, accumulated)
    sources.preset.update(batch_size=batch.images, grad_accum_steps=batch.accumulated)
    sources.reasons['batch_size'] = f'{preset.name} has {total:,} on any number of processes'
    if batch.total != total:
        sources.notes.append(f"{batch.total:,} images per step, not the preset's {total:,}, which do not divide by "
                             f'{world_size} processes in even numbers.')


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
    from seresnet_timm.checkpoints.fit import with_channels
    from seresnet_timm.checkpoints.read import checkpoints_in, read_checkpoint
    from seresnet_timm.runs.folder import RunFolder
    file = Path(path)
    if file.is_dir():  # all of its checkpoints are of one network
        file = RunFolder(path).checkpoint() or Path(checkpoints_in(path)[0])
    if not file.is_file():
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
            sources.notes.append(f'{str(e).rstrip(".")}: only its weights are used.')
            return
        sources.notes.append(f'{str(e).rstrip(".")}: the arguments of --model-kwargs are taken instead.')
        info = repeated
    if info.name is None and not asked_model and 'model' not in sources.preset:
        raise UsageError(f'{file} does not say which network it holds: name it with --model.')
    info = with_channels(checkpoint, info if info.name else replace(info, name=asked_model))
    own_names = (info.name.split('.')[0], checkpoint.arch) if info.name else ()
    is_other = bool(asked_model and own_names and asked_model.split('.')[0] not in own_names)
    given = {**sources.config, **sources.flags}
    channels = (given.get('input_size') or [given.get('in_chans') or info.in_chans])[0]
    found = dict(
        mean=_for_channels(info.mean, channels), std=_for_channels(info.std, channels),
        interpolation=info.interpolation, crop_pct=info.crop_pct, crop_mode=info.crop_mode,
        input_img_mode=info.image_mode,
        input_size=None if sources.asked('img_size', 'input_size') else info.input_size)
    if not is_other:
        kwargs = {k: v for k, v in info.kwargs.items() if k not in ('num_classes', 'in_chans')}  # which have flags
        found.update(
            model=info.name, num_classes=info.num_classes, in_chans=info.in_chans,
            gp=kwargs.pop('global_pool', None), model_kwargs=kwargs or None)
        for source in (sources.config, sources.flags):
            if isinstance(source.get('model_kwargs'), dict):  # those that were not given stay the file's
                source['model_kwargs'] = {**kwargs, **source['model_kwargs']}
    taken = {k: v for k, v in found.items() if v is not None and not sources.asked(k)}
    unknown = [k for k in info.unknown_preprocessing() if not sources.asked(k.replace(' ', '_'))]
    if unknown:
        sources.notes.append(f"{file} does not hold its preprocessing ({', '.join(unknown)}): the model's own is "
                             'taken; flags change it.')
    for name in taken:
        sources.reasons[name] = f'from {file}'
    overridden = [k for k, v in found.items() if v is not None and k in given and plain(given[k]) != plain(v)]
    if info.input_size and sources.asked('img_size', 'input_size'):
        overridden.append('input_size')
    if overridden:
        sources.notes.append(f'From the command line or --config, not from the checkpoint: {", ".join(overridden)}.')
    if 'input_size' in taken:
        sources.preset.pop('img_size', None)
    sources.preset.update(taken)


def _for_channels(values: Optional[List[float]], channels: Optional[int]) -> Optional[List[float]]:
    """Mean or std of a file as timm takes it: the average, as in training, if it is not of as many channels."""
    return [sum(values) / len(values)] if values and channels and len(values) != channels else values


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
