"""Creates every model of the package, from flags, from a file's ModelInfo or by name; never asks the network

A model on the Hub is pulled first by its user, and made here from its folder.
"""
import json
import math
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import timm
import torch
import torch.nn as nn
from timm.models import get_pretrained_cfg, parse_model_name, split_model_name_tag

from seresnet_timm.errors import UsageError, did_you_mean, first_line, first_names, printable
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.models.keyword_values import wrong_kinds
from seresnet_timm.models.trusted import MAX_TEXT, trusted_kwargs, why_untrusted

__all__ = [
    'check_model_name', 'create_from_args', 'create_from_info', 'create_model', 'trusted_kwargs', 'why_untrusted',
]

MAX_CONFIG = 10 ** 7  # bytes of a config.json; the names of 20,000 classes have 2 MB
MAX_NAMED = 3  # weights that one sentence lists
MAX_VALUES = 1 << 33  # of a network that a file describes: 32 GiB; timm's largest have 7 billion
# the flag that gives an argument of the network; the first that was given is named
FLAGS = {
    'num_classes': ('--num-classes',), 'in_chans': ('--in-chans', '--input-size'), 'global_pool': ('--gp',),
    'img_size': ('--img-size',), 'drop_rate': ('--drop',), 'drop_path_rate': ('--drop-path', '--drop-connect'),
    'drop_block_rate': ('--drop-block',), 'bn_momentum': ('--bn-momentum',), 'bn_eps': ('--bn-eps',),
    'scriptable': ('--torchscript',), 'checkpoint_path': ('--initial-checkpoint',),
}
# what timm raises for arguments of the wrong kind or size
WRONG_ARGUMENT = (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError,
                  ZeroDivisionError)


def check_model_name(name: str, flag: str = '--model') -> None:
    """Refuse the name of a model that timm does not know, in one sentence.

    Models on the Hub (`hf-hub:`) are for the Hub to check, folders (`local-dir:`) for `create_model`.

    Args:
        name: 'architecture', 'architecture.tag', or with a source before a colon.
        flag: Where it was given, for the message; '' for nowhere in particular.

    Raises:
        UsageError: timm knows no such architecture, or no such weights of it.
    """
    where = f'{flag}: ' if flag else ''
    try:
        source, rest = parse_model_name(name)
    except ValueError as e:
        raise UsageError(f'{where}{printable(e)}')
    if source is not None:
        return
    arch, tag = split_model_name_tag(rest)
    if not timm.is_model(arch):
        hint = did_you_mean(arch, timm.list_models(), 'timm.list_models() names them all.')
        raise UsageError(f"Unknown model '{printable(name)}': {hint}")
    tags = weight_tags(arch)
    if tag and tag not in tags:
        raise UsageError(f"Model {arch} has no weights '{printable(tag)}': there are {', '.join(tags) or 'none'}.")


def weight_tags(arch: str) -> List[str]:
    """Names of the pretrained weights that timm knows for an architecture."""
    return [n.split('.', 1)[1] for n in timm.list_models(f'{arch}.*', include_tags=True)]


def folder_name(name: str) -> str:
    """What names of folders say of a model, any text in place of a name included: as timm's, without the source."""
    source, _, rest = name.rpartition(':')
    return re.sub('[^0-9a-zA-Z]', '_', os.path.basename(os.path.abspath(rest)) if source == 'local-dir' else rest)


def native_size(name: str) -> Optional[Tuple[int, ...]]:
    """Channels, height and width that timm names for a model; None for one of the Hub, of a folder, or unknown."""
    cfg = get_pretrained_cfg(name, allow_unregistered=True) if ':' not in name else None
    return cfg.input_size if cfg is not None else None


def is_known(name: str) -> bool:
    """True if timm knows the architecture of a name without a source before a colon."""
    return ':' not in name and timm.is_model(split_model_name_tag(name)[0])


def create_model(
        name: str,
        folder: Optional[Union[str, Path]] = None,
        meta: bool = False,
        **kwargs: Any,
) -> nn.Module:
    """Create a model.

    Args:
        name: timm's name of it, or `local-dir:FOLDER`.
        folder: Folder of a model that was pulled from the Hub; `name` is for messages then.
        meta: Shapes only, without memory.
        kwargs: Further arguments of the model; None leaves one at its default.

    Raises:
        UsageError: There is no such model, or it does not take one of the arguments.
    """
    return _create(name, folder, meta, kwargs, lambda key: f"leave out '{key}'")


def create_from_args(
        args: Any,
        folder: Optional[Union[str, Path]] = None,
        meta: bool = False,
        **kwargs: Any,
) -> nn.Module:
    """Create the model that `--model` names, as a script's flags describe it.

    Args:
        args: Flags: `model`, `num_classes`, `in_chans`, `input_size`, `gp` and `model_kwargs` are read.
        folder: Folder of the model on the Hub that `--model` names, once it was pulled.
        meta: Shapes only, without memory.
        kwargs: Further arguments of the model; None leaves one at its default. `--model-kwargs` overrides them.

    Raises:
        UsageError: There is no such model, or it does not take one of the arguments; the flag is named.
    """
    in_chans = args.in_chans
    if in_chans is None:
        in_chans = args.input_size[0] if args.input_size is not None else 3
    own = dict(args.model_kwargs or {})
    flags = dict(num_classes=args.num_classes, in_chans=in_chans, global_pool=args.gp, **kwargs)

    def remedy(key: Optional[str]) -> str:
        if key not in own and key in FLAGS:
            given = [f for f in FLAGS[key] if getattr(args, f[2:].replace('-', '_'), None) is not None]
            return f'leave out {(given or FLAGS[key])[0]}'
        pairs = ' '.join(f'{k}={v}' for k, v in own.items() if key is None or k == key)
        if key is None and pairs and args.gp is not None:
            return f'check --gp {args.gp}, and {pairs} of --model-kwargs'
        return f'leave out {pairs} of --model-kwargs' if pairs else 'check the flags of the model'
    model = _create(args.model, folder, meta, {**flags, **own}, remedy, explain_all=bool(own))
    refuse_wrong_kinds(own, model)
    return model


def refuse_wrong_kinds(model_kwargs: Dict[str, Any], model: nn.Module) -> None:
    """Refuse arguments of another kind than the network takes, which it was made with all the same.

    Raises:
        UsageError: There are some.
    """
    wrong = wrong_kinds('--model-kwargs', model_kwargs, (type(model).__init__,))
    if wrong:
        raise UsageError(f'{"; ".join(wrong)}.')


def create_from_info(
        info: ModelInfo,
        origin: str,
        num_classes: Optional[int] = None,
        img_size: Optional[int] = None,
        meta: bool = False,
        folder: Optional[Union[str, Path]] = None,
        exportable: bool = False,
) -> nn.Module:
    """Create the network that a file describes. Its settings are taken from a whitelist: see `trusted`.

    Args:
        info: As from `Checkpoint.info` or `ModelInfo.from_dict`.
        origin: The file, for messages.
        num_classes: Number of outputs, over that of the file.
        img_size: Side of the image in pixels, over that of the file, for networks that are made for one size.
        meta: Shapes only, without memory.
        folder: Folder of the model on the Hub that `info.name` names, once it was pulled.
        exportable: Use timm's layers for export.

    Raises:
        UsageError: The file names no model that timm knows, or one of its settings is refused or does not fit.
    """
    if info.name is None:
        raise UsageError(f'{printable(origin)} does not say what model it is of: name it with --model, e.g. '
                         '--model seresnet50_ascend.')
    if folder is None and not is_known(info.name):
        hint = did_you_mean(info.name, timm.list_models(), 'timm.list_models() names them all.')
        raise UsageError(f"{printable(origin)} names the model '{printable(info.name)}', which is unknown to timm "
                         f'({hint.rstrip(".?")}): name it with --model.')
    kwargs = trusted_kwargs(info.kwargs, origin)
    for key, value in (
            ('num_classes', info.num_classes if num_classes is None else num_classes),
            ('in_chans', info.in_chans), ('exportable', exportable or None),
            ('img_size', _made_for_size(info, img_size, folder))):
        if value is not None:
            kwargs[key] = value
    try:
        shapes = _create(info.name, folder, True, kwargs, _no_remedy)
        values = sum(math.prod(t.shape) for t in (*shapes.parameters(), *shapes.buffers()))
        if values > MAX_VALUES:
            raise UsageError(f'it would have {values:,} values, more than any network of timm')
        return shapes if meta else _create(info.name, folder, False, kwargs, _no_remedy)
    except (UsageError, *WRONG_ARGUMENT) as e:
        raise UsageError(f'{info.name} cannot be made with the settings in {printable(origin)} '
                         f'({printable(first_line(e))}).') from e


def _no_remedy(_key: Optional[str]) -> str:
    return ''


def _made_for_size(info: ModelInfo, img_size: Optional[int], folder: Optional[Union[str, Path]]) -> Any:
    """`img_size` of a network that is made for one size, such as a transformer; None for others."""
    if folder is None:
        cfg = get_pretrained_cfg(info.name or '', allow_unregistered=True)
        fixed = cfg is not None and cfg.fixed_input_size
    else:
        config = read_model_config(folder)
        fixed = bool(config.get('pretrained_cfg', config).get('fixed_input_size'))
    if not fixed:
        return None
    return img_size or info.kwargs.get('img_size') or (info.input_size[1:] if info.input_size else None)


def architecture_of(name: str, folder: Optional[Union[str, Path]] = None) -> str:
    """timm's name of a model's architecture, without a tag; the name itself where only the Hub knows.

    Args:
        name: Name of a model, as for `timm.create_model`.
        folder: Its folder, if it is on the Hub and was pulled.

    Raises:
        UsageError: The folder is not that of a timm model.
    """
    source, _, place = name.partition(':')
    if folder or source == 'local-dir':
        return read_model_config(folder or place)['architecture']
    return name if place else name.partition('.')[0]


def read_model_config(folder: Union[str, Path]) -> Dict[str, Any]:
    """config.json of a folder as the Hub has it, whose settings may come from a stranger.

    Raises:
        UsageError: The file is missing or damaged, or it holds an argument that is not taken from a file.
    """
    path = Path(folder) / 'config.json'
    if path.exists() and not path.is_file():
        raise UsageError(f'{printable(path)} is not a file: a folder, a pipe or a device holds no configuration.')
    if path.exists() and path.stat().st_size > MAX_CONFIG:
        raise UsageError(f'{printable(path)} has {path.stat().st_size / 1e6:,.1f} MB: it is no model configuration.')
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UsageError(f'{folder} holds no config.json: it is not the folder of a timm model.')
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f'{path} cannot be read ({printable(first_line(e))}).')
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise UsageError(f'{path} names no architecture: it is not the configuration of a timm model.')
    check_model_config(config, str(path))
    return config


def check_model_config(config: Dict[str, Any], origin: str) -> None:
    """Check what timm takes from the content of a config.json: arguments of the network, preprocessing, class names.

    Raises:
        UsageError: A value is refused; the file and its key are named.
    """
    weights = config.get('pretrained_cfg', config)
    if not isinstance(weights, dict):
        raise UsageError(f'{printable(origin)}: pretrained_cfg is not a table of settings.')
    trusted_kwargs(config.get('model_args'), origin, 'model_args')
    known = {k: weights.get(k) for k in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')}
    if weights.get('custom_load'):  # another format than state dicts, for which a network reads a file of its own
        raise UsageError(f'{printable(origin)}: custom_load is not taken from a file.')
    names = {**config, **weights}.get('label_names')
    if isinstance(names, list) and not all(isinstance(name, str) and len(name) <= MAX_TEXT for name in names):
        raise UsageError(f'{printable(origin)}: label_names is not a list of names: the file is damaged.')
    ModelInfo.from_dict(known, origin)
    of_test = {k: weights.get(f'test_{k}') or known[k] for k in ('input_size', 'crop_pct')}
    if of_test != {k: known[k] for k in of_test}:
        ModelInfo.from_dict({**known, **of_test}, f'{origin}, test_input_size and test_crop_pct')


def _create(
        name: str,
        folder: Optional[Union[str, Path]],
        meta: bool,
        kwargs: Dict[str, Any],
        remedy: Callable[[Optional[str]], str],
        explain_all: bool = False,
) -> nn.Module:
    """The only call of `timm.create_model`.

    Args:
        name: As for `create_model`.
        folder: As for `create_model`.
        meta: As for `create_model`.
        kwargs: Arguments of the model; None leaves one at its default.
        remedy: What to do about an argument, by its name; None if it is not known which.
        explain_all: Take any error for one of the arguments.
    """
    if folder is not None:
        made_as = f'local-dir:{folder}'
    else:
        check_model_name(name)
        made_as = name
        if name.partition(':')[0] in ('hf-hub', 'hf_hub'):
            raise ValueError(f'{name} must be pulled first')
    source, rest = parse_model_name(made_as)
    if source == 'local-dir':
        read_model_config(rest)
    kwargs = {k: v for k, v in kwargs.items() if v is not None}
    try:
        with torch.device('meta') if meta else nullcontext():
            model = timm.create_model(made_as, **kwargs)
    except WRONG_ARGUMENT as e:
        text = str(e)
        # the first name in quotation marks: Python 3.13 may add the name that it takes to be meant
        key = text.split("'", 2)[1] if isinstance(e, TypeError) and 'unexpected keyword argument' in text else None
        if key is None and (kwargs.get('pretrained') or not explain_all and source is None):
            raise
        what = f"does not take '{printable(key)}'" if key else f'cannot be made ({printable(first_line(e))})'
        advice = remedy(key)
        raise UsageError(f'{name} {what}{": " + advice if advice else ""}.') from e
    bad = not_finite(model.state_dict()) if kwargs.get('pretrained') and not meta else []
    if bad:
        raise UsageError(f'{printable(name)} has weights that are not finite (NaN or infinity): '
                         f'{printable(first_names(bad, MAX_NAMED))}.')
    return model


def not_finite(weights: Dict[str, Any]) -> List[str]:
    """Names of the weights that hold NaN or infinity."""
    return [k for k, v in weights.items() if isinstance(v, torch.Tensor) and count_not_finite(v)]


def count_not_finite(values: torch.Tensor) -> int:
    """Number of values that are NaN or infinity; 0 for a tensor without plain floating-point values."""
    if why_not_plain(values) or not values.is_floating_point():
        return 0
    values = values.float() if values.element_size() == 1 else values  # torch has no isfinite for 8 bits
    # a sum is finite only if all values are, and takes a tenth of the time
    return 0 if bool(values.sum().isfinite()) else int((~values.isfinite()).sum())


def why_not_plain(values: torch.Tensor) -> Optional[str]:
    """What a tensor is whose values a network cannot take as they are; None for a plain one."""
    if values.is_meta:
        return 'without values'
    if values.is_quantized:
        return 'quantised'
    if values.layout != torch.strided:
        return 'sparse'
    return 'complex' if values.is_complex() else None
