"""Checkpoint: a file that was read once, and what it holds"""
import argparse
import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Dict, List, Optional, Tuple, Union

import torch

from seresnet_timm.checkpoints import layout
from seresnet_timm.checkpoints.recognise import classifier_rows, recognise
from seresnet_timm.errors import UsageError, printable
from seresnet_timm.models.create import is_known
from seresnet_timm.models.info import IMAGE_MODES, SCHEMA, ModelInfo

SHA256_KEY = 'weights_sha256'  # in our checkpoints: SHA-256 of the weights, by the key that holds them
INFO_KEY = 'model_info'


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file as `read_checkpoint` read and checked it.

    Attributes:
        path: The file.
        format: 'zip' (torch.save since 1.6), 'legacy' (before), 'python2' (likewise, of Python 2) or 'safetensors'.
        content: The file's dictionary: a state dict, or one that holds it under `state_dict` or another usual key.
    """
    path: str
    format: str
    content: Dict[str, Any]

    @cached_property
    def _found(self) -> Tuple[Optional[str], Dict[str, Any]]:
        """Key of the weights, None where the file is a bare state dict, and the weights."""
        found = layout.find_weights(self.content, layout.WEIGHTS_KEYS)
        if found is not None:
            return found
        others = layout.other_networks(self.content)
        if others:
            return self._only_one({key: self.content[key] for key in others})
        # an average that is alone in its file is the network of the file
        average = layout.find_weights(self.content, layout.EMA_KEYS)
        is_bare = any(isinstance(v, torch.Tensor) for v in self.content.values())
        deeper = {} if average or is_bare else layout.deeper_networks(self.content)
        return self._only_one(deeper) if deeper else average or (None, self.content)

    def _only_one(self, networks: Dict[str, Dict[str, Any]]) -> Tuple[Optional[str], Dict[str, Any]]:
        if len(networks) > 1:
            raise layout.several_networks(f'Checkpoint {self.path}', list(networks), keys=True)
        return next(iter(networks.items()))

    @property
    def weights(self) -> Dict[str, Any]:
        """The weights under the names that they have in the file.

        Raises:
            UsageError: It holds several networks.
        """
        return self._found[1]

    @property
    def weights_key(self) -> Optional[str]:
        """Key in the file that holds the weights; None where the file is a bare state dict."""
        return self._found[0]

    @property
    def has_timms_keys(self) -> bool:
        """timm itself finds the weights in the file."""
        return self.weights_key in (None, *layout.TIMM_KEYS) and not any(
            k in self.content for k in layout.EMA_KEYS if k not in layout.TIMM_KEYS)

    @cached_property
    def network(self) -> layout.Named:
        """The weights under the names of their network, as far as they show without knowing it."""
        weights, prefix = layout.strip_network_words(layout.plain_names(self.weights, f'Checkpoint {self.path}'))
        return layout.Named(weights, [prefix] if prefix else [])

    @cached_property
    def _average(self) -> Optional[Tuple[str, Dict[str, Any]]]:
        return layout.find_weights(self.content, layout.EMA_KEYS)

    @property
    def ema(self) -> Optional[Dict[str, Any]]:
        """The moving average of the weights under the names that it has in the file, if the file holds one."""
        return None if self._average is None else self._average[1]

    @property
    def ema_key(self) -> Optional[str]:
        """Key in the file that holds the moving average."""
        return None if self._average is None else self._average[0]

    def only(self, network: str) -> 'Checkpoint':
        """One of several networks: the part of the file under a key, or the weights under a prefix ('' for none).

        Raises:
            UsageError: There is no such key and no such prefix.
        """
        part = self.content.get(network) or layout.deeper_networks(self.content).get(network)
        if not isinstance(part, dict):
            part = layout.part_of(self.weights, network.rstrip('.'))
        if not part:
            raise UsageError(f'{self.path} holds no network {printable(network)}: it is neither a key of the file nor '
                             'the beginning of names of weights.')
        kept = {k: self.content[k] for k in ('arch', 'args', 'epoch', 'version', INFO_KEY) if k in self.content}
        return replace(self, content={**kept, 'state_dict': part})

    @property
    def has_ema(self) -> bool:
        return self.ema is not None

    def weights_or_ema(self, use_ema: bool = False) -> Dict[str, Any]:
        """The weights under the names of the file; their moving average if asked for and if there is one."""
        ema = self.ema if use_ema else None
        return self.weights if ema is None else ema

    def describe_choice(self, use_ema: bool = False) -> str:
        """Which of several weights `weights_or_ema` takes, as a clause; '' where the file has only one."""
        key = self.ema_key if use_ema and self.ema_key else self.weights_key
        if key is None:
            return ''
        labels = {k: f'{k} (moving average)' if layout.is_average(k) else k
                  for k in (key, *layout.weights_under_usual_keys(self.content))}
        taken = labels.pop(key)
        if not labels:
            return 'moving average' if layout.is_average(key) else ''
        return printable(f'weights under {taken}, not under {" or ".join(labels.values())}')

    def notes_of_choice(self, use_ema: bool = False) -> List[str]:
        """That choice as a sentence; none where the file has only one."""
        choice = self.describe_choice(use_ema)
        return [f'From {printable(self.path)}: {choice}.'] if choice else []

    @property
    def args(self) -> Dict[str, Any]:
        """Arguments of the training, as the file has them: unchecked. For networks and preprocessing use `info`."""
        args = self.content.get('args')
        if isinstance(args, argparse.Namespace):
            args = vars(args)
        return dict(args) if isinstance(args, dict) else {}

    @property
    def is_modelzoo(self) -> bool:
        return 'best_acc1' in self.content

    @property
    def declared_architecture(self) -> Optional[str]:
        """Architecture that the file names. All files of the ModelZoo name `resnext101_32x8d`."""
        arch = self.content.get('arch')
        return arch if isinstance(arch, str) else None

    @cached_property
    def arch(self) -> Optional[str]:
        """timm's name of the network: recognised by its weights, else the name in the file if timm knows it."""
        recognised = recognise(self.network.weights)
        if recognised is not None or self.is_modelzoo:
            return recognised
        info = self.content.get(INFO_KEY)
        named = (info.get('name') if isinstance(info, dict) else None, self.declared_architecture)
        return next((n for n in named if isinstance(n, str) and is_known(n)), None)

    def arch_unlike(self, model_name: str) -> Optional[str]:
        """Architecture that the file names, if it is another than `model_name`; the ModelZoo's name a wrong one."""
        arch = self.arch if self.is_modelzoo else self.declared_architecture
        if arch is None:
            return None
        return arch if arch.split('.')[0] != model_name.split('.')[0] else None

    @property
    def epoch(self) -> Optional[int]:
        """The last epoch as the file counts: timm from 0."""
        epoch = self.content.get('epoch')
        return epoch if isinstance(epoch, int) else None

    @property
    def epochs(self) -> Optional[int]:
        """Epochs that it was trained for. timm counts the last one from 0, others how many there were."""
        if isinstance(self.content.get('epochs'), int):
            return self.content['epochs']
        version = self.content.get('version', 1)
        return None if self.epoch is None else self.epoch + (isinstance(version, int) and version > 1)

    @property
    def metric(self) -> Union[int, float, None]:
        """Metric that it was saved with, usually top1 (percent)."""
        return _number(self.content.get('metric', self.content.get('best_acc1')))

    @property
    def metric_name(self) -> Optional[str]:
        """Name of that metric; None if the file does not say it."""
        if 'metric' not in self.content:
            return 'top1' if self.is_modelzoo else None
        name = self.content.get('metric_name', self.args.get('eval_metric'))
        return name if isinstance(name, str) else None

    @property
    def run_state(self) -> Dict[str, Any]:
        """What an exact resume needs beside weights and optimizer; {} in files of others."""
        state = self.content.get('run_state')
        return state if isinstance(state, dict) else {}

    @property
    def loss_scale(self) -> Union[int, float, None]:
        """Loss scale of fp16 training, by timm's names and by apex's."""
        scaler = self.content.get('amp_scaler', self.content.get('amp'))
        if not isinstance(scaler, dict):
            return None
        scaler = scaler.get('loss_scaler0', scaler)
        return _number(scaler.get('scale', scaler.get('loss_scale'))) if isinstance(scaler, dict) else None

    @property
    def has_optimizer(self) -> bool:
        return 'optimizer' in self.content

    @property
    def others(self) -> List[str]:
        """Keys of what else is in the file."""
        key = (self.weights_key or '').partition('.')[0]
        known = {key, *layout.EMA_KEYS, SHA256_KEY, INFO_KEY, 'arch', 'epoch', 'epochs', 'metric', 'metric_name',
                 'version', 'optimizer'}
        return [] if self.weights is self.content else [str(k) for k in self.content if k not in known]

    @property
    def written_by(self) -> str:
        """Who wrote the file, as far as its keys show."""
        if self.is_modelzoo:
            return 'ModelZoo checkpoint'
        if 'run_state' in self.content:
            return 'checkpoint of seresnet-timm'
        if 'version' in self.content or 'saver' in self.content:
            return 'timm checkpoint'
        return 'weights' if self.format == 'safetensors' or self.weights is self.content else 'checkpoint'

    @property
    def holds_checksum(self) -> bool:
        """True if every value of the file could be checked when it was read."""
        return self.format == 'zip' or isinstance(self.content.get(SHA256_KEY), dict)

    @property
    def integrity(self) -> str:
        if isinstance(self.content.get(SHA256_KEY), dict):
            return 'SHA-256 of the weights verified'
        if self.holds_checksum:
            return 'CRC-32 of every part verified'
        return 'the file holds no checksum: compare its SHA-256'

    @property
    def num_classes(self) -> Optional[int]:
        """Number of classes: rows of the classifier's weights."""
        return classifier_rows(self.network.weights, self.arch)

    @cached_property
    def info(self) -> ModelInfo:
        """The network and its preprocessing: from `model_info`, in older files from the arguments of the training.

        Raises:
            UsageError: A setting is not one that is taken from a file.
        """
        origin = f'Checkpoint {self.path}'
        if self.content.get(INFO_KEY) is not None:
            info = ModelInfo.from_dict(self.content[INFO_KEY], origin)
        else:
            found = _info_of_args(self.args, self.arch, self.num_classes, origin)
            info = ModelInfo.from_dict(found, origin, 'args.model', 'args.model_kwargs')
        mode = self.args.get('input_img_mode')
        return replace(info, image_mode=mode) if info.image_mode is None and mode in IMAGE_MODES else info

    def typed_info(self) -> ModelInfo:
        """`info`, for verbs that have no flags for the arguments of a network: they say which verb has.

        Raises:
            UsageError: As `info`.
        """
        try:
            return self.info
        except UsageError as e:
            if self.info_without_kwargs() is None:
                raise
            raise UsageError(f'{str(e).rstrip(".")}. Only `seresnet-timm validate` and `train` use such a network, '
                             'with its arguments typed again: --model NAME --model-kwargs KEY=VALUE.')

    def info_without_kwargs(self) -> Optional[ModelInfo]:
        """`info` without the arguments of the network, for a file some of whose arguments are refused."""
        content = dict(self.content)
        if isinstance(content.get(INFO_KEY), dict):
            content[INFO_KEY] = dict(content[INFO_KEY], kwargs={})
        content['args'] = dict(self.args, model_kwargs={})
        try:
            return replace(self, content=content).info
        except UsageError:
            return None


def _info_of_args(
        args: Dict[str, Any],
        arch: Optional[str],
        num_classes: Optional[int],
        origin: str,
) -> Dict[str, Any]:
    """`model_info` of a file from before it, from the arguments of its training and its weights."""
    own = args.get('model_kwargs') or {}
    if not isinstance(own, dict):
        raise UsageError(f'{origin}: model_kwargs is a {type(own).__name__}, not a table of arguments: the file is '
                         'damaged.')
    kwargs = {k: args.get(flag) for k, flag in (('global_pool', 'gp'), ('bn_eps', 'bn_eps'))}
    kwargs = {k: v for k, v in {**kwargs, **own}.items() if v is not None}
    size, side, channels = args.get('input_size'), args.get('img_size'), args.get('in_chans')
    if size is None and side is not None:
        size = [channels if channels is not None else 3, side, side]
    if channels is None and isinstance(size, (list, tuple)) and size:
        channels = size[0]
    # a local folder is not looked into: what it holds today may be another model
    name = args.get('model')
    if not isinstance(name, str) or name.startswith('local-dir:'):
        name = arch
    elif not name.startswith(('hf-hub:', 'hf_hub:')) and not is_known(name):
        name = arch or name
    return {
        'schema': SCHEMA, 'name': name, 'kwargs': kwargs, 'in_chans': channels,
        'num_classes': num_classes if num_classes is not None else args.get('num_classes'), 'input_size': size,
        **{k: args.get(k) for k in ('mean', 'std', 'crop_pct', 'crop_mode')},
        'interpolation': args.get('interpolation') or None,
    }


def state_dict_of(checkpoint: Checkpoint, use_ema: bool = False) -> Dict[str, Any]:
    """`Checkpoint.weights_or_ema`, by its name of version 0.1."""
    return checkpoint.weights_or_ema(use_ema)


def weights_sha256(weights: Dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values of weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        if isinstance(tensor, torch.Tensor):
            digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}\n'.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _number(value: Any) -> Union[int, float, None]:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, (int, float)) else None
